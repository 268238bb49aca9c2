"""Exercises of lesson 13: levels, groups, packed integers, what rounding costs, one bit, when fewer bits are faster."""

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mixtral_edu.exercises.comparison import form
from mixtral_edu.exercises.framework import exercise

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class CastsOfNaN(TorchFunctionMode):
    """Count the calls of torch that turn NaN into an integer: what comes out differs between processors."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in args if isinstance(value, Tensor)]
        written = result if isinstance(result, Tensor) else tensors[0] if tensors else None  # x[...] = y returns None
        if written is not None and written.dtype in INTEGERS:
            self.count += any(value.is_floating_point() and bool(value.isnan().any()) for value in tensors)
        return result


@exercise("Integers for a KV cache")
def quantize_cache(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize cached keys or values, with asymmetric levels for each vector of Dh numbers.

        scale = (max - min) / (2**bits - 1)        q = round((x - min) / scale)

    A vector whose numbers are all equal, such as that of an empty slot, gets q = 0 and
    scale = 0, so that `min` alone restores it.

    Args:
        x: (B, Hkv, T, Dh) in float32.
        bits: 2 to 8.

    Returns:
        q (B, Hkv, T, Dh) in torch.uint8; scale and min, (B, Hkv, T, 1) each, in float32, so
        that x ≈ q · scale + min.
    """
    low, high = x.aminmax(dim=-1, keepdim=True)  # (B, Hkv, T, 1) each
    scale = (high - low) / (2**bits - 1)
    steps = (x - low) / torch.where(scale > 0, scale, 1.0)  # 0 / 1 is 0; 0 / 0 is NaN
    return steps.round().to(torch.uint8), scale, low


