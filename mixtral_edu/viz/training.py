"""Figures of a training run: its batches and rates, its loss by step, what each part is worth, bits per byte."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, INK, MUTED, PAPER, as_label, new_figure, use_style

RUN_COLOURS = (ACCENT, INK, "#B7791F")
RUN_LINES = ("-", (0, (5, 2)), (0, (1, 1.2)))
SETTING_COLOURS = (ACCENT, "#B7791F", "#8C2F39", INK)
SETTING_MARKERS = ("o", "s", "^", "D")
PLAIN_BYTES = 8  # bits per byte without a model


def packed_rows(rows: ArrayLike, bos: int, eos: int, title: str, figure: Figure | None = None) -> Figure:
    """Draw the rows of a batch as strips, one field per document; hatched is a document that the row's end cuts off.

    Args:
        rows: (B, T) token ids.
        bos: the id that opens a document.
        eos: the id that closes it.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `rows` is not (B, T), or a row does not begin with `bos`.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or (rows[:, 0] != bos).any():
        raise ValueError(f"rows has shape {rows.shape}; it must be (B, T), each row beginning with bos={bos}")
    length = rows.shape[1]
    with use_style():
        figure = new_figure(9.5, 1.3 + 0.42 * len(rows), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.075, 0.6 / height, 0.905, 1 - 1.1 / height))
        for number, row in enumerate(rows):
            starts = [*np.flatnonzero(row == bos), length]
            for place, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
                whole = row[end - 1] == eos
                colour = (ACCENT, "#9CC3EB")[place % 2]
                look = {"facecolor": colour, "edgecolor": "white"} if whole else {
                    "facecolor": PAPER, "edgecolor": MUTED, "hatch": "///"
                }  # fmt: skip
                axes.add_patch(Rectangle((start, number - 0.38), end - start, 0.76, **look))
                if end - start > length // 12:
                    ink = "white" if whole and not place % 2 else INK
                    box = None if whole else {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
                    axes.text(
                        (start + end) / 2, number, str(end - start), ha="center", va="center", color=ink, bbox=box
                    )
        axes.set(xlim=(0, length), ylim=(len(rows) - 0.5, -0.5), xlabel="position in the row, tokens")
        axes.set_yticks(range(len(rows)), [f"row {number}" for number in range(len(rows))])
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
    return figure


def learning_rates(rates: ArrayLike, warmup_steps: int, title: str, figure: Figure | None = None) -> Figure:
    """Plot the learning rate of each step, with the warm-up shaded.

    Args:
        rates: one per step, from step 0 on.
        warmup_steps: number of warm-up steps, in which the rate rises.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `rates` is not one row of more than `warmup_steps` values.
    """
    rates = np.asarray(rates, dtype=float)
    if rates.ndim != 1 or len(rates) <= warmup_steps:
        raise ValueError(f"rates has shape {rates.shape}; it must be one row, longer than warmup_steps={warmup_steps}")
    with use_style():
        figure = new_figure(9.5, 3.1, figure)
        axes = figure.add_axes((0.09, 0.19, 0.88, 0.65))
        axes.axvspan(0, warmup_steps, color=ACCENT, alpha=0.12, linewidth=0)
        axes.plot(rates, color=ACCENT, linewidth=2)
        axes.text(warmup_steps + 0.01 * len(rates), 0.12 * rates.max(), "← warm-up", color=MUTED, va="center")
        axes.set(xlim=(0, len(rates) - 1), ylim=(0, 1.08 * rates.max()), xlabel="step", ylabel="learning rate")
        axes.grid(axis="y")
        axes.set_title(title)
    return figure


def learning_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    uniform: float | None = None,
    marks: Mapping[int, str] | None = None,
    levels: Mapping[str, float] | None = None,
    span: int = 5,
    figure: Figure | None = None,
) -> Figure:
    """Plot the loss over the steps: each value as a thin line, the mean of the `span` values around it as a thick one.

    Args:
        curves: for each run, its steps and the loss at each, in nats per token; at most three runs.
        title: states the finding.
        uniform: ln V, the loss of a model that gives all tokens the same probability, drawn as a dashed line.
        marks: for a step, what happened then, written next to a vertical line.
        levels: for what stands above a dotted horizontal line, the loss where it is drawn.
        span: number of values that the thick line averages, an odd number; 1 for losses that are means already.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no runs or more than three, or the steps and losses of one differ in number.
    """
    if not 1 <= len(curves) <= len(RUN_COLOURS):
        raise ValueError(f"curves has {len(curves)} runs; it must have 1 to {len(RUN_COLOURS)}")
    for name, (steps, losses) in curves.items():
        if len(steps) != len(losses):
            raise ValueError(
                f"curves[{name!r}] has {len(steps)} steps and {len(losses)} losses; give one loss per step"
            )
    with use_style():
        figure = new_figure(9.5, 3.7, figure)
        axes = figure.add_axes((0.08, 0.155, 0.89, 0.715))
        for (name, (steps, losses)), colour, line in zip(curves.items(), RUN_COLOURS, RUN_LINES, strict=False):
            if span > 1:
                axes.plot(steps, losses, color=colour, linewidth=1, alpha=0.3)
            means = centred_mean(losses, span)
            axes.plot(steps, means, color=colour, linewidth=2, linestyle=line, label=as_label(name))
        if uniform is not None:
            axes.axhline(uniform, color=MUTED, linewidth=1, linestyle="--", label=f"ln V = {uniform:.2f}")
        top = 1.08 * max([uniform or 0, *(max(losses) for _, losses in curves.values())])
        last = max(max(steps) for steps, _ in curves.values())
        for step, text in (marks or {}).items():
            axes.axvline(step, color=MUTED, linewidth=1, linestyle=":")
            axes.text(step + 0.008 * last, 0.53 * top, text, color=MUTED, size=10, va="top")
        for text, loss in (levels or {}).items():
            axes.axhline(loss, color=MUTED, linewidth=1.4, linestyle=":")
            axes.text(0.63 * last, loss + 0.02 * top, text, color=MUTED, size=10, ha="right")
        axes.set(xlim=(0, last), ylim=(0, top), xlabel="step", ylabel="loss, nats per token")
        axes.grid(axis="y")
        note = f"thin: single values, thick: mean of {span}" if span > 1 else None
        below = top if uniform is None else uniform  # keeps the legend below the line of ln V
        falls_little = max(losses[-1] for _, losses in curves.values()) > 0.4 * top
        place = {"loc": "lower left"} if falls_little else {"loc": "upper right", "bbox_to_anchor": (1.0, below / top)}
        axes.legend(**place, title=note, title_fontsize=10, frameon=True, framealpha=1, edgecolor="white")
        axes.set_title(title)
    return figure


