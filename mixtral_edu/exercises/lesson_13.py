"""Exercises of lesson 13: rounding to 8 and 4 bits, two numbers in a byte, and what a model takes."""

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.comparison import form
from mixtral_edu.exercises.framework import exercise


@exercise("Eight bits, one scale for each row")
def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to whole numbers from -127 to 127, with one scale for each row.

        scale = max|row| / 127        q = round(row / scale)

    A row of zeros gets zeros, and the scale 0.

    Args:
        weight: (F, D) in float32.

    Returns:
        q (F, D) in torch.int8, and the scales (F,) in float32, so that weight ≈ q · scale.
    """
    scale = weight.abs().amax(dim=1) / 127  # (F,)
    safe = torch.where(scale > 0, scale, 1.0)  # 0 / 1 is 0, where 0 / 0 is no number
    q = (weight / safe[:, None]).round()
    return q.to(torch.int8), scale


def int8_by_loops(weight: Tensor) -> tuple[Tensor, np.ndarray]:
    rows = weight.double().numpy()
    scales = np.array([max(abs(row)) / 127 for row in rows])
    q = [[round(w / scale) if scale else 0 for w in row] for row, scale in zip(rows, scales, strict=True)]
    return torch.tensor(q, dtype=torch.int8), scales


@round_to_int8.check("Are there two results: q (F, D) in torch.int8, and a scale for each row, (F,), in float32?")
def q_and_scales(answer):
    return form(answer(torch.rand(2, 3) + 1)), ["int8 (2, 3)", "float32 (2,)"]


@round_to_int8.check("Does the largest absolute value of a row become 127 or -127?")
def largest_is_127(answer):
    q, scale = answer(torch.tensor([[0.5, -2.54, 1.0]]))
    return (q, scale), (torch.tensor([[25, -127, 50]], dtype=torch.int8), np.array([0.02]))


@round_to_int8.check("Is it rounded to the nearest whole number, and not cut off?")
def nearest(answer):
    weight = torch.tensor([[127.0, 2.9, -2.9, 0.6]])  # scale 1
    return answer(weight)[0], torch.tensor([[127, 3, -3, 1]], dtype=torch.int8)


@round_to_int8.check("Does each row have a scale of its own?")
def own_scales(answer):
    weight = torch.randn(3, 5) * torch.tensor([0.1, 1.0, 10.0])[:, None]
    return answer(weight), int8_by_loops(weight)


@round_to_int8.check("Does a row of zeros stay zero? There 0 is divided by 0.")
def row_of_zeros(answer):
    weight = torch.tensor([[0.0, 0.0], [1.27, 0.0]])
    return answer(weight), int8_by_loops(weight)


@exercise("Four bits, with scale and zero for each group")
def round_to_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group of neighbours in a row to 16 levels.

        scale = (max - min) / 15      zero = min + 8·scale
        q = round((w - zero) / scale) + 8

    Args:
        weight: (F, D) in float32; the numbers of a group are never all equal.
        group_size: g, a divisor of D.

    Returns:
        q (F, D) in torch.uint8, from 0 to 15; scale and zero, (F, D/g) each, in float32, so
        that w ≈ (q - 8) · scale + zero.
    """
    groups = weight.unflatten(1, (-1, group_size))  # (F, D/g, g)
    low, high = groups.aminmax(dim=2)  # (F, D/g) each
    scale = (high - low) / 15
    zero = low + 8 * scale
    q = ((groups - zero[..., None]) / scale[..., None]).round() + 8
    return q.flatten(1).to(torch.uint8), scale, zero


