"""Attention backends against a plain loop and against each other; what they cost; what the layer does with them."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from attention_checks import (
    DH,
    HEADS,
    B,
    Watch,
    assert_equals_eager,
    assert_padding_is_harmless,
    attention_by_loop,
    in_every_situation,
    random_qkv,
    visibility_of,
)
from mixtral_edu.attention import GroupedQueryAttention, attend_eager, attend_sdpa, eager_attention, sdpa_attention
from mixtral_edu.rope import rotary_tables
from tolerances import assert_attention

pytestmark = pytest.mark.numerics

ON_CPU = {"eager": attend_eager, "sdpa": attend_sdpa}


@pytest.mark.parametrize("padding", ["none", "left", "holes"])
@pytest.mark.parametrize(("Hq", "Hkv"), HEADS)
@pytest.mark.parametrize("window", [None, 3])
def test_both_forms_are_the_formula_for_every_group_of_heads(Hq, Hkv, window, padding):
    q, k, v = random_qkv(5, 11, Hq, Hkv)
    mask = visibility_of(5, 11, window, padding).mask
    expected, expected_weights = attention_by_loop(q, k, v, mask)
    out, weights = eager_attention(q, k, v, mask)
    assert_close(weights.double(), expected_weights, rtol=0, atol=1e-6)
    assert_attention(out.double(), expected, keys=11)
    assert_attention(sdpa_attention(q, k, v, mask).double(), expected, keys=11)


@in_every_situation
def test_backends_agree_forward_and_backward(T, S, window, Hq, Hkv, padding):
    assert_equals_eager(ON_CPU.values(), T, S, window, Hq, Hkv, padding)


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize(("T", "S", "window"), [(9, 9, None), (100, 100, 3), (1, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convention_padding_gives_no_nan_forward_or_backward(attend, T, S, window, dtype):
    assert_padding_is_harmless(attend, T, S, window, dtype)


@pytest.mark.parametrize("padding", ["none", "left", "holes"])
def test_weights_sum_to_one_and_are_zero_outside_the_mask(padding):
    q, k, v = random_qkv(6, 13)
    mask = visibility_of(6, 13, 4, padding).mask
    weights = eager_attention(q, k, v, mask)[1]
    sees_something = mask.any(-1).expand(B, 4, 6)
    assert_close(weights.sum(-1), sees_something.float())
    assert not weights[~mask.expand_as(weights)].any()
    assert (weights[mask.expand_as(weights)] > 0).all()


def test_convention_documented_shapes():
    Hq, Hkv, T, S, Dh = 6, 2, 3, 5, 7
    q, k, v = torch.randn(B, Hq, T, Dh), torch.randn(B, Hkv, S, Dh), torch.randn(B, Hkv, S, Dh)
    for mask in (None, torch.ones(B, 1, T, S, dtype=torch.bool), torch.ones(1, 1, T, S, dtype=torch.bool)):
        out, weights = eager_attention(q, k, v, mask)
        assert out.shape == (B, Hq, T, Dh) and weights.shape == (B, Hq, T, S)
        assert sdpa_attention(q, k, v, mask).shape == (B, Hq, T, Dh)


def test_convention_precision_softmax_is_in_float32():
    q, k, v = random_qkv(3, 300, dtype=torch.bfloat16)
    scores = (q * DH**-0.5 @ k.repeat_interleave(2, dim=1).mT).float()
    with Watch() as made:
        weights = eager_attention(q, k, v, None)[1]
    assert made.softmax_dtypes == {torch.float32}
    assert weights.dtype == torch.bfloat16
    assert_close(weights, scores.softmax(-1).bfloat16(), rtol=0.01, atol=0)


def test_eager_scales_queries_not_scores_which_half_precision_would_round_twice_or_lose():
    """Against float64. In float16 a product of 76,800 would be inf, and its score of 9,600 is a number."""
    squares, of_scaled_scores = [], []
    for _ in range(20):
        q, k, v = (torch.randn(1, heads, 64, 128).bfloat16() for heads in (4, 2, 2))
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True)
        scores = q @ k.repeat_interleave(2, dim=1).mT * 128**-0.5
        scaled_late = scores.softmax(-1, dtype=torch.float32).bfloat16() @ v.repeat_interleave(2, dim=1)
        squares.append((eager_attention(q, k, v, None)[0] - exact).square().mean())
        of_scaled_scores.append((scaled_late - exact).square().mean())
    assert sum(squares) < sum(of_scaled_scores)

    q = torch.full((1, 1, 1, 64), 40.0, dtype=torch.float16)
    k = torch.tensor([30.0, 29.0, -30.0], dtype=torch.float16)[None, None, :, None].expand(1, 1, 3, 64)
    out, weights = eager_attention(q, k, torch.eye(3, 64, dtype=torch.float16)[None, None], None)
    assert weights.tolist() == [[[[1, 0, 0]]]] and out.flatten()[:3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("padding", ["none", "left"])
def test_sdpa_never_holds_the_scores_of_all_heads(padding):
    """Without a window too: a mask for all heads together is the most it makes, and keys are not repeated."""
    T = 256
    with Watch() as made:
        attend_sdpa(*random_qkv(T, T, Hq=8, Hkv=2), visibility_of(T, T, None, padding))
    assert made.numel <= B * T * T


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_decoding_copies_no_keys_for_the_heads_of_a_group(attend, padding):
    S = 211
    q, k, v = random_qkv(1, S, Hq=8, Hkv=2)
    with torch.no_grad(), Watch() as made:
        attend(q, k, v, visibility_of(1, S, None, padding))
    assert made.numel <= k.numel()


def layer_and_input(config, T: int):
    layer = GroupedQueryAttention(config, layer_idx=0)
    cos, sin = rotary_tables(torch.arange(T)[None], config.head_dim, config.rope_theta, torch.float32)
    return layer, (torch.randn(B, T, config.hidden_size), cos, sin, visibility_of(T, T, config.sliding_window))


def test_layer_shapes_and_heads_whose_sizes_do_not_multiply_to_d(make_config):
    config = make_config(attn_implementation="eager")
    layer, inputs = layer_and_input(config, T=5)
    assert layer.q_proj.weight.shape == (4 * 14, 44) and layer.k_proj.weight.shape == (2 * 14, 44)
    assert layer.v_proj.weight.shape == (2 * 14, 44) and layer.o_proj.weight.shape == (44, 4 * 14)
    out, weights = layer(*inputs, output_attentions=True)
    assert out.shape == (B, 5, 44) and weights.shape == (B, 4, 5, 5)
    assert layer(*inputs)[1] is None


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("T", [6, 100])
def test_dropout_acts_in_training_only(make_config, backend, T):
    plain, inputs = layer_and_input(make_config(attn_implementation=backend), T)
    layer, _ = layer_and_input(make_config(attn_implementation=backend, attention_dropout=0.5), T)
    layer.load_state_dict(plain.state_dict())
    expected = plain(*inputs)[0]
    assert_close(layer.eval()(*inputs)[0], expected)
    layer.train()
    assert not torch.allclose(layer(*inputs)[0], expected)
    average = torch.stack([layer(*inputs)[0] for _ in range(100)]).mean(0)
    assert (average - expected).norm() < 0.25 * expected.norm(), "kept weights are scaled up: unbiased"


def test_an_unknown_backend_is_refused_by_name(make_config):
    with pytest.raises(ValueError, match="attn_implementation='flash'.*eager.*flash_attention_2.*sdpa"):
        GroupedQueryAttention(make_config(attn_implementation="flash"), layer_idx=0)
