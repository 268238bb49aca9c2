"""Figures of checkpoints: the parts of a file, which shard holds what, and what rows in the wrong order cost."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.diagram import PART_COLOURS
from mixtral_edu.viz.style import ACCENT, INK, MUTED, as_label, new_figure, text_colour, use_style

OTHER = "#CBD2D9"  # for parts that are not parameters
_CURVES = ((ACCENT, "o", "-"), (INK, "s", "--"), (MUTED, "^", ":"))  # colour, marker, line
_BARS = (("#9FB3C8", ""), (ACCENT, ""), ("#52606D", "//"), (INK, ""))  # colour, hatch; neighbours differ in lightness


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


def errors_by_distance(
    distances: ArrayLike, errors: Mapping[str, ArrayLike], title: str, figure: Figure | None = None
) -> Figure:
    """Plot how far attention scores are off, against the distance between query and key.

    Args:
        distances: (n,) distances in tokens, 0 among them, rising.
        errors: for each of one to three names, (n,) errors in units of the right scores' spread.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are not one to three curves, or one does not have one error per distance.
    """
    curves = {name: np.asarray(values, dtype=float) for name, values in errors.items()}
    if not 1 <= len(curves) <= len(_CURVES) or any(len(values) != len(distances) for values in curves.values()):
        sizes = {name: len(values) for name, values in curves.items()}
        raise ValueError(f"errors has lengths {sizes}; it must hold one to three curves of length {len(distances)}")
    with use_style():
        figure = new_figure(9.5, 3.8, figure)
        axes = figure.add_axes((0.085, 0.165, 0.89, 0.68))
        for (name, values), (colour, marker, line) in zip(curves.items(), _CURVES, strict=False):
            axes.plot(distances, values, color=colour, marker=marker, linestyle=line, label=as_label(name))
        axes.axhline(2**0.5, color=MUTED, linewidth=1, zorder=0)
        axes.text(0, 2**0.5, "unrelated scores", size=10, color=MUTED, va="bottom")
        axes.set(xlim=(-0.02 * max(distances), 1.02 * max(distances)))
        axes.set(ylim=(-0.05 * max(map(np.max, curves.values())), 1.25 * max(map(np.max, curves.values()))))
        axes.set(xlabel="distance i - j of query and key, tokens", ylabel="error / spread of right scores")
        axes.legend(loc="upper left", ncols=len(curves))
        axes.set_title(title)
    return figure


def losses_by_text(
    losses: Mapping[str, Mapping[str, tuple[float, float]]], title: str, figure: Figure | None = None
) -> Figure:
    """Draw the loss of each variant of a model on each kind of text as bars, with standard errors.

    Args:
        losses: by variant, at most four, and kind of text: mean and standard error in nats per token.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are not one to four variants, or they do not name the same texts.
    """
    texts = list(next(iter(losses.values()), {}))
    if not texts or len(losses) > len(_BARS) or any(list(values) != texts for values in losses.values()):
        raise ValueError("losses must hold one to four variants, each with the same texts in the same order")
    width = 0.84 / len(losses)
    with use_style():
        figure = new_figure(9.5, 3.9, figure)
        axes = figure.add_axes((0.07, 0.1, 0.91, 0.75))
        for place, ((variant, values), (colour, hatch)) in enumerate(zip(losses.items(), _BARS, strict=False)):
            x = np.arange(len(texts)) + (place - (len(losses) - 1) / 2) * width
            mean, error = np.array(list(values.values())).T
            axes.bar(x, mean, width * 0.94, color=colour, hatch=hatch, edgecolor="white", label=as_label(variant))
            axes.errorbar(x, mean, error, color=INK, linestyle="none", capsize=2.5, linewidth=1)
            for at, height, spread in zip(x, mean, error, strict=True):
                axes.text(at, height + spread + 0.08, f"{height:.2f}", ha="center", va="bottom", size=9, color=INK)
        highest = max(mean + error for values in losses.values() for mean, error in values.values())
        axes.set(ylabel="loss, nats per token", ylim=(0, 1.28 * highest), xticks=range(len(texts)), xticklabels=texts)
        axes.tick_params(axis="x", length=0)
        axes.legend(loc="upper left", ncols=len(losses))
        axes.set_title(title)
    return figure
