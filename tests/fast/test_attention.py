"""Attention in blocks: the same as whole, at the promised cost."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from attention_checks import DH, HEADS, B, Watch, random_qkv, visibility_of
from mixtral_edu import attention
from mixtral_edu.attention import eager_attention
from mixtral_edu.fast.attention import attend, blocks
from mixtral_edu.masks import NO_POSITION, Visibility

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


@pytest.mark.parametrize("padding", ["none", "left", "holes"])
@pytest.mark.parametrize(("Hq", "Hkv"), HEADS[:3])
@pytest.mark.parametrize(
    ("T", "S", "window"),
    [
        pytest.param(19, 19, None, id="prefill"),
        pytest.param(19, 19, 19, id="prefill, window as long as the text"),
        pytest.param(19, 19, 4, id="prefill, window"),
        pytest.param(200, 200, 7, id="prefill, window, in blocks"),
        pytest.param(130, 130, 1, id="prefill, window of one, in blocks"),
        pytest.param(5, 23, None, id="chunk"),
        pytest.param(5, 11, 7, id="chunk, window"),
        pytest.param(100, 106, 7, id="chunk, window, in blocks"),
        pytest.param(1, 23, None, id="decode"),
        pytest.param(1, 7, 7, id="decode, window"),
        pytest.param(1, 1, None, id="single token"),
    ],
)
def test_backends_agree_forward_and_backward(T, S, window, Hq, Hkv, padding):
    visibility = visibility_of(T, S, window, padding)
    q, k, v = random_qkv(T, S, Hq, Hkv)
    direction = torch.randn(B, Hq, T, DH)
    results = []
    for run in (
        lambda: eager_attention(q, k, v, visibility.mask)[0],
        lambda: attend("eager", q, k, v, visibility),
        lambda: attend("sdpa", q, k, v, visibility),
    ):
        out = run()
        results.append((out, *torch.autograd.grad(out, (q, k, v), direction)))
    for other in results[1:]:
        for expected, value in zip(results[0], other, strict=True):
            assert_close(value, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attend", ON_CPU.values(), ids=ON_CPU)
@pytest.mark.parametrize(("T", "S", "window"), [(9, 9, None), (100, 100, 3), (1, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convention_padding_gives_no_nan_forward_or_backward(attend, T, S, window, dtype):
    visibility = visibility_of(T, S, window)
    nothing = torch.full_like(visibility.key_positions[:1], NO_POSITION)
    keys = torch.cat((nothing, visibility.key_positions[1:]))  # the first row is all padding
    q, k, v = random_qkv(T, S, dtype=dtype)
    out = attend(q, k, v, Visibility(keys[:, S - T :], keys, window, padded=True))
    gradients = torch.autograd.grad(out.float().sum(), (q, k, v))
    assert out.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)
    assert not out[0].any(), "who sees nothing gathers nothing"
    assert all(not gradient[0].any() for gradient in gradients)


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


