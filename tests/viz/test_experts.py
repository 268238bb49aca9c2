"""Figures of many tokens and their experts: dispatch, load, load over time, experts touched by a batch."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu import MixtralConfig
from mixtral_edu.viz.experts import (
    dispatch_order,
    dispatch_strip,
    errors_of_layers,
    expected_touched,
    experts_touched,
    load_over_steps,
    load_table,
)
from mixtral_edu.viz.style import expert_colour

BIG = MixtralConfig.mixtral_8x7b()


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_dispatch_draws_each_choice_twice_and_groups_them_by_expert():
    figure = dispatch_order([[3, 0], [2, 1], [0, 3], [3, 1]], num_experts=5)
    (axes,) = figure.axes
    by_left = sorted(axes.patches, key=lambda box: (-box.get_y(), box.get_x()))
    colours = [to_hex(box.get_facecolor()).upper() for box in by_left]
    assert colours[:8] == [expert_colour(e) for e in (3, 0, 2, 1, 0, 3, 3, 1)]
    assert colours[8:] == [expert_colour(e) for e in (0, 0, 1, 1, 2, 3, 3, 3)]
    tokens = sorted((-text.get_position()[1], *text.get_position()[:1], text.get_text()) for text in axes.texts)
    assert [text for *_, text in tokens if text.isdigit()] == list("00112233" + "02131023")
    assert [text for *_, text in tokens[-4:]] == ["expert 0", "expert 1", "expert 2", "expert 3"]
    assert axes.get_title(loc="left") == "Sorted by expert, 8 choices are 4 calls of an expert, not 8"


def test_dispatch_of_as_many_choices_as_fit_stays_readable():
    experts = np.stack([np.arange(24) % 8, (np.arange(24) + 1) % 8], axis=1)
    figure = dispatch_order(experts)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(
    ("experts", "message"),
    [([0, 1], r"\(N, K\)"), (np.zeros((25, 2), int), "1 to 48"), ([[0, 8]], r"0\.\.7"), (np.zeros((0, 2)), "1 to 48")],
)
def test_dispatch_refuses_what_does_not_fit(experts, message):
    with pytest.raises(ValueError, match=message):
        dispatch_order(experts)


def test_a_load_table_shows_each_load_and_names_the_largest():
    loads = [[0.25, 0.5, 0.15, 0.1], [0.3, 0.2, 0.0, 0.5], [0.99, 0.0, 0.01, 0.0]]
    figure = load_table(loads, ["layer 0", "layer 1", "Spanish"], even=0.25)
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["25%", "50%", "15%", "10%", "30%", "20%", "0%", "50%", "99%", "0%", "1%", "0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0", "layer 1", "Spanish"]
    assert figure.texts[0].get_text() == "Spanish: expert 0 sees 99% of the tokens (even: 25%)"
    brightness = np.array([np.mean(box.get_facecolor()[:3]) for box in axes.patches])
    by_load = np.argsort([int(text.rstrip("%")) for text in shown], kind="stable")
    assert (np.diff(brightness[by_load]) <= 0).all()  # the larger, the darker
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_an_empty_name_leaves_a_gap_in_a_load_table():
    figure = load_table([[0.5, 0.5], [9.0, 9.0], [0.4, 0.6]], ["a", "", "b"], even=0.5)
    assert len(figure.axes[0].texts) == 4
    assert figure.texts[0].get_text() == "b: expert 1 sees 60% of the tokens (even: 50%)"


def test_a_load_table_needs_a_name_for_each_row():
    with pytest.raises(ValueError, match="1 row names"):
        load_table([[0.5, 0.5], [0.4, 0.6]], ["a"], even=0.5)


def test_load_over_steps_draws_a_line_for_each_expert_of_each_run():
    runs = {"without": np.arange(30).reshape(10, 3) / 30, "with": np.full((10, 3), 1 / 3)}
    figure = load_over_steps(runs, even=1 / 3, title="Balance helps")
    for axes, (name, values) in zip(figure.axes, runs.items(), strict=True):
        assert axes.get_title(loc="left") == name
        *lines, even = axes.lines
        assert np.array([line.get_ydata() for line in lines]).T == pytest.approx(values)
        assert [line.get_color() for line in lines] == [expert_colour(e) for e in range(3)]
        assert set(even.get_ydata()) == {1 / 3}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "expert 0",
        "expert 1",
        "expert 2",
        "even load",
    ]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_load_over_steps_can_number_the_ends_of_its_lines():
    values = np.zeros((58, 8))
    values[:, 3], values[:, 6] = 0.97, 0.4
    figure = load_over_steps({"one": values}, even=0.25, title="Two take over", numbers=True)
    (axes,) = figure.axes
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["3"] == 0.97 and heights["6"] == pytest.approx(0.4, abs=0.1) and len(heights) == 8
    gaps = np.diff(sorted(heights.values()))
    assert (gaps > 0.05).all(), "no number hides another"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("runs", [{}, {"a": np.zeros((5, 3)), "b": np.zeros((5, 4))}])
def test_load_over_steps_needs_runs_with_the_same_experts(runs):
    with pytest.raises(ValueError, match="loads has shapes"):
        load_over_steps(runs, even=0.25, title="")


@pytest.mark.parametrize(("E", "K"), [(8, 2), (5, 1), (4, 4)])
def test_expected_touched_is_what_random_choices_touch(E, K):
    random = np.random.default_rng(0)
    for B in (1, 3, 9):
        draws = [{e for _ in range(B) for e in random.permutation(E)[:K]} for _ in range(1000)]
        assert expected_touched(B, E, K) == pytest.approx(np.mean([len(draw) for draw in draws]), abs=0.15)


def test_experts_touched_draws_formula_and_marks_and_says_what_8x7b_reads():
    figure = experts_touched([1, 4, 16], {"measured": [2.0, 5.0, 7.5]}, BIG)
    (axes,) = figure.axes
    curve, marks = axes.lines
    assert (curve.get_ydata()[0], curve.get_ydata()[-1]) == pytest.approx((2, 8 * (1 - 0.75**16)))
    assert marks.get_xydata().tolist() == [[1, 2], [4, 5], [16, 7.5]]
    (right,) = axes.child_axes
    to_billions = right._functions[0]
    counts = BIG.parameter_counts()
    assert [to_billions(2), to_billions(8)] == pytest.approx([counts.active / 1e9, counts.total / 1e9])
    assert axes.get_title(loc="left") == "With even loads, 9 tokens a step touch nine tenths of the experts"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize("measured", [{"a": [1.0, 2.0]}, {str(i): [1.0, 2.0, 3.0] for i in range(5)}])
def test_experts_touched_needs_a_number_for_each_batch_size(measured):
    with pytest.raises(ValueError, match="measured has lengths .*at most 4"):
        experts_touched([1, 2, 4], measured, BIG)


def test_a_strip_fills_the_sums_expert_by_expert():
    figure = dispatch_strip([[3, 0], [2, 1], [0, 3], [3, 1]], num_experts=5)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["call 1", "call 2", "call 3", "call 4", "no call"]
    for expert, axes in enumerate(figure.axes):
        given = [
            int(text.get_text())
            for text, box in zip((t for t in axes.texts if t.get_position()[1] == 3.3), boxes_at(axes, 3), strict=False)
            if to_hex(box.get_facecolor()).upper() == expert_colour(expert)
        ]
        assert given == [[0, 2], [1, 3], [1], [0, 2, 3], []][expert]
        slots = [to_hex(box.get_facecolor()).upper() for box in boxes_at(axes, 0)]
        owners = [0, 3, 1, 2, 0, 3, 1, 3]
        assert slots == [expert_colour(owner) if owner <= expert else "#FFFFFF" for owner in owners]
    assert figure.texts[0].get_text() == "4 calls fill the 8 slots of 4 tokens"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def boxes_at(axes, y):
    return [box for box in axes.patches if hasattr(box, "get_y") and box.get_y() == y]


@pytest.mark.parametrize(
    ("experts", "num_experts", "message"),
    [([0, 1], 4, r"\(N, K\)"), (np.zeros((9, 2), int), 4, "1 to 8"), ([[0, 4]], 4, r"0\.\.3"), ([[0]], 9, "8 experts")],
)
def test_a_strip_refuses_what_does_not_fit(experts, num_experts, message):
    with pytest.raises(ValueError, match=message):
        dispatch_strip(experts, num_experts)


def test_errors_of_layers_are_bars_with_a_mark_for_each_seed():
    groups = {"many": {"dense": [0.4, 0.5], "mixture": [0.2, 0.1]}, "one": {"mixture": [0.3, 0.3]}}
    figure = errors_of_layers(groups, title="A mixture wins")
    many, one = figure.axes
    assert [bar.get_width() for bar in many.patches] == pytest.approx([0.45, 0.15])
    assert [line.get_xdata().tolist() for line in many.lines] == [[0.4, 0.5], [0.2, 0.1]]
    assert [bar.get_y() + bar.get_height() / 2 for bar in one.patches] == pytest.approx([1])
    assert many.get_xlim() == one.get_xlim()
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize("groups", [{}, {"a": {}}, {"a": {"x": [1]}, "b": {"y": [1]}}])
def test_errors_of_layers_need_a_first_group_with_all(groups):
    with pytest.raises(ValueError, match="groups has the layers"):
        errors_of_layers(groups, title="")


def test_load_over_steps_can_show_every_so_many_steps():
    (axes,) = load_over_steps({"one": np.full((5, 3), 1 / 3)}, even=1 / 3, title="Even", every=50).axes
    assert axes.lines[0].get_xdata().tolist() == [0, 50, 100, 150, 200] and axes.get_xlim() == (0, 200)
