"""Exercises of lesson 02: RMSNorm, rotary embedding, and its two storage layouts."""

import math

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("RMSNorm of each token's vector")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each vector of x by its root mean square, then multiply by `weight`.

        y = x / sqrt(mean(x²) + eps) · weight

    The mean of squares is computed in float32, whatever the dtype of x. The result has the
    dtype of x.

    Args:
        x: (..., D), any number of dimensions.
        weight: (D,), in the dtype of x.
        eps: a small number that keeps the root away from zero.

    Returns:
        (..., D)
    """
    x32 = x.float()
    mean_square = x32.square().mean(dim=-1, keepdim=True)  # (..., 1)
    normalised = x32 * torch.rsqrt(mean_square + eps)
    return normalised.to(x.dtype) * weight


def rms_norm_by_loops(x: Tensor, weight: Tensor, eps: float) -> np.ndarray:
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:-1]):
        vector = x[place].tolist()
        root = math.sqrt(sum(value * value for value in vector) / len(vector) + eps)
        y[place] = [value / root * w for value, w in zip(vector, weight.tolist(), strict=True)]
    return y


@rms_norm.check("Is it the mean of the squares, not their sum?")
def mean_not_sum(answer):
    x = torch.tensor([[3.0, -3.0, 3.0, -3.0]])
    return answer(x, torch.ones(4), 1e-6), x / 3


@rms_norm.check("Are the squares taken of x itself? RMSNorm subtracts no mean.")
def not_centred(answer):
    x = torch.tensor([[1.0, 7.0]])  # mean square 25; around the mean of 4 it is 9
    return answer(x, torch.ones(2), 1e-6), x / 5


@rms_norm.check("Does each vector get a mean of its own, taken over the last dimension alone?")
def last_dimension(answer):
    x = torch.randn(2, 3, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    return answer(x, torch.ones(5), 1e-6), rms_norm_by_loops(x, torch.ones(5), 1e-6)


@rms_norm.check("Is eps added to the mean square, inside the root?")
def eps_inside_the_root(answer):
    x = torch.tensor([[3.0, 4.0]])  # mean square 12.5
    return answer(x, torch.ones(2), 12.5), x / 5


@rms_norm.check("Is the normalised vector multiplied by the weight itself, number by number?")
def weight_comes_last(answer):
    x, weight = torch.randn(2, 3, 5), torch.randn(5)
    return answer(x, weight, 0.1), rms_norm_by_loops(x, weight, 0.1)


@rms_norm.check("Does the result have the dtype of x?")
def dtype_of_x(answer):
    x, weight = torch.randn(2, 3, 5).bfloat16(), torch.randn(5).bfloat16()
    return answer(x, weight, 0.1), torch.tensor(rms_norm_by_loops(x, weight, 0.1), dtype=torch.bfloat16)


@rms_norm.check("Are the squares taken in float32? In float16 the square of 300 is infinite.")
def statistics_in_float32(answer):
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    return answer(x, torch.ones(8, dtype=torch.float16), 1e-5), torch.ones(1, 8, dtype=torch.float16)


@exercise("Rotate queries or keys by their positions")
def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of numbers of each head by the angle of its token's position.

        (a, b) -> (a·cos - b·sin, b·cos + a·sin)      for the pair a = x[i], b = x[i + Dh/2]

    Args:
        x: (B, H, T, Dh), queries or keys.
        cos: (B, T, Dh), the cosine of each token's angles. Both numbers of a pair turn by the
            same angle, so the second half of the last dimension repeats the first.
        sin: (B, T, Dh), the sine.

    Returns:
        (B, H, T, Dh), in the dtype of x.
    """
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (B, 1, T, Dh)
    a, b = x.chunk(2, dim=-1)  # (B, H, T, Dh/2) each
    partners = torch.cat((-b, a), dim=-1)  # (B, H, T, Dh)
    return x * cos + partners * sin


def apply_rotary_by_loops(x: Tensor, cos: Tensor, sin: Tensor) -> np.ndarray:
    y = np.zeros(x.shape)
    half = x.shape[-1] // 2
    for b, h, t, i in np.ndindex(*x.shape[:-1], half):
        turn = complex(cos[b, t, i], sin[b, t, i])
        pair = complex(x[b, h, t, i], x[b, h, t, i + half]) * turn
        y[b, h, t, i], y[b, h, t, i + half] = pair.real, pair.imag
    return y


