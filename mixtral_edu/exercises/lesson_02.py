"""Exercises of lesson 02: RMSNorm, LayerNorm without its mean, rotary embedding, a theta, tables, and two layouts."""

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


@exercise("LayerNorm without its mean")
def centre_outputs(weight: Tensor) -> Tensor:
    """Change a matrix so that RMSNorm of its outputs is what LayerNorm of them was.

    LayerNorm subtracts from each output vector W·x its own mean over the D outputs. Build
    that into the matrix, once and for all x. (Neither norm has weights here.)

    Args:
        weight: (D, N), which computes D outputs from N inputs, as in `nn.Linear`.

    Returns:
        (D, N), a new matrix.
    """
    return weight - weight.mean(dim=0, keepdim=True)


@centre_outputs.check("Is the mean subtracted, so that the outputs of each input sum to 0?")
def one_column(answer):
    return answer(torch.tensor([[3.0], [1.0], [-1.0]])), torch.tensor([[2.0], [0.0], [-2.0]])


@centre_outputs.check("Is the mean taken over the D outputs, for each of the N inputs by itself?")
def each_column(answer):
    weight = torch.tensor([[4.0, 1.0], [2.0, 7.0]])
    return answer(weight), torch.tensor([[1.0, -3.0], [-1.0, 3.0]])


@centre_outputs.check("Is nothing else changed? RMSNorm of the new outputs must be LayerNorm of the old ones.")
def as_layer_norm(answer):
    weight, x = torch.randn(6, 4) + 1, torch.randn(3, 4)
    old, new = x @ weight.T, x @ answer(weight).T
    centred = old - old.mean(-1, keepdim=True)
    return [new, new / new.square().mean(-1, keepdim=True).sqrt()], [
        centred, centred / centred.square().mean(-1, keepdim=True).sqrt()
    ]  # fmt: skip


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


@apply_rotary.check("Does the angle depend on the token, and not on the head? All heads share it: cos[:, None].")
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


@exercise("Choose a theta")
def smallest_theta(head_dim: int, context: int, slow_pairs: int) -> int:
    """Find the smallest power of ten whose slowest pairs do not come round within a context.

    Pair i, from 0 to Dh/2 - 1, turns by theta^(-2i/Dh) radians per position.

    Args:
        head_dim: Dh.
        context: a number of positions.
        slow_pairs: how many pairs must have a wavelength of more than `context` positions.

    Returns:
        the smallest of 10, 100, 1000, … that is a theta with that many such pairs.
    """
    theta = 10
    while True:
        wavelengths = [2 * math.pi * theta ** (2 * i / head_dim) for i in range(head_dim // 2)]
        if sum(wavelength > context for wavelength in wavelengths) >= slow_pairs:
            return theta
        theta *= 10


@smallest_theta.check("Does a full turn take 2π radians? With Dh = 2 the only pair has 6.28 positions for any theta.")
def a_full_turn(answer):
    return [answer(2, 6, 1), answer(4, 60, 1)], [10, 100]


@smallest_theta.check("Is the exponent 2i / Dh, with i up to Dh/2 - 1?")
def the_exponent(answer):
    return answer(8, 100, 2), 1_000


@smallest_theta.check("Are pairs counted whose wavelength is longer than the context, at least as many as asked for?")
def longer_ones(answer):
    return [answer(128, 4096, 18), answer(128, 4096, 19)], [10_000, 100_000]


@smallest_theta.check("Is 10 tried first, and each power after it?")
def from_ten_on(answer):
    return [answer(64, 8, 28), answer(64, 8192, 16)], [10, 10_000_000]


def tables_in_half_precision(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype):
    pairs = torch.arange(0, head_dim, 2).to(dtype)
    angles = positions[..., None].to(dtype) * theta ** (-pairs / head_dim)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@exercise("Mend tables that lose the order of long texts", faulty=tables_in_half_precision)
def long_text_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines of each token's angles.

    Pair i turns by positions · theta^(-2i/Dh) radians.

    Args:
        positions: (B, T), int64.
        head_dim: Dh.
        theta: the base of the frequencies.
        dtype: of the result, which may be torch.bfloat16 or torch.float16.

    Returns:
        cos and sin, (B, T, Dh) each; the second half of the last dimension repeats the first.
    """
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-pairs / head_dim)  # (B, T, Dh/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def exact_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    rows = [
        [[float(p) * theta ** (-2 * (i % (head_dim // 2)) / head_dim) for i in range(head_dim)] for p in row]
        for row in positions.tolist()
    ]
    angles = torch.tensor(rows, dtype=torch.float64)
    return angles.cos(), angles.sin()


def tables_and_truth(answer, positions: list[list[int]], head_dim: int, theta: float, dtype: torch.dtype):
    """Return the tables found and exact, and the dtypes; a rounding of the angle in float32 is allowed."""
    places = torch.tensor(positions)
    found = answer(places, head_dim, theta, dtype)
    cos, sin = exact_tables(places, head_dim, theta)
    return list(found), [cos.to(dtype), sin.to(dtype)]


@long_text_tables.check("Are positions kept exact? In bfloat16, 1001 is 1000.", rtol=0.05)
def neighbours(answer):
    return tables_and_truth(answer, [[1000, 1001, 1002, 1003]], 2, 10_000.0, torch.bfloat16)


@long_text_tables.check("Are the frequencies exact? An error of 0.2 % is eight radians at position 4,000.", rtol=0.05)
def frequencies(answer):
    return tables_and_truth(answer, [[1001, 4001]], 8, 100.0, torch.bfloat16)


@long_text_tables.check("Is the product of position and frequency not rounded either?", rtol=0.05)
def products(answer):
    return tables_and_truth(answer, [[1001, 3001, 4095]], 16, 10_000.0, torch.bfloat16)


@long_text_tables.check("Does the result have the dtype asked for, and does no position end at infinity?", rtol=0.05)
def far_positions(answer):
    return tables_and_truth(answer, [[69_999, 70_001], [1001, 2049]], 4, 10_000.0, torch.float16)


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
