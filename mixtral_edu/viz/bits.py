"""What a text costs a model in bits: token by token, and read after each layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.lens import depth_names
from mixtral_edu.viz.style import ACCENT, INK, MONO, MUTED, new_figure, printable, quoted, use_style

MARKERS = "osD^vP*X"  # of lines that differ in what they are about, not in rank


def bits_by_depth(
    bits: Mapping[str, ArrayLike], title: str, highlight: str | None = None, figure: Figure | None = None
) -> Figure:
    """Lines: bits per byte of each text, read after each part of the stack.

    Args:
        bits: for each name of a text L + 1 numbers, the embedding first.
        title: states what the lines show.
        highlight: the name of the text that the title is about.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: no texts, lines of different length, or a highlight that is none of the names.
    """
    lengths = {len(values) for values in bits.values()}
    if len(lengths) != 1:
        raise ValueError(f"bits must hold equally many numbers for each of at least one text, got {sorted(lengths)}")
    if highlight not in (None, *bits):
        raise ValueError(f"highlight={highlight!r}: one of {list(bits)} is wanted")
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
    """Bars: what each token of a text cost, in bits, with the text below.

    Args:
        pieces: the tokens that were predicted: those of the text but for the first.
        bits: as many numbers, minus log2 of each one's probability.
        title: instead of the computed one, which names the dearest token.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: no pieces, or lengths that differ.
    """
    values = [float(value) for value in bits]
    if not values or len(values) != len(pieces):
        raise ValueError(f"{len(pieces)} pieces and {len(values)} bits: equally many, not 0, are wanted")
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
    """Heights of labels, near `heights` and in their order, no two closer than `gap`."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved: dict[int, float] = {}
    lowest = -np.inf
    for index in order:
        moved[index] = lowest = max(heights[index], lowest + gap)
    shift = np.mean([moved[index] - heights[index] for index in order])  # upwards, of all labels together
    return [moved[index] - shift for index in range(len(heights))]
