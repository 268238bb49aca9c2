"""A field that is assigned later: a model follows it as one that was built with it, or the assignment is refused."""

import copy
import dataclasses
import json
import pickle
import re

import pytest
import torch
from torch.testing import assert_close

from mixtral_edu import (
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
)
from mixtral_edu.attention import ATTENTION_BACKENDS
from mixtral_edu.checkpoints.config_checks import ATTENTION, EXPERTS, FIXED
from mixtral_edu.fast import experts
from mixtral_edu.moe import EXPERT_DISPATCH, sorted_dispatch
from mixtral_edu.quantization.model import quantization_of, quantize_model
from test_config import INVALID

pytestmark = pytest.mark.numerics

T = 9


def logits(model):
    return model(torch.arange(2 * T).view(2, T)).logits


def trained(model):
    """The logits in training, with random numbers that are the same for every model."""
    torch.manual_seed(5)
    return logits(model.train())


def loss_with_aux(model):
    ids = torch.arange(2 * T).view(2, T)
    return model(ids, labels=ids, output_router_logits=True).loss


def returned(model):
    out = model(torch.arange(T)[None])
    return torch.tensor([getattr(out, name) is not None for name in
                         ("past_key_values", "router_logits", "hidden_states", "attentions")])  # fmt: skip


def gradient_of_embedding(model):
    model.zero_grad()
    ids = torch.arange(2 * T).view(2, T)
    model(ids, labels=ids).loss.backward()
    return model.model.embed_tokens.weight.grad


def classified(model):
    ids = torch.tensor([[5, 6, 7, 3, 3], [8, 9, 5, 6, 7]])  # the first row's end depends on the pad id
    return model(ids, labels=torch.tensor([[1.0, 0.0], [0.0, 1.0]])).loss


def generated(model):
    return model.generate(torch.arange(T)[None], max_new_tokens=6)


def padding_of_generated(model):
    """One row stops at its first new id, the other goes on."""
    ids = torch.arange(2 * T).view(2, T)
    first = model.generate(ids, max_new_tokens=1, eos_token_id=None)[0, -1].item()
    return model.generate(ids, max_new_tokens=4, eos_token_id=first)


def weights_after_init(model):
    torch.manual_seed(3)
    model.init_weights()
    return model.lm_head.weight.detach()


SEQUENCE = MixtralForSequenceClassification
# Field, the value it had, the value that is assigned, the class of the model, and where it shows.
FOLLOWED = [
    ("num_experts_per_tok", 2, 1, MixtralForCausalLM, logits),
    ("num_experts_per_tok", 2, 4, MixtralForCausalLM, loss_with_aux),
    ("num_experts_per_tok", 2, 4, MixtralForCausalLM, generated),
    ("rope_theta", 1e6, 10.0, MixtralForCausalLM, logits),
    ("sliding_window", 7, 2, MixtralForCausalLM, logits),
    ("sliding_window", 7, None, MixtralForCausalLM, logits),
    ("attention_dropout", 0.0, 0.5, MixtralForCausalLM, trained),
    ("router_jitter_noise", 0.0, 0.9, MixtralForCausalLM, trained),
    ("router_aux_loss_coef", 0.001, 2.0, MixtralForCausalLM, loss_with_aux),
    ("initializer_range", 0.2, 0.5, MixtralForCausalLM, weights_after_init),
    ("use_cache", True, False, MixtralForCausalLM, returned),
    ("output_router_logits", False, True, MixtralForCausalLM, returned),
    ("output_hidden_states", False, True, MixtralForCausalLM, returned),
    ("output_attentions", False, True, MixtralForCausalLM, returned),
    ("pad_token_id", None, 4, MixtralForCausalLM, gradient_of_embedding),
    ("pad_token_id", 4, None, MixtralForCausalLM, gradient_of_embedding),
    ("pad_token_id", 1, 4, MixtralForCausalLM, padding_of_generated),
    ("pad_token_id", 99, 3, SEQUENCE, classified),
    ("problem_type", None, "regression", SEQUENCE, classified),
    ("eos_token_id", None, list(range(50, 100)), MixtralForCausalLM, generated),  # the model writes a 72
    ("bos_token_id", 1, 5, MixtralForCausalLM, None),  # the tokenizer's business: saved, and that is all
    ("max_position_embeddings", 128, 256, MixtralForCausalLM, None),  # nothing is made for so many positions
    ("id2label", {0: "a", 1: "b"}, {0: "c", 1: "d"}, SEQUENCE, None),
    ("extra", {}, {"author": "me"}, MixtralForCausalLM, None),
]
# Equal forms of one computation: nothing shows but that another function runs.
FORMS = {"attn_implementation", "experts_implementation"}
# One value is allowed, so nothing can follow another.
SINGLE = {"hidden_act", "tie_word_embeddings"}


