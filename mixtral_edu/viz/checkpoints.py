"""Figures of checkpoints on disk: the parts of a file, which shard holds what, and rows in two orders."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.diagram import PART_COLOURS
from mixtral_edu.viz.style import FAINT, INK, MUTED, new_figure, text_colour, use_style

OTHER = "#CBD2D9"  # for parts that are not parameters


def file_map(parts: Mapping[str, int], title: str, figure: Figure | None = None) -> Figure:
    """Draw a file as one bar, cut into its parts; the list below gives bytes and shares.

    Args:
        parts: bytes by name, drawn in this order; names of a model's parts get their usual colours.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `parts` is empty.
    """
    if not parts:
        raise ValueError("parts is empty: give at least one name and its bytes")
    total = sum(parts.values())
    with use_style():
        figure = new_figure(9.5, 1.5 + 0.27 * len(parts), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.02, 1 - 1.15 / height, 0.96, 0.55 / height))
        start = 0
        for name, size in parts.items():
            colour = PART_COLOURS.get(name, OTHER)
            axes.barh(0, size, left=start, color=colour, edgecolor="white", height=0.8)
            if size > 0.12 * total:
                axes.text(start + size / 2, 0, name, ha="center", va="center", size=10.5, color=text_colour(colour))
            start += size
        axes.set(xlim=(0, total), ylim=(-0.5, 0.5))
        axes.set_axis_off()
        axes.set_title(title)
        for row, (name, size) in enumerate(parts.items()):
            y = 1 - (1.42 + 0.27 * row) / height
            colour = PART_COLOURS.get(name, OTHER)
            figure.text(0.03, y, "■", color=colour, va="center", size=13)
            figure.text(0.06, y, name, va="center", size=10.5)
            figure.text(0.38, y, f"{size:,} bytes", va="center", ha="right", size=10.5)
            figure.text(0.48, y, f"{size / total:.2%}", va="center", ha="right", size=10.5, color=MUTED)
    return figure


def shard_map(sizes: Sequence[Mapping[str, int]], title: str, figure: Figure | None = None) -> Figure:
    """Draw one bar per shard, cut into the groups of tensors that it holds.

    Args:
        sizes: for each shard, bytes by group of tensors, such as "layer 0".
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `sizes` is empty.
    """
    if not sizes:
        raise ValueError("sizes is empty: give at least one shard")
    longest = max(sum(shard.values()) for shard in sizes)
    names = list(dict.fromkeys(name for shard in sizes for name in shard))
    shades = colormaps["Blues"](np.linspace(0.2, 0.85, len(names)))
    with use_style():
        figure = new_figure(9.5, 1.2 + 0.42 * len(sizes), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.1, 0.5 / height, 0.87, 1 - 1.0 / height))
        for row, shard in enumerate(sizes):
            start = 0
            for name, size in shard.items():
                shade = tuple(shades[names.index(name)][:3])
                axes.barh(row, size / 1e6, left=start / 1e6, color=shade, edgecolor="white", height=0.7)
                if size > 0.08 * longest:
                    ink = text_colour("#" + "".join(f"{round(255 * c):02x}" for c in shade))
                    axes.text((start + size / 2) / 1e6, row, name, ha="center", va="center", size=10, color=ink)
                start += size
        axes.set(xlim=(0, 1.02 * longest / 1e6), ylim=(len(sizes) - 0.5, -0.5), xlabel="megabytes")
        axes.set(yticks=range(len(sizes)), yticklabels=[f"shard {n}" for n in range(1, len(sizes) + 1)])
        axes.tick_params(axis="y", length=0)
        axes.set_title(title)
    return figure


def row_orders(
    lengths: Mapping[str, ArrayLike], pairs: Mapping[str, ArrayLike], title: str, figure: Figure | None = None
) -> Figure:
    """Draw the rows of one head as bars, in several orders; the two rows of a rotary pair share a colour.

    Args:
        lengths: for each order, the length (norm) of each row, (Dh,).
        pairs: for each order, the number of each row's pair, (Dh,).
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `lengths` and `pairs` do not name the same orders, or rows do not form pairs.
    """
    if lengths.keys() != pairs.keys() or not lengths:
        raise ValueError(f"lengths names {list(lengths)} and pairs {list(pairs)}; both must name the same orders")
    with use_style():
        figure = new_figure(9.5, 0.9 + 1.35 * len(lengths), figure)
        height = figure.get_figheight()
        figure.text(0.015, 1 - 0.26 / height, title, size=13, weight="bold", va="center")
        for place, (name, rows) in enumerate(lengths.items()):
            rows, number = np.asarray(rows, dtype=float), np.asarray(pairs[name])
            if rows.shape != number.shape or (np.bincount(number) != 2).any():
                raise ValueError(f"pairs[{name!r}] must give each number to exactly two of the {len(rows)} rows")
            axes = figure.add_axes((0.075, 1 - (0.6 + 1.35 * (place + 1) - 0.32) / height, 0.745, 1.0 / height))
            colours = colormaps["viridis"](number / number.max())
            axes.bar(range(len(rows)), rows, color=colours, width=0.85)
            for row, pair in enumerate(number):
                axes.text(row, 0, f"{pair}", ha="center", va="top", size=7.5, color=MUTED)
            axes.set(xlim=(-0.6, len(rows) - 0.4), xticks=[], ylabel="norm")
            axes.text(1.015, 0.5, name, transform=axes.transAxes, va="center", size=11, color=INK)
            axes.spines["bottom"].set_color(FAINT)
        axes.set_xlabel("row of the head; the number is its pair", labelpad=10)
    return figure
