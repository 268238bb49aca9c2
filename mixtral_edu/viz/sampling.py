"""Figures of the next token's distribution, and of what temperature and filters do to it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MONO, MUTED, as_label, new_figure, printable, quoted, use_style


def next_tokens(
    pieces: Sequence[str], probabilities: ArrayLike, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the most likely next tokens as bars, the likeliest at the top.

    Args:
        pieces: the tokens as text, most likely first.
        probabilities: one number from 0 to 1 per piece.
        title: replaces the computed title, which names the first token.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pieces` is empty, or the lengths differ.
    """
    if len(pieces) == 0 or len(pieces) != len(probabilities):
        raise ValueError(
            f"pieces has length {len(pieces)} and probabilities {len(probabilities)}; the lengths must be "
            "equal and at least 1"
        )
    values = [float(p) for p in probabilities]
    if title is None:
        title = f"{quoted(pieces[0])} comes next with probability {values[0]:.0%}"
    with use_style():
        figure = new_figure(8.5, 0.9 + 0.32 * len(values), figure)
        axes = figure.add_axes((0.17, 0.2, 0.78, 0.64))
        axes.barh(range(len(values)), values, color=ACCENT, height=0.7)
        for row, value in enumerate(values):
            axes.text(value + 0.01 * max(values), row, f"{value:.1%}", va="center", size=10)
        axes.set(xlim=(0, 1.12 * max(values)), yticks=range(len(values)), xlabel="probability of the next token")
        axes.set_yticklabels([printable(piece) for piece in pieces], family=MONO)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        axes.invert_yaxis()
        axes.set_title(title)
    return figure


def before_and_after(
    vocabulary: Sequence[str],
    distributions: Mapping[str, tuple[ArrayLike, ArrayLike]],
    num_bars: int = 19,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw what a setting does to the next token's distribution: wide grey bars before, narrow blue ones after.

    Args:
        vocabulary: the V tokens as text.
        distributions: for each named panel, the probabilities (V,) before and after; 0 for tokens ruled out.
        num_bars: number of bars, for the tokens that are likeliest before; one more bar sums all others.
        title: states the finding; by default it explains the colours.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `distributions` is empty, or one does not have V probabilities.
    """
    if not distributions:
        raise ValueError("distributions is empty: give at least one panel")
    for name, pair in distributions.items():
        if any(len(probabilities) != len(vocabulary) for probabilities in pair):
            lengths = [len(probabilities) for probabilities in pair]
            raise ValueError(
                f"distributions[{name!r}] has {lengths} probabilities; both must have {len(vocabulary)}, one per token"
            )
    with use_style():
        figure = new_figure(10.5, 3.9, figure)
        left, gap = 0.07, 0.055
        width = (0.985 - left - gap * (len(distributions) - 1)) / len(distributions)
        for column, (name, (before, after)) in enumerate(distributions.items()):
            axes = figure.add_axes((left + column * (width + gap), 0.3, width, 0.49))
            _bars(axes, vocabulary, np.asarray(before, dtype=float), np.asarray(after, dtype=float), num_bars)
            kept = np.count_nonzero(after)
            axes.set_title(f"{name}: {kept:,} of {len(vocabulary):,} tokens left", size=11, weight="normal")
            if column == 0:
                axes.set_ylabel("probability")
        title = title or "The next token, before (grey) and after (blue)"
        figure.text(0.012, 0.97, title, size=13, weight="bold", va="top")
    return figure


def _bars(axes: Axes, vocabulary: Sequence[str], before: np.ndarray, after: np.ndarray, num_bars: int) -> None:
    order = np.argsort(-before, kind="stable")[:num_bars]
    labels = [printable(vocabulary[i]) for i in order]
    places = list(range(len(order)))
    bars = [before[order], after[order]]
    if len(order) < len(before):
        labels.append("all others")
        places.append(len(order) + 0.6)  # set apart: it is not a token
        bars = [np.append(bar, whole.sum() - bar.sum()) for bar, whole in zip(bars, (before, after), strict=True)]
    axes.bar(places, bars[0], width=0.86, color=FAINT, label="before")
    axes.bar(places, bars[1], width=0.46, color=ACCENT, label="after")
    axes.set(xlim=(-0.7, places[-1] + 0.7), ylim=(0, 1.05 * max(map(np.max, bars))), xticks=places)
    axes.set_xticklabels(labels, rotation=90, family=MONO, size=9)
    axes.yaxis.set_major_formatter("{x:.0%}")


def tokens_left(
    temperatures: ArrayLike,
    counts: Mapping[str, Mapping[str, ArrayLike]],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot how many tokens filters leave at each temperature, on a log scale.

    Args:
        temperatures: (N,), in increasing order.
        counts: for each panel and each curve in it, (N,) numbers of tokens from 1 up. All panels have the same curves.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `counts` is empty, does not have one count per temperature, or its panels have different curves.
    """
    if len({tuple(curves) for curves in counts.values()}) > 1:
        names = [[*curves] for curves in counts.values()]
        raise ValueError(f"counts has panels with the curves {names}; all panels must have the same curves")
    lengths = {len(curve) for curves in counts.values() for curve in curves.values()}
    if lengths != {len(temperatures)}:
        raise ValueError(
            f"counts has curves of lengths {sorted(lengths)}; it must hold one or more, each of "
            f"length {len(temperatures)}"
        )
    looks = ((ACCENT, "-"), (INK, "--"), (MUTED, ":"))
    highest = max(np.max(curve) for curves in counts.values() for curve in curves.values())
    with use_style():
        figure = new_figure(10.5, 4.1, figure)
        width = 0.93 / len(counts)
        for column, (name, curves) in enumerate(counts.items()):
            axes = figure.add_axes((0.07 + column * width, 0.14, width - 0.04, 0.58))
            for (label, curve), (colour, line) in zip(curves.items(), looks, strict=False):
                axes.semilogy(temperatures, curve, color=colour, linestyle=line, linewidth=2.2, label=as_label(label))
            axes.axvline(1, color=FAINT, linewidth=1, zorder=0)
            axes.set(xlabel="temperature", ylim=(0.8, 1.5 * highest), xlim=(temperatures[0], temperatures[-1]))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.set_title(name, size=11, weight="normal")
            axes.tick_params(labelleft=column == 0)
        figure.axes[0].set_ylabel("tokens left")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.06, 0.91), ncols=3)
        figure.text(0.012, 0.97, title or "Tokens left at each temperature", size=13, weight="bold", va="top")
    return figure
