"""What happens during generation: how certain the model is, loops, beams, guesses, and batches with padding."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
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


def tree_of_two_steps(
    start: str,
    tree: Mapping[str, tuple[float, Mapping[str, float]]],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw all continuations of two tokens with their probabilities, what greedy decoding takes, and the likeliest one.

    Args:
        start: the text that is continued.
        tree: for each first token its probability, and those of the second tokens that may follow it.
        title: replaces the computed title, which compares greedy's text with the likeliest.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `tree` or one of its branches is empty.
    """
    if not tree or not all(branch for _, branch in tree.values()):
        raise ValueError("tree is empty or has an empty branch: give a first token, and a second one for each first")
    whole = {(a, b): p * q for a, (p, branch) in tree.items() for b, q in branch.items()}
    first = max(tree, key=lambda a: tree[a][0])
    greedy = (first, max(tree[first][1], key=tree[first][1].get))
    likeliest = max(whole, key=whole.get)
    if title is None:
        taken, best = (f"{quoted(' '.join(path))} ({whole[path]:.2f})" for path in (greedy, likeliest))
        title = f"Greedy takes {taken}" + (", the likeliest text" if greedy == likeliest else f"; {best} is likeliest")
    dashed = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 2.2, "zorder": 3}
    looks = {likeliest: {"color": ACCENT, "linewidth": 4, "alpha": 0.75, "zorder": 2, "label": "the likeliest text"}}
    looks = {greedy: dashed | {"label": "greedy: the likeliest token in each step"}} | looks
    if greedy == likeliest:
        looks[greedy]["label"] = "greedy, and the likeliest text"
    usual, rows = {"color": FAINT, "linewidth": 1.5}, len(whole)
    xs, names = (0.1, 0.42, 0.74), {"size": 11.5, "family": MONO, "va": "center", "ha": "center"}
    height = 1.5 + 0.42 * rows
    with use_style():
        figure = new_figure(10.5, height, figure)
        axes = figure.add_axes((0.012, 0.02, 0.976, 1 - 0.55 / height))
        axes.set(xlim=(0, 1), ylim=(rows - 0.4, -1.8))
        axes.set_axis_off()
        ends = dict(zip(whole, range(rows), strict=True))
        middles = {a: np.mean([ends[a, b] for b in branch]) for a, (_, branch) in tree.items()}
        root, box = (rows - 1) / 2, {"facecolor": "white", "edgecolor": FAINT, "boxstyle": "round,pad=0.3"}
        for path, look in looks.items():
            axes.plot(xs, (root, middles[path[0]], ends[path]), **look)
        axes.text(xs[0], root, printable(start), bbox=box, zorder=4, **names)
        for a, (p, branch) in tree.items():
            _edge(axes, (xs[0], root), (xs[1], middles[a]), p, usual)
            axes.text(xs[1], middles[a], printable(a), bbox=box, zorder=4, **names)
            for b, q in branch.items():
                _edge(axes, (xs[1], middles[a]), (xs[2], ends[a, b]), q, usual)
                axes.text(xs[2], ends[a, b], printable(b), bbox=box, zorder=4, **names)
                weight = "bold" if (a, b) in looks else "normal"
                axes.text(xs[2] + 0.07, ends[a, b], f"{p:.2g} × {q:.2g} = {p * q:.2f}", va="center", weight=weight)
        axes.text(xs[2] + 0.07, -0.9, "as a whole", va="center", color=MUTED)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
        figure.text(0.012, 1 - 0.1 / height, title, size=13, weight="bold", va="top")
    return figure


