"""What a forward pass returns: keys, indices and tuples of transformers, in an object that other tools can handle."""

import copy
import pickle
from dataclasses import replace

import peft
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

import mixtral_edu
from mixtral_edu import MixtralForCausalLM, MixtralModel
from mixtral_edu.api import models, output
from mixtral_edu.api.output import MixtralOutput
from tolerances import FORWARD

B, T, PAD = 2, 9, 3
IDS = torch.arange(B * T).view(B, T) + PAD + 1
LABELS = {
    "MixtralModel": {},
    "MixtralForCausalLM": {"labels": IDS},
    "MixtralForSequenceClassification": {"labels": torch.tensor([3, 0])},
    "MixtralForTokenClassification": {"labels": IDS % 4},
    "MixtralForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([4, 2])},
}
RETURNED = (
    {},
    {"output_router_logits": True},
    {"output_hidden_states": True, "output_attentions": True},
    {"output_router_logits": True, "output_hidden_states": True, "output_attentions": True},
)


def random_model(make_config, name: str = "MixtralForCausalLM"):
    config = make_config(pad_token_id=PAD, num_labels=4, initializer_range=0.2, attn_implementation="eager")
    return getattr(mixtral_edu, name)(config).eval()


def by_its_newer_name(key: str) -> str:
    return "cache" if key == "past_key_values" else key


@pytest.mark.numerics
@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("returned", RETURNED, ids=lambda options: " ".join(options) or "plain")
def test_keys_indices_and_tuple_are_those_of_transformers(make_config, transformers_twin, name, use_cache, returned):
    ours = random_model(make_config, name)
    theirs = transformers_twin(ours)
    for labels in {}, LABELS[name]:
        call = {"input_ids": IDS, "use_cache": use_cache, **returned, **labels}
        out, expected = ours(**call), theirs(**call)
        assert [by_its_newer_name(key) for key in expected] == list(out) == list(out.keys())
        as_tuple = ours(**call, return_dict=False)
        assert type(as_tuple) is tuple and len(as_tuple) == len(out) == len(expected.to_tuple())
        for i, key in enumerate(out):
            assert out[i] is out[key] is getattr(out, key) is out.to_tuple()[i]
            if key == "cache":
                assert isinstance(as_tuple[i], mixtral_edu.RollingKVCache)
            else:
                assert_close(out[i], expected[i], **FORWARD)
                assert_close(as_tuple[i], out[i])


@pytest.mark.numerics
def test_an_output_is_read_as_in_transformers(make_config, transformers_twin):
    ours = random_model(make_config)
    for model in ours, transformers_twin(ours):
        out = model(IDS, labels=IDS)
        loss, logits = out.to_tuple()[:2]
        assert loss is out.loss is out[0] is out["loss"] is out.get("loss")
        assert logits is out.logits is out[1] is out[-2] is out[:2][1]
        assert "logits" in out and "attentions" not in out and "nonsense" not in out and 0 not in out
        assert out.get("attentions") is None and out.get("attentions", 5) == 5
        assert [key for key, _ in out.items()] == [*out] == list(dict(out)) == list({**out}) and len(out) == 3
        assert all(a is b for a, b in zip(out.values(), out.to_tuple(), strict=True)) and bool(out)
        for missing in "attentions", "nonsense":
            with pytest.raises(KeyError, match=missing):
                out[missing]
        with pytest.raises(IndexError):
            out[3]
        out["loss"] = out["loss"] * 2
        assert_close(out.loss, 2 * loss)
        out.attentions = (torch.ones(1),)
        assert "attentions" in out and len(out) == 4
        assert out.hidden_states is None
    assert "logits" in str(out.keys()) and "tensor" not in str(out.keys())


def test_what_is_not_there_is_named(make_config):
    out = random_model(make_config)(IDS)
    with pytest.raises(KeyError, match="attentions: this output has logits, cache"):
        out["attentions"]
    with pytest.raises(KeyError, match="logit: it must be one of loss, aux_loss, logits"):
        out["logit"] = 1


@pytest.mark.parametrize("name", LABELS)
def test_the_cache_is_one_thing_with_two_names(make_config, name):
    out = random_model(make_config, name)(IDS)
    in_tuple = name not in ("MixtralForTokenClassification", "MixtralForQuestionAnswering")
    assert out.cache is out.past_key_values is not None
    assert ("cache" in out) == ("past_key_values" in out) == in_tuple
    assert sum(value is out.cache for value in out.to_tuple()) == in_tuple and "past_key_values" not in list(out)
    if in_tuple:
        assert out["past_key_values"] is out["cache"] is out.get("past_key_values") is out.cache
        out["past_key_values"] = 7
        assert out.cache == out["cache"] == 7


