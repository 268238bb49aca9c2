"""Figures of classifiers: how they train, how they compare, what they take for what, and where padding stands."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, as_label, new_figure, use_style

LINES = ((ACCENT, "o", "-"), (INK, "s", "--"), ("#B7791F", "^", "-."), (MUTED, "D", ":"))
SHARE = "share of right answers"
REAL = {"facecolor": "#BFD7EE", "edgecolor": "white"}
PADDING = {"facecolor": PAPER, "edgecolor": FAINT, "hatch": "////"}


def accuracy_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    title: str,
    chance: float | Mapping[str, float] | None = None,
    spreads: Mapping[str, ArrayLike] | None = None,
    doubling: bool = False,
    figure: Figure | None = None,
) -> Figure:
    """Plot the share of right answers, one line per name.

    Args:
        curves: for each name, places on the x axis and shares from 0 to 1.
        xlabel: what the x axis counts.
        title: states the finding.
        chance: the share that guessing reaches, drawn as a dotted line; several of them by name.
        spreads: for some names, half the length of the error bar at each place.
        doubling: the x axis has one step per doubling, and a tick at each place.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no curves, or more than four.
    """
    if not 1 <= len(curves) <= len(LINES):
        raise ValueError(f"curves has {len(curves)} lines; it must have 1 to {len(LINES)}")
    levels = {} if chance is None else dict(chance) if isinstance(chance, Mapping) else {"guessing": chance}
    with use_style():
        figure = new_figure(8.0, 3.9, figure)
        axes = figure.add_axes((0.1, 0.15, 0.87, 0.73))
        for (name, (places, shares)), (colour, marker, dashes) in zip(curves.items(), LINES, strict=False):
            spread = None if spreads is None else spreads.get(name)
            axes.errorbar(
                places, shares, yerr=spread, color=colour, marker=marker, linestyle=dashes, markersize=6, capsize=4,
                elinewidth=1.2, label=as_label(name),
            )  # fmt: skip
        for name, level in levels.items():
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=":")
            axes.text(0.995, level + 0.014, f"{name}: {level:.0%}", transform=axes.get_yaxis_transform(), ha="right",
                      size=10, color=MUTED, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
        axes.set(ylim=(0, 1.03), xlabel=xlabel, ylabel=SHARE)
        ticks = sorted({float(place) for places, _ in curves.values() for place in np.asarray(places).ravel()})
        if doubling:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        if doubling or len(ticks) <= 8:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.grid(axis="y")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.2))  # above the guessing line
        axes.set_title(title)
    return figure


def loss_curves(
    panels: Mapping[str, Mapping[str, ArrayLike]],
    chosen: Sequence[int],
    guessing: float,
    title: str,
    figure: Figure | None = None,
) -> Figure:
    """Draw losses over the steps of a training, in one panel per classifier, all on one scale.

    Args:
        panels: for each classifier, a loss in nats after 0, 1, 2 … steps for each set of texts, by name.
        chosen: the step at which each classifier is stopped, marked by a vertical line.
        guessing: the loss of a classifier that reads nothing, drawn as a dotted line.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `chosen` does not have one step per panel.
    """
    if len(chosen) != len(panels):
        raise ValueError(f"chosen has {len(chosen)} steps; it must have one per panel, {len(panels)}")
    with use_style():
        figure = new_figure(8.0, 3.9, figure)
        all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.15, top=0.78, wspace=0.08)
        for axes, (name, curves), step in zip(all_axes, panels.items(), chosen, strict=True):
            for (part, losses), (colour, _, dashes) in zip(curves.items(), LINES, strict=False):
                axes.plot(losses, color=colour, linestyle=dashes, linewidth=2, label=as_label(part))
            axes.axhline(guessing, color=MUTED, linewidth=1, linestyle=":")
            axes.axvline(step, color=MUTED, linewidth=1)
            axes.text(step + 0.8, guessing - 0.04, f"stop after {step}", size=10, color=MUTED, va="top")
            axes.set(xlabel="training steps", ylim=(0, 1.1 * guessing))
            axes.set_title(name, size=11)
            axes.grid(axis="y")
        all_axes[0].set_ylabel("cross-entropy (nats)")
        all_axes[0].text(0.98, guessing + 0.02, f"guessing: {guessing:.2f}", size=10, color=MUTED, ha="right",
                         transform=all_axes[0].get_yaxis_transform())  # fmt: skip
        all_axes[-1].legend(loc="upper right", bbox_to_anchor=(1.0, 0.9))
        figure.text(0.015, 0.94, title, size=13, weight="bold", va="center")
    return figure


def confusion(counts: ArrayLike, names: Sequence[str], title: str, figure: Figure | None = None) -> Figure:
    """Draw a confusion matrix: true against predicted classes of the texts, with right answers on the diagonal.

    Args:
        counts: (C, C); rows are true classes, columns predicted ones.
        names: names of the C classes.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `counts` is not (C, C).
    """
    counts = np.asarray(counts)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"counts has shape {counts.shape}; for {list(names)} it must be ({len(names)}, {len(names)})")
    with use_style():
        figure = new_figure(8.0, 1.45 + 0.46 * len(names), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.18, 0.12 / height, 0.66, 1 - 1.32 / height))
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                ink = "white" if shares[row, column] > 0.6 else INK
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=ink, size=12)
        axes.set(xticks=range(len(names)), yticks=range(len(names)), ylabel="what it is")
        axes.set_xticklabels(names)
        axes.set_yticklabels(names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for row, share in enumerate(shares.diagonal()):
            axes.text(len(names) - 0.4, row, f"{share:.0%} right", va="center", size=11, color=MUTED)
        figure.text(0.015, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
        figure.text(0.51, 1 - 0.66 / height, "what it was taken for", size=11, va="center", ha="center", color=INK)
    return figure


def accuracy_bars(
    shares: Mapping[str, float | Sequence[float]],
    title: str,
    chance: float,
    hatched: Sequence[str] = (),
    meaning: str = "",
    figure: Figure | None = None,
) -> Figure:
    """Draw the share of right answers as one bar per method, with a line for guessing.

    Args:
        shares: share of right answers from 0 to 1, by name. Of several, the bar is the mean, and each is a dot.
        title: states the finding.
        chance: the share that guessing reaches.
        hatched: methods whose bars are pale and hatched.
        meaning: what hatching means, for the legend.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        top = 0.9 if meaning else 0.6  # inches for the title, and the legend
        figure = new_figure(8.0, 0.7 + top + 0.42 * len(shares), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.36, 0.6 / height, 0.6, 1 - (0.6 + top) / height))
        for row, (name, share) in enumerate(shares.items()):
            runs = np.atleast_1d(share)
            pale = name in hatched
            axes.barh(row, runs.mean(), color=PAPER if pale else ACCENT, edgecolor=ACCENT, height=0.66,
                      hatch="///" if pale else None)  # fmt: skip
            if len(runs) > 1:
                axes.plot(runs, np.full(len(runs), row), "o", color="white", markeredgecolor=INK, markersize=5.5)
            axes.text(runs.max() + 0.025, row, f"{runs.mean():.0%}", va="center", size=11)
        axes.axvline(chance, color=INK, linewidth=1, linestyle="--")
        axes.set(yticks=range(len(shares)), xlim=(0, 1.08), ylim=(len(shares) - 0.5, -0.5))
        axes.set_xlabel(f"{SHARE} (dashed: guessing)")
        axes.set_yticklabels(shares)
        axes.tick_params(axis="y", length=0)
        if meaning:
            axes.legend(handles=[Rectangle((0, 0), 1, 1, facecolor=PAPER, edgecolor=ACCENT, hatch="///")],
                        labels=[as_label(meaning)], loc="lower right", bbox_to_anchor=(1.03, 0.98))  # fmt: skip
        figure.text(0.015, 1 - 0.27 / height, title, size=13, weight="bold", va="center")
    return figure


