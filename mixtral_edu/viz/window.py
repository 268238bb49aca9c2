"""What a sliding window saves and costs, and how far a stack of layers reaches through it."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, as_label, new_figure, use_style


def pair_counts(window: int, longest: int, title: str | None = None, figure: Figure | None = None) -> Figure:
    """Plot the query-key pairs that attention computes for a text of T tokens, with and without a window.

    Args:
        window: W.
        longest: T at the right edge.
        title: replaces the computed title, which compares the two at the right edge.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `window` is below 1, or not below `longest`.
    """
    if not 1 <= window < longest:
        raise ValueError(f"window={window}; it must be at least 1 and below longest={longest}")
    lengths = np.linspace(0, longest, 257)
    dense = lengths * (lengths + 1) / 2
    windowed = np.where(lengths <= window, dense, window * lengths - window * (window - 1) / 2)
    if title is None:
        title = f"At T = {longest:,} a window of {window:,} leaves {windowed[-1] / dense[-1]:.0%} of the pairs"
    with use_style():
        figure = new_figure(8.5, 3.6, figure)
        axes = figure.add_axes((0.1, 0.16, 0.62, 0.68))
        for counts, colour, line, name in (
            (dense, MUTED, "--", "no window:\nT (T + 1) / 2"),
            (windowed, ACCENT, "-", "window:\nalmost T · W"),
        ):
            axes.plot(lengths, counts / 1e6, color=colour, linestyle=line, linewidth=2)
            axes.text(1.02 * longest, counts[-1] / 1e6, name, color=colour, va="center")
        axes.axvline(window, color=INK, linewidth=0.8, linestyle=":")
        axes.text(window + 0.01 * longest, 0.9 * dense[-1] / 1e6, f"T = W = {window:,}", size=10.5)
        axes.set(xlim=(0, longest), ylim=(0, None), xlabel="length of the text, T", ylabel="pairs, in millions")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(title)
    return figure


def receptive_field(
    window: int, num_layers: int, num_tokens: int, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the receptive field: all paths by which tokens can influence the last one, layer by layer.

    Args:
        window: W.
        num_layers: L.
        num_tokens: T; the query is the last of them.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a size is below 1.
    """
    for name, size in (("window", window), ("num_layers", num_layers), ("num_tokens", num_tokens)):
        if size < 1:
            raise ValueError(f"{name}={size}; it must be at least 1")
    last, step = num_tokens - 1, window - 1
    if title is None:
        title = f"Each layer reaches {step} further back: {num_layers} layers reach {num_layers * step} tokens back"
    with use_style():
        figure = new_figure(10, 1.5 + 0.75 * num_layers, figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.1, 0.62 / height, 0.72, 1 - 1.1 / height))
        for layer in range(num_layers + 1):
            oldest = max(0, last - (num_layers - layer) * step)
            for position in range(num_tokens):
                inside = position >= oldest
                axes.plot(position, layer, "o", markersize=11, color=ACCENT if inside else PAPER, markeredgecolor=MUTED)
                if inside and layer:
                    for key in range(max(0, position - step), position + 1):
                        edge = position == oldest and key == position - step
                        look = {"color": INK, "linewidth": 2.2} if edge else {"color": FAINT, "linewidth": 0.9}
                        axes.plot((key, position), (layer - 1, layer), zorder=0.5 if edge else 0, **look)
            note = "the query itself" if layer == num_layers else f"{last - oldest} back: {last - oldest + 1} tokens"
            axes.text(1.02, layer, note, va="center", size=10.5, transform=axes.get_yaxis_transform())
        names = ["embedding", *(f"layer {layer}" for layer in range(1, num_layers + 1))]
        axes.set(yticks=range(num_layers + 1), yticklabels=names, xticks=range(num_tokens), xlabel="position")
        axes.set(xlim=(-0.6, num_tokens - 0.4), ylim=(-0.4, num_layers + 0.4))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(title)
    return figure


