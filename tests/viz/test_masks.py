"""Pictures of masks show what a loop over pairs says, and the widget tells why each cell is as it is."""

import base64
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mixtral_edu.viz import masks
from mixtral_edu.viz.masks import (
    COLOURS,
    FUTURE,
    PADDING,
    REASONS,
    SEEN,
    TOO_OLD,
    explained,
    left_padded,
    rules,
    why,
)
from mixtral_edu.viz.style import contrast_ratio, text_colour
from mixtral_edu.viz.widgets import MaskView

POSITIONS = torch.tensor([-1, -1, 0, 1, 2, 3, 4, 5])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def reason_of(i: int, j: int, window: int) -> int:
    if -1 in (i, j):
        return PADDING
    return FUTURE if j > i else TOO_OLD if i - j >= window else SEEN


def grid(axes) -> np.ndarray:
    return np.asarray(axes.collections[0].get_array())


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def assert_nothing_cut_off(figure: Figure) -> None:
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height, drawn


def test_each_rule_has_its_panel_and_the_last_is_their_and():
    figure = rules(POSITIONS, window=3)
    i, j = POSITIONS.numpy()[:, None], POSITIONS.numpy()
    causal, window, padding, all_three = (grid(axes) == 1 for axes in figure.axes)
    assert (causal == (j <= i)).all() and (window == (i - j < 3)).all() and (padding == (j != -1)).all()
    assert (all_three == (causal & window & padding)).all()
    assert words(figure) == ["Of 64 pairs of query and key, the three rules together allow 15"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["–", "–", *"012345"]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("positions", [POSITIONS, torch.tensor([0, 1, -1, 3]), torch.tensor([-1, -1])])
def test_reasons_are_those_of_a_loop_over_pairs(positions, window):
    wanted = [[reason_of(i, j, window) for j in positions.tolist()] for i in positions.tolist()]
    assert masks.reasons(positions, window).tolist() == wanted


def test_cells_show_their_distance_and_reason():
    figure = explained(POSITIONS, window=3)
    (axes,) = figure.axes
    assert (grid(axes) == masks.reasons(POSITIONS, 3).numpy()).all()
    assert axes.collections[0].cmap.colors == COLOURS
    cells = {text.get_position(): text.get_text() for text in figure.texts if text.get_transform() == axes.transData}
    assert len(cells) == 64
    assert cells[(2, 7)] == "5" and cells[(7, 2)] == "−5" and cells[(0, 7)] == "·"  # column, row
    legend = [f"{reason}: {count}" for reason, count in zip(REASONS, (15, 6, 15, 28), strict=True)]
    assert [word for word in words(figure) if word in legend] == legend
    assert "W = 3: a query sees 3 keys at most; 15 of 64 pairs are left" in words(figure)
    assert_nothing_cut_off(figure)


def test_the_chosen_cell_is_framed_and_spoken_of():
    figure = explained(POSITIONS, window=3, chosen=(7, 3))
    (frame,) = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    assert (frame.get_x(), frame.get_y()) == (2.5, 6.5)
    spoken = next(word for word in words(figure) if word.startswith("framed cell")).replace("\n", " ")
    assert spoken == "framed cell: Query 5, key 1: distance 5 − 1 = 4 is not below W = 3, too old."


@pytest.mark.parametrize(
    ("pair", "words"),
    [((7, 5), "2 is below W = 3, seen"), ((7, 4), "too old"), ((4, 7), "3 later, in the future"),
     ((-1, 3), "the query is padding"), ((3, -1), "the key is padding")],
)  # fmt: skip
def test_why_gives_the_reason_of_a_pair(pair, words):
    assert words in why(*pair, window=3)


def test_text_on_each_reason_is_readable():
    assert contrast_ratio(text_colour(COLOURS[SEEN]), COLOURS[SEEN]) >= 4.5
    assert min(contrast_ratio(masks.INK, COLOURS[TOO_OLD]), contrast_ratio(masks.MUTED, COLOURS[FUTURE])) >= 4.5


@pytest.mark.parametrize("draw", [rules, explained])
@pytest.mark.parametrize(
    ("positions", "window", "message"),
    [(POSITIONS, 0, "window=0"), (POSITIONS[None], 3, r"\(1, 8\)"), (POSITIONS[:0], 3, r"\(0,\)")],
)
def test_what_makes_no_mask_is_refused(draw, positions, window, message):
    with pytest.raises(ValueError, match=message):
        draw(positions, window)


@pytest.mark.parametrize("chosen", [(8, 0), (0, -1)])
def test_a_chosen_cell_has_to_lie_in_the_grid(chosen):
    with pytest.raises(ValueError, match=r"chosen=.*0 to 7"):
        explained(POSITIONS, 3, chosen)


def test_pads_stand_on_the_left_and_may_fill_the_row():
    assert [left_padded(4, pads).tolist() for pads in (0, 3, 4)] == [[0, 1, 2, 3], [-1, -1, -1, 0], [-1] * 4]


def test_the_view_redraws_for_each_control_and_comes_back():
    view = MaskView()
    view.length.value = 4
    seen = [view.picture.value]
    changes = ((view.window, 2), (view.pads, 1), (view.row, 2), (view.column, 1), (view.length, 5))
    for control, value in changes:
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    view.length.value = 4
    assert view.picture.value == seen[-2]


def test_the_view_keeps_pads_and_cell_inside_a_short_text():
    view = MaskView(longest=12)
    view.pads.value, view.row.value, view.column.value = 12, 11, 11
    view.length.value = 3
    assert view.state() == {"length": 3, "window": 4, "pads": 3, "chosen": (2, 2)}


@pytest.mark.parametrize("pads", [0, 5, 16])
def test_the_largest_picture_fits(pads):
    explained(left_padded(16, pads), 16, (15, 0), figure=(figure := plt.figure()))
    assert_nothing_cut_off(figure)


def test_the_view_has_a_static_face_with_its_numbers():
    view = MaskView()
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.size == (frame.width, 2 * frame.height)
    header, *lines = bundle["text/plain"].splitlines()
    assert header.split() == ["T", "W", "pads", "seen", "too", "old", "in", "the", "future", "padding"]
    numbers = [list(map(int, line.split())) for line in lines[::2]]
    assert numbers == [[10, 10, 0, 55, 0, 45, 0], [10, 4, 3, 22, 6, 21, 51]]
    assert [line.split()[-1] for line in lines[1::2]] == ["seen.", "old."]


def test_a_reason_has_a_colour_of_its_own():
    assert len({to_rgb(colour) for colour in COLOURS}) == len(REASONS)