@pytest.mark.numerics
@pytest.mark.parametrize("name", LABELS)
def test_what_transformers_does_not_return_is_an_attribute_only(make_config, name):
    """The decoder's vectors of every head, and the router's decisions of those whose loss does not count balance."""
    ours = random_model(make_config, name)
    out = ours(IDS, output_router_logits=True)
    base = ours if name == "MixtralModel" else ours.model
    assert_close(out.last_hidden_state, base(IDS).last_hidden_state)
    assert ("last_hidden_state" in out) == (name == "MixtralModel")
    assert len(out.router_logits) == 3
    assert ("router_logits" in out) == (name in ("MixtralModel", "MixtralForCausalLM"))


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda out: pickle.loads(pickle.dumps(out)),
    "replace": replace,
    "tree": lambda out: pytree.tree_unflatten(*pytree.tree_flatten(out)),
    "tree with paths": lambda out: pytree.tree_map_with_path(lambda path, leaf: leaf, out),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("how", COPIES)
@torch.no_grad()  # only then does PyTorch copy results
def test_copies_hold_the_same(make_config, name, how):
    out = random_model(make_config, name)(IDS, **LABELS[name], output_hidden_states=True)
    found = COPIES[how](out)
    assert type(found) is type(out) and found is not out and list(found) == list(out)
    assert found.hidden_states[1].equal(out.hidden_states[1])
    assert found.last_hidden_state.equal(out.last_hidden_state) and found.cache.seen == T


def test_tools_that_map_tensors_reach_all_of_them(make_config):
    """As those that move outputs, gather them from devices or change their dtype do."""
    out = random_model(make_config)(IDS, labels=IDS, output_hidden_states=True, use_cache=False)
    halves = pytree.tree_map(lambda leaf: leaf.half() if isinstance(leaf, Tensor) else leaf, out)
    assert isinstance(halves, MixtralOutput)
    tensors = [halves.loss, halves.logits, halves.last_hidden_state, *halves.hidden_states]
    assert len(tensors) == 3 + 4 and {tensor.dtype for tensor in tensors} == {torch.float16}
    paths = dict(pytree.tree_flatten_with_path(out)[0])
    assert paths[pytree.MappingKey("logits"),] is out.logits
    rebuilt = type(out)({key: value for key, value in out.items() if key != "loss"})
    assert type(rebuilt) is type(out) and list(rebuilt) == ["logits", "hidden_states"] and rebuilt.loss is None


def test_a_hook_may_put_another_output_in_its_place(make_config):
    model = random_model(make_config)
    model.model.register_forward_hook(lambda module, args, out: replace(out, last_hidden_state=0 * out[0]))
    model.register_forward_hook(lambda module, args, out: replace(out, loss=out.logits.sum()))
    out = model(IDS)
    assert out[0] == out["loss"] == 0 and out.to_tuple()[1] is out.logits


def test_a_class_of_ones_own_returns_tuples_too(make_config):
    class Louder(MixtralForCausalLM):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    config = make_config()
    assert isinstance(Louder(config)(IDS, return_dict=False), tuple)
    assert isinstance(MixtralModel(config)(IDS, return_dict=None), MixtralOutput)
    assert isinstance(MixtralModel(config)(IDS, return_dict=True), MixtralOutput)
    assert models.MixtralOutput is output.MixtralOutput


@pytest.mark.numerics
@pytest.mark.parametrize(("name", "task"), [
    ("MixtralForSequenceClassification", "SEQ_CLS"),
    ("MixtralForTokenClassification", "TOKEN_CLS"),
    ("MixtralForQuestionAnswering", "QUESTION_ANS"),
])  # fmt: skip
def test_adapters_of_peft_hand_outputs_through(make_config, name, task):
    """peft always passes return_dict on, most often as None."""
    model = random_model(make_config, name)
    wanted = model(IDS, **LABELS[name])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type=task)).eval()
    out = adapted(input_ids=IDS, **LABELS[name])
    assert type(out) is type(wanted) and out["loss"].requires_grad
    assert_close(out[0], wanted[0])
    assert_close(adapted(input_ids=IDS, return_dict=False, **LABELS[name])[0], wanted[0])
