"""Figures of attention: one head step by step, heads that share keys, and the memory that sharing saves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, new_figure, text_colour, use_style

SHADES = LinearSegmentedColormap.from_list("weights", ("white", "#A9C4E4", ACCENT, "#12294A"))  # weight 0 to 1
GROUPS = (ACCENT, "#9FB3C8")  # neighbouring groups of heads that share alternate between these
TALL = ("#9CC3EC", "#6EA3DB", ACCENT, "#1F4E80")  # one colour per query head of a group


def one_head(
    scores: ArrayLike,
    mask: ArrayLike,
    weights: ArrayLike,
    tokens: Sequence[str],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw one head in three steps, as grids of numbers: scores, masked scores, weights.

    Args:
        scores: (T, T), scaled; rows are queries, columns are keys.
        mask: (T, T), True where the query may attend to the key.
        weights: (T, T); each row sums to 1.
        tokens: T tokens as text.
        title: replaces the computed title, which names the largest weight on another token.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a shape is not (T, T).
    """
    T = len(tokens)
    scores, mask, weights = np.asarray(scores), np.asarray(mask), np.asarray(weights)
    for name, values in (("scores", scores), ("mask", mask), ("weights", weights)):
        if values.shape != (T, T):
            raise ValueError(f"{name} has shape {values.shape}; with {T} tokens it must have shape {(T, T)}")
    if title is None:
        others = np.where(np.eye(T, dtype=bool), -1, weights)
        query, key = np.unravel_index(others.argmax(), (T, T))
        title = f"“{tokens[query]}” gives {weights[query, key]:.0%} of its weight to “{tokens[key]}”"
    left, taken = np.where(mask, scores, np.nan), np.where(mask, weights, np.nan)
    with use_style():
        figure = new_figure(11, 4.1, figure)
        figure.text(0.012, 0.94, title, size=13, weight="bold", va="center")
        high = max(1e-9, float(np.abs(scores).max()))
        panels = {
            "1. scores q·k / √Dh": (scores, scores / high, "{:.1f}"),
            "2. without the future": (left, left / high, "{:.1f}"),
            "3. softmax: a row sums to 1": (taken, taken, "{:.2f}"),
        }
        for number, (name, (values, shades, form)) in enumerate(panels.items()):
            axes = figure.add_axes((0.095 + 0.315 * number, 0.14, 0.255, 0.66))
            _numbers(axes, values, shades, form, size=12)
            axes.set_title(name, size=11.5)
            axes.set(xticks=range(T), xticklabels=tokens, yticks=range(T), yticklabels=tokens, xlabel="key position j")
            if number == 0:
                axes.set_ylabel("query position i")
    return figure


