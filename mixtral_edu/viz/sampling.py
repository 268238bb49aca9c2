"""What the model would say next, drawn."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, MONO, new_figure, printable, use_style


def next_tokens(
    pieces: Sequence[str], probabilities: ArrayLike, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Bars of the most likely next tokens, the first at the top.

    Args:
        pieces: the tokens as text, most likely first.
        probabilities: as many numbers from 0 to 1.
        title: instead of the computed one, which names the first token.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: no pieces, or lengths that differ.
    """
    if len(pieces) == 0 or len(pieces) != len(probabilities):
        raise ValueError(
            f"{len(pieces)} pieces and {len(probabilities)} probabilities: equally many, not 0, are wanted"
        )
    values = [float(p) for p in probabilities]
    if title is None:
        title = f"{printable(pieces[0])!r} comes next with probability {values[0]:.0%}"
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
