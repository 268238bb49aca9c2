"""Merges drawn step by step, a text after so many of them against SentencePiece, and the widget."""

import base64
from io import BytesIO

import PIL.Image
import pytest
from hypothesis import given, settings
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.data import probe_text
from mixtral_edu.text.tokenizer import MixtralTokenizer, train_tokenizer
from mixtral_edu.viz.merges import (
    merge_history,
    merge_steps,
    merged_pieces,
    split_with,
    tokens_against_merges,
)
from mixtral_edu.viz.style import ACCENT
from mixtral_edu.viz.widgets import MergesView
from tokenizer_samples import texts

HENS = ["he", "▁t", "hen", "▁hen", "▁the"]  # what five merges find in "the hen then the ten hens"


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


def test_the_earliest_merge_comes_first_and_the_leftmost_of_equals():
    rank = {piece: order for order, piece in enumerate(HENS)}
    assert merge_history("▁then", rank)[-1] == ["▁t", "hen"]  # and not ▁the + n
    assert merge_history("aaa", {"aa": 0}) == [["a", "a", "a"], ["aa", "a"]]
    assert merge_history("", rank) == [[]]


@settings(deadline=None)
@given(text=texts)
def test_with_all_merges_the_tokens_are_those_of_sentencepiece(tokenizer, text):
    assert split_with(tokenizer, text.replace("▁", " ")) == tokenizer.pieces(text)


def test_with_fewer_merges_the_tokens_are_those_of_a_smaller_vocabulary(tmp_path):
    text = probe_text("english")
    large, small = (train_tokenizer([text], tmp_path / f"{size}.model", size) for size in (600, 400))
    num_merges = len(merged_pieces(small))
    assert merged_pieces(large)[:num_merges] == merged_pieces(small)
    found = [piece.piece for piece in split_with(large, text, num_merges)]
    assert found == small.processor.encode(text, out_type=str)
    assert found != large.processor.encode(text, out_type=str)


def test_merged_pieces_come_in_the_order_of_their_scores(tokenizer):
    pieces = merged_pieces(tokenizer)
    scores = [tokenizer.processor.get_score(tokenizer.processor.piece_to_id(piece)) for piece in pieces]
    assert scores == [-order for order in range(len(pieces))]
    assert len(pieces) == 2048 - 3 - 256 - 93


def test_a_step_shows_its_new_boxes_in_blue():
    rows = [list("▁the▁hen"), ["▁", "t", "he", "▁", "he", "n"], ["▁", "t", "he", "▁", "hen"]]
    figure = merge_steps(rows, ["characters", "1. h + e", "2. he + n"], "Two merges")
    axes = figure.axes[0]
    drawn = [text.get_text() for text in axes.texts]
    assert drawn == ["Two merges", *rows[0], "characters", *rows[1], "1. h + e", *rows[2], "2. he + n"]
    blue = [piece for piece, box in zip(sum(rows, []), axes.patches, strict=True)
            if box.get_facecolor()[:3] == to_rgb(ACCENT)]  # fmt: skip
    assert blue == ["he", "he", "hen"]
    t, he = axes.patches[1], axes.patches[10]
    assert he.get_x() == axes.patches[2].get_x() > t.get_x() + t.get_width()  # letters stay where they were
    assert_readable(figure)


def test_steps_of_a_text_of_forty_characters_are_readable():
    text = "▁a" * 20
    assert_readable(merge_steps([list(text), ["▁a"] * 20], ["40 characters", "1. ▁ + a: 20 times"], "One merge"))


@pytest.mark.parametrize(
    ("rows", "notes", "message"),
    [
        ([], [], "0 rows and 0 notes"),
        ([["a"]], ["x", "y"], "1 rows and 2 notes"),
        ([["a", "b"], ["ac"]], ["x", "y"], "row 1 spells 'ac'.* row 0, 'ab'"),
        ([["a"] * 41], ["x"], "41 characters.*1 to 40"),
        ([[]], ["x"], "0 characters"),
    ],
)
def test_steps_that_do_not_fit_are_refused(rows, notes, message):
    with pytest.raises(ValueError, match=message):
        merge_steps(rows, notes, "A title")


def test_curves_hold_their_numbers():
    values = {"english": [1, 1.5, 3], "sums": [1, 1.2, 1.5]}
    figure = tokens_against_merges([0, 10, 1000], values, "A title")
    for line, numbers in zip(figure.axes[0].lines, values.values(), strict=True):
        assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 10, 1000], numbers)
    assert [text.get_text() for text in figure.axes[0].texts] == [" english 3.0", " sums 1.5"]
    assert_readable(figure)


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "0 domains"), (dict.fromkeys("abcdefg", [1]), "7 domains"), ({"a": [1, 2]}, "2 values for 1")],
)
def test_curves_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        tokens_against_merges([0], values, "A title")


@pytest.fixture
def view(tokenizer) -> MergesView:
    return MergesView(tokenizer, {"hens": "the hen then the ten hens\n🐅", "year": "in 1984"}, film_characters=26)


def test_the_widget_redraws_when_a_control_changes(view):
    seen = [view.picture.value]
    for control, value in ((view.merges, 100), (view.text, "year"), (view.own_text, "Zebras!")):
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    view.own_text.value, view.text.value, view.merges.value = "", "hens", 0
    assert view.picture.value == seen[0]
    view.draw(view.figure, "the hen", 0)
    assert view.figure.axes[0].texts[0].get_text() == "After 0 merges: 7 bytes in 8 tokens"


def test_the_widget_ends_at_all_merges(view, tokenizer):
    assert view.merges.options[:4] == (0, 1, 3, 10) and view.merges.options[-1] == len(merged_pieces(tokenizer))


def test_the_widget_has_a_static_face(view, tokenizer):
    bundle, _ = view._repr_mimebundle_()
    assert PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"]))).width == 1008
    title, *lines = bundle["text/plain"].splitlines()
    assert title == "the first 26 bytes of 'hens'"
    assert [int(line.split()[0]) for line in lines] == [0, 30, 300, 1696]
    counts = [int(line.split()[2]) for line in lines]
    assert counts[0] == 27 and counts[-1] == len(tokenizer.encode("the hen then the ten hens\n", False))
    assert counts == sorted(counts, reverse=True)


def test_the_widget_cuts_long_texts(tokenizer):
    view = MergesView(tokenizer, {"long": "abc " * 1000}, max_characters=40)
    assert len(view.state()["text"]) == 40


def test_the_widget_needs_a_text(tokenizer):
    with pytest.raises(ValueError, match="texts is empty"):
        MergesView(tokenizer, {})
