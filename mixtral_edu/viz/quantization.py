"""Figures of rounded weights: the levels they move to, errors along a row, and what fewer bits cost and save."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, as_label, new_figure, use_style

MARKERS = ("o", "s", "^", "D", "v")
GREYS = (ACCENT, MUTED, INK, "#9FB3C8", "#B7791F")  # for lines that do not show an expert


def number_line(
    weights: ArrayLike, rounded: ArrayLike, levels: ArrayLike, title: str, figure: Figure | None = None
) -> Figure:
    """Draw weights above, the available levels below, and the level that each weight moves to.

    Args:
        weights: (n,) before rounding.
        rounded: (n,) after rounding.
        levels: all values that a rounded weight can take.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `weights` and `rounded` are not (n,), or `levels` is empty.
    """
    weights, rounded, levels = (np.asarray(values, dtype=float) for values in (weights, rounded, levels))
    if weights.shape != rounded.shape or weights.ndim != 1 or levels.size == 0:
        raise ValueError(
            f"weights has shape {weights.shape}, rounded {rounded.shape}, and there are {levels.size} levels; weights "
            "and rounded must be (n,), with at least one level"
        )
    with use_style():
        figure = new_figure(9.5, 2.5, figure)
        axes = figure.add_axes((0.12, 0.24, 0.85, 0.58))
        axes.vlines(levels, -0.28, 0.12, color=FAINT, linewidth=1.5)
        for before, after in zip(weights, rounded, strict=True):
            axes.plot((before, after), (1, 0), color=ACCENT, linewidth=1.2, alpha=0.7)
        axes.plot(weights, np.ones_like(weights), "o", color=INK, markersize=6)
        axes.plot(rounded, np.zeros_like(rounded), "o", color=ACCENT, markersize=6)
        axes.set(ylim=(-0.4, 1.35), yticks=(1, 0), xlabel="weight")
        axes.set_yticklabels(["as it was", "rounded"])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(title)
    return figure


def errors_along_a_row(
    errors: Mapping[str, ArrayLike], group_size: int, title: str, figure: Figure | None = None
) -> Figure:
    """Draw how far each weight of a row moves, one panel per way of rounding, all on one scale.

    Args:
        errors: (D,) distances by name.
        group_size: distance between the panels' grid lines.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `errors` is empty, or its rows differ in length.
    """
    rows = {name: np.abs(np.asarray(row, dtype=float)) for name, row in errors.items()}
    if len({row.shape for row in rows.values()}) != 1:
        lengths = [len(row) for row in rows.values()]
        raise ValueError(f"errors has rows of lengths {lengths}; it must hold at least one row, all of one length")
    highest = 1.1 * max(row.max() for row in rows.values())
    with use_style():
        figure = new_figure(9.5, 1.0 + 1.15 * len(rows), figure)
        height = figure.get_figheight()
        figure.text(0.015, 1 - 0.26 / height, title, size=13, weight="bold", va="center")
        for place, (name, row) in enumerate(rows.items()):
            axes = figure.add_axes((0.09, 1 - (0.62 + 1.15 * (place + 1) - 0.27) / height, 0.7, 0.88 / height))
            axes.bar(range(len(row)), row, width=1.0, color=ACCENT)
            axes.set(xlim=(-0.5, len(row) - 0.5), ylim=(0, highest), xticks=range(0, len(row) + 1, group_size))
            axes.grid(axis="x")
            axes.text(1.02, 0.5, name, transform=axes.transAxes, va="center", size=11)
            if place == len(rows) // 2:
                axes.set_ylabel("error")
            if place < len(rows) - 1:
                axes.tick_params(labelbottom=False)
        axes.set_xlabel("place in the row")
    return figure


def level_use(shares: ArrayLike, title: str, figure: Figure | None = None) -> Figure:
    """Draw the share of weights at each level as bars, with a line where all levels would hold the same.

    Args:
        shares: (levels,) from 0 to 1.
        title: states the finding.
        figure: a figure to draw into instead of a new one.
    """
    shares = np.asarray(shares, dtype=float)
    with use_style():
        figure = new_figure(9.5, 3.1, figure)
        axes = figure.add_axes((0.09, 0.2, 0.88, 0.64))
        axes.bar(range(len(shares)), 100 * shares, color=ACCENT, width=0.8)
        even = 100 / len(shares)
        axes.axhline(even, color=INK, linewidth=1, linestyle="--")
        axes.text(len(shares) - 0.45, even + 0.25, "all alike", ha="right", va="bottom", size=10)
        for level, share in enumerate(shares):
            axes.text(level, 100 * share + 0.2, f"{100 * share:.1f}", ha="center", va="bottom", size=9.5, color=MUTED)
        axes.set(xticks=range(len(shares)), xlabel="stored number q", ylabel="percent of the weights")
        axes.set(xlim=(-0.6, len(shares) - 0.4), ylim=(0, 120 * shares.max()))
        axes.set_title(title)
    return figure


def bits_curve(
    costs: Mapping[str, Mapping[int, float]], baseline: float, title: str, figure: Figure | None = None
) -> Figure:
    """Plot bits per byte of text against bits per weight, one line per way of grouping.

    Args:
        costs: for each name, bits per byte by number of bits.
        baseline: bits per byte with the original weights.
        title: states the finding.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        figure = new_figure(9.5, 3.7, figure)
        axes = figure.add_axes((0.09, 0.16, 0.88, 0.7))
        axes.axhline(baseline, color=INK, linewidth=1, linestyle="--", label="16 bits")
        for (name, points), marker, colour in zip(costs.items(), MARKERS, GREYS, strict=False):
            axes.plot(points.keys(), points.values(), marker=marker, color=colour, label=as_label(name), markersize=6)
        bits = sorted({number for points in costs.values() for number in points})
        axes.set(xticks=bits, xlabel="bits a weight", ylabel="bits per byte of text")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        axes.set_title(title)
    return figure


def sizes_and_cards(
    sizes: Mapping[str, float], cards: Sequence[float], title: str, figure: Figure | None = None
) -> Figure:
    """Draw a model's size in several formats as bars, with the memory of some GPUs as lines across them.

    Args:
        sizes: gigabytes by format, drawn from top to bottom.
        cards: gigabytes of each GPU.
        title: states the finding.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        figure = new_figure(9.5, 1.5 + 0.42 * len(sizes), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.16, 0.55 / height, 0.8, 1 - 1.45 / height))
        axes.barh(range(len(sizes)), sizes.values(), color=ACCENT, height=0.66)
        for row, size in enumerate(sizes.values()):
            axes.text(0.8, row, f"{size:.1f}", ha="left", va="center", size=10.5, color="white")
        for memory in cards:
            axes.axvline(memory, color=INK, linewidth=1, linestyle=":")
            axes.text(memory, -0.62, f"{memory:g}", ha="center", va="bottom", size=9.5)
        axes.text(-0.02, 1.0, "cards with", transform=axes.transAxes, ha="right", va="bottom", size=9.5)
        axes.set(yticks=range(len(sizes)), xlim=(0, 1.06 * max(*sizes.values(), *cards)), xlabel="gigabytes")
        axes.set(ylim=(len(sizes) - 0.5, -0.6))
        axes.set_yticklabels(sizes)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, pad=26)
    return figure