def padded_rows(masks: Mapping[str, ArrayLike], title: str, figure: Figure | None = None) -> Figure:
    """Draw padded batches side by side: which columns are real, where each row ends, and what the last column holds.

    Args:
        masks: for each batch, by name, (B, T): 1 for real tokens and 0 for padding.
        title: states the finding.
        figure: a figure to draw into instead of a new one.
    """
    with use_style():
        rows = max(len(np.asarray(mask)) for mask in masks.values())
        figure = new_figure(8.0, 1.75 + 0.32 * rows, figure)
        height = figure.get_figheight()
        all_axes = figure.subplots(1, len(masks), squeeze=False)[0]
        figure.subplots_adjust(left=0.03, right=0.97, bottom=0.72 / height, top=1 - 0.82 / height, wspace=0.1)
        for axes, (name, mask) in zip(all_axes, masks.items(), strict=True):
            mask = np.asarray(mask)
            for row, column in np.ndindex(*mask.shape):
                axes.add_patch(Rectangle((column, row), 1, 1, **(REAL if mask[row, column] else PADDING)))
            ends = [np.flatnonzero(row)[-1] for row in mask]
            places = np.arange(len(mask)) + 0.5
            axes.plot(np.array(ends) + 0.5, places, "o", color=ACCENT, markersize=9, label="last real token")
            axes.plot(np.full(len(mask), mask.shape[1] - 0.5), places, "x", color=INK, markersize=8,
                      markeredgewidth=2, label="last column")  # fmt: skip
            axes.set(xlim=(0, mask.shape[1]), ylim=(len(mask), 0), xticks=[], yticks=[])
            axes.set_title(name, size=11)
            for spine in axes.spines.values():
                spine.set_visible(False)
        marks, names = all_axes[0].get_legend_handles_labels()
        marks += [Rectangle((0, 0), 1, 1, **REAL), Rectangle((0, 0), 1, 1, **PADDING)]
        figure.legend(marks, [*names, "real token", "padding"], loc="lower center", ncols=4)
        figure.text(0.015, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
    return figure