def test_every_field_is_followed_or_fixed():
    fields = {f.name for f in dataclasses.fields(MixtralConfig)}
    assert {name for name, *_ in FOLLOWED} | FORMS | SINGLE | set(FIXED) == fields
    assert not {name for name, *_ in FOLLOWED} & set(FIXED)


@pytest.mark.filterwarnings("ignore:unknown config fields")
@pytest.mark.parametrize(("name", "old", "new", "cls", "show"), FOLLOWED)
def test_a_model_follows_as_one_that_was_built_with_the_value(make_config, tmp_path, name, old, new, cls, show):
    settings = {"initializer_range": 0.2, "attn_implementation": "eager", "eos_token_id": None, "pad_token_id": 99}
    model = cls(make_config(**settings | {name: old})).eval()
    built = cls(make_config(**settings | {name: new})).eval()
    built.load_state_dict(model.state_dict())
    if show is not None:
        before, right = show(copy.deepcopy(model)), show(copy.deepcopy(built))
        assert before.shape != right.shape or not torch.equal(before, right), "the value would not show"
    setattr(model.config, name, new)
    assert getattr(model.config, name) == new and model.config == built.config
    model.save_pretrained(tmp_path / "saved")
    reloaded = cls.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    for follower in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), reloaded, model):
        assert getattr(follower.config, name) == new or name == "extra"  # a save adds the class's name
        if show is not None:
            assert torch.equal(show(follower), right)


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_top_k_of_a_built_model_is_that_of_transformers(make_config, transformers_twin, top_k):
    model = MixtralForCausalLM(make_config(initializer_range=0.2)).eval()
    model.config.num_experts_per_tok = top_k
    assert {layer.block_sparse_moe.gate.top_k for layer in model.model.layers} == {top_k}
    with pytest.raises(AttributeError, match="top_k"):
        model.model.layers[0].block_sparse_moe.gate.top_k = 2  # one truth, the config's
    ids = torch.arange(2 * T).view(2, T)
    call = {"input_ids": ids, "labels": ids, "output_router_logits": True}
    ours, theirs = model(**call), transformers_twin(model)(**call)
    assert_close(ours.logits, theirs.logits, rtol=0, atol=3e-5)
    assert_close(ours.loss, theirs.loss, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("name", "table", "known"),
    [
        ("attn_implementation", ATTENTION_BACKENDS, ATTENTION),
        ("experts_implementation", EXPERT_DISPATCH, EXPERTS),
    ],
)
def test_forms_are_followed_and_unknown_ones_refused_where_they_are_set(make_config, monkeypatch, name, table, known):
    assert set(table) == set(known) - {"flash_attention_2", "grouped"}, "those are the engine's"
    model = MixtralForCausalLM(make_config())
    monkeypatch.setattr(experts, "grouped_dispatch", lambda *a: table["grouped"](*a[:3]))
    for form in known:
        if form != "flash_attention_2":  # which wants a CUDA device
            calls, run = [], table.get(form, sorted_dispatch)
            monkeypatch.setitem(table, form, lambda *a, run=run, calls=calls: (calls.append(1), run(*a))[1])
            setattr(model.config, name, form)
            logits(model)
            assert len(calls) == model.config.num_hidden_layers
    for wrong in ("foo", None, "", 3):
        with pytest.raises(ValueError, match=f"^{name}={wrong!r}.*{known[0]}"):
            setattr(model.config, name, wrong)
        with pytest.raises(ValueError, match=f"^{name}={wrong!r}.*{known[0]}"):
            make_config(**{name: wrong})
    logits(model)


