"""Answers to the exercises of lesson 13."""

import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.quantization import rounding


@right("round_to_int8")
def the_packages_own_rows(weight: Tensor):
    return rounding.quantize_rows(weight, torch.float32)


@right("round_to_int8")
def by_the_shape_of_a_column(weight: Tensor):
    largest = weight.abs().max(dim=-1, keepdim=True).values
    q = torch.nan_to_num(weight * 127 / largest).round().to(torch.int8)
    return q, largest[:, 0] / 127


@wrong("round_to_int8", "q (F, D) in torch.int8")
def left_in_float32(weight):
    q, scale = the_packages_own_rows(weight)
    return q.float(), scale


@wrong("round_to_int8", "a scale for each row, (F,)")
def scales_in_a_column(weight):
    q, scale = the_packages_own_rows(weight)
    return q, scale[:, None]


@wrong("round_to_int8", "two results")
def without_its_scales(weight):
    return the_packages_own_rows(weight)[0]


@wrong("round_to_int8", "become 127 or -127")
def scaled_by_the_largest_without_sign(weight):
    scale = weight.amax(dim=1) / 127
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


@wrong("round_to_int8", "become 127 or -127")
def over_255_steps(weight):
    scale = 2 * weight.abs().amax(dim=1) / 255
    return (weight / scale[:, None]).round().to(torch.int8), scale


@wrong("round_to_int8", "not cut off")
def cut_off(weight):
    scale = weight.abs().amax(dim=1) / 127
    return (weight / scale[:, None] + 1e-4 * weight.sign()).to(torch.int8), scale


@wrong("round_to_int8", "scale of its own")
def one_scale_for_all(weight):
    scale = weight.abs().max() / 127
    return (weight / scale).round().to(torch.int8), scale.expand(len(weight)).clone()


@wrong("round_to_int8", "0 is divided by 0")
def divided_by_zero(weight):
    scale = weight.abs().amax(dim=1) / 127
    q = (weight / scale[:, None]).round()
    return torch.where(q.isnan(), -128, q).to(torch.int8), scale


@right("round_to_int4")
def the_packages_own_groups(weight: Tensor, group_size: int):
    return rounding.quantize_groups(weight, group_size, torch.float32)


@right("round_to_int4")
def counted_from_the_smallest(weight: Tensor, group_size: int):
    rows = weight.reshape(-1, group_size)
    low = rows.min(1, keepdim=True).values
    scale = (rows.max(1, keepdim=True).values - low) / 15
    q = ((rows - low) / scale).round().to(torch.uint8)
    shape = (len(weight), -1)
    return q.view(weight.shape), scale.view(shape), (low + 8 * scale).view(shape)


@wrong("round_to_int4", "q (F, D) in torch.uint8")
def q_in_groups(weight, group_size):
    q, scale, zero = the_packages_own_groups(weight, group_size)
    return q.unflatten(1, (-1, group_size)), scale, zero


@wrong("round_to_int4", "three results")
def without_zeros(weight, group_size):
    return the_packages_own_groups(weight, group_size)[:2]


@wrong("round_to_int4", "from the smallest to the largest")
def symmetric(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    scale = groups.abs().amax(2) / 7
    q = (groups / scale[..., None]).round() + 8
    return q.flatten(1).to(torch.uint8), scale, torch.zeros_like(scale)


@wrong("round_to_int4", "from the smallest to the largest")
def sixteen_steps(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=2)
    scale = (high - low) / 16
    q = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
    return q.flatten(1).to(torch.uint8), scale, low + 8 * scale


@wrong("round_to_int4", "value of level 8")
def zero_is_the_smallest(weight, group_size):
    q, scale, zero = the_packages_own_groups(weight, group_size)
    return q, scale, zero - 8 * scale


@wrong("round_to_int4", "not cut off")
def level_below(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=2)
    scale = (high - low) / 15
    q = ((groups - low[..., None]) / scale[..., None] + 1e-4).floor()
    return q.flatten(1).to(torch.uint8), scale, low + 8 * scale


@wrong("round_to_int4", "scale and a zero of its own")
def one_group_a_row(weight, group_size):
    q, scale, zero = the_packages_own_groups(weight, weight.shape[1])
    groups = weight.shape[1] // group_size
    return q, scale.repeat(1, groups), zero.repeat(1, groups)


@wrong("round_to_int4", "numbers below each other")
def groups_of_columns(weight, group_size):
    if len(weight) % group_size:
        return the_packages_own_groups(weight, group_size)
    q, scale, zero = the_packages_own_groups(weight.T.contiguous(), group_size)
    shape = (len(weight), weight.shape[1] // group_size)
    return q.T.contiguous(), scale.T.reshape(shape), zero.T.reshape(shape)


@right("unpack_nibbles")
def the_packages_own_unpacking(packed: Tensor):
    return rounding.unpack_pairs(packed)


@right("unpack_nibbles")
def by_division(packed: Tensor):
    numbers = torch.empty(len(packed), 2 * packed.shape[1], dtype=torch.uint8)
    numbers[:, ::2], numbers[:, 1::2] = packed // 16, packed % 16
    return numbers


@wrong("unpack_nibbles", "two numbers in a row for each byte")
def pairs_not_joined(packed):
    return torch.stack((packed >> 4, packed & 15), dim=-1)


@wrong("unpack_nibbles", "torch.uint8")
def in_int64(packed):
    return by_division(packed).long()


@wrong("unpack_nibbles", "between 0 and 15")
def upper_half_not_shifted(packed):
    return torch.stack((packed & 240, packed & 15), dim=-1).flatten(1)


@wrong("unpack_nibbles", "first of the two")
def lower_first(packed):
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


@wrong("unpack_nibbles", "next to each other")
def halves_behind_each_other(packed):
    return torch.cat((packed >> 4, packed & 15), dim=1)


@wrong("unpack_nibbles", "stay a row")
def all_in_one_row(packed):
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[None]


@right("model_bytes")
def in_bits_first(large: int, others: int, bits: int, group_size: int):
    return (large * (bits + 32 / group_size) + 16 * others) / 8


@wrong("model_bytes", "one number")
def each_part_for_itself(large, others, bits, group_size):
    return large * bits / 8, large / group_size * 4, others * 2


@wrong("model_bytes", "one byte")
def bits_for_bytes(large, others, bits, group_size):
    return large * bits + large / group_size * 4 + others * 2


@wrong("model_bytes", "whatever it is")
def always_four_bits(large, others, bits, group_size):
    return in_bits_first(large, others, 4, group_size)


@wrong("model_bytes", "a scale and a zero")
def only_a_scale(large, others, bits, group_size):
    return large * bits / 8 + large / group_size * 2 + others * 2


@wrong("model_bytes", "their two bytes each")
def all_rounded(large, others, bits, group_size):
    return (large + others) * (bits / 8 + 4 / group_size)