def int4_by_loops(weight: Tensor, group_size: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    rows = weight.double().numpy()
    q = np.zeros(rows.shape, dtype=np.uint8)
    scales, zeros = (np.zeros((len(rows), rows.shape[1] // group_size)) for _ in range(2))
    for row, group in np.ndindex(*scales.shape):
        place = slice(group * group_size, (group + 1) * group_size)
        numbers = rows[row, place]
        scales[row, group] = (max(numbers) - min(numbers)) / 15
        zeros[row, group] = min(numbers) + 8 * scales[row, group]
        q[row, place] = [round((w - min(numbers)) / scales[row, group]) for w in numbers]
    return torch.tensor(q), scales, zeros


@round_to_int4.check("Are there three results: q (F, D) in torch.uint8, scale and zero (F, D/g) in float32?")
def q_scales_and_zeros(answer):
    return form(answer(torch.randn(2, 12), 4)), ["uint8 (2, 12)", "float32 (2, 3)", "float32 (2, 3)"]


@round_to_int4.check("Do the levels reach from the smallest to the largest number, which become 0 and 15?")
def smallest_and_largest(answer):
    q, _, _ = answer(torch.tensor([[-3.0, 12.0, 2.0, 5.0]]), 4)  # a level for each whole number
    return q, torch.tensor([[0, 15, 5, 8]], dtype=torch.uint8)


@round_to_int4.check("Is zero the value of level 8, so that (q - 8) · scale + zero comes back?")
def zero_is_level_8(answer):
    _, scale, zero = answer(torch.tensor([[-3.0, 12.0, 2.0, 5.0]]), 4)
    return (scale, zero), (np.array([[1.0]]), np.array([[5.0]]))


@round_to_int4.check("Is it rounded to the nearest level, and not cut off?")
def nearest_level(answer):
    q, _, _ = answer(torch.tensor([[0.0, 15.0, 6.9, 3.2]]), 4)
    return q, torch.tensor([[0, 15, 7, 3]], dtype=torch.uint8)


@round_to_int4.check("Does each group have a scale and a zero of its own?")
def own_levels(answer):
    weight = torch.cat((torch.randn(1, 4), 100 * torch.randn(1, 4), torch.randn(1, 4) + 50), dim=1)
    return answer(weight, 4), int4_by_loops(weight, 4)


@round_to_int4.check("Do groups consist of neighbours in a row, and not of numbers below each other?")
def neighbours(answer):
    weight = torch.randn(4, 4) * torch.tensor([1.0, 5.0, 25.0, 125.0])[:, None]
    return answer(weight, 2), int4_by_loops(weight, 2)


@exercise("Out of the byte")
def unpack_nibbles(packed: Tensor) -> Tensor:
    """Take two numbers from 0 to 15 out of each byte: its upper four bits, then its lower.

        byte = 16 · first + second

    Args:
        packed: (F, D/2) in torch.uint8.

    Returns:
        (F, D) in torch.uint8.
    """
    upper, lower = packed >> 4, packed & 15
    return torch.stack((upper, lower), dim=-1).flatten(1)


def bytes_and_numbers(F: int, D: int) -> tuple[Tensor, Tensor]:
    numbers = torch.randint(0, 16, (F, D))
    pairs = [[16 * row[i] + row[i + 1] for i in range(0, D, 2)] for row in numbers.tolist()]
    return torch.tensor(pairs, dtype=torch.uint8), numbers.to(torch.uint8)


@unpack_nibbles.check("Is the result a tensor of torch.uint8, with two numbers in a row for each byte?")
def twice_as_many(answer):
    return form(answer(torch.tensor([[182, 255, 16]], dtype=torch.uint8))), "uint8 (1, 6)"


@unpack_nibbles.check("Do both numbers lie between 0 and 15?")
def in_range(answer):
    numbers = answer(torch.tensor([[182, 255, 16]], dtype=torch.uint8))
    return sorted(numbers.flatten().tolist()), [0, 1, 6, 11, 15, 15]  # in whatever order


@unpack_nibbles.check("Is the upper half the first of the two?")
def upper_first(answer):
    return answer(torch.tensor([[182]], dtype=torch.uint8)), torch.tensor([[11, 6]], dtype=torch.uint8)


@unpack_nibbles.check("Do the two numbers of a byte stand next to each other?")
def side_by_side(answer):
    packed, numbers = bytes_and_numbers(1, 8)
    return answer(packed), numbers


@unpack_nibbles.check("Does each row stay a row?")
def rows_stay(answer):
    packed, numbers = bytes_and_numbers(3, 10)
    return answer(packed), numbers


@exercise("How many bytes a model takes")
def model_bytes(large: int, others: int, bits: int, group_size: int) -> float:
    """Return the bytes of a model whose large matrices are rounded.

    Each group of weights has a scale and a zero, of 16 bits each; all other weights have 16
    bits.

    Args:
        large: number of weights in the large matrices.
        others: number of all other weights.
        bits: of a rounded weight.
        group_size: weights in a group.

    Returns:
        the number of bytes.
    """
    rounded = large * bits / 8
    scales_and_zeros = large / group_size * 2 * 2
    return rounded + scales_and_zeros + others * 2


@model_bytes.check("Is the result one number?")
def a_number(answer):
    return form(answer(640, 1000, 4, 64)), "a number"


@model_bytes.check("Are 8 bits counted as one byte?")
def bytes_not_bits(answer):
    return answer(10**9, 0, 4, 10**9), 0.5e9  # the one group's 4 bytes are too few to matter


@model_bytes.check("Is `bits` used, whatever it is?")
def other_bits(answer):
    return answer(10**9, 0, 8, 10**9), 1e9


@model_bytes.check("Does each group add two numbers of two bytes, a scale and a zero?")
def four_bytes_a_group(answer):
    return answer(6400, 0, 8, 64), 6800.0


@model_bytes.check("Do the other weights keep their two bytes each, without scales?")
def others_as_they_are(answer):
    return answer(640, 1000, 4, 64), 2360.0
