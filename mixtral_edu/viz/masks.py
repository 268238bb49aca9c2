"""Attention masks: each rule by itself, and a grid whose cells say why a query sees a key or not."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mixtral_edu.masks import NO_POSITION, attention_mask, causal_mask, padding_mask, window_mask
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, new_figure, text_colour, use_style

# Why a query sees a key or not. If several reasons hold, the last of them in this list wins.
SEEN, TOO_OLD, FUTURE, PADDING = range(4)
REASONS = ("seen", "too old", "in the future", "padding")
COLOURS = (ACCENT, "#9FB3C8", PAPER, "#E8DACC")


def rules(positions: Tensor, window: int, title: str | None = None, figure: Figure | None = None) -> Figure:
    """Draw three rules side by side, and the pairs that all of them allow: dark where the query may attend to the key.

    Args:
        positions: (T,), the position of each column of one row; `NO_POSITION` for padding.
        window: W.
        title: replaces the computed title, which counts pairs.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `positions` is not (T,), or `window` is below 1.
    """
    _check(positions, window)
    T = len(positions)
    panels = {
        "causal: j ≤ i": causal_mask(positions, positions),
        f"window: i − j < {window}": window_mask(positions, positions, window),
        "padding: j is a token": padding_mask(positions).expand(T, T),
        "all three": attention_mask(positions, positions, window),
    }
    allowed = int(panels["all three"].sum())
    with use_style():
        figure = new_figure(11, 3.7, figure)
        _headline(figure, title or f"Of {T * T} pairs of query and key, the three rules together allow {allowed}")
        for number, (name, mask) in enumerate(panels.items()):
            axes = figure.add_axes((0.06 + 0.24 * number, 0.15, 0.205, 0.62))
            _grid(axes, positions, mask.int().numpy(), colours=(PAPER, ACCENT))
            axes.set_title(name, size=11.5)
            if number:
                axes.set_ylabel("")
    return figure


def reasons(positions: Tensor, window: int) -> Tensor:
    """Return why each query sees each key or not: (T,) positions give (T, T) indices into `REASONS`.

    >>> reasons(torch.tensor([-1, 0, 1, 2]), window=2).tolist()
    [[3, 3, 3, 3], [3, 0, 2, 2], [3, 0, 0, 2], [3, 1, 0, 0]]
    """
    is_padding = positions == NO_POSITION
    reason = torch.where(window_mask(positions, positions, window), SEEN, TOO_OLD)
    reason = reason.masked_fill(~causal_mask(positions, positions), FUTURE)
    return reason.masked_fill(is_padding[:, None] | is_padding, PADDING)


def why(query_position: int, key_position: int, window: int) -> str:
    """Explain one pair in one sentence.

    >>> why(7, 3, window=4)
    'Query 7, key 3: distance 7 − 3 = 4 is not below W = 4, too old.'
    """
    i, j = query_position, key_position
    if NO_POSITION in (i, j):
        who = "the query" if i == NO_POSITION else "the key"
        return f"Here {who} is padding: it has no position, and the pair does not count."
    if j > i:
        return f"Query {i}, key {j}: the key comes {j - i} later, in the future."
    verdict = f"is below W = {window}, seen" if i - j < window else f"is not below W = {window}, too old"
    return f"Query {i}, key {j}: distance {i} − {j} = {i - j} {verdict}."


def explained(
    positions: Tensor,
    window: int,
    chosen: tuple[int, int] | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw a mask whose cells explain themselves: each shows the distance i − j, in the colour of its reason.

    Args:
        positions: (T,), the position of each column of one row; `NO_POSITION` for padding.
        window: W.
        chosen: row and column of a cell to frame and to explain in a sentence.
        title: replaces the computed title, which counts pairs.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `positions` is not (T,), `window` is below 1, or `chosen` is outside the grid.
    """
    _check(positions, window)
    T = len(positions)
    if chosen is not None and not all(0 <= index < T for index in chosen):
        raise ValueError(f"chosen={chosen}; row and column must be from 0 to {T - 1}")
    reason = reasons(positions, window).numpy()
    counts = np.bincount(reason.ravel(), minlength=len(REASONS))
    most = int((reason == SEEN).sum(axis=1).max())
    with use_style():
        figure = new_figure(9, 5.6, figure)
        axes = figure.add_axes((0.075, 0.115, 0.485, 0.485 * 9 / 5.6))
        _grid(axes, positions, reason, COLOURS)
        size = min(11, 125 / T)
        for (row, column), why_so in np.ndenumerate(reason):
            text = "·" if why_so == PADDING else f"{positions[row] - positions[column]}".replace("-", "−")
            ink = text_colour(ACCENT) if why_so == SEEN else INK if why_so == TOO_OLD else MUTED
            look = {"size": size, "color": ink, "ha": "center", "va": "center", "transform": axes.transData}
            figure.text(column, row, text, **look)  # axes.text would prepare clipping for each
        _headline(
            figure, title or f"W = {window}: a query sees {most} keys at most; {counts[SEEN]} of {T * T} pairs are left"
        )
        _legend(axes, counts, window)
        if chosen is not None:
            row, column = chosen
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=2.5))
            sentence = why(int(positions[row]), int(positions[column]), window)
            axes.text(
                1.06, 0.2, "\n".join(["framed cell:", *wrap(sentence, 34)]), transform=axes.transAxes, va="center"
            )
    return figure