def rotary_inputs(B: int, H: int, T: int, Dh: int) -> tuple[Tensor, Tensor, Tensor]:
    angles = torch.rand(B, T, Dh // 2).repeat(1, 1, 2) * 6
    return torch.randn(B, H, T, Dh), angles.cos(), angles.sin()


@apply_rotary.check("Does x go with cos, so that angle 0 (cos 1, sin 0) changes nothing?")
def angle_zero(answer):
    x = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    return answer(x, torch.ones(1, 1, 2), torch.zeros(1, 1, 2)), x


@apply_rotary.check(
    "Is the minus sign at b·sin? A quarter turn (cos 0, sin 1) takes (1, 2) to (-2, 1). "
    "(Or was a overwritten before b used it?)"
)
def quarter_turn(answer):
    x = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    turned = torch.tensor([-2.0, 1.0]).view(1, 1, 1, 2)
    return answer(x, torch.zeros(1, 1, 2), torch.ones(1, 1, 2)), turned


@apply_rotary.check("Is number i paired with number i + Dh/2, and not with its neighbour?")
def half_split_pairs(answer):
    inputs = rotary_inputs(B=1, H=1, T=1, Dh=6)
    return answer(*inputs), apply_rotary_by_loops(*inputs)


@apply_rotary.check("Does the angle depend on the token, and not on the head?")
def same_for_all_heads(answer):
    inputs = rotary_inputs(B=1, H=4, T=4, Dh=6)  # as many heads as tokens: a swapped axis raises no error
    return answer(*inputs), apply_rotary_by_loops(*inputs)


@apply_rotary.check("Does each row of the batch use its own row of cos and sin?")
def own_row(answer):
    inputs = rotary_inputs(B=2, H=3, T=5, Dh=4)
    return answer(*inputs), apply_rotary_by_loops(*inputs)


@apply_rotary.check("Does the result have the dtype of x, also where the tables are in float32?")
def dtype_of_queries(answer):
    x, cos, sin = rotary_inputs(B=2, H=3, T=5, Dh=4)
    return answer(x.bfloat16(), cos, sin), torch.tensor(apply_rotary_by_loops(x.bfloat16(), cos, sin)).bfloat16()


@exercise("From interleaved to half-split rows")
def qk_to_half_split(
    q: Tensor, k: Tensor, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor]:
    """Reorder the rows of the query and key matrices from interleaved to half-split.

    In each head, interleaved pairs are rows (0, 1), (2, 3), …; half-split pairs are rows
    (0, Dh/2), (1, Dh/2 + 1), … So the even rows of a head come first, then its odd rows.
    Heads keep their places, and columns stay as they are.

    Args:
        q: (Hq*Dh, D), the heads one below the other.
        k: (Hkv*Dh, D).
        num_heads: Hq.
        num_kv_heads: Hkv.

    Returns:
        The two matrices in the new order.
    """

    def reorder(matrix: Tensor, heads: int) -> Tensor:
        pairs = matrix.view(heads, -1, 2, matrix.shape[1])  # (H, Dh/2, 2, D)
        return pairs.transpose(1, 2).reshape(matrix.shape)  # by way of (H, 2, Dh/2, D)

    return reorder(q, num_heads), reorder(k, num_kv_heads)


def half_split_by_loops(matrix: Tensor, heads: int) -> Tensor:
    head_dim = len(matrix) // heads
    rows = [head * head_dim + row for head in range(heads) for first in (0, 1) for row in range(first, head_dim, 2)]
    return torch.stack([matrix[row] for row in rows])


def matrix(rows: int, columns: int) -> Tensor:
    """Row 3 begins with 3: the order can be read off."""
    return torch.arange(rows)[:, None] + torch.arange(columns) / 100


@qk_to_half_split.check("Are whole rows moved, and columns left alone?")
def whole_rows(answer):
    q = k = matrix(6, 6)
    return [each[each[:, 0].argsort()] for each in answer(q, k, 1, 1)], [q, k]  # in whatever order


@qk_to_half_split.check("Do a head's even rows come first, then its odd ones? (The other way round is the way back.)")
def even_rows_first(answer):
    q = k = matrix(6, 1)
    order = torch.tensor([[0.0], [2.0], [4.0], [1.0], [3.0], [5.0]])
    return answer(q, k, 1, 1), (order, order)


@qk_to_half_split.check("Is each head reordered by itself?")
def each_head(answer):
    q = k = matrix(3 * 6, 5)
    return answer(q, k, 3, 3), (half_split_by_loops(q, 3), half_split_by_loops(k, 3))


@qk_to_half_split.check("Is k cut into num_kv_heads heads? It has fewer than q.")
def fewer_key_heads(answer):
    q, k = matrix(4 * 12, 5), matrix(2 * 12, 5)
    return answer(q, k, 4, 2), (half_split_by_loops(q, 4), half_split_by_loops(k, 2))
