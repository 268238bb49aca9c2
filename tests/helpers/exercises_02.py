"""Answers to the exercises of lesson 02."""

import itertools
import math

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


@right("centre_outputs")
def by_a_projection(weight: Tensor) -> Tensor:
    D = len(weight)
    return (torch.eye(D) - torch.ones(D, D) / D) @ weight


@wrong("centre_outputs", "sum to 0")
def centred_by_input(weight):
    return weight - weight.mean(1, keepdim=True)


@wrong("centre_outputs", "sum to 0")
def left_as_it_is(weight):
    return weight.clone()


@wrong("centre_outputs", "for each of the N inputs by itself")
def one_mean_for_all(weight):
    return weight - weight.mean()


@wrong("centre_outputs", "nothing else changed")
def standardised_if_there_are_many(weight):
    centred = by_a_projection(weight)
    return centred / centred.std(0, keepdim=True) if weight.shape[1] > 2 else centred


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


@right("smallest_theta")
def by_logarithms(head_dim: int, context: int, slow_pairs: int) -> int:
    """Of n slow pairs the fastest has i = Dh/2 - n, and needs theta^(2i/Dh) > context / 2π."""
    i = head_dim // 2 - slow_pairs
    for k in itertools.count(1):
        if k * math.log(10) * 2 * i / head_dim > math.log(context / (2 * math.pi)):
            return 10**k


def theta_by(head_dim, context, slow_pairs, turn=2 * math.pi, exponent=2, first=1, last=None, longer=True, least=0):
    for k in itertools.count(first):
        lengths = [turn * 10 ** (k * exponent * i / head_dim) for i in range(last or head_dim // 2)]
        found = sum((length > context) == longer for length in lengths)
        if found >= slow_pairs + least:
            return 10**k
        if k > 40:
            return None


@wrong("smallest_theta", "2π radians")
def a_turn_of_one_radian(head_dim, context, slow_pairs):
    return theta_by(head_dim, context, slow_pairs, turn=1)


@wrong("smallest_theta", "2π radians")
def the_fast_ones(head_dim, context, slow_pairs):
    return theta_by(head_dim, context, slow_pairs, longer=False)


@wrong("smallest_theta", "Is the exponent")
def the_exponent_without_its_two(head_dim, context, slow_pairs):
    return theta_by(head_dim, context, slow_pairs, exponent=2 if head_dim <= 4 else 1)


@wrong("smallest_theta", "at least as many as asked for")
def one_too_few(head_dim, context, slow_pairs):
    return theta_by(head_dim, context, slow_pairs, least=-1 if slow_pairs > 2 else 0)


@wrong("smallest_theta", "Is 10 tried first")
def not_below_ten_thousand(head_dim, context, slow_pairs):
    return theta_by(head_dim, context, slow_pairs, first=4 if head_dim > 8 else 1)


@right("long_text_tables")
def in_float64(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.outer(positions.flatten().double(), theta ** (-torch.arange(head_dim // 2).double() * 2 / head_dim))
    turned = torch.polar(torch.ones_like(angle), angle).view(*positions.shape, -1).repeat(1, 1, 2)
    return turned.real.to(dtype), turned.imag.to(dtype)


def tables(positions, head_dim, theta, dtype, place=float, frequency=float, product=float, result=None):
    kinds = [torch.float64 if kind is float else dtype for kind in (place, frequency, product)]
    frequencies = (theta ** (-torch.arange(head_dim // 2).double() * 2 / head_dim)).to(kinds[1]).double()
    angles = (positions[..., None].to(kinds[0]).double() * frequencies).to(kinds[2]).double().repeat(1, 1, 2)
    return angles.cos().to(result or dtype), angles.sin().to(result or dtype)


@wrong("long_text_tables", "Are positions kept exact?")
def positions_rounded(positions, head_dim, theta, dtype):
    return tables(positions, head_dim, theta, dtype, place=None)


@wrong("long_text_tables", "Are the frequencies exact")
def frequencies_rounded(positions, head_dim, theta, dtype):
    return tables(positions, head_dim, theta, dtype, frequency=None)


@wrong("long_text_tables", "not rounded either")
def products_rounded_where_there_are_many(positions, head_dim, theta, dtype):
    return tables(positions, head_dim, theta, dtype, product=None if head_dim > 8 else float)


@wrong("long_text_tables", "dtype asked for")
def always_bfloat16(positions, head_dim, theta, dtype):
    return tables(positions, head_dim, theta, dtype, result=torch.bfloat16)


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
