"""Figures of a training: the learning rate, the loss over the steps, bits per byte of each domain."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.viz.training import bits_by_domain, learning_curves, learning_rates, trailing_mean


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


def test_a_trailing_mean_looks_back_only():
    values = np.random.default_rng(0).random(20)
    means = trailing_mean(values, span=4)
    assert means[0] == values[0] and means[1] == pytest.approx(values[:2].mean())
    assert means[3:] == pytest.approx(np.convolve(values, np.ones(4) / 4, mode="valid"))


def test_learning_curves_show_each_value_its_mean_and_what_happened():
    curves = {"one": ([0, 20, 40], [8.0, 4.0, 2.0]), "two": ([0, 20], [6.0, 2.0])}
    figure = learning_curves(curves, "both fall", uniform=7.0, marks={20: "new data"}, span=2)
    (axes,) = figure.axes
    drawn = [line.get_ydata() for line in axes.lines]
    assert [list(values) for values in drawn[:4]] == [[8, 4, 2], [8, 6, 3], [6, 2], [6, 4]]
    assert list(drawn[4]) == [7, 7] and list(axes.lines[5].get_xdata()) == [20, 20]
    assert [text.get_text() for text in axes.texts] == ["new data"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two", "ln V = 7.00"]
    assert axes.get_legend().get_title().get_text() == "thin: single steps, thick: mean of 2"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


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
