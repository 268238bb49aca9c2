"""Figures of what happens during generation: they show the numbers they are given, and loops where there are some."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figure_checks import assert_no_texts_overlap
from mixtral_edu.viz.generation import (
    by_number_of_beams,
    distance_by_pads,
    experts_read,
    padding_sides,
    repeated_runs,
    repeats,
    surprise_along_text,
    tree_of_two_steps,
)

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


TREE = {
    "of": (0.5, {"France": 0.4, "Spain": 0.6}),
    "slept": (0.4, {"▁well": 0.9, "$late": 0.1}),
    "🐅": (0.1, {"his": 1}),
}


def test_a_tree_compares_what_greedy_takes_with_the_likeliest():
    figure = tree_of_two_steps("The king", TREE)
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert words[0] == "The king" and {"of", "Spain", "▁well", "$late", "U+1F405"} <= {*words}
    products = ["0.5 × 0.4 = 0.20", "0.5 × 0.6 = 0.30", "0.4 × 0.9 = 0.36", "0.4 × 0.1 = 0.04", "0.1 × 1 = 0.10"]
    assert [word for word in words if "=" in word] == products
    bold = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    assert bold == ["0.5 × 0.6 = 0.30", "0.4 × 0.9 = 0.36"]
    assert figure.texts[0].get_text() == "Greedy takes 'of Spain' (0.30); 'slept ▁well' (0.36) is likeliest"
    greedy, likeliest = axes.lines[:2]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert greedy.get_xydata().tolist() == [[*places[word]] for word in ("The king", "of", "Spain")]
    assert likeliest.get_xydata().tolist() == [[*places[word]] for word in ("The king", "slept", "▁well")]
    assert len(axes.lines) == 2 + 3 + 5
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_a_tree_where_greedy_finds_the_likeliest_text_has_one_path():
    figure = tree_of_two_steps("a", {"b": (1.0, {"c": 0.7, "d": 0.3})})
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["greedy, and the likeliest text"]
    assert figure.texts[0].get_text() == "Greedy takes 'b c' (0.70), the likeliest text"


@pytest.mark.parametrize("tree", [{}, {"a": (0.5, {"b": 1}), "c": (0.5, {})}])
def test_a_tree_without_a_leaf_is_refused(tree):
    with pytest.raises(ValueError, match="tree is empty or has an empty branch"):
        tree_of_two_steps("a", tree)


def test_measures_are_drawn_by_number_of_beams():
    likely, shares = [[-2, -1], [-1, -0.5]], [[0, 1], [0.5, 0.5]]
    figure = by_number_of_beams([1, 4], {"log p": (likely, {"unseen": -4}), "repeats": (shares, {"unseen": 0.01})})
    left, right = figure.axes
    for axes, values, level in ((left, likely, -4), (right, shares, 0.01)):
        drawn = [line.get_ydata() for line in axes.lines]
        assert [curve.tolist() for curve in drawn[:2]] == np.transpose(values).tolist()  # one per prompt
        assert any(np.array_equal(curve, np.mean(values, 1)) for curve in drawn)
        assert any(np.array_equal(curve, [level, level]) for curve in drawn)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4"]
    assert left.get_ylim()[0] < -4 and right.get_ylim() == (-0.03, 1.03)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["each prompt", "unseen"]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize("panels", [{}, {"a": ([[1, 2]], {})}, {"a": ([1, 2], {})}])
def test_each_number_of_beams_needs_its_values(panels):
    with pytest.raises(ValueError, match=r"panels has values of shapes .*\(2, P\)"):
        by_number_of_beams([1, 2], panels)


def test_experts_are_drawn_by_pass_and_by_new_token():
    curves = {"measured": [2, 3.1, 3.9], "alone": [2, 3.5, 4.6]}
    texts = {"loops": {"Spanish": (2.8, 1.1), "verse": (1.6, 2)}, "others": {"story": (1.03, 2.6)}}
    figure = experts_read(curves, texts, title="Experts")
    left, right = figure.axes
    assert [line.get_xydata().tolist() for line in left.lines] == [
        [[m + 1, y] for m, y in enumerate(curve)] for curve in curves.values()
    ]
    assert [points.get_offsets().tolist() for points in right.collections] == [[[2.8, 1.1], [1.6, 2]], [[1.03, 2.6]]]
    assert [text.get_text() for text in right.texts] == ["Spanish", "verse"]
    level, dense = right.lines
    assert {*level.get_ydata()} == {2} and np.allclose(dense.get_ydata() * dense.get_xdata(), 2)
    assert figure.texts[0].get_text() == "Experts"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(
    ("curves", "texts"), [({}, {"a": {"b": (1, 2)}}), ({"a": [2]}, {}), ({"a": [2], "b": [2, 3]}, {"a": {"b": (1, 2)}})]
)
def test_experts_need_curves_of_one_length_and_texts(curves, texts):
    with pytest.raises(ValueError, match="by_tokens has curves of lengths"):
        experts_read(curves, texts)


def test_figures_are_drawn_again_in_place():
    figure = Figure()
    padding_sides([["a"], ["b", "c"]], figure=figure)
    repeats({"x": [1, 2, 3, 4]}, figure=figure)
    assert distance_by_pads([0, 1], {"a": [0, 1]}, figure=figure) is figure
    assert len(figure.axes) == 1 and plt.get_fignums() == []
