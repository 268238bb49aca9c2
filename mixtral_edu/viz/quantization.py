"""Figures of rounded weights: levels, errors, what fewer bits cost a model, and what they save in bytes and time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Arc
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, as_label, new_figure, use_style

MARKERS = ("o", "s", "^", "D", "v")
SIDES = {  # of a label: distance from its point, and how it is aligned there
    "above": ((0, 9), "center", "bottom"),
    "below": ((0, -9), "center", "top"),
    "left": ((-9, 0), "right", "center"),
    "right": ((9, 0), "left", "center"),
}
COLOURS = (ACCENT, MUTED, INK, "#9FB3C8", "#B7791F")  # for lines that do not show an expert


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
        axes.vlines(levels, -0.28, 0.12, color=MUTED, linewidth=1.5)
        for before, after in zip(weights, rounded, strict=True):
            axes.plot((before, after), (1, 0), color=ACCENT, linewidth=1.2, alpha=0.7)
        axes.plot(weights, np.ones_like(weights), "o", color=INK, markersize=6)
        axes.plot(rounded, np.zeros_like(rounded), "s", color=ACCENT, markersize=6)
        axes.set(ylim=(-0.4, 1.35), yticks=(1, 0), xlabel="weight")
        axes.set_yticklabels(["before", "after"])
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
            axes.stairs(row, np.arange(len(row) + 1) - 0.5, fill=True, color=ACCENT)
            axes.set(xlim=(-0.5, len(row) - 0.5), ylim=(0, highest), xticks=range(0, len(row) + 1, group_size))
            axes.grid(axis="x")
            axes.text(1.02, 0.5, name, transform=axes.transAxes, va="center", size=11)
            if place == len(rows) // 2:
                axes.set_ylabel("|error|")
            if place < len(rows) - 1:
                axes.tick_params(labelbottom=False)
        axes.set_xlabel("column of the weight")
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
        axes.axhline(even, color=INK, linewidth=1, linestyle="--", label="if all levels were used equally")
        for level, share in enumerate(shares):
            axes.text(level, 100 * share + 0.2, f"{100 * share:.1f}", ha="center", va="bottom", size=9.5, color=MUTED)
        axes.set(xticks=range(len(shares)), xlabel="stored integer q", ylabel="percent of the weights")
        axes.set(xlim=(-0.6, len(shares) - 0.4), ylim=(0, 120 * shares.max()))
        axes.legend(loc="upper right")
        axes.set_title(title)
    return figure


def cost_by_bits(
    costs: Mapping[str, Mapping[int, tuple[float, float]]],
    title: str,
    draws: Mapping[int, Sequence[float]] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot what rounding costs against bits per weight, one line per way of grouping, with error bars.

    Args:
        costs: for each name, by number of bits, the cost in bits per byte of text and its standard error. The bars are
            two standard errors to each side.
        title: states the finding.
        draws: costs of random changes of the same size as the first line's, by number of bits, drawn as crosses.
        figure: a figure to draw into instead of a new one.
    """
    bits = sorted({number for points in costs.values() for number in points}, reverse=True)
    with use_style():
        figure = new_figure(9.5, 3.9, figure)
        axes = figure.add_axes((0.09, 0.15, 0.88, 0.72))
        axes.axhline(0, color=INK, linewidth=1, linestyle="--", label="bfloat16")
        for line, (name, points) in enumerate(costs.items()):
            x = [bits.index(number) + 0.09 * line for number in points]
            y, spread = (np.array([point[part] for point in points.values()]) for part in (0, 1))
            look = {"marker": MARKERS[line % 5], "color": COLOURS[line % 5], "markersize": 6, "capsize": 4}
            axes.errorbar(x, y, 2 * spread, label=as_label(name), **look)
        for number, values in (draws or {}).items():
            label = f"random changes of the same size as {next(iter(costs))}" if number == min(draws) else None
            x = [bits.index(number) - 0.12] * len(values)
            axes.plot(x, values, "x", color="#B7791F", markersize=8, markeredgewidth=2, label=label)
        axes.set(xticks=range(len(bits)), xticklabels=bits, xlim=(-0.4, len(bits) - 0.5))
        axes.set(xlabel="bits per weight", ylabel="cost in bits per byte of text")
        axes.grid(axis="y")
        axes.legend(loc="upper left", title="bars: two standard errors to each side", alignment="left")
        axes.set_title(title)
    return figure


