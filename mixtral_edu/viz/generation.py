"""What happens during generation: how certain the model is, loops, and batches with padding."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import (
    ACCENT,
    FAINT,
    INK,
    MONO,
    MUTED,
    PAPER,
    as_label,
    new_figure,
    printable,
    quoted,
    use_style,
)


def surprise_along_text(
    pieces: Sequence[str],
    entropies: ArrayLike,
    surprises: ArrayLike,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot, for each token of a text, the entropy of the model's prediction and the surprise of the token, in bits.

    Args:
        pieces: N tokens as text.
        entropies: (N,), drawn as bars: entropy of the distribution that the model predicted for each token.
        surprises: (N,), drawn as dots: -log2 of the token's probability in that distribution.
        title: replaces the computed title, which names the most surprising token.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pieces` is empty, or the lengths differ.
    """
    if not len(pieces) or {len(entropies), len(surprises)} != {len(pieces)}:
        raise ValueError(
            f"pieces has length {len(pieces)}, entropies {len(entropies)} and surprises {len(surprises)}; the lengths "
            "must be equal and at least 1"
        )
    entropies, surprises = np.asarray(entropies, dtype=float), np.asarray(surprises, dtype=float)
    if title is None:
        worst = int(surprises.argmax())
        title = f"{quoted(pieces[worst])} is the greatest surprise, {surprises[worst]:.1f} bits"
    with use_style():
        figure = new_figure(10.5, 3.7, figure)
        axes = figure.add_axes((0.055, 0.3, 0.935, 0.55))
        axes.bar(range(len(pieces)), entropies, color=ACCENT, width=0.75, label="entropy: how open the question was")
        label = "surprise: how unlikely the token is that stands here"
        axes.plot(surprises, "o", color=INK, markersize=5, label=label, clip_on=False, zorder=3)
        top = 1.08 * max(entropies.max(), surprises.max())
        axes.set(xlim=(-0.7, len(pieces) - 0.3), ylim=(0, top), ylabel="bits", xticks=range(len(pieces)))
        axes.set_xticklabels([printable(piece) for piece in pieces], rotation=90, family=MONO, size=9)
        axes.legend(loc="upper left", borderpad=0)
        axes.set_title(title)
    return figure