def cache_by_loops(x: Tensor, bits: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    numbers = x.double().numpy()
    q = np.zeros(numbers.shape, dtype=np.uint8)
    scales, lows = (np.zeros((*numbers.shape[:3], 1)) for _ in range(2))
    for place in np.ndindex(numbers.shape[:3]):
        low, high = min(numbers[place]), max(numbers[place])
        scale = (high - low) / (2**bits - 1)
        scales[place], lows[place] = scale, low
        q[place] = [round((number - low) / scale) if scale else 0 for number in numbers[place]]
    return torch.tensor(q), scales, lows


@quantize_cache.check(
    "Are there three results: q in torch.uint8 as large as x, scale and min (B, Hkv, T, 1) in float32?"
)
def q_scale_and_min(answer):
    one_per_vector = "float32 (2, 3, 5, 1)"
    return form(answer(torch.randn(2, 3, 5, 4), 4)), ["uint8 (2, 3, 5, 4)", one_per_vector, one_per_vector]


@quantize_cache.check("Do a vector's smallest and largest number become 0 and 2**bits - 1, whatever their signs?")
def smallest_and_largest(answer):
    x = torch.tensor([-1.0, 2.0, 0.0, 1.0]).view(1, 1, 1, 4)
    return answer(x, 2)[0], torch.tensor([0, 3, 1, 2], dtype=torch.uint8).view(1, 1, 1, 4)


@quantize_cache.check("Are there 2**bits levels, whatever `bits` is?")
def other_bits(answer):
    x = torch.tensor([-1.0, 254.0, 0.0, 99.0]).view(1, 1, 1, 4)
    return answer(x, 8)[0], torch.tensor([0, 255, 1, 100], dtype=torch.uint8).view(1, 1, 1, 4)


@quantize_cache.check("Is each number rounded to the nearest level, and not cut off?")
def nearest_level(answer):
    x = torch.tensor([0.0, 15.0, 6.9, 3.2]).view(1, 1, 1, 4)
    return answer(x, 4)[0], torch.tensor([0, 15, 7, 3], dtype=torch.uint8).view(1, 1, 1, 4)


@quantize_cache.check("Does each token's vector have a scale and a min of its own, in each head and each text?")
def own_levels(answer):
    x = torch.randn(2, 2, 3, 8) * torch.tensor([0.1, 1.0, 10.0])[:, None] + torch.arange(2.0)[:, None, None, None]
    return answer(x, 4), cache_by_loops(x, 4)


@quantize_cache.check(
    "Is a vector of equal numbers handled? There 0 is divided by 0. That is NaN, and which integer NaN becomes "
    "differs between processors.",
    compared="q, scale and min, and how often NaN became an integer",
)
def equal_numbers(answer):
    x = torch.tensor([[0.0, 0.0, 0.0], [0.7, 0.7, 0.7], [1.0, 4.0, 2.0]]).view(1, 1, 3, 3)
    with CastsOfNaN() as casts:
        q, scale, low = answer(x, 2)
    return (q, scale, low, casts.count), (*cache_by_loops(x, 2), 0)


def interleaved_groups(weight, group_size):
    groups = weight.unflatten(1, (group_size, -1))
    low, high = groups.aminmax(dim=1, keepdim=True)
    step = (high - low) / 16
    q = ((groups - low) / step).round().clamp(0, 15)
    return (q * step + low).flatten(1)


@exercise("Three faults, found by their symptoms", faulty=interleaved_groups)
def round_in_groups(weight: Tensor, group_size: int) -> Tensor:
    """Round each group of neighbours in a row to 16 levels, and return the dequantized matrix.

    A colleague's code below runs, and its shapes are right. Three symptoms, seen with D = 256
    and groups of 32:
    1. One weight ten times as large as the others in column 100 spoils not columns 96 to
       127, but 32 columns all over the row: 4, 12, 20, ..., 252.
    2. The largest weight of each group comes back too small by a whole step.
    3. A matrix with a row of zeros comes back with NaN in it.

    Args:
        weight: (F, D) in float32.
        group_size: g, a divisor of D.

    Returns:
        (F, D) in float32: each weight at the nearest of its group's 16 levels, which reach
        from the group's smallest to its largest weight.
    """
    groups = weight.unflatten(1, (-1, group_size))  # (F, D/g, g): neighbours, not every D/g-th
    low, high = groups.aminmax(dim=2, keepdim=True)  # (F, D/g, 1) each
    step = (high - low) / 15  # 16 levels have 15 steps between them
    q = ((groups - low) / torch.where(step > 0, step, 1.0)).round()
    return (q * step + low).flatten(1)


def groups_by_loops(weight: Tensor, group_size: int) -> np.ndarray:
    rows = weight.double().numpy()
    result = rows.copy()
    for row in range(rows.shape[0]):
        for start in range(0, rows.shape[1], group_size):
            group = rows[row, start : start + group_size]
            levels = np.linspace(group.min(), group.max(), 16)
            result[row, start : start + group_size] = [levels[np.abs(levels - w).argmin()] for w in group]
    return result


@round_in_groups.check(
    "Symptom 1: which weights share levels? unflatten(1, (a, b)) keeps b neighbours together, so is b the group size?",
    compared="the columns that change when weights 5 and 6 of a row become 100 and -100 times as large",
)
def neighbours_share_levels(answer):
    weight = torch.rand(1, 32) + 1
    enlarged = weight.clone()
    enlarged[0, 5:7] *= torch.tensor([100, -100])
    changes = answer(weight, 8) != answer(enlarged, 8)
    return changes[0].nonzero().flatten().tolist(), list(range(8))


@round_in_groups.check("Symptom 2: how many steps lie between 16 levels?")
def fifteen_steps(answer):
    weight = torch.tensor([[0.0, 15.0, 6.9, 3.2], [-30.0, 0.0, -14.4, -2.3]])
    return answer(weight, 4), np.array([[0.0, 15, 7, 3], [-30.0, 0, -14, -2]])


@round_in_groups.check("Symptom 3: what is (w - low) / step in a group of equal weights?")
def group_of_zeros(answer):
    weight = torch.tensor([[0.0, 0, 0, 0, 0, 15, 6.9, 3.2], [0, -30, -14.4, -2.3, 0.3, 0.3, 0.3, 0.3]])
    return answer(weight, 4), np.array([[0.0, 0, 0, 0, 0, 15, 7, 3], [0, -30, -14, -2, 0.3, 0.3, 0.3, 0.3]])


@round_in_groups.check("Does each row have its own groups, whatever D / g and F are?")
def rows_apart(answer):
    weight = torch.randn(3, 12) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    return answer(weight, 3), groups_by_loops(weight, 3)


@exercise("Eight integers in 32 bits")
def unpack_int32(packed: Tensor) -> Tensor:
    """Take eight numbers from 0 to 15 out of each 32-bit integer, the lowest four bits first.

        packed = q0 + 16·q1 + 16²·q2 + ... + 16⁷·q7        (32 bits: negative if q7 > 7)

    Args:
        packed: (F, D/8) in torch.int32.

    Returns:
        (F, D) in torch.uint8: q0 ... q7 of the first integer, then those of the second.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)  # (8,)
    numbers = packed[..., None] >> shifts & 15  # (F, D/8, 8)
    return numbers.flatten(1).to(torch.uint8)


def packed_and_numbers(F: int, D: int) -> tuple[Tensor, Tensor]:
    numbers = torch.randint(0, 16, (F, D))
    packed = [
        [sum(q << 4 * place for place, q in enumerate(row[start : start + 8])) for start in range(0, D, 8)]
        for row in numbers.tolist()
    ]
    signed = [[n - 2**32 if n >= 2**31 else n for n in row] for row in packed]
    return torch.tensor(signed, dtype=torch.int32), numbers.to(torch.uint8)


@unpack_int32.check("Is the result a tensor of torch.uint8 with eight numbers in a row for each integer?")
def eight_times_as_many(answer):
    return form(answer(torch.tensor([[33, 0]], dtype=torch.int32))), "uint8 (1, 16)"


@unpack_int32.check("Do the lowest four bits come first? 33 is 1 + 16 · 2.")
def lowest_first(answer):
    return answer(torch.tensor([[33]], dtype=torch.int32)), torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0]], dtype=torch.uint8)


@unpack_int32.check(
    "Is a negative integer right? `>>` fills up with copies of the sign bit, so the last number needs & 15 too."
)
def negative(answer):
    packed = [torch.tensor([[number]], dtype=torch.int32) for number in (-1, -(2**31))]
    numbers = [torch.tensor([row], dtype=torch.uint8) for row in ([15] * 8, [0] * 7 + [8])]
    return [answer(each) for each in packed], numbers


@unpack_int32.check("Do all eight numbers of one integer come before those of the next?")
def in_order(answer):
    packed, numbers = packed_and_numbers(1, 24)
    return answer(packed), numbers


@unpack_int32.check("Does each row stay a row?")
def rows_stay(answer):
    packed, numbers = packed_and_numbers(3, 16)
    return answer(packed), numbers


@exercise("How many tokens show a difference")
def tokens_needed(before: Tensor, after: Tensor, block: int) -> tuple[float, ...]:
    """Compare a model's bits per token before and after rounding, on the same text.

    The differences after - before are averaged in blocks of neighbours, because neighbouring
    tokens are not independent. The spread of the n block means gives the standard error.

    Args:
        before: (N,) bits of each token.
        after: (N,) bits of the same tokens with rounded weights.
        block: tokens per block, a divisor of N.

    Returns:
        The mean difference per token; its standard error, which is the sample standard
        deviation of the block means (with n - 1) divided by √n; and how many tokens in all
        would make the mean twice its standard error, if mean and spread stay the same and
        the standard error falls as 1/√n.
    """
    means = (after - before).unflatten(0, (-1, block)).mean(dim=1)  # (n,)
    mean, error = means.mean().item(), means.std().item() / len(means) ** 0.5
    return mean, error, len(before) * (2 * error / mean) ** 2


def needed_by_numpy(before: Tensor, after: Tensor, block: int) -> tuple[float, float, float]:
    change = after.double().numpy() - before.double().numpy()
    means = [change[start : start + block].mean() for start in range(0, len(change), block)]
    mean, variance = np.mean(means), np.var(means, ddof=1) / len(means)
    return float(mean), float(np.sqrt(variance)), float(4 * variance / mean**2 * len(change))


@tokens_needed.check("Is the first the mean of after - before, negative if the rounded model is better?")
def with_its_sign(answer):
    before = torch.tensor([3.0, 1.0, 2.0, 6.0])
    return answer(before, before - torch.tensor([1.0, 0.0, 2.0, 1.0]), 2)[0], -1.0


@tokens_needed.check(
    "Is the difference taken token by token before anything is averaged? What is common to both then cancels."
)
def paired(answer):
    before = torch.arange(24.0) % 7  # varies from token to token; the difference does not
    return tuple(answer(before, before + 0.5, 4)[:2]), (0.5, 0.0)


@tokens_needed.check(
    "Is the standard error the deviation of the n block means (with n - 1) over √n, and not from the N tokens?"
)
def of_blocks(answer):
    before = torch.zeros(12)
    after = torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2, 6, 6, 6, 6])  # tokens of a block agree: 3 numbers, not 12
    return answer(before, after, 4)[1], (7 / 3) ** 0.5  # variance of 1, 2, 6 with n - 1: 7; divided by n: 7 / 3


@tokens_needed.check("Does the standard error halve only with four times the tokens, whatever the sign of the mean?")
def number_of_tokens(answer):
    change = torch.randn(32).cumsum(0) * 0.05 - 0.5
    before = torch.randn(32).abs()
    return answer(before, before + change, 8), needed_by_numpy(before, before + change, 8)


@exercise("One bit that keeps the length")
def one_bit(weight: Tensor, group_size: int) -> Tensor:
    """Round each group of neighbours to +c and -c, and return the dequantized matrix.

    The mean of |w| would be the c with the smallest error, but it makes rows shorter. Choose
    the c for which a group's part along the old group is as long as before:

        Σ w'·w = Σ w·w,        w' = +c where w >= 0, -c elsewhere

    Args:
        weight: (F, D) in float32.
        group_size: g, a divisor of D.

    Returns:
        w', (F, D) in float32. A group of zeros stays zero.
    """
    groups = weight.unflatten(1, (-1, group_size))  # (F, D/g, g)
    sizes = groups.abs().sum(dim=2, keepdim=True)  # Σ w'·w = c · Σ|w|, so c = Σ w² / Σ|w|
    c = groups.square().sum(dim=2, keepdim=True) / torch.where(sizes > 0, sizes, 1.0)
    return torch.where(groups >= 0, c, -c).flatten(1)


def one_bit_by_loops(weight: Tensor, group_size: int) -> np.ndarray:
    rows = weight.double().numpy()
    result = np.zeros_like(rows)
    for row in range(rows.shape[0]):
        for start in range(0, rows.shape[1], group_size):
            group = rows[row, start : start + group_size]
            signs = np.where(group >= 0, 1, -1)
            if group.any():
                result[row, start : start + group_size] = signs * (group @ group) / (signs @ group)
    return result


@one_bit.check("Is c found from Σ w'·w = Σ w·w? The mean of |w| has the smallest error, and makes the row shorter.")
def keeps_the_length(answer):
    return answer(torch.tensor([[3.0, -1.0]]), 2), np.array([[2.5, -2.5]])  # (9 + 1) / (3 + 1)


@one_bit.check("Does a weight of 0 become +c? torch.sign(0) is 0, a third value, which one bit cannot store.")
def zero_is_positive(answer):
    return answer(torch.tensor([[4.0, 0.0, -2.0, 4.0]]), 4), np.array([[3.6, 3.6, -3.6, 3.6]])


@one_bit.check("Does each group of neighbours have a c of its own?")
def own_c(answer):
    weight = torch.randn(3, 12) * torch.tensor([1.0, 10.0, 100.0]).repeat_interleave(4)
    return answer(weight, 4), one_bit_by_loops(weight, 4)


@one_bit.check("Does a group of zeros stay zero? There 0 is divided by 0.")
def zeros_stay(answer):
    return answer(torch.tensor([[0.0, 0.0, 3.0, -1.0]]), 2), np.array([[0.0, 0.0, 2.5, -2.5]])


@exercise("The batch from which fewer bits are no faster")
def decoding_seconds(
    large: int, others: int, bits: int, group: int, batch: int, bandwidth: float, flops: float
) -> float:
    """Return the least time of a step of a dense model: a new token for each of `batch` texts.

    A step reads every weight once, whatever the batch, and multiplies every weight with every
    text's vector: 2 operations per weight and text. Reading and multiplying overlap, so the
    slower of the two is the time.

    Args:
        large: number of quantized weights.
        others: number of the other weights, of 16 bits each.
        bits: of a quantized weight: 4 or 8, or 16 for one that is not quantized after all.
        group: weights that share a scale and a zero, of 16 bits each; with 16 bits there
            are none.
        batch: number of texts.
        bandwidth: bytes read per second.
        flops: operations per second.

    Returns:
        seconds.
    """
    scales_and_zeros = 4 * large / group if bits < 16 else 0
    size = large * bits / 8 + scales_and_zeros + 2 * others  # bytes
    operations = 2 * (large + others) * batch
    return max(size / bandwidth, operations / flops)


@decoding_seconds.check("Are 8 bits counted as one byte?")
def bytes_not_bits(answer):
    return answer(10**9, 0, 4, 10**9, 1, 1e9, 1e15), 0.5  # the one group's 4 bytes are too few to matter


@decoding_seconds.check("Does each group add a scale and a zero, two bytes each?")
def four_bytes_per_group(answer):
    return answer(6400, 0, 8, 64, 1, 1e3, 1e15), 6.8


@decoding_seconds.check("Do the other weights take two bytes each, without scales?")
def others_as_they_are(answer):
    return answer(640, 1000, 4, 64, 1, 1e3, 1e15), 2.36


@decoding_seconds.check("Are there no scales and zeros at 16 bits?")
def sixteen_bits(answer):
    return answer(6400, 100, 16, 64, 1, 1e3, 1e15), 13.0


@decoding_seconds.check("Are there two operations per weight and text, of the other weights too?")
def operations(answer):
    return answer(800, 200, 4, 100, 50, 1e15, 1e4), 10.0


@decoding_seconds.check(
    "Is it the slower of the two, not their sum? And is a weight read once, however many texts there are?"
)
def slower_of_two(answer):
    sizes = [(4, 1), (4, 20), (16, 20), (4, 200), (16, 200)]
    found = [answer(10**6, 0, bits, 10**6, batch, 1e6, 1e8) for bits, batch in sizes]
    return found, [0.500004, 0.500004, 2.0, 4.0, 4.0]