def saturation(
    head_dims: Sequence[int],
    largest: Mapping[str, ArrayLike],
    num_keys: int,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot the largest weight that a query gives against the size of a head.

    Args:
        head_dims: values of Dh, in increasing order.
        largest: for each way of scaling, the mean largest weight at these sizes.
        num_keys: S. A query without a preference gives each key 1/S: the dotted line.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `largest` is empty, or a length differs from that of `head_dims`.
    """
    if not largest or any(np.shape(values) != np.shape(head_dims) for values in largest.values()):
        shapes = [np.shape(values) for values in largest.values()]
        raise ValueError(
            f"largest has shapes {shapes}; it must hold at least one way of scaling, each with {len(head_dims)} "
            "weights, one per entry of head_dims"
        )
    if title is None:
        ends = ", ".join(f"{float(values[-1]):.2f} {name}" for name, values in largest.items())
        title = f"Largest of {num_keys} weights at Dh = {head_dims[-1]}: {ends}"
    with use_style():
        figure = new_figure(8.5, 3.6, figure)
        axes = figure.add_axes((0.09, 0.165, 0.68, 0.69))
        for (name, values), colour in zip(largest.items(), (ACCENT, "#8D2B0B", "#486581"), strict=False):
            axes.plot(head_dims, values, color=colour, linewidth=2, marker="o", markersize=5)
            axes.text(head_dims[-1] * 1.12, values[-1], name, color=colour, va="center", weight="bold", size=10.5)
        axes.axhline(1 / num_keys, color=MUTED, linewidth=1, linestyle=":")
        axes.text(head_dims[0], 1 / num_keys - 0.03, f"no preference: 1/{num_keys}", color=MUTED, size=10, va="top")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="size of a head, Dh", ylabel="largest weight", ylim=(-0.06, 1.03), xticks=head_dims)
        axes.set(xticklabels=head_dims, yticks=(0, 0.25, 0.5, 0.75, 1))
        axes.set_title(title)
    return figure


def sharing(
    num_heads: int, num_kv_heads: Sequence[int], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw which query heads read which key-value head, one panel per number of key-value heads.

    Args:
        num_heads: Hq.
        num_kv_heads: the values of Hkv to compare.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `num_kv_heads` is empty, or an entry does not divide Hq.
    """
    if not num_kv_heads or any(count < 1 or num_heads % count for count in num_kv_heads):
        raise ValueError(
            f"num_kv_heads={list(num_kv_heads)}; it must hold one or more divisors of num_heads={num_heads}"
        )
    if title is None:
        title = f"Query head h looks at key-value head h // G, with G = {num_heads} / Hkv"
    with use_style():
        figure = new_figure(11, 3.0, figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 110), ylim=(30, 0))
        axes.set_axis_off()
        axes.text(1.3, 2.2, title, size=13, weight="bold", va="center")
        axes.text(8.2, 12, "query\nheads", size=10.5, color=MUTED, ha="right", va="center")
        axes.text(8.2, 24, "key-value\nheads", size=10.5, color=MUTED, ha="right", va="center")
        panel = 100 / len(num_kv_heads)
        for number, kv_heads in enumerate(num_kv_heads):
            _shared(axes, 9.5 + number * panel, panel - 3, num_heads, kv_heads)
    return figure


def folding(group: int, tokens: int, keys: int, title: str | None = None, figure: Figure | None = None) -> Figure:
    """Draw two ways to compute the scores of a group: copy the keys for each query head, or stack the queries.

    Args:
        group: G, the number of query heads that share the keys.
        tokens: T, the number of rows that each query head adds.
        keys: S.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a size is below 1.
    """
    for name, size in (("group", group), ("tokens", tokens), ("keys", keys)):
        if size < 1:
            raise ValueError(f"{name}={size}; it must be at least 1")
    rows = group * tokens
    if title is None:
        title = f"{group} heads of {tokens} queries are {rows} rows of one product: the keys are read once, not copied"
    with use_style():
        figure = new_figure(11, 4.1, figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 110), ylim=(41, 0))
        axes.set_axis_off()
        axes.text(1.3, 2.2, title, size=13, weight="bold", va="center")
        block = 33 / group  # height of one head, with the gap below it
        tall = block - 1.6
        for head in range(group):
            colour, top = TALL[head % len(TALL)], 8 + head * block
            middle = top + tall / 2
            _box(axes, 4, top, 9, tall, colour, f"head {head}")
            _write(axes, 15, middle, "×", 14)
            _box(axes, 17, middle - min(6, tall) / 2, 13, min(6, tall), PAPER, "copy of the keys")
            _write(axes, 32, middle, "=", 14)
            _box(axes, 34, top, 14, tall, colour, "scores")
            _box(axes, 62, 8 + head * tall, 9, tall, colour, f"head {head}")
            _box(axes, 92, 8 + head * tall, 14, tall, colour, "scores")
        middle = 8 + group * tall / 2
        _write(axes, 74, middle, "×", 14)
        _box(axes, 77, middle - 3, 10, 6, PAPER, "the keys")
        _write(axes, 89.5, middle, "=", 14)
        _write(axes, 24, 5.6, f"copied: {group} products of ({tokens} × Dh) and (Dh × {keys})", 10.5, MUTED)
        _write(axes, 84, 5.6, f"folded: one product of ({rows} × Dh) and (Dh × {keys})", 10.5, MUTED)
    return figure


