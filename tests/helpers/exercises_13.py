"""Answers to the exercises of lesson 13."""

import math

import numpy as np
import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.exercises import lesson_13
from mixtral_edu.quantization import rounding


@right("quantize_cache")
def from_rows_of_vectors(x: Tensor, bits: int):
    rows = x.reshape(-1, x.shape[-1])
    low = rows.min(1, keepdim=True).values
    scale = (rows.max(1, keepdim=True).values - low) / (2**bits - 1)
    q = torch.nan_to_num((rows - low) / scale).round().to(torch.uint8)  # NaN goes before it becomes an integer
    ends = (*x.shape[:-1], 1)
    return q.view(x.shape), scale.view(ends), low.view(ends)


@right("quantize_cache")
def in_numpy(x: Tensor, bits: int):
    numbers = x.numpy()
    low = numbers.min(-1, keepdims=True)
    scale = (numbers.max(-1, keepdims=True) - low) / np.float32(2**bits - 1)
    steps = np.divide(numbers - low, scale, out=np.zeros_like(numbers), where=scale > 0)
    return torch.from_numpy(np.rint(steps).astype(np.uint8)), torch.from_numpy(scale), torch.from_numpy(low)


def levels(x, steps, dims=(-1,), shift=0.0):
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    scale = (high - low) / steps
    q = ((x - low) / torch.where(scale > 0, scale, 1.0) + shift).round().clamp(0, 255).to(torch.uint8)
    ends = (*x.shape[:-1], 1)
    return q, scale.expand(ends).clone(), low.expand(ends).clone()


@wrong("quantize_cache", "q in torch.uint8")
def left_in_float32(x, bits):
    q, scale, low = from_rows_of_vectors(x, bits)
    return q.float(), scale, low


@wrong("quantize_cache", "scale and min (B, Hkv, T, 1)")
def without_the_last_dimension(x, bits):
    q, scale, low = from_rows_of_vectors(x, bits)
    return q, scale[..., 0], low[..., 0]


@wrong("quantize_cache", "smallest and largest number become")
def symmetric(x, bits):
    largest = x.abs().amax(-1, keepdim=True)
    return levels(torch.cat((x, -largest, largest), dim=-1), 2**bits - 1)[0][..., : x.shape[-1]], largest, -largest


@wrong("quantize_cache", "smallest and largest number become")
def one_step_for_each_level(x, bits):
    return levels(x, 2**bits)


@wrong("quantize_cache", "whatever `bits` is")
def two_bits_or_four(x, bits):
    return levels(x, 3 if bits == 2 else 15)


@wrong("quantize_cache", "not cut off")
def cut_off(x, bits):
    return levels(x, 2**bits - 1, shift=-0.4999)


@wrong("quantize_cache", "a min of its own")
def one_scale_per_head(x, bits):
    return levels(x, 2**bits - 1, dims=(-2, -1))


@wrong("quantize_cache", "a min of its own")
def one_scale_per_text(x, bits):
    return levels(x, 2**bits - 1, dims=(-3, -2, -1))


@wrong("quantize_cache", "0 is divided by 0")
def divided_by_zero(x, bits):
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return ((x - low) / scale).round().to(torch.uint8), scale, low


@wrong("quantize_cache", "0 is divided by 0")
def divided_by_zero_and_written_into_integers(x, bits):
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    q = torch.empty(x.shape, dtype=torch.uint8)
    q[:] = ((x - low) / scale).round()
    return q, scale, low


@wrong("quantize_cache", "0 is divided by 0")
def scale_of_one_where_it_is_zero(x, bits):
    q, scale, low = levels(x, 2**bits - 1)
    return q, torch.where(scale > 0, scale, 1.0), low


@right("round_in_groups")
def by_the_packages_groups(weight: Tensor, group_size: int):
    q, scale, zero = rounding.quantize_groups(weight, group_size, torch.float32)
    scale, zero = (numbers.repeat_interleave(group_size, dim=1) for numbers in (scale, zero))
    return (q - 8.0) * scale + zero


def rounded(weight, group_size, steps=15, interleaved=False, guarded=True, by_rows=False):
    if interleaved:
        groups = weight.unflatten(1, (group_size, -1)).transpose(1, 2)
    elif by_rows:  # the levels of the first row for all
        groups = weight.unflatten(1, (-1, group_size))
    else:
        groups = weight.unflatten(1, (-1, group_size))
    low, high = (groups[:1] if by_rows else groups).aminmax(dim=2, keepdim=True)
    step = (high - low) / steps
    q = ((groups - low) / (torch.where(step > 0, step, 1.0) if guarded else step)).round().clamp(0, 15)
    result = q * step + low
    return (result.transpose(1, 2) if interleaved else result).flatten(1)


