"""Figures of tiled attention: the memory of a full score matrix, a running softmax, and tiles to skip."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, as_label, new_figure, use_style

LINES = ((INK, "-", "o"), (ACCENT, "-", "s"), (MUTED, "--", "^"))
TIMES = ((INK, "-", "o"), (MUTED, "-", "D"), (ACCENT, "-", "s"), (MUTED, "--", "^"))
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def in_bytes(count: float) -> str:
    """Format a number of bytes for a label.

    >>> in_bytes(64 * 2**30), in_bytes(1536)
    ('64 GiB', '1.5 KiB')
    """
    name, size = next(unit for unit in UNITS if count >= unit[1] or unit[1] == 1)
    return f"{count / size:.3g} {name}"


def bytes_by_length(
    lengths: Sequence[int], series: Mapping[str, Sequence[float]], title: str, figure: Figure | None = None
) -> Figure:
    """Plot bytes against the length of the text on logarithmic axes, one line per name.

    Args:
        lengths: lengths T, in tokens.
        series: for each name, the bytes at each length.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no series or more than three, or one differs in length from `lengths`.
    """
    if not 1 <= len(series) <= len(LINES) or any(len(values) != len(lengths) for values in series.values()):
        given = [len(values) for values in series.values()]
        raise ValueError(f"series has lengths {given}; it must hold 1 to {len(LINES)} rows of {len(lengths)} numbers")
    with use_style():
        figure = new_figure(9.5, 3.8, figure)
        axes = figure.add_axes((0.13, 0.16, 0.58, 0.7))
        for (name, values), (colour, line, marker) in zip(series.items(), LINES, strict=False):
            axes.plot(lengths, values, color=colour, linestyle=line, marker=marker, markersize=5)
            axes.annotate(f"{name}\n{in_bytes(values[-1])}", (lengths[-1], values[-1]), (10, 0), color=colour,
                          textcoords="offset points", va="center", size=10.5)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths])
        low, high = axes.get_ylim()
        ticks = [2.0**power for power in range(0, 60, 4) if low <= 2.0**power <= high]
        axes.set_yticks(ticks, [in_bytes(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set(xlabel="tokens T", ylabel="bytes")
        axes.set_title(title)
    return figure


def seconds_by_length(
    lengths: Sequence[int],
    series: Mapping[str, Sequence[float]],
    floors: Mapping[str, Sequence[float]],
    title: str,
    figure: Figure | None = None,
) -> Figure:
    """Plot measured times against the length of the text on logarithmic axes, with floors as dotted lines.

    Args:
        lengths: lengths T, in tokens.
        series: for each name, the seconds at each length.
        floors: for some of the names, the fewest seconds that the work could take.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no series or more than four, a length differs, or a floor has the name of no series.
    """
    rows = [*series.values(), *floors.values()]
    if not 1 <= len(series) <= len(TIMES) or any(len(values) != len(lengths) for values in rows):
        given = [len(values) for values in rows]
        raise ValueError(
            f"series and floors have lengths {given}; series must hold 1 to {len(TIMES)} rows, and all must be rows of "
            f"{len(lengths)} numbers"
        )
    if unknown := set(floors) - set(series):
        raise ValueError(f"floors has the names {sorted(unknown)}; each must be a name in series, {sorted(series)}")
    with use_style():
        figure = new_figure(9.5, 4.0, figure)
        axes = figure.add_axes((0.1, 0.16, 0.52, 0.72))
        for (name, values), (colour, line, marker) in zip(series.items(), TIMES, strict=False):
            axes.plot(lengths, values, color=colour, linestyle=line, marker=marker, markersize=5, label=as_label(name))
            if name in floors:
                axes.plot(lengths, floors[name], color=colour, linestyle=":", label="floor of its products")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set(xlabel="tokens T", ylabel="seconds")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10.5)
        figure.text(0.015, 0.94, title, size=13, weight="bold", va="center")
    return figure


def running_softmax(
    blocks: Sequence[Sequence[float]], sums: ArrayLike, title: str, figure: Figure | None = None
) -> Figure:
    """Draw the softmax weights as they stand after each block of scores, divided by the sum so far.

    Args:
        blocks: the scores, block by block.
        sums: after each block, the sum of exp(score - largest so far).
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `blocks` is empty, or there is not one sum per block.
    """
    if len(blocks) != len(sums) or not blocks:
        raise ValueError(f"{len(blocks)} blocks and {len(sums)} sums; give at least one block, and one sum per block")
    total = sum(map(len, blocks))
    with use_style():
        figure = new_figure(9.5, 0.95 + 1.05 * len(blocks), figure)
        height = figure.get_figheight()
        figure.text(0.015, 1 - 0.26 / height, title, size=13, weight="bold", va="center")
        for place, denominator in enumerate(sums):
            seen = np.concatenate([np.asarray(block, dtype=float) for block in blocks[: place + 1]])
            weights = np.exp(seen - seen.max()) / denominator
            new = len(blocks[place])
            axes = figure.add_axes((0.08, 1 - (0.5 + 1.05 * (place + 1) - 0.2) / height, 0.62, 0.75 / height))
            axes.bar(range(len(seen)), weights, color=[FAINT] * (len(seen) - new) + [ACCENT] * new, width=0.8)
            axes.set(xlim=(-0.6, total - 0.4), ylim=(0, 1.05), xticks=range(total), yticks=(0, 1))
            axes.tick_params(labelbottom=place == len(blocks) - 1)
            axes.text(1.02, 0.5, f"block {place}: largest {seen.max():.1f}, sum {denominator:.2f}",
                      transform=axes.transAxes, va="center", size=10.5)  # fmt: skip
            if place == len(blocks) // 2:
                axes.set_ylabel("exp(score − largest) / sum so far")
        axes.set_xlabel("key position j (blue: the new block)")
    return figure


def tile_map(
    kinds: ArrayLike, names: Sequence[str], title: str, block: int = 1, figure: Figure | None = None
) -> Figure:
    """Draw a grid of tiles, each in the shade of its kind.

    Args:
        kinds: (query blocks, key blocks) whole numbers from 0 up; 0 is drawn pale.
        names: names of the kinds, starting with kind 0.
        title: states the finding.
        block: tokens per block, for the numbers on the axes.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a kind has no name.
    """
    kinds = np.asarray(kinds)
    if kinds.max() >= len(names):
        raise ValueError(f"kinds contains {kinds.max()} and there are {len(names)} names; give one name per kind")
    shades = (PAPER, "#9FC2E5", ACCENT, INK)
    rows, columns = kinds.shape
    with use_style():
        figure = new_figure(9.5, 4.6, figure)
        axes = figure.add_axes((0.09, 0.13, 0.43, 0.75))
        for row, column in np.ndindex(rows, columns):
            axes.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1],
                      color=shades[kinds[row, column]], edgecolor="white", linewidth=1.5)  # fmt: skip
        axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=range(0, columns + 1, 2), yticks=range(0, rows + 1, 2))
        axes.set_xticklabels([f"{block * tick}" for tick in range(0, columns + 1, 2)])
        axes.set_yticklabels([f"{block * tick}" for tick in range(0, rows + 1, 2)])
        axes.set(xlabel="key position j", ylabel="query position i")
        handles = [Patch(facecolor=shade, edgecolor=FAINT, label=as_label(f"{name}: {(kinds == kind).sum()}"))
                   for kind, (name, shade) in enumerate(zip(names, shades, strict=False))]  # fmt: skip
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.04, 0.5))
        axes.set_title(title)
    return figure
