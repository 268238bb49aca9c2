"""Mixtral as one drawing, and its parameters as bars: all of them, and those active for one token."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle, Wedge

from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, PAPER, expert_colour, new_figure, text_colour, use_style

PART_COLOURS = {  # none is the colour of a single expert
    "experts": "#486581",
    "attention": "#9FB3C8",
    "embedding": "#D64545",
    "lm_head": "#F29B9B",
    "router": "#8D2B0B",
    "norms": "#F7C948",
}
PROMPT = ("The", "cat", "sat", "on", "the")
GUESSES = (("mat", 0.55), ("sofa", 0.25), ("roof", 0.12))  # example of next-token probabilities
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # background of a label that crosses lines
CIRCLE = {"facecolor": "white", "edgecolor": INK, "boxstyle": "circle,pad=0.2"}


def architecture(
    config: MixtralConfig, prompt: Sequence[str] = PROMPT, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the model that `config` describes: the whole stack, one layer, and that layer's attention and experts.

    All sizes come from `config`. The highlighted experts, their weights and the final guesses are examples.

    Args:
        config: the model to draw.
        prompt: about five short words, shown as tokens.
        title: replaces the computed title.
        figure: a figure to draw into instead of a new one.
    """
    L, K, E = config.num_hidden_layers, config.num_experts_per_tok, config.num_local_experts
    if title is None:
        title = f"Mixtral: every token passes {L} layers, and in each of them meets {K} of {E} experts"
    with use_style():
        figure = new_figure(12, 7, figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 120), ylim=(70, 0))
        axes.set_axis_off()
        _write(axes, 2, 3.6, title, size=14, ha="left", weight="bold")
        _zoom(axes, panel=(29, 7, 25, 61), source=(24, 25.2, 12))
        _zoom(axes, panel=(60, 7, 58, 25), source=(52, 22, 9))
        _zoom(axes, panel=(60, 35, 58, 33), source=(52, 47, 9))
        _stack(axes, config, prompt)
        _layer(axes, config)
        _attention(axes, config)
        _experts(axes, config)
    return figure


