"""`linear`: packed weights give the same numbers, stay parameters, and come back as they were."""

import copy
import itertools

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from mixtral_edu import MixtralForCausalLM, MixtralForSequenceClassification
from mixtral_edu.linear import Linear, laid_out, multiply, multiply_all, pack_together
from mixtral_edu.quantization import QuantizationConfig, quantize_model
from tolerances import assert_product, chain_error

pytestmark = pytest.mark.numerics


@pytest.fixture
def model(make_config):
    return MixtralForCausalLM(make_config()).eval()


@pytest.fixture
def ids():
    return torch.randint(101, (3, 11))


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
    packed = model.prepare_for_inference()(ids).logits
    # In bfloat16 the forms round at other places: scores, weights and a sum of two experts in each of three layers.
    # That may let a token's router choose another expert, where two are near: few tokens, not most. In float64 too,
    # norms, softmax and rotary tables are in float32.
    tolerance = chain_error(12, dtype) if dtype == torch.bfloat16 else chain_error(1000)
    off = (packed - plain).abs().amax(-1) > tolerance * plain.abs().max()
    assert off.float().mean() <= (0.1 if dtype == torch.bfloat16 else 0)


def test_packing_moves_numbers_and_keeps_parameters(model, ids):
    before = copy.deepcopy(dict(model.named_parameters()))
    held = dict(model.named_parameters())
    assert model.prepare_for_inference() is model
    after = dict(model.named_parameters())
    assert all(after[name] is held[name] for name in held)
    assert all(torch.equal(after[name], before[name]) for name in held)
    attention, expert = model.model.layers[1].self_attn, model.model.layers[1].block_sparse_moe.experts[3]
    assert attention.q_proj.block.shape == (56 + 28 + 28, 44)
    assert expert.w1.weight.stride() == (1, 2 * 37)  # 74 x 44: taller than wide
    assert model.lm_head.weight.stride() == (1, 101)
    assert expert.w2.weight.stride() == (1, 44)
    assert model.model.embed_tokens.weight.is_contiguous()


def test_no_weight_is_held_twice(model):
    def storages():
        return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}

    plain = sum(storages().values())
    model.prepare_for_inference()
    assert sum(storages().values()) == plain
    experts = model.model.layers[0].block_sparse_moe.experts
    copies = experts.stacked()
    with torch.no_grad():
        views = experts.stacked()
    assert {t.untyped_storage().data_ptr() for t in views} <= set(storages())
    assert not {t.untyped_storage().data_ptr() for t in copies} & set(storages())  # gradients flow through them


@pytest.mark.parametrize("leave", [lambda m: m.train(), lambda m: m.state_dict(), lambda m: m._unpack()],
                         ids=["train", "state_dict", "unpack"])  # fmt: skip
def test_leaving_restores_the_layout(model, leave):
    model.prepare_for_inference()
    leave(model)
    for p in model.parameters():
        assert p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes
    assert model.model.layers[0].block_sparse_moe.experts._blocks is None


def test_generation_packs_a_model_in_evaluation_mode_only(model, ids):
    model.train()
    model.generate(ids, max_new_tokens=1)
    assert model.training and model.lm_head.weight.is_contiguous()
    model.eval()
    model.generate(ids, max_new_tokens=1)
    assert not model.lm_head.weight.is_contiguous()


def test_generation_leaves_parts_that_were_in_training_so(model, ids):
    model.model.layers[1].train()
    model.generate(ids, max_new_tokens=1)
    assert [layer.training for layer in model.model.layers] == [False, True, False]


def test_a_packed_model_is_saved_whole(model, tmp_path):
    wanted = {name: t.clone() for name, t in model.state_dict().items()}
    model.prepare_for_inference().save_pretrained(tmp_path / "ours")
    again = MixtralForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    safetensors.torch.save_file(model.prepare_for_inference().state_dict(), tmp_path / "theirs.safetensors")


def test_a_packed_model_can_be_copied_moved_and_loaded_into(model, ids):
    model.prepare_for_inference()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.allclose(twin(ids).logits, wanted, atol=1e-6)
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in twin.parameters())
        doubled = model.double()
        assert doubled.model.layers[0].self_attn.q_proj.block is None, "or the old weights stay in memory"
        assert torch.allclose(doubled(ids).logits.float(), wanted, atol=1e-5)
        other = MixtralForCausalLM(model.config).eval()
        twin.load_state_dict(other.state_dict())
        assert torch.allclose(twin(ids).logits, other(ids).logits, atol=1e-6)


@torch.no_grad()
def test_a_weight_given_afterwards_counts(model, ids):
    model.config.experts_implementation = "grouped"
    model.prepare_for_inference()
    twin = copy.deepcopy(model)
    for m in (model, twin._unpack() or twin):
        torch.manual_seed(1)
        for layer in m.model.layers:
            layer.self_attn.k_proj.weight = torch.nn.Parameter(torch.randn(28, 44))
            layer.block_sparse_moe.experts[2].w3.weight.data = torch.randn(37, 44)
            layer.block_sparse_moe.experts[1].w2 = Linear(37, 44)
    assert torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-5)


@torch.no_grad()
def test_hooks_see_each_layer_of_a_packed_model(model, ids):
    model.prepare_for_inference()
    seen = []
    layer = model.model.layers[0]
    for name, module in (("k", layer.self_attn.k_proj), ("up", layer.block_sparse_moe.experts[0].w3)):
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(ids)
    assert set(seen) == {"k", "up"}


def test_gradients_of_a_packed_model_are_those_of_the_plain_one(model, ids):
    twin = copy.deepcopy(model)
    model.prepare_for_inference()
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
    from mixtral_edu import linear

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
    pack_together(layers)
    assert layers[0].block is None
    x = torch.randn(2, 6)
    assert [y.shape[1] for y in multiply_all(x, *layers)] == [5, 3]


def test_only_tall_matrices_in_full_precision_are_read_down():
    assert laid_out((7, 3), torch.zeros(1)).stride() == (1, 7)
    assert laid_out((3, 7), torch.zeros(1)).stride() == (7, 1)
    assert laid_out((7, 3), torch.zeros(1, dtype=torch.bfloat16)).stride() == (3, 1)
    assert laid_out((2, 7, 3), torch.zeros(1, dtype=torch.float64)).stride() == (21, 1, 7)


def test_every_head_can_be_packed(make_config, ids):
    model = MixtralForSequenceClassification(make_config(pad_token_id=0)).eval()
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.allclose(model.prepare_for_inference()(ids).logits, wanted, atol=1e-6)
