"""What a KV cache saves and costs: seconds, tokens, memory, and the error of a ring that is used wrongly."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, INK, MUTED, as_label, new_figure, use_style

LINES = (ACCENT, "#8D2B0B", "#486581", "#B7791F")  # none is the colour of an expert


def tokens_computed(
    counts: Mapping[str, Sequence[int]], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Plot how many tokens each forward pass puts through the layers while a text grows.

    Args:
        counts: for each way of generating, the tokens computed in pass 0, 1, 2, …
        title: replaces the computed title, which gives the sums.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `counts` or one of its entries is empty.
    """
    if not counts or not all(map(len, counts.values())):
        raise ValueError("counts is empty or has an empty entry: give at least one name and its tokens in each pass")
    if title is None:
        title = "Tokens computed: " + ", ".join(f"{sum(values):,} {name}" for name, values in counts.items())
    with use_style():
        figure = new_figure(8.5, 3.4, figure)
        axes = figure.add_axes((0.085, 0.17, 0.73, 0.68))
        for (name, values), colour in zip(counts.items(), LINES, strict=False):
            axes.fill_between(range(len(values)), values, color=colour, alpha=0.13, linewidth=0)
            axes.plot(values, color=colour, linewidth=2, marker=".", markersize=5)
            end = (len(values) - 1, values[-1])
            axes.annotate(name, end, (8, 0), textcoords="offset points", color=colour, va="center", weight="bold")
        passes = max(map(len, counts.values()))
        axes.set(xlabel="forward pass", ylabel="tokens computed", xlim=(-0.5, passes - 0.7), ylim=(0, None))
        axes.set_title(title)
    return figure


def seconds_so_far(
    seconds: Mapping[str, Sequence[float]], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Plot the seconds that a text took so far against its new tokens.

    Args:
        seconds: for each way of generating, the seconds after 1, 2, … new tokens.
        title: replaces the computed title, which compares the slowest way with the fastest.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `seconds` or one of its entries is empty.
    """
    if not seconds or not all(map(len, seconds.values())):
        raise ValueError("seconds is empty or has an empty entry: give at least one name and its seconds")
    ends = {name: (len(values), values[-1]) for name, values in seconds.items()}
    if title is None:
        slow, fast = (pick(ends, key=lambda name: ends[name][1]) for pick in (max, min))
        title = f"{ends[slow][0]:,} new tokens take {ends[slow][1] / ends[fast][1]:.1f} times as long {slow} as {fast}"
    with use_style():
        figure = new_figure(9, 3.6, figure)
        axes = figure.add_axes((0.075, 0.165, 0.76, 0.70))
        for (name, values), colour, dashes in zip(seconds.items(), LINES, ("-", "--", ":", "-."), strict=False):
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=2.2, linestyle=dashes)
            style = {"textcoords": "offset points", "color": colour, "va": "center", "weight": "bold"}
            axes.annotate(name, ends[name], (8, 0), **style)
        axes.set(xlabel="new tokens", ylabel="seconds since the start", xlim=(0, None), ylim=(0, None))
        axes.margins(x=0)
        axes.grid(True)
        axes.set_title(title)
    return figure


def memory(
    tokens: Sequence[int], sizes: Mapping[str, ArrayLike], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Plot the bytes of a cache against the tokens that it has seen, on logarithmic axes.

    Args:
        tokens: numbers of tokens, in increasing order.
        sizes: for each kind of cache, its bytes at these numbers of tokens.
        title: replaces the computed title, which compares the largest with the smallest at the last length.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `sizes` is empty, or a length differs from that of `tokens`.
    """
    if not sizes or any(np.shape(values) != np.shape(tokens) for values in sizes.values()):
        shapes = [np.shape(values) for values in sizes.values()]
        raise ValueError(
            f"sizes has shapes {shapes}; it must hold at least one kind of cache, each with {len(tokens)} sizes, "
            "one per entry of tokens"
        )
    last = {name: float(values[-1]) for name, values in sizes.items()}
    if title is None:
        most, least = max(last, key=last.get), min(last, key=last.get)
        title = f"At {tokens[-1]:,} tokens: {most} takes {last[most] / last[least]:.0f} times the memory of {least}"
    with use_style():
        figure = new_figure(10, 4.2, figure)
        axes = figure.add_axes((0.095, 0.15, 0.65, 0.74))
        for (name, values), colour in zip(sizes.items(), LINES, strict=False):
            axes.plot(tokens, values, color=colour, linewidth=2.2)
            label = f"{name}: {_in_bytes(last[name])}"
            axes.text(tokens[-1] * 1.08, last[name], label, color=colour, va="center", weight="bold", size=10.5)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        low, high = min(map(np.min, sizes.values())), max(last.values())
        powers = range(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1)
        axes.yaxis.set_major_locator(FixedLocator([2.0**power for power in powers if power % 2 == 0]))
        axes.yaxis.set_major_formatter(lambda value, _: _in_bytes(value))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="tokens seen", ylabel="memory of keys and values", xlim=(tokens[0], tokens[-1]))
        axes.grid(True)
        axes.set_title(title)
    return figure


