"""Words for those who do not see a figure: the alternative text that a notebook stores with its picture."""

import sys
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_SHORTEST = 30  # characters; less than a sentence


def describe(text: str, figure: Figure | None = None) -> None:
    """Say in a sentence or two what a figure shows, before `plt.show()`; `figure` is pyplot's current one if None.

    A notebook stores it as the picture's alternative text, which screen readers speak and pages show where the picture
    is missing. Say what a reader takes away, with its numbers; the axes are on record elsewhere.

    Raises:
        ValueError: it is no sentence.
    """
    text = " ".join(text.split())
    if len(text) < _SHORTEST or text[-1] not in ".!?":
        raise ValueError(f"text={text!r}: it must be a sentence of {_SHORTEST} characters or more, with its full stop")
    figure = figure or plt.gcf()
    figure.alt_text = text
    _let_notebooks_store_it()


def _let_notebooks_store_it() -> None:
    """Let the running notebook, if there is one, put `alt_text` beside each PNG of a figure."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    formatter = shell.display_formatter.formatters["image/png"]
    draw = formatter.lookup_by_type(Figure) if Figure in formatter else None
    if draw is not None and not getattr(draw, "stores_alt_text", False):
        formatter.for_type(Figure, _with_alt_text(draw))


def _with_alt_text(draw: Any) -> Any:
    def drawn(figure: Figure) -> Any:
        picture, text = draw(figure), getattr(figure, "alt_text", None)
        return picture if text is None or isinstance(picture, tuple) else (picture, {"alt": text})

    drawn.stores_alt_text = True
    return drawn
