"""What the slots of the rolling KV cache hold: over time, with their tokens, and in a padded batch."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.masks import NO_POSITION
from mixtral_edu.text.tokenizer import Piece
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MONO, MUTED, PAPER, new_figure, printable, text_colour, use_style

_AGES = LinearSegmentedColormap.from_list("ages", [ACCENT, "#DCE9F5"])  # newest to oldest


def positions_held(tokens: int, window: int) -> list[int]:
    """Return the position in each of W slots after `tokens` tokens, -1 for an empty slot.

    >>> positions_held(6, window=4), positions_held(2, window=4)
    ([4, 5, 2, 3], [0, 1, -1, -1])
    """
    newest = tokens - 1
    return [max(NO_POSITION, newest - (newest - slot) % window) for slot in range(window)]


def slots_over_time(positions: ArrayLike, title: str | None = None, figure: Figure | None = None) -> Figure:
    """Draw a table with one row per moment and one column per slot; each cell shows the position stored there.

    Darker cells hold newer tokens; a frame marks what was written since the row above. The text on the right says what
    the newest token's query may see: the positions in the slots, in time order.

    Args:
        positions: (moments, slots), -1 for an empty slot, as `RollingKVCache.view` returns them for one row.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `positions` is not two-dimensional, or one of its rows holds only empty slots.
    """
    positions = np.asarray(positions)
    if positions.ndim != 2 or positions.size == 0 or (positions.max(axis=1) < 0).any():
        raise ValueError(f"positions has shape {positions.shape}; it must be (moments, slots) with a token in each row")
    moments, slots = positions.shape
    if title is None:
        title = f"{positions.max() + 1} tokens pass through {slots} slots: position p lies in slot p mod {slots}"
    before = np.vstack((np.full((1, slots), NO_POSITION), positions[:-1]))
    with use_style():
        figure, axes = canvas(max(8.5, 4.1 + 0.62 * slots), 1.15 + 0.4 * moments, figure, title)
        for slot in range(slots):
            write(axes, 150 + 44.6 * slot, 46, f"slot {slot}", 10, MUTED)
        for row in range(moments):
            top = 58 + 28.8 * row
            newest = int(positions[row].max())
            write(axes, 112, top + 13, f"after token {newest}", 10, ha="right")
            oldest = int(positions[row][positions[row] >= 0].min())
            keys = f"keys {oldest} to {newest}" if oldest < newest else f"key {newest} alone"
            write(axes, 144 + 44.6 * slots, top + 13, f"query {newest} sees {keys}", 10, ha="left")
            for slot, position in enumerate(positions[row].tolist()):
                box = (128 + 44.6 * slot, top, 43, 26)
                _cell(axes, box, position, newest, slots, framed=position != before[row, slot])
    return figure


def slots_with_tokens(
    positions: ArrayLike, pieces: Sequence[str | Piece], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw one row's slots in memory order, 16 per line, each with its token and its position.

    Args:
        positions: (slots,), -1 for an empty slot.
        pieces: the text's tokens, by position.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `positions` is not (slots,), holds no token, or reaches beyond the pieces.
    """
    positions = np.asarray(positions)
    newest = int(positions.max(initial=NO_POSITION))
    if positions.ndim != 1 or not 0 <= newest < len(pieces):
        raise ValueError(f"positions has shape {positions.shape} and largest entry {newest}; it must be (slots,) "
                         f"with its largest entry in 0..{len(pieces) - 1}")  # fmt: skip
    slots, held = len(positions), int((positions >= 0).sum())
    if title is None:
        oldest = int(positions[positions >= 0].min())
        title = f"After token {newest}: {slots} slots hold the {held} tokens at positions {oldest} to {newest}"
    with use_style():
        figure, axes = canvas(11.5, 0.75 + 0.42 * -(-slots // 16), figure, title)
        for slot, position in enumerate(positions.tolist()):
            line, column = divmod(slot, 16)
            left, top = 60 + 47.5 * column, 40 + 30.2 * line
            if column == 0:
                write(axes, 54, top + 14, f"slot {slot}", 9, MUTED, ha="right")
            colour = age_colour(position, newest, slots)
            axes.add_patch(Rectangle((left, top), 46, 28.5, facecolor=colour, edgecolor=INK if position == newest else
                                     "white", linewidth=2 if position == newest else 0.5))  # fmt: skip
            if position < 0:
                continue
            text = printable(getattr(pieces[position], "piece", pieces[position])).replace("<0x0A>", "↵")
            size = min(8.5, 44 / (0.61 * len(text)))
            write(axes, left + 23, top + 9.5, text, size, text_colour(colour), family=MONO)
            write(axes, left + 23, top + 21.5, str(position), 7.5, text_colour(colour))
    return figure


def weights_by_slot(
    weights: ArrayLike, positions: ArrayLike, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw one query's attention weights twice: in memory order, and sorted by position.

    Args:
        weights: (slots,), the weight on each slot's key.
        positions: (slots,), the position in each slot.
        title: replaces the computed title, which compares the two sums.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the shapes are not both (slots,).
    """
    weights, positions = np.asarray(weights, dtype=float), np.asarray(positions)
    if weights.ndim != 1 or weights.shape != positions.shape:
        raise ValueError(f"weights has shape {weights.shape} and positions {positions.shape}; both must be (slots,)")
    order = positions.argsort(kind="stable")
    if title is None:
        title = f"The same {len(weights)} weights in another order: their sum is {weights.sum():.2f} in both"
    with use_style():
        figure = new_figure(10, 4.6, figure)
        figure.text(0.075, 0.945, title, size=13, weight="bold")
        newest = int(positions.max())
        rows = ((np.arange(len(order)), "slot (order in memory)"), (order, "key position j (order in time)"))
        for row, (places, label) in enumerate(rows):
            axes = figure.add_axes((0.075, 0.59 - 0.46 * row, 0.905, 0.31))
            colours = [age_colour(position, newest, len(weights)) for position in positions[places].tolist()]
            axes.bar(range(len(places)), weights[places], color=colours, edgecolor=MUTED, linewidth=0.4, width=1)
            ticks = np.arange(0, len(places), max(1, len(places) // 8))
            axes.set_xticks(ticks, [str(value) for value in (positions[places] if row else places)[ticks]])
            axes.set(xlim=(-0.7, len(places) - 0.3), xlabel=label, ylabel="weight")
    return figure


def padded_rows(
    columns: ArrayLike, slots: ArrayLike, write_slot: ArrayLike, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw a padded batch: each row's columns and positions on the left, its slots in the ring on the right.

    Args:
        columns: (B, T), the position of each column, -1 for padding.
        slots: (B, W), the position in each slot, -1 for an empty one.
        write_slot: (B,), the slot of each row's next token, marked by a triangle.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the shapes do not match.
    """
    columns, slots, write_slot = np.asarray(columns), np.asarray(slots), np.asarray(write_slot)
    if columns.ndim != 2 or slots.ndim != 2 or not len(columns) == len(slots) == len(write_slot):
        raise ValueError(f"columns has shape {columns.shape}, slots {slots.shape} and write_slot {write_slot.shape}; "
                         "they must be (B, T), (B, W) and (B,)")  # fmt: skip
    (B, T), W = columns.shape, slots.shape[1]
    if title is None:
        title = f"Rows count their own positions, so the next token of {B} rows goes to slots {_listed(write_slot)}"
    right = 110 + 38 * T
    with use_style():
        figure, axes = canvas(max(8.5, (right + 40 * W + 20) / 72), 1.0 + 0.6 * B, figure, title)
        write(axes, 62, 46, "columns of the batch", 10, MUTED, ha="left")
        for slot in range(W):
            write(axes, right + 19 + 40 * slot, 46, f"slot {slot}", 10, MUTED)
        for row in range(B):
            top, newest = 58 + 43 * row, int(columns[row].max())
            write(axes, 52, top + 13, f"row {row}", 10, ha="right")
            for column, position in enumerate(columns[row].tolist()):
                _cell(axes, (62 + 38 * column, top, 36, 26), position, newest, W, empty="pad")
            for slot, position in enumerate(slots[row].tolist()):
                _cell(axes, (right + 40 * slot, top, 38, 26), position, newest, W)
            axes.plot(right + 19 + 40 * write_slot[row], top + 33, marker="^", color=INK, markersize=6)
    return figure


def canvas(width: float, height: float, figure: Figure | None, title: str) -> tuple[Figure, Axes]:
    """Return a figure of `width` x `height` inches, with a title and empty axes in points; y runs downwards."""
    figure = new_figure(width, height, figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 72 * width), ylim=(72 * height, 0))
    axes.set_axis_off()
    axes.text(12, 18, title, size=13, weight="bold", va="center")
    return figure, axes


def age_colour(position: int, newest: int, window: int) -> str:
    """Return a slot's colour: dark for the newest token, light for one about to leave the window, grey if empty."""
    return PAPER if position < 0 else to_hex(_AGES((newest - position) / max(1, window - 1)))


def write(axes: Axes, x: float, y: float, text: str, size: float, colour: str = INK, **options) -> None:
    """Write text centred at a point of the axes from `canvas`."""
    options = {"ha": "center", "va": "center_baseline"} | options
    axes.text(x, y, text, size=size, color=colour, **options)


def _cell(axes: Axes, box: tuple, position: int, newest: int, window: int, framed=False, empty: str = "") -> None:
    left, top, width, height = box
    colour = age_colour(position, newest, window)
    hatch = {"hatch": "////"} if position < 0 and empty else {}
    axes.add_patch(Rectangle((left, top), width, height, facecolor=colour, zorder=3 if framed else 2, **hatch,
                             edgecolor=INK if framed else FAINT, linewidth=2 if framed else 1))  # fmt: skip
    text, ink = (str(position), text_colour(colour)) if position >= 0 else (empty, MUTED)
    plain = {"facecolor": PAPER, "edgecolor": "none", "pad": 1} if hatch else None  # keeps hatching off the word
    write(axes, left + width / 2, top + height / 2, text, 10.5 if position >= 0 else 9, ink, zorder=4, bbox=plain)


def _listed(values: np.ndarray) -> str:
    *others, last = [str(value) for value in values.tolist()]
    return f"{', '.join(others)} and {last}" if others else last
