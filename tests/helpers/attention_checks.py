"""Queries, keys and values to attend with, what all ways to attend must do, and what a computation holds on its way."""

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mixtral_edu.attention import eager_attention
from mixtral_edu.masks import NO_POSITION, Visibility

B, DH = 2, 14
HEADS = [(4, 4), (4, 2), (4, 1), (6, 2)]


def random_qkv(T: int, S: int, Hq: int = 4, Hkv: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = (B, Hq, T, DH), (B, Hkv, S, DH), (B, Hkv, S, DH)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def visibility_of(T: int, S: int, window: int | None, padding: str = "none") -> Visibility:
    """The last T of S positions look back at all S; the second row is padded."""
    keys = torch.arange(S).repeat(B, 1)
    if padding == "left":
        keys[1] -= S // 3
    if padding == "holes":
        keys[1, 1::3] = NO_POSITION
    keys = keys.clamp(min=NO_POSITION)
    return Visibility(keys[:, S - T :], keys, window, padded=padding != "none")


def attention_by_loop(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One query at a time, in float64: softmax(q·k / sqrt(Dh)) over the keys it may see."""
    q, k, v = q.double(), k.double(), v.double()
    mask = mask.expand(B, 1, *mask.shape[2:])
    group = q.shape[1] // k.shape[1]
    out, weights = torch.zeros_like(q), q.new_zeros(*q.shape[:3], k.shape[2])
    for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        seen = mask[b, 0, t].nonzero()[:, 0]
        if len(seen):
            weights[b, h, t, seen] = (k[b, h // group, seen] @ q[b, h, t] / math.sqrt(DH)).softmax(0)
            out[b, h, t] = weights[b, h, t] @ v[b, h // group]
    return out, weights


class Watch(TorchDispatchMode):
    """Remembers the most elements that any tensor made inside has, and the dtypes in which a softmax was taken."""

    def __init__(self):
        super().__init__()
        self.numel, self.softmax_dtypes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if func is torch.ops.aten._softmax.default:
            self.softmax_dtypes.add(result.dtype)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return result


def in_every_situation(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test of (T, S, window, Hq, Hkv, padding) for prefill, chunk and decode, each with and without a window."""
    lengths = [
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
    ]
    test = pytest.mark.parametrize(("T", "S", "window"), lengths)(test)
    test = pytest.mark.parametrize(("Hq", "Hkv"), HEADS[:3])(test)
    return pytest.mark.parametrize("padding", ["none", "left", "holes"])(test)


def assert_equals_eager(attends: Iterable[Callable[..., Tensor]], T, S, window, Hq, Hkv, padding) -> None:
    """Check outputs and gradients of ways to attend against `eager_attention` with the whole mask."""
    visibility = visibility_of(T, S, window, padding)
    q, k, v = random_qkv(T, S, Hq, Hkv)
    direction = torch.randn(B, Hq, T, DH)
    outs = [eager_attention(q, k, v, visibility.mask)[0], *(attend(q, k, v, visibility) for attend in attends)]
    expected, *found = [(out, *torch.autograd.grad(out, (q, k, v), direction)) for out in outs]
    for values in found:
        for value, right in zip(values, expected, strict=True):
            assert_close(value, right, rtol=0, atol=1e-5)


def assert_padding_is_harmless(attend: Callable[..., Tensor], T: int, S: int, window: int | None, dtype) -> None:
    """Check that a row of nothing but padding gathers zeros, and that no gradient is nan."""
    visibility = visibility_of(T, S, window)
    nothing = torch.full_like(visibility.key_positions[:1], NO_POSITION)
    keys = torch.cat((nothing, visibility.key_positions[1:]))
    q, k, v = random_qkv(T, S, dtype=dtype)
    out = attend(q, k, v, Visibility(keys[:, S - T :], keys, window, padded=True))
    gradients = torch.autograd.grad(out.float().sum(), (q, k, v))
    assert out.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)
    assert not out[0].any(), "who sees nothing gathers nothing"
    assert all(not gradient[0].any() for gradient in gradients)
