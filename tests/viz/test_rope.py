"""Figures of rotary embedding hold the data they are given, and the widget's score follows the distance alone."""

import base64
import math
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.rope import apply_rotary, rotary_tables
from mixtral_edu.viz import rope, rope_mistakes
from mixtral_edu.viz.widgets.rope import RopeView, pair_scores


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def tips(figure: Figure) -> list:
    """Where the arrows of the first axes end."""
    return [text.xy for text in figure.axes[0].texts if isinstance(text, Annotation)]


def test_a_turned_pair_points_where_the_packages_rotation_puts_it():
    figure = rope.turned_pair((1, 2), frequency=1.0, positions=[0, 1, 4])
    cos, sin = rotary_tables(torch.tensor([[0, 1, 4]]), 2, 1e4, torch.float32)  # the one pair of Dh = 2 turns by 1 rad
    rotated = apply_rotary(torch.tensor([1.0, 2.0]).expand(1, 1, 3, 2), cos, sin)[0, 0]
    assert np.allclose(tips(figure), rotated, atol=1e-6)
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == ["0", "1", "4"]
    assert "stays 2.24" in figure.texts[0].get_text()
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize(("pair", "positions"), [((1, 2, 3), [0]), ((1, 2), [])])
def test_a_turned_pair_has_two_numbers_and_a_position(pair, positions):
    with pytest.raises(ValueError, match="pair=.*two numbers"):
        rope.turned_pair(pair, 1.0, positions)


def test_score_maps_show_the_scores_in_one_scale_around_zero():
    small, large = np.eye(3), -5 * np.ones((3, 3))
    figure = rope.score_maps({"small": small, "large": large}, "A finding")
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert np.array_equal(images[0].get_array(), small) and np.array_equal(images[1].get_array(), large)
    assert [image.get_clim() for image in images] == [(-5, 5), (-5, 5)]
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["small", "large"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("key position j", "query position i")
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("maps", [{}, {"a": [1, 2]}, {"a": np.eye(2), "b": np.eye(3)}])
def test_score_maps_have_one_shape(maps):
    with pytest.raises(ValueError, match=r"one shape \(T, T\)"):
        rope.score_maps(maps, "A finding")


def test_wavelengths_are_two_pi_theta_to_the_share_of_the_pair():
    figure = rope.wavelengths(128, (1e4, 1e6), {"a window": 4096})
    curves = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == 64]
    for curve, theta in zip(curves, (1e4, 1e6), strict=True):
        assert curve == pytest.approx([2 * math.pi * theta ** (i / 64) for i in range(64)], rel=1e-5)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines][2] == [4096, 4096]
    assert figure.axes[0].get_title(loc="left") == "The slowest of 64 pairs comes round in 54.4 k and 5.1 M positions"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("thetas", [(), (1, 2, 3, 4, 5)])
def test_wavelengths_have_one_to_four_thetas(thetas):
    with pytest.raises(ValueError, match="thetas=.*1 to 4"):
        rope.wavelengths(128, thetas, {})


@pytest.mark.parametrize("log", [False, True])
def test_scores_by_distance_are_the_curves(log):
    figure = rope.scores_by_distance([1, 2, 4], {"a": [3, 2, 1], "b": [0, 0, 1]}, "A finding", log=log)
    _, a, b = figure.axes[0].lines  # the first is the zero line
    assert [a.get_ydata().tolist(), b.get_ydata().tolist()] == [[3, 2, 1], [0, 0, 1]]
    assert a.get_xdata().tolist() == [1, 2, 4]
    assert figure.axes[0].get_xscale() == ("log" if log else "linear")
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("curves", [{}, {"a": [1, 2]}])
def test_scores_by_distance_need_a_score_for_each_distance(curves):
    with pytest.raises(ValueError, match="curves has lengths .*length 3"):
        rope.scores_by_distance([1, 2, 4], curves, "A finding")


def numbers_in_rows(figure: Figure) -> tuple[list[int], list[int]]:
    """The row numbers in the upper and in the lower strip of boxes."""
    texts = [text for text in figure.axes[0].texts if text.get_text().isdigit()]
    heights = sorted({text.get_position()[1] for text in texts})
    above, below = ([int(t.get_text()) for t in texts if t.get_position()[1] == height] for height in heights)
    return above, below


