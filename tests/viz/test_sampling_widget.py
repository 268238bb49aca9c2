"""The sliders over the next token's distribution, against transformers' processors."""

import base64
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.generation import logits_process

from mixtral_edu import MixtralForCausalLM, MixtralTokenizer
from mixtral_edu.viz.widgets.sampling import OFF, SamplingView, entropy

TEXTS = {"flat": "Once upon a time there was a", "verse": "My lord, I"}


@pytest.fixture(scope="module")
def model():
    return MixtralForCausalLM.from_pretrained("tiny", dtype="float32")


@pytest.fixture
def view(model):
    return SamplingView(model, MixtralTokenizer.from_pretrained("tiny"), TEXTS)


def test_it_redraws_when_a_control_changes(view):
    seen = [view.picture.value]
    changes = {"temperature": 2.0, "top_k": 20, "top_p": 0.5, "min_p": 0.3, "text": "verse", "own_text": "El"}
    for name, value in changes.items():
        getattr(view, name).value = value
        assert view.picture.value not in seen, name
        seen.append(view.picture.value)
    view.own_text.value, view.text.value = "", "flat"
    for name, value in OFF.items():
        getattr(view, name).value = value
    assert view.picture.value == seen[0]


def test_settings_are_applied_as_transformers_applies_them(view, model):
    ids = torch.tensor([view.tokenizer.encode(TEXTS["verse"])])
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    processors = logits_process.LogitsProcessorList([
        logits_process.TemperatureLogitsWarper(1.7), logits_process.TopKLogitsWarper(50),
        logits_process.TopPLogitsWarper(0.8), logits_process.MinPLogitsWarper(0.1),
    ])  # fmt: skip
    before, after = view.distributions(TEXTS["verse"], temperature=1.7, top_k=50, top_p=0.8, min_p=0.1)
    assert before == pytest.approx(logits.softmax(-1)[0].numpy(), abs=1e-6)
    assert after == pytest.approx(processors(ids, logits).softmax(-1)[0].numpy(), abs=1e-6)
    assert 1 < np.count_nonzero(after) < 50


def test_controls_that_are_off_change_nothing(view):
    before, after = view.distributions(TEXTS["flat"], **OFF)
    assert (before == after).all()


def test_it_has_a_static_face_and_a_summary_in_numbers(view):
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.size == (frame.width, len(view.telling_settings()) * frame.height)
    lines = bundle["text/plain"].splitlines()
    assert lines[0] == "flat: tokens left, and probability of the likeliest" and len(lines) == 2 * (1 + 3)
    _, after = view.distributions(TEXTS["flat"], **OFF | {"temperature": 2.0, "min_p": 0.05})
    likeliest = view.vocabulary[int(after.argmax())]
    assert lines[3].split() == [
        *("Temperature", "2,", "min-p", "0.05"), str(np.count_nonzero(after)), likeliest, f"{after.max():.2f}",
    ]  # fmt: skip


def test_the_entropy_of_equal_choices_is_the_logarithm_of_their_number():
    assert entropy(np.array([0.125] * 8 + [0.0])) == pytest.approx(3)
    assert entropy(np.array([1.0, 0.0])) == 0


def test_it_needs_a_text(model):
    with pytest.raises(ValueError, match="texts is empty"):
        SamplingView(model, MixtralTokenizer.from_pretrained("tiny"), {})
