"""The logit lens: what it reads, how it is drawn, its widget; and the pictures of bits."""

import base64
from io import BytesIO
from types import SimpleNamespace

import matplotlib
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.viz.bits import bits_by_depth, token_costs
from mixtral_edu.viz.lens import HIT, depth_names, guesses_by_depth, lens_table, logit_lens
from mixtral_edu.viz.style import ACCENT
from mixtral_edu.viz.trace import residual_stream
from mixtral_edu.viz.widgets import LensView

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def model() -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig.tiny(vocab_size=97, hidden_size=32, num_hidden_layers=3)).eval()


class LetterTokenizer:
    """One token a letter, so that a text's tokens can be read off."""

    def encode(self, text):
        return [1, *(ord(char) - ord(" ") for char in text)]

    def pieces(self, ids):
        return [SimpleNamespace(piece="<s>" if i == 1 else chr(i + ord(" "))) for i in ids]


def test_the_lens_reads_each_state_as_if_it_were_the_last(model):
    ids = torch.arange(9)[None]
    probabilities = logit_lens(model, residual_stream(model, ids).states)
    assert probabilities.shape == (4, 9, 97)
    with torch.no_grad():
        torch.testing.assert_close(probabilities[-1], model(ids).logits[0].softmax(-1))
        for depth in (1, 2, 3):  # a model that has only so many layers
            shorter = MixtralForCausalLM(MixtralConfig.tiny(vocab_size=97, hidden_size=32, num_hidden_layers=depth))
            shorter.load_state_dict(model.state_dict(), strict=False)
            torch.testing.assert_close(probabilities[depth], shorter.eval()(ids).logits[0].softmax(-1))


def test_depths_are_named_after_the_layer_that_was_last():
    assert depth_names(3) == ["embedding", "layer 0", "layer 1"]


PIECES = ["<s>", "▁The", "$", "中", "$"]
GUESSES = [["▁The", "a", "b", "$", "c"], ["▁The", "$", "中", "$", "▁extraordinarily"]]
SHARES = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]]


