"""Figures of rotary embedding: a pair that rotates, scores by position and by distance, and each pair's wavelength."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.rope import rotary_frequencies
from mixtral_edu.viz.diagram import short_count
from mixtral_edu.viz.plane import draw_arrow, draw_plane
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, as_label, new_figure, use_style

# Lines differ in both colour and dashes.
LOOKS = ((ACCENT, "-"), (INK, "--"), (MUTED, ":"), ("#9FB3C8", "-."))


def turned_pair(
    pair: Sequence[float],
    frequency: float,
    positions: Sequence[int],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw one pair of numbers as an arrow in the plane, rotated to several positions.

    Args:
        pair: (a, b), the pair at position 0.
        frequency: radians per position.
        positions: positions to draw; the first is drawn boldest.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pair` is not two numbers, or `positions` is empty.
    """
    if len(pair) != 2 or len(positions) == 0:
        raise ValueError(f"pair={pair}, positions={positions}; pair must be two numbers, and positions at least one")
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
    """Draw the scores of all query positions with all key positions, one map per heading, on one colour scale.

    Args:
        maps: for each heading, (T, T) scores.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `maps` is empty, or its shapes are not one (T, T).
    """
    arrays = {heading: np.asarray(scores, dtype=float) for heading, scores in maps.items()}
    shapes = {scores.shape for scores in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"maps has shapes {sorted(shapes)}; it must hold at least one map, all of one shape (T, T)")
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
    """Plot the wavelength of each pair for one or more values of theta, with lengths to compare against.

    Args:
        head_dim: Dh.
        thetas: values of theta, one curve each.
        lengths: for each name, a number of positions, such as a window or a context: a horizontal line.
        title: replaces the computed title, which compares the slowest pairs.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `thetas` is empty or has more than four values.
    """
    if not 1 <= len(thetas) <= len(LOOKS):
        raise ValueError(f"thetas={thetas}; it must hold 1 to {len(LOOKS)} values")
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
    """Return the wavelength 2π / frequency of each pair, in positions: (Dh/2,).

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
    """Plot scores against the distance between query and key.

    Args:
        distances: (n,).
        curves: for each name, (n,) scores.
        title: states the finding.
        log: use a logarithmic axis; distances must then begin at 1.
        ylabel: what the scores are.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no curves or more than four, or one differs in length from `distances`.
    """
    distances = np.asarray(distances)
    if not 1 <= len(curves) <= len(LOOKS) or any(len(scores) != len(distances) for scores in curves.values()):
        sizes = {name: len(scores) for name, scores in curves.items()}
        raise ValueError(f"curves has lengths {sizes}; it must hold 1 to {len(LOOKS)} of length {len(distances)}")
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
