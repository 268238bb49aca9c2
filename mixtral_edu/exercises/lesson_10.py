"""Exercises of lesson 10: a learning-rate schedule, clipping by the global norm, and documents packed into rows."""

import math

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("Warm-up, then half a cosine")
def learning_rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """The learning rate of a step, counted from 0.

    For `warmup` steps it rises in equal parts and reaches `peak` in the last of them. Then it
    falls along half a cosine from `peak` at step `warmup` to a tenth of it at step `steps`.

    Args:
        step: from 0 to steps.
        steps: of the whole run; more than warmup.
        peak: the highest rate.
        warmup: how many steps rise; 0 for none.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (steps - warmup)  # 0 to 1
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


@learning_rate_at.check("Does step 0 already learn a little, and the last step of the warm-up at the full rate?")
def rises_in_equal_parts(answer):
    return [answer(step, 100, 2.0, 4) for step in range(4)], [0.5, 1.0, 1.5, 2.0]


@learning_rate_at.check("Does the cosine begin where the warm-up ends, with the peak?")
def cosine_begins_after_the_warmup(answer):
    return answer(10, 110, 2.0, 10), 2.0


@learning_rate_at.check("Does it fall to a tenth of the peak at the end: not to zero, and not up again?")
def ends_at_a_tenth(answer):
    return answer(110, 110, 2.0, 10), 0.2


@learning_rate_at.check("Is the way down a cosine, slow at first and at last, and not a straight line?")
def a_cosine_between(answer):
    quarters = [answer(step, 110, 2.0, 10) for step in (35, 60, 85)]
    return quarters, [1.1 + 0.9 / math.sqrt(2), 1.1, 1.1 - 0.9 / math.sqrt(2)]


@learning_rate_at.check("With warmup=0, does it begin at the peak?")
def without_a_warmup(answer):
    return [answer(0, 100, 3.0, 0), answer(50, 100, 3.0, 0)], [3.0, 1.65]


@exercise("Clip by the norm of all gradients together")
def clip_gradients(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """Shorten the gradients, all by one factor, so that their joint norm is at most max_norm.

    The joint norm is the root of the sum of the squares of all numbers in all tensors.

    Args:
        gradients: tensors of any shapes.
        max_norm: the bound, above 0.

    Returns:
        tensors of the same shapes; equal to the given ones if those are short enough. Nothing
        is changed in place.
    """
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    factor = (max_norm / norm).clamp(max=1.0)  # a norm of 0 gives inf, which becomes 1
    return [gradient * factor for gradient in gradients]


@clip_gradients.check(
    "Is all of a long gradient multiplied by one factor, max_norm / norm, where norm is the root of the sum of squares?"
)
def one_factor(answer):
    return answer([torch.tensor([0.3, -0.4, 1.2])], 0.65), [torch.tensor([0.15, -0.2, 0.6])]  # norm 1.3


@clip_gradients.check("Are gradients that are short enough left alone, and not stretched to max_norm?")
def short_ones_stay(answer):
    return answer([torch.tensor([3.0, 4.0])], 10.0), [torch.tensor([3.0, 4.0])]


@clip_gradients.check("Is it one norm for all tensors together, the root of the sum of all squares?")
def one_norm_for_all(answer):
    return answer([torch.tensor([3.0, 0.0]), torch.tensor([4.0])], 1.0), [torch.tensor([0.6, 0.0]), torch.tensor([0.8])]


@clip_gradients.check("Do matrices count with all their numbers, as if they were one long row?")
def matrices_too(answer):
    gradients = [torch.randn(3, 5), torch.randn(7), torch.randn(2, 3, 2)]
    norm = np.linalg.norm(np.concatenate([gradient.numpy().ravel() for gradient in gradients]))
    return answer(gradients, 0.5), [gradient * float(0.5 / norm) for gradient in gradients]


@clip_gradients.check("Do gradients of zero stay zero? Their norm is 0, and dividing by it needs care.")
def zeros_stay(answer):
    return answer([torch.zeros(2), torch.zeros(1, 3)], 1.0), [torch.zeros(2), torch.zeros(1, 3)]


@exercise("Pack documents into rows")
def pack_rows(documents: list[list[int]], length: int, bos: int, eos: int) -> Tensor:
    """Put documents one after the other, each between bos and eos, and cut that into rows.

    Args:
        documents: the ids of each, without bos and eos.
        length: T, how many ids a row has.
        bos: the id that opens a document.
        eos: the id that ends one.

    Returns:
        int64 (B, T), full rows only; a rest that fills no row is left out. With too few ids
        the shape is (0, T).
    """
    stream = [token for document in documents for token in (bos, *document, eos)]
    full = len(stream) // length
    return torch.tensor(stream[: full * length], dtype=torch.long).view(full, length)


FIRST_ROW = "the first row"  # what becomes of the rest, is another question


@pack_rows.check("Does each document stand between bos and eos, the ids that were given?", compared=FIRST_ROW)
def between_bos_and_eos(answer):
    return answer([[5, 6, 7], [3, 4]], 5, 8, 9)[:1], torch.tensor([[8, 5, 6, 7, 9]])


@pack_rows.check("Do short documents share a row?", compared=FIRST_ROW)
def short_ones_share(answer):
    return answer([[5], [6, 7], [8]], 9, 1, 2)[:1], torch.tensor([[1, 5, 2, 1, 6, 7, 2, 1, 8]])


@pack_rows.check(
    "Does a long document go on in the next row, with nothing put in and nothing lost? A last row just full stays."
)
def long_ones_go_on(answer):
    return answer([[3, 4, 5, 6, 7, 8]], 4, 1, 2), torch.tensor([[1, 3, 4, 5], [6, 7, 8, 2]])


@pack_rows.check("Is a rest that fills no row left out?")
def no_half_rows(answer):
    return answer([[3, 4, 5], [6, 7]], 4, 1, 2), torch.tensor([[1, 3, 4, 5], [2, 1, 6, 7]])


@pack_rows.check("With fewer ids than a row has, is the result empty, of shape (0, T)?")
def too_little_for_a_row(answer):
    return answer([[3]], 7, 1, 2), torch.empty(0, 7, dtype=torch.long)
