"""What a token costs in a model of real size: arithmetic by context length, and bytes that a step reads."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.diagram import PART_COLOURS
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, new_figure, text_colour, use_style

BYTE_COLOURS = {part: PART_COLOURS[part] for part in ("experts", "attention", "embedding", "lm_head")} | {
    "cache": "#B3DE69"
}


def flops_by_context(
    contexts: Sequence[int],
    matrices: float,
    attention: Mapping[str, ArrayLike],
    title: str,
    limit: int | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot the GFLOP of one token against the number of tokens before it, separately for weights and attention.

    Args:
        contexts: numbers of tokens, in increasing order.
        matrices: FLOPs of the weight matrices, the same at every context.
        attention: FLOPs of scores and weighted sums at each context, by kind of attention.
        title: states what the lines show.
        limit: a context to mark, such as the longest that the model supports.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are fewer than two contexts, no attention, or a line differs in length from `contexts`.
    """
    lengths = [len(values) for values in attention.values()]
    if len(contexts) < 2 or lengths != [len(contexts)] * max(len(lengths), 1):
        raise ValueError(
            f"contexts has length {len(contexts)} and attention {lengths}; the lengths must be equal and at least 2"
        )
    with use_style():
        figure = new_figure(9.5, 4, figure)
        axes = figure.add_axes((0.075, 0.14, 0.66, 0.735))
        right = max(contexts)
        top = 1.06 * max(matrices, *(max(values) for values in attention.values())) / 1e9
        axes.hlines(matrices / 1e9, 0, right, color=PART_COLOURS["experts"], linewidth=2.4)
        axes.text(1.015 * right, matrices / 1e9, "matrices of the\nactive weights", va="center", size=10.5)
        for number, (name, values) in enumerate(attention.items()):
            billions = [float(value) / 1e9 for value in values]
            axes.plot(contexts, billions, color=ACCENT, linewidth=2, linestyle=("-", "--", ":")[number % 3])
            axes.text(1.015 * right, billions[-1], f"attention,\n{name}", va="center", size=10.5, color=ACCENT)
        if limit is not None:
            axes.axvline(limit, color=MUTED, linewidth=1, linestyle=":")
            axes.text(limit, top, f" {limit:,}", va="top", size=10, color=MUTED)
        axes.set(xlim=(0, right), ylim=(0, top), xlabel="tokens in the text so far", ylabel="GFLOP a token")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.grid(True)
        axes.set_title(title)
    return figure


def byte_bars(
    rows: Mapping[str, Mapping[str, float]], title: str, unit: str = "GB", figure: Figure | None = None
) -> Figure:
    """Draw bytes by part as stacked bars, one per named row.

    Args:
        rows: for each name, the bytes of some or all of "experts", "attention", "embedding", "lm_head", "cache".
        title: states what the bars show.
        unit: "GB" (10⁹ bytes) or "MB" (10⁶).
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `rows` is empty or names an unknown part, or `unit` is unknown.
    """
    sizes = {"GB": 1e9, "MB": 1e6}
    parts = [part for part in BYTE_COLOURS if any(part in row for row in rows.values())]
    strange = {part for row in rows.values() for part in row} - set(parts)
    if not rows or strange or unit not in sizes:
        raise ValueError(
            f"rows={list(rows)} with unknown parts {sorted(strange)}, unit={unit!r}; give at least one row, with parts "
            f"among {list(BYTE_COLOURS)}, and a unit among {list(sizes)}"
        )
    totals = [sum(row.values()) / sizes[unit] for row in rows.values()]
    height = 1.3 + 0.5 * len(rows)
    with use_style():
        figure = new_figure(11, height, figure)
        axes = figure.add_axes((0.24, 0.6 / height, 0.69, 0.5 * len(rows) / height))
        for position, (row, total) in enumerate(zip(rows.values(), totals, strict=True)):
            left = 0.0
            for part in parts:
                width = row.get(part, 0) / sizes[unit]
                axes.barh(position, width, left=left, color=BYTE_COLOURS[part], height=0.72)
                if width > 0.05 * max(totals):
                    ink = text_colour(BYTE_COLOURS[part])
                    axes.text(left + width / 2, position, f"{width:.1f}", ha="center", va="center", size=10, color=ink)
                left += width
            axes.text(total + 0.008 * max(totals), position, f"{total:.1f} {unit}", va="center", size=11, weight="bold")
        axes.set(xlim=(0, 1.02 * max(totals)), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), xlabel=unit)
        axes.set_yticklabels(rows, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.grid(True, color=FAINT)
        bars = [Rectangle((0, 0), 1, 1, color=BYTE_COLOURS[part]) for part in parts]
        place = (0.235, 1 - 0.56 / height)
        figure.legend(bars, parts, ncols=len(parts), loc="center left", bbox_to_anchor=place)
        figure.text(0.012, 1 - 0.24 / height, title, size=13, weight="bold", va="center")
    return figure
