"""Copies of weights: the same numbers, only of what they were made of, only while a step runs, and none left behind."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.fast import copies, linear, products
from mixtral_edu.quantization.model import QuantizationConfig, quantize_model
from tolerances import chain_error

pytestmark = pytest.mark.numerics

IDS = torch.arange(3, 33).view(2, 15)


class Known(dict):
    """Says for every shape after how many products of one row another order pays."""

    def __init__(self, number: float):
        self.number = number

    def __contains__(self, key: tuple) -> bool:
        return True

    def __missing__(self, key: tuple) -> float:
        return self.number


@pytest.fixture(autouse=True)
def weights_in_their_order(monkeypatch):
    """As if no other order were faster on this processor, and no way to multiply pinned."""
    monkeypatch.setattr(products, "_pays_after", Known(math.inf))
    monkeypatch.setattr(products, "_pinned", None)


@pytest.fixture
def model(make_config):
    """A model whose experts a single product takes."""
    sizes = {"hidden_size": 48, "intermediate_size": 40}
    return MixtralForCausalLM(make_config(**sizes, experts_implementation="grouped")).eval()


@pytest.fixture
def rounded_model(make_config):
    """A model whose layers PyTorch's 4-bit kernel takes."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = MixtralForCausalLM(make_config(**sizes)).to(torch.bfloat16).eval()
    quantize_model(model, QuantizationConfig(4, 32))
    return model


def with_copies(model: nn.Module):
    """The model, to be called while copies of its weights are in use."""

    def call(ids):
        with copies.in_use(copies.make(model)):
            return model(ids)

    return call


def holders(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if copies.of(module) is not None]


@torch.no_grad()
@pytest.mark.parametrize("experts", ["sorted", "grouped"])
def test_layers_that_two_experts_share_count_for_both(make_config, experts):
    model = MixtralForCausalLM(make_config(hidden_size=48, intermediate_size=40)).eval()
    for layer in model.model.layers:
        layer.block_sparse_moe.experts[1] = layer.block_sparse_moe.experts[0]
        layer.block_sparse_moe.experts[3].w1 = layer.block_sparse_moe.experts[2].w1
        layer.block_sparse_moe.experts[4].w2 = layer.block_sparse_moe.experts[2].w2
    wanted = model(IDS).logits
    model.config.experts_implementation = experts
    found = with_copies(model)(IDS).logits
    assert (found - wanted).abs().max() <= chain_error(1000) * wanted.abs().max()


@torch.no_grad()
def test_weights_that_were_made_narrower_are_multiplied_as_they_are(model):
    """Structured pruning exchanges the weights alone; layers still say their old sizes."""
    for layer in model.model.layers:
        for expert in layer.block_sparse_moe.experts:
            for layer in (expert.w1, expert.w3):
                layer.weight = torch.nn.Parameter(layer.weight[:20])
            expert.w2.weight = torch.nn.Parameter(expert.w2.weight[:, :20].contiguous())
    wanted = model(IDS).logits
    for experts in ("sorted", "grouped"):
        model.config.experts_implementation = experts
        found = with_copies(model)(IDS).logits
        assert (found - wanted).abs().max() <= chain_error(1000) * wanted.abs().max()


def test_copies_are_seen_while_in_use_and_not_otherwise(model, rounded_model):
    for m, count in ((model, 3), (rounded_model, 3 * (4 + 5 * 3))):
        made = copies.make(m)
        assert len(made) == count and not holders(m)
        with pytest.raises(KeyboardInterrupt), copies.in_use(made):
            assert len(holders(m)) == count
            raise KeyboardInterrupt
        assert not holders(m)


def test_one_thread_that_is_done_takes_copies_away_and_the_other_goes_on_without(rounded_model):
    made = copies.make(rounded_model)
    with copies.in_use(made):
        with copies.in_use(made):
            pass
        assert not holders(rounded_model) and rounded_model(IDS).logits.isfinite().all()


def test_a_copy_of_other_weights_is_not_used(model):
    """Written to, exchanged, made narrower, replaced: each layer whose experts have changed goes without."""
    made = copies.make(model)
    moes = [layer.block_sparse_moe for layer in model.model.layers]
    with torch.no_grad():
        moes[0].experts[1].w2.weight.mul_(2)
    moes[1].experts[0].w1.weight = nn.Parameter(torch.randn(40, 48))
    with copies.in_use(made):
        assert [copies.of(moe) is not None for moe in moes] == [False, False, True]
    moes[2].experts[3] = copy.deepcopy(moes[2].experts[0])
    with copies.in_use(made):
        assert not holders(model)


def test_memory_that_is_used_again_is_not_taken_for_what_was_copied(model):
    """A weight exchanged twice may lie where the first one lay, if that was given back."""
    made = copies.make(model)
    weight = model.model.layers[0].block_sparse_moe.experts[0].w1.weight
    for _ in range(50):
        weight.data = weight.data + 1
        assert not made[0].is_in_place() or not made[0].is_current()


def test_tensors_of_inference_mode_have_no_copies(make_config):
    with torch.inference_mode():
        model = MixtralForCausalLM(make_config(hidden_size=48, intermediate_size=40, experts_implementation="grouped"))
    assert copies.make(model) == []


