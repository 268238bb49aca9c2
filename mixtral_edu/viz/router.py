"""What the router did: a text whose tokens have the colour of their expert, and the load of each expert."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.text.tokenizer import Piece
from mixtral_edu.viz.style import (
    FAINT,
    INK,
    MONO,
    MONO_ADVANCE,
    MUTED,
    expert_colour,
    new_figure,
    printable,
    text_colour,
    use_style,
)

# Lengths in the token picture, in points (72 per inch).
WIDTH = 756
MARGIN = 8
TEXT_SIZE, NUMBER_SIZE = 11, 8.5
TEXT_HEIGHT, STRIP_HEIGHT, ROW_HEIGHT = 18, 12, 38
PAD = 2.5  # on both sides of a token's text
TOKEN_GAP, WORD_GAP = 1.5, 5.5
HEADER, LEGEND_HEIGHT = 68, 20


@dataclass
class TokenBox:
    """The place of one token: index into the pieces, text drawn, left edge and width in points, row number."""

    index: int
    text: str
    left: float
    width: float
    row: int


def coloured_tokens(
    pieces: Sequence[str | Piece],
    experts: ArrayLike,
    weights: ArrayLike | None = None,
    layer: int | None = None,
    title: str | None = None,
    num_experts: int = 8,
    max_tokens: int = 220,
    figure: Figure | None = None,
) -> Figure:
    """Draw a text as boxes, one per token, coloured by its first expert; the strip below numbers all its experts.

    A gap before a box stands for the space that its piece begins with; a newline piece (`↵`) ends the line.

    Args:
        pieces: N token pieces as SentencePiece writes them (`▁` for a space, `<0x0A>` for a byte), or what
            `tokenizer.pieces` returns.
        experts: (N, K) chosen experts, the first choice first; or (N,).
        weights: (N, K) router weights. If given, they divide each strip in proportion, as far as the numbers allow.
        layer: the layer that the choices come from, for the title.
        title: replaces the computed title, which names the expert with the most first choices.
        num_experts: E, for the legend, whose shares count first choices among all N tokens.
        max_tokens: longer texts are cut to this number of tokens, and the figure says so.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pieces` is empty, the lengths differ, or an expert is not in 0..E-1.
    """
    experts = _choices(experts, num_experts)
    if len(pieces) != len(experts):
        raise ValueError(f"experts has {len(experts)} rows; it must have one row for each of the {len(pieces)} pieces")
    if weights is not None and np.shape(weights) != experts.shape:
        raise ValueError(f"weights has shape {np.shape(weights)}; it must have the shape of experts, {experts.shape}")
    shares = np.bincount(experts[:, 0], minlength=num_experts) / len(experts)
    if title is None:
        favourites = np.flatnonzero(shares == shares.max())
        place = "" if layer is None else f"Layer {layer}: "
        *others, last = map(str, favourites)
        who = f"experts {', '.join(others)} and {last} are each" if others else f"expert {last} is"
        subject = f"{who} the first choice of {shares.max():.0%} of {len(experts)} tokens"
        title = place + (subject if place else subject.capitalize())

    boxes = place_tokens(pieces[:max_tokens], narrowest=experts.shape[1] * _number_width(num_experts - 1))
    left_out = len(pieces) - len(boxes)
    height = HEADER + (boxes[-1].row + 1) * ROW_HEIGHT + (20 if left_out else 0)
    with use_style():
        figure = new_figure(WIDTH / 72, height / 72, figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        axes.text(MARGIN, 15, title, size=13, weight="bold", va="center")
        _legend(axes, shares, experts.shape[1])
        patches = []
        for box in boxes:
            top = HEADER + box.row * ROW_HEIGHT
            shares_of_strip = None if weights is None else np.asarray(weights)[box.index]
            patches += _token(axes, box, top, experts[box.index], shares_of_strip)
        axes.add_collection(PatchCollection(patches, match_original=True))
        if left_out:
            axes.text(MARGIN, height - 14, f"… and {left_out} more tokens", size=10, color=MUTED, va="center")
    return figure


def place_tokens(pieces: Sequence[str | Piece], narrowest: float = 0) -> list[TokenBox]:
    """Lay out `pieces` in rows of the picture's width, with gaps between words and a new row after each newline.

    No box is narrower than `narrowest` points.
    """
    boxes: list[TokenBox] = []
    left, row, row_ended = float(MARGIN), 0, False
    for index, piece in enumerate(pieces):
        text, gap, is_newline = _shown(getattr(piece, "piece", piece))
        width = max(len(text) * TEXT_SIZE * MONO_ADVANCE + 2 * PAD, narrowest)
        if left > MARGIN:
            left += WORD_GAP if gap else TOKEN_GAP
        if left + width > WIDTH - MARGIN or (row_ended and not is_newline):  # further newlines stay in the row
            left, row = float(MARGIN), row + 1
        boxes.append(TokenBox(index, text, left, width, row))
        left, row_ended = left + width, is_newline
    return boxes


def expert_load(
    experts: ArrayLike,
    num_experts: int = 8,
    title: str | None = None,
    figure: Figure | None = None,
    top: float | None = None,
) -> Figure:
    """Draw the share of tokens that each expert gets as bars, first choices solid and further ones hatched.

    Args:
        experts: (N, K) chosen experts, the first choice first; or (N,).
        num_experts: E. With an even load every expert gets K/E of the tokens: the dashed line.
        title: replaces the computed title, which names the busiest and the least busy expert.
        figure: a figure to draw into instead of a new one.
        top: the end of the axis, so that figures side by side share a scale; None fits it to the bars.
    """
    experts = _choices(experts, num_experts)
    num_tokens, num_choices = experts.shape
    first = np.bincount(experts[:, 0], minlength=num_experts) / num_tokens
    total = np.bincount(experts.ravel(), minlength=num_experts) / num_tokens
    even = num_choices / num_experts
    top = 1.16 * max(total.max(), even) if top is None else top
    if title is None:
        most, least = int(total.argmax()), int(total.argmin())
        title = f"Expert {most} sees {total[most]:.0%} of the tokens, expert {least} sees {total[least]:.0%}"
    with use_style():
        figure = new_figure(8.5, 3.6, figure)
        axes = figure.add_axes((0.085, 0.16, 0.895, 0.70))
        colours = [expert_colour(e) for e in range(num_experts)]
        axes.bar(range(num_experts), first, color=colours, label="first choice", edgecolor=INK, linewidth=0.6)
        if num_choices > 1:
            axes.bar(range(num_experts), total - first, bottom=first, color=colours, hatch="////", alpha=0.55)
        axes.hlines(even, -0.6, num_experts - 0.4, color=INK, linewidth=1.2, linestyle="--")
        axes.text(num_experts - 0.35, even, f"even load\n{even:.1%}", va="center", size=10)
        for expert, share in enumerate(total):
            label = axes.text(expert, share + 0.01 * top, f"{share:.0%}", ha="center", va="bottom", size=10.5)
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
        axes.set(
            xlim=(-0.6, num_experts + 0.5),
            ylim=(0, top),
            xticks=range(num_experts),
            xlabel="expert" + (" (solid: first choice, hatched: second)" if num_choices > 1 else ""),
            ylabel="share of tokens",
        )
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_title(title)
    return figure


def _choices(experts: ArrayLike, num_experts: int) -> np.ndarray:
    experts = np.asarray(experts)
    experts = experts[:, None] if experts.ndim == 1 else experts
    if experts.size == 0:
        raise ValueError("experts is empty: give the experts of at least one token")
    if experts.min() < 0 or experts.max() >= num_experts:
        raise ValueError(f"experts ranges over {experts.min()}..{experts.max()}; all must be in 0..{num_experts - 1}")
    return experts


def _shown(piece: str) -> tuple[str, bool, bool]:
    """Return the text to draw for a piece, whether a gap goes before it, and whether it ends the line."""
    if piece in ("<0x0A>", "\n"):
        return "↵", False, True
    if not piece.strip("▁ "):
        return "␣" * len(piece), False, False
    text = piece.removeprefix("▁").replace("▁", " ").replace("\n", "↵").replace("\t", "⇥")
    return printable(text), piece.startswith("▁"), piece.endswith("\n")


def _number_width(expert: int) -> float:
    return len(str(expert)) * NUMBER_SIZE * MONO_ADVANCE + 3


def _token(axes: Axes, box: TokenBox, top: float, experts: np.ndarray, weights: np.ndarray | None) -> list[Rectangle]:
    """Write one token's texts into `axes` and return its rectangles."""
    colour = expert_colour(experts[0])
    centre = box.left + box.width / 2
    _letters(axes, centre, top + TEXT_HEIGHT / 2 + 0.5, box.text, TEXT_SIZE, colour)
    rectangles = [Rectangle((box.left, top), box.width, TEXT_HEIGHT, facecolor=colour, linewidth=0)]
    least = np.array([_number_width(e) for e in experts])
    spare = max(0.0, box.width - least.sum())
    shares = np.full(len(experts), 1 / len(experts)) if weights is None else np.asarray(weights, dtype=float)
    left = box.left
    for expert, width in zip(experts, least + spare * shares, strict=True):
        width *= box.width / (least.sum() + spare)
        colour = expert_colour(expert)
        edge = {"edgecolor": "white", "linewidth": 0.8}  # keeps neighbouring numbers apart
        rectangles.append(Rectangle((left, top + TEXT_HEIGHT), width, STRIP_HEIGHT, facecolor=colour, **edge))
        middle = top + TEXT_HEIGHT + STRIP_HEIGHT / 2 + 0.3
        _letters(axes, left + width / 2, middle, str(expert), NUMBER_SIZE, colour)
        left += width
    return rectangles


def _letters(axes: Axes, x: float, y: float, text: str, size: float, background: str) -> None:
    axes.figure.text(  # axes.text would prepare clipping for each of several hundred texts
        x,
        y,
        text,
        size=size,
        family=MONO,
        color=text_colour(background),
        ha="center",
        va="center_baseline",
        transform=axes.transData,
    )


def _legend(axes: Axes, shares: np.ndarray, num_choices: int) -> None:
    top, step = 30, min(58.0, (WIDTH - 2 * MARGIN - 190) / len(shares))
    separator, size = (": ", 9.5) if step > 50 else ("\n", 7.5)
    for expert, share in enumerate(shares):
        left, colour = MARGIN + expert * step, expert_colour(expert)
        axes.add_patch(Rectangle((left, top), step - 3, LEGEND_HEIGHT, facecolor=colour, edgecolor=FAINT))
        axes.text(
            left + (step - 3) / 2,
            top + LEGEND_HEIGHT / 2,
            f"{expert}{separator}{share:.0%}",
            size=size,
            color=text_colour(colour),
            ha="center",
            va="center",
        )
    strip = " · ".join(("first", "second")[:num_choices]) if num_choices <= 2 else "all, the first on the left"
    note = f"expert: share of first choices\nunder a token: {strip}"
    axes.text(MARGIN + len(shares) * step + 4, top + LEGEND_HEIGHT / 2, note, size=9.5, color=MUTED, va="center")
