"""Measures of the router, each next to its baseline: load by domain, repetition, information, and forced choices."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, expert_colour, new_figure, text_colour, use_style


def load_by_domain(
    loads: ArrayLike, domains: Sequence[str], even: float, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw one heat map per layer: the percentage of a domain's tokens that each expert gets.

    White is an even load, blue more, red less.

    Args:
        loads: (L, domains, E), each from 0 to 1.
        domains: names of the domains.
        even: K/E, the load of every expert if all loads were equal.
        title: replaces the computed title, which names the layer and the domain with the largest load.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `loads` has another shape.
    """
    loads = np.asarray(loads, dtype=float)
    if loads.ndim != 3 or loads.shape[1] != len(domains):
        raise ValueError(f"loads has shape {loads.shape}; for these domains it must be (L, {len(domains)}, E)")
    L, D, E = loads.shape
    if title is None:
        layer, domain, expert = np.unravel_index(loads.argmax(), loads.shape)
        most = f"{loads.max():.0%} of {domains[domain]}"
        title = f"Layer {layer} sends {most} to expert {expert}"
    norm = TwoSlopeNorm(even, -0.6 * even, 1.2)  # no load reaches the dark ends
    width, height = max(9.5, 1.3 + 2.5 * L), 1.5 + 0.32 * D
    with use_style():
        figure = new_figure(width, height, figure)
        for layer in range(L):
            place = ((1.1 + 2.5 * layer) / width, 0.55 / height, 2.35 / width, 0.32 * D / height)
            axes = figure.add_axes(place)
            texts = [[f"{100 * load:.0f}" for load in row] for row in loads[layer]]
            _cells(axes, loads[layer], texts, mpl.colormaps["RdBu"], norm, size=9)
            axes.set(xticks=range(E), xlabel="expert", yticks=range(D), yticklabels=domains if layer == 0 else [])
            axes.set_title(f"layer {layer}", size=11, weight="normal")
        _headline(figure, title)
        note = f"numbers: percent of tokens; white: an even load ({even:.0%}), blue: more, red: less"
        figure.text(0.012, 1 - 0.56 / height, note, size=10.5, color=MUTED)
    return figure


def repetition_and_baselines(
    measured: ArrayLike,
    shuffled: ArrayLike,
    chance: Sequence[float],
    domains: Sequence[str],
    title: str,
    figure: Figure | None = None,
) -> Figure:
    """Draw how often neighbouring tokens share an expert, measured and after a shuffle; a dashed line marks chance.

    The upper row of panels counts first choices, the lower one any of the K.

    Args:
        measured: (2, L, domains) shares from 0 to 1: first choice, then any.
        shuffled: the same after shuffling within each domain.
        chance: the two shares for even and independent choices.
        domains: names of the domains.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the shapes do not match.
    """
    measured, shuffled = np.asarray(measured, dtype=float), np.asarray(shuffled, dtype=float)
    if measured.shape != shuffled.shape or measured.shape[::2] != (2, len(domains)) or len(chance) != 2:
        shapes = f"{measured.shape} and {shuffled.shape}"
        raise ValueError(
            f"measured and shuffled have shapes {shapes}, and chance has {len(chance)} numbers; both shapes must be "
            f"(2, L, {len(domains)}), and chance must have 2 numbers"
        )
    _, L, D = measured.shape
    rows = np.arange(D)
    with use_style():
        figure = new_figure(10.5, 2.1 + 0.52 * D, figure)
        panels = figure.subplots(2, L, sharex=True, sharey=True, squeeze=False)
        top = 1 - 0.75 / figure.get_figheight()
        figure.subplots_adjust(0.15, 0.85 / figure.get_figheight(), 0.985, top, wspace=0.08, hspace=0.1)
        for kind, name in enumerate(("same first\nexpert", "any expert\nin common")):
            for layer in range(L):
                axes, found, mixed = panels[kind, layer], measured[kind, layer], shuffled[kind, layer]
                axes.hlines(rows, mixed, found, color=FAINT, linewidth=3, zorder=1)
                # larger than the dot, so that it shows where both coincide
                ring = {"color": INK, "markerfacecolor": "white", "markersize": 8}
                axes.plot(mixed, rows, "o", **ring, label="shuffled within the text")
                axes.plot(found, rows, "o", color=ACCENT, markersize=5, label="in the order of the text")
                axes.axvline(chance[kind], color=INK, linewidth=1, linestyle="--", label="even, independent choices")
                axes.set(xlim=(0, 1.03), ylim=(D - 0.5, -0.5), yticks=rows, yticklabels=domains)
                axes.set_xticks((0, 0.25, 0.5, 0.75), ("0%", "25%", "50%", "75%"))
                axes.grid(True, axis="x")
                if kind == 0:
                    axes.set_title(f"layer {layer}", size=11, weight="normal")
            panels[kind, 0].set_ylabel(name, labelpad=6)
        figure.supxlabel("share of neighbouring tokens", size=11, y=0.42 / figure.get_figheight())
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, ncols=3, loc="lower center", borderaxespad=0.1)
        _headline(figure, title)
    return figure


