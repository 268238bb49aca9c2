"""Answers to the exercises of lesson 09."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from exercise_answers import right, wrong
from mixtral_edu import sampling


@right("temperature_softmax")
def with_pytorchs_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.softmax(logits / temperature, dim=-1)


@right("temperature_softmax")
def by_the_logarithm_of_the_sum(logits: Tensor, temperature: float) -> Tensor:
    scaled = logits / temperature
    return (scaled - scaled.logsumexp(-1, keepdim=True)).exp()


@wrong("temperature_softmax", "divided by their sum")
def no_exponentials(logits, temperature):
    scaled = logits / temperature
    return scaled / scaled.sum(-1, keepdim=True)


@wrong("temperature_softmax", "along the last dimension")
def along_the_first_dimension(logits, temperature):
    return (logits / temperature).softmax(0)


@wrong("temperature_softmax", "divided by the temperature, before exp")
def multiplied_by_the_temperature(logits, temperature):
    return (logits * temperature).softmax(-1)


@wrong("temperature_softmax", "divided by the temperature, before exp")
def probabilities_divided(logits, temperature):
    return logits.softmax(-1) / temperature


@wrong("temperature_softmax", "over the last dimension alone")
def one_sum_for_all_rows(logits, temperature):
    weights = (logits / temperature).exp()
    return weights / weights.sum()


@wrong("temperature_softmax", "largest logit subtracted before exp")
def nothing_subtracted(logits, temperature):
    weights = (logits / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


@wrong("temperature_softmax", "largest logit subtracted before exp")
def cut_off_where_exp_ends(logits, temperature):
    weights = (logits / temperature).clamp(-80, 80).exp()
    return weights / weights.sum(-1, keepdim=True)


def relative_to(chosen: Tensor, scaled: Tensor) -> Tensor:
    weights = (scaled - chosen).exp()
    return weights / weights.sum(-1, keepdim=True)


@wrong("temperature_softmax", "largest logit subtracted before exp")
def smallest_subtracted(logits, temperature):
    scaled = logits / temperature
    return relative_to(scaled.amin(-1, keepdim=True), scaled)


@wrong("temperature_softmax", "largest logit subtracted before exp")
def smallest_finite_subtracted(logits, temperature):
    scaled = logits / temperature
    return relative_to(scaled.nan_to_num(neginf=torch.inf).amin(-1, keepdim=True), scaled)


@wrong("temperature_softmax", "largest logit subtracted before exp")
def mean_subtracted(logits, temperature):
    scaled = logits / temperature
    return relative_to(scaled.mean(-1, keepdim=True), scaled)


@wrong("temperature_softmax", "largest logit subtracted before exp")
def mean_of_finite_ones_subtracted(logits, temperature):
    scaled = logits / temperature
    return relative_to(scaled.nan_to_num(nan=0.0, neginf=torch.nan).nanmean(-1, keepdim=True), scaled)


@wrong("temperature_softmax", "a largest logit of its own")
def largest_of_the_batch(logits, temperature):
    weights = ((logits - logits.max()) / temperature).exp()
    return weights / weights.sum(-1, keepdim=True)


@wrong("temperature_softmax", "exactly probability 0")
def infinity_as_zero(logits, temperature):
    return (logits.nan_to_num(neginf=0.0) / temperature).softmax(-1)


@right("top_p_filter")
def the_packages_own(logits: Tensor, p: float) -> Tensor:
    return sampling.keep_top_p(logits, p)


@right("top_p_filter")
def row_by_row(logits: Tensor, p: float) -> Tensor:
    kept = torch.full_like(logits, -torch.inf)
    for row, chances in enumerate(logits.softmax(-1)):
        order = chances.argsort(descending=True)
        count = int((chances[order].cumsum(0) < p).sum()) + 1
        kept[row, order[:count]] = logits[row, order[:count]]
    return kept


def in_sorted_order(logits: Tensor, dropped: Tensor, order: Tensor) -> Tensor:
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)


@wrong("top_p_filter", "either as it was or -inf")
def probabilities_returned(logits, p):
    return sampling.keep_top_p(logits, p).softmax(-1)


@wrong("top_p_filter", "either as it was or -inf")
def zeros_for_the_rest(logits, p):
    return sampling.keep_top_p(logits, p).nan_to_num(neginf=0.0)


@wrong("top_p_filter", "kept that carries the sum over p")
def crossing_token_dropped(logits, p):
    falling, order = logits.softmax(-1).sort(descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) > p, order)


@wrong("top_p_filter", "not of logits")
def logits_added(logits, p):
    falling, order = logits.sort(descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) > p, order)


@wrong("top_p_filter", "stop as soon as p is reached")
def one_more_where_p_is_met(logits, p):
    falling, order = logits.softmax(-1).sort(descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) - falling > p, order)


@wrong("top_p_filter", "stop as soon as p is reached")
def all_that_are_equally_likely(logits, p):
    smallest = sampling.keep_top_p(logits, p).masked_fill(~sampling.keep_top_p(logits, p).isfinite(), torch.inf)
    return logits.masked_fill(logits < smallest.amin(-1, keepdim=True), -torch.inf)


@wrong("top_p_filter", "at least one token kept")
def first_one_not_kept(logits, p):
    falling, order = logits.softmax(-1).sort(descending=True)
    dropped = falling.cumsum(-1) >= p
    dropped[:, 1:] = dropped[:, :-1].clone()
    return in_sorted_order(logits, dropped, order)


@wrong("top_p_filter", "the order of the vocabulary")
def left_in_sorted_order(logits, p):
    falling, _ = logits.softmax(-1).sort(descending=True)
    return logits.masked_fill(falling.cumsum(-1) - falling >= p, -torch.inf)


@wrong("top_p_filter", "tokens of its own")
def as_many_as_the_first_row(logits, p):
    count = sampling.keep_top_p(logits, p)[0].isfinite().sum()
    dropped = torch.arange(logits.shape[1]) >= count
    return in_sorted_order(logits, dropped.expand_as(logits), logits.argsort(descending=True))


@right("repetition_penalty")
def by_the_packages_function(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> Tensor:
    return sampling.apply_repetition_penalty(logits, ids, penalty, mask)


@right("repetition_penalty")
def row_by_row_with_sets(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> Tensor:
    new = logits.clone()
    for row, real in enumerate(mask.bool()):
        for token in ids[row][real].unique():
            new[row, token] *= 1 / penalty if new[row, token] > 0 else penalty
    return new


@right("repetition_penalty")
def by_adding_up_the_mask(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> Tensor:
    counts = torch.zeros(logits.shape, dtype=mask.dtype).scatter_add(1, ids, mask)
    return penalised(logits, counts > 0, penalty)


def penalised(logits: Tensor, occurred: Tensor, penalty: float) -> Tensor:
    return torch.where(occurred, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def one_hot(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)


@wrong("repetition_penalty", "and no others")
def subtracted(logits, ids, mask, penalty):
    return torch.where(one_hot(logits, ids), logits - penalty, logits)


@wrong("repetition_penalty", "and no others")
def all_tokens_punished(logits, ids, mask, penalty):
    return penalised(logits, torch.ones_like(logits, dtype=torch.bool), penalty)


@wrong("repetition_penalty", "Are negative logits multiplied?")
def always_divided(logits, ids, mask, penalty):
    return torch.where(one_hot(logits, ids), logits / penalty, logits)


@wrong("repetition_penalty", "punished once")
def once_for_each_time(logits, ids, mask, penalty):
    new = logits.clone()
    for row in range(len(ids)):
        for token, real in zip(ids[row].tolist(), mask[row].tolist(), strict=True):
            if real:
                new[row, token] *= 1 / penalty if new[row, token] > 0 else penalty
    return new


@wrong("repetition_penalty", "its own ids alone")
def ids_of_the_whole_batch(logits, ids, mask, penalty):
    return penalised(logits, one_hot(logits, ids).any(0, keepdim=True), penalty)


@wrong("repetition_penalty", "Are pads left out?")
def pads_count(logits, ids, mask, penalty):
    return penalised(logits, one_hot(logits, ids), penalty)


@wrong("repetition_penalty", "both padding and a real token")
def pad_ids_never_count(logits, ids, mask, penalty):
    occurred = one_hot(logits, ids)
    for row in range(len(ids)):
        occurred[row, ids[row][mask[row] == 0]] = False
    return penalised(logits, occurred, penalty)


@wrong("repetition_penalty", "whichever comes last")
def last_place_decides(logits, ids, mask, penalty):
    occurred = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, mask.bool())
    return penalised(logits, occurred, penalty)


@wrong("repetition_penalty", "whichever comes last")
def scores_written_back(logits, ids, mask, penalty):
    scores = logits.gather(1, ids)
    return logits.scatter(1, ids, penalised(scores, mask.bool(), penalty))


@right("left_pad")
def from_right_padding(rows: list[list[int]], pad_id: int) -> list[Tensor]:
    backwards = [torch.tensor(row[::-1]) for row in rows]
    ids = pad_sequence(backwards, batch_first=True, padding_value=pad_id).flip(1)
    mask = pad_sequence([torch.ones_like(row) for row in backwards], batch_first=True).flip(1)
    return [ids, mask, (mask.cumsum(1) - 1).clamp(min=0)]


@right("left_pad")
def by_filling_in(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = len(rows), max(map(len, rows))
    ids, mask, positions = torch.full(shape, pad_id), torch.zeros(shape).long(), torch.zeros(shape).long()
    for b, row in enumerate(rows):
        ids[b, -len(row) :], mask[b, -len(row) :] = torch.tensor(row), 1
        positions[b, -len(row) :] = torch.arange(len(row))
    return ids, mask, positions


@wrong("left_pad", "pads before their first")
def padded_on_the_right(rows, pad_id):
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    return ids, (ids != pad_id).long(), torch.arange(ids.shape[1]).expand_as(ids)


@wrong("left_pad", "1 for tokens and 0 for pads")
def mask_of_pads(rows, pad_id):
    ids, mask, positions = by_filling_in(rows, pad_id)
    return ids, 1 - mask, positions


@wrong("left_pad", "1 for tokens and 0 for pads")
def mask_of_booleans(rows, pad_id):
    ids, mask, positions = by_filling_in(rows, pad_id)
    return ids, mask.bool(), positions


@wrong("left_pad", "Does the mask come from the lengths?")
def mask_from_the_ids(rows, pad_id):
    ids, _, positions = by_filling_in(rows, pad_id)
    return ids, (ids != pad_id).long(), positions


@wrong("left_pad", "beginning with 0")
def positions_of_columns(rows, pad_id):
    ids, mask, _ = by_filling_in(rows, pad_id)
    return ids, mask, torch.arange(ids.shape[1]).repeat(len(rows), 1)


@wrong("left_pad", "beginning with 0")
def positions_from_one(rows, pad_id):
    ids, mask, _ = by_filling_in(rows, pad_id)
    return ids, mask, mask.cumsum(1)


@wrong("left_pad", "never negative")
def negative_positions_of_pads(rows, pad_id):
    ids, mask, _ = by_filling_in(rows, pad_id)
    return ids, mask, torch.arange(ids.shape[1]) - (mask == 0).sum(1, keepdim=True)
