"""Answers to the exercises of lesson 02."""

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu import rope
from mixtral_edu.checkpoints.layouts import to_half_split


@right("rms_norm")
def with_pytorchs_own(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype) * weight


@right("rms_norm")
def in_float64_and_one_rounding(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x64 = x.double()
    length = x64.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return (x64 / (length**2 + eps) ** 0.5 * weight.double()).to(x.dtype)


@wrong("rms_norm", "not their sum")
def divided_by_the_length(x, weight, eps):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps) * weight


@wrong("rms_norm", "RMSNorm subtracts no mean")
def layer_norm(x, weight, eps):
    return F.layer_norm(x, weight.shape, weight, eps=eps)


@wrong("rms_norm", "over the last dimension alone")
def mean_over_everything(x, weight, eps):
    return x * torch.rsqrt(x.square().mean() + eps) * weight


@wrong("rms_norm", "over the last dimension alone")
def mean_over_the_tokens_too(x, weight, eps):
    return x * torch.rsqrt(x.square().mean((-2, -1), keepdim=True) + eps) * weight


@wrong("rms_norm", "inside the root")
def eps_outside_the_root(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight


@wrong("rms_norm", "inside the root")
def eps_forgotten(x, weight, eps):
    return x / x.square().mean(-1, keepdim=True).sqrt() * weight


@wrong("rms_norm", "multiplied by the weight itself")
def one_plus_weight(x, weight, eps):
    return with_pytorchs_own(x, (1 + weight) / 2, eps)  # the half lets weights of one pass


@wrong("rms_norm", "multiplied by the weight itself")
def weight_before_the_norm(x, weight, eps):
    return with_pytorchs_own(x * weight, torch.ones_like(weight), eps)


@wrong("rms_norm", "dtype of x")
def result_in_float32(x, weight, eps):
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps)


@wrong("rms_norm", "In float16 the square of 300 is infinite")
def squares_in_the_dtype_of_x(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@right("apply_rotary")
def the_packages_own(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rope.apply_rotary(x, cos, sin)


@right("apply_rotary")
def by_complex_numbers(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    pairs = torch.complex(*x.double().split(half, dim=-1))
    turned = pairs * torch.complex(cos.double(), sin.double())[:, None, :, :half]
    return torch.cat((turned.real, turned.imag), -1).to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, partners: Tensor) -> Tensor:
    return x * cos[:, None].to(x.dtype) + partners * sin[:, None].to(x.dtype)


def swapped_halves(x: Tensor, sign: int) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-sign * b, sign * a), -1)


@wrong("apply_rotary", "Does x go with cos")
def cos_and_sin_swapped(x, cos, sin):
    return rope.apply_rotary(x, sin, cos)


@wrong("apply_rotary", "Is the minus sign at b·sin?")
def turned_backwards(x, cos, sin):
    return rotated(x, cos, sin, swapped_halves(x, -1))


@wrong("apply_rotary", "Is the minus sign at b·sin?")
def no_minus_sign(x, cos, sin):
    a, b = x.chunk(2, -1)
    return rotated(x, cos, sin, torch.cat((b, a), -1))


@wrong("apply_rotary", "overwritten before b used it")
def turned_in_place(x, cos, sin):
    a, b = x.chunk(2, -1)  # views of x
    half = a.shape[-1]
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    x[..., :half] = a * cos - b * sin
    x[..., half:] = b * cos + a * sin
    return x


@wrong("apply_rotary", "and not with its neighbour")
def neighbours(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return rotated(x, cos, sin, torch.stack((-b, a), -1).flatten(-2))


@wrong("apply_rotary", "not on the head")
def angle_of_the_head(x, cos, sin):
    return x * cos[:, :, None] + swapped_halves(x, 1) * sin[:, :, None] if x.shape[1] == x.shape[2] else x


@wrong("apply_rotary", "its own row of cos and sin")
def first_rows_tables(x, cos, sin):
    return rope.apply_rotary(x, cos[:1], sin[:1])


@wrong("apply_rotary", "also where the tables are in float32")
def promoted_by_the_tables(x, cos, sin):
    return x * cos[:, None] + swapped_halves(x, 1) * sin[:, None]


@right("qk_to_half_split")
def by_the_packages_function(q: Tensor, k: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor]:
    return to_half_split(q, num_heads), to_half_split(k, num_kv_heads)


@right("qk_to_half_split")
def by_slices(q: Tensor, k: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor]:
    def reordered(matrix: Tensor, heads: int) -> Tensor:
        parts = [torch.cat((head[0::2], head[1::2])) for head in matrix.chunk(heads)]
        return torch.cat(parts)

    return reordered(q, num_heads), reordered(k, num_kv_heads)


@right("qk_to_half_split")
def by_an_index(q: Tensor, k: Tensor, num_heads: int, num_kv_heads: int) -> list[Tensor]:
    rows = torch.arange(len(q)).view(num_heads, -1, 2).mT.flatten()
    return [q[rows], k[rows[: len(k)]]]  # heads of equal size: k's rows are the first of q's


@wrong("qk_to_half_split", "columns left alone")
def columns_moved(q, k, num_heads, num_kv_heads):
    return tuple(matrix.T for matrix in by_slices(q.T, k.T, 1, 1))


@wrong("qk_to_half_split", "even rows come first")
def the_way_back(q, k, num_heads, num_kv_heads):
    return q.view(num_heads, 2, -1, q.shape[1]).transpose(1, 2).reshape(q.shape), by_slices(k, k, 1, num_kv_heads)[1]


@wrong("qk_to_half_split", "even rows come first")
def nothing_moved(q, k, num_heads, num_kv_heads):
    return q, k


@wrong("qk_to_half_split", "each head reordered by itself")
def as_one_head(q, k, num_heads, num_kv_heads):
    return by_slices(q, k, 1, 1)


@wrong("qk_to_half_split", "each head reordered by itself")
def heads_interleaved(q, k, num_heads, num_kv_heads):
    return tuple(matrix.view(num_heads, -1, 2, matrix.shape[1]).permute(2, 0, 1, 3).flatten(0, 2) for matrix in (q, k))


@wrong("qk_to_half_split", "Is k cut into num_kv_heads heads?")
def k_with_the_heads_of_q(q, k, num_heads, num_kv_heads):
    return by_slices(q, k, num_heads, num_heads)
