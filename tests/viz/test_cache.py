"""Figures of the rolling cache draw what the cache holds, and the ring to play with follows its controls."""

import base64
from io import BytesIO

import matplotlib
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from mixtral_edu import MixtralConfig, RollingKVCache
from mixtral_edu.viz import cache, cache_costs
from mixtral_edu.viz.cache_ring import LOST, lost_keys, ring_step
from mixtral_edu.viz.style import ACCENT
from mixtral_edu.viz.widgets import RingView

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()]


def labels_beyond_the_axes(figure: Figure) -> set:
    """Labels of ticks that matplotlib makes and does not draw."""
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = axis.get_view_interval()
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return hidden


def assert_nothing_cut_off(figure: Figure) -> None:
    figure.canvas.draw()
    hidden = labels_beyond_the_axes(figure)
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip() and text not in hidden:
            box = text.get_window_extent()
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert inside, f"{text.get_text()!r} leaves the figure"


def filled(chunks: list[int], window: int) -> RollingKVCache:
    """A cache that took these chunks."""
    ring = RollingKVCache(MixtralConfig.tiny(sliding_window=window), batch_size=1)
    for tokens in chunks:
        ring.step(tokens).commit()
    return ring


@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("chunks", [[1], [2, 1], [3, 4, 1], [20], [1] * 9])
def test_positions_held_are_those_of_the_cache(chunks, window):
    assert cache.positions_held(sum(chunks), window) == filled(chunks, window).view().positions[0].tolist()


def test_slots_over_time_frames_what_was_written():
    figure = cache.slots_over_time([[0, -1, -1], [0, 1, -1], [3, 1, 2]])
    cells = figure.axes[0].patches
    assert [cell.get_linewidth() == 2 for cell in cells] == [True, False, False, False, True, False, True, False, True]
    words = texts_of(figure)
    assert words[0] == "4 tokens pass through 3 slots: position p lies in slot p mod 3"
    assert [word for word in words if word.startswith("query")] == [
        "query 0 sees key 0 alone", "query 1 sees keys 0 to 1", "query 3 sees keys 1 to 3"]  # fmt: skip
    assert [word for word in words if word.isdigit()] == ["0", "0", "1", "3", "1", "2"]
    assert_nothing_cut_off(figure)


def test_the_newest_token_is_the_darkest():
    colours = [cache.age_colour(position, 9, 8) for position in (9, 5, 2, -1)]
    assert colours[0] == to_hex(ACCENT)
    brightness = [sum(matplotlib.colors.to_rgb(colour)) for colour in colours]
    assert brightness == sorted(brightness)


def test_slots_with_tokens_shows_each_token_where_it_lies():
    pieces = ["<s>", "▁Once", "<0x0A>", "▁extraordinarily", "中"]
    figure = cache.slots_with_tokens([4, 1, 2, 3], pieces)
    words = texts_of(figure)
    assert words[0] == "After token 4: 4 slots hold the 4 tokens at positions 1 to 4"
    assert words[words.index("U+4E2D") :] == ["U+4E2D", "4", "▁Once", "1", "↵", "2", "▁extraordinarily", "3"]
    framed = [cell.get_linewidth() == 2 for cell in figure.axes[0].patches]
    assert framed == [True, False, False, False]
    assert_nothing_cut_off(figure)


def test_weights_by_slot_are_the_same_bars_in_two_orders():
    stored, sorted_by_time = cache.weights_by_slot([0.1, 0.2, 0.3, 0.4], [4, 5, 2, 3]).axes
    assert [bar.get_height() for bar in stored.patches] == [0.1, 0.2, 0.3, 0.4]
    assert [bar.get_height() for bar in sorted_by_time.patches] == [0.3, 0.4, 0.1, 0.2]
    assert [label.get_text() for label in sorted_by_time.get_xticklabels()] == ["2", "3", "4", "5"]
    assert_nothing_cut_off(stored.figure)


def test_padded_rows_mark_pads_and_the_next_slot():
    figure = cache.padded_rows([[0, 1, 2], [-1, -1, 0]], [[2, 1], [0, -1]], [1, 1])
    words = texts_of(figure)
    assert words.count("pad") == 2
    assert words[0] == "Rows count their own positions, so the next token of 2 rows goes to slots 1 and 1"
    marks = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert len(marks) == 2 and marks[0] == marks[1]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize(("window", "seen", "new"), [(4, 6, 3), (4, 6, 1), (5, 2, 2), (3, 9, 7), (8, 0, 10)])