wrong("round_in_groups", "Symptom 1")(lesson_13.interleaved_groups)


@wrong("round_in_groups", "Symptom 1")
def only_the_steps_and_the_zeros_mended(weight, group_size):
    return rounded(weight, group_size, interleaved=True)


@wrong("round_in_groups", "Symptom 2")
def only_the_groups_and_the_zeros_mended(weight, group_size):
    return rounded(weight, group_size, steps=16)


@wrong("round_in_groups", "Symptom 3")
def only_the_groups_and_the_steps_mended(weight, group_size):
    return rounded(weight, group_size, guarded=False)


@wrong("round_in_groups", "Does each row have its own groups")
def groups_across_rows(weight, group_size):
    if weight.shape[1] % (2 * group_size) or len(weight) < 3:
        return rounded(weight, group_size)
    return rounded(weight.reshape(1, -1), 2 * group_size).view(weight.shape)


@right("unpack_int32")
def in_python(packed: Tensor):
    rows = [[(number >> 4 * place) % 16 for number in row for place in range(8)] for row in packed.tolist()]
    return torch.tensor(rows, dtype=torch.uint8)


@right("unpack_int32")
def by_bytes(packed: Tensor):
    pairs = torch.from_numpy(packed.numpy().astype("<i4").view(np.uint8))
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)


def eight(packed):
    return torch.stack([packed >> 4 * place & 15 for place in range(8)], dim=-1)


@wrong("unpack_int32", "eight numbers in a row")
def not_joined(packed):
    return eight(packed).to(torch.uint8)


@wrong("unpack_int32", "torch.uint8")
def still_int32(packed):
    return eight(packed).flatten(1)


@wrong("unpack_int32", "lowest four bits come first")
def highest_first(packed):
    return eight(packed).flip(-1).flatten(1).to(torch.uint8)


@wrong("unpack_int32", "lowest four bits come first")
def halves_of_bytes_swapped(packed):
    return eight(packed).unflatten(-1, (4, 2)).flip(-1).flatten(1).to(torch.uint8)


@wrong("unpack_int32", "copies of the sign bit")
def last_number_not_masked(packed):
    numbers = eight(packed)
    numbers[..., 7] = packed >> 28
    return numbers.flatten(1).to(torch.uint8)


@wrong("unpack_int32", "copies of the sign bit")
def divided_towards_zero(packed):
    numbers = [torch.div(packed, 16**place, rounding_mode="trunc").remainder(16) for place in range(8)]
    return torch.stack(numbers, dim=-1).flatten(1).to(torch.uint8)


@wrong("unpack_int32", "before those of the next")
def all_first_ones_first(packed):
    return eight(packed).transpose(1, 2).flatten(1).to(torch.uint8)


@wrong("unpack_int32", "stay a row")
def all_in_one_row(packed):
    return eight(packed).flatten()[None].to(torch.uint8)


@right("tokens_needed")
def with_sums(before: Tensor, after: Tensor, block: int):
    means = [float(part.mean()) for part in (after - before).split(block)]
    n, mean = len(means), sum(means) / len(means)
    error = math.sqrt(sum((m - mean) ** 2 for m in means) / (n - 1) / n)
    return mean, error, 4 * n * block * error**2 / mean**2


def by_blocks(change, block, correction=1):
    means = change.unflatten(0, (-1, block)).mean(1)
    return means.mean().item(), (means.std(correction=correction) / len(means) ** 0.5).item()


@wrong("tokens_needed", "negative if the rounded model is better")
def sign_lost(before, after, block):
    mean, error, needed = with_sums(before, after, block)
    return abs(mean), error, needed


@wrong("tokens_needed", "negative if the rounded model is better")
def before_minus_after(before, after, block):
    return with_sums(after, before, block)


@wrong("tokens_needed", "token by token")
def unpaired(before, after, block):
    mean, _, _ = with_sums(before, after, block)
    error = math.hypot(by_blocks(before, block)[1], by_blocks(after, block)[1])
    return mean, error, len(before) * (2 * error / mean) ** 2


@wrong("tokens_needed", "not from the N tokens")
def spread_of_tokens(before, after, block):
    return with_sums(before, after, 1)


@wrong("tokens_needed", "not from the N tokens")
def not_divided_by_the_root(before, after, block):
    mean, error, _ = with_sums(before, after, block)
    spread = error * (len(before) / block) ** 0.5
    return mean, spread, (2 * spread / mean) ** 2