def test_what_is_kept_is_made_again_when_weights_change(rounded_model):
    layer = rounded_model.prepare_for_inference().model.layers[0].self_attn.q_proj
    first = rounded_model.prepared.copies
    rounded_model.generate(IDS, max_new_tokens=5)
    assert rounded_model.prepared.copies is first
    with torch.no_grad():
        layer.scale_and_zero.mul_(2)
    rounded_model.generate(IDS, max_new_tokens=5)
    assert rounded_model.prepared.copies is not first and len(rounded_model.prepared.copies) == len(first)


@pytest.mark.parametrize("leave", [lambda m: m.train(), copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["train", "copy", "pickle"])  # fmt: skip
def test_what_is_kept_stays_with_the_model_in_evaluation(rounded_model, leave):
    assert rounded_model.prepare_for_inference().prepared.copies
    assert leave(rounded_model).prepared is None


def test_what_is_kept_keeps_no_model_alive(rounded_model):
    rounded_model.prepare_for_inference()
    gone = weakref.ref(rounded_model.model.layers[0].self_attn.q_proj)
    parts = rounded_model.prepared
    del rounded_model.prepared, rounded_model.model
    assert parts.copies
    del parts
    gc.collect()
    assert gone() is None


def test_generation_leaves_parts_that_were_in_training_so(model):
    model.model.layers[1].train()
    model.generate(IDS, max_new_tokens=1)
    assert [layer.training for layer in model.model.layers] == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_in_another_order_give_the_same_and_are_used_in_steps_alone(make_config, monkeypatch, dtype):
    monkeypatch.setattr(products, "_pays_after", Known(10.0))
    if dtype in linear._EMULATED:
        assert linear.Linear(64, 48, bias=False, dtype=dtype).make_copy(math.inf) is None
        pytest.skip("this processor multiplies such numbers in float32")
    model, used = MixtralForCausalLM(make_config(num_local_experts=2)).to(dtype).eval(), []
    for name, weight in model.named_parameters():
        if "proj" in name:
            assert torch.equal(products.reordered(weight, 11).to_dense(), weight)
            assert products.reordered(weight, 10) is None
    by_copy = products.multiply_reordered
    monkeypatch.setattr(products, "multiply_reordered", lambda x, copy: used.append(x.numel()) or by_copy(x, copy))
    with torch.no_grad():
        wanted = model(IDS).logits
        found = with_copies(model)(IDS).logits
    allowed = chain_error(12, dtype) if dtype == torch.bfloat16 else chain_error(1000)
    assert used and (found - wanted).abs().max() <= allowed * wanted.abs().max()
    used.clear()
    model.generate(IDS, max_new_tokens=40)
    assert not used, "too few steps"
    model.generate(IDS, max_new_tokens=42)
    assert used and not holders(model)
    used.clear()
    with copies.in_use(copies.make(model)):
        model(IDS, labels=IDS).loss.backward()
        with torch.no_grad(), torch.autocast("cpu", torch.float16 if dtype == torch.float32 else torch.bfloat16):
            model(IDS)
    assert not used, "gradients are wanted, or another type"


def test_a_model_that_is_copied_or_saved_during_a_step_takes_no_copy_along(rounded_model, model):
    """Another thread may do so, or a hook."""
    for m in (rounded_model, model):
        with copies.in_use(copies.make(m)):
            assert holders(m)
            for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
                assert not holders(twin)


def test_a_weight_that_is_computed_when_looked_at_is_not_looked_at(make_config):
    model = MixtralForCausalLM(make_config()).train()
    layer = spectral_norm(model.model.layers[0].self_attn.q_proj)
    before = layer.parametrizations.weight[0]._u.clone()
    copies.make(model)
    products._like(torch.randn(56, 44))
    assert torch.equal(layer.parametrizations.weight[0]._u, before)


def test_a_copy_that_an_interruption_left_behind_is_not_read(rounded_model, model):
    made = copies.make(rounded_model)
    with copies.in_use(made):
        left = [(each.module, vars(each.module)["copy"]) for each in made]
    for module, held in left:
        vars(module)["copy"] = held
    with copies.in_use(copies.make(model)):
        assert not holders(rounded_model)
    with copies.in_use(made):
        assert len(holders(rounded_model)) == len(made)
    assert not any("copy" in vars(module) for module in rounded_model.modules())


def test_weights_that_are_stacked_have_no_copies_of_their_own(model, monkeypatch):
    monkeypatch.setattr(products, "_pays_after", Known(0.0))
    made = copies.make(model)
    assert [type(each.module).__name__ for each in made].count("FastMoE") == 3
    assert not any(".experts." in name for name, m in model.named_modules() if any(m is each.module for each in made))
    with products.pinned("linear"), torch.no_grad(), copies.in_use(made):
        monkeypatch.setattr(products, "multiply_reordered", lambda *_: pytest.fail("pinned to another way"))
        assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_compiled_step_of_a_quantized_model_uses_the_kernel(make_config, bits):
    graphs = []
    config = make_config(hidden_size=64, intermediate_size=96, head_dim=16, num_hidden_layers=1)
    model = MixtralForCausalLM(config).to(torch.bfloat16).eval()
    quantize_model(model, QuantizationConfig(bits, 32 if bits == 4 else None))
    layer = model.model.layers[0].self_attn.q_proj
    compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True)
    with torch.no_grad(), copies.in_use(copies.make(layer)):
        found = compiled(torch.randn(2, 64).bfloat16())
    torch._dynamo.reset()
    assert found.shape == (2, 64) and "_weight_int" in str(graphs[0].graph)