def test_the_table_frames_guesses_that_came_true():
    figure = lens_table(PIECES, GUESSES, torch.tensor(SHARES))
    (axes,) = figure.axes
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    places = [(int(frame.get_x()), int(frame.get_y())) for frame in frames]
    assert places == [(0, 0), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert {to_hex(frame.get_edgecolor()) for frame in frames} == {HIT.lower()}
    assert axes.collections[0].get_array().T.tolist() == [pytest.approx(row) for row in SHARES]
    words = [text.get_text() for text in texts_of(figure)]
    assert "The last layer guesses 4 of 4 tokens right, the embedding 2" in words
    assert words.count("U+4E2D") == 2 and words.count("$") == 5  # once as a guess and once read; no mathematics
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(
    ("pieces", "guesses", "shares"),
    [([], [[]], [[]]), (PIECES, GUESSES[:1], SHARES), (PIECES, GUESSES, SHARES[0]), (PIECES, [["a"]] * 2, SHARES)],
)
def test_a_table_needs_a_guess_for_each_cell(pieces, guesses, shares):
    with pytest.raises(ValueError, match=r"guesses .*\(L \+ 1, T\)"):
        lens_table(pieces, guesses, shares)


@pytest.mark.parametrize(
    ("leaders", "title"),
    [
        ("bba", "'a' leads only in the last layer"),
        ("baa", "'a' leads from layer 0 on"),
        ("aba", "'a' leads only in the last layer"),
        ("aaa", "'a' leads all along"),
    ],
)
def test_panels_show_one_depth_each_and_since_when_the_last_guess_leads(leaders, title):
    rows = [[leader, "▁everything"] for leader in leaders]
    figure = guesses_by_depth(["<s>", "▁A", "▁$"], rows, [[0.75, 0.25]] * 3, following="▁everything")
    assert [axes.get_title() for axes in figure.axes] == ["after embedding", "after layer 0", "after layer 1"]
    for axes in figure.axes:
        assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
        assert [to_hex(bar.get_facecolor()) == ACCENT.lower() for bar in axes.patches] == [False, True]
    assert [text.get_text() for text in figure.texts] == [title, "<s> A $ ⟶ ?"]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(("guesses", "shares"), [([[], []], [[], []]), ([["a"], ["b"]], [[0.5]]), ([["a"]], [0.5])])
def test_panels_need_a_probability_for_each_guess(guesses, shares):
    with pytest.raises(ValueError, match="guesses has rows"):
        guesses_by_depth(["<s>"], guesses, shares)


@pytest.fixture
def view(model) -> LensView:
    texts = {"fox": "The quick", "dog": "A lazy dog sleeps"}
    return LensView(model, LetterTokenizer(), texts, telling=(2, 4), guesses=3)


def test_the_lens_view_redraws_and_its_slider_fits_the_text(view):
    seen = [view.picture.value]
    assert (view.token.value, view.token.max) == (4, 9)
    for control, value in ((view.token, 9), (view.text, "dog"), (view.token, 17), (view.own_text, "Zebras!")):
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    assert (view.token.value, view.token.max) == (7, 7)  # the own text is shorter
    view.own_text.value, view.text.value, view.token.value = "", "fox", 4
    assert view.picture.value == seen[0]


def test_the_lens_view_says_what_the_model_would_say(view, model):
    pieces, probabilities = view.read("The quick")
    assert pieces == ["<s>", *"The quick"]
    ids = torch.tensor([LetterTokenizer().encode("The quick")])
    with torch.no_grad():
        torch.testing.assert_close(probabilities[-1], model(ids).logits[0].softmax(-1))
    name, header, *lines = view.summary().splitlines()
    assert name == "likeliest next token in 'fox'"
    assert header.split() == "after token embedding layer 0 layer 1 layer 2".split()
    for line, token in zip(lines, (2, 4), strict=True):
        share, best = (each.item() for each in probabilities[-1, token].max(-1))
        assert line.startswith(f"  {token} {pieces[token]}")
        assert line.endswith(f"{view.tokenizer.pieces([best])[0].piece} {share:.2f}")


def test_the_lens_view_has_a_static_face(view):
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.size == (frame.width, 2 * frame.height)  # one frame for each telling token
    assert bundle["text/plain"] == view.summary()


@pytest.mark.parametrize(
    ("texts", "telling", "complaint"),
    [
        ({}, (1,), "texts is empty"),
        ({"a": "b"}, (2,), r"telling=\[2\].*0 to 1"),
        ({"a": "b"}, (), r"telling=\[\]"),
    ],
)
def test_the_lens_view_needs_a_text_and_tokens_of_it(model, texts, telling, complaint):
    with pytest.raises(ValueError, match=complaint):
        LensView(model, LetterTokenizer(), texts, telling=telling)


def test_lines_of_bits_are_named_at_their_end_without_overlap():
    bits = {"sums": [6.0, 3.0, 2.02], "verse": [5.0, 4.0, 2.0], "tales": torch.tensor([3.0, 2.5, 2.04])}
    figure = bits_by_depth(bits, "All end alike", highlight="tales")
    lines = [line for line in figure.axes[0].lines if len(line.get_ydata()) == 3]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx(list(map(float, row))) for row in bits.values()]
    assert [line.get_color() == ACCENT for line in lines] == [False, False, True]
    names = sorted(figure.axes[0].texts, key=lambda text: text.get_position()[1])
    assert [name.get_text() for name in names] == ["verse, 2.00", "sums, 2.02", "tales, 2.04"]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(
    ("bits", "highlight", "complaint"),
    [
        ({}, None, "at least one text"),
        ({"a": [1, 2], "b": [1]}, None, r"\[1, 2\]"),
        ({"a": [1, 2]}, "b", "highlight='b'"),
    ],
)
def test_lines_of_bits_have_to_match(bits, highlight, complaint):
    with pytest.raises(ValueError, match=complaint):
        bits_by_depth(bits, "title", highlight=highlight)


def test_costs_of_tokens_stand_above_them():
    figure = token_costs(["▁Once", "$", "中", "$"], [3.0, 1.0, 8.0, 0.0])
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 8, 0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["▁Once", "$", "U+4E2D", "$"]
    assert axes.get_title(loc="left") == "'U+4E2D' costs 8.0 bits, a token on average 3.0"
    assert axes.lines[0].get_ydata()[0] == 3.0
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize(("pieces", "bits"), [([], []), (["a"], [1.0, 2.0])])
def test_costs_have_to_match_tokens(pieces, bits):
    with pytest.raises(ValueError, match="pieces has length"):
        token_costs(pieces, bits)
