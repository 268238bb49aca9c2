"""Rotary embedding against complex multiplication and transformers, and what it is for: only distance counts."""

import math

import pytest
import torch
from torch.testing import assert_close

from mixtral_edu.rope import apply_rotary, rotary_frequencies, rotary_tables

pytestmark = pytest.mark.numerics

B, H, T, DH = 2, 3, 5, 14
THETA = 1e4


def rotated(x: torch.Tensor, positions: torch.Tensor, theta: float = THETA) -> torch.Tensor:
    return apply_rotary(x, *rotary_tables(positions, x.shape[-1], theta, x.dtype))


def test_convention_documented_shapes():
    positions = torch.arange(T).expand(B, T)
    cos, sin = rotary_tables(positions, DH, THETA, torch.float32)
    assert rotary_frequencies(DH, THETA).shape == (DH // 2,)
    assert cos.shape == sin.shape == (B, T, DH)
    assert apply_rotary(torch.randn(B, H, T, DH), cos, sin).shape == (B, H, T, DH)


def test_frequencies_follow_the_formula():
    expected = [THETA ** (-2 * i / DH) for i in range(DH // 2)]
    assert_close(rotary_frequencies(DH, THETA), torch.tensor(expected))


def test_convention_half_split_pairs_rotate_like_complex_numbers():
    """Number i turns together with number i + Dh/2."""
    x = torch.randn(B, H, T, DH, dtype=torch.float64)
    positions = torch.randint(0, 50, (B, T))
    pairs = torch.complex(x[..., : DH // 2], x[..., DH // 2 :])
    angles = positions[:, None, :, None] * THETA ** (-torch.arange(0, DH, 2) / DH)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    assert_close(rotated(x, positions), torch.cat((turned.real, turned.imag), -1), rtol=1e-5, atol=1e-5)


def test_equals_transformers():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding, apply_rotary_pos_emb

    config = MixtralConfig(head_dim=DH, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    q, k = torch.randn(B, H, T, DH), torch.randn(B, 1, T, DH)
    positions = torch.randint(0, 100_000, (B, T))
    cos, sin = MixtralRotaryEmbedding(config)(q, positions)
    theirs_q, theirs_k = apply_rotary_pos_emb(q, k, cos, sin)
    assert_close(rotated(q, positions), theirs_q, rtol=1e-5, atol=1e-5)
    assert_close(rotated(k, positions), theirs_k, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1, 1000])
def test_scores_depend_on_distance_alone(shift):
    q, k = torch.randn(B, H, T, DH), torch.randn(B, H, T, DH)
    positions = torch.tensor([[0, 3, 4, 9, 20], [7, 6, 5, 1, 0]])
    scores = rotated(q, positions) @ rotated(k, positions).transpose(2, 3)
    shifted = rotated(q, positions + shift) @ rotated(k, positions + shift).transpose(2, 3)
    assert_close(scores, shifted, rtol=0, atol=2e-3 if shift > 1 else 1e-5)


def test_position_zero_changes_nothing_and_length_is_kept():
    x = torch.randn(B, H, T, DH)
    assert_close(rotated(x, torch.zeros(B, T, dtype=torch.long)), x, rtol=0, atol=0)
    assert_close(rotated(x, torch.randint(0, 9999, (B, T))).norm(dim=-1), x.norm(dim=-1))


def test_first_pair_turns_one_radian_a_position():
    x = torch.zeros(1, 1, 1, DH)
    x[..., 0] = 1.0
    y = rotated(x, torch.tensor([[2]]))
    assert_close(y[0, 0, 0, [0, DH // 2]], torch.tensor([math.cos(2), math.sin(2)]))


def test_tables_shared_by_all_rows():
    x = torch.randn(B, H, T, DH)
    assert_close(rotated(x, torch.arange(T)[None]), rotated(x, torch.arange(T).expand(B, T)), rtol=0, atol=0)


def test_convention_precision_angles_are_in_float32():
    """bfloat16 rounds positions 1000 and 1001 to the same number; the tables must differ all the same."""
    cos, _ = rotary_tables(torch.tensor([[1000, 1001]]), DH, THETA, torch.bfloat16)
    exact, _ = rotary_tables(torch.tensor([[1000, 1001]]), DH, THETA, torch.float32)
    assert cos.dtype == torch.bfloat16
    assert (cos[0, 0] != cos[0, 1]).any()
    assert_close(cos, exact.bfloat16(), rtol=0, atol=0)
