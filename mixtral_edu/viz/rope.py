"""Rotary embedding, drawn: a pair that turns, scores by position and by distance, and how far each pair reaches."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.rope import rotary_frequencies
from mixtral_edu.viz.diagram import short_count
from mixtral_edu.viz.plane import draw_arrow, draw_plane
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, as_label, new_figure, use_style

# Curves and lines are told apart by colour and by dashes.
LOOKS = ((ACCENT, "-"), (INK, "--"), (MUTED, ":"), ("#9FB3C8", "-."))


def turned_pair(
    pair: Sequence[float],
    frequency: float,
    positions: Sequence[int],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """One pair of numbers as an arrow in the plane, turned to several positions.

    Args:
        pair: (a, b), the pair at position 0.
        frequency: radians a position.
        positions: where to draw it; the first is drawn boldest.
        title: instead of the computed one.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a pair that is not two numbers, or no positions.
    """
    if len(pair) != 2 or len(positions) == 0:
        raise ValueError(f"pair={pair}, positions={positions}: two numbers and at least one position are wanted")
    length = float(np.hypot(*pair))
    if title is None:
        title = f"{frequency:g} rad a position: the arrow turns, its length stays {length:.2f}"
    with use_style():
        figure = new_figure(6.6, 5.4, figure)
        axes = figure.add_axes((0.1, 0.11, 0.88, 0.78))
        draw_plane(axes, 1.3 * length, length)
        for order, position in enumerate(positions):
            angle = np.arctan2(pair[1], pair[0]) + position * frequency
            share = 1 - 0.75 * order / max(1, len(positions) - 1)
            draw_arrow(axes, angle, length, ACCENT, alpha=share)
            x, y = 1.12 * length * np.cos(angle), 1.12 * length * np.sin(angle)
            axes.text(x, y, f"{position}", ha="center", va="center")
        axes.set(xlabel="a, the first number of the pair", ylabel="b, the second number")
        figure.text(0.012, 0.945, title, size=13, weight="bold", va="center")
    return figure


def score_maps(maps: Mapping[str, ArrayLike], title: str, figure: Figure | None = None) -> Figure:
    """Scores of every query position with every key position, side by side, in one scale of colours.

    Args:
        maps: by heading, (T, T) scores.
        title: the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: no map, or shapes that are not one (T, T).
    """
    arrays = {heading: np.asarray(scores, dtype=float) for heading, scores in maps.items()}
    shapes = {scores.shape for scores in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"maps have the shapes {sorted(shapes)}: one shape (T, T) is wanted")
    largest = max(np.abs(scores).max() for scores in arrays.values())
    with use_style():
        figure = new_figure(0.9 + 4.2 * len(arrays), 4.8, figure)
        width = figure.get_figwidth()
        for number, (heading, scores) in enumerate(arrays.items()):
            axes = figure.add_axes(((0.75 + 4 * number) / width, 0.12, 3.45 / width, 0.75))
            image = axes.imshow(scores, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axes.set_title(heading, size=11.5, weight="normal")
            axes.set(xlabel="key position j", ylabel="query position i")
        bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.75 / width, 0.12, 0.16 / width, 0.75)))
        bar.outline.set_visible(False)
        bar.ax.set_title("q · k", size=10.5, weight="normal", pad=6, loc="center")
        figure.text(0.012, 0.955, title, size=13, weight="bold", va="center")
    return figure


def wavelengths(
    head_dim: int,
    thetas: Sequence[float],
    lengths: Mapping[str, int],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """After how many positions each pair has come round once, for one or more theta, beside lengths to compare with.

    Args:
        head_dim: Dh.
        thetas: one curve each.
        lengths: by name, numbers of positions, such as a window or a context: horizontal lines.
        title: instead of the computed one, which compares the slowest pairs.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: no theta, or more than four.
    """
    if not 1 <= len(thetas) <= len(LOOKS):
        raise ValueError(f"thetas={thetas}: one to {len(LOOKS)} of them are wanted")
    curves = [turn_lengths(head_dim, theta) for theta in thetas]
    if title is None:
        slowest = " and ".join(short_count(curve[-1]) for curve in curves)
        title = f"The slowest of {head_dim // 2} pairs comes round in {slowest} positions"
    with use_style():
        figure = new_figure(10, 4.4, figure)
        axes = figure.add_axes((0.09, 0.14, 0.69, 0.74))
        for theta, curve, (colour, line) in zip(thetas, curves, LOOKS, strict=False):
            axes.semilogy(curve, color=colour, linestyle=line, linewidth=2, label=f"theta = {theta:,.0f}")
        for name, length in lengths.items():
            axes.axhline(length, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.text(1.01 * (head_dim // 2 - 1), length, f" {name}", va="center", size=10.5)
        axes.set(xlim=(0, head_dim // 2 - 1), xlabel="pair i", ylabel="wavelength in positions")
        axes.legend(loc="upper left")
        axes.set_title(title)
    return figure


def turn_lengths(head_dim: int, theta: float) -> np.ndarray:
    """The wavelength 2π / frequency of each pair, in positions: (Dh/2,).

    >>> turn_lengths(4, theta=100.0).round(2).tolist()
    [6.28, 62.83]
    """
    return 2 * np.pi / rotary_frequencies(head_dim, theta).double().numpy()


def scores_by_distance(
    distances: ArrayLike,
    curves: Mapping[str, ArrayLike],
    title: str,
    log: bool = False,
    ylabel: str = "score",
    figure: Figure | None = None,
) -> Figure:
    """Scores against the distance between query and key.

    Args:
        distances: (n,).
        curves: by name, (n,) scores each.
        title: the finding.
        log: a logarithmic axis for distances, which then begin at 1.
        ylabel: what the scores are.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: curves of another length than distances, none, or more than four.
    """
    distances = np.asarray(distances)
    if not 1 <= len(curves) <= len(LOOKS) or any(len(scores) != len(distances) for scores in curves.values()):
        sizes = {name: len(scores) for name, scores in curves.items()}
        raise ValueError(f"curves of lengths {sizes}: one to {len(LOOKS)} with {len(distances)} scores are wanted")
    with use_style():
        figure = new_figure(9.5, 3.7, figure)
        axes = figure.add_axes((0.09, 0.17, 0.88, 0.67))
        axes.axhline(0, color=FAINT, linewidth=1)
        for (name, scores), (colour, line) in zip(curves.items(), LOOKS, strict=False):
            axes.plot(distances, scores, color=colour, linestyle=line, linewidth=1.8, label=as_label(name))
        axes.set(xlim=(distances[0], distances[-1]), xlabel="distance i − j", ylabel=ylabel)
        if log:
            axes.set_xscale("log", base=2)
            axes.set_xticks([tick for tick in axes.get_xticks() if distances[0] <= tick <= distances[-1]])
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend()
        axes.set_title(title)
    return figure