def repeats(
    texts: Mapping[str, Sequence[int]], n: int = 4, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Compare each text with itself: a dot marks two steps with the same token, so loops show as lines.

    Blue dots belong to a run of at least `n` tokens that occurred before; other equal tokens are grey.

    Args:
        texts: token ids, by name.
        n: minimum length of a repeat, in tokens.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `texts` is empty, or a text has fewer than `n` tokens.
    """
    if not texts or min(map(len, texts.values())) < n:
        lengths = [*map(len, texts.values())]
        raise ValueError(f"texts has lengths {lengths}; it must hold at least one text, each of n={n} tokens or more")
    with use_style():
        figure = new_figure(10.5, 0.9 + 9 / len(texts), figure)
        width, height = 1 / len(texts), figure.get_figheight()
        for column, (name, ids) in enumerate(texts.items()):
            side = 10.5 * width - 1
            axes = figure.add_axes((column * width + 0.065, 0.6 / height, side / 10.5, side / height))
            equal = np.equal.outer(np.asarray(ids), np.asarray(ids))
            picture = np.tril(equal.astype(int) + repeated_runs(equal, n), k=-1)
            axes.imshow(picture, cmap=ListedColormap(["white", FAINT, ACCENT]), vmin=0, vmax=2, interpolation="nearest")
            axes.plot((0, len(ids) - 1), (0, len(ids) - 1), color=MUTED, linewidth=0.8)
            axes.set(xlabel="earlier step")
            axes.set_title(name, size=11, weight="normal")
            if column == 0:
                axes.set_ylabel("step")
        figure.text(0.012, 1 - 0.1 / height, title or "Loops are lines", size=13, weight="bold", va="top")
    return figure


def repeated_runs(equal: np.ndarray, n: int) -> np.ndarray:
    """Mark where `equal` (N, N) is true for at least `n` steps along a diagonal: booleans (N, N).

    >>> repeated_runs(np.eye(3, dtype=bool) | np.eye(3, k=-2, dtype=bool), n=2).astype(int)
    array([[1, 0, 0],
           [0, 1, 0],
           [0, 0, 1]])
    """
    size = len(equal) - n + 1
    starts = np.logical_and.reduce([equal[k : k + size, k : k + size] for k in range(n)])  # (N - n + 1, N - n + 1)
    runs = np.zeros_like(equal)
    for k in range(n):
        runs[k : k + size, k : k + size] |= starts
    return runs


def padding_sides(rows: Sequence[Sequence[str]], title: str | None = None, figure: Figure | None = None) -> Figure:
    """Draw a batch padded on the left and on the right, with each token's position below it.

    A frame marks the column from which the next token is predicted.

    Args:
        rows: B texts, each as a list of tokens.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `rows` or one of its rows is empty.
    """
    lengths = [len(row) for row in rows]
    if not lengths or 0 in lengths:
        raise ValueError(f"rows has lengths {lengths}; it must hold at least one row, and no empty one")
    longest, height = max(lengths), 1.1 + 0.75 * len(rows)
    with use_style():
        figure = new_figure(10.5, height, figure)
        figure.text(0.012, 1 - 0.1 / height, title or "The same batch, padded on either side", size=13, weight="bold",
                    va="top")  # fmt: skip
        for side, left in (("left", 0.012), ("right", 0.512)):
            axes = figure.add_axes((left, 0.05 / height, 0.476, 1 - 0.65 / height))
            axes.set(xlim=(0, longest + 1.15), ylim=(len(rows) + 0.02, -0.45))
            axes.set_axis_off()
            axes.text(0, -0.16, f"padding on the {side}", size=11, va="bottom")
            axes.text(longest + 0.15, -0.16, "next", size=10, va="bottom", color=MUTED)
            for index, row in enumerate(rows):
                num_pads = longest - len(row)
                first = num_pads if side == "left" else 0
                for column in range(longest):
                    position = column - first
                    is_token = 0 <= position < len(row)
                    look = {"facecolor": PAPER} if is_token else {"facecolor": "white", "hatch": "////"}
                    axes.add_patch(Rectangle((column + 0.04, index), 0.92, 0.52, edgecolor=FAINT, **look))
                    text = printable(row[position]) if is_token else "pad"
                    box = None if is_token else {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                    axes.text(column + 0.5, index + 0.27, text, size=8.5, family=MONO, ha="center", va="center",
                              color=INK if is_token else MUTED, bbox=box)  # fmt: skip
                    axes.text(column + 0.5, index + 0.7, str(position) if is_token else "–", size=9, ha="center",
                              va="center", color=MUTED)  # fmt: skip
                axes.text(longest + 0.5, index + 0.27, "?", size=11, ha="center", va="center")
                axes.text(longest + 0.5, index + 0.7, str(len(row)), size=9, ha="center", va="center", color=MUTED)
            frame = Rectangle((longest - 1, -0.08), 1, len(rows) - 0.08, fill=False, edgecolor=ACCENT, linewidth=2)
            axes.add_patch(frame)
    return figure


def distance_by_pads(
    num_pads: Sequence[int],
    distances: Mapping[str, ArrayLike],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot how far padding moves the next token's distribution.

    Args:
        num_pads: (N,) numbers of pads in front of the text, in increasing order.
        distances: for each name, (N,) total variation distances from 0 to 1.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `distances` is empty, or a curve does not have one distance per number of pads.
    """
    lengths = {len(values) for values in distances.values()}
    if lengths != {len(num_pads)}:
        raise ValueError(
            f"distances has curves of lengths {sorted(lengths)}; it must hold one or more, each of "
            f"length {len(num_pads)}"
        )
    with use_style():
        figure = new_figure(10.5, 3.6, figure)
        axes = figure.add_axes((0.075, 0.16, 0.6, 0.68))
        for (name, values), (colour, look) in zip(distances.items(), ((ACCENT, "o-"), (INK, "s--"), (MUTED, "^:")),
                                                  strict=False):  # fmt: skip
            style = {"color": colour, "linewidth": 2, "markersize": 5, "clip_on": False}
            axes.plot(num_pads, values, look, label=as_label(name), **style)
        axes.set(xlabel="pads in front of the text", ylabel="distance (0: equal)", ylim=(0, 1), xlim=(0, num_pads[-1]))
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
        axes.set_title(title or "What padding does to the next token's distribution")
    return figure