def test_row_order_puts_partners_half_a_head_apart_and_joins_equal_rows():
    figure = rope_mistakes.row_order(num_heads=2, head_dim=6)
    above, below = numbers_in_rows(figure)
    assert above == list(range(12))
    assert below == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    joins = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_zorder() == 0]
    assert joins == [[row + 0.5, place + 0.5] for place, row in enumerate(below)]
    fills = [to_rgb(box.get_facecolor()) for box in figure.axes[0].patches]
    assert all(fills[12 + place] == fills[row] for place, row in enumerate(below))
    assert fills[0] == fills[1] != fills[2]  # rows 0 and 1 are partners
    assert figure.texts[0].get_text() == "After reordering, 6 of 6 pairs lie Dh/2 = 3 rows apart in their head"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_row_order_with_a_wrong_number_of_heads_says_that_no_pair_is_in_place():
    figure = rope_mistakes.row_order(num_heads=2, head_dim=8, heads_used=4)
    assert numbers_in_rows(figure)[1][:8] == [0, 2, 1, 3, 4, 6, 5, 7]
    assert "0 of 8 pairs" in figure.texts[0].get_text()
    assert any("4 heads" in text.get_text() for text in figure.axes[0].texts)
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("sizes", [(2, 32), (2, 3), (2, 6, 4)])
def test_row_order_refuses_what_has_no_pairs_or_no_room(sizes):
    with pytest.raises(ValueError, match="at most 32 rows"):
        rope_mistakes.row_order(*sizes)


def test_loss_by_start_draws_each_loss_over_its_start():
    figure = rope_mistakes.loss_by_start([0, 4096], {"exact": [3, 3], "rounded": [3, 4]}, 5, "A finding")
    exact, rounded, no_order = figure.axes[0].lines
    assert [list(line.get_ydata()) for line in (exact, rounded, no_order)] == [[3, 3], [3, 4], [5, 5]]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "4,096"]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("losses", [{}, {"a": [1]}, {"a": [1, 2], "b": [1, 2], "c": [1, 2]}])
def test_loss_by_start_takes_one_or_two_curves(losses):
    with pytest.raises(ValueError, match="losses has lengths .*length 2"):
        rope_mistakes.loss_by_start([0, 1], losses, 5, "A finding")



@pytest.fixture
def view():
    return RopeView(head_dim=32, theta=1e4)


@pytest.mark.parametrize(("control", "value"), [("pair", 5), ("key", 9), ("distance", 31)])
def test_the_widget_redraws_when_a_control_changes_and_remembers(view, control, value):
    before, slider = view.picture.value, getattr(view, control)
    first, slider.value = slider.value, value
    assert view.picture.value != before
    slider.value = first
    assert view.picture.value == before


def test_the_widgets_score_is_that_of_the_packages_rotation_wherever_the_key_is():
    for pair, distance in ((0, 2), (4, 37)):
        x = torch.zeros(32).double()
        x[pair] = 1.0
        for key in (0, 50):
            cos, sin = rotary_tables(torch.tensor([[key, key + distance]]), 32, 1e4, torch.float64)
            k, q = apply_rotary(x.expand(1, 1, 2, 32), cos, sin)[0, 0]
            figure = pair_scores(32, 1e4, pair, key, distance, longest=127)
            dot = figure.axes[1].lines[-1]
            assert dot.get_xdata() == [distance]
            assert dot.get_ydata()[0] == pytest.approx((q @ k).item(), abs=1e-4)
            assert np.allclose(tips(figure), [[k[pair], k[pair + 16]], [q[pair], q[pair + 16]]], atol=1e-4)
            assert_nothing_cut_off(figure)
            assert_no_texts_overlap(figure)


@pytest.mark.parametrize("wrong", [{"pair": 16}, {"key": -1}, {"distance": 128}])
def test_pair_scores_refuse_a_place_that_is_not_there(wrong):
    with pytest.raises(ValueError, match="pair must be from 0 to 15"):
        pair_scores(**{"head_dim": 32, "theta": 1e4, "pair": 0, "key": 0, "distance": 0, "longest": 127, **wrong})


def test_the_widgets_static_face_shows_equal_scores_at_equal_distance(view):
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.size == (frame.width, 4 * frame.height)
    rows = [line.split() for line in bundle["text/plain"].splitlines()[1:]]
    assert [row[:3] for row in rows] == [["0", "0", "2"], ["0", "20", "22"], ["4", "20", "22"], ["15", "20", "120"]]
    assert [float(row[-1]) for row in rows] == pytest.approx([math.cos(2), math.cos(2), math.cos(0.2), 1], abs=1e-3)
