"""The logit lens: what the model would predict if it ended after fewer layers.

Source of the idea: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mixtral_edu.viz.style import (
    ACCENT,
    FAINT,
    INK,
    MONO,
    MUTED,
    PAPER,
    new_figure,
    printable,
    quoted,
    text_colour,
    use_style,
)

SHADES = LinearSegmentedColormap.from_list("shades", (PAPER, "#A9C4E4", ACCENT))  # probability 0 to 1
HIT = "#B7410E"  # frame of a correct guess


@torch.no_grad()
def logit_lens(model: nn.Module, states: Tensor) -> Tensor:
    """Decode every state of the residual stream as if it were the last: final norm, head and softmax.

    Args:
        model: a `MixtralForCausalLM`.
        states: (L + 1, T, D), as `residual_stream` returns them.

    Returns:
        (L + 1, T, V) probabilities of the next token; the last state gives the model's own.
    """
    return model.lm_head(model.model.norm(states)).float().softmax(dim=-1)


def depth_names(number: int) -> list[str]:
    """Name the `number` = L + 1 states of the stream: the embedding, then each layer."""
    return ["embedding", *(f"layer {layer}" for layer in range(number - 1))]


def lens_table(
    pieces: Sequence[str],
    guesses: Sequence[Sequence[str]],
    probabilities: ArrayLike,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw a table of the likeliest next tokens: one row per token of a text, one column per state of the stream.

    Darker cells are likelier guesses. A frame marks a guess that equals the text's actual next token.

    Args:
        pieces: the T tokens of the text.
        guesses: L + 1 rows of T pieces, the likeliest next token after each.
        probabilities: (L + 1, T), the probability of each guess.
        title: replaces the computed title, which counts the frames of the last and the first column.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pieces` is empty, or `guesses` or `probabilities` is not (L + 1, T).
    """
    shares = np.asarray(probabilities, dtype=float)
    T = len(pieces)
    if T == 0 or shares.ndim != 2 or shares.shape != (len(guesses), T) or any(len(row) != T for row in guesses):
        raise ValueError(
            f"pieces has length {T}, guesses has rows of lengths {[len(row) for row in guesses]} and probabilities has "
            f"shape {shares.shape}; T must be at least 1, and both guesses and probabilities (L + 1, T)"
        )
    hits = [[guess == following for guess, following in zip(row, pieces[1:], strict=False)] for row in guesses]
    if title is None:
        title = f"The last layer guesses {sum(hits[-1])} of {T - 1} tokens right, the embedding {sum(hits[0])}"
    row_height, left, right = 0.245, 1.75, 0.15  # inches
    top, width = 0.85, 11.0
    height = top + row_height * T + 0.15
    with use_style():
        figure = new_figure(width, height, figure)
        axes = figure.add_axes((left / width, 0.15 / height, (width - left - right) / width, row_height * T / height))
        columns = len(guesses)
        axes.set(xlim=(0, columns), ylim=(T, 0), xticks=[c + 0.5 for c in range(columns)])
        axes.set(xticklabels=depth_names(columns), yticks=[t + 0.5 for t in range(T)])
        axes.set_yticklabels([printable(piece) for piece in pieces], family=MONO, color=INK)
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, labelsize=10)
        axes.spines[:].set_visible(False)
        shade = axes.pcolormesh(shares.T, cmap=SHADES, vmin=0, vmax=1, edgecolors="white", linewidth=1.5).cmap
        for column in range(columns):
            for t in range(T):
                ink = text_colour(to_hex(shade(shares[column, t])))
                look = {"ha": "center", "va": "center", "size": 9.5, "family": MONO, "color": ink}
                axes.text(column + 0.5, t + 0.53, printable(guesses[column][t]), **look)
                if t + 1 < T and hits[column][t]:
                    frame = Rectangle((column + 0.02, t + 0.08), 0.96, 0.84, fill=False, edgecolor=HIT, linewidth=1.8)
                    axes.add_patch(frame)
        figure.text(0.15 / width, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
        note = {"size": 10, "ha": "right", "va": "center", "color": MUTED}
        figure.text((left - 0.1) / width, 1 - 0.7 / height, "after reading", **note)
    return figure


def guesses_by_depth(
    before: Sequence[str],
    guesses: Sequence[Sequence[str]],
    probabilities: ArrayLike,
    following: str | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw the likeliest next tokens at one place of a text as bars, one panel per state of the stream.

    Args:
        before: the pieces up to that place; the last ones are shown.
        guesses: L + 1 rows of pieces, the likeliest first.
        probabilities: L + 1 rows, one number per guess.
        following: the text's actual next token, if any; its bars stand out.
        title: replaces the computed title, which says from which state on the last layer's first guess leads.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `guesses` is empty, or `probabilities` has another shape.
    """
    shares = np.asarray(probabilities, dtype=float)
    if shares.ndim != 2 or shares.size == 0 or [len(row) for row in guesses] != [shares.shape[1]] * shares.shape[0]:
        raise ValueError(
            f"guesses has rows of lengths {[len(row) for row in guesses]} and probabilities has shape {shares.shape}; "
            "both must have L + 1 rows of one length, at least 1"
        )
    names = depth_names(len(guesses))
    if title is None:
        leaders = [row[0] for row in guesses]
        others = [depth for depth, leader in enumerate(leaders) if leader != leaders[-1]]
        since = others[-1] + 1 if others else 0
        place = "only in the last layer" if since == len(names) - 1 else f"from {names[since]} on"
        title = f"{quoted(leaders[-1])} leads {place}" if since else f"{quoted(leaders[-1])} leads all along"
    with use_style():
        figure = new_figure(12, 2.5, figure)
        figure.text(0.01, 0.93, title, size=13, weight="bold", va="center")
        shown = "".join(before[-14:]).replace("▁", " ").replace("<0x0A>", "↵")
        text = ("…" if len(before) > 14 else "") + printable(shown) + " ⟶ ?"
        figure.text(0.01, 0.81, text, size=10.5, va="center", color=MUTED, family=MONO)
        step = 0.99 / len(names)
        for column, (name, row, values) in enumerate(zip(names, guesses, shares, strict=True)):
            axes = figure.add_axes((0.01 + column * step, 0.03, step - 0.012, 0.6))
            colours = [ACCENT if guess == following else FAINT for guess in row]
            axes.barh(range(len(row)), values, color=colours, height=0.8)
            for place, (guess, value) in enumerate(zip(row, values, strict=True)):
                look = {"va": "center", "size": 9.5}
                axes.text(-0.04, place, printable(guess), ha="right", family=MONO, **look)
                axes.text(value + 0.04, place, f"{value:.0%}", color=MUTED, **look)
            axes.set(xlim=(-1.0, 1.36), ylim=(len(row) - 0.5, -0.5), xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.axvline(0, color=FAINT, linewidth=1)
            axes.set_title(f"after {name}", size=10.5, loc="center")
    return figure
