"""What trained heads attend to: attention maps, one number per head, and one query at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.attention import SHADES
from mixtral_edu.viz.style import (
    ACCENT,
    FAINT,
    INK,
    MONO,
    MUTED,
    as_label,
    new_figure,
    printable,
    text_colour,
    use_style,
)


def head_maps(
    weights: ArrayLike,
    tokens: Sequence[str],
    num_kv_heads: int,
    layer: int | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw the attention weights of all heads of a layer; heads that share keys are in one row.

    Args:
        weights: (Hq, T, T), one row per query.
        tokens: T pieces, written with their positions beside the first map of each row.
        num_kv_heads: Hkv.
        layer: index of the layer, for the title.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `weights` has another shape, or Hkv does not divide Hq.
    """
    weights, T = np.asarray(weights), len(tokens)
    if weights.ndim != 3 or weights.shape[1:] != (T, T):
        raise ValueError(f"weights has shape {weights.shape}; with {T} tokens it must be (Hq, {T}, {T})")
    if num_kv_heads < 1 or len(weights) % num_kv_heads:
        raise ValueError(f"num_kv_heads={num_kv_heads}; it must divide the {len(weights)} query heads")
    group = len(weights) // num_kv_heads
    if title is None:
        place = "" if layer is None else f"Layer {layer}: "
        title = f"{place}{len(weights)} heads read the same text, each in its own way; heads side by side share keys"
    wide, tall, left, top, gap = 9.1 / group, 2.7, 1.25, 0.75, 0.52  # inches
    height = top + num_kv_heads * (tall + gap)
    with use_style():
        figure = new_figure(11, height, figure)
        figure.text(0.012, 1 - 0.24 / height, title, size=13, weight="bold", va="center")
        for head, values in enumerate(weights):
            row, column = divmod(head, group)
            x, y = left + column * wide, height - top - row * (tall + gap) - tall
            axes = figure.add_axes((x / 11, y / height, (wide - 0.08) / 11, tall / height))
            _map(axes, values)
            axes.set_title(f"head {head}, keys {row}", size=10.5, pad=4)
            if column == 0:
                _name_queries(axes, tokens, size=min(9, 165 / T))
            if row == num_kv_heads - 1:
                axes.set_xlabel("key position j", size=10)
        bar = figure.add_axes((10.47 / 11, (height - top - tall) / height, 0.13 / 11, tall / height))
        figure.colorbar(ScalarMappable(Normalize(0, 1), SHADES), cax=bar, ticks=(0, 0.5, 1))
        bar.set_title("weight", size=10, loc="center", pad=8)
        bar.tick_params(labelsize=9, length=2)
    return figure


