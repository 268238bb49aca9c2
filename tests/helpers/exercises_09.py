"""Answers to the exercises of lesson 09."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from exercise_answers import right, wrong
from mixtral_edu import sampling
from mixtral_edu.exercises.lesson_09 import nucleus_with_three_faults


@right("temperature_softmax")
def within_what_is_left(logits: Tensor, temperature: float) -> Tensor:
    left = logits.isfinite()
    if temperature == 0:
        left = logits == logits.amax(-1, keepdim=True)
    if temperature in (0, torch.inf):
        return left / left.sum(-1, keepdim=True)
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)


@right("temperature_softmax")
def by_the_logarithm_of_the_sum(logits: Tensor, temperature: float) -> Tensor:
    distances = (logits - logits.amax(-1, keepdim=True)).double() / max(temperature, 1e-300)
    distances = distances.masked_fill(logits == -torch.inf, -torch.inf)
    return (distances - distances.logsumexp(-1, keepdim=True)).exp().to(logits.dtype)


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


@wrong("temperature_softmax", "subtracted before the division")
def pytorchs_softmax(logits, temperature):
    return (logits / temperature).softmax(-1)


@wrong("temperature_softmax", "subtracted before the division")
def subtracted_after_the_division(logits, temperature):
    scaled = logits / temperature
    return relative_to(scaled.amax(-1, keepdim=True), scaled)


@wrong("temperature_softmax", "At temperature 0")
def without_its_limits(logits, temperature):
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)


@wrong("temperature_softmax", "At temperature 0")
def one_of_those_that_tie(logits, temperature):
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return within_what_is_left(logits, temperature)


@wrong("temperature_softmax", "At temperature infinity")
def infinity_not_thought_of(logits, temperature):
    return within_what_is_left(logits, 0) if temperature == 0 else without_its_limits(logits, temperature)


@wrong("temperature_softmax", "At temperature infinity")
def all_tokens_alike(logits, temperature):
    if temperature == torch.inf:
        return torch.full_like(logits, 1 / logits.shape[-1])
    return within_what_is_left(logits, temperature)


@right("top_p_filter")
def the_packages_own(logits: Tensor, p: float) -> Tensor:
    return logits.masked_fill(sampling.keep_top_p(logits.float(), p) == -torch.inf, -torch.inf)


@right("top_p_filter")
def row_by_row(logits: Tensor, p: float) -> Tensor:
    kept = torch.full_like(logits, -torch.inf)
    for row, chances in enumerate(logits.double().softmax(-1)):
        order = chances.argsort(descending=True)
        count = int((chances[order].cumsum(0) < p).sum()) + 1
        kept[row, order[:count]] = logits[row, order[:count]]
    return kept


def in_sorted_order(logits: Tensor, dropped: Tensor, order: Tensor) -> Tensor:
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)


@wrong("top_p_filter", "with its logit as it was")
def probabilities_returned(logits, p):
    return sampling.keep_top_p(logits, p).softmax(-1)


@wrong("top_p_filter", "with its logit as it was")
def zeros_for_the_rest(logits, p):
    return sampling.keep_top_p(logits, p).nan_to_num(neginf=0.0)


@wrong("top_p_filter", "Symptom 1")
def as_it_was_handed_in(logits, p):
    return nucleus_with_three_faults(logits, p)


@wrong("top_p_filter", "Symptom 1")
def only_the_order_mended(logits, p):
    falling, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) > p, order)


@wrong("top_p_filter", "Symptom 1")
def logits_added(logits, p):
    falling, order = logits.sort(descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) > p, order)


@wrong("top_p_filter", "kept that carries the sum over p")
def only_the_likeliest_saved(logits, p):
    falling, order = logits.softmax(-1).sort(descending=True)
    dropped = falling.cumsum(-1) > p
    dropped[:, 0] = False
    return in_sorted_order(logits, dropped, order)


@wrong("top_p_filter", "not of logits")
def logits_added_before_each(logits, p):
    falling, order = logits.sort(descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) - falling >= p, order)


@wrong("top_p_filter", "stop as soon as p is reached")
def one_more_where_p_is_met(logits, p):
    falling, order = logits.softmax(-1).sort(descending=True)
    return in_sorted_order(logits, falling.cumsum(-1) - falling > p, order)


@wrong("top_p_filter", "stop as soon as p is reached")
def all_that_are_equally_likely(logits, p):
    smallest = sampling.keep_top_p(logits, p).masked_fill(~sampling.keep_top_p(logits, p).isfinite(), torch.inf)
    return logits.masked_fill(logits < smallest.amin(-1, keepdim=True), -torch.inf)


@wrong("top_p_filter", "Symptom 1")
def first_one_not_kept(logits, p):
    falling, order = logits.softmax(-1).sort(descending=True)
    dropped = falling.cumsum(-1) >= p
    dropped[:, 1:] = dropped[:, :-1].clone()
    return in_sorted_order(logits, dropped, order)


@wrong("top_p_filter", "Symptom 2")
def left_in_sorted_order(logits, p):
    falling, _ = logits.softmax(-1).sort(descending=True)
    return logits.masked_fill(falling.cumsum(-1) - falling >= p, -torch.inf)


@wrong("top_p_filter", "Symptom 2")
def gathered_with_the_order(logits, p):
    falling, order = logits.float().softmax(-1).sort(descending=True)
    return logits.masked_fill((falling.cumsum(-1) - falling >= p).gather(1, order), -torch.inf)


@wrong("top_p_filter", "tokens of its own")
def as_many_as_the_first_row(logits, p):
    count = sampling.keep_top_p(logits, p)[0].isfinite().sum()
    dropped = torch.arange(logits.shape[1]) >= count
    return in_sorted_order(logits, dropped.expand_as(logits), logits.argsort(descending=True))


@wrong("top_p_filter", "Symptom 3")
def the_cell_of_the_lesson(logits, p):
    falling, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = falling.cumsum(dim=-1) - falling
    return in_sorted_order(logits, before >= p, order)


@wrong("top_p_filter", "Symptom 3")
def float32_returned(logits, p):
    return sampling.keep_top_p(logits.float(), p)


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


@right("sample_rows")
def row_after_row(model: Callable, ids: Tensor, seeds: list[int], steps: int):
    drawn = []
    for row, seed in zip(ids, seeds, strict=True):
        generator, new, cache = torch.Generator().manual_seed(seed), row[None], None
        for _ in range(steps):
            logits, cache = model(new, cache)
            new = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)
            drawn.append(new)
    return torch.cat(drawn).view(len(ids), steps)


@right("sample_rows")
def into_a_table(model: Callable, ids: Tensor, seeds: list[int], steps: int):
    text = torch.cat((ids, ids.new_zeros(len(ids), steps)), 1)
    sources, cache, start = [torch.Generator() for _ in seeds], None, 0
    for source, seed in zip(sources, seeds, strict=True):
        source.manual_seed(seed)
    for end in range(ids.shape[1], text.shape[1]):
        logits, cache = model(text[:, start:end], cache)
        for b, source in enumerate(sources):
            text[b, end] = logits[b, -1].softmax(0).multinomial(1, generator=source)
        start = end
    return text[:, ids.shape[1] :]


def loop(model, ids, steps, choose, read_all=False, last=-1, read_the_end=False):
    new, cache, text = ids, None, ids
    for _ in range(steps):
        logits, cache = model(new, cache)
        chosen = choose(logits[:, last].softmax(-1))
        text = torch.cat((text, chosen), 1)
        new = chosen
        if read_all:
            new, cache = text, None
    if read_the_end:
        model(new, cache)
    return text[:, ids.shape[1] :]


def drawn_apart(seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda p: torch.stack([torch.multinomial(row, 1, generator=g) for row, g in zip(p, generators, strict=True)])


@wrong("sample_rows", "from the scores after the last token")
def from_the_first_place(model, ids, seeds, steps):
    return loop(model, ids, steps, drawn_apart(seeds), last=0)


@wrong("sample_rows", "from the scores after the last token")
def all_tokens_again_into_the_cache(model, ids, seeds, steps):
    choose, text, cache = drawn_apart(seeds), ids, None
    for _ in range(steps):
        logits, cache = model(text, cache)
        text = torch.cat((text, choose(logits[:, -1].softmax(-1))), 1)
    return text[:, ids.shape[1] :]


@wrong("sample_rows", "from the scores after the last token")
def no_cache_passed_on(model, ids, seeds, steps):
    choose, new, text = drawn_apart(seeds), ids, []
    for _ in range(steps):
        logits, _ = model(new, None)
        new = choose(logits[:, -1].softmax(-1))
        text.append(new)
    return torch.cat(text, 1)


@wrong("sample_rows", "from the scores after the last token")
def prompt_returned_too(model, ids, seeds, steps):
    return torch.cat((ids, loop(model, ids, steps, drawn_apart(seeds))), 1)


@wrong("sample_rows", "each later one only the token drawn before")
def everything_read_again(model, ids, seeds, steps):
    return loop(model, ids, steps, drawn_apart(seeds), read_all=True)


@wrong("sample_rows", "The last is not read")
def the_last_token_read(model, ids, seeds, steps):
    return loop(model, ids, steps, drawn_apart(seeds), read_the_end=True)


@wrong("sample_rows", "seeded once")
def seeded_in_each_step(model, ids, seeds, steps):
    return loop(model, ids, steps, lambda p: drawn_apart(seeds)(p))


@wrong("sample_rows", "seeded once")
def greedy(model, ids, seeds, steps):
    return loop(model, ids, steps, lambda p: p.argmax(-1, keepdim=True))


@wrong("sample_rows", "a generator of its own")
def one_stream_for_the_batch(model, ids, seeds, steps):
    generator = torch.Generator().manual_seed(seeds[0])
    return loop(model, ids, steps, lambda p: torch.multinomial(p, 1, generator=generator))


@wrong("sample_rows", "a generator of its own")
def the_first_seed_for_all(model, ids, seeds, steps):
    return loop(model, ids, steps, drawn_apart([seeds[0]] * len(seeds)))


@right("next_turn")
def from_right_padding(sequences: Tensor, mask: Tensor, turns: list[list[int]], stop_id: int, pad_id: int):
    P = mask.shape[1]
    stops = (sequences[:, P:] == stop_id).long()
    real = torch.cat((mask, (stops.cumsum(1) - stops == 0).long()), 1).bool()  # as far as no stop came before
    texts = zip(sequences, real, turns, strict=True)
    backwards = [torch.cat((row[own], torch.tensor(turn))).flip(0) for row, own, turn in texts]
    ids = pad_sequence(backwards, batch_first=True, padding_value=pad_id).flip(1)
    mask = pad_sequence([torch.ones_like(row) for row in backwards], batch_first=True).flip(1)
    return [ids, mask, (mask.cumsum(1) - 1).clamp(min=0)]


def turn_by_turn(
    sequences, mask, turns, stop_id, pad_id, keep_stop=True, cut=True, anywhere=False, by_id=False, last=False
):
    P, rows = mask.shape[1], []
    for sequence, real, turn in zip(sequences.tolist(), mask.tolist(), turns, strict=True):
        prompt, answer = [t for t, one in zip(sequence, real, strict=False) if one], sequence[P:]
        if by_id:
            prompt = [t for t in sequence[:P] if t != pad_id]
        if anywhere:
            prompt, answer = [], prompt + answer
        if cut and stop_id in answer:
            end = len(answer) - answer[::-1].index(stop_id) - 1 if last else answer.index(stop_id)
            answer = answer[: end + keep_stop]
        rows.append(prompt + answer + turn)
    return on_the_left(rows, pad_id)


def on_the_left(rows, pad_id):
    shape = len(rows), max(map(len, rows))
    ids, mask, positions = torch.full(shape, pad_id), torch.zeros(shape).long(), torch.zeros(shape).long()
    for b, row in enumerate(rows):
        ids[b, -len(row) :], mask[b, -len(row) :] = torch.tensor(row), 1
        positions[b, -len(row) :] = torch.arange(len(row))
    return ids, mask, positions


@right("next_turn")
def by_filling_in(sequences: Tensor, mask: Tensor, turns: list[list[int]], stop_id: int, pad_id: int):
    return turn_by_turn(sequences, mask, turns, stop_id, pad_id)


@wrong("next_turn", "pads only before their first token")
def turns_behind_everything(sequences, mask, turns, stop_id, pad_id):
    return on_the_left([row + turn for row, turn in zip(sequences.tolist(), turns, strict=True)], pad_id)


@wrong("next_turn", "pads only before their first token")
def padded_on_the_right(sequences, mask, turns, stop_id, pad_id):
    ids, mask, _ = turn_by_turn(sequences, mask, turns, stop_id, pad_id)
    rows = [row[own == 1] for row, own in zip(ids, mask, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


@wrong("next_turn", "pads only before their first token")
def answer_forgotten(sequences, mask, turns, stop_id, pad_id):
    return turn_by_turn(sequences[:, : mask.shape[1]], mask, turns, stop_id, pad_id)


@wrong("next_turn", "the stop id stay")
def stop_cut_off(sequences, mask, turns, stop_id, pad_id):
    return turn_by_turn(sequences, mask, turns, stop_id, pad_id, keep_stop=False)


@wrong("next_turn", "behind an answer's first stop id")
def filling_kept(sequences, mask, turns, stop_id, pad_id):
    return turn_by_turn(sequences, mask, turns, stop_id, pad_id, cut=False)


@wrong("next_turn", "behind an answer's first stop id")
def up_to_the_last_stop(sequences, mask, turns, stop_id, pad_id):
    return turn_by_turn(sequences, mask, turns, stop_id, pad_id, last=True)


@wrong("next_turn", "in the answer alone")
def stops_of_the_prompt_too(sequences, mask, turns, stop_id, pad_id):
    return turn_by_turn(sequences, mask, turns, stop_id, pad_id, anywhere=True)


@wrong("next_turn", "told by the mask")
def pads_told_by_their_id(sequences, mask, turns, stop_id, pad_id):
    return turn_by_turn(sequences, mask, turns, stop_id, pad_id, by_id=True)


@wrong("next_turn", "1 for tokens and 0 for pads")
def mask_of_pads(sequences, mask, turns, stop_id, pad_id):
    ids, mask, positions = by_filling_in(sequences, mask, turns, stop_id, pad_id)
    return ids, 1 - mask, positions


@wrong("next_turn", "1 for tokens and 0 for pads")
def mask_of_booleans(sequences, mask, turns, stop_id, pad_id):
    ids, mask, positions = by_filling_in(sequences, mask, turns, stop_id, pad_id)
    return ids, mask.bool(), positions


@wrong("next_turn", "from the lengths and not from the ids")
def mask_from_the_ids(sequences, mask, turns, stop_id, pad_id):
    ids, _, positions = by_filling_in(sequences, mask, turns, stop_id, pad_id)
    return ids, (ids != pad_id).long(), positions


@wrong("next_turn", "from its own first token")
def positions_of_columns(sequences, mask, turns, stop_id, pad_id):
    ids, mask, _ = by_filling_in(sequences, mask, turns, stop_id, pad_id)
    return ids, mask, torch.arange(ids.shape[1]).repeat(len(turns), 1)


@wrong("next_turn", "from its own first token")
def positions_from_one(sequences, mask, turns, stop_id, pad_id):
    ids, mask, _ = by_filling_in(sequences, mask, turns, stop_id, pad_id)
    return ids, mask, mask.cumsum(1)


@wrong("next_turn", "pads the position 0")
def negative_positions_of_pads(sequences, mask, turns, stop_id, pad_id):
    ids, mask, _ = by_filling_in(sequences, mask, turns, stop_id, pad_id)
    return ids, mask, torch.arange(ids.shape[1]) - (mask == 0).sum(1, keepdim=True)


PREDICTED = {"passes": 9, "experts": 12.2, "tokens per pass": 3.05, "two beams": 0.18, "no mask": 2, "columns": 4}


@right("forecast_generation")
def rounded_numbers():
    return dict(PREDICTED)


def plant(hint: str, key: str, number: float) -> None:
    answer = partial(dict, PREDICTED | {key: number})
    answer.__name__ = f"{key.replace(' ', '_')}_{number}".replace(".", "_")
    wrong("forecast_generation", hint)(answer)


plant("how many the first", "passes", 8)  # the first pass forgotten
plant("how many the first", "passes", 10)  # four tokens per pass
plant("leave out a given expert", "experts", 16)
plant("leave out a given expert", "experts", 20)  # 5 times 4
plant("without guesses", "tokens per pass", 5)
plant("without guesses", "tokens per pass", 1)  # as in a dense model
plant("Which two beginnings are kept", "two beams", 0.15)  # greedy
plant("Which two beginnings are kept", "two beams", 0.2)  # the likeliest of all
plant("get pads at all", "no mask", 0)
plant("get pads at all", "no mask", 4)
plant("shifted alike", "columns", 2)
