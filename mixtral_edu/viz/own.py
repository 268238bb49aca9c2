"""The reader's own Mixtral as a drawing: which parts of the model are theirs, and where these work."""

from collections.abc import Collection
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from mixtral_edu.exercises import exercises
from mixtral_edu.exercises.own import PARTS, names_kept
from mixtral_edu.viz.alt import describe
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MONO, MUTED, PAPER, new_figure, use_style

# For each part the left edge and the top of its box, and what it does there.
PLACES = {
    "decoder_layer": (4, 21, "4 × layer"),
    "rms_norm": (4, 31.5, "norm, in layers too"),
    "repetition_penalty": (4, 46, "repeat less"),
    "temperature_softmax": (4, 53.6, "probabilities"),
    "top_p_filter": (4, 61.2, "cut the tail"),
    "apply_rotary": (57, 12, "rotate by position"),
    "write_chunk": (39, 24, "store keys, values"),
    "slots_after": (57, 24, "what a slot holds"),
    "time_order": (75, 24, "read in time order"),
    "band_mask": (39, 36, "who sees whom"),
    "padded_window_mask": (57, 36, "… with padding"),
    "chunk_keys": (75, 36, "… as a text goes on"),
    "one_head": (39, 48, "attend: a prompt"),
    "grouped_attention": (57, 48, "attend: next token"),
    "masked_softmax": (75, 48, "attend: padding"),
    "route_tokens": (100, 12, "choose 2 experts"),
    "dispatch_tokens": (100, 24, "send, add up"),
    "gated_expert": (100, 36, "8 × expert"),
    "causal_loss": (100, 52, "next-token loss"),
    "balancing_loss": (100, 60, "balance of experts"),
}
PLAIN = {  # what is the package's in any case: left edge, top, width, height, label
    "token ids": (4, 8.6, 17, 3), "embedding": (4, 14.4, 17, 3.8), "lm_head": (4, 39.4, 17, 3.8),
    "queries, keys, values": (39, 12, 17, 6.2), "output projection": (57, 58.4, 17, 3.8),
}  # fmt: skip
PANELS = {  # left edge, top, width, height
    "attention in each layer": (36, 7, 59, 57.5), "experts in each layer": (97, 7, 23, 39.5),
    "in training": (97, 47.6, 23, 20.4),
}  # fmt: skip
WIDTH, HEIGHT = 17, 6.2  # of a part's box
ARROWS = [  # along a token's way
    ((12.5, 11.8), (12.5, 14.2)), ((12.5, 18.4), (12.5, 20.8)), ((12.5, 27.4), (12.5, 31.3)),
    ((12.5, 37.9), (12.5, 39.2)), ((12.5, 43.4), (12.5, 45.8)), ((12.5, 52.3), (12.5, 53.5)),
    ((12.5, 59.9), (12.5, 61.1)), ((56.1, 15.1), (56.9, 15.1)), ((65.5, 18.4), (65.5, 23.8)),
    ((65.5, 30.4), (65.5, 35.8)), ((65.5, 42.4), (65.5, 47.8)), ((65.5, 54.4), (65.5, 58.2)),
    ((95.1, 27), (96.9, 27)), ((108.5, 18.4), (108.5, 23.8)), ((108.5, 30.4), (108.5, 35.8)),
]  # fmt: skip


def draw_my_mixtral(folder: str | Path | None = None, figure: Figure | None = None) -> Figure:
    """Draw the model with the parts that `keep` has kept in blue, as "yours", and the package's in grey.

    The figure describes itself: its alternative text names both kinds.

    Args:
        folder: where parts are kept; None for `my_mixtral` in the folder where the notebook runs.
        figure: a figure to draw into instead of a new one.
    """
    return draw_parts(names_kept(folder), figure)


def draw_parts(yours: Collection[str], figure: Figure | None = None) -> Figure:
    """Draw the model with the parts `yours`, names of exercises, as the reader's; a name's number is its lesson's."""
    count = f"{len(yours)} of {len(PARTS)} parts are yours"
    with use_style():
        figure = new_figure(12, 7, figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 122), ylim=(70, 0))
        axes.set_axis_off()
        axes.text(2, 3.6, f"Your Mixtral: {count}", size=14, weight="bold", va="center")
        axes.add_patch(Polygon(((21, 21), (36, 7), (36, 64.5), (21, 27.2)), facecolor="#E6F0FA", zorder=0))
        for title, (x, y, width, height) in PANELS.items():
            _box(axes, x, y, width, height, "white", ACCENT if "layer" in title else FAINT)
            axes.text(x + 2, y + 2.6, title, size=11, weight="bold", va="center")
        for label, (x, y, width, height) in PLAIN.items():
            _box(axes, x, y, width, height, "white", FAINT)
            axes.text(x + width / 2, y + height / 2, label, size=9.5, color=MUTED, ha="center", va="center")
        for start, end in ARROWS:
            look = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, start, arrowprops=look)
        for name, (x, y, words) in PLACES.items():
            _part(axes, x, y, words, name, name in yours)
    rest = [name for name in PARTS if name not in yours]
    blue, grey = (", ".join(names) or "none" for names in ([name for name in PARTS if name in yours], rest))
    lists = f" In blue, yours: {blue}. In grey, the package's: {grey}." if yours else " All are grey, the package's."
    describe(f"The parts of the model along a token's way. {count}.{lists}", figure)
    return figure


def _part(axes: Axes, x: float, y: float, words: str, name: str, is_yours: bool) -> None:
    _box(axes, x, y, WIDTH, HEIGHT, *((ACCENT, INK) if is_yours else (PAPER, FAINT)))
    ink, middle = "white" if is_yours else MUTED, x + WIDTH / 2
    lines = [(words, 9.5, {"weight": "bold"}), (f"{exercises()[name].lesson} {name}", 7.6, {"family": MONO})]
    lines += [("yours", 9, {"style": "italic", "weight": "bold"})] * is_yours
    for row, (text, size, look) in enumerate(lines):
        height = y + HEIGHT * (row + 0.5) / len(lines)
        axes.text(middle, height, text, size=size, color=ink, ha="center", va="center", **look)


def _box(axes: Axes, x: float, y: float, width: float, height: float, fill: str, edge: str) -> None:
    corners = "round,pad=0,rounding_size=0.6"
    axes.add_patch(FancyBboxPatch((x, y), width, height, corners, facecolor=fill, edgecolor=edge, zorder=1))