OTHER_VALUES = {
    "vocab_size": 102, "hidden_size": 46, "intermediate_size": 38, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 6, "rms_norm_eps": 1e-3, "num_labels": 3,
    "id2label": {0: "a", 1: "b", 2: "c"}, "dtype": "bfloat16", "quantization_config": {"bits": 8},
}  # fmt: skip


def follow_advice(message, model, name, value):
    """Do what the message says; afterwards there is a model with the value."""
    if name == "dtype":
        assert "model.to(" in message
        assert copy.deepcopy(model).to(getattr(torch, value)).dtype == getattr(torch, value)
    elif name == "quantization_config":
        (call,) = re.findall(r"quantize_model\(.*?\)", message)
        quantized = MixtralModel(dataclasses.replace(model.config))
        eval(call, {"model": quantized, "quantize_model": quantize_model})
        assert quantized.config.quantization_config["bits"] == value["bits"]
    else:
        (call,) = re.findall(r"dataclasses\.replace\(.*\)", message)
        other = eval(call, {"config": model.config, "dataclasses": dataclasses})
        assert getattr(type(model)(other).config, name) == value


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_what_a_built_model_fixes_is_refused_and_free_everywhere_else(make_config, name):
    assert set(FIXED) <= OTHER_VALUES.keys()
    config, value = make_config(pad_token_id=99), OTHER_VALUES[name]
    model, another = MixtralForSequenceClassification(config), MixtralModel(config)  # several may share one
    before = copy.deepcopy(config)
    with pytest.raises(ValueError, match=rf"^{name}=") as caught:
        setattr(config, name, value)
    assert model.config is config is another.config and config == before
    follow_advice(str(caught.value), model, name, value)
    setattr(config, name, getattr(config, name))  # no change
    logits(model)

    changes = {name: value} | ({"num_labels": None} if name == "id2label" else {})
    for free in (copy.deepcopy(config), copy.copy(config), pickle.loads(pickle.dumps(config)),
                 dataclasses.replace(config), MixtralConfig.from_dict(config.to_dict())):  # fmt: skip
        assert free == config
        setattr(free, name, value)
        assert free == dataclasses.replace(config, **changes)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.config is not config and copied.model.layers[0].self_attn.config is copied.config
        with pytest.raises(ValueError, match=f"^{name}="):
            setattr(copied.config, name, value)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(("changes", "field"), [p for p in INVALID if len(p.values[0]) == 1])
def test_a_wrong_value_is_refused_by_name_and_the_old_one_stays(make_config, built, changes, field):
    config = make_config()
    if built:
        MixtralModel(config)
    before = copy.deepcopy(config)
    for name, value in changes.items():
        with pytest.raises(ValueError, match=rf"\b{field}\b"):
            setattr(config, name, value)
    assert config == before and vars(config).keys() == vars(before).keys()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("use_cache", "no"), ("output_router_logits", 2), ("output_hidden_states", "yes"), ("output_attentions", []),
     ("router_aux_loss_coef", "much"), ("router_aux_loss_coef", None)],
)  # fmt: skip
def test_switches_and_numbers_are_what_they_are_called(make_config, name, wrong):
    for assign in (lambda: make_config(**{name: wrong}), lambda: setattr(make_config(), name, wrong)):
        with pytest.raises(ValueError, match=f"^{name}="):
            assign()


@pytest.mark.parametrize(
    ("name", "instead"),
    [("num_expert_per_tok", r"config\.extra\['num_expert_per_tok'\] = "), ("return_dict", "always"),
     ("_attn_implementation", " attn_implementation"), ("_experts_implementation", " experts_implementation"),
     ("torch_dtype", r" dtype.*model\.to\("), ("num_experts", "num_local_experts"), ("label2id", "id2label")],
)  # fmt: skip
def test_a_name_that_is_no_field_is_refused_and_the_right_one_named(make_config, name, instead):
    config = make_config()
    MixtralModel(config)
    with pytest.raises(AttributeError, match=f"{name}.*{instead}"):
        setattr(config, name, 1)
    config.extra["num_expert_per_tok"] = 1
    assert config.to_dict()["num_expert_per_tok"] == 1


