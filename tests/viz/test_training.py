"""Figures of a training: its rows and rates, the loss over the steps, what parts cost, bits per byte of each domain."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.viz.training import (
    bits_by_domain,
    centred_mean,
    cost_of_parts,
    gradient_norms,
    learning_curves,
    learning_rates,
    loss_by_rate,
    noise_by_rows,
    packed_rows,
)
from mixtral_edu.viz.widgets import AblationView


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_learning_rates_are_drawn_with_the_warm_up_shaded():
    figure = learning_rates([1.0, 2.0, 3.0, 2.0, 1.0], warmup_steps=3, title="up and down")
    (axes,) = figure.axes
    (line,) = axes.lines
    (shade,) = axes.patches
    assert line.get_ydata().tolist() == [1, 2, 3, 2, 1]
    assert (shade.get_x(), shade.get_width()) == (0, 3)
    assert axes.get_title(loc="left") == "up and down"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("rates", [[1.0, 2.0, 3.0], [[1.0, 2.0, 3.0, 4.0]]])
def test_learning_rates_have_to_outlast_the_warm_up(rates):
    with pytest.raises(ValueError, match="warmup_steps=3"):
        learning_rates(rates, warmup_steps=3, title="")


def test_packed_rows_are_fields_one_for_each_document():
    figure = packed_rows([[1, 5, 5, 2, 1, 5], [1, 5, 5, 5, 5, 2]], bos=1, eos=2, title="two rows")
    (axes,) = figure.axes
    fields = [(patch.get_x(), patch.get_width(), bool(patch.get_hatch())) for patch in axes.patches]
    assert fields == [(0, 4, False), (4, 2, True), (0, 6, False)], "hatched where the row's end cuts a document off"
    assert [text.get_text() for text in axes.texts] == ["4", "2", "6"]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("rows", [[1, 5, 2], [[1, 5, 2], [5, 5, 2]]])
def test_packed_rows_begin_with_a_document(rows):
    with pytest.raises(ValueError, match="beginning with bos=1"):
        packed_rows(rows, bos=1, eos=2, title="")


def test_a_centred_mean_of_a_line_is_the_line():
    line = np.linspace(8, 1, 30)
    assert centred_mean(line, span=5) == pytest.approx(line), "it lies neither above nor below, to its very ends"
    values = np.random.default_rng(0).random(20)
    assert centred_mean(values, span=5)[2:-2] == pytest.approx(np.convolve(values, np.ones(5) / 5, mode="valid"))
    assert centred_mean(values, span=1) == pytest.approx(values)


def test_norms_above_the_bound_are_filled_dots():
    figure = gradient_norms([0.5, 2.0, 0.9, 30.0], bound=1.0, title="two of four")
    (axes,) = figure.axes
    clipped, left, bound = axes.lines
    assert (list(clipped.get_xdata()), list(clipped.get_ydata())) == ([1, 3], [2, 30])
    assert (list(left.get_xdata()), left.get_markerfacecolor()) == ([0, 2], "white")
    assert list(bound.get_ydata()) == [1, 1] and axes.get_yscale() == "log"
    assert_nothing_cut_off(figure)
    with pytest.raises(ValueError, match="numbers above 0"):
        gradient_norms([1.0, 0.0], bound=1.0, title="")


def test_cost_of_parts_has_a_dot_per_seed():
    losses = {"as it is": [1.0, 1.2], "no warm-up": [2.0, 2.2], "better": [0.9]}
    figure = cost_of_parts(losses, ["1.10", "+1.00", "−0.20"], "one costs", "loss")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1.10", "+1.00", "−0.20"]
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == list(losses.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(losses)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize("losses", [{"as it is": [1.0]}, {"as it is": [1.0], "no clipping": []}])
def test_cost_of_parts_needs_something_to_compare(losses):
    with pytest.raises(ValueError, match="two rows or more"):
        cost_of_parts(losses, ["a"] * len(losses), "", "")


def test_cost_of_parts_has_a_label_per_row():
    with pytest.raises(ValueError, match="labels 1"):
        cost_of_parts({"a": [1.0], "b": [2.0]}, ["1.00"], "", "")


def test_loss_by_rate_joins_means():
    figure = loss_by_rate({"a": {0.002: [1.0, 2.0], 0.001: [3.0]}, "b": {0.002: [4.0]}}, "rates", "loss")
    (axes,) = figure.axes
    joined = [line for line in axes.lines if line.get_linestyle() != "None"]
    assert [list(line.get_ydata()) for line in joined] == [[3.0, 1.5], [4.0]]
    assert len({line.get_marker() for line in joined}) == 2, "told apart without colour"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.002"]
    assert_nothing_cut_off(figure)
    with pytest.raises(ValueError, match="has 5 settings"):
        loss_by_rate({name: {0.1: [1.0]} for name in "abcde"}, "", "")


def test_noise_is_drawn_beside_its_law():
    figure = noise_by_rows([1, 4, 16], [2.0, 1.1, 0.5], "noise falls")
    (axes,) = figure.axes
    law, measured = axes.lines
    assert list(law.get_ydata()) == [2.0, 1.0, 0.5] and list(measured.get_ydata()) == [2.0, 1.1, 0.5]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)
    with pytest.raises(ValueError, match="one noise for each"):
        noise_by_rows([1, 2], [1.0], "")


def test_learning_curves_show_each_value_its_mean_and_what_happened():
    curves = {"one": ([0, 20, 40], [8.0, 4.0, 2.0]), "two": ([0, 20], [6.0, 2.0])}
    figure = learning_curves(curves, "both fall", uniform=7.0, marks={20: "new data"}, span=3)
    (axes,) = figure.axes
    drawn = [line.get_ydata() for line in axes.lines]
    assert [list(values) for values in drawn[:4]] == [[8, 4, 2], [8, 14 / 3, 2], [6, 2], [6, 2]]
    assert list(drawn[4]) == [7, 7] and list(axes.lines[5].get_xdata()) == [20, 20]
    assert [text.get_text() for text in axes.texts] == ["new data"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two", "ln V = 7.00"]
    assert axes.get_legend().get_title().get_text() == "thin: single values, thick: mean of 3"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_levels_are_lines_with_words():
    figure = learning_curves({"one": ([0, 20, 40], [8.0, 4.0, 1.0])}, "it falls", levels={"frequencies": 5.7}, span=1)
    (axes,) = figure.axes
    assert list(axes.lines[1].get_ydata()) == [5.7, 5.7] and axes.texts[0].get_text() == "frequencies"
    assert_no_texts_overlap(figure)


def test_learning_curves_of_means_are_drawn_once():
    figure = learning_curves({"one": ([0, 20], [8.0, 4.0]), "two": ([0, 20], [6.0, 2.0])}, "both fall", span=1)
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[8, 4], [6, 2]]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle(), "told apart without colour"
    assert axes.get_legend().get_title().get_text() == ""


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "0 runs"),
        ({name: ([0], [1.0]) for name in "abcd"}, "4 runs"),
        ({"a": ([0, 1], [1.0])}, r"'a'\] has 2 steps and 1 losses"),
    ],
)
def test_learning_curves_refuse_what_does_not_fit(curves, message):
    with pytest.raises(ValueError, match=message):
        learning_curves(curves, "")


def test_bits_are_bars_in_groups_with_their_numbers():
    figure = bits_by_domain({"a": [0.5, 2.0], "b": [0.25, 1.5]}, ["stories", "python"], "stories are cheap")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 2.0, 0.25, 1.5]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert middles == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    assert [text.get_text() for text in axes.texts] == ["0.50", "2.00", "0.25", "1.50"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stories", "python"]
    assert axes.yaxis_inverted()
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(("dearest", "lines"), [(7.0, []), (7.2, [8])])
def test_what_plain_bytes_take_is_drawn_where_bars_come_near_it(dearest, lines):
    figure = bits_by_domain({"a": [0.5, dearest], "b": [0.25, 1.5]}, ["stories", "python"], "the title")
    (axes,) = figure.axes
    assert [line.get_xdata()[0] for line in axes.lines] == lines


@pytest.mark.parametrize("bits", [{}, {"a": [1.0]}, {name: [1.0, 2.0] for name in "abcd"}])
def test_bits_refuse_what_does_not_fit(bits):
    with pytest.raises(ValueError, match="bits has lengths .*1 to 3 models"):
        bits_by_domain(bits, ["stories", "python"], "")


def test_what_all_tokens_alike_would_need_is_a_line_across_the_bars():
    figure = bits_by_domain({"a": [0.5, 2.0]}, ["stories", "python"], "stories are cheap", uniform=[3.0, 4.0])
    (axes,) = figure.axes
    assert axes.get_xlim()[1] >= 4, "the lines are inside"
    assert "all tokens equally likely" in [text.get_text() for text in axes.get_legend().get_texts()]
    with pytest.raises(ValueError, match="uniform has length 1"):
        bits_by_domain({"a": [0.5, 2.0]}, ["stories", "python"], "", uniform=[3.0])


def stored(setting: str, seed: int, held_out: float) -> dict:
    return {"setting": setting, "seed": seed, "steps": 40, "losses": [7.0, 5.0, 4.0, 3.5], "held_out": held_out}


RUNS = [
    stored("as it is", 0, 3.0),
    stored("as it is", 1, 3.5),
    stored("A", 0, 4.0),
    stored("A", 1, 5.5),
    stored("B", 1, 3),
]


def test_a_change_is_drawn_beside_the_unchanged_run_of_its_seed():
    view = AblationView(RUNS, telling=["A"])
    assert list(view.setting.options) == ["A", "B"] and view.state() == {"setting": "A", "seed": 0}
    (axes,) = view.figure.axes
    assert axes.get_title(loc="left").startswith("A, seed 0: +1.00 nats")
    assert [list(line.get_xdata()) for line in axes.lines] == [[4.5, 14.5, 24.5, 34.5]] * 2
    view.setting.value = "B"
    assert view.state() == {"setting": "B", "seed": 1}, "there is no other seed"
    assert view.figure.axes[0].get_title(loc="left").startswith("B, seed 1: −0.50 nats")
    assert "A, seed 0" in view.summary() and "4.00       3.00" in view.summary()


@pytest.mark.parametrize("telling", [[], ["C"], ["as it is"]])
def test_a_view_needs_changes_that_were_run(telling):
    with pytest.raises(ValueError, match="telling="):
        AblationView(RUNS, telling)
