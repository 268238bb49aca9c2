"""The look of all figures: fonts, greys, and one fixed colour for each expert."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter

# Close to the Okabe-Ito set, adjusted so that every pair is distinct in normal, protan, deutan and tritan vision.
EXPERT_COLOURS = ("#E5A100", "#6AC0FF", "#07A37A", "#F0E442", "#006EAF", "#D55E00", "#9B87CA", "#5B2A6B")

INK = "#1F2933"  # text and lines
MUTED = "#52606D"  # secondary text: contrast 6.4 to 1 on white
FAINT = "#CBD2D9"  # frames and grids
PAPER = "#F5F7FA"  # fill of boxes that do not show an expert
ACCENT = "#2B6CB0"  # the one emphasis that does not show an expert

DPI = 96
MONO = "DejaVu Sans Mono"  # ships with matplotlib, so widths are the same on every machine
MONO_ADVANCE = 0.60205  # width of one character, as a multiple of the font size

STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # text is data; a formula sets parse_math=True
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "hatch.linewidth": 0.8,
}


_UNSEEN = "\N{WORD JOINER}"  # goes before a legend's underscore; removed before drawing
_figures: ContextVar[list[Figure]] = ContextVar("figures of the innermost use_style")


@contextmanager
def use_style() -> Iterator[None]:
    """Apply the style inside a `with` block, and restore the caller's settings afterwards.

    Text is drawn literally: `$` does not start a formula. At the end of the block, characters that the fonts of its
    figures cannot draw are replaced by their codes, as in `printable`; only line breaks stay.
    """
    figures: list[Figure] = []
    outer = _figures.set(figures)
    try:
        with mpl.rc_context(STYLE):
            yield
            for figure in figures:
                _replace_undrawable(figure)
    finally:
        _figures.reset(outer)


def new_figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """Return a figure of `width` x `height` inches: a new pyplot one, or `figure` cleared and resized, for widgets."""
    if figure is None:
        figure = plt.figure(figsize=(width, height), dpi=DPI)
    else:
        figure.clear()
        figure.set_dpi(DPI)
        figure.set_size_inches(width, height)
    _figures.get([]).append(figure)
    return figure


def expert_colour(expert: int) -> str:
    """Return the colour of `expert`; colours repeat after the eighth, so always show the number next to the colour."""
    return EXPERT_COLOURS[int(expert) % len(EXPERT_COLOURS)]


def contrast_ratio(first: str, second: str) -> float:
    """Return the WCAG 2 contrast of two colours: (L1 + 0.05) / (L2 + 0.05) of the relative luminances, 1 to 21."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def text_colour(background: str) -> str:
    """Return black or white, whichever contrasts more with `background`; one of them always reaches 4.5 to 1."""
    return max(("black", "white"), key=lambda ink: contrast_ratio(ink, background))


def printable(text: str) -> str:
    """Replace each character of `text` that the monospaced font cannot draw by its code, such as `U+4E2D`."""
    return "".join(char if char.isprintable() else _code(char) for char in _drawable(text, FontProperties(family=MONO)))


def quoted(text: str) -> str:
    """Return `printable(text)` in the quotes that Python would choose, but with single backslashes."""
    shown = printable(text)
    mark = '"' if "'" in shown and '"' not in shown else "'"
    return f"{mark}{shown}{mark}"


def as_label(name: str) -> str:
    """Return `name` as a label that a legend shows; matplotlib leaves out labels that begin with an underscore."""
    return _UNSEEN + name if name.startswith("_") else name


def _replace_undrawable(artist: Artist) -> None:
    """Replace the characters that cannot be drawn, in all texts and tick labels of an artist."""
    for child in artist.get_children():
        if isinstance(child, Text):
            child.set_text(_drawable(child.get_text(), child.get_fontproperties()))
        elif isinstance(child, Axis):
            child.label.set_text(_drawable(child.label.get_text(), child.label.get_fontproperties()))
            written = child.get_major_formatter()
            if isinstance(written, FuncFormatter) and child.majorTicks:  # names, which matplotlib stores in a function
                font = child.majorTicks[0].label1.get_fontproperties()
                written.func = lambda *at, name=written.func, font=font: _drawable(str(name(*at)), font)
            if isinstance(written, LogFormatter):  # powers of ten, which matplotlib writes as formulas
                for tick in (*child.majorTicks, *child.minorTicks):
                    tick.label1.set_parse_math(True)
        else:
            _replace_undrawable(child)


def _drawable(text: str, font: FontProperties) -> str:
    text = text.removeprefix(_UNSEEN)
    return "".join(char if char == "\n" or _has_glyph(char, findfont(font)) else _code(char) for char in text)


def _code(char: str) -> str:
    return f"U+{ord(char):04X}"


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@cache
def _has_glyph(char: str, font_file: str) -> bool:
    is_sign = not unicodedata.category(char).startswith("C")  # C: controls, lone surrogates, unassigned
    return is_sign and get_font(font_file).get_char_index(ord(char)) != 0