def test_lost_keys_are_those_that_a_query_needs_and_the_ring_no_longer_holds(window, seen, new):
    needed, lost = lost_keys(window, seen, new, write_first=True)
    held = filled([seen, new] if seen else [new], window).view().positions[0].tolist()
    keys = range(seen + new - needed.shape[1], seen + new)
    for row, query in enumerate(range(seen, seen + new)):
        wanted = [key for key in keys if key <= query and key > query - window]
        assert [key for key, flag in zip(keys, needed[row], strict=True) if flag] == wanted
        missing = [key for key, flag in zip(keys, lost[row], strict=True) if flag]
        assert missing == [key for key in wanted if key not in held]
    assert not lost_keys(window, seen, new, write_first=False)[1].any()


def frames(figure: Figure) -> list[str]:
    """The headings of the frames, from left to right."""
    heads = [text for text in figure.axes[0].texts if text.get_weight() == "bold"][1:]
    return [text.get_text() for text in sorted(heads, key=lambda text: text.get_position()[0])]


def wedges(figure: Figure) -> tuple[list[Wedge], list[Wedge]]:
    """The slots of the ring before the step and of the one after it, by slot, without their hatching."""
    slots = [patch for patch in figure.axes[0].patches if isinstance(patch, Wedge) and patch.get_fill()]
    return slots[: len(slots) // 2], slots[len(slots) // 2 :]


def test_ring_step_is_a_strip_of_frames_in_the_order_of_what_is_done():
    figure = ring_step(4, 6, 3)
    words = texts_of(figure)
    assert words[0] == "Tokens 6 to 8 find all 12 query-key pairs of their windows"
    assert frames(figure) == ["before", "1  look", "2  write tokens 6 to 8"]
    slots = [index for index, word in enumerate(words) if word == "slots"]
    assert words[slots[0] - 8 : slots[0]] == ["0", "4", "1", "5", "2", "2", "3", "3"]
    assert words[slots[1] - 8 : slots[1]] == ["0", "8", "1", "5", "2", "6", "3", "7"]
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, matplotlib.patches.Rectangle)]
    blue = np.array([to_hex(cell.get_facecolor()) == to_hex(ACCENT) for cell in cells]).reshape(3, 6)
    assert blue.astype(int).tolist() == [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    hatched = [patch for patch in figure.axes[0].patches if isinstance(patch, Wedge) and patch.get_hatch()]
    assert len(hatched) == 3
    before, after = wedges(figure)
    assert [slot.get_linewidth() > 2 for slot in before] == [False] * 4
    assert [slot.get_linewidth() > 2 for slot in after] == [True, False, True, True]
    assert_nothing_cut_off(figure)


def test_ring_step_crosses_out_what_is_written_over_too_early():
    figure = ring_step(4, 6, 3, write_first=True)
    assert texts_of(figure)[0] == "Tokens 6 to 8, written first, have lost 3 of the 12 query-key pairs of their windows"
    assert frames(figure) == ["before", "1  write tokens 6 to 8", "2  look"]
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, matplotlib.patches.Rectangle)]
    assert [number for number, cell in enumerate(cells) if to_hex(cell.get_edgecolor()) == LOST.lower()] == [0, 1, 7]
    assert texts_of(figure).count("×") == 3
    before, _ = wedges(figure)
    red = [slot for slot, wedge in enumerate(before) if to_hex(wedge.get_edgecolor()) == LOST.lower()]
    assert red == [0, 3]  # positions 4 and 3


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ((4, 0, 1), "Token 0 goes to slot 0, and its query sees 1 key"),
        ((4, 6, 1), "Token 6 replaces token 2 in slot 2, and its query sees 4 keys"),
        ((12, 988, 14), "Tokens 988 to 1001 find all 168 query-key pairs of their windows"),
    ],
)
def test_ring_step_says_what_happens(arguments, title):
    figure = ring_step(*arguments)
    assert texts_of(figure)[0] == title
    assert_nothing_cut_off(figure)


def test_tokens_computed_sums_up():
    (axes,) = cache_costs.tokens_computed({"without a cache": [3, 4, 5], "with one": [3, 1, 1]}).axes
    assert axes.get_title(loc="left") == "Tokens computed: 12 without a cache, 5 with one"
    assert [line.get_ydata().tolist() for line in axes.lines] == [[3, 4, 5], [3, 1, 1]]
    assert_nothing_cut_off(axes.figure)


def test_seconds_so_far_start_with_the_first_token():
    (axes,) = cache_costs.seconds_so_far({"with": [0.5, 1.0], "without": [0.5, 2.5]}).axes
    assert axes.get_title(loc="left") == "2 new tokens take 2.5 times as long without as with"
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 0.5], [2, 1.0]], [[1, 0.5], [2, 2.5]]]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert_nothing_cut_off(axes.figure)


