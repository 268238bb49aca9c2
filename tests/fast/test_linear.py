"""`fast.linear`, `fast.weights`: copies give the same numbers, count only for what they were made of, and go again."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from mixtral_edu import MixtralForCausalLM, MixtralForSequenceClassification
from mixtral_edu.fast.linear import Linear, lay_out_together, multiply, multiply_all
from mixtral_edu.fast.weights import drop_fast_weights, keep_fast_weights, laid_out
from mixtral_edu.quantization.model import QuantizationConfig, quantize_model
from tolerances import assert_product, chain_error

pytestmark = pytest.mark.numerics


@pytest.fixture
def model(make_config):
    return MixtralForCausalLM(make_config()).eval()


@pytest.fixture
def ids():
    return torch.randint(101, (3, 11))


def holders(model):
    """The modules that hold a copy."""
    return [module for module in model.modules() if getattr(module, "product", None) is not None]


@torch.no_grad()
@pytest.mark.parametrize("experts", ["reference", "sorted", "grouped"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_every_combination_equals_the_plain_model(make_config, experts, attention, dtype, quantization):
    # sizes that the 4-bit groups of 2 and the grouped product (multiples of 16 bytes) take, and odd ones for the rest
    sizes = {"hidden_size": 48, "intermediate_size": 40} if experts == "grouped" else {"intermediate_size": 38}
    model = MixtralForCausalLM(make_config(**sizes)).to(dtype).eval()
    if quantization is not None:
        quantize_model(model, QuantizationConfig(4, 2) if quantization == "int4" else QuantizationConfig(8))
    ids = torch.randint(101, (2, 9))
    model.config.experts_implementation, model.config.attn_implementation = "reference", "eager"
    plain = model(ids).logits
    model.config.experts_implementation, model.config.attn_implementation = experts, attention
    packed = keep_fast_weights(model)(ids).logits
    # In bfloat16 the forms round at other places: scores, weights and a sum of two experts in each of three layers.
    # That may let a token's router choose another expert, where two are near: few tokens, not most. In float64 too,
    # norms, softmax and rotary tables are in float32.
    tolerance = chain_error(12, dtype) if dtype == torch.bfloat16 else chain_error(1000)
    off = (packed - plain).abs().amax(-1) > tolerance * plain.abs().max()
    assert off.float().mean() <= (0.1 if dtype == torch.bfloat16 else 0)


def test_copies_lie_as_they_are_read_fastest_and_weights_stay(model):
    before = {name: (p, p.data_ptr(), p.stride(), p.clone()) for name, p in model.named_parameters()}
    keep_fast_weights(model)
    attention, expert = model.model.layers[1].self_attn, model.model.layers[1].block_sparse_moe.experts[3]
    assert attention.q_proj.product.weight.shape == (56 + 28 + 28, 44)
    assert expert.w1.product.weight.stride() == (1, 2 * 37)  # 74 x 44: taller than wide
    assert model.lm_head.product.weight.stride() == (1, 101)
    assert expert.w2.product.weight.stride() == (1, 44)
    assert attention.k_proj.product is None and expert.w3.product is None, "copied with q and w1"
    assert attention.o_proj.product is None, "44 x 56: read fastest as it is"
    assert [name for name, _ in model.named_parameters()] == list(before)
    for name, p in model.named_parameters():
        held, address, strides, value = before[name]
        assert p is held and p.data_ptr() == address and p.stride() == strides and torch.equal(p, value)


@pytest.mark.parametrize("leave", [lambda m: m.train(), lambda m: m.double(), drop_fast_weights],
                         ids=["train", "to", "drop"])  # fmt: skip
@pytest.mark.parametrize("experts", ["sorted", "grouped"])
def test_copies_are_dropped(model, leave, experts):
    model.config.experts_implementation = experts
    assert len(holders(keep_fast_weights(model))) == 3 + 3 * 5 * 2 + 1 + 3 * (experts == "grouped")
    leave(model)
    assert not holders(model)


def test_stacked_weights_have_a_copy_while_they_may(model):
    model.config.experts_implementation = "grouped"
    experts = keep_fast_weights(model).model.layers[0].block_sparse_moe.experts
    assert experts.stacked_copy() is None, "gradients are wanted"
    fresh = experts.stacked()
    with torch.no_grad():
        for kept, new in zip(experts.stacked_copy(), fresh, strict=True):
            assert torch.equal(kept, new) and new.requires_grad
        experts[1].w2.weight.mul_(2)
        assert experts.stacked_copy() is None


@torch.no_grad()
@pytest.mark.parametrize("experts", ["sorted", "grouped"])
def test_layers_that_two_experts_share_count_for_both(make_config, ids, experts):
    model = MixtralForCausalLM(make_config(hidden_size=48, intermediate_size=40)).eval()
    for layer in model.model.layers:
        layer.block_sparse_moe.experts[1] = layer.block_sparse_moe.experts[0]
        layer.block_sparse_moe.experts[3].w1 = layer.block_sparse_moe.experts[2].w1
        layer.block_sparse_moe.experts[4].w2 = layer.block_sparse_moe.experts[2].w2
    wanted = model(ids).logits
    model.config.experts_implementation = experts
    found = keep_fast_weights(model)(ids).logits
    assert (found - wanted).abs().max() <= chain_error(1000) * wanted.abs().max()


@torch.no_grad()
def test_weights_that_were_made_narrower_are_multiplied_as_they_are(model, ids):
    """Structured pruning exchanges the weights alone; layers still say their old sizes."""
    for layer in model.model.layers:
        for expert in layer.block_sparse_moe.experts:
            for layer in (expert.w1, expert.w3):
                layer.weight = torch.nn.Parameter(layer.weight[:20])
            expert.w2.weight = torch.nn.Parameter(expert.w2.weight[:, :20].contiguous())
    wanted = model(ids).logits
    for experts in ("sorted", "grouped"):
        model.config.experts_implementation = experts
        found = keep_fast_weights(model)(ids).logits
        assert (found - wanted).abs().max() <= chain_error(1000) * wanted.abs().max()


@torch.no_grad()
def test_a_weight_that_is_no_parameter_any_more_is_used(model, ids):
    keep_fast_weights(model)
    for layer in (model.lm_head, model.model.layers[0].self_attn.k_proj):
        weight = layer.weight * 2
        del layer.weight
        layer.weight = weight
    wanted = copy.deepcopy(model)(ids).logits
    assert torch.allclose(model(ids).logits, wanted, atol=1e-6)
    assert not torch.allclose(keep_fast_weights(model)(ids).logits, torch.zeros(()))


@pytest.mark.parametrize("experts", ["sorted", "grouped"])
def test_generation_with_copies_gives_the_same(make_config, ids, experts):
    model = MixtralForCausalLM(make_config(hidden_size=48, intermediate_size=40, experts_implementation=experts)).eval()
    wanted = model.generate(ids, max_new_tokens=20)
    assert torch.equal(keep_fast_weights(model).generate(ids, max_new_tokens=20), wanted) and holders(model)


def test_generation_leaves_parts_that_were_in_training_so(model, ids):
    model.model.layers[1].train()
    model.generate(ids, max_new_tokens=1)
    assert [layer.training for layer in model.model.layers] == [False, True, False]


def test_a_model_with_copies_can_be_copied_moved_and_loaded_into(model, ids):
    keep_fast_weights(model)
    twin = copy.deepcopy(model)
    assert not holders(twin)
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.allclose(twin(ids).logits, wanted, atol=1e-6)
        doubled = model.double()
        assert torch.allclose(doubled(ids).logits.float(), wanted, atol=1e-5)
        other = MixtralForCausalLM(model.config).eval()
        keep_fast_weights(twin).load_state_dict(other.state_dict())
        assert torch.allclose(twin(ids).logits, other(ids).logits, atol=1e-6)


@torch.no_grad()
def test_a_weight_given_afterwards_counts(model, ids):
    model.config.experts_implementation = "grouped"
    twin = copy.deepcopy(model)
    keep_fast_weights(model)
    for m in (model, twin):
        torch.manual_seed(1)
        for layer in m.model.layers:
            layer.self_attn.k_proj.weight = torch.nn.Parameter(torch.randn(28, 44))
            layer.block_sparse_moe.experts[2].w3.weight.data = torch.randn(37, 44)
            layer.block_sparse_moe.experts[1].w2 = Linear(37, 44)
    assert torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-5)


def test_memory_that_is_used_again_is_not_taken_for_what_was_copied(model, ids):
    """A weight exchanged twice may lie where the first one lay, if that was given back."""
    keep_fast_weights(model)
    product, weight = model.lm_head.product, model.lm_head.weight
    for _ in range(50):
        weight.data = weight.data + 1
        assert not product.stands_for([model.lm_head])


def test_gradients_of_a_model_with_copies_are_those_of_the_plain_one(model, ids):
    twin = copy.deepcopy(model)
    keep_fast_weights(model)
    for experts, m in itertools.product(("sorted", "grouped"), (model, twin)):
        m.config.experts_implementation = experts
        m.zero_grad()
        m(ids, labels=ids).loss.backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("piece", [2**19, 33 * 8, 1])
def test_half_precision_without_instructions_for_it_is_rounded_once(monkeypatch, piece):
    """In one piece, in pieces of 8 rows with a rest, and row by row."""
    from mixtral_edu.fast import linear

    monkeypatch.setattr(linear, "_EMULATED", {torch.bfloat16})
    monkeypatch.setattr(linear, "_PIECE", piece)
    x, w = torch.randn(9, 33).bfloat16(), torch.randn(21, 33).bfloat16()
    for rows in (1, 2, 3, 9):
        y = multiply(x[:rows], w)
        assert y.dtype == torch.bfloat16
        assert_product(y, x[:rows], w, roundings=0)
    assert torch.equal(multiply(x[:2], w), F.linear(x[:2], w))
    x, w = x.requires_grad_(), w.requires_grad_()
    direction = torch.randn(9, 21).bfloat16()
    found = torch.autograd.grad(multiply(x, w), (x, w), direction)
    assert_product(found[0], direction, w.T, roundings=0)
    assert_product(found[1], direction.T, x.T, roundings=0)


def test_layers_of_another_kind_are_left_alone():
    layers = Linear(6, 5), torch.nn.Linear(6, 3, bias=False)
    lay_out_together(*layers)
    assert layers[0].product is None
    x = torch.randn(2, 6)
    assert [y.shape[1] for y in multiply_all(x, *layers)] == [5, 3]


def test_a_bias_that_a_layer_is_given_counts(model, ids):
    """As in `torch.nn.Linear`, of which it is one."""
    head = keep_fast_weights(model).lm_head
    with torch.no_grad():
        before = model(ids).logits
        head.bias = torch.nn.Parameter(torch.arange(101.0))
        assert torch.equal(model(ids).logits, F.linear(model.model(ids).last_hidden_state, head.weight) + head.bias)
    assert not torch.equal(before, model(ids).logits)


def test_only_tall_matrices_in_full_precision_are_read_down():
    assert laid_out((7, 3), torch.zeros(1)).stride() == (1, 7)
    assert laid_out((3, 7), torch.zeros(1)).stride() == (7, 1)
    assert laid_out((7, 3), torch.zeros(1, dtype=torch.bfloat16)).stride() == (3, 1)
    assert laid_out((2, 7, 3), torch.zeros(1, dtype=torch.float64)).stride() == (21, 1, 7)


def test_every_head_can_have_copies(make_config, ids):
    model = MixtralForSequenceClassification(make_config(pad_token_id=0)).eval()
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.allclose(keep_fast_weights(model)(ids).logits, wanted, atol=1e-6)
