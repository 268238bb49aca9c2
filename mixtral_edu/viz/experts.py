"""Many tokens and their experts: dispatch, load, load and error in training, and how many experts a step reads."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, as_label, expert_colour, new_figure, text_colour, use_style

MOST_CHOICES = 48  # the most choices that dispatch_order can number legibly
MARKERS = ("o", "s", "^", "D")


def dispatch_order(
    experts: ArrayLike, num_experts: int = 8, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the N·K choices in token order and sorted by expert; each box holds its token's index.

    Args:
        experts: (N, K) chosen experts, at most 48 choices in all.
        num_experts: E.
        title: replaces the computed title, which counts calls of an expert.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no choices or too many, or an expert is not in 0..E-1.
    """
    experts = np.asarray(experts)
    if experts.ndim != 2 or not 0 < experts.size <= MOST_CHOICES:
        raise ValueError(f"experts has shape {experts.shape}; it must be (N, K) with 1 to {MOST_CHOICES} choices")
    if experts.min() < 0 or experts.max() >= num_experts:
        raise ValueError(f"experts ranges over {experts.min()}..{experts.max()}; all must be in 0..{num_experts - 1}")
    chosen, top_k = experts.ravel(), experts.shape[1]
    order = chosen.argsort(kind="stable")
    counts = np.bincount(chosen, minlength=num_experts)
    busy = int((counts > 0).sum())
    top = np.arange(len(chosen)) + 0.35 * (np.arange(len(chosen)) // top_k)  # left edges, with gaps between tokens
    group = np.cumsum(counts > 0)[chosen[order]] - 1
    bottom = np.arange(len(chosen)) + (top[-1] - len(chosen) + 1) / max(busy - 1, 1) * group  # gaps between experts
    if title is None:
        title = f"Sorted by expert, {len(chosen)} choices are {busy} calls of an expert, not {len(chosen)}"
    with use_style():
        figure = new_figure(10.5, 3.4, figure)
        axes = figure.add_axes((0.012, 0.02, 0.976, 0.83))
        for place, choice in enumerate(order):
            colour = expert_colour(chosen[choice])
            axes.plot([top[choice] + 0.5, bottom[place] + 0.5], [2.0, 1.0], color=colour, linewidth=1.2, zorder=0)
            for left, y in ((top[choice], 2.0), (bottom[place], 0.4)):
                axes.add_patch(Rectangle((left, y), 1, 0.6, facecolor=colour, edgecolor="white"))
                axes.text(
                    left + 0.5,
                    y + 0.3,
                    str(choice // top_k),
                    ha="center",
                    va="center",
                    size=9,
                    color=text_colour(colour),
                )
        for expert in np.flatnonzero(counts):
            places = bottom[chosen[order] == expert]
            axes.text(
                (places[0] + places[-1] + 1) / 2,
                0.26,
                f"expert {expert}" if counts[expert] > 0.05 * len(chosen) else f"e{expert}",
                ha="center",
                va="top",
                size=9.5,
            )
        axes.text(0, 2.72, "in the order of the tokens (numbers: token index)", size=10, color=MUTED)
        axes.set(xlim=(-0.2, top[-1] + 1.2), ylim=(-0.15, 3.0), xticks=(), yticks=())
        axes.spines[:].set_visible(False)
        axes.set_title(title)
    return figure


def dispatch_strip(
    experts: ArrayLike, num_experts: int = 8, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw sorted dispatch as a strip of frames, one per expert: the rows it is given, and the sums it adds to.

    Each frame shows the N tokens above, the expert, and below it the N sums. A sum has a slot for each of the token's K
    experts, in the order of the experts, which is filled from the frame on in which that expert has run.

    Args:
        experts: (N, K) chosen experts of at most 8 tokens.
        num_experts: E, at most 8.
        title: replaces the computed title, which counts the calls.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no tokens or too many, too many experts, or an expert is not in 0..E-1.
    """
    experts = np.asarray(experts)
    if experts.ndim != 2 or not 0 < len(experts) <= 8 or not 0 < num_experts <= 8:
        raise ValueError(
            f"experts has shape {experts.shape} and num_experts={num_experts}; there must be (N, K) choices of 1 to 8 "
            "tokens, and 1 to 8 experts"
        )
    if experts.min() < 0 or experts.max() >= num_experts:
        raise ValueError(f"experts ranges over {experts.min()}..{experts.max()}; all must be in 0..{num_experts - 1}")
    num_tokens, top_k = experts.shape
    slots = np.sort(experts, axis=1)  # the experts run in the order of their numbers
    if title is None:
        calls = len(np.unique(experts))
        title = f"{calls} calls fill the {experts.size} slots of {num_tokens} tokens"
    with use_style():
        figure = new_figure(10.5, 3.5, figure)
        panels = figure.subplots(1, num_experts, squeeze=False)[0]
        figure.subplots_adjust(left=0.085, right=0.995, top=0.78, bottom=0.03, wspace=0.12)
        middle = (num_tokens - 1) / 2
        for expert, axes in enumerate(panels):
            colour = expert_colour(expert)
            axes.add_patch(Rectangle((middle - 1.1, 1.45), 2.2, 0.7, facecolor=colour, edgecolor=INK, linewidth=0.6))
            axes.text(middle, 1.8, f"expert {expert}", ha="center", va="center", size=10, color=text_colour(colour))
            for token in range(num_tokens):
                given = expert in experts[token]
                face = colour if given else "white"
                axes.add_patch(Rectangle((token - 0.4, 3), 0.8, 0.6, facecolor=face, edgecolor=MUTED, linewidth=0.8))
                axes.text(token, 3.3, str(token), ha="center", va="center", size=10, color=text_colour(face))
                if given:
                    for start, end in ((3, 2.15), (1.45, 0.6)):
                        toward = middle + 0.28 * (token - middle)
                        x = (token, toward) if start == 3 else (toward, token)
                        arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1}
                        axes.annotate("", (x[1], end), (x[0], start), arrowprops=arrow)
                for slot, owner in enumerate(slots[token]):
                    face = expert_colour(owner) if owner <= expert else "white"
                    corner = (token - 0.4 + 0.8 * slot / top_k, 0)
                    axes.add_patch(Rectangle(corner, 0.8 / top_k, 0.6, facecolor=face, edgecolor=MUTED, linewidth=0.8))
                    if owner <= expert:
                        x = corner[0] + 0.4 / top_k
                        axes.text(x, 0.3, str(owner), ha="center", va="center", size=9, color=text_colour(face))
            axes.set(xlim=(-0.6, num_tokens - 0.4), ylim=(-0.05, 3.7), xticks=(), yticks=())
            axes.spines[:].set_visible(False)
            axes.set_title(f"call {expert + 1}" if expert in experts else "no call", size=11, weight="normal", pad=4)
        for y, name in ((3.3, "tokens"), (0.3, "sums")):
            panels[0].text(-0.75, y, name, ha="right", va="center", size=10, color=MUTED)
        figure.text(0.012, 0.915, title, size=13, weight="bold")
    return figure


def load_table(
    loads: ArrayLike, rows: Sequence[str], even: float, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw a table of loads, one row per layer or text; each cell is the share of tokens that the expert gets.

    The darker a cell, the larger its load.

    Args:
        loads: (R, E), each from 0 to 1.
        rows: R names. An empty name leaves its row blank, as a gap between groups.
        even: K/E, the load of every expert if all loads were equal.
        title: replaces the computed title, which names the largest load.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `loads` is not (R, E), or there are not R row names.
    """
    loads = np.asarray(loads, dtype=float)
    if loads.ndim != 2 or len(rows) != len(loads):
        raise ValueError(f"loads has shape {loads.shape} with {len(rows)} row names; it must be (R, E) with R names")
    named = [row for row, name in enumerate(rows) if name]
    if title is None:
        row, expert = max(((r, e) for r in named for e in range(loads.shape[1])), key=lambda place: loads[place])
        title = f"{rows[row]}: expert {expert} sees {loads[row, expert]:.0%} of the tokens (even: {even:.0%})"
    colours = mpl.colormaps["Blues"]
    with use_style():
        figure = new_figure(8.5, 1.25 + 0.3 * len(rows), figure)
        bottom, height = 0.6 / figure.get_figheight(), 0.3 * len(rows) / figure.get_figheight()
        axes = figure.add_axes((0.24, bottom, 0.74, height))
        for row in named:
            for expert, load in enumerate(loads[row]):
                colour = to_hex(colours(0.85 * load))
                axes.add_patch(Rectangle((expert - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
                axes.text(expert, row, f"{load:.0%}", ha="center", va="center", size=10, color=text_colour(colour))
        axes.set(xlim=(-0.5, loads.shape[1] - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="expert")
        axes.set(xticks=range(loads.shape[1]), yticks=named, yticklabels=[rows[row] for row in named])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.text(0.012, 1 - 0.36 / figure.get_figheight(), title, size=13, weight="bold")
    return figure


def load_over_steps(
    loads: Mapping[str, ArrayLike],
    even: float,
    title: str,
    numbers: bool = False,
    every: int = 1,
    figure: Figure | None = None,
) -> Figure:
    """Plot the experts' loads while a router learns: one panel per run, one line per expert.

    Args:
        loads: for each named run, (steps, E) shares of tokens from 0 to 1.
        even: K/E, the dashed line.
        title: states the finding.
        numbers: write the number of each expert at the end of its line.
        every: how many steps lie between two rows of `loads`.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no runs, or they differ in the number of experts.
    """
    runs = {name: np.asarray(values, dtype=float) for name, values in loads.items()}
    if len({values.shape[-1] for values in runs.values()}) != 1:
        shapes = [values.shape for values in runs.values()]
        raise ValueError(f"loads has shapes {shapes}; it must hold one or more runs (steps, E), all with the same E")
    num_experts = next(iter(runs.values())).shape[-1]
    with use_style():
        figure = new_figure(10.5, 4.1, figure)
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(left=0.07, right=0.985, top=0.79, bottom=0.22, wspace=0.08)
        for axes, (name, values) in zip(panels, runs.items(), strict=True):
            steps = every * np.arange(len(values))
            for expert in range(num_experts):
                axes.plot(steps, values[:, expert], color=expert_colour(expert), linewidth=1.8)
            axes.axhline(even, color=INK, linewidth=1, linestyle="--")
            axes.set(xlim=(0, steps[-1]), ylim=(0, 1), xlabel="step")
            axes.set_title(name, size=11, weight="normal")
            axes.grid(True, axis="y")
            if numbers:
                end, gap, height = steps[-1], 0.066, -1.0
                axes.set_xticks([step for step in axes.get_xticks() if 0 <= step <= end])
                axes.set_xlim(0, 1.045 * end)
                above = [gap * (num_experts - place) for place in range(num_experts)]  # room for those still to come
                for expert, room in zip(values[-1].argsort(), above, strict=True):
                    height = min(max(values[-1, expert], height + gap, 0.02), 1.04 - room)
                    box = {"facecolor": (colour := expert_colour(expert)), "edgecolor": "none", "pad": 1.3}
                    ink = text_colour(colour)
                    axes.text(1.015 * end, height, str(expert), color=ink, size=9, va="center", bbox=box)
        panels[0].set_ylabel("share of tokens")
        panels[0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        keys = [Line2D([], [], color=expert_colour(e), linewidth=3, label=f"expert {e}") for e in range(num_experts)]
        keys.append(Line2D([], [], color=INK, linestyle="--", label="even load"))
        figure.legend(handles=keys, ncols=len(keys), loc="lower center", columnspacing=1.2, handlelength=1.4)
        figure.text(0.012, 0.925, title, size=13, weight="bold")
    return figure


def expected_touched(batch_size: ArrayLike, num_experts: int, top_k: int) -> np.ndarray:
    """Return how many experts of a layer a step touches on average if each of B tokens draws K of E at random.

    E · (1 - (1 - K/E)^B): one token misses an expert with probability 1 - K/E, so all B tokens miss it with
    probability (1 - K/E)^B.

    >>> expected_touched([1, 2], num_experts=8, top_k=2)
    array([2. , 3.5])
    """
    return num_experts * (1 - (1 - top_k / num_experts) ** np.asarray(batch_size, dtype=float))


def experts_touched(
    batch_sizes: Sequence[int],
    measured: Mapping[str, ArrayLike],
    config: MixtralConfig,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot the experts touched in a layer as the batch grows: the formula as a line, measurements as marks.

    The right axis shows how many parameters of `config` such a step reads.

    Args:
        batch_sizes: B of each mark, at one token per text.
        measured: for each of at most four names, the mean number of experts at each batch size.
        config: gives E, K and the sizes for the right axis.
        title: replaces the computed title, which says where nine tenths of the experts are touched.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a measurement differs in length from `batch_sizes`, or there are more than four.
    """
    if len(measured) > len(MARKERS) or any(len(values) != len(batch_sizes) for values in measured.values()):
        lengths = {name: len(values) for name, values in measured.items()}
        raise ValueError(
            f"measured has lengths {lengths}; it must hold at most {len(MARKERS)} measurements, each of length "
            f"{len(batch_sizes)}"
        )
    num_experts, top_k, counts = config.num_local_experts, config.num_experts_per_tok, config.parameter_counts()
    per_expert = counts.per_part["experts"] / num_experts  # in all layers together
    rest = counts.total - counts.per_part["experts"]
    if title is None:
        sizes = np.arange(1, 10_000)
        most = sizes[expected_touched(sizes, num_experts, top_k) >= 0.9 * num_experts][0]
        title = f"With even loads, {most} tokens a step touch nine tenths of the experts"
    curve = np.geomspace(1, max(batch_sizes), 200)
    with use_style():
        figure = new_figure(9, 4.2, figure)
        axes = figure.add_axes((0.08, 0.14, 0.82, 0.74))
        even = expected_touched(curve, num_experts, top_k)
        axes.plot(curve, even, color=ACCENT, linewidth=2, label=r"even and random: $E\,(1-(1-K/E)^B)$")
        for marker, (name, values) in zip(MARKERS, measured.items(), strict=False):
            axes.plot(batch_sizes, values, marker, color=INK, markerfacecolor="white", label=as_label(name))
        axes.set(xscale="log", xlim=(0.93, 1.07 * max(batch_sizes)), ylim=(0, 1.06 * num_experts))
        axes.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
        axes.minorticks_off()
        axes.set(xlabel="batch size B: texts that each generate one token", ylabel="experts touched in a layer")
        right = axes.secondary_yaxis(
            "right",
            functions=(lambda t: (rest + t * per_expert) / 1e9, lambda p: (1e9 * p - rest) / per_expert),
        )
        right.set_ylabel(f"billion parameters read, of {counts.total / 1e9:.1f}")
        axes.grid(True)
        axes.legend(loc="lower right").get_texts()[0].set_parse_math(True)  # the first entry is a formula
        axes.set_title(title)
    return figure


def errors_of_layers(groups: Mapping[str, Mapping[str, ArrayLike]], title: str, figure: Figure | None = None) -> Figure:
    """Plot the error of several layers, one panel per group: a mark for each seed and a bar for their mean.

    Args:
        groups: for each panel's name, the errors of each named layer, one number per seed. The first group names all
            layers; others may lack some.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there is no group, or a later one has a layer that the first has not.
    """
    names = list(next(iter(groups.values()), ()))
    if not names or any(set(group) - set(names) for group in groups.values()):
        layers = {name: list(group) for name, group in groups.items()}
        raise ValueError(f"groups has the layers {layers}; the first group must hold all that the others have")
    most = max(np.asarray(errors).max() for group in groups.values() for errors in group.values())
    with use_style():
        figure = new_figure(10.5, 1.5 + 0.38 * len(names), figure)
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.25, right=0.97, top=1 - 0.78 / height, bottom=0.55 / height, wspace=0.14)
        for axes, (group, layers) in zip(panels, groups.items(), strict=True):
            for layer, values in layers.items():
                row, errors = names.index(layer), np.asarray(values, dtype=float)
                axes.barh(row, errors.mean(), height=0.62, color=FAINT, edgecolor=MUTED, linewidth=0.6)
                axes.plot(errors, np.full(len(errors), row), "o", color=INK, markersize=5)
                axes.text(errors.max() + 0.025 * most, row, f"{errors.mean():.2f}", va="center", size=10)
            axes.set(xlim=(0, 1.14 * most), ylim=(len(names) - 0.45, -0.55), xlabel="error (1: learned nothing)")
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(axis="y", length=0)
            axes.grid(True, axis="x")
            axes.set_title(group, size=11, weight="normal", pad=5)
        figure.text(0.012, 1 - 0.34 / height, title, size=13, weight="bold")
    return figure
