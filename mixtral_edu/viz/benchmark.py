"""Benchmark results as figures: ratios to a peer with their spread, and how close each row comes to its floor."""

from collections.abc import Callable, Sequence
from itertools import groupby, product
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mixtral_edu.bench.results import Result, amount
from mixtral_edu.bench.tasks import Task
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, new_figure, use_style

_ROW, _ABOVE, _BELOW = 0.25, 0.75, 0.62  # inches
_WAYS = {"eager": INK, "sdpa": "#D55E00", "flash_attention_2": ACCENT}
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def ratios_and_floors(results: Sequence[Result], title: str | None = None, figure: Figure | None = None) -> Figure:
    """Draw two panels, one line per row, grouped by task: the peer's result over ours, and the share of the floor.

    A dot is the median of the paired ratios; the line through it runs from quartile to quartile. Filled dots, right
    of 1, are rows in which this package is faster or takes less memory.

    Args:
        results: what `mixtral_edu.bench.command.benchmark` returns.
        title: replaces the computed title, which counts those rows.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `results` is empty.
    """
    if not results:
        raise ValueError("results is empty: give at least one row")
    tasks = list(dict.fromkeys(result.task for result in results))
    results = sorted(results, key=lambda result: tasks.index(result.task))  # rows measured again come last in a file
    heights, labels = _places(results)
    height = _ABOVE + _BELOW + _ROW * (len(results) + len(labels))
    with use_style():
        figure = new_figure(11, height, figure)
        bottom, tall = _BELOW / height, 1 - (_ABOVE + _BELOW) / height
        ratios, shares = figure.add_axes((0.33, bottom, 0.36, tall)), figure.add_axes((0.73, bottom, 0.245, tall))
        for axes in (ratios, shares):
            axes.set(ylim=(len(results) + len(labels) - 0.4, -0.6), yticks=[])
            axes.spines["left"].set_visible(False)
            axes.xaxis.grid(True, color=FAINT)
        _draw_ratios(ratios, results, heights)
        _draw_shares(shares, results, heights)
        beside = ratios.get_yaxis_transform()  # x in widths of the panel, y in rows
        for task, y in labels.items():
            ratios.text(-0.9, y, task, transform=beside, va="center", weight="bold")
        for result, y in zip(results, heights, strict=True):
            ratios.text(-0.86, y, result.variant, transform=beside, va="center", size=10.5, color=MUTED)
            words = amount(median(result.ours), result.unit)
            ratios.text(-0.03, y, words, transform=beside, va="center", ha="right", size=10.5, color=MUTED)
            if result.ratio is not None:
                ratios.text(1.015, y, f"{result.ratio.median:.2f}", transform=beside, va="center", size=10)
        place = {"size": 13, "weight": "bold", "va": "center"}
        figure.text(0.012, 1 - 0.3 / height, _title(results) if title is None else title, **place)
    return figure