def parameter_bars(
    configs: Mapping[str, MixtralConfig], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw stacked bars for each named config: all parameters by part, and those active for one token.

    Each config has its own axis: compare bars within a config, and the printed numbers between configs.
    """
    if not configs:
        raise ValueError("configs is empty: give at least one name and its MixtralConfig")
    counts = {name: config.parameter_counts() for name, config in configs.items()}
    if title is None:
        title = "One token meets " + ", ".join(
            f"{c.active / c.total:.0%} of {name}'s {short_count(c.total)} parameters" for name, c in counts.items()
        )
    head, panel = 0.95, 1.5  # inches
    height = head + panel * len(counts)
    with use_style():
        figure = new_figure(11.5, height, figure)
        figure.text(0.012, 1 - 0.28 / height, title, size=13, weight="bold", va="center")
        for row, (name, count) in enumerate(counts.items()):
            bottom = (height - head - panel * (row + 1) + 0.45) / height
            axes = figure.add_axes((0.145, bottom, 0.745, (panel - 0.5) / height))
            idle = count.total - count.active
            _stacked_bar(axes, 1, count.per_part)
            _stacked_bar(axes, 0, count.per_part | {"experts": count.per_part["experts"] - idle})
            if idle:
                axes.barh(0, idle, left=count.active, color="none", edgecolor=FAINT, height=0.72, hatch="///")
                _write(axes, count.active + idle / 2, 0, f"{short_count(idle)} idle", 10.5, MUTED, bbox=CLEAR)
            for position, number in ((1, count.total), (0, count.active)):
                _write(axes, count.total * 1.012, position, short_count(number), 11.5, ha="left", weight="bold")
            axes.set(xlim=(0, count.total), ylim=(-0.5, 1.5), yticks=(1, 0), yticklabels=(f"{name}\nall", "per token"))
            axes.xaxis.set_major_formatter(lambda value, _: short_count(value, digits=0))
            axes.tick_params(axis="y", length=0, labelcolor=INK)
            if row == 0:
                bars = [Rectangle((0, 0), 1, 1, color=colour) for colour in PART_COLOURS.values()]
                place = (0.135, 1 - 0.67 / height)
                figure.legend(bars, PART_COLOURS, ncols=len(bars), loc="center left", bbox_to_anchor=place)
    return figure


def short_count(number: float, digits: int = 1) -> str:
    """Abbreviate a count for a label: 46702792704 becomes '46.7 B', 8012032 becomes '8.0 M'."""
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.{digits}f}{letter}"
    return f"{number:.0f}"


def _stack(axes: Axes, config: MixtralConfig, prompt: Sequence[str]) -> None:
    D, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    left = 2.0
    for word in prompt:
        width = 1.6 + 0.95 * len(word)
        axes.add_patch(Rectangle((left, 7.2), width, 3, facecolor="white", edgecolor=MUTED))
        _write(axes, left + width / 2, 8.8, word)
        left += width + 0.5
    _arrow(axes, (13, 10.4), (13, 12.6), "token ids")
    _box(axes, 3, 12.8, 20, 5.6, "embedding", f"table of {V:,} × {D:,}")
    _arrow(axes, (13, 18.6), (13, 22.6), f"{D:,} numbers\neach")
    for shift in (1.4, 0.7, 0):
        _box(axes, 3 + shift, 25 - shift * 1.2, 20, 12, edge=ACCENT)
    _write(axes, 13, 29.6, f"{L} × layer", size=13, weight="bold")
    _write(axes, 13, 33.2, "attention, then experts", color=MUTED)
    _arrow(axes, (13, 37.2), (13, 40.4))
    _box(axes, 3, 40.6, 20, 3.6, "RMSNorm")
    _arrow(axes, (13, 44.4), (13, 47.2))
    _box(axes, 3, 47.4, 20, 5.6, "lm_head", f"{D:,} → {V:,} scores")
    _arrow(axes, (13, 53.2), (13, 56.2))
    _write(axes, 13, 57.6, "next token (example)", size=10.5, weight="bold")
    for row, (word, share) in enumerate(GUESSES):
        y = 60.4 + 2.7 * row
        _write(axes, 8.6, y, word, ha="right")
        axes.add_patch(Rectangle((9.4, y - 0.9), 15 * share, 1.8, facecolor=ACCENT))
        _write(axes, 9.9 + 15 * share, y, f"{share:.0%}", 9.5, MUTED, ha="left")


def _layer(axes: Axes, config: MixtralConfig) -> None:
    spine = 33.0  # the residual stream: both halves branch off from it and add to it
    _write(axes, 41.5, 9.4, "one layer", size=12, weight="bold")
    _write(axes, spine, 12, "x", size=11, style="italic")
    picks = f"router picks {config.num_experts_per_tok} of {config.num_local_experts}"
    for start, top, name, note in (
        (13.2, 14, "attention", f"{config.num_attention_heads} query heads"),
        (36.4, 39, "experts", picks),
    ):
        _arrow(axes, (spine, start), (spine, top + 19.2))
        axes.plot((spine, 45), (top + 1.4, top + 1.4), color=INK, linewidth=1.2)
        _arrow(axes, (45, top + 1.4), (45, top + 3))
        _box(axes, 38, top + 3.2, 14, 3, "RMSNorm")
        axes.plot((45, 45), (top + 6.2, top + 8), color=INK, linewidth=1.2)
        _box(axes, 38, top + 8, 14, 9, name, note, edge=ACCENT)
        axes.plot((45, 45), (top + 17, top + 20.8), color=INK, linewidth=1.2)
        _arrow(axes, (45, top + 20.8), (spine + 1.7, top + 20.8))
        _write(axes, spine, top + 20.8, "+", size=13, weight="bold", bbox=CIRCLE)
    _arrow(axes, (spine, 61.4), (spine, 66.6), "to the next layer")


def _attention(axes: Axes, config: MixtralConfig) -> None:
    queries, keys, window = config.num_attention_heads, config.num_key_value_heads, config.sliding_window
    _write(axes, 62, 9.4, "grouped-query attention", size=12, ha="left", weight="bold")
    sharing = f"{queries} query heads share {keys} key/value heads of {config.head_dim} numbers"
    _write(axes, 62, 12.2, sharing, color=MUTED, ha="left")
    _write(axes, 67.2, 17.2, "queries", ha="right")
    _write(axes, 67.2, 24.6, "keys,\nvalues", ha="right")
    group, step = queries // keys, 30 / (queries + 0.8 * keys)
    side = min(step * 0.82, 2.4)
    for key_idx in range(keys):
        start = 68.4 + key_idx * (group + 0.8) * step
        centre = start + ((group - 1) * step + side) / 2
        for x in (start + query_idx * step for query_idx in range(group)):
            axes.plot((x + side / 2, centre), (18.4, 23.4), color=MUTED, linewidth=0.7)
            axes.add_patch(Rectangle((x, 17.2 - side / 2), side, side, facecolor=ACCENT))
        width = min(2.2, group * step * 0.9)
        axes.add_patch(Rectangle((centre - width / 2, 23.4), width, 2.4, facecolor=INK))
    line = {"edgecolor": MUTED, "linewidth": 0.8}
    if window is None:
        for slot, colour in enumerate((*[PAPER] * 7, ACCENT)):
            axes.add_patch(Rectangle((102.6 + 1.6 * slot, 19), 1.6, 2.4, facecolor=colour, **line))
        _write(axes, 109, 17, "cache, newest in blue")
        _write(axes, 116.5, 20, "…", size=11)
        note = "no window: the cache keeps every position"
    else:
        for slot, colour in enumerate((*[PAPER] * 4, ACCENT, *[PAPER] * 11)):
            angle = 90 - slot * 22.5
            axes.add_patch(Wedge((109, 18.4), 5.6, angle - 22.5, angle, width=2.2, facecolor=colour, **line))
        _write(axes, 109, 18.4, "rolling\ncache", size=9.5)
        note = f"window W = {window:,}: position p is kept in slot p mod {window:,}"
    _write(axes, 117, 29.2, note, color=MUTED, ha="right")


def _experts(axes: Axes, config: MixtralConfig) -> None:
    D, F = config.hidden_size, config.intermediate_size
    E, K = config.num_local_experts, config.num_experts_per_tok
    _write(axes, 62, 37.4, "sparse mixture of experts", size=12, ha="left", weight="bold")
    _write(axes, 62, 40.2, f"each expert is a SwiGLU network {D:,} → {F:,} → {D:,}", color=MUTED, ha="left")
    shown = min(E, 12)
    lit = [(i + 1) * shown // (K + 1) for i in range(K)] if K < shown else list(range(shown))
    weights = [math.exp(-i / 2) for i in range(len(lit))]
    middle, step = 55, 24 / (shown if shown == E else shown + 1)
    size = min(10, step * 4.6)
    _arrow(axes, (61.4, middle), (64.8, middle))
    _box(axes, 65, middle - 3.5, 11, 7, "router", f"{E} scores")
    for expert in range(shown):
        y = 43 + (expert + 0.5) * step
        colour, ink, edge, width = PAPER, MUTED, FAINT, 0.8
        if expert in lit:
            colour, edge, width = expert_colour(expert), INK, 1.6
            ink = text_colour(colour)
            weight = weights[lit.index(expert)] / sum(weights)
            axes.plot((103, 107.3), (y, middle), color=INK, linewidth=width)
            _write(axes, 97.6, y, f"× {weight:.2f}", size, ha="left", weight="bold", bbox=CLEAR)
        axes.plot((76.3, 85), (middle, y), color=edge, linewidth=width)
        axes.add_patch(Rectangle((85, y - step * 0.42), 12, step * 0.84, facecolor=colour, edgecolor=edge))
        _write(axes, 91, y, f"expert {expert}", size, ink)
    if shown < E:
        _write(axes, 91, 67 - step / 2, f"… {E - shown} more", 9, MUTED)
    _write(axes, 109, middle, "Σ", size=13, weight="bold", bbox=CIRCLE)
    _arrow(axes, (110.8, middle), (117, middle))
    _write(axes, 113, middle - 3.8, "weighted\nsum", color=MUTED)
    _write(axes, 113, middle + 3.4, "(example\nweights)", 9, MUTED)


def _zoom(axes: Axes, panel: tuple, source: tuple) -> None:
    """Draw a framed panel (left, top, width, height), fanned out from the right edge of a box (x, top, height)."""
    left, top, width, height = panel
    x, source_top, source_height = source
    fan = ((x, source_top), (left, top), (left, top + height), (x, source_top + source_height))
    axes.add_patch(Polygon(fan, closed=True, facecolor="#E6F0FA", edgecolor="none", zorder=0))
    _box(axes, left, top, width, height, edge=ACCENT, fill="white", zorder=0.5)


def _box(axes: Axes, x, y, width, height, label: str = "", note: str = "", edge=MUTED, fill=PAPER, zorder=1) -> None:
    corners = "round,pad=0,rounding_size=0.6"
    axes.add_patch(FancyBboxPatch((x, y), width, height, corners, fc=fill, ec=edge, linewidth=1.2, zorder=zorder))
    shift = 1.2 if note else 0
    _write(axes, x + width / 2, y + height / 2 - shift, label, size=11, weight="bold")
    _write(axes, x + width / 2, y + height / 2 + shift, note, 9.5, MUTED)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "") -> None:
    look = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look)
    _write(axes, start[0] + 1, (start[1] + end[1]) / 2, label, 9, MUTED, ha="left")


def _write(axes: Axes, x: float, y: float, text: str, size: float = 10, color: str = INK, ha="center", **look) -> None:
    axes.text(x, y, text, size=size, color=color, ha=ha, va="center", **look)


def _stacked_bar(axes: Axes, position: int, per_part: Mapping[str, int]) -> None:
    left = 0
    for part, colour in PART_COLOURS.items():
        axes.barh(position, per_part[part], left=left, color=colour, height=0.72)
        left += per_part[part]