def differences_by_position(
    differences: Mapping[int, ArrayLike],
    window: int,
    title: str | None = None,
    figure: Figure | None = None,
    usual: float | None = None,
) -> Figure:
    """Draw how far each token's logits are from the correct ones, one panel per chunk size, all on one scale.

    Args:
        differences: for each number of tokens per chunk, the largest difference at each position, (T,).
        window: W, marked by a dashed line: the ring is full from there on.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.
        usual: a size to compare with, such as the standard deviation of the logits; a dotted line.

    Raises:
        ValueError: `differences` is empty.
    """
    if not differences:
        raise ValueError("differences is empty: give at least one chunk size and its differences")
    differences = {chunk: np.asarray(values, dtype=float) for chunk, values in differences.items()}
    if title is None:
        worst = {chunk: values.max() for chunk, values in differences.items()}
        title = "Largest error of a logit: " + ", ".join(f"{most:.1f} in chunks of {c}" for c, most in worst.items())
    height = 1.25 + 1.75 * len(differences)
    top = 1.12 * max(1e-6, *(values.max() for values in differences.values()))
    with use_style():
        figure = new_figure(10, height, figure)
        figure.text(0.07, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
        for row, (chunk, values) in enumerate(differences.items()):
            bottom = (height - 0.8 - 1.75 * row - 1.2) / height
            axes = figure.add_axes((0.07, bottom, 0.91, 1.2 / height))
            axes.bar(range(len(values)), values, width=1, color=ACCENT)
            for start in range(chunk, len(values), chunk):
                axes.axvline(start - 0.5, color=MUTED, linewidth=0.8)
            axes.axvline(window - 0.5, color=INK, linestyle="--", linewidth=1.2)
            if usual is not None:
                axes.axhline(usual, color=LINES[1], linestyle=":", linewidth=1.5)
            label = {"color": INK, "size": 11, "ha": "right", "va": "bottom", "transform": axes.transAxes}
            axes.text(0.995, 1.02, f"chunks of {chunk}", **label)
            axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, top), ylabel="error (logits)")
        dotted = [] if usual is None else ["dotted: standard deviation of the logits"]
        signs = "; ".join(["thin line: a chunk begins", "dashed: the ring is full", *dotted])
        axes.set_xlabel(f"position of the token\n({signs})")
    return figure


def loss_changes(
    changes: Mapping[str, Mapping[str, tuple[float, float]]], title: str, figure: Figure | None = None
) -> Figure:
    """Draw what several changes do to the loss on several texts, each with its standard error.

    Args:
        changes: for each change, by text, how much the loss rises in nats per token, and the standard error of that.
        title: what the picture shows.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no changes or no texts, or the changes have different texts.
    """
    texts = [list(by_text) for by_text in changes.values()]
    if not texts or not texts[0] or any(names != texts[0] for names in texts):
        raise ValueError(f"changes has the texts {texts}; it must hold at least one change, all with the same texts")
    names, step = texts[0], 0.8 / len(changes)
    with use_style():
        figure = new_figure(9, 1.7 + 0.6 * len(names), figure)
        axes = figure.add_axes((0.14, 0.7 / figure.get_figheight(), 0.83, 1 - 1.2 / figure.get_figheight()))
        for number, (change, colour, marker) in enumerate(zip(changes, LINES, "osD^", strict=False)):
            means, errors = zip(*(changes[change][name] for name in names), strict=True)
            places = np.arange(len(names)) + (number - (len(changes) - 1) / 2) * step * 0.7
            axes.errorbar(means, places, xerr=2 * np.asarray(errors), color=colour, fmt=marker, markersize=7, capsize=3,
                          markerfacecolor=colour if number == 0 else "white", label=as_label(change))  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="rise of the loss (nats per token; bars: two standard errors)", ylim=(len(names) - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.legend(loc="best")
        axes.set_title(title)
    return figure


def _in_bytes(size: float) -> str:
    """Format a size in the largest unit of which it is at least a half.

    >>> [_in_bytes(2.0**power) for power in (10, 19, 29, 36)]
    ['1 KiB', '0.5 MiB', '0.5 GiB', '64 GiB']
    """
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2 ** (power - 1):
            return f"{size / 2**power:.3g} {unit}"
    return f"{size:.0f} B"
