"""Figures of tokens: a text as boxes, its characters above their bytes and tokens, and bytes per token."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mixtral_edu.text.tokenizer import Piece
from mixtral_edu.viz.router import MARGIN, TEXT_HEIGHT, TEXT_SIZE, WIDTH, place_tokens
from mixtral_edu.viz.style import (
    ACCENT,
    FAINT,
    INK,
    MONO,
    MONO_ADVANCE,
    MUTED,
    PAPER,
    as_label,
    new_figure,
    printable,
    text_colour,
    use_style,
)

KIND_COLOURS = {  # the kind of a token, or the part of a chat it belongs to
    "control": INK,
    "byte": MUTED,
    "character": PAPER,
    "merged piece": "#D6E4F5",
    "question": "#D6E4F5",
    "answer": ACCENT,
}
CONTROL_PIECES = ("<unk>", "<s>", "</s>")
ID_SIZE, ID_HEIGHT, ROW_HEIGHT, HEADER = 8.5, 12, 38, 62  # points
MOST_BYTES = 32  # the most bytes that are legible in one row


def kind_of(piece: Piece) -> str:
    """Return the kind of a token: "control", "byte", "character" or "merged piece"."""
    if piece.piece in CONTROL_PIECES:  # encoding a text never yields these
        return "control"
    if piece.is_byte:
        return "byte"
    return "character" if len(piece.piece) == 1 else "merged piece"


def token_boxes(
    pieces: Sequence[Piece],
    kinds: Sequence[str] | None = None,
    title: str | None = None,
    max_tokens: int = 220,
    figure: Figure | None = None,
) -> Figure:
    """Draw a text as boxes, one per token, in the colour of its kind and with its id below.

    A gap before a box stands for the space that its piece begins with; a newline piece (`↵`) ends the line.

    Args:
        pieces: N tokens, as `tokenizer.pieces` returns them.
        kinds: N names from `KIND_COLOURS`; by default those that `kind_of` returns.
        title: replaces the computed title, which counts tokens.
        max_tokens: longer texts are cut to this number of tokens, and the figure says so.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pieces` is empty, `kinds` has another length, or a kind is unknown.
    """
    if not pieces:
        raise ValueError("pieces is empty: give at least one token")
    kinds = [kind_of(piece) for piece in pieces] if kinds is None else list(kinds)
    if len(kinds) != len(pieces):
        raise ValueError(f"{len(kinds)} kinds for {len(pieces)} pieces; there must be one kind per piece")
    if unknown := set(kinds) - set(KIND_COLOURS):
        raise ValueError(f"kinds contains {min(unknown)!r}; each must be one of {', '.join(KIND_COLOURS)}")
    title = f"{len(pieces)} tokens" if title is None else title

    longest_id = len(str(max(piece.id for piece in pieces)))
    places = place_tokens(pieces[:max_tokens], narrowest=longest_id * ID_SIZE * MONO_ADVANCE + 4)
    left_out = len(pieces) - len(places)
    height = HEADER + (places[-1].row + 1) * ROW_HEIGHT + (20 if left_out else 0)
    with use_style():
        figure, axes = canvas(height, title, figure)
        left = float(MARGIN)
        for kind in [kind for kind in KIND_COLOURS if kind in kinds]:
            name = f"{kind} ({kinds.count(kind)})"
            box(axes, left, 32, 16, 16, "", KIND_COLOURS[kind])
            axes.text(left + 22, 40, name, size=10, va="center_baseline")
            left += 40 + 6.6 * len(name)
        for place in places:
            top = HEADER + place.row * ROW_HEIGHT
            box(axes, place.left, top, place.width, TEXT_HEIGHT, place.text, KIND_COLOURS[kinds[place.index]])
            middle = top + TEXT_HEIGHT + ID_HEIGHT / 2
            _letters(axes, place.left + place.width / 2, middle, str(pieces[place.index].id), ID_SIZE, MUTED)
        if left_out:
            axes.text(MARGIN, height - 14, f"… and {left_out} more tokens", size=10, color=MUTED, va="center")
    return figure


def characters_and_bytes(
    text: str, pieces: Sequence[Piece], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw three rows, one above the other: characters, their UTF-8 bytes, and the tokens.

    The first character is the space that the tokenizer puts in front of the text.

    Args:
        text: a text of at most 31 bytes.
        pieces: its tokens, as `tokenizer.pieces(text)` returns them.
        title: replaces the computed title, which counts all three.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the text is too long, or the pieces do not spell it.
    """
    characters = " " + text
    data = characters.encode()
    if len(data) > MOST_BYTES:
        raise ValueError(f"text has {len(data) - 1} bytes; it must have at most {MOST_BYTES - 1}")
    spelled = [_bytes_of(piece) for piece in pieces]
    if b"".join(spelled) != data:
        raise ValueError(f"pieces spell {b''.join(spelled)!r}; they must spell a space and the text, {data!r}")
    if title is None:
        lone = sum(piece.is_byte for piece in pieces)
        title = f"{len(text)} characters, {len(data) - 1} bytes, {len(pieces)} tokens, {lone} of them single bytes"
    left, step = 96, min(40.0, (WIDTH - 96 - MARGIN) / len(data))
    with use_style():
        figure, axes = canvas(184, title, figure)
        for top, name in ((46, "characters"), (90, "bytes"), (134, "tokens")):
            axes.text(MARGIN, top + 13, name, size=10.5, va="center_baseline")
        at = left
        for char in characters:
            width = len(char.encode()) * step
            box(axes, at, 46, width - 2, 26, "␣" if char == " " else printable(char), PAPER, size=12)
            at += width
        for column, byte in enumerate(data):
            box(axes, left + column * step, 90, step - 2, 26, f"{byte:02X}", "white")
        at = left
        for piece, part in zip(pieces, spelled, strict=True):
            width = len(part) * step
            shown = f"{part[0]:02X}" if piece.is_byte else printable(piece.piece)
            box(axes, at, 134, width - 2, 26, shown, KIND_COLOURS[kind_of(piece)], size=12)
            _letters(axes, at + width / 2 - 1, 169, str(piece.id), _fitting(ID_SIZE, str(piece.id), width - 2), MUTED)
            at += width
    return figure


def bytes_per_token(
    values: Mapping[str, Mapping[str, float]], title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the average bytes of text per token as bars, by domain and tokenizer.

    Args:
        values: for each of at most three tokenizers, bytes per token by domain; all have the same domains.
        title: replaces the computed title, which names the first tokenizer's extremes.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there are no tokenizers or more than three, or their domains differ or are missing.
    """
    if not 1 <= len(values) <= 3 or not all(values.values()):
        raise ValueError(f"values has {len(values)} tokenizers; it must have one to three, each with a domain")
    first = next(iter(values.values()))
    for name, of_domain in values.items():
        if set(of_domain) != set(first):
            raise ValueError(f"values[{name!r}] has the domains {sorted(of_domain)}; they must be {sorted(first)}")
    domains = sorted(first, key=first.get, reverse=True)
    if title is None:
        most, least = domains[0], domains[-1]
        title = f"A token holds {first[most]:.1f} bytes of {most}, but {first[least]:.1f} of {least}"
    thickness = 0.8 / len(values)
    with use_style():
        figure = new_figure(8.5, 1.5 + 0.24 * len(domains) * (1 + len(values)) / 1.5, figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.14, 0.62 / height, 0.82, 1 - 1.35 / height))
        for row, ((name, of_domain), colour) in enumerate(zip(values.items(), (ACCENT, FAINT, INK), strict=False)):
            places = [place + (row - (len(values) - 1) / 2) * thickness for place in range(len(domains))]
            lengths = [of_domain[domain] for domain in domains]
            edge = {"edgecolor": MUTED, "linewidth": 0.5}
            axes.barh(places, lengths, height=thickness, color=colour, label=as_label(name), **edge)
            for place, length in zip(places, lengths, strict=True):
                axes.text(length + 0.03, place, f"{length:.1f}", va="center_baseline", size=10)
        longest = max(max(of_domain.values()) for of_domain in values.values())
        axes.set(xlim=(0, 1.1 * longest), xlabel="bytes a token", yticks=range(len(domains)), yticklabels=domains)
        axes.invert_yaxis()
        if len(values) > 1:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1 + 0.02 / height), "borderaxespad": 0}
            axes.legend(ncols=len(values), **place)
        axes.set_title(title, pad=30 if len(values) > 1 else 10)
    return figure


def _bytes_of(piece: Piece) -> bytes:
    return bytes([int(piece.piece[3:5], 16)]) if piece.is_byte else piece.piece.replace("▁", " ").encode()


def canvas(height: float, title: str, figure: Figure | None) -> tuple[Figure, Axes]:
    """Return a figure of the picture's width, `height` points high, with one axes in points; y runs downwards."""
    figure = new_figure(WIDTH / 72, height / 72, figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(MARGIN, 15, title, size=13, weight="bold", va="center")
    return figure, axes


def box(axes: Axes, left, top, width, height, text: str, colour: str, size: float = TEXT_SIZE) -> None:
    """Draw a box, in points, with a text that shrinks where it would not fit."""
    axes.add_patch(Rectangle((left, top), width, height, facecolor=colour, edgecolor=MUTED, linewidth=0.7))
    size = _fitting(size, text, width - 2)
    _letters(axes, left + width / 2, top + height / 2 + 0.5, text, size, text_colour(colour))


def _fitting(size: float, text: str, width: float) -> float:
    return min(size, width / max(1, len(text)) / MONO_ADVANCE)


def _letters(axes: Axes, x: float, y: float, text: str, size: float, colour: str) -> None:
    look = {"ha": "center", "va": "center_baseline"}
    axes.text(x, y, text, size=size, family=MONO, color=colour, **look)