def accuracy_by_position(
    accuracies: Mapping[int, ArrayLike],
    window: int,
    chance: float,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot how often each position recalls the symbol at position 0, for models of several depths.

    Args:
        accuracies: for each number of layers L, (T,) shares from 0 to 1.
        window: W of all models; a dotted line marks each model's reach L · (W − 1).
        chance: the share that guessing reaches.
        title: replaces the computed title, which names each curve's last position closer to 1 than to chance.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `accuracies` is empty, or its lengths differ.
    """
    _check_lengths("accuracies", accuracies)
    if title is None:
        half_way = (1 + chance) / 2
        known = [
            max(np.flatnonzero(np.asarray(values) > half_way), default="nowhere") for values in accuracies.values()
        ]
        title = f"The first symbol is known up to position {', '.join(map(str, known))}, and not one further"
    with use_style():
        figure = new_figure(9.5, 4, figure)
        axes = figure.add_axes((0.08, 0.15, 0.89, 0.7))
        for (layers, values), colour in zip(accuracies.items(), _shades(len(accuracies)), strict=True):
            reach = layers * (window - 1)
            axes.plot(values, ".-", color=colour, linewidth=1.8, markersize=7)
            axes.axvline(reach, color=colour, linewidth=1, linestyle=":")
            look = {"color": colour, "weight": "bold", "rotation": 90, "ha": "right", "va": "center"}
            axes.text(reach - 0.25, 0.6, f"L = {layers}: {reach}", **look)
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle="--")
        axes.text(0, chance + 0.03, f"chance: {chance:.3g}", color=MUTED, size=10.5)
        axes.set(xlabel="position i of the answer", ylabel="share of right answers", ylim=(0, 1.05), xlim=(-0.5, None))
        axes.set_title(title)
    return figure


def influence_by_distance(
    influences: Mapping[int, ArrayLike], window: int, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Plot how much a token i − j back influences a layer's output at position i: a panel for each number of layers.

    Args:
        influences: for each number of layers passed, (T,) numbers from 0 up, the query's own position first.
        window: W; the part beyond the reach L · (W − 1) is grey.
        title: replaces the computed title, which names the farthest token with any influence.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `influences` is empty, or its lengths differ.
    """
    _check_lengths("influences", influences)
    if title is None:
        farthest = max(np.flatnonzero(influences[max(influences)]), default=0)
        title = f"{farthest} tokens back influence ends, and is small long before"
    curves = {layers: np.asarray(values, dtype=float) for layers, values in influences.items()}
    positive = np.concatenate([values[values > 0] for values in curves.values()])
    lowest, highest = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    with use_style():
        figure = new_figure(9.5, 1.3 + 1.15 * len(curves), figure)
        height = figure.get_figheight()
        panels = figure.subplots(len(curves), sharex=True, sharey=True, squeeze=False)[:, 0]
        figure.subplots_adjust(left=0.09, right=0.985, top=1 - 0.5 / height, bottom=0.6 / height, hspace=0.18)
        for (layers, values), axes in zip(curves.items(), panels, strict=True):
            reach = layers * (window - 1)
            axes.semilogy(np.where(values > 0, values, np.nan), color=ACCENT, linewidth=1.5)
            axes.axvspan(reach + 0.5, max(len(values), reach + 1), color=FAINT, alpha=0.5, linewidth=0)
            axes.axvline(reach + 0.5, color=INK, linewidth=1, linestyle=":")
            inside = reach < 0.7 * len(values)
            look = {"size": 10.5, "ha": "left" if inside else "right", "va": "top"}
            note = f"after {layers} layer{'s' * (layers > 1)}: ends {reach} back"
            place = reach + (0.012 if inside else -0.012) * len(values)
            axes.text(place, 0.93, note, transform=axes.get_xaxis_transform(), **look)
            axes.set(xlim=(0, len(values)), ylim=(lowest / 5, highest * 20))
            axes.tick_params(axis="y", which="minor", left=False)
        panels[-1].set_xlabel("distance i − j, in tokens")
        figure.text(0.012, 0.52, "influence (gradient, log scale)", rotation=90, ha="left", va="center")
        panels[0].set_title(title)
    return figure


def cost_by_window(costs: Mapping[int, ArrayLike], trained: int, title: str, figure: Figure | None = None) -> Figure:
    """Plot what each window costs a model that was trained with another: a dot for each text, mean and standard error.

    Args:
        costs: for each window, (texts,) differences in nats per token to the trained window.
        trained: W of the training; a dotted line marks it.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `costs` is empty, or its lengths differ.
    """
    _check_lengths("costs", costs)
    with use_style():
        figure = new_figure(9.5, 4, figure)
        axes = figure.add_axes((0.09, 0.15, 0.89, 0.71))
        by_text = {window: np.asarray(values, dtype=float) for window, values in costs.items()}
        means = {window: values.mean() for window, values in by_text.items()}
        errors = [values.std(ddof=1) / len(values) ** 0.5 for values in by_text.values()]
        for window, values in by_text.items():
            dots = axes.plot([window * 1.07] * len(values), values, "o", color=MUTED, markersize=4, fillstyle="none")
        axes.errorbar(list(means), list(means.values()), errors, color=ACCENT, marker="s", capsize=5, linewidth=1.8,
                      markersize=6, label="mean and standard error")  # fmt: skip
        dots[0].set_label("each text")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axvline(trained, color=INK, linewidth=1, linestyle=":")
        axes.text(0.975 * trained, 0.97, f"trained with W = {trained}", size=10.5, ha="right", va="top",
                  transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xticks(list(means))
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set(xlabel="window W, in tokens (log scale)", ylabel="cost, in nats per token")
        axes.legend(loc="upper center")
        axes.set_title(title)
    return figure


def disagreement(
    positions: Sequence[int],
    differences: Mapping[str, ArrayLike],
    window: int,
    title: str,
    figure: Figure | None = None,
) -> Figure:
    """Plot how far two computations of the same logits differ, by position, on a log scale.

    Args:
        positions: (T,) positions.
        differences: for each name, (T,) numbers from 0 up.
        window: W; a dotted line marks the first position that no longer sees position 0.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `differences` is empty, or a curve does not have one number per position.
    """
    _check_lengths("differences", differences, len(positions))
    with use_style():
        figure = new_figure(9.5, 3.6, figure)
        axes = figure.add_axes((0.1, 0.17, 0.87, 0.66))
        looks = ((ACCENT, "o", "full", 3.5), (INK, "s", "none", 7), (MUTED, "^", "none", 11))  # each fits into the next
        for (name, values), (colour, marker, fill, size) in zip(differences.items(), looks, strict=False):
            look = {"color": colour, "fillstyle": fill, "markersize": size, "label": as_label(name)}
            axes.semilogy(positions, np.maximum(values, 1e-8), marker, **look)
        axes.axvline(window - 0.5, color=INK, linewidth=1, linestyle=":")
        axes.text(window - 0.5, 0.5, f"  W = {window}", size=10.5, transform=axes.get_xaxis_transform())
        axes.set(xlabel="position", ylabel="largest difference of a logit")
        axes.legend(loc="center right")
        axes.set_title(title)
    return figure


def _shades(number: int) -> list:
    """Return blues from light to dark: layers have an order, and the expert colours are only for experts."""
    return [mpl.colormaps["Blues"](share) for share in np.linspace(0.55, 1, number)]


def _check_lengths(name: str, curves: Mapping, length: int | None = None) -> None:
    lengths = {len(values) for values in curves.values()}
    if len(lengths) != 1 or (length is not None and lengths != {length}):
        wanted = "one length" if length is None else f"length {length}"
        raise ValueError(
            f"{name} holds curves of lengths {sorted(lengths)}; it must hold at least one curve, all of {wanted}"
        )