def information(
    entropies: ArrayLike,
    information: Mapping[str, ArrayLike],
    baselines: Mapping[str, ArrayLike],
    title: str,
    figure: Figure | None = None,
) -> Figure:
    """Draw, per layer, how many bits of the first expert's entropy each label explains (mutual information).

    Args:
        entropies: (L,), the entropy of the first expert in each layer, in bits: an outline that no bar exceeds.
        information: for each label, (L,) mutual information in bits.
        baselines: the same with shuffled labels: the hatched foot of each bar.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the names or lengths differ.
    """
    L = len(entropies)
    if list(information) != list(baselines) or any(len(v) != L for m in (information, baselines) for v in m.values()):
        names = f"information names {list(information)} and baselines {list(baselines)}"
        raise ValueError(f"{names}; both must have the same names, with {L} numbers each")
    step = 0.8 / len(information)
    shades = mpl.colormaps["Blues"](np.linspace(0.75, 0.4, len(information)))
    with use_style():
        figure = new_figure(10, 3.9, figure)
        axes = figure.add_axes((0.065, 0.13, 0.68, 0.73))
        axes.bar(range(L), entropies, 0.88, facecolor="none", edgecolor=MUTED, label="entropy of the first expert")
        for place, (name, bits) in enumerate(information.items()):
            x = np.arange(L) - 0.4 + step * (place + 0.5)
            axes.bar(x, bits, step * 0.9, color=to_hex(shades[place]), label=f"told by the {name}")
            hatched = {"facecolor": "white", "edgecolor": INK, "hatch": "////", "linewidth": 0.6}
            last = place == len(information) - 1
            note = "told by shuffled labels" if last else None  # one legend entry, below those of the bars
            axes.bar(x, baselines[name], step * 0.9, label=note, **hatched)
            for at, value in zip(x, bits, strict=True):
                label = axes.text(at, value + 0.06, f"{value:.2f}", ha="center", size=9.5)
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # hides the outline
        axes.set(xticks=range(L), xticklabels=[f"layer {layer}" for layer in range(L)], ylabel="bits per token")
        axes.set(ylim=(0, 1.1 * max(entropies)))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes.set_title(title)
    return figure


