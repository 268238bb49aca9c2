"""Figures of tiled attention: bytes and seconds, a running softmax, the order of the tiles, and which are skipped."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, as_label, new_figure, use_style

PALE = "#9FC2E5"  # between paper and accent
_LABEL = 0.16  # of an axis: the height of a label of two lines
LINES = ((INK, "-", "o"), (ACCENT, "-", "s"), (MUTED, "--", "^"))
TIMES = ((INK, "-", "o"), (INK, "--", "D"), (ACCENT, "--", "^"), (ACCENT, "-", "s"))
UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def in_bytes(count: float) -> str:
    """Format a number of bytes for a label.

    >>> in_bytes(64 * 2**30), in_bytes(1536)
    ('64 GiB', '1.5 KiB')
    """
    name, size = next(unit for unit in UNITS if count >= unit[1] or unit[1] == 1)
    return f"{count / size:.3g} {name}"


def bytes_by_length(
    lengths: Sequence[int],
    series: Mapping[str, Sequence[float]],
    title: str,
    ylabel: str = "bytes",
    figure: Figure | None = None,
) -> Figure:
    """Plot bytes against the length of the text on logarithmic axes, one line per name.

    Args:
        lengths: lengths T, in tokens.
        series: for each name, the bytes at each length.
        title: states the finding.
        ylabel: says what the bytes are.
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
        for values, (colour, line, marker) in zip(series.values(), LINES, strict=False):
            axes.plot(lengths, values, color=colour, linestyle=line, marker=marker, markersize=5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        _mark_bytes(axes)
        at = -1.0
        for (name, values), (colour, _, _) in sorted(zip(series.items(), LINES, strict=False), key=_last_value):
            height = axes.transAxes.inverted().transform(axes.transData.transform((lengths[-1], values[-1])))[1]
            at = max(height, at + _LABEL)
            axes.annotate(f"{name}\n{in_bytes(values[-1])}", (1.02, at), xycoords="axes fraction", color=colour,
                          va="center", size=10.5, annotation_clip=False)  # fmt: skip
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths])
        axes.set(xlabel="tokens T", ylabel=ylabel)
        figure.text(0.015, 0.94, title, size=13, weight="bold", va="center")
    return figure


def _last_value(line: tuple[tuple[str, Sequence[float]], tuple[str, str, str]]) -> float:
    return line[0][1][-1]