def cache_sizes(
    sizes: Mapping[str, int], weights: int | None = None, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the memory of all layers' keys and values as bars.

    Args:
        sizes: bytes, by way of sharing.
        weights: bytes of the model's own weights, drawn as a line.
        title: replaces the computed title, which compares the largest with the smallest.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `sizes` is empty.
    """
    if not sizes:
        raise ValueError("sizes is empty: give at least one name and its bytes")
    if title is None:
        most, least = max(sizes, key=sizes.get), min(sizes, key=sizes.get)
        title = f"{most}: {_gib(sizes[most])}; {least}: {_gib(sizes[least])}"
    with use_style():
        figure = new_figure(10, 1.5 + 0.5 * len(sizes), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.17, 0.62 / height, 0.8, 1 - 1.25 / height))
        reach = max(*sizes.values(), weights or 0)
        for row, size in enumerate(sizes.values()):
            axes.barh(row, size / 2**30, color=ACCENT, height=0.62)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axes.text((size + 0.01 * reach) / 2**30, row, _gib(size), va="center", size=10.5, bbox=box)
        if weights is not None:
            axes.axvline(weights / 2**30, color=INK, linestyle="--", linewidth=1.2, zorder=0.5)
            beside = f"the model's weights: {_gib(weights)} "
            axes.text(weights / 2**30, -0.62, beside, ha="right", va="center", color=MUTED, size=10)
        axes.set(xlim=(0, 1.15 * reach / 2**30), ylim=(len(sizes) - 0.5, -0.85), yticks=range(len(sizes)))
        axes.set(yticklabels=list(sizes), xlabel="keys and values in GiB")
        axes.set_title(title)
    return figure


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def _numbers(axes: Axes, values: np.ndarray, shades: np.ndarray, form: str, size: float) -> None:
    """Write a grid of numbers on squares: darker where `shades` is closer to 1, grey where a value is NaN."""
    axes.set_facecolor("#E4E7EB")
    axes.imshow(shades, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=1)
    axes.tick_params(which="both", length=0)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = text_colour(to_hex(SHADES(np.clip(shades[row, column], 0, 1))))
            text = form.format(value).replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", color=ink, size=size)
    axes.spines[:].set_visible(False)


def _shared(axes: Axes, left: float, width: float, num_heads: int, kv_heads: int) -> None:
    group, step = num_heads // kv_heads, width / num_heads
    names = {num_heads: "multi-head (MHA)", 1: "multi-query (MQA)"}
    name = names.get(kv_heads, "grouped-query (GQA)")
    _write(axes, left + width / 2, 7, f"{name}: Hkv = {kv_heads}, G = {group}", 10.5, weight="bold")
    side = min(0.8 * step, 3.4)
    for kv_head in range(kv_heads):
        centre = left + (kv_head + 0.5) * group * step
        colour = PAPER if group == 1 else GROUPS[kv_head % 2]  # a colour joins heads that share
        for head in range(kv_head * group, (kv_head + 1) * group):
            x = left + (head + 0.5) * step
            axes.plot((x, centre), (12, 24), color=MUTED if group == 1 else colour, linewidth=1.4, zorder=0.5)
            _box(axes, x - side / 2, 12 - side / 2, side, side, colour, str(head) if side > 2 else "")
        _box(axes, centre - side / 2, 24 - side / 2, side, side, INK, str(kv_head) if side > 2 else "")


def _box(axes: Axes, left: float, top: float, width: float, height: float, colour: str, label: str) -> None:
    axes.add_patch(Rectangle((left, top), width, height, facecolor=colour, edgecolor=MUTED, linewidth=0.8))
    _write(axes, left + width / 2, top + height / 2, label, 9.5, text_colour(colour))


def _write(axes: Axes, x: float, y: float, text: str, size: float, color: str = INK, **look) -> None:
    axes.text(x, y, text, size=size, color=color, ha="center", va="center", **look)
