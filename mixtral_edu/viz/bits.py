"""What a text costs a model in bits: token by token, and as read after each layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.lens import depth_names
from mixtral_edu.viz.style import ACCENT, INK, MONO, MUTED, new_figure, printable, quoted, use_style

MARKERS = "osD^vP*X"  # one per text: the lines differ in subject, not in rank


def bits_by_depth(
    bits: Mapping[str, ArrayLike], title: str, highlight: str | None = None, figure: Figure | None = None
) -> Figure:
    """Plot the bits per byte of each text, as read after each part of the stack.

    Args:
        bits: L + 1 numbers for each named text, the embedding first.
        title: states what the lines show.
        highlight: the name of the text that the title is about.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `bits` is empty, its lines differ in length, or `highlight` is not one of its names.
    """
    lengths = {len(values) for values in bits.values()}
    if len(lengths) != 1:
        raise ValueError(
            f"bits has lengths {sorted(lengths)}; it must hold at least one text, and as many numbers for each"
        )
    if highlight not in (None, *bits):
        raise ValueError(f"highlight={highlight!r}; it must be None or one of {list(bits)}")
    (depths,) = lengths
    with use_style():
        figure = new_figure(9.5, 4.2, figure)
        axes = figure.add_axes((0.075, 0.1, 0.755, 0.775))
        ends = _spread([float(values[-1]) for values in bits.values()], gap=0.055 * max(map(max, bits.values())))
        for number, ((name, values), end) in enumerate(zip(bits.items(), ends, strict=True)):
            look = {"color": MUTED, "linewidth": 1.2} if name != highlight else {"color": ACCENT, "linewidth": 2.4}
            values, marker = [float(value) for value in values], MARKERS[number % len(MARKERS)]
            axes.plot(range(depths), values, marker=marker, markersize=6, zorder=2 + (name == highlight), **look)
            axes.plot(depths - 0.9, end, marker=marker, markersize=6, color=look["color"], clip_on=False)
            axes.text(depths - 0.83, end, f"{name}, {values[-1]:.2f}", va="center", color=look["color"], size=10.5)
        axes.set(xlim=(-0.15, depths - 0.95), ylim=(0, None), xticks=range(depths), xticklabels=depth_names(depths))
        axes.set_ylabel("bits per byte")
        axes.yaxis.grid(True)
        axes.set_title(title)
    return figure


def token_costs(
    pieces: Sequence[str], bits: ArrayLike, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the cost of each token of a text as a bar, in bits, with the text below.

    Args:
        pieces: the predicted tokens, that is all tokens of the text except the first.
        bits: one number per piece, -log2 of its probability.
        title: replaces the computed title, which names the most expensive token.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pieces` is empty, or the lengths differ.
    """
    values = [float(value) for value in bits]
    if not values or len(values) != len(pieces):
        raise ValueError(
            f"pieces has length {len(pieces)} and bits {len(values)}; the lengths must be equal and at least 1"
        )
    mean = sum(values) / len(values)
    if title is None:
        dearest = quoted(pieces[values.index(max(values))])
        title = f"{dearest} costs {max(values):.1f} bits, a token on average {mean:.1f}"
    with use_style():
        figure = new_figure(11, 3.4, figure)
        axes = figure.add_axes((0.055, 0.29, 0.935, 0.58))
        axes.bar(range(len(values)), values, color=ACCENT, width=0.72)
        axes.axhline(mean, color=INK, linewidth=1.1, linestyle="--")
        axes.text(len(values) - 0.45, mean + 0.02 * max(values), "mean", ha="right", va="bottom", size=10)
        axes.set(xlim=(-0.6, len(values) - 0.4), xticks=range(len(values)), ylabel="bits")
        turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticklabels([printable(piece) for piece in pieces], family=MONO, **turned)
        axes.tick_params(axis="x", length=0, pad=1)
        axes.set_title(title)
    return figure


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights for labels: near `heights`, in the same order, and at least `gap` apart."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved: dict[int, float] = {}
    lowest = -np.inf
    for index in order:
        moved[index] = lowest = max(heights[index], lowest + gap)
    shift = np.mean([moved[index] - heights[index] for index in order])  # how far all labels together moved up
    return [moved[index] - shift for index in range(len(heights))]
