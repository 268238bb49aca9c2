"""Tokens in boxes, characters above bytes above tokens, and bytes a token: what is drawn, and what is refused."""

import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.text.tokenizer import MixtralTokenizer, Piece
from mixtral_edu.viz.style import contrast_ratio, text_colour
from mixtral_edu.viz.tokens import KIND_COLOURS, bytes_per_token, characters_and_bytes, kind_of, token_boxes


@pytest.fixture(scope="module")
def tokenizer() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained("tiny")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def assert_readable(figure: Figure) -> None:
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def colours_of(figure: Figure) -> list[tuple]:
    return [patch.get_facecolor()[:3] for patch in figure.axes[0].patches if patch.get_height() != 16]  # no legend


def colours(*kinds: str) -> list[tuple]:
    return [to_rgb(KIND_COLOURS[kind]) for kind in kinds]


def test_kinds_of_tokens():
    examples = {"<s>": "control", "<0xF0>": "byte", "e": "character", "▁": "character", "▁the": "merged piece"}
    assert {piece: kind_of(Piece(7, piece, piece == "<0xF0>")) for piece in examples} == examples


@pytest.mark.parametrize("kind", KIND_COLOURS)
def test_text_in_boxes_is_readable(kind):
    assert contrast_ratio(text_colour(KIND_COLOURS[kind]), KIND_COLOURS[kind]) >= 4.5


def test_each_token_is_a_box_with_its_text_and_id(tokenizer):
    pieces = tokenizer.pieces("the x🐅\nhen", add_special_tokens=True)
    figure = token_boxes(pieces)
    title, *rest = texts_of(figure)
    assert title == "10 tokens"
    assert [text for text in rest if "(" in text] == ["control (1)", "byte (5)", "character (2)", "merged piece (2)"]
    drawn = rest[8:]  # behind the legend: four empty boxes and four names
    assert drawn[0::2] == ["<s>", "the", "␣", "x", "<0xF0>", "<0x9F>", "<0x90>", "<0x85>", "↵", "hen"]
    assert [int(text) for text in drawn[1::2]] == [piece.id for piece in pieces]
    assert colours_of(figure) == colours(*map(kind_of, pieces))
    assert_readable(figure)


def test_kinds_that_are_given_colour_the_boxes(tokenizer):
    pieces = tokenizer.pieces("the hen")
    kinds = ["question", *["answer"] * (len(pieces) - 1)]
    figure = token_boxes(pieces, kinds, title="Mine")
    assert texts_of(figure)[0] == "Mine" and "answer (2)" in texts_of(figure)
    assert colours_of(figure) == colours(*kinds)


def test_a_long_text_says_what_it_leaves_out(tokenizer):
    pieces = tokenizer.pieces("the hen " * 40)
    figure = token_boxes(pieces, max_tokens=30)
    assert texts_of(figure)[-1] == f"… and {len(pieces) - 30} more tokens"
    assert len(colours_of(figure)) == 30
    assert_readable(figure)


@pytest.mark.parametrize(
    ("pieces", "kinds", "message"),
    [
        ([], None, "pieces is empty"),
        ([Piece(261, "▁a", False)], ["byte", "byte"], "2 kinds for 1 pieces"),
        ([Piece(261, "▁a", False)], ["system"], "kinds contains 'system'.*control"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(pieces, kinds, message):
    with pytest.raises(ValueError, match=message):
        token_boxes(pieces, kinds)


def test_characters_stand_above_their_bytes_and_tokens(tokenizer):
    text = "señor 🐅"
    pieces = tokenizer.pieces(text)
    figure = characters_and_bytes(text, pieces)
    title, *texts = texts_of(figure)
    assert title == "7 characters, 11 bytes, 7 tokens, 4 of them single bytes"
    assert texts[:3] == ["characters", "bytes", "tokens"]
    assert texts[3:11] == ["␣", "s", "e", "ñ", "o", "r", "␣", "U+1F405"]
    assert bytes.fromhex("".join(texts[11:23])) == f" {text}".encode()
    assert texts[23::2] == ["▁se", "ñor", "▁", "F0", "9F", "90", "85"]
    assert [int(text) for text in texts[24::2]] == [piece.id for piece in pieces]
    boxes = figure.axes[0].patches
    step = boxes[0].get_width() + 2
    assert [round((box.get_width() + 2) / step) for box in boxes] == [1, 1, 1, 2, 1, 1, 1, 4, *[1] * 12, 3, 4, *[1] * 5]
    assert_readable(figure)


def test_the_longest_text_is_readable_with_ids_of_five_digits():
    text = "extraordinary, 中中 in it two"
    assert len(text.encode()) == 31
    pieces = [Piece(31_999, f"<0x{byte:02X}>", True) for byte in f" {text}".encode()]
    assert_readable(characters_and_bytes(text, pieces))


def test_bytes_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="text has 32 bytes.*at most 31"):
        characters_and_bytes("é" * 16, tokenizer.pieces("é" * 16))
    with pytest.raises(ValueError, match="pieces spell b' hat'"):
        characters_and_bytes("cat", tokenizer.pieces("hat"))


def test_bars_show_the_bytes_of_a_token():
    values = {"small": {"verse": 2.5, "sums": 1.5, "prose": 3.0}, "large": {"verse": 3.0, "sums": 2.0, "prose": 4.0}}
    figure = bytes_per_token(values)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prose", "verse", "sums"]
    assert [bar.get_width() for bar in axes.patches] == [3.0, 2.5, 1.5, 4.0, 3.0, 2.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["small", "large"]
    assert axes.get_title(loc="left") == "A token holds 3.0 bytes of prose, but 1.5 of sums"
    assert axes.yaxis_inverted()
    assert_readable(figure)


def test_bars_of_one_tokenizer_need_no_legend():
    figure = bytes_per_token({"small": {"verse": 4.0}}, title="Mine")
    assert figure.axes[0].get_legend() is None and figure.axes[0].get_title(loc="left") == "Mine"
    assert_readable(figure)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "values has 0 tokenizers"),
        ({"a": {}}, "each with a domain"),
        (dict.fromkeys("abcd", {"x": 1}), "values has 4"),
        ({"a": {"x": 1}, "b": {"y": 1}}, r"'b'\] has the domains \['y'\].*\['x'\]"),
    ],
)
def test_bars_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bytes_per_token(values)


def test_figures_can_be_drawn_again_in_place(tokenizer):
    figure = Figure()
    bytes_per_token({"small": {"verse": 2.5}}, figure=figure)
    characters_and_bytes("hen", tokenizer.pieces("hen"), figure=figure)
    assert token_boxes(tokenizer.pieces("hen"), figure=figure) is figure
    assert len(figure.axes) == 1 and plt.get_fignums() == []
