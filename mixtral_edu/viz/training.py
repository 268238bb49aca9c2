"""Figures of a training run: learning rate, loss by step, and bits per byte of each kind of text."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, INK, MUTED, as_label, new_figure, use_style

RUN_COLOURS = (ACCENT, INK, "#B7791F")
PLAIN_BYTES = 8  # bits per byte without a model


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
    span: int = 5,
    figure: Figure | None = None,
) -> Figure:
    """Plot the loss over the steps: each value as a thin line, the mean of the last `span` values as a thick one.

    Args:
        curves: for each run, its steps and the loss at each, in nats per token; at most three runs.
        title: states the finding.
        uniform: ln V, the loss of a model that gives all tokens the same probability, drawn as a dashed line.
        marks: for a step, what happened then, written next to a vertical line.
        span: number of values that the thick line averages.
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
        for (name, (steps, losses)), colour in zip(curves.items(), RUN_COLOURS, strict=False):
            axes.plot(steps, losses, color=colour, linewidth=1, alpha=0.3)
            axes.plot(steps, trailing_mean(losses, span), color=colour, linewidth=2, label=as_label(name))
        if uniform is not None:
            axes.axhline(uniform, color=MUTED, linewidth=1, linestyle="--", label=f"ln V = {uniform:.2f}")
        top = 1.08 * max([uniform or 0, *(max(losses) for _, losses in curves.values())])
        last = max(max(steps) for steps, _ in curves.values())
        for step, text in (marks or {}).items():
            axes.axvline(step, color=MUTED, linewidth=1, linestyle=":")
            axes.text(step + 0.008 * last, 0.53 * top, text, color=MUTED, size=10, va="top")
        axes.set(xlim=(0, last), ylim=(0, top), xlabel="step", ylabel="loss, nats per token")
        axes.grid(axis="y")
        below = top if uniform is None else uniform  # keeps the legend below the line of ln V
        note = f"thin: single steps, thick: mean of {span}"
        axes.legend(loc="upper right", bbox_to_anchor=(1.0, below / top), title=note, title_fontsize=10)
        axes.set_title(title)
    return figure


def trailing_mean(values: ArrayLike, span: int) -> np.ndarray:
    """Return the mean of each value and those before it: `span` values in all, fewer at the beginning.

    >>> trailing_mean([4.0, 2.0, 3.0, 1.0], span=2)
    array([4. , 3. , 2.5, 2. ])
    """
    values = np.asarray(values, dtype=float)
    return np.array([values[max(0, end - span) : end].mean() for end in range(1, len(values) + 1)])


def bits_by_domain(
    bits: Mapping[str, Sequence[float]], domains: Sequence[str], title: str, figure: Figure | None = None
) -> Figure:
    """Draw bits per byte as bars: one group per domain, one bar per model, each with its number.

    If a bar comes close to 8, a dashed line shows what plain bytes take.

    Args:
        bits: for each of at most three models, one number per domain.
        domains: names of the domains.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no models or more than three, or one does not have a number per domain.
    """
    if not 1 <= len(bits) <= len(RUN_COLOURS) or any(len(values) != len(domains) for values in bits.values()):
        lengths = {name: len(values) for name, values in bits.items()}
        raise ValueError(
            f"bits has lengths {lengths}; it must hold 1 to {len(RUN_COLOURS)} models, {len(domains)} numbers each"
        )
    thickness = 0.8 / len(bits)
    with use_style():
        figure = new_figure(9.5, 1.3 + 0.21 * (len(bits) + 1) * len(domains), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.12, 0.56 / height, 0.85, 1 - 1.02 / height))
        for place, ((name, values), colour) in enumerate(zip(bits.items(), RUN_COLOURS, strict=False)):
            rows = np.arange(len(domains)) + (place - (len(bits) - 1) / 2) * thickness
            bars = axes.barh(rows, values, height=0.88 * thickness, color=colour, label=as_label(name))
            numbers = axes.bar_label(bars, fmt="%.2f", padding=3, size=9.5, color=INK)
            plt.setp(numbers, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # hides the dashed line
        right = 1.12 * max(max(values) for values in bits.values())
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
