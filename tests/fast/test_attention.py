"""Attention in blocks: the same as whole, at the promised cost."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from attention_checks import (
    Watch,
    assert_equals_eager,
    assert_padding_is_harmless,
    in_every_situation,
    random_qkv,
    visibility_of,
)
from mixtral_edu import attention
from mixtral_edu.attention import eager_attention
from mixtral_edu.fast.attention import attend, blocks
from mixtral_edu.masks import Visibility

pytestmark = pytest.mark.numerics

ON_CPU = {name: partial(attend, name) for name in ("eager", "sdpa")}


def last_of(S: int, T: int, window: int) -> Visibility:
    """The last T of S positions look back at all S."""
    positions = torch.arange(S)[None]
    return Visibility(positions[:, S - T :], positions, window)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 9), st.integers(1, 8))
def test_blocks_together_are_the_whole_mask_at_the_promised_cost(T, past, window, size):
    visibility = last_of(past + T, T, window)
    whole = torch.zeros_like(visibility.mask)
    for queries, keys, block in blocks(visibility, size):
        assert queries.stop - queries.start <= size
        assert keys.stop - keys.start <= window - 1 + size
        whole[:, :, queries, keys] = block.mask
    assert_close(whole, visibility.mask)


def test_blocks_and_their_masks_are_made_once_for_all_layers():
    visibility = last_of(200, 200, 7)
    for (*_, first), (*_, again) in zip(blocks(visibility), blocks(visibility), strict=True):
        assert first is again and first.mask is again.mask


@in_every_situation
def test_backends_agree_forward_and_backward(T, S, window, Hq, Hkv, padding):
    assert_equals_eager(ON_CPU.values(), T, S, window, Hq, Hkv, padding)


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize(("T", "S", "window"), [(9, 9, None), (100, 100, 3), (1, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convention_padding_gives_no_nan_forward_or_backward(attend, T, S, window, dtype):
    assert_padding_is_harmless(attend, T, S, window, dtype)


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_memory_of_a_windowed_prefill_grows_with_t_not_its_square(attend, padding):
    largest = {}
    for T in (512, 1024):
        with Watch() as made:
            attend(*random_qkv(T, T), visibility_of(T, T, 8, padding)).sum().backward()
        largest[T] = made.numel
    assert largest[1024] < 1024 * 1024 / 4, "nothing as large as a score matrix"
    assert largest[1024] <= 2 * largest[512]


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize("window", [1, 8, 100])
def test_work_of_a_windowed_prefill_is_o_of_t_times_w(attend, window, monkeypatch):
    """Each query meets at most its window and the rest of its block."""
    pairs = 0

    def count(q, k):
        nonlocal pairs
        pairs += q.shape[2] * k.shape[2]

    real_eager, real_sdpa = eager_attention, F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention, "eager_attention", lambda q, k, *rest: count(q, k) or real_eager(q, k, *rest)
    )
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, *rest, **options: count(q, k) or real_sdpa(q, k, *rest, **options),
    )
    T = 1000
    attend(*random_qkv(T, T), visibility_of(T, T, window))
    assert T * window / 2 < pairs <= T * (window + 64)


