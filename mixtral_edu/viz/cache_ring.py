"""The rolling KV cache drawn as a ring, step by step: what it holds, and which keys new queries find."""

from collections.abc import Sequence, Set

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, Wedge

from mixtral_edu.masks import attention_mask
from mixtral_edu.viz.cache import age_colour, canvas, positions_held, write
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, text_colour, use_style

LOST = "#B42318"  # a key that a query needs but no longer finds
MOST_SLOTS = 12  # the most slots whose numbers are legible in a ring
_RING = 222  # width of a frame with a ring, in points


def lost_keys(window: int, seen: int, new: int, write_first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return which keys the queries of `new` tokens need after `seen` older ones, and which are overwritten too early.

    Returns:
        Two boolean arrays (T, S). The keys run from position `max(0, seen - W + 1)` to the newest.
    """
    queries = torch.arange(seen, seen + new, device="cpu")
    keys = torch.arange(max(0, seen - window + 1), seen + new, device="cpu")
    needed = attention_mask(queries[None], keys[None], window)[0]
    gone = keys < seen + new - window if write_first else torch.zeros_like(keys, dtype=torch.bool)
    return needed.numpy(), (needed & gone).numpy()


def ring_step(
    window: int, seen: int, new: int, write_first: bool = False, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw one step of the ring as a strip of three frames: the slots before it, and the two things that are done.

    Done rightly, the new queries look at their keys, and then the new tokens are written; with `write_first` the other
    way round. In a ring, the number outside is the slot, and the number inside is the position that it holds. Hatched
    slots are about to be overwritten, and slots in a thick frame have just been written. In the frame "look", a filled
    cell is a key that the query sees. A red cross is a key of its window that has already been overwritten, and so is a
    red frame in the first ring.

    Args:
        window: W, at most 12.
        seen: number of tokens before this step.
        new: T, the number of tokens in this step.
        write_first: make the mistake of writing the new tokens into the ring before the queries read it.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `window` is not in 1..12, `seen` is negative, or `new` is below 1.
    """
    if not 1 <= window <= MOST_SLOTS:
        raise ValueError(f"window={window}; it must be from 1 to {MOST_SLOTS}")
    if seen < 0 or new < 1:
        raise ValueError(f"seen={seen}, new={new}; seen must be at least 0 and new at least 1")
    needed, lost = lost_keys(window, seen, new, write_first)
    before, after = (positions_held(tokens, window) for tokens in (seen, seen + new))
    newest = seen + new - 1
    missed = {seen + new - needed.shape[1] + int(column) for column in lost.any(axis=0).nonzero()[0]}
    if title is None:
        title = _step_title(seen, new, before, int(needed.sum()), int(lost.sum()))
    with use_style():
        size = _cell_size(window - 1 + new)  # as for a full ring, so that nothing jumps while it fills
        look = 70 + max(150, size[0] * (window - 1 + new))
        width = max(11.2 if write_first else 9.2, (2 * _RING + look) / 72)
        figure, axes = canvas(width, max(4.6, 2.25 + new * size[1] / 72), figure, title)
        at = {"before": 0, "write": 1, "look": 2} if write_first else {"before": 0, "look": 1, "write": 2}
        places = (0, _RING, _RING + (_RING if write_first else look))
        for name, place in at.items():
            number = f"{place}  " if place else ""
            what = {"before": "before", "write": f"write {named(seen, new)}", "look": "look"}[name]
            write(axes, places[place] + 16, 56, number + what, 11.5, ha="left", weight="bold")
        changed = [old != now for old, now in zip(before, after, strict=True)]
        _draw_ring(axes, places[at["before"]], before, newest, leaving=changed, missed=missed)
        _draw_ring(axes, places[at["write"]], after, newest, written=changed)
        _draw_keys(axes, places[at["look"]] + 58, size, needed, lost, seen)
        legend = ["hatched: about to be overwritten", "thick frame: just written", "blue: a key that the query sees"]
        legend += ["red: still needed, but overwritten before the look"] if lost.any() else []
        write(axes, 16, axes.get_ylim()[0] - 15, "   ·   ".join(legend), 10.5, MUTED, ha="left")
    return figure


def _step_title(seen: int, new: int, before: list[int], needed: int, lost: int) -> str:
    if new > 1:
        pairs = f"{needed} query-key pairs of their windows"
        verdict = f"written first, have lost {lost} of the" if lost else "find all"
        return f"{named(seen, new).capitalize()}{', ' if lost else ' '}{verdict} {pairs}"
    slot = seen % len(before)
    where = f"replaces token {before[slot]} in slot {slot}" if before[slot] >= 0 else f"goes to slot {slot}"
    return f"Token {seen} {where}, and its query sees {needed} {'key' if needed == 1 else 'keys'}"


def named(seen: int, new: int) -> str:
    """Return `token 4`, or `tokens 4 to 6`, for so many new tokens after those seen."""
    return f"token {seen}" if new == 1 else f"tokens {seen} to {seen + new - 1}"


def _draw_ring(
    axes: Axes,
    left: float,
    held: list[int],
    newest: int,
    leaving: Sequence[bool] = (),
    written: Sequence[bool] = (),
    missed: Set[int] = frozenset(),
) -> None:
    x0, y0, W = left + _RING / 2, 180, len(held)
    for slot, position in enumerate(held):
        start, stop = 90 - 360 * (slot + 1) / W, 90 - 360 * slot / W
        colour = age_colour(position, newest, W)
        new, lost, going = any(written[slot : slot + 1]), position in missed, any(leaving[slot : slot + 1])
        edge = LOST if lost else INK if new else "white"
        # y points down, so angles change sign: slot 0 starts at the top, and slots run clockwise.
        axes.add_patch(Wedge((x0, y0), 84, -stop, -start, width=40, facecolor=colour, zorder=3 if new or lost else 2,
                             edgecolor=edge, linewidth=2.5 if new or lost else 1))  # fmt: skip
        if going and position >= 0:
            axes.add_patch(Wedge((x0, y0), 84, -stop, -start, width=40, fill=False, hatch="////", linewidth=0, zorder=3,
                                 edgecolor=text_colour(colour), alpha=0.35))  # fmt: skip
        angle = np.deg2rad((start + stop) / 2)
        x, y = np.cos(angle), -np.sin(angle)
        write(axes, x0 + 97 * x, y0 + 97 * y, f"{slot}", 10.5, MUTED)
        if position >= 0:
            plain = {"facecolor": colour, "edgecolor": "none", "pad": 1} if going else None  # no hatching on digits
            write(axes, x0 + 64 * x, y0 + 64 * y, f"{position}", 11.5, text_colour(colour), zorder=4, bbox=plain)
    write(axes, x0, y0, "slots", 10.5, MUTED)


def _cell_size(columns: int) -> tuple[float, float]:
    width = min(34.0, 390 / columns)
    return width, min(width, 26)


def _draw_keys(
    axes: Axes, left: float, cell: tuple[float, float], needed: np.ndarray, lost: np.ndarray, seen: int
) -> None:
    queries, keys = (range(seen + len(needed) - count, seen + len(needed)) for count in needed.shape)
    (size, height), top = cell, 124
    labelled = 1 if size > 24 else 2  # numbers of three digits need more room
    for column, key in enumerate(keys):
        if column % labelled == 0:
            write(axes, left + (column + 0.5) * size, top - 10, str(key), 10.5)
    for row, query in enumerate(queries):
        write(axes, left - 8, top + (row + 0.5) * height, str(query), 10.5, ha="right")
        for column in range(len(keys)):
            is_lost = lost[row, column]
            face = "white" if is_lost else ACCENT if needed[row, column] else PAPER
            axes.add_patch(Rectangle((left + column * size, top + row * height), size - 2, height - 2, facecolor=face,
                                     edgecolor=LOST if is_lost else FAINT))  # fmt: skip
            if is_lost:
                write(axes, left + (column + 0.5) * size - 1, top + (row + 0.5) * height - 1, "×", 15, LOST)
    older = len(keys) - len(queries)
    write(axes, left, top - 46, "key position j", 10.5, ha="left")
    middle = top + max(50, len(queries) * height / 2)  # a single row is shorter than its label
    write(axes, left - 40, middle, "query position i", 10.5, rotation=90, va="center")
    for start, stop, label in ((0, older, "older"), (older, len(keys), "new")):
        if stop > start:
            axes.plot((left + start * size + 1, left + stop * size - 3), (top - 20, top - 20), color=MUTED, linewidth=2)
            write(axes, left + (start + stop) / 2 * size - 1, top - 28, label, 10, MUTED)