def _mark_bytes(axes: Axes) -> None:
    low, high = axes.get_ylim()
    ticks = [2.0**power for power in range(0, 60, 2) if low <= 2.0**power <= high]
    ticks = ticks[:: 1 + len(ticks) // 7]
    axes.set_yticks(ticks, [in_bytes(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y")


def bytes_by_tile(
    tiles: Sequence[int],
    moved: Sequence[float],
    levels: Mapping[str, float],
    notes: Sequence[str],
    title: str,
    figure: Figure | None = None,
) -> Figure:
    """Plot the bytes that tiled attention moves against the size of a tile, on logarithmic axes.

    Args:
        tiles: queries in a tile, rising.
        moved: the bytes at each size.
        levels: bytes that do not depend on a tile, by name: drawn as dashed lines.
        notes: a short text under each size.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there is not one number of bytes and one note per size.
    """
    if not len(tiles) == len(moved) == len(notes) or not tiles:
        raise ValueError(f"{len(tiles)} tiles, {len(moved)} numbers and {len(notes)} notes; give one of each per tile")
    with use_style():
        figure = new_figure(9.5, 4.4, figure)
        axes = figure.add_axes((0.13, 0.2, 0.84, 0.67))
        axes.plot(tiles, moved, color=ACCENT, marker="s", markersize=6)
        for tile, value in zip(tiles, moved, strict=True):
            axes.annotate(in_bytes(value), (tile, value), (5, 7), textcoords="offset points", color=ACCENT, size=10.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlim(tiles[0] / 1.3, tiles[-1] * 1.5)
        for name, value in levels.items():
            axes.axhline(value, color=INK, linestyle="--", linewidth=1.2)
            axes.annotate(f"{name}: {in_bytes(value)}", (tiles[-1] * 1.45, value), (0, 5), ha="right",
                          textcoords="offset points", size=10.5, bbox={"facecolor": "white", "edgecolor": "none",
                          "pad": 0.5})  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 1.5)
        _mark_bytes(axes)
        axes.set_xticks(tiles, [f"{tile}\n{note}" for tile, note in zip(tiles, notes, strict=True)])
        axes.set(xlabel="queries in a tile, and the fast memory that the tile takes", ylabel="bytes moved per layer")
        figure.text(0.015, 0.94, title, size=13, weight="bold", va="center")
    return figure


def seconds_by_length(
    lengths: Sequence[int], series: Mapping[str, Sequence[float]], title: str, figure: Figure | None = None
) -> Figure:
    """Plot measured times against the length of the text on logarithmic axes, one line per name.

    Args:
        lengths: lengths T, in tokens.
        series: for each name, the seconds at each length.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no series or more than four, or one differs in length from `lengths`.
    """
    if not 1 <= len(series) <= len(TIMES) or any(len(values) != len(lengths) for values in series.values()):
        given = [len(values) for values in series.values()]
        raise ValueError(f"series has lengths {given}; it must hold 1 to {len(TIMES)} rows of {len(lengths)} numbers")
    with use_style():
        figure = new_figure(9.5, 4.0, figure)
        axes = figure.add_axes((0.1, 0.16, 0.55, 0.72))
        for (name, values), (colour, line, marker) in zip(series.items(), TIMES, strict=False):
            axes.plot(lengths, values, color=colour, linestyle=line, marker=marker, markersize=6, label=as_label(name))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{T:,}" for T in lengths])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set(xlabel="tokens T", ylabel="seconds per layer")
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
    shades = (PAPER, PALE, ACCENT, INK)
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


Tile = tuple[int, int]


def tile_orders(num_blocks: int) -> dict[str, list[Tile]]:
    """List the tiles (query block, key block) of causal attention in the order in which the two versions visit them.

    >>> tile_orders(3)["FlashAttention-1"]
    [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)]
    >>> tile_orders(3)["FlashAttention-2"]
    [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    """
    blocks = range(num_blocks)
    return {
        "FlashAttention-1": [(a, b) for b in blocks for a in blocks if b <= a],
        "FlashAttention-2": [(a, b) for a in blocks for b in blocks if b <= a],
    }


def slow_memory_use(version: str, order: Sequence[Tile], step: int) -> dict[tuple[str, int], str]:
    """Say what happens to the blocks of one step: "r" read, "w" written, "rw" both, "h" held in fast memory.

    Blocks are "q", "kv" and "out". The block of the outer loop is held while the inner loop runs; with queries in the
    outer loop so is their output, which is written at the end of the row.

    >>> slow_memory_use("FlashAttention-2", tile_orders(3)["FlashAttention-2"], 2)
    {('q', 1): 'h', ('kv', 1): 'r', ('out', 1): 'w'}
    >>> slow_memory_use("FlashAttention-1", tile_orders(3)["FlashAttention-1"], 4)
    {('q', 2): 'r', ('kv', 1): 'h', ('out', 2): 'rw'}
    """
    query, key = order[step]
    before, after = order[:step][-1:], order[step + 1 :][:1]
    if version == "FlashAttention-1":
        held = "h" if before and before[0][1] == key else "r"
        return {("q", query): "r", ("kv", key): held, ("out", query): "rw"}
    held = "h" if before and before[0][0] == query else "r"
    last = not after or after[0][0] != query
    return {("q", query): held, ("kv", key): "r", ("out", query): "w" if last else "h"}


def loop_orders(steps: Sequence[int], title: str, num_blocks: int = 4, figure: Figure | None = None) -> Figure:
    """Draw a strip of frames for each version: the tile of a step, and what the step reads, holds and writes.

    Args:
        steps: which steps to draw, counted from 0.
        title: states the finding.
        num_blocks: blocks of queries and of keys.
        figure: a figure to draw into instead of a new one.
    """
    orders, n = tile_orders(num_blocks), num_blocks
    looks = {"h": (PALE, INK), "r": (ACCENT, "white"), "w": (INK, "white"), "rw": (INK, "white")}
    with use_style():
        figure = new_figure(9.5, 4.9, figure)
        figure.text(0.015, 0.955, title, size=13, weight="bold", va="center")
        for row, (version, order) in enumerate(orders.items()):
            bottom = 0.5 - 0.44 * row
            figure.text(0.015, bottom + 0.385, version, size=11.5, weight="bold", va="center")
            for place, step in enumerate(steps):
                axes = figure.add_axes((0.015 + 0.98 * place / len(steps), bottom, 0.98 / len(steps) - 0.02, 0.375))
                axes.set(xlim=(-2.1, n + 2.1), ylim=(n + 0.2, -2.2), aspect="equal")
                axes.axis("off")
                used = slow_memory_use(version, order, step)
                for query, key in np.ndindex(n, n):
                    if key <= query:
                        at = order.index((query, key))
                        shade = ACCENT if at == step else PALE if at < step else PAPER
                        axes.add_patch(Rectangle((key, query), 1, 1, facecolor=shade, edgecolor=MUTED, linewidth=0.7))
                for index in range(n):
                    for name, corner in (("q", (-1.5, index)), ("kv", (index, -1.5)), ("out", (n + 0.5, index))):
                        what = used.get((name, index), "")
                        face, ink = looks.get(what, ("white", INK))
                        axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor=MUTED, linewidth=0.7))
                        axes.text(corner[0] + 0.5, corner[1] + 0.5, what, color=ink, ha="center", va="center", size=10)
                for name, x, y in (("q", -1, -0.35), ("k, v", -0.7, -1), ("out", n + 1, -0.35)):
                    axes.text(x, y, name, ha="center", va="center", size=10)
                axes.text(n + 0.3, -1.75, f"step {step + 1}", ha="left", va="center", size=10.5, color=MUTED)
        legend = "r: read from slow memory in this step     w: written to it     h: held in fast memory"
        figure.text(0.015, 0.035, legend, size=10.5, va="center")
    return figure


def errors_by_way(
    errors: Mapping[str, Sequence[float]], floor: float, title: str, figure: Figure | None = None
) -> Figure:
    """Draw errors as dots on a logarithmic axis, one row per way of computing, beside the least error possible.

    Args:
        errors: for each name, the relative errors of several runs.
        floor: the error of the exact result when it is stored.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no ways or more than three, or one has no errors.
    """
    if not 1 <= len(errors) <= len(LINES) or not all(map(len, errors.values())):
        raise ValueError(f"errors has {[len(values) for values in errors.values()]} errors per way; it must hold 1 to "
                         f"{len(LINES)} ways, each with an error")  # fmt: skip
    with use_style():
        figure = new_figure(9.5, 1.5 + 0.55 * len(errors), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.3, 0.62 / height, 0.67, 1 - 1.15 / height))
        for row, (values, (colour, _, marker)) in enumerate(zip(errors.values(), LINES, strict=False)):
            axes.plot(values, [row] * len(values), color=colour, marker=marker, linestyle="", markersize=7, alpha=0.6)
        axes.axvline(floor, color=INK, linestyle="--", linewidth=1.2)
        axes.annotate("exact, rounded", (floor, -0.55), (6, 0), textcoords="offset points", size=10.5, va="center")
        axes.set_xscale("log", base=2)
        low, high = min(floor, *map(min, errors.values())), max(map(max, errors.values()))
        ticks = [digit * 10.0**power for power in range(-9, 2) for digit in (1, 2, 5)]
        ticks = [tick for tick in ticks if low / 1.2 <= tick <= high * 1.3]
        axes.set_xticks(ticks, [f"{100 * tick:g}%" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="x")
        axes.set_yticks(range(len(errors)), list(errors))
        axes.set(ylim=(len(errors) - 0.5, -0.9), xlim=(low / 1.2, high * 1.3),
                 xlabel="error relative to float64, root mean square over a layer's output")  # fmt: skip
        figure.text(0.015, 1 - 0.26 / height, title, size=13, weight="bold", va="center")
    return figure