def centred_mean(values: ArrayLike, span: int) -> np.ndarray:
    """Return the mean of each value and its neighbours, as many on each side: `span` values in all, fewer at the ends.

    A mean that only looks back would lie above a falling curve.

    >>> centred_mean([4.0, 2.0, 3.0, 1.0], span=3)
    array([4., 3., 2., 1.])
    """
    values = np.asarray(values, dtype=float)
    reach = [min(span // 2, place, len(values) - 1 - place) for place in range(len(values))]
    return np.array([values[place - side : place + side + 1].mean() for place, side in enumerate(reach)])


def gradient_norms(norms: ArrayLike, bound: float, title: str, figure: Figure | None = None) -> Figure:
    """Plot the norm of each step's gradient on a log scale: filled dots above the bound are clipped down to it.

    Args:
        norms: one per step, before clipping, all above 0.
        bound: the largest norm that clipping leaves.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `norms` is not one row of numbers above 0.
    """
    norms = np.asarray(norms, dtype=float)
    if norms.ndim != 1 or not (norms > 0).all():
        raise ValueError(f"norms has shape {norms.shape}; it must be one row of numbers above 0")
    steps, clipped = np.arange(len(norms)), norms > bound
    with use_style():
        figure = new_figure(9.5, 3.4, figure)
        axes = figure.add_axes((0.08, 0.17, 0.89, 0.69))
        axes.vlines(steps[clipped], bound, norms[clipped], color=ACCENT, linewidth=1, alpha=0.5)
        axes.plot(steps[clipped], norms[clipped], "o", color=ACCENT, markersize=4.5, label="clipped to the bound")
        axes.plot(steps[~clipped], norms[~clipped], "o", color=MUTED, markerfacecolor="white", markersize=4.5,
                  label="left as it is")  # fmt: skip
        axes.axhline(bound, color=INK, linewidth=1.2, linestyle="--", label=f"bound: {bound:g}")
        axes.set_yscale("log")
        low, high = 0.8 * min(bound, norms.min()), 1.25 * max(bound, norms.max())
        ticks = [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlim=(-1, len(norms)), ylim=(low, high), xlabel="step", ylabel="norm of the gradient")
        axes.grid(axis="y")
        axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="white")
        axes.set_title(title)
    return figure


def cost_of_parts(
    losses: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    title: str,
    xlabel: str,
    figure: Figure | None = None,
) -> Figure:
    """Plot what a run ends with when one part is changed: a dot per seed, a bar at their mean, a row per change.

    The first row is the unchanged run; a vertical line goes down from its mean.

    Args:
        losses: for each change, one loss per seed; the first is the unchanged run.
        labels: for each row, what is written at its end, such as the distance from the unchanged run.
        title: states the finding.
        xlabel: what the losses are.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are fewer than two rows, one is empty, or there are not as many labels.
    """
    lengths = [len(row) for row in losses.values()]
    if len(losses) < 2 or 0 in lengths or len(labels) != len(losses):
        raise ValueError(f"losses has lengths {lengths} and labels {len(labels)}; give two rows or more, none empty")
    means = [float(np.mean(row)) for row in losses.values()]
    largest = max(max(row) for row in losses.values())
    with use_style():
        figure = new_figure(9.5, 1.25 + 0.36 * len(losses), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.235, 0.6 / height, 0.74, 1 - 1.1 / height))
        axes.axvline(means[0], color=MUTED, linewidth=1.2, linestyle="--")
        for number, (row, mean) in enumerate(zip(losses.values(), means, strict=True)):
            axes.plot(row, [number] * len(row), "o", color=ACCENT, markersize=7, alpha=0.65, markeredgewidth=0)
            axes.plot([mean, mean], [number - 0.3, number + 0.3], color=INK, linewidth=2)
            weight = "bold" if number == 0 else "normal"
            axes.text(max(row) + 0.02 * largest, number, labels[number], va="center", weight=weight)
        axes.set(xlim=(0, 1.12 * largest), ylim=(len(losses) - 0.5, -0.5), xlabel=xlabel)
        axes.set_yticks(range(len(losses)), [as_label(name) for name in losses])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        keys = [
            Line2D([], [], color=ACCENT, marker="o", linestyle="", markersize=7, alpha=0.65, label="one seed"),
            Line2D([], [], color=INK, marker="|", linestyle="", markersize=12, markeredgewidth=2, label="mean"),
        ]
        axes.legend(handles=keys, loc="upper right", frameon=True, framealpha=1, edgecolor="white")
        axes.set_title(title)
    return figure


