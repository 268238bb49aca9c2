"""Figures of a classifier's progress and its mistakes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, INK, MUTED, as_label, new_figure, use_style

LINES = ((ACCENT, "o"), (INK, "s"), ("#B7791F", "^"), (MUTED, "D"))


def accuracy_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    title: str,
    chance: float | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot the share of right answers, one line per name.

    Args:
        curves: for each name, places on the x axis and shares from 0 to 1.
        xlabel: what the x axis counts.
        title: states the finding.
        chance: the share that guessing reaches, drawn as a dashed line.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no curves, or more than four.
    """
    if not 1 <= len(curves) <= len(LINES):
        raise ValueError(f"curves has {len(curves)} lines; it must have 1 to {len(LINES)}")
    with use_style():
        figure = new_figure(9.5, 3.6, figure)
        axes = figure.add_axes((0.08, 0.16, 0.89, 0.7))
        for (name, (places, shares)), (colour, marker) in zip(curves.items(), LINES, strict=False):
            axes.plot(places, shares, color=colour, marker=marker, markersize=5, label=as_label(name))
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=1, linestyle="--", label=f"guessing: {chance:.0%}")
        axes.set(ylim=(0, 1.03), xlabel=xlabel, ylabel="share of right answers")
        axes.grid(axis="y")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.19))  # above the guessing line
        axes.set_title(title)
    return figure


def confusion(counts: ArrayLike, names: Sequence[str], title: str, figure: Figure | None = None) -> Figure:
    """Draw a confusion matrix: true against predicted classes of the texts, with right answers on the diagonal.

    Args:
        counts: (C, C); rows are true classes, columns predicted ones.
        names: names of the C classes.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `counts` is not (C, C).
    """
    counts = np.asarray(counts)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"counts has shape {counts.shape}; for {list(names)} it must be ({len(names)}, {len(names)})")
    with use_style():
        figure = new_figure(9.5, 1.35 + 0.5 * len(names), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.17, 0.12 / height, 0.62, 1 - 1.22 / height))
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                ink = "white" if shares[row, column] > 0.6 else INK
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=ink, size=11)
        axes.set(xticks=range(len(names)), yticks=range(len(names)), ylabel="what it is")
        axes.set_xticklabels(names)
        axes.set_yticklabels(names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for row, share in enumerate(shares.diagonal()):
            axes.text(len(names) - 0.35, row, f"{share:.0%} right", va="center", size=10.5, color=MUTED)
        figure.text(0.015, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
        figure.text(0.48, 1 - 0.58 / height, "what it was taken for", size=11, va="center", ha="center", color=INK)
    return figure


def accuracy_bars(shares: Mapping[str, float], title: str, chance: float, figure: Figure | None = None) -> Figure:
    """Draw the share of right answers as one bar per method, with a line for guessing.

    Args:
        shares: share of right answers from 0 to 1, by name.
        title: states the finding.
        chance: the share that guessing reaches.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        figure = new_figure(9.5, 1.3 + 0.42 * len(shares), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.36, 0.55 / height, 0.58, 1 - 1.0 / height))
        axes.barh(range(len(shares)), shares.values(), color=ACCENT, height=0.66)
        for row, share in enumerate(shares.values()):
            axes.text(share + 0.01, row, f"{share:.0%}", va="center", size=10.5)
        axes.axvline(chance, color=INK, linewidth=1, linestyle="--")
        axes.set(yticks=range(len(shares)), xlim=(0, 1.08), ylim=(len(shares) - 0.5, -0.5))
        axes.set_xlabel("share of right answers (dashed: guessing)")
        axes.set_yticklabels(shares)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, x=-0.6)
    return figure