def head_scores(shares: Mapping[str, ArrayLike], title: str | None = None, figure: Figure | None = None) -> Figure:
    """Draw heat maps of one number per head, in percent; rows are layers.

    Args:
        shares: for each kind of number, (L, Hq) values up to 1, white at 0 and below; the kind becomes the heading.
        title: replaces the computed title, which names the largest number.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `shares` is empty, or its shapes are not one (L, Hq).
    """
    shares = {kind: np.asarray(values) for kind, values in shares.items()}
    shapes = {values.shape for values in shares.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
        given = [values.shape for values in shares.values()]
        raise ValueError(
            f"shares has shapes {given}; it must hold at least one kind of number, all of one shape (L, Hq)"
        )
    num_layers, num_heads = shape
    if title is None:
        kind = max(shares, key=lambda kind: shares[kind].max())
        layer, head = np.unravel_index(shares[kind].argmax(), shape)
        title = f"Layer {layer}, head {head} has the largest share, {shares[kind].max():.0%}: {kind}"
    grid = 0.36 * num_layers  # inches, like all lengths here
    panel = grid + 0.95
    height = 0.55 + -(-len(shares) // 2) * panel
    with use_style():
        figure = new_figure(11, height, figure)
        figure.text(0.012, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
        for number, (kind, values) in enumerate(shares.items()):
            row, column = divmod(number, 2)
            bottom = height - 0.91 - row * panel - grid
            axes = figure.add_axes((0.06 + 0.49 * column, bottom / height, 0.435, grid / height))
            axes.imshow(values, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
            for (layer, head), share in np.ndenumerate(values):
                ink = text_colour(to_hex(SHADES(float(share))))
                percent = f"{round(100 * float(share))}".replace("-", "−")
                axes.text(head, layer, percent, ha="center", va="center", color=ink, size=10)
            axes.set_title(kind, size=11, pad=6)
            axes.set(xticks=range(num_heads), yticks=range(num_layers), xlabel="head", ylabel="layer")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    return figure


def experiments(
    values: Mapping[str, ArrayLike],
    xlabel: str,
    controls: Sequence[str] = (),
    dots: str = "one text",
    form: str = "{:.2f}",
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw what experiments measure: per experiment a bar for the mean, and a dot for each single measurement.

    Args:
        values: the measurements of each experiment, by its name.
        xlabel: what is measured, with its unit.
        controls: names of experiments that are controls, drawn in grey and hatched.
        dots: what one dot is, for the legend.
        form: how a mean is written beside its bar.
        title: replaces the computed title, which names the largest mean.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `values` is empty, or a control is not among them.
    """
    values = {name: np.atleast_1d(np.asarray(measured, float)) for name, measured in values.items()}
    if not values or set(controls) - values.keys():
        raise ValueError(f"values has {list(values)} and controls {list(controls)}; give values, with all controls")
    means = [float(measured.mean()) for measured in values.values()]
    if title is None:
        most = int(np.argmax(means))
        title = f"{form.format(means[most])} at most: {list(values)[most]}"
    low, high = (float(bound(np.concatenate([*values.values(), [0.0]]))) for bound in (np.min, np.max))
    span = (high - low) or 1.0
    tall = 0.42 * len(values)  # inches
    with use_style():
        figure = new_figure(10, tall + 1.65, figure)
        figure.text(0.012, 1 - 0.24 / figure.get_figheight(), title, size=13, weight="bold", va="center")
        axes = figure.add_axes((0.37, 0.62 / figure.get_figheight(), 0.6, tall / figure.get_figheight()))
        for row, (name, measured) in enumerate(values.items()):
            look = {"facecolor": FAINT, "hatch": "///", "edgecolor": MUTED} if name in controls else {"color": ACCENT}
            axes.barh(row, means[row], height=0.62, linewidth=0, alpha=0.75, **look)
            axes.plot(measured, np.full(len(measured), row), "o", color=INK, markersize=3.2, alpha=0.65)
            written = form.format(means[row])
            written = written.replace("-", "−" if written.strip("-0.") else "")  # no sign before a rounded zero
            end = max(0.0, float(measured.max())) + 0.015 * span
            axes.text(end, row, written, va="center", size=10.5, weight="bold")
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set(ylim=(len(values) - 0.5, -0.5), xlim=(low - 0.02 * span, high + 0.13 * span), xlabel=xlabel)
        axes.set_yticks(range(len(values)), [as_label(name) for name in values])
        axes.tick_params(axis="y", length=0)
        signs = [Line2D([], [], color=INK, marker="o", markersize=3.2, linewidth=0, label=as_label(dots))]
        signs += [Patch(facecolor=ACCENT, alpha=0.75, label="mean")]
        signs += [Patch(facecolor=FAINT, hatch="///", edgecolor=MUTED, label="mean, control")] if controls else []
        figure.legend(
            handles=signs, loc="upper right", bbox_to_anchor=(0.98, 1 - 0.42 / figure.get_figheight()), ncols=3
        )
    return figure


def looking(
    weights: ArrayLike, tokens: Sequence[str], query: int, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw one head's map with a query's row framed, and the keys that get most of that query's weight.

    Args:
        weights: (T, T), one row per query.
        tokens: T pieces.
        query: index of the framed row.
        title: replaces the computed title, which names the query and its favourite key.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `weights` is not (T, T), or `query` is not a position of the text.
    """
    weights, T = np.asarray(weights), len(tokens)
    if weights.shape != (T, T):
        raise ValueError(f"weights has shape {weights.shape}; with {T} tokens it must be {(T, T)}")
    if not 0 <= query < T:
        raise ValueError(f"query={query}; it must be a position from 0 to {T - 1}")
    tokens = [printable(token) for token in tokens]
    keys = favourites(weights[query], query, 8)
    if title is None:
        best = weights[query, keys[0]]
        title = f"“{tokens[query]}” ({query}) gives {best:.0%} of its weight to “{tokens[keys[0]]}” ({keys[0]})"
    with use_style():
        figure = new_figure(10, 5.1, figure)
        figure.text(0.012, 0.95, title, size=13, weight="bold", va="center")
        axes = figure.add_axes((0.15, 0.11, 0.405, 0.405 * 10 / 5.1))
        _map(axes, weights)
        axes.add_patch(Rectangle((-0.5, query - 0.5), query + 1, 1, fill=False, edgecolor="#8D2B0B", linewidth=1.5))
        _name_queries(axes, tokens, size=min(9, 240 / T))
        axes.set(xlabel="key position j", ylabel="query position i")
        bars = figure.add_axes((0.72, 0.11, 0.26, 0.76))
        bars.barh(range(len(keys)), weights[query, keys], color=ACCENT, height=0.7)
        for row, key in enumerate(keys):
            bars.text(weights[query, key] + 0.02, row, f"{weights[query, key]:.0%}", va="center", size=10)
        bars.set_yticks(range(len(keys)), [f"{key} {tokens[key]}" for key in keys], family=MONO)
        bars.set(xlim=(0, 1.15), ylim=(7.5, -0.5), xlabel="weight")
        bars.xaxis.set_major_formatter("{x:.0%}")
    return figure


def favourites(weights: ArrayLike, query: int, most: int) -> list[int]:
    """Return the keys that get most of a query's weight, largest first: at most `most`, each with 1% or more.

    If no key gets 1%, the result is the key with the largest weight.

    >>> favourites([0.295, 0.004, 0.7, 0.001], query=3, most=3)
    [2, 0]
    """
    weights = np.asarray(weights)[: query + 1]
    keys = np.argsort(-weights, kind="stable")[:most].tolist()
    return [key for key in keys if weights[key] >= 0.01] or keys[:1]


def _map(axes: Axes, weights: np.ndarray) -> None:
    """Draw weights (T, T) as squares, darker where larger; the staircase bounds what a query may see."""
    axes.imshow(weights, cmap=SHADES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    T = len(weights)
    steps = np.repeat(np.arange(T + 1), 2)[1:-1] - 0.5
    axes.plot(np.append(steps[1:], T - 0.5), steps, color=MUTED, linewidth=0.7)
    axes.set(xlim=(-0.5, T - 0.5), ylim=(T - 0.5, -0.5), xticks=range(0, T, max(1, round(T / 4))), yticks=[])
    axes.tick_params(axis="x", length=3, pad=2, labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(True)
    axes.spines[["left", "bottom"]].set_color(INK)


def _name_queries(axes: Axes, tokens: Sequence[str], size: float) -> None:
    """Label each row with its piece and position; the key axis has only positions."""
    names = [f"{printable(token)} {position:2d}" for position, token in enumerate(tokens)]
    axes.set_yticks(range(len(tokens)), names, family=MONO, size=size)