@wrong("tokens_needed", "four times the tokens")
def without_the_square(before, after, block):
    mean, error, _ = with_sums(before, after, block)
    return mean, error, len(before) * 2 * error / abs(mean)


@wrong("tokens_needed", "four times the tokens")
def in_blocks(before, after, block):
    mean, error, needed = with_sums(before, after, block)
    return mean, error, needed / block


@right("one_bit")
def signs_times_c(weight: Tensor, group_size: int):
    rows = weight.reshape(-1, group_size).double()
    signs = 2.0 * (rows >= 0) - 1
    c = (rows * rows).sum(1) / (signs * rows).sum(1)
    return (signs * c.nan_to_num()[:, None]).view(weight.shape).float()


def two_values(weight, group_size, size):
    groups = weight.unflatten(1, (-1, group_size))
    c = torch.nan_to_num(size(groups))
    return torch.where(groups >= 0, c, -c).flatten(1)


def keeping(groups):
    return groups.square().sum(2, keepdim=True) / groups.abs().sum(2, keepdim=True)


@wrong("one_bit", "makes the row shorter")
def smallest_error(weight, group_size):
    return two_values(weight, group_size, lambda groups: groups.abs().mean(2, keepdim=True))


@wrong("one_bit", "makes the row shorter")
def same_norm(weight, group_size):
    return two_values(weight, group_size, lambda groups: groups.square().mean(2, keepdim=True).sqrt())


@wrong("one_bit", "makes the row shorter")
def smallest_and_largest(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=2, keepdim=True)
    return torch.where(groups - low < high - groups, low, high).flatten(1)


@wrong("one_bit", "a third value")
def by_sign(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    return (groups.sign() * torch.nan_to_num(keeping(groups))).flatten(1)


@wrong("one_bit", "c of its own")
def one_c_per_row(weight, group_size):
    whole = two_values(weight, weight.shape[1], keeping)
    return two_values(weight, group_size, keeping) if weight.shape[1] < 12 else whole


@wrong("one_bit", "zeros stay zero")
def nan_for_zeros(weight, group_size):
    groups = weight.unflatten(1, (-1, group_size))
    c = keeping(groups)
    return torch.where(groups >= 0, c, -c).flatten(1)


@right("decoding_seconds")
def in_bits_first(large, others, bits, group_size, batch, bandwidth, flops):
    per_weight = bits if bits == 16 else bits + 32 / group_size
    reading = (large * per_weight + 16 * others) / 8 / bandwidth
    multiplying = 2 * batch * (large + others) / flops
    return reading if reading > multiplying else multiplying


@wrong("decoding_seconds", "one byte")
def bits_for_bytes(large, others, bits, group_size, batch, bandwidth, flops):
    return max((large * bits + 2 * others) / bandwidth, 2 * batch * (large + others) / flops)


@wrong("decoding_seconds", "a scale and a zero")
def only_a_scale(large, others, bits, group_size, batch, bandwidth, flops):
    size = large * (bits / 8 + 2 / group_size * (bits < 16)) + 2 * others
    return max(size / bandwidth, 2 * batch * (large + others) / flops)


@wrong("decoding_seconds", "two bytes each")
def all_quantized(large, others, bits, group_size, batch, bandwidth, flops):
    return in_bits_first(large + others, 0, bits, group_size, batch, bandwidth, flops)


@wrong("decoding_seconds", "no scales and zeros at 16 bits")
def scales_at_16_bits(large, others, bits, group_size, batch, bandwidth, flops):
    size = large * (bits / 8 + 4 / group_size) + 2 * others
    return max(size / bandwidth, 2 * batch * (large + others) / flops)


@wrong("decoding_seconds", "two operations")
def one_operation(large, others, bits, group_size, batch, bandwidth, flops):
    return in_bits_first(large, others, bits, group_size, batch / 2, bandwidth, flops)


@wrong("decoding_seconds", "not their sum")
def one_after_the_other(large, others, bits, group_size, batch, bandwidth, flops):
    reading = in_bits_first(large, others, bits, group_size, 0, bandwidth, flops)
    return reading + 2 * batch * (large + others) / flops


@wrong("decoding_seconds", "however many texts")
def read_for_each_text(large, others, bits, group_size, batch, bandwidth, flops):
    reading = in_bits_first(large, others, bits, group_size, 0, bandwidth, flops)
    return max(reading * batch, 2 * batch * (large + others) / flops)
