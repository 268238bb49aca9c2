"""The two storage layouts of rotary pairs, and what a model loses when positions or pairs are wrong."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.checkpoints.layouts import to_half_split
from mixtral_edu.viz.style import ACCENT, INK, MUTED, new_figure, text_colour, use_style

PAIR_FILLS = (ACCENT, "#CFE0F2", INK, "#9FB3C8")  # neighbours differ in lightness


def row_order(
    num_heads: int,
    head_dim: int,
    heads_used: int | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw the rows of a q or k matrix before and after `to_half_split`, joined by lines; pairs share a fill.

    Args:
        num_heads: number of heads in the matrix.
        head_dim: Dh.
        heads_used: number of heads passed to the reordering, to show what a wrong one does.
        title: replaces the computed title, which counts the pairs that end up Dh/2 apart.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are more than 32 rows, too many to draw, or the heads do not divide them into pairs.
    """
    rows, heads_used = num_heads * head_dim, num_heads if heads_used is None else heads_used
    if rows > 32 or head_dim % 2 or rows % (2 * heads_used):
        raise ValueError(
            f"num_heads={num_heads}, head_dim={head_dim}, heads_used={heads_used}; there must be at most 32 rows, "
            "and an even number of them per head"
        )
    order = to_half_split(torch.arange(rows, device="cpu")[:, None], heads_used).flatten().tolist()
    together = pairs_in_place(order, head_dim)
    if title is None:
        title = f"After reordering, {together} of {rows // 2} pairs lie Dh/2 = {head_dim // 2} rows apart in their head"
    with use_style():
        figure = new_figure(10.5, 3.3, figure)
        axes = figure.add_axes((0.01, 0.02, 0.98, 0.82))
        axes.set(xlim=(-0.16 * rows, rows + 0.3), ylim=(3.45, -0.7))
        axes.set_axis_off()
        _rows(axes, 0, "interleaved\n(raw Mistral)", range(rows), head_dim)
        name = "half-split\n(Hugging Face)" if heads_used == num_heads else f"reordered as\n{heads_used} heads"
        _rows(axes, 2, name, order, head_dim)
        for head in range(num_heads):
            ends = (head * head_dim + 0.06, (head + 1) * head_dim - 0.06)
            for line, name_at in ((-0.15, -0.45), (2.95, 3.25)):
                axes.plot(ends, (line, line), color=MUTED, linewidth=1.2)
                axes.text(sum(ends) / 2, name_at, f"head {head}", ha="center", va="center", size=10.5, color=MUTED)
        for place, row in enumerate(order):
            axes.plot((row + 0.5, place + 0.5), (0.83, 1.97), color=MUTED, linewidth=0.9, zorder=0)
        figure.text(0.012, 0.93, title, size=13, weight="bold", va="center")
    return figure


def _rows(axes: Axes, top: float, name: str, order: Sequence[int], head_dim: int) -> None:
    axes.text(-0.15 * len(order), top + 0.4, name, va="center", size=10.5)
    for place, row in enumerate(order):
        fill = PAIR_FILLS[row % head_dim // 2 % len(PAIR_FILLS)]
        axes.add_patch(Rectangle((place + 0.04, top), 0.92, 0.8, facecolor=fill, edgecolor="white"))
        axes.text(place + 0.5, top + 0.4, f"{row}", color=text_colour(fill), ha="center", va="center")


def pairs_in_place(order: Sequence[int], head_dim: int) -> int:
    """Count the interleaved pairs (2i, 2i + 1) that a new order of rows puts at i and i + Dh/2 of one head.

    >>> pairs_in_place([0, 2, 1, 3], head_dim=4), pairs_in_place([0, 1, 2, 3], head_dim=4)
    (2, 0)
    """
    half = head_dim // 2
    firsts = [place for place in range(len(order)) if place % head_dim < half]
    return sum(order[p] % 2 == 0 and order[p + half] == order[p] + 1 for p in firsts)


def loss_by_start(
    starts: Sequence[int], losses: Mapping[str, ArrayLike], no_order: float, title: str, figure: Figure | None = None
) -> Figure:
    """Plot what a text's loss gains, against the position given to its first token.

    Args:
        starts: (n,) positions of the first token.
        losses: for each of one or two names, (n,) losses beyond the usual one, in nats per token.
        no_order: the same with all tokens at one position, drawn as a reference line.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are not one or two curves, or one does not have one loss per start.
    """
    if not 1 <= len(losses) <= 2 or any(len(values) != len(starts) for values in losses.values()):
        sizes = {name: len(values) for name, values in losses.items()}
        raise ValueError(f"losses has lengths {sizes}; it must hold one or two curves of length {len(starts)}")
    with use_style():
        figure = new_figure(9.5, 3.7, figure)
        axes = figure.add_axes((0.09, 0.17, 0.66, 0.67))
        last = len(starts) - 1
        for (name, values), (colour, marker) in zip(losses.items(), ((INK, "s"), (ACCENT, "o")), strict=False):
            axes.plot(range(len(starts)), values, color=colour, marker=marker)
            axes.annotate(name, (last, values[-1]), (10, 0), textcoords="offset points", color=colour, va="center")
        axes.axhline(no_order, color=MUTED, linestyle=":")
        axes.annotate("all at position 0", (last, no_order), (10, 5), textcoords="offset points", color=MUTED)
        axes.set(xlabel="position of the first token", ylabel="extra loss, nats per token")
        axes.set_xticks(range(len(starts)), [f"{start:,}" for start in starts])
        axes.set_title(title)
    return figure