def test_another_config_cannot_take_the_place_of_a_models(make_config):
    model, other = MixtralForCausalLM(make_config()), make_config(sliding_window=2)
    model.config = model.config  # no change
    with pytest.raises(AttributeError, match=r"^config: .* MixtralForCausalLM\(config\)"):
        model.config = other
    assert MixtralForCausalLM(other).config is other and model.config.sliding_window == 7


def test_vars_are_the_fields(make_config):
    config = make_config()
    for bound in (False, True):
        if bound:
            MixtralModel(config)
        assert MixtralConfig(**vars(config)) == config
        assert set(vars(config)) == {f.name for f in dataclasses.fields(config)}


@dataclasses.dataclass
class WithField(MixtralConfig):
    depth: int = 3


class WithAttribute(MixtralConfig):
    def __init__(self, depth, **settings):
        super().__init__(sliding_window=None, **settings)
        self.depth = depth


@dataclasses.dataclass(slots=True)
class WithSlot(MixtralConfig):
    depth: int = 3


@pytest.mark.filterwarnings("ignore:unknown config fields")
@pytest.mark.parametrize("cls", [WithField, WithAttribute, WithSlot])
def test_a_subclass_may_have_attributes_of_its_own(make_config, tmp_path, cls):
    settings = vars(make_config()).copy()
    del settings["sliding_window"]
    config = cls(depth=4, **settings)
    model = MixtralForCausalLM(config)
    config.depth, config.rope_parameters = 5, {"rope_theta": 77.0}
    config.num_experts_per_tok = 1
    for each in (config, copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert (each.depth, each.rope_theta, each.num_experts_per_tok, type(each)) == (5, 77.0, 1, cls)
        with pytest.raises(ValueError, match="^hidden_act="):
            each.hidden_act = "gelu"
        with pytest.raises(ValueError, match="^rope_theta="):
            each.rope_parameters = {"rope_theta": -1.0}
        if each is not config:
            each.vocab_size = 102
    with pytest.raises(ValueError, match="^vocab_size="):
        config.vocab_size = 102
    model.save_pretrained(tmp_path / "saved")
    assert MixtralConfig.from_pretrained(tmp_path / "saved").rope_theta == 77.0
    if cls is not WithAttribute:  # fields are saved, replaced and read like any
        assert cls.from_pretrained(tmp_path / "saved").depth == 5
        assert dataclasses.replace(config, depth=6).depth == 6


def test_labels_and_their_number_stay_one_thing(make_config, tmp_path):
    import transformers

    ours, theirs = make_config(), transformers.MixtralConfig()
    for config in (ours, theirs):
        config.num_labels = 5
        assert config.num_labels == 5 and config.id2label == {i: f"LABEL_{i}" for i in range(5)}
        config.id2label = {0: "bad", 1: "good", 2: "both"}
        assert config.num_labels == 3
    assert ours.label2id == {"bad": 0, "good": 1, "both": 2}
    ours.save_pretrained(tmp_path)
    again = MixtralConfig.from_pretrained(tmp_path)
    assert again.num_labels == 3 and again.id2label == ours.id2label
    with pytest.raises(ValueError, match="num_labels=4 and id2label with 3"):  # names that somebody chose
        ours.num_labels = 4
    ours.id2label[3] = "ugly"  # in place, which nothing can see before the end
    with pytest.raises(ValueError, match="num_labels=3 and id2label with 4"):
        ours.save_pretrained(tmp_path)
    assert MixtralConfig.from_pretrained(tmp_path) == again

    model = MixtralForTokenClassification(make_config(num_labels=3))
    model.config.id2label = again.id2label
    model.save_pretrained(tmp_path / "model")
    assert MixtralForTokenClassification.from_pretrained(tmp_path / "model").config.id2label == again.id2label


def test_rope_parameters_are_rope_theta_spelled_out(make_config):
    import transformers

    config = make_config(rope_theta=500.0)
    model = MixtralForCausalLM(config).eval()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
    assert json.loads(json.dumps(config.rope_parameters)) == copy.deepcopy(config.rope_parameters)
    assert transformers.MixtralConfig(rope_parameters=config.rope_parameters).rope_parameters["rope_theta"] == 500.0
    config.rope_parameters = {"rope_type": "default", "rope_theta": 20.0}
    assert config.rope_theta == 20.0
    other = MixtralForCausalLM(make_config(rope_theta=20.0)).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(other))
    config.rope_scaling = None  # as older configs spell that there is none
    for name in ("rope_parameters", "rope_scaling"):
        for wrong in ({"rope_type": "yarn", "rope_theta": 20.0, "factor": 2.0}, {"rope_theta": -1.0}):
            with pytest.raises(ValueError, match="^rope_"):
                setattr(config, name, wrong)
    assert config.rope_theta == 20.0
    config.rope_parameters |= {"rope_theta": 30.0}  # which assigns
    assert config.rope_theta == 30.0
    for theta in (1e6, 7.0):  # the default too
        assert dataclasses.replace(config, rope_theta=theta).rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize(("name", "field"), [("rope_parameters", "rope_theta"), ("label2id", "id2label")])