def test_loss_changes_have_a_mark_for_each_change_and_text():
    changes = {"far": {"a": (0.0, 0.1), "b": (0.5, 0.1)}, "near": {"a": (1.0, 0.2), "b": (0.75, 0.2)}}
    (axes,) = cache_costs.loss_changes(changes, "A finding").axes
    points = [container.lines[0] for container in axes.containers]
    assert [point.get_xdata().tolist() for point in points] == [[0.0, 0.5], [1.0, 0.75]]
    assert points[0].get_marker() != points[1].get_marker()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    ((first, _),) = [segment for segment in axes.containers[1].lines[2][0].get_segments()[:1]]
    assert first[0] == pytest.approx(0.6)  # two standard errors
    assert_nothing_cut_off(axes.figure)


def test_memory_draws_the_bytes_and_compares_them():
    sizes = {"without a window": [2**20, 2**32], "ring": [2**20, 2**29]}
    (axes,) = cache_costs.memory([512, 131_072], sizes).axes
    title = "At 131,072 tokens: without a window takes 8 times the memory of ring"
    assert axes.get_title(loc="left") == title
    assert [list(line.get_ydata()) for line in axes.lines] == list(sizes.values())
    assert [text.get_text() for text in axes.texts] == ["without a window: 4 GiB", "ring: 0.5 GiB"]
    assert_nothing_cut_off(axes.figure)


def test_differences_have_a_panel_for_each_size_of_chunk():
    values = {2: torch.tensor([0.0, 0.5, 1.5, 0.25]), 3: torch.tensor([0.0, 0.0, 0.0, 0.0])}
    figure = cache_costs.differences_by_position(values, window=2)
    assert [[bar.get_height() for bar in axes.patches] for axes in figure.axes] == [v.tolist() for v in values.values()]
    assert figure.texts[0].get_text() == "Largest error of a logit: 1.5 in chunks of 2, 0.0 in chunks of 3"
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert_nothing_cut_off(figure)
    usual = cache_costs.differences_by_position(values, window=2, usual=0.75)
    assert all(0.75 in line.get_ydata() for line in (axes.lines[-1] for axes in usual.axes))
    assert_nothing_cut_off(usual)


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (cache.slots_over_time, ([0, 1],), "moments, slots"),
        (cache.slots_over_time, ([[-1, -1]],), "a token in each row"),
        (cache.slots_with_tokens, ([0, 5], ["a", "b"]), r"largest entry 5; .*0\.\.1"),
        (cache.slots_with_tokens, ([-1, -1], ["a"]), "largest entry -1"),
        (cache.weights_by_slot, ([0.5, 0.5], [0]), r"weights has shape \(2,\)"),
        (cache.padded_rows, ([[0, 1]], [[0, 1], [0, 1]], [0]), r"slots \(2, 2\)"),
        (ring_step, (0, 1, 1), "window=0; .*1 to 12"),
        (ring_step, (13, 1, 1), "window=13; .*1 to 12"),
        (ring_step, (4, -1, 1), "seen=-1"),
        (ring_step, (4, 1, 0), "new=0"),
        (cache_costs.tokens_computed, ({},), "counts is empty"),
        (cache_costs.seconds_so_far, ({"a": []},), "seconds is empty or has an empty"),
        (cache_costs.loss_changes, ({"a": {"x": (0, 1)}, "b": {"y": (0, 1)}}, ""), r"\['x'\], \['y'\]"),
        (cache_costs.memory, ([1, 2], {"a": [1]}), "sizes has shapes"),
        (cache_costs.differences_by_position, ({}, 4), "differences is empty"),
        (RingView, (1,), "window=1; .*2 to 12"),
        (RingView, (4, 1), "num_steps=1"),
    ],
)
def test_what_does_not_fit_is_refused(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


def test_ring_view_redraws_when_a_control_changes():
    view = RingView(window=4)
    seen = [view.picture.value]
    for control, value in ((view.step, 3), (view.chunk, 3), (view.order, True)):
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    assert view.state() == {"seen": 9, "new": 3, "write_first": True}
    view.step.value, view.chunk.value, view.order.value = 0, 1, False
    assert view.picture.value == seen[0]


def test_ring_view_can_be_played():
    view = RingView(window=4, num_steps=7)
    assert (view.link.source, view.link.target) == ((view.play, "value"), (view.step, "value"))
    assert view.play.max == view.step.max == 6


def test_ring_view_has_a_static_face():
    view = RingView(window=8)
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.width >= frame.width and strip.height == 4 * frame.height
    assert bundle["text/plain"].splitlines() == [
        "W = 8; slots after the step, from slot 0 on; query-key pairs lost",
        "token 4, attend first:            0 1 2 3 4 - - -             0 of 5",
        "token 9, attend first:            8 9 2 3 4 5 6 7             0 of 8",
        "tokens 12 to 15, attend first:    8 9 10 11 12 13 14 15       0 of 32",
        "tokens 12 to 15, write first:     8 9 10 11 12 13 14 15       6 of 32",
    ]
