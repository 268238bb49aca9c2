"""Answers to the exercises of lesson 10."""

import math

import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.training.trainer import TrainingConfig


@right("learning_rate_at")
def by_the_trainer(step: int, steps: int, peak: float, warmup: int) -> float:
    return TrainingConfig(steps=steps, learning_rate=peak, warmup_steps=warmup).learning_rate_at(step)


@right("learning_rate_at")
def by_a_squared_cosine(step: int, steps: int, peak: float, warmup: int) -> float:
    if warmup > step:
        return peak - peak * (warmup - step - 1) / warmup
    angle = math.pi / 2 * (step - warmup) / (steps - warmup)
    return peak / 10 + 9 / 10 * peak * math.cos(angle) ** 2


@wrong("learning_rate_at", "Does step 0 already learn")
def begins_at_zero(step, steps, peak, warmup):
    return peak * step / warmup if step < warmup else by_the_trainer(step, steps, peak, warmup)


@wrong("learning_rate_at", "begin where the warm-up ends")
def the_cosine_began_at_step_0(step, steps, peak, warmup):
    return by_the_trainer(step, steps, peak, warmup if step < warmup else 0)


@wrong("learning_rate_at", "tenth of the peak")
def down_to_zero(step, steps, peak, warmup):
    rate = by_the_trainer(step, steps, peak, warmup)
    return rate if step < warmup else (rate - 0.1 * peak) / 0.9


@wrong("learning_rate_at", "not up again")
def a_whole_cosine(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(2 * math.pi * (step - warmup) / (steps - warmup))))


@wrong("learning_rate_at", "not a straight line")
def a_straight_line(step, steps, peak, warmup):
    done = max(0, step - warmup) / (steps - warmup)
    return min(by_the_trainer(min(step, warmup), steps, peak, warmup), peak * (1 - 0.9 * done))


@wrong("learning_rate_at", "With warmup=0")
def divides_by_the_warmup(step, steps, peak, warmup):
    return min(peak * (step + 1) / warmup, by_the_trainer(step, steps, peak, warmup))