def test_nothing_is_written_into_a_dictionary_that_is_a_copy(make_config, name, field):
    config = make_config()
    before = dict(getattr(config, name))
    key, value = next(iter(before.items()))
    for write in (
        lambda d: d.__setitem__("new", 3), lambda d: d.__setitem__(key, 3), lambda d: d.__delitem__(key),
        lambda d: d.update(new=3), lambda d: d.update({key: 3}), lambda d: d.pop(key), lambda d: d.popitem(),
        lambda d: d.setdefault("new", 3), lambda d: d.clear(),
    ):  # fmt: skip
        view = getattr(config, name)
        with pytest.raises(TypeError, match=f"assign {field}"):
            write(view)
        assert view == before == getattr(config, name)
    view = getattr(config, name)
    assert view.setdefault(key) == value == view.pop("no such", value)  # nothing is lost
    writable = copy.copy(view)
    writable["new"] = 3


def test_quantizing_is_noted_by_the_model_itself_and_no_other(make_config, tmp_path):
    config = make_config(attn_implementation="eager")
    model, other = MixtralForCausalLM(config).eval(), MixtralForCausalLM(config).eval()
    right = logits(other)
    quantize_model(model, "int8")
    assert model.config.quantization_config["bits"] == 8 and quantization_of(model).bits == 8
    with pytest.raises(ValueError, match="quantization_config"):
        model.config.quantization_config = None
    assert config is other.config and config.quantization_config is None
    other.save_pretrained(tmp_path / "other")
    assert quantization_of(MixtralForCausalLM.from_pretrained(tmp_path / "other")) is None

    plain = logits(model)
    model.config.sliding_window = 2  # all of its layers follow its own config, and the other model does not
    assert not torch.equal(logits(model), plain) and torch.equal(logits(other), right)
    for module in model.modules():
        assert getattr(module, "config", model.config) is model.config


def test_work_on_a_model_can_be_noted(make_config, tmp_path):
    model = MixtralForCausalLM(make_config()).eval()
    del model.model.layers[1:]
    model.config.bind(num_hidden_layers=1)
    model.save_pretrained(tmp_path / "one layer")
    assert torch.equal(logits(MixtralForCausalLM.from_pretrained(tmp_path / "one layer")), logits(model))
    with pytest.raises(ValueError, match="^num_hidden_layers=0"):
        model.config.bind(num_hidden_layers=0)


@pytest.mark.parametrize(
    "name", ["hidden_size", "id2label", "label2id", "model_type", "rope_parameters", "rope_scaling"]
)
def test_extra_does_not_hide_a_field_where_it_is_saved(make_config, name):
    with pytest.raises(ValueError, match=f"^extra.*{name}"):
        make_config(extra={name: 5})
