"""The engine goes into a model and out again, and changes nothing but how soon results are there."""

import copy

import pytest
import torch
from torch import nn

from mixtral_edu import (
    MixtralForCausalLM,
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
)
from mixtral_edu.attention import GroupedQueryAttention
from mixtral_edu.config import Config
from mixtral_edu.fast.attention import FastAttention
from mixtral_edu.fast.engine import install, remove
from mixtral_edu.fast.experts import FastMoE
from mixtral_edu.fast.linear import Linear
from mixtral_edu.fast.norm import FastNorm
from mixtral_edu.heads import CausalLM
from mixtral_edu.moe import Router, RouterOutput, SparseMoE
from mixtral_edu.norm import RMSNorm
from mixtral_edu.quantization.model import quantize_model
from tolerances import chain_error

pytestmark = pytest.mark.numerics

CLASSES = (MixtralModel, MixtralForCausalLM, MixtralForSequenceClassification, MixtralForTokenClassification,
           MixtralForQuestionAnswering)  # fmt: skip


def classes_in(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()}


@pytest.mark.parametrize("cls", CLASSES)
def test_a_model_comes_with_the_engine_and_can_do_without(make_config, cls):
    model = cls(make_config())
    fast, plain = {Linear, FastAttention, FastMoE, FastNorm}, {nn.Linear, GroupedQueryAttention, SparseMoE, RMSNorm}
    assert fast <= classes_in(model) and not plain & classes_in(model) and Router in classes_in(model)
    kept = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    assert remove(model) is model and plain <= classes_in(model) and not fast & classes_in(model)
    assert remove(copy.deepcopy(model)) is not model and install(install(model)) is model
    assert fast <= classes_in(model) and not plain & classes_in(model)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == kept


@pytest.mark.parametrize("cls", CLASSES)
def test_loading_without_the_engine_gives_the_textbooks_parts(make_config, tmp_path, cls):
    cls(make_config(num_labels=2)).save_pretrained(tmp_path / "saved")
    model = cls.from_pretrained(tmp_path / "saved", engine=False)
    found = {c.__module__ for c in classes_in(model)}
    assert not any(".fast." in name for name in found) and {"mixtral_edu.attention", "mixtral_edu.moe"} <= found
    if cls is MixtralForCausalLM:
        assert model.generate(torch.tensor([[3, 4]]), max_new_tokens=6).shape == (1, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("window", [7, None])
def test_results_and_gradients_are_those_of_the_textbook(make_config, dtype, quantization, window):
    """In a prefill that goes in blocks, step by step, in a padded batch, and in training."""
    model = MixtralForCausalLM(make_config(sliding_window=window, num_local_experts=2)).to(dtype)  # no other choices
    if quantization:
        quantize_model(model, quantization)
    twin = remove(copy.deepcopy(model))
    ids, mask = torch.randint(101, (2, 150)), torch.ones(2, 150, dtype=torch.long)
    mask[0, :20] = 0
    # some twelve roundings on the way through three layers, or sums of some thousand numbers
    allowed = chain_error(12, dtype) if dtype == torch.bfloat16 else chain_error(2000)
    for train in (False, True):
        losses = []
        for each in (model.train(train), twin.train(train)):
            out = each(ids, attention_mask=mask, labels=ids, output_router_logits=True)
            out.loss.backward()
            losses.append(out)
        real = mask.bool()
        assert (losses[0].logits - losses[1].logits)[real].abs().max() <= allowed * losses[1].logits.abs().max()
        assert abs(losses[0].loss - losses[1].loss) <= allowed * losses[1].loss
        # Each gradient is a sum of products, of numbers up to the largest, on a way twice as long.
        largest = max(q.grad.abs().max() for q in twin.parameters() if q.grad is not None)
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() <= 2**0.5 * allowed * largest, name
    model.eval(), twin.eval()
    with torch.no_grad():
        caches = [each(ids[:, :100], use_cache=True).past_key_values for each in (model, twin)]
        for t in range(100, 110):
            token, pairs = ids[:, t : t + 1], zip((model, twin), caches, strict=True)
            found, wanted = (each(token, past_key_values=cache).logits for each, cache in pairs)
            assert (found - wanted).abs().max() <= allowed * wanted.abs().max()


def test_the_engine_works_in_a_model_of_the_textbook_and_leaves_subclasses_alone():
    class Doubling(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    sizes = dict(vocab_size=11, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2)
    model = CausalLM(Config(**sizes, num_key_value_heads=1, sliding_window=3))
    model.lm_head.__class__ = Doubling
    ids = torch.randint(11, (1, 90))
    wanted = model(ids).logits
    install(model)
    assert type(model.lm_head) is Doubling and FastMoE in classes_in(model)
    torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("experts_implementation", "grouped"),
                                             ("attn_implementation", "flash_attention_2")])  # fmt: skip
def test_what_only_the_engine_has_is_refused_without_it(make_config, tmp_path, name, value):
    model = MixtralForCausalLM(make_config())
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=f"^{name}='{value}' needs the engine"):
        MixtralForCausalLM.from_pretrained(tmp_path / "saved", engine=False, **{name: value})
    remove(model)
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"^{name}='{value}' needs the engine"):
        model(torch.tensor([[3]]))


def test_a_layer_of_ones_own_takes_the_place_of_any_layer(make_config):
    class Skip(nn.Module):
        def forward(self, x, *_):
            return x, None, RouterOutput(x.new_zeros(x[..., 0].numel(), 5), None, None)

    model, ids = MixtralForCausalLM(make_config()).eval(), torch.tensor([[3, 4, 5]])
    model.model.layers[0] = Skip()
    assert model(ids).logits.isfinite().all()
    model.config.experts_implementation = "grouped"
    assert model.generate(ids, max_new_tokens=2).shape == (1, 5)


@pytest.mark.parametrize("cls", [MixtralForTokenClassification, MixtralForQuestionAnswering])
def test_a_head_with_a_bias_has_autocasts_type_as_without_the_engine(make_config, cls):
    model, ids = cls(make_config()).eval(), torch.tensor([[3, 4, 5]])
    kinds = []
    for each in (model, remove(copy.deepcopy(model))):
        with torch.autocast("cpu", torch.bfloat16):
            out = each(ids)
        kinds.append([t.dtype for t in (out.logits, out.start_logits) if t is not None])
    assert kinds[0] == kinds[1] == [torch.bfloat16]


def test_taking_the_engine_out_and_moving_let_go_of_what_was_prepared(make_config):
    model = MixtralForCausalLM(make_config()).to(torch.bfloat16)
    quantize_model(model, "int8")
    for leave in (remove, nn.Module.double):
        assert model.prepare_for_inference().prepared is not None
        leave(model)
        assert model.prepared is None
    model = MixtralForCausalLM(make_config()).prepare_for_inference()
    quantize_model(model, "int8")
    assert model.prepared is None
