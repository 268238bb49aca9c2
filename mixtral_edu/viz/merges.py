"""The merges of byte-pair encoding: one by one, and a text after the first n merges."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.figure import Figure

from mixtral_edu.text.tokenizer import MixtralTokenizer, Piece
from mixtral_edu.viz.router import MARGIN, WIDTH
from mixtral_edu.viz.style import ACCENT, INK, MUTED, PAPER, new_figure, printable, use_style
from mixtral_edu.viz.tokens import box, canvas


def merge_history(symbols: Sequence[str], rank: Mapping[str, int]) -> list[list[str]]:
    """Return every state of a word during merging, from `symbols` to the final one.

    Each step joins the neighbours whose joined text has the lowest rank; of equal ranks, the leftmost pair. Merging
    stops when no joined pair has a rank.

    >>> merge_history("▁then", {"he": 0, "▁t": 1, "hen": 2, "▁the": 3})[1:]
    [['▁', 't', 'he', 'n'], ['▁t', 'he', 'n'], ['▁t', 'hen']]
    """
    history = [list(symbols)]
    while True:
        last = history[-1]
        joined = [a + b for a, b in zip(last, last[1:], strict=False)]
        candidates = [(rank[text], place) for place, text in enumerate(joined) if text in rank]
        if not candidates:
            return history
        _, place = min(candidates)
        history.append([*last[:place], joined[place], *last[place + 2 :]])


def merged_pieces(tokenizer: MixtralTokenizer) -> list[str]:
    """Return the pieces of more than one character that merges have made, in the order in which they were learned."""
    pieces = tokenizer.pieces(range(3, len(tokenizer)))
    return [piece.piece for piece in pieces if not piece.is_byte and len(piece.piece) > 1]


def split_with(tokenizer: MixtralTokenizer, text: str, num_merges: int | None = None) -> list[Piece]:
    """Return the tokens of `text` as if training had stopped after `num_merges` merges; None means all merges."""
    merged = merged_pieces(tokenizer)[:num_merges]
    rank = {piece: order for order, piece in enumerate(merged)}
    ids, known = [], {}
    spelled = "▁" + text.replace(" ", "▁") if text else ""
    for word in re.findall("▁*[^▁]+|▁+", spelled):
        if word not in known:
            symbols = merge_history(word, rank)[-1]
            known[word] = [i for symbol in symbols for i in _ids_of(tokenizer, symbol)]
        ids += known[word]
    return tokenizer.pieces(ids)


def merge_steps(
    rows: Sequence[Sequence[str]], notes: Sequence[str], title: str, figure: Figure | None = None
) -> Figure:
    """Draw a text as boxes, once per step; a box that is new in a step is blue.

    Args:
        rows: the pieces of the text at each step; all rows spell the same text of at most 40 characters.
        notes: one per row, written to its right.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `rows` is empty, `notes` has another length, rows differ in their text, or the text is too long.
    """
    if not rows or len(rows) != len(notes):
        raise ValueError(f"{len(rows)} rows and {len(notes)} notes; give at least one row, and one note per row")
    text = "".join(rows[0])
    if not 0 < len(text) <= 40:
        raise ValueError(f"rows spell a text of {len(text)} characters; it must have 1 to 40")
    for step, row in enumerate(rows):
        if "".join(row) != text:
            raise ValueError(f"row {step} spells {''.join(row)!r}; it must spell the same text as row 0, {text!r}")
    gaps = list(accumulate(char == "▁" for char in text))
    cell = min(26.0, (WIDTH - 2 * MARGIN - 200 - 10 * gaps[-1]) / len(text))
    lefts = [MARGIN + index * cell + 10 * (gap - gaps[0]) for index, gap in enumerate(gaps)]
    with use_style():
        figure, axes = canvas(46 + 34 * len(rows), title, figure)
        before: set[tuple[int, int]] = set()
        for step, row in enumerate(rows):
            ends = list(accumulate(map(len, row)))
            spans = {(end - len(piece), end): piece for piece, end in zip(row, ends, strict=True)}
            top = 40 + 34 * step
            for (start, end), piece in spans.items():
                colour = ACCENT if step and (start, end) not in before else PAPER
                width = lefts[end - 1] + cell - lefts[start] - 2
                box(axes, lefts[start], top, width, 24, printable(piece), colour, size=12)
            axes.text(lefts[-1] + cell + 14, top + 12, notes[step], size=10.5, va="center_baseline")
            before = set(spans)
    return figure


def tokens_against_merges(
    num_merges: Sequence[int], values: Mapping[str, Sequence[float]], title: str, figure: Figure | None = None
) -> Figure:
    """Plot each domain's bytes per token against the number of merges that the vocabulary has learned.

    Args:
        num_merges: M numbers from 0 up, in increasing order.
        values: M numbers for each of at most six domains.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: there is no domain or more than six, or one does not have M numbers.
    """
    if not 1 <= len(values) <= 6:
        raise ValueError(f"values has {len(values)} domains; it must have one to six")
    looks = [(ACCENT, "-"), (INK, "--"), (MUTED, "-"), (ACCENT, ":"), (INK, "-."), (MUTED, ":")]
    with use_style():
        figure = new_figure(8.5, 3.8, figure)
        axes = figure.add_axes((0.08, 0.16, 0.76, 0.70))
        for (domain, of_domain), (colour, line) in zip(values.items(), looks, strict=False):
            if len(of_domain) != len(num_merges):
                raise ValueError(
                    f"values[{domain!r}] has {len(of_domain)} values for {len(num_merges)} entries of num_merges; "
                    "give one value per entry"
                )
            axes.plot(num_merges, of_domain, line, color=colour, linewidth=2, marker="o", markersize=4)
            label = f" {domain} {of_domain[-1]:.1f}"
            axes.text(num_merges[-1] * 1.05, of_domain[-1], label, color=colour, va="center")
        axes.set_xscale("symlog", linthresh=10)
        axes.set(xlim=(-1, num_merges[-1] * 1.05), ylim=(0, None), xlabel="merges learned", ylabel="bytes a token")
        axes.set_xticks([0, *(tick for tick in (10, 100, 1000, 10000) if tick <= num_merges[-1])])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y")
        axes.set_title(title)
    return figure


def _ids_of(tokenizer: MixtralTokenizer, symbol: str) -> list[int]:
    to_id = tokenizer.processor.piece_to_id
    if to_id(symbol) != tokenizer.unk_token_id:
        return [to_id(symbol)]
    return [to_id(f"<0x{byte:02X}>") for byte in symbol.encode()]