def left_padded(length: int, pads: int) -> Tensor:
    """Return the positions of a row with padding on the left.

    >>> left_padded(5, pads=2)
    tensor([-1, -1,  0,  1,  2])
    """
    return (torch.arange(length, device="cpu") - pads).clamp(min=NO_POSITION)


def _check(positions: Tensor, window: int) -> None:
    if positions.ndim != 1 or len(positions) == 0:
        raise ValueError(f"positions has shape {tuple(positions.shape)}; it must be (T,), one row with T at least 1")
    if window < 1:
        raise ValueError(f"window={window}; it must be at least 1, because a query sees its own position")


def _headline(figure: Figure, title: str) -> None:
    figure.text(0.012, 0.94, title, size=13, weight="bold", va="center")


def _grid(axes: Axes, positions: Tensor, values: np.ndarray, colours: Sequence[str]) -> None:
    """Draw squares coloured by `values` (T, T); rows are queries, columns are keys, both labelled by position."""
    edges = np.arange(len(values) + 1) - 0.5
    look = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(colours) - 0.5}
    axes.pcolormesh(edges, edges, values, edgecolors="white" if len(colours) == 2 else FAINT, linewidth=1, **look)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    names = ["–" if position == NO_POSITION else str(position) for position in positions.tolist()]
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    axes.set(xlabel="key position j", ylabel="query position i", aspect="equal")
    axes.spines[:].set_visible(False)


def _legend(axes: Axes, counts: np.ndarray, window: int) -> None:
    """List each reason's colour, name, number of cells and rule to the right of the grid."""
    axes.text(1.06, 0.97, "A cell's number is i − j.", transform=axes.transAxes, va="center")
    meanings = (f"0 ≤ i − j < {window}", f"i − j ≥ {window}", "i − j < 0", "no position: axis –, cell ·")
    for row, (reason, colour, count, meaning) in enumerate(zip(REASONS, COLOURS, counts, meanings, strict=True)):
        y = 0.87 - 0.115 * row
        square = Rectangle((1.06, y - 0.035), 0.07, 0.07, facecolor=colour, edgecolor=MUTED, transform=axes.transAxes)
        axes.add_patch(square).set_clip_on(False)
        axes.text(1.16, y + 0.022, f"{reason}: {count}", weight="bold", transform=axes.transAxes, va="center")
        axes.text(1.16, y - 0.026, meaning, size=10, color=MUTED, transform=axes.transAxes, va="center")