def along_and_across(
    changes: Mapping[str, tuple[float, float, float]],
    title: str,
    errors: Sequence[float] = (0.5, 1, 1.5, 2),
    sides: Mapping[str, str] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw changed rows as points: how long the part along the old row is, and how long the part across it.

    Circles around the unchanged row, at (1, 0), join the points of equal error.

    Args:
        changes: for each name, (along, across, cost): lengths relative to the old row, and bits per byte.
        title: states the finding.
        errors: radii of the circles.
        sides: where labels go that do not stand above their point: "below", "left" or "right".
        figure: a figure to draw into instead of a new one.
    """
    left, right, top = -1.55, 3.55, 1.85
    with use_style():
        figure = new_figure(9.5, 4.7, figure)
        axes = figure.add_axes((0.075, 0.14, 0.915, 0.72))
        for error in errors:
            axes.add_patch(Arc((1, 0), 2 * error, 2 * error, theta1=0, theta2=180, color=MUTED, linewidth=0.9, ls=":"))
            at = (1 - 0.5 * error, 0.866 * error)  # at 120 degrees
            axes.text(*at, f"error {error:.0%}", ha="center", va="center", size=9.5, color=MUTED,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 2})
        axes.plot(1, 0, "o", color=INK, markersize=5)
        axes.text(0.5, -0.06, "the row", ha="center", va="top", size=10)
        for name, (along, across, cost) in changes.items():
            axes.plot(along, across, "o", color=ACCENT, markersize=5 + 9 * np.sqrt(max(cost, 0) / 7), alpha=0.85)
            side = (sides or {}).get(name, "above")
            (right_by, up_by), ha, va = SIDES[side]
            place = {"xytext": (right_by, up_by), "textcoords": "offset points", "ha": ha, "va": va, "size": 10}
            place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axes.annotate(f"{name}: {cost:+.2f}".replace("-0.00", "+0.00"), (along, across), **place)
        axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
        axes.set(xlim=(left, right), ylim=(-0.3, top), aspect="equal", yticks=(0, 0.5, 1, 1.5))
        axes.set_xlabel("part along the old row (1: as long as it was)")
        axes.set_ylabel("part across it")
        axes.set_title(title)
    return figure


def product_times(times: Mapping[str, Mapping[int, float]], title: str, figure: Figure | None = None) -> Figure:
    """Plot the time of a matrix product against the number of rows, one line per form of the matrix.

    Args:
        times: for each form, seconds by number of rows.
        title: states what is drawn.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        figure = new_figure(9.5, 3.9, figure)
        axes = figure.add_axes((0.09, 0.15, 0.88, 0.72))
        for line, (name, points) in enumerate(times.items()):
            look = {"marker": MARKERS[line % 5], "color": COLOURS[line % 5], "linestyle": ("-", "--", "-.")[line % 3]}
            axes.plot(points.keys(), [1e3 * seconds for seconds in points.values()], label=as_label(name), **look)
        rows = sorted({number for points in times.values() for number in points})
        axes.set(xscale="log", yscale="log", xlabel="rows multiplied at once (tokens)", ylabel="milliseconds")
        axes.set_xticks(rows, [f"{number:,}" for number in rows])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.legend(loc="upper left")
        axes.set_title(title)
    return figure


def sizes_and_cards(
    sizes: Mapping[str, float],
    cards: Sequence[float],
    title: str,
    unit: str = "gigabytes",
    figure: Figure | None = None,
) -> Figure:
    """Draw a model's size in several formats as bars, with the memory of some GPUs as lines across them.

    Args:
        sizes: size by format, drawn from top to bottom.
        cards: memory of each GPU, in the same unit.
        title: states the finding.
        unit: what the numbers count.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        figure = new_figure(9.5, 1.5 + 0.42 * len(sizes), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.19, 0.55 / height, 0.78, 1 - 1.45 / height))
        axes.barh(range(len(sizes)), sizes.values(), color=ACCENT, height=0.66)
        for row, size in enumerate(sizes.values()):
            axes.text(0.8, row, f"{size:.1f}", ha="left", va="center", size=10.5, color="white")
        for memory in cards:
            axes.axvline(memory, color=INK, linewidth=1.2, linestyle=":")
            axes.text(memory, -0.62, f"{memory:g}", ha="center", va="bottom", size=10)
        axes.text(-0.02, 1.0, "GPUs with", transform=axes.transAxes, ha="right", va="bottom", size=10)
        axes.set(yticks=range(len(sizes)), xlim=(0, 1.06 * max(*sizes.values(), *cards)), xlabel=unit)
        axes.set(ylim=(len(sizes) - 0.5, -0.6))
        axes.set_yticklabels(sizes)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, pad=26)
    return figure


def error_and_size(
    points: Mapping[int, Mapping[int, tuple[float, float]]], title: str, figure: Figure | None = None
) -> Figure:
    """Plot the error of a row against the size of a model, one line per number of bits, with group sizes as labels.

    Args:
        points: by bits per weight, then by group size: (size in gigabytes, relative error).
        title: states the finding.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        figure = new_figure(9.5, 3.9, figure)
        axes = figure.add_axes((0.09, 0.15, 0.88, 0.72))
        for line, (bits, groups) in enumerate(points.items()):
            sizes, errors = zip(*groups.values(), strict=True)
            look = {"marker": MARKERS[line % 5], "color": COLOURS[line % 5]}
            axes.plot(sizes, [100 * error for error in errors], label=f"{bits} bits per weight", **look)
            for group, (size, error) in groups.items():
                axes.annotate(str(group), (size, 100 * error), (5, 5), textcoords="offset points", size=9.5)
        axes.set(yscale="log", xlabel="Mixtral-8x7B, gigabytes", ylabel="error of the row, percent")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.legend(loc="upper right", title="labels: weights per group", alignment="left")
        axes.set_title(title)
    return figure