def cost_of_changes(
    costs: ArrayLike, changes: Sequence[str], domains: Sequence[str], title: str, figure: Figure | None = None
) -> Figure:
    """Draw a table of how many bits per byte more each domain costs when the router's choices are changed.

    Args:
        costs: (changes, domains), extra bits per byte compared with the router's own choices.
        changes: names of the changes. An empty name leaves its row blank, as a gap between groups.
        domains: names of the domains.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `costs` has another shape.
    """
    costs = np.asarray(costs, dtype=float)
    if costs.shape != (len(changes), len(domains)):
        wanted = (len(changes), len(domains))
        raise ValueError(f"costs has shape {costs.shape}; for these names it must be {wanted}")
    rows, columns = costs.shape
    height = 1.05 + 0.3 * rows
    with use_style():
        figure = new_figure(10, height, figure)
        axes = figure.add_axes((0.27, 0.1 / height, 0.71, 0.3 * rows / height))
        named = [row for row, name in enumerate(changes) if name]
        texts = [[""] * columns for _ in changes]
        for row in named:
            texts[row] = [f"{cost:+.2f}".replace("-0.00", "+0.00") for cost in costs[row]]
        shades = np.sqrt(costs.clip(0, 1))  # keeps small costs apart and every box light enough
        _cells(axes, shades, texts, mpl.colormaps["Blues"], Normalize(0, 1.3), size=10)
        axes.xaxis.tick_top()
        axes.set(xticks=range(columns), xticklabels=domains, yticks=named, yticklabels=[changes[row] for row in named])
        _headline(figure, title)
    return figure


def cost_of_knock_outs(
    costs: ArrayLike, errors: ArrayLike, loads: ArrayLike, title: str, figure: Figure | None = None
) -> Figure:
    """Draw, per layer, what the loss of each single expert costs: a dot with a bar of two standard errors each way.

    Args:
        costs: (L, E), extra bits per byte without that expert.
        errors: (L, E), the standard errors of the costs.
        loads: (L, E), the share of tokens that each expert worked on: the percentage below its number.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the shapes differ.
    """
    costs, errors, loads = (np.asarray(each, dtype=float) for each in (costs, errors, loads))
    if costs.ndim != 2 or not costs.shape == errors.shape == loads.shape:
        shapes = f"{costs.shape}, {errors.shape} and {loads.shape}"
        raise ValueError(f"costs, errors and loads have shapes {shapes}; all three must be (L, E)")
    L, E = costs.shape
    width, height = max(6.0, 1.0 + 2.5 * L), 4.1
    with use_style():
        figure = new_figure(width, height, figure)
        panels = figure.subplots(1, L, sharey=True, squeeze=False)[0]
        figure.subplots_adjust(0.75 / width, 0.95 / height, 1 - 0.1 / width, 1 - 1.0 / height, wspace=0.06)
        for layer, axes in enumerate(panels):
            axes.axhline(0, color=INK, linewidth=1)
            for e in range(E):
                bar = {"ecolor": MUTED, "elinewidth": 1.5, "capsize": 3, "markeredgecolor": INK}
                axes.errorbar(e, costs[layer, e], 2 * errors[layer, e], fmt="o", color=expert_colour(e), **bar)
            names = [f"{e}\n{load:.0%}".removesuffix("%") for e, load in enumerate(loads[layer])]
            axes.set_xticks(range(E), names)
            axes.set_xlim(-0.6, E - 0.4)
            axes.grid(True, axis="y")
            axes.set_title(f"layer {layer}", size=11, weight="normal")
        panels[0].set_ylabel("cost, bits per byte")
        figure.supxlabel("expert, and below it its load in percent of tokens", size=11, y=0.2 / height)
        note = "dot: mean cost of losing that expert alone; bar: two standard errors each way"
        figure.text(0.012, 1 - 0.53 / height, note, size=10.5, color=MUTED)
        _headline(figure, title)
    return figure


def _cells(axes: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], colours, norm, size: float) -> None:
    """Fill `axes` with a table: one box per value, with its colour and text; no box where the text is empty."""
    for (row, column), value in np.ndenumerate(values):
        if not texts[row][column]:
            continue
        colour = to_hex(colours(norm(value)))
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
        axes.text(column, row, texts[row][column], ha="center", va="center", size=size, color=text_colour(colour))
    axes.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(len(values) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _headline(figure: Figure, title: str) -> None:
    figure.text(0.012, 1 - 0.3 / figure.get_figheight(), title, size=13, weight="bold")