def loss_by_rate(
    losses: Mapping[str, Mapping[float, Sequence[float]]], title: str, ylabel: str, figure: Figure | None = None
) -> Figure:
    """Plot what runs end with against their peak learning rate: a line through the means, a mark per seed.

    Args:
        losses: for each of at most four settings and each peak rate, one loss per seed.
        title: states the finding.
        ylabel: what the losses are.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no settings or more than four.
    """
    if not 1 <= len(losses) <= len(SETTING_COLOURS):
        raise ValueError(f"losses has {len(losses)} settings; it must have 1 to {len(SETTING_COLOURS)}")
    peaks = sorted({peak for by_peak in losses.values() for peak in by_peak})
    with use_style():
        figure = new_figure(9.5, 3.9, figure)
        axes = figure.add_axes((0.08, 0.155, 0.89, 0.72))
        for (name, by_peak), colour, marker in zip(losses.items(), SETTING_COLOURS, SETTING_MARKERS, strict=False):
            here = sorted(by_peak)
            axes.plot(here, [np.mean(by_peak[peak]) for peak in here], color=colour, linewidth=2, marker=marker,
                      markersize=8, label=as_label(name))  # fmt: skip
            for peak in here:
                axes.plot([peak] * len(by_peak[peak]), by_peak[peak], linestyle="", marker=marker, markersize=5,
                          color=colour, alpha=0.5)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(peaks, [f"{peak:g}" for peak in peaks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(xlabel="peak learning rate", ylabel=ylabel)
        axes.grid(axis="y")
        axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="white")
        axes.set_title(title)
    return figure


def noise_by_rows(rows: Sequence[int], noise: Sequence[float], title: str, figure: Figure | None = None) -> Figure:
    """Plot a gradient's noise against the number of rows that it is the mean of, beside a line that falls as 1/√B.

    Args:
        rows: B, the numbers of rows.
        noise: for each, the distance to the gradient of many rows, as a share of its length.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `rows` and `noise` differ in length.
    """
    if len(rows) != len(noise):
        raise ValueError(f"rows has length {len(rows)} and noise {len(noise)}; give one noise for each number of rows")
    with use_style():
        figure = new_figure(9.5, 3.3, figure)
        axes = figure.add_axes((0.08, 0.18, 0.89, 0.68))
        law = noise[0] * np.sqrt(rows[0] / np.asarray(rows, dtype=float))
        axes.plot(rows, law, color=MUTED, linestyle="--", label="falls as 1/√B")
        axes.plot(rows, noise, "o", color=ACCENT, markersize=8, label="measured")
        for place, value in zip(rows, noise, strict=True):
            axes.text(place * 1.05, value * 1.06, f"{value:.2f}", color=INK, size=10.5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(rows, [str(number) for number in rows])
        axes.minorticks_off()
        axes.set(xlim=(rows[0] * 0.87, rows[-1] * 1.25), ylim=(0, 1.25 * max(noise)))
        axes.set(xlabel="rows per batch, B", ylabel="noise, share of the gradient")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        axes.set_title(title)
    return figure


def bits_by_domain(
    bits: Mapping[str, Sequence[float]],
    domains: Sequence[str],
    title: str,
    uniform: Sequence[float] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw bits per byte as bars: one group per domain, one bar per model, each with its number.

    If a bar comes close to 8, a dashed line shows what plain bytes take.

    Args:
        bits: for each of at most three models, one number per domain.
        domains: names of the domains.
        title: states the finding.
        uniform: for each domain, what a model needs that gives all tokens the same probability; a line across its bars.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no models or more than three, or one does not have a number per domain.
    """
    if not 1 <= len(bits) <= len(RUN_COLOURS) or any(len(values) != len(domains) for values in bits.values()):
        lengths = {name: len(values) for name, values in bits.items()}
        raise ValueError(
            f"bits has lengths {lengths}; it must hold 1 to {len(RUN_COLOURS)} models, {len(domains)} numbers each"
        )
    if uniform is not None and len(uniform) != len(domains):
        raise ValueError(f"uniform has length {len(uniform)}; it must hold {len(domains)} numbers, one per domain")
    thickness = 0.8 / len(bits)
    with use_style():
        figure = new_figure(9.5, 1.3 + 0.21 * (len(bits) + 1) * len(domains), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.15, 0.56 / height, 0.82, 1 - 1.02 / height))
        for place, ((name, values), colour) in enumerate(zip(bits.items(), RUN_COLOURS, strict=False)):
            rows = np.arange(len(domains)) + (place - (len(bits) - 1) / 2) * thickness
            bars = axes.barh(rows, values, height=0.88 * thickness, color=colour, label=as_label(name))
            numbers = axes.bar_label(bars, fmt="%.2f", padding=3, size=9.5, color=INK)
            plt.setp(numbers, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=5)  # hides the lines
        right = 1.12 * max(max(values) for values in [*bits.values(), uniform or [0.0]])
        if uniform is not None:
            ends = np.arange(len(domains))
            axes.vlines(uniform, ends - 0.45, ends + 0.45, color="white", linewidth=4)
            axes.vlines(
                uniform, ends - 0.45, ends + 0.45, color="#8C2F39", linewidth=2, label="all tokens equally likely"
            )
        if right > PLAIN_BYTES:
            axes.axvline(PLAIN_BYTES, color=INK, linewidth=1.2, linestyle="--", label="plain bytes: 8")
        axes.set(xlim=(0, right), xlabel="bits per byte")
        axes.set_yticks(range(len(domains)), domains)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="white")  # hides the dashed line
        axes.set_title(title)
    return figure
