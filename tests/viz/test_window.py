"""What a window saves and how far layers reach, drawn from the numbers given."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mixtral_edu.viz.style import ACCENT
from mixtral_edu.viz.window import (
    accuracy_by_position,
    cost_by_window,
    disagreement,
    influence_by_distance,
    pair_counts,
    receptive_field,
)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def title_of(figure: Figure) -> str:
    return figure.axes[0].get_title(loc="left")


def assert_nothing_cut_off(figure: Figure) -> None:
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height, drawn


def test_pair_counts_are_those_of_a_sum():
    figure = pair_counts(window=64, longest=256)  # 257 points: one for each length
    dense, windowed = (1e6 * line.get_ydata() for line in figure.axes[0].lines[:2])
    for T in (0, 1, 63, 64, 65, 256):
        assert dense[T] == pytest.approx(sum(range(1, T + 1)))
        assert windowed[T] == pytest.approx(sum(min(i + 1, 64) for i in range(T)))
    assert title_of(figure) == "At T = 256 a window of 64 leaves 44% of the pairs"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("window", [0, 256, 300])
def test_a_window_that_saves_nothing_is_not_drawn(window):
    with pytest.raises(ValueError, match=f"window={window}"):
        pair_counts(window, longest=256)


def reached_by_spreading(window: int, num_layers: int, num_tokens: int) -> set[tuple[int, int]]:
    """(position, layer) of all that the last token depends on, found by following each link down."""
    found, front = set(), {num_tokens - 1}
    for layer in range(num_layers, -1, -1):
        found |= {(position, layer) for position in front}
        front = {key for position in front for key in range(max(0, position - window + 1), position + 1)}
    return found


@pytest.mark.parametrize(("window", "num_layers", "num_tokens"), [(4, 3, 14), (3, 2, 4), (1, 3, 5), (2, 1, 1)])
def test_the_receptive_field_is_all_that_links_lead_to(window, num_layers, num_tokens):
    figure = receptive_field(window, num_layers, num_tokens)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    place = {(int(line.get_xdata()[0]), int(line.get_ydata()[0])): line.get_markerfacecolor() for line in dots}
    assert len(place) == num_tokens * (num_layers + 1)
    filled = {spot for spot, colour in place.items() if to_hex(colour) == ACCENT.lower()}
    reached = reached_by_spreading(window, num_layers, num_tokens)
    assert filled == reached
    links = [line for line in figure.axes[0].lines if line.get_marker() != "o"]
    ends = {tuple(zip(map(int, line.get_xdata()), map(int, line.get_ydata()), strict=True)) for line in links}
    assert {spot for link in ends for spot in link} <= reached
    assert len(ends) == sum(min(window, position + 1) for position, layer in reached if layer)
    assert_nothing_cut_off(figure)


def test_the_receptive_field_says_how_far_it_reaches():
    figure = receptive_field(window=4, num_layers=3, num_tokens=14)
    notes = [text.get_text() for text in figure.axes[0].texts]
    assert notes == ["9 back: 10 tokens", "6 back: 7 tokens", "3 back: 4 tokens", "the query itself"]
    assert title_of(figure) == "Each layer reaches 3 further back: 3 layers reach 9 tokens back"


@pytest.mark.parametrize("sizes", [{"window": 0}, {"num_layers": 0}, {"num_tokens": 0}])
def test_sizes_below_one_are_refused(sizes):
    ((name, size),) = sizes.items()
    with pytest.raises(ValueError, match=f"{name}={size}"):
        receptive_field(**{"window": 4, "num_layers": 3, "num_tokens": 14} | sizes)


def test_accuracies_are_drawn_and_their_cliffs_named():
    accuracies = {1: [1, 1, 0.9, 0.1, 0.2], 2: [1, 1, 1, 1, 0.7], 3: [0.1] * 5}
    figure = accuracy_by_position(accuracies, window=3, chance=0.125)
    axes = figure.axes[0]
    curves = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 5]
    assert np.array_equal(curves, list(accuracies.values()))
    dotted = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted == [2, 4, 6]  # L · (W − 1), whatever the curves do
    assert title_of(figure) == "The first symbol is known up to position 2, 4, nowhere, and not one further"


def test_influence_ends_where_it_is_zero():
    influences = {1: [1, 0.1, 0, 0, 0, 0], 2: [1, 0.1, 1e-3, 0, 0, 0]}
    figure = influence_by_distance(influences, window=2)
    panels = figure.axes
    curves = [line.get_ydata() for axes in panels for line in axes.lines if len(line.get_xdata()) == 6]
    assert np.array_equal(np.nan_to_num(curves), list(influences.values()))
    assert {axes.get_yscale() for axes in panels} == {"log"}
    assert len({axes.get_ylim() for axes in panels}) == 1, "one scale for panels that are compared"
    notes = [text.get_text() for axes in panels for text in axes.texts]
    assert notes == ["after 1 layer: ends 1 back", "after 2 layers: ends 2 back"]
    assert title_of(figure) == "2 tokens back influence ends, and is small long before"
    assert_nothing_cut_off(figure)


def test_costs_are_drawn_with_their_mean_and_spread():
    figure = cost_by_window({4: [0.1, 0.3], 8: [-0.1, 0.1], 16: [0.0, 0.0]}, trained=16, title="Small windows cost")
    axes = figure.axes[0]
    dots = {tuple(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"}
    assert {(0.1, 0.3), (-0.1, 0.1), (0.0, 0.0)} <= dots
    line, _, (bars,) = axes.containers[0]
    assert np.allclose(line.get_xydata(), [[4, 0.2], [8, 0], [16, 0]])
    assert np.allclose([np.ptp(bar[:, 1]) / 2 for bar in bars.get_segments()], [0.1, 0.1, 0])
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["each text", "mean and standard error"]
    assert [text.get_text() for text in axes.texts] == ["trained with W = 16"]
    assert title_of(figure) == "Small windows cost"
    assert_nothing_cut_off(figure)


def test_differences_are_drawn_with_their_names():
    figure = disagreement(
        range(6, 9), {"W": [0, 1e-6, 1e-6], "W + 1": [1e-6, 0.1, 0.2]}, window=7, title="One too many"
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["W", "W + 1"]
    assert axes.lines[1].get_ydata().tolist() == [1e-6, 0.1, 0.2]
    assert axes.lines[0].get_ydata()[0] > 0  # a log scale has no zero
    inner, outer = axes.lines[:2]
    assert outer.get_fillstyle() == "none", "a dot inside a square can be seen"
    assert inner.get_markersize() < outer.get_markersize()
    assert [text.get_text().strip() for text in axes.texts] == ["W = 7"], "the dotted line has a name"
    assert title_of(figure) == "One too many"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("curves", [{}, {1: [1, 2], 2: [1, 2, 3]}])
def test_curves_have_to_be_there_and_of_one_length(curves):
    for draw in (
        lambda: accuracy_by_position(curves, window=2, chance=0.5),
        lambda: influence_by_distance(curves, window=2),
        lambda: cost_by_window(curves, trained=2, title=""),
        lambda: disagreement([1, 2], curves, window=2, title=""),
    ):
        with pytest.raises(ValueError, match="curves of lengths"):
            draw()
