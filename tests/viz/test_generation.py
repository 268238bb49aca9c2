"""Figures of what happens during generation: they show the numbers they are given, and loops where there are some."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mixtral_edu.viz.generation import distance_by_pads, padding_sides, repeated_runs, repeats, surprise_along_text

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def assert_nothing_cut_off(figure: Figure) -> None:
    figure.canvas.draw()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    for text in texts:
        box = text.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{text.get_text()!r} leaves the figure"


def test_bars_are_entropies_and_dots_are_surprises():
    figure = surprise_along_text(["▁a", "▁bear", "🐅"], [0.5, 4.0, 1.0], [0.25, 3.0, 9.5])
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [0.5, 4.0, 1.0]
    (dots,) = axes.lines
    assert dots.get_ydata().tolist() == [0.25, 3.0, 9.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["▁a", "▁bear", "U+1F405"]
    assert axes.get_title(loc="left") == "'U+1F405' is the greatest surprise, 9.5 bits"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("lengths", [(0, 0, 0), (2, 1, 2), (2, 2, 1)])
def test_each_piece_needs_its_entropy_and_its_surprise(lengths):
    pieces, entropies, surprises = ([1.0] * length for length in lengths)
    with pytest.raises(ValueError, match="pieces has length"):
        surprise_along_text(list(map(str, pieces)), entropies, surprises)


def runs_by_loops(ids: list[int], n: int) -> np.ndarray:
    runs = np.zeros((len(ids), len(ids)), dtype=bool)
    for i in range(len(ids) - n + 1):
        for j in range(len(ids) - n + 1):
            if ids[i : i + n] == ids[j : j + n]:
                for k in range(n):
                    runs[i + k, j + k] = True
    return runs


@pytest.mark.parametrize("n", [1, 2, 4, 30])
def test_runs_are_where_n_tokens_in_a_row_stood_before(n):
    ids = np.random.default_rng(0).integers(0, 3, 30).tolist()
    assert (repeated_runs(np.equal.outer(ids, ids), n) == runs_by_loops(ids, n)).all()


def test_a_loop_is_blue_a_lone_repeat_is_grey_and_the_upper_half_is_empty():
    figure = repeats({"loop": [5, 6, 7, 5, 6, 7, 5], "none": [1, 2, 3, 4, 5, 6, 1]}, n=3)
    loop, none = (axes.images[0].get_array() for axes in figure.axes)
    assert {(int(i), int(j)) for i, j in np.argwhere(loop == 2)} == {(3, 0), (4, 1), (5, 2), (6, 3)}
    assert {(int(i), int(j)) for i, j in np.argwhere(loop == 1)} == {(6, 0)}  # a 5 again, but no three tokens
    assert np.argwhere(none).tolist() == [[6, 0]] and none[6, 0] == 1
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loop", "none"]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("texts", [{}, {"short": [1, 2, 3]}])
def test_a_text_shorter_than_a_run_is_refused(texts):
    with pytest.raises(ValueError, match="n=4"):
        repeats(texts)


def test_padding_sides_show_tokens_pads_and_positions():
    figure = padding_sides([["<s>", "▁a", "▁b"], ["<s>"]])
    left, right = figure.axes
    pads, token = ["pad", "–"] * 2, ["<s>", "0"]
    for axes, second_row in ((left, pads + token), (right, token + pads)):
        words = [text.get_text() for text in axes.texts]
        assert words[2:10] == ["<s>", "0", "▁a", "1", "▁b", "2", "?", "3"]
        assert words[10:18] == [*second_row, "?", "1"]
        frames = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
        assert [frame.get_x() for frame in frames] == [2]  # around the last column
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("rows", [[], [["a"], []]])
def test_rows_without_tokens_are_refused(rows):
    with pytest.raises(ValueError, match="no empty one"):
        padding_sides(rows)


def test_distances_are_drawn_by_number_of_pads():
    figure = distance_by_pads([0, 1, 8], {"forgotten": [0, 0.2, 0.9], "given": [0, 0, 0]}, title="Pads")
    (axes,) = figure.axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0], [1, 0.2], [8, 0.9]],
        [[0, 0], [1, 0], [8, 0]],
    ]
    assert axes.get_title(loc="left") == "Pads"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("distances", [{}, {"a": [0.5]}, {"a": [0, 1], "b": [1]}])
def test_each_number_of_pads_needs_its_distance(distances):
    with pytest.raises(ValueError, match="distances has curves of lengths .*length 2"):
        distance_by_pads([0, 1], distances)


def test_figures_are_drawn_again_in_place():
    figure = Figure()
    padding_sides([["a"], ["b", "c"]], figure=figure)
    repeats({"x": [1, 2, 3, 4]}, figure=figure)
    assert distance_by_pads([0, 1], {"a": [0, 1]}, figure=figure) is figure
    assert len(figure.axes) == 1 and plt.get_fignums() == []