def attention_by_length(
    results: Sequence[Result], dtype: str, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Plot the time of attention alone, and its memory if measured, against text length: one line per backend.

    Solid lines have no window, dashed lines have one, and dotted lines are floors. Both axes are logarithmic.

    Args:
        results: results of the tasks `attention-T-W`; others are skipped.
        dtype: the dtype as the rows spell it, such as "bfloat16".
        title: replaces the computed title, which says how many times as fast as "eager" the fastest backend is at the
            greatest length at which both were measured.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `results` holds no such rows.
    """
    rows = [(Task.parse(r.task), r.variant.split()[0], r) for r in results if r.variant.endswith(f" {dtype}")]
    rows = sorted((row for row in rows if row[0].kind == "attention"), key=lambda row: row[0].tokens)
    if not rows:
        raise ValueError(f"results holds no attention in {dtype}; run the benchmark with tasks=['attention']")
    has_memory = any(result.peak_bytes is not None for *_, result in rows)
    lengths = sorted({task.tokens for task, *_ in rows})
    with use_style():
        figure = new_figure(11, 4.4, figure)
        panels = [(figure.add_axes((0.075, 0.22, 0.32 if has_memory else 0.66, 0.63)), "seconds")]
        if has_memory:
            panels.append((figure.add_axes((0.475, 0.22, 0.275, 0.63)), "bytes beside the inputs"))
        for axes, label in panels:
            _draw_ways(axes, rows, (lambda r: median(r.ours)) if label == "seconds" else (lambda r: r.peak_bytes))
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(lengths, [f"{tokens:,}" for tokens in lengths], rotation=30 if len(lengths) > 4 else 0)
            axes.minorticks_off()
            axes.grid(axis="y")
            axes.set(xlabel="tokens T", ylabel=label)
        times = panels[0][0]
        for windowed, line in ((False, ":"), (True, (0, (1, 3)))):
            floors = {task.tokens: result.floor for task, _, result in rows if task.has_window == windowed}
            if floors:
                name = "floor, window" if windowed else "floor"
                times.plot(floors.keys(), floors.values(), linestyle=line, color=MUTED, label=name)
        figure.legend(*times.get_legend_handles_labels(), loc="center right", bbox_to_anchor=(0.995, 0.5))
        words = _attention_title(rows, dtype) if title is None else title
        figure.text(0.012, 0.945, words, size=13, weight="bold", va="center")
    return figure


def _draw_ways(
    axes: Axes, rows: Sequence[tuple[Task, str, Result]], quantity: Callable[[Result], float | None]
) -> None:
    for (way, colour), (windowed, line) in product(_WAYS.items(), ((False, "-"), (True, "--"))):
        points = [(task.tokens, quantity(result)) for task, name, result in rows
                  if name == way and task.has_window == windowed]  # fmt: skip
        if points:
            label = f"{way}, window" if windowed else way
            axes.plot(*zip(*points, strict=True), line, color=colour, marker="o", markersize=5, label=label)


def _attention_title(rows: Sequence[tuple[Task, str, Result]], dtype: str) -> str:
    faster = [(task.tokens, result.ratio.median, way) for task, way, result in rows
              if result.ratio is not None and not task.has_window]  # fmt: skip
    if not faster:
        return f"Attention alone in {dtype}"
    tokens, ratio, way = max(faster)
    return f"{way} is {ratio:.1f} times as fast as eager at {tokens:,} tokens, in {dtype}"


def _places(results: Sequence[Result]) -> tuple[list[int], dict[str, int]]:
    """Return the height of each row, and of each task's name above its rows."""
    heights, labels, y = [], {}, 0
    for task, rows in groupby(results, key=lambda result: result.task):
        labels.setdefault(task, y)
        for _ in rows:
            y += 1
            heights.append(y)
        y += 1
    return heights, labels


def _draw_ratios(axes: Axes, results: Sequence[Result], heights: Sequence[int]) -> None:
    axes.axvline(1, color=INK, linewidth=1.2)
    ratios = [(y, result.ratio) for result, y in zip(results, heights, strict=True) if result.ratio is not None]
    for y, ratio in ratios:
        axes.plot([ratio.low, ratio.high], [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
        fill = ACCENT if ratio.median > 1 else "white"
        axes.plot(ratio.median, y, "o", color=ACCENT, markerfacecolor=fill, markersize=6.5)
    low = min([0.5, *(0.9 * ratio.low for _, ratio in ratios)])
    high = max([2.0, *(1.1 * ratio.high for _, ratio in ratios)])
    axes.set(xscale="log", xlim=(low, high), xlabel=f"{_peer(results)} / ours, logarithmic")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _draw_shares(axes: Axes, results: Sequence[Result], heights: Sequence[int]) -> None:
    for result, y in zip(results, heights, strict=True):
        if result.share_of_floor is not None:
            share = 100 * result.share_of_floor
            axes.barh(y, share, height=0.62, color=ACCENT)
            words = f"{share:.0f} %" if share >= 0.5 else "< 1 %"
            axes.text(share + 1.5, y, words, va="center", size=10)
    axes.set(xlim=(0, 118), xticks=range(0, 101, 25), xlabel="% of the floor reached")


def _peer(results: Sequence[Result]) -> str:
    return next((result.against for result in results if result.against), "theirs")


def _title(results: Sequence[Result]) -> str:
    ratios = [result.ratio.median for result in results if result.ratio is not None]
    if ratios:
        ahead = sum(ratio > 1 for ratio in ratios)
        return f"Less time or memory than {_peer(results)} in {ahead} of {len(ratios)} rows"
    shares = [result.share_of_floor for result in results if result.share_of_floor is not None]
    return f"At best {max(shares):.0%} of the floor" if shares else "Times without a floor"