@right("clip_gradients")
def by_torch(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return [parameter.grad for parameter in parameters]


@right("clip_gradients")
def by_one_long_row(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    row = torch.cat([gradient.flatten() for gradient in gradients])
    length = math.sqrt(row.double() @ row.double())
    row = row * (max_norm / length) if length > max_norm else row
    parts = row.split([gradient.numel() for gradient in gradients])
    return [part.reshape(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


@wrong("clip_gradients", "not stretched")
def always_of_that_length(gradients, max_norm):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    return [gradient * max_norm / norm for gradient in gradients]


@wrong("clip_gradients", "multiplied by one factor")
def each_number_for_itself(gradients, max_norm):
    return [gradient.clamp(-max_norm, max_norm) for gradient in gradients]


def in_one_row(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def shortened(gradients: list[Tensor], length: Tensor, max_norm: float) -> list[Tensor]:
    return [gradient * (max_norm / length).clamp(max=1) for gradient in gradients]


@wrong("clip_gradients", "the root of the sum of squares")
def absolute_values_added(gradients, max_norm):
    return shortened(gradients, in_one_row(gradients).abs().sum(), max_norm)


@wrong("clip_gradients", "the root of the sum of squares")
def by_the_largest_number(gradients, max_norm):
    return shortened(gradients, in_one_row(gradients).abs().max(), max_norm)


@wrong("clip_gradients", "the root of the sum of squares")
def root_of_the_mean_square(gradients, max_norm):
    return shortened(gradients, in_one_row(gradients).square().mean().sqrt(), max_norm)


@wrong("clip_gradients", "the root of the sum of squares")
def no_root(gradients, max_norm):
    return shortened(gradients, in_one_row(gradients).square().sum(), max_norm)


@wrong("clip_gradients", "max_norm / norm")
def always_to_length_1(gradients, max_norm):
    return by_torch(gradients, 1.0)


@wrong("clip_gradients", "one norm for all tensors")
def each_tensor_for_itself(gradients, max_norm):
    return [by_torch([gradient], max_norm)[0] for gradient in gradients]


@wrong("clip_gradients", "one norm for all tensors")
def norms_added(gradients, max_norm):
    norm = sum(gradient.norm() for gradient in gradients)
    return [gradient * (max_norm / norm).clamp(max=1) for gradient in gradients]


@wrong("clip_gradients", "as if they were one long row")
def matrices_by_their_longest_row(gradients, max_norm):
    rows = [gradient.reshape(-1, gradient.shape[-1]).norm(dim=1).max() for gradient in gradients]
    norm = torch.stack(rows).norm()
    return [gradient * (max_norm / norm).clamp(max=1) for gradient in gradients]


@wrong("clip_gradients", "stay zero")
def zero_by_zero(gradients, max_norm):
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    return [gradient / norm * norm.clamp(max=max_norm) for gradient in gradients]


@right("clip_gradients")
def short_ones_handed_back(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    norm = in_one_row(gradients).norm()
    return gradients if norm <= max_norm else [gradient * max_norm / norm for gradient in gradients]


@right("pack_rows")
def by_unfolding(documents: list[list[int]], length: int, bos: int, eos: int) -> Tensor:
    ids = torch.cat([torch.tensor([bos, *document, eos]) for document in documents])
    return ids[: len(ids) - len(ids) % length].reshape(-1, length)


@right("pack_rows")
def token_by_token(documents: list[list[int]], length: int, bos: int, eos: int) -> Tensor:
    rows, row = [], []
    for document in documents:
        for token in [bos] + document + [eos]:
            row.append(token)
            if len(row) == length:
                rows.append(row)
                row = []
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)


@wrong("pack_rows", "between bos and eos")
def nothing_ends(documents, length, bos, eos):
    stream = [token for document in documents for token in (bos, *document)]
    return torch.tensor(stream[: len(stream) // length * length]).reshape(-1, length)


@wrong("pack_rows", "between bos and eos")
def nothing_opens(documents, length, bos, eos):
    stream = [token for document in documents for token in (*document, eos)]
    return torch.tensor(stream[: len(stream) // length * length]).reshape(-1, length)


@wrong("pack_rows", "between bos and eos")
def one_of_each_for_all(documents, length, bos, eos):
    return by_unfolding([[token for document in documents for token in document]], length, bos, eos)


@wrong("pack_rows", "the ids that were given")
def ids_of_this_tokenizer(documents, length, bos, eos):
    return by_unfolding(documents, length, 1, 2)


@wrong("pack_rows", "share a row")
def a_row_for_each(documents, length, bos, eos):
    return torch.cat([by_unfolding([document], length, bos, eos) for document in documents])


@wrong("pack_rows", "go on in the next row")
def long_ones_are_cut_off(documents, length, bos, eos):
    return token_by_token([document[: length - 2] for document in documents], length, bos, eos)


@wrong("pack_rows", "go on in the next row")
def each_row_opens_anew(documents, length, bos, eos):
    stream = [token for document in documents for token in (bos, *document, eos)]
    rows = [stream[:length]]
    for start in range(length, len(stream), length - 1):
        rows.append([bos] + stream[start : start + length - 1])
    return torch.tensor([row for row in rows if len(row) == length]).reshape(-1, length)


@wrong("pack_rows", "just full stays")
def last_full_row_lost(documents, length, bos, eos):
    stream = [token for document in documents for token in (bos, *document, eos)]
    rows = [stream[start : start + length] for start in range(0, len(stream) - length, length)]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, length)


@wrong("pack_rows", "fills no row left out")
def the_rest_is_padded(documents, length, bos, eos):
    stream = [token for document in documents for token in (bos, *document, eos)]
    stream += [eos] * (-len(stream) % length)
    return torch.tensor(stream).reshape(-1, length)


@wrong("pack_rows", r"of shape (0, T)")
def no_rows_without_a_shape(documents, length, bos, eos):
    rows = token_by_token(documents, length, bos, eos).tolist()
    return torch.tensor(rows, dtype=torch.long)
