"""Queries, keys and values to attend with, attention as a plain loop, and what a computation holds on its way."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