def _edge(axes: Axes, start: tuple[float, float], end: tuple[float, float], probability: float, look: dict) -> None:
    """A line with the probability written on it, two thirds of the way, where branches lie apart."""
    axes.plot(*zip(start, end, strict=True), zorder=1, **look)
    x, y = (a + 0.64 * (b - a) for a, b in zip(start, end, strict=True))
    axes.text(x, y, f"{probability:.2g}", size=10.5, va="center", ha="center", zorder=4,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


def by_number_of_beams(
    num_beams: Sequence[int],
    panels: Mapping[str, tuple[ArrayLike, Mapping[str, float]]],
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Plot measures of texts against the number of beams that found them: a thin line per prompt, their mean in blue.

    Args:
        num_beams: (N,) numbers of beams, in increasing order.
        panels: for each measure, its values (N, P) for P prompts, and by name (two at most) the means of other texts of
            the same prompts, drawn as lines across. All panels have the same names.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `panels` is empty, or one does not have a row per number of beams.
    """
    shapes = [np.shape(values) for values, _ in panels.values()]
    if not panels or any(len(shape) != 2 or shape[0] != len(num_beams) for shape in shapes):
        raise ValueError(f"panels has values of shapes {shapes}; it must hold one or more, each ({len(num_beams)}, P)")
    with use_style():
        figure = new_figure(10.5, 4.0, figure)
        width = 0.985 / len(panels)
        for column, (name, (values, levels)) in enumerate(panels.items()):
            axes = figure.add_axes((0.06 + column * width, 0.14, width - 0.075, 0.56))
            values, places = np.asarray(values, dtype=float), range(len(num_beams))
            error = values.std(1, ddof=1) / values.shape[1] ** 0.5 if values.shape[1] > 1 else None
            axes.plot(places, values, color=FAINT, linewidth=1, zorder=1)
            axes.plot([], color=FAINT, linewidth=1, label="each prompt")
            label = "mean of the prompts ± standard error"
            axes.errorbar(places, values.mean(1), error, color=ACCENT, linewidth=2.5, marker="o", capsize=4,
                          label=label, zorder=3)  # fmt: skip
            for (other, level), (colour, line) in zip(levels.items(), ((INK, "--"), (MUTED, ":")), strict=False):
                axes.axhline(level, color=colour, linestyle=line, linewidth=1.8, label=as_label(other), zorder=2)
            axes.set(xticks=places, xticklabels=num_beams, xlabel="beams (1: greedy)", xlim=(-0.2, places[-1] + 0.2))
            axes.set_title(name, size=11, weight="normal")
            if values.min() >= 0 and values.max() <= 1:
                axes.set_ylim(-0.03, 1.03)
                axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.05, 0.91), ncols=4)
        figure.text(0.012, 0.97, title or "What more beams change", size=13, weight="bold", va="top")
    return figure


def experts_read(
    by_tokens: Mapping[str, ArrayLike],
    texts: Mapping[str, Mapping[str, tuple[float, float]]],
    num_chosen: int = 2,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw how many experts a pass over several tokens reads per layer, and what is left of that per new token.

    Args:
        by_tokens: for each curve of the left panel, the mean number of different experts that the first 1, 2, … tokens
            of a pass choose. The first curve is the measured one.
        texts: for each kind of text (two at most) and each text, the new tokens per pass and the experts read per new
            token and layer.
        num_chosen: K, how many experts one token reads.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: one of the two is empty, or curves differ in length.
    """
    if not texts or len({len(curve) for curve in by_tokens.values()}) != 1:
        lengths = [len(curve) for curve in by_tokens.values()]
        raise ValueError(f"by_tokens has curves of lengths {lengths} and texts {len(texts)} kinds; there must be one "
                         "or more of each, and curves of one length")  # fmt: skip
    most = 0.4 + max(rate for kind in texts.values() for rate, _ in kind.values())
    highest = max(num_chosen, *(experts for kind in texts.values() for _, experts in kind.values()))
    with use_style():
        figure = new_figure(10.5, 4.2, figure)
        left, right = figure.add_axes((0.06, 0.13, 0.4, 0.66)), figure.add_axes((0.555, 0.13, 0.43, 0.66))
        looks = (ACCENT, "-", "o"), (INK, "--", "s"), (MUTED, ":", "^")
        for (name, curve), (colour, line, marker) in zip(by_tokens.items(), looks, strict=False):
            left.plot(range(1, len(curve) + 1), curve, color=colour, linestyle=line, marker=marker, linewidth=2,
                      label=as_label(name))  # fmt: skip
        left.set(xlabel="tokens in a pass", ylabel="different experts per layer", ylim=(0, None),
                 xticks=range(1, len(next(iter(by_tokens.values()))) + 1))  # fmt: skip
        left.set_title("what a pass reads", size=11, weight="normal")
        left.legend(loc="lower right")
        rates = np.linspace(1, most, 60)
        right.axhline(num_chosen, color=INK, linestyle="--", linewidth=1.8, label="without guesses", zorder=1)
        right.plot(rates, num_chosen / rates, color=MUTED, linestyle=":", linewidth=2, zorder=1,
                   label=f"if a pass read {num_chosen} experts, whatever its length")  # fmt: skip
        for (kind, named), (colour, fill, marker) in zip(texts.items(), ((ACCENT, ACCENT, "o"), (INK, "white", "s")),
                                                         strict=False):  # fmt: skip
            points = np.array(list(named.values()))
            right.scatter(*points.T, s=55, facecolor=fill, edgecolor=colour, marker=marker, linewidth=1.6, zorder=3,
                          label=as_label(kind))  # fmt: skip
        for name, (rate, experts) in next(iter(texts.values())).items():
            right.annotate(printable(name), (rate, experts), (7, 8), textcoords="offset points", va="center", size=10)
        right.set(xlabel="new tokens per pass", ylabel="experts per new token, per layer", xlim=(0.9, most),
                  ylim=(0, 1.75 * highest), xticks=np.arange(1, most, 0.5))  # fmt: skip
        right.set_title("what is left of it per new token", size=11, weight="normal")
        right.legend(loc="upper right")
        figure.text(0.012, 0.975, title or "Experts read, with guesses and without", size=13, weight="bold", va="top")
    return figure
