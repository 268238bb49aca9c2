"""Wrong arguments of `generate` are named before the model is called."""

import inspect

import pytest
import torch

from history_model import MASK, PROMPTS, HistoryModel, V
from mixtral_edu import MixtralForTokenClassification, MixtralModel
from mixtral_edu.api.generation import generate
from mixtral_edu.api.options import GenerationOptions
from mixtral_edu.sampling import RULES


def test_defaults_are_stated_once():
    shown = inspect.signature(generate).parameters
    for name, parameter in inspect.signature(GenerationOptions).parameters.items():
        assert name == "rules" or shown[name].default == parameter.default, name
    for name, rule in RULES.items():
        assert shown[name].default == rule.default and f"{name}: {rule.help}" in generate.__doc__
    assert repr(shown["eos_token_id"].default) == "<the config's>"  # what help(generate) shows


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, r"input_ids is a list; .*generate\(\*\*tokenizer"),
        ({"input_ids": torch.tensor([1, 2])}, ValueError, r"input_ids has shape \(2,\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, ValueError, r"input_ids has shape \(2, 0\)"),
        ({"input_ids": torch.zeros(0, 2, dtype=torch.long)}, ValueError, r"input_ids has shape \(0, 2\)"),
        ({"input_ids": torch.ones(1, 2)}, TypeError, "dtype torch.float32"),
        ({"input_ids": torch.tensor([[1, V]])}, ValueError, f"from 1 to {V}; .*vocab_size - 1 = {V - 1}"),
        ({"input_ids": torch.tensor([[-1, 3]])}, ValueError, "from -1 to 3"),
        ({"attention_mask": torch.ones(1, 5)}, ValueError, r"attention_mask is \(1, 5\).*input_ids, \(1, 4\)"),
        ({"attention_mask": [[1] * 4]}, ValueError, "attention_mask is list"),
        ({"attention_mask": MASK[:1] * 2}, ValueError, "other values than 0"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, ValueError, "left padding, without holes"),
        ({"input_ids": PROMPTS, "attention_mask": MASK * torch.tensor([[1], [0], [1]])}, ValueError, "all 0 in row 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0: .*an int of at least 1"),
        ({"max_new_tokens": None}, TypeError, "max_new_tokens=None"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens=2.0"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens=True"),
        ({"max_length": 9}, ValueError, "max_new_tokens=2 and max_length=9: give one of them"),
        ({"max_new_tokens": None, "max_length": 4}, ValueError, "max_length=4: the prompt alone has 4 ids"),
        ({"max_new_tokens": None, "max_length": 0}, ValueError, "max_length=0: .*an int of at least 1"),
        ({"temperature": 0.0}, ValueError, r"temperature=0.0: .*\(do_sample=False"),
        ({"temperature": float("nan")}, ValueError, "temperature=nan"),
        ({"temperature": "hot"}, TypeError, "temperature='hot'"),
        ({"top_k": 0}, ValueError, "top_k=0"),
        ({"top_p": 0}, ValueError, "top_p=0"),
        ({"top_p": 1.1}, ValueError, "top_p=1.1"),
        ({"min_p": -0.1}, ValueError, "min_p=-0.1"),
        ({"min_p": 1.1}, ValueError, "min_p=1.1"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty=0"),
        ({"temperature": float("inf")}, ValueError, "temperature=inf"),
        ({"top_k": True}, TypeError, "top_k=True"),
        ({"top_p": float("nan")}, ValueError, "top_p=nan"),
        ({"min_p": float("nan")}, ValueError, "min_p=nan"),
        ({"repetition_penalty": float("inf")}, ValueError, "repetition_penalty=inf"),
        ({"repetition_penalty": float("nan")}, ValueError, "repetition_penalty=nan"),
        ({"seed": 1.5}, TypeError, "seed=1.5"),
        ({"seed": True}, TypeError, "seed=True"),
        ({"seed": 2**64}, ValueError, f"seed={2**64}: .*2\\*\\*64"),
        ({"seed": -(2**63) - 1}, ValueError, f"seed=-{2**63 + 1}"),
        ({"eos_token_id": [None, 2]}, TypeError, "eos_token_id=None"),
        ({"pad_token_id": True}, TypeError, "pad_token_id=True"),
        ({"eos_token_id": V}, ValueError, f"eos_token_id={V}: .*an id from 0"),
        ({"eos_token_id": [1, -1]}, ValueError, "eos_token_id=-1"),
        ({"eos_token_id": "2"}, TypeError, "eos_token_id='2'"),
        ({"pad_token_id": V}, ValueError, f"pad_token_id={V}"),
    ],
)
def test_wrong_arguments_are_named(changes, error, named):
    model = HistoryModel()
    arguments = dict(input_ids=PROMPTS[:1], max_new_tokens=2, do_sample=True, streamer=Untouched()) | changes
    with pytest.raises(error, match=named):
        generate(model, **arguments)
    assert not model.calls


@pytest.mark.parametrize("model", [None, "tiny", torch.nn.Linear(2, 2), MixtralModel, MixtralForTokenClassification])
def test_a_model_that_says_no_next_id_is_refused(model, make_config):
    model = model(make_config()) if isinstance(model, type) else model
    with pytest.raises(TypeError, match=f"model is a {type(model).__name__}: it must be a causal language model"):
        generate(model, PROMPTS, max_new_tokens=1)


class Untouched:
    """A streamer that must not be told anything."""


def test_a_prompt_elsewhere_is_refused():
    model = HistoryModel()
    model.device = torch.device("cpu")
    with pytest.raises(ValueError, match=r"input_ids is on meta and the model on cpu: call \.to\(model\.device\)"):
        generate(model, PROMPTS.to("meta"), max_new_tokens=1)


def test_masks_of_any_type_and_int32_ids_are_taken():
    model = HistoryModel()
    expected = generate(model, PROMPTS, MASK, max_new_tokens=3)
    for dtype in (torch.bool, torch.float32, torch.int32):
        assert torch.equal(generate(model, PROMPTS, MASK.to(dtype), max_new_tokens=3), expected)
    assert torch.equal(generate(model, PROMPTS.int(), MASK, max_new_tokens=3), expected)


def test_sampling_options_without_sampling_warn():
    model = HistoryModel()
    with pytest.warns(UserWarning, match="with do_sample=True only: temperature, top_p, seed") as caught:
        ids = generate(model, PROMPTS, MASK, max_new_tokens=3, temperature=0.5, top_p=0.5, seed=0)
    assert caught[0].filename == __file__
    assert torch.equal(ids, generate(model, PROMPTS, MASK, max_new_tokens=3))


def test_convention_generate_pads_on_the_left_and_refuses_padding_on_the_right():
    model = HistoryModel()
    left = torch.tensor([[0, 0, 1, 1]])
    assert generate(model, PROMPTS[:1], left, max_new_tokens=1).shape == (1, 5)
    with pytest.raises(ValueError, match="left padding"):
        generate(model, PROMPTS[:1], left.flip(1), max_new_tokens=1)
