"""The gate, the router's choice of one token, and the widget that moves through tokens, layers and K."""

import base64
from io import BytesIO
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.viz.choice import best_choices, gate_curve, router_choice
from mixtral_edu.viz.style import FAINT, expert_colour
from mixtral_edu.viz.widgets import ChoiceView

SCORES = [0.5, -1.0, 3.0, 2.0, -2.5]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_the_gate_is_pytorchs_silu_and_marks_the_values():
    figure = gate_curve([1.0, -2.0, 0.0])
    relu, silu, marks = figure.axes[0].lines
    for line, function in ((relu, torch.relu), (silu, torch.nn.functional.silu), (marks, torch.nn.functional.silu)):
        assert line.get_ydata() == pytest.approx(function(torch.tensor(line.get_xdata())).numpy())
    assert marks.get_xdata().tolist() == [1, -2, 0]
    assert "silu(-2) = -0.238" in [text.get_text() for text in figure.axes[0].texts]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_gates_outside_the_picture_are_refused():
    with pytest.raises(ValueError, match="from -6 to 6"):
        gate_curve([7.0])


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_choices_and_weights_are_topk_and_softmax(top_k):
    best = torch.tensor(SCORES).topk(top_k)
    chosen, weights = best_choices(SCORES, top_k)
    assert chosen.tolist() == best.indices.tolist()
    assert weights == pytest.approx(best.values.softmax(-1).numpy())


def test_bars_are_scores_weights_and_the_softmax_over_all():
    figure = router_choice(SCORES, top_k=2, name="'▁bear'")
    left, right = figure.axes
    assert [bar.get_height() for bar in left.patches] == SCORES
    faces = [plt.matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in left.patches]
    assert faces == [FAINT, FAINT, expert_colour(2), expert_colour(3), FAINT]
    heights = [bar.get_height() for bar in right.patches]
    assert heights[:2] == pytest.approx([0.731, 0.269], abs=5e-4)
    assert heights[2:] == pytest.approx(torch.tensor(SCORES).softmax(-1).numpy())
    assert figure.texts[0].get_text() == "'▁bear' · the best 2 of 5: expert 2 (0.73), 3 (0.27)"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_a_choice_can_be_drawn_in_place():
    figure = Figure()
    router_choice(SCORES, 5, figure=figure)
    assert router_choice(SCORES, 1, figure=figure) is figure
    assert figure.texts[0].get_text() == "the best 1 of 5: expert 2 (1.00)"
    assert len(figure.axes) == 2 and plt.get_fignums() == []


@pytest.mark.parametrize(
    ("scores", "top_k", "message"), [([SCORES], 2, r"\(E,\)"), (SCORES, 0, "1 to 5"), (SCORES, 6, "1 to 5")]
)
def test_a_choice_refuses_what_does_not_fit(scores, top_k, message):
    with pytest.raises(ValueError, match=message):
        router_choice(scores, top_k)


class CharacterTokenizer:
    """One token a character."""

    def encode(self, text):
        return [1, *(ord(char) % 90 + 3 for char in text)]

    def pieces(self, ids):
        return [SimpleNamespace(piece=f"{i}") for i in ids]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig.tiny(vocab_size=97, hidden_size=32, num_hidden_layers=3)).eval()


@pytest.fixture
def view(model):
    return ChoiceView(model, CharacterTokenizer(), "The quick fox", token=4)


def test_the_view_redraws_when_a_control_changes(view):
    seen = [view.picture.value]
    for control, value in ((view.token, 7), (view.layer, 2), (view.top_k, 8)):
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    view.token.value, view.layer.value, view.top_k.value = 4, 0, 2
    assert view.picture.value == seen[0]


def test_the_view_draws_the_models_scores(view, model):
    logits = model(torch.tensor([view_ids := CharacterTokenizer().encode("The quick fox")]), output_router_logits=True)
    view.token.value, view.layer.value = 3, 1
    bars = [bar.get_height() for bar in view.figure.axes[0].patches]
    assert bars == pytest.approx(logits.router_logits[1][3].tolist(), abs=1e-5)
    assert f"'{view_ids[3]}', layer 1" in view.figure.texts[0].get_text()


def test_the_static_face_shows_one_token_for_three_k(view):
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.size == (frame.width, 3 * frame.height)
    title, *rows = bundle["text/plain"].splitlines()
    assert title == f"'{CharacterTokenizer().encode('The quick fox')[4]}', layer 0: expert and weight"
    for row, K in zip(rows, (1, 2, 8), strict=True):
        numbers = row.removeprefix(f"K = {K}").split()
        best = torch.tensor(view.scores[0, 4]).topk(K)
        assert [int(expert) for expert in numbers[0::2]] == best.indices.tolist()
        assert [float(w) for w in numbers[1::2]] == pytest.approx(best.values.softmax(-1).tolist(), abs=0.006)


def test_the_view_needs_a_token_of_the_text(model):
    with pytest.raises(ValueError, match="token=.* 0 to 3"):
        ChoiceView(model, CharacterTokenizer(), "fox", token=4)
