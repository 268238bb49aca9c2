"""The rolling KV cache drawn as a ring, step by step: what it holds, and which keys new queries find."""

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
    """Draw one step of the ring: its slots after the step on the left, the keys that its queries find on the right.

    In the ring, the outer number is the slot, the middle one the position stored there, and the inner one, struck
    through, the position that it replaced. On the right, a blue cell is a key that the query sees. A red cross is a key
    of its window that has already been overwritten, which happens only with `write_first`.

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
    if title is None:
        title = _step_title(seen, new, before, int(needed.sum()), int(lost.sum()))
    with use_style():
        figure, axes = canvas(11.5, max(4.0, 1.5 + new * _cell_size(needed)[1] / 72), figure, title)
        _draw_ring(axes, before, after, seen + new - 1)
        _draw_keys(axes, needed, lost, seen)
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


def _draw_ring(axes: Axes, before: list[int], after: list[int], newest: int) -> None:
    middle, W = (165, 165), len(after)
    for slot in range(W):
        start, stop = 90 - 360 * (slot + 1) / W, 90 - 360 * slot / W
        new, colour = after[slot] != before[slot], age_colour(after[slot], newest, W)
        # y points down, so angles change sign: slot 0 starts at the top, and slots run clockwise.
        axes.add_patch(Wedge(middle, 96, -stop, -start, width=38, facecolor=colour, zorder=3 if new else 2,
                             edgecolor=INK if new else "white", linewidth=2 if new else 1))  # fmt: skip
        angle = np.deg2rad((start + stop) / 2)
        x, y = np.cos(angle), -np.sin(angle)
        write(axes, middle[0] + 112 * x, middle[1] + 112 * y, f"{slot}", 9.5, MUTED)
        if after[slot] >= 0:
            write(axes, middle[0] + 77 * x, middle[1] + 77 * y, f"{after[slot]}", 11, text_colour(colour), zorder=4)
        if new and before[slot] >= 0:
            at = middle[0] + 45 * x, middle[1] + 45 * y
            write(axes, *at, f"{before[slot]}", 9, MUTED)
            axes.plot((at[0] - 8, at[0] + 8), (at[1], at[1]), color=MUTED, linewidth=1)
    write(axes, middle[0], middle[1], "slots", 9.5, MUTED)


def _cell_size(needed: np.ndarray) -> tuple[float, float]:
    width = min(30.0, 440 / needed.shape[1])
    return width, min(width, 26)


def _draw_keys(axes: Axes, needed: np.ndarray, lost: np.ndarray, seen: int) -> None:
    queries, keys = (range(seen + len(needed) - count, seen + len(needed)) for count in needed.shape)
    size, height = _cell_size(needed)
    left, top = 365, 92
    labelled = 1 if size > 20 else 2  # numbers of three digits need more room
    for column, key in enumerate(keys):
        if column % labelled == 0:
            write(axes, left + (column + 0.5) * size, top - 10, str(key), 9.5)
    for row, query in enumerate(queries):
        write(axes, left - 8, top + (row + 0.5) * height, str(query), 9.5, ha="right")
        for column in range(len(keys)):
            is_lost = lost[row, column]
            face = "white" if is_lost else ACCENT if needed[row, column] else PAPER
            axes.add_patch(Rectangle((left + column * size, top + row * height), size - 2, height - 2, facecolor=face,
                                     edgecolor=LOST if is_lost else FAINT))  # fmt: skip
            if is_lost:
                write(axes, left + (column + 0.5) * size - 1, top + (row + 0.5) * height - 1, "×", 15, LOST)
    older = len(keys) - len(queries)
    write(axes, left, top - 40, "key position j", 10.5, ha="left")
    middle = top + max(45, len(queries) * height / 2)  # a single row is shorter than its label
    write(axes, left - 42, middle, "query position i", 10.5, rotation=90, va="center")
    for start, stop, label in ((0, older, "older"), (older, len(keys), "new")):
        if stop > start:
            axes.plot((left + start * size + 1, left + stop * size - 3), (top - 20, top - 20), color=MUTED, linewidth=2)
            write(axes, left + (start + stop) / 2 * size - 1, top - 27, label, 9.5, MUTED)
