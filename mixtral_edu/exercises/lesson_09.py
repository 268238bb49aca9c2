"""Exercises of lesson 09: a safe softmax with temperature, top-p, the repetition penalty, and left padding."""

import math

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise

INF = math.inf


@exercise("A softmax with temperature that survives large logits")
def temperature_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits into probabilities, sharper below temperature 1 and flatter above.

        p_v = exp(z_v / temperature) / sum over u of exp(z_u / temperature)

    No logit may be too large or too small for it. Write the formula out: what torch.softmax
    does inside is what you are asked for.

    Args:
        logits: (..., V), scores; -inf for a token that is ruled out, but never for all.
        temperature: above 0.

    Returns:
        (..., V), the probabilities along the last dimension; 0 for what is ruled out.
    """
    scaled = logits / temperature
    scaled = scaled - scaled.amax(dim=-1, keepdim=True)  # the largest is 0, its exp 1
    weights = scaled.exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def softmax_by_loops(logits: Tensor, temperature: float) -> np.ndarray:
    """In Python's floats, relative to each row's largest logit."""
    p = np.zeros(logits.shape)
    for place in np.ndindex(*logits.shape[:-1]):
        row = logits[place].tolist()
        weights = [math.exp((z - max(row)) / temperature) for z in row]
        p[place] = [weight / math.fsum(weights) for weight in weights]
    return p


POWERS_OF_TWO = torch.tensor([[8.0, 4.0, 2.0, 1.0]]).log()  # softmax: 8/15, 4/15, 2/15, 1/15


@temperature_softmax.check("Are the exponentials of the logits divided by their sum, along the last dimension?")
def exponentials_over_their_sum(answer):
    return answer(POWERS_OF_TWO, 1.0), torch.tensor([[8.0, 4.0, 2.0, 1.0]]) / 15


@temperature_softmax.check("Are the logits divided by the temperature, before exp? At 1/2 the ratios are squared.")
def logits_divided(answer):
    return answer(POWERS_OF_TWO, 0.5), torch.tensor([[64.0, 16.0, 4.0, 1.0]]) / 85


@temperature_softmax.check("Is the sum taken over the last dimension alone?")
def sum_over_the_last_dimension(answer):
    logits = torch.randn(2, 3, 5)
    return answer(logits, 0.7), softmax_by_loops(logits, 0.7)


@temperature_softmax.check("Is the largest logit subtracted before exp? In float32, e^89 is infinite, and e^-104 is 0.")
def large_logits(answer):
    far_apart = torch.tensor([[1000.0, 0.0]])  # here neither the smallest nor the mean will do
    rows = torch.tensor([[1000.0, 999.0, 998.0]]), torch.tensor([[-998.0, -999.0, -1000.0]]), far_apart
    return [answer(row, 1.0) for row in rows], [softmax_by_loops(row, 1.0) for row in rows]


@temperature_softmax.check("Does each row subtract a largest logit of its own?")
def largest_of_each_row(answer):
    logits = torch.tensor([[1000.0, 999.0], [1.0, 0.0]])
    return answer(logits, 1.0), softmax_by_loops(logits, 1.0)


@temperature_softmax.check("Does a logit of -inf give exactly probability 0?")
def ruled_out(answer):
    logits = torch.tensor([[math.log(3), -INF, 0.0]])
    return answer(logits, 1.0), torch.tensor([[0.75, 0.0, 0.25]])


@exercise("Top-p: the fewest tokens that reach p together")
def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens of each row whose probabilities reach p together.

    Go through a row from the most likely token down and add up probabilities; stop as soon as
    the sum is p or more. The token that brings it there is kept, so at least one always is.
    Where equally likely tokens are not all needed, keep any of them, but no more than needed.

    Args:
        logits: (B, V).
        p: above 0, at most 1.

    Returns:
        (B, V): the logits of what is kept, as they were, and -inf for the rest.
    """
    falling, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)  # (B, V) both
    before = falling.cumsum(dim=-1) - falling  # what the more likely tokens have together
    dropped = before >= p  # in sorted order
    dropped = torch.zeros_like(dropped).scatter(1, order, dropped)  # in vocabulary order
    return logits.masked_fill(dropped, -torch.inf)


def top_p_by_loops(logits: Tensor, p: float) -> np.ndarray:
    probabilities = softmax_by_loops(logits, 1.0)
    kept = np.full(logits.shape, -INF)
    for row, chances in enumerate(probabilities):
        total = 0.0
        for token in sorted(range(len(chances)), key=lambda token: -chances[token]):
            kept[row, token] = logits[row, token]
            total += chances[token]
            if total >= p:
                break
    return kept


BEST_TWO = POWERS_OF_TWO.masked_fill(torch.tensor([False, False, True, True]), -INF)


@top_p_filter.check("Is each logit either as it was or -inf?")
def as_they_were_or_ruled_out(answer):
    found = answer(POWERS_OF_TWO, 0.75)
    if not isinstance(found, Tensor) or found.shape != BEST_TWO.shape:
        return found, BEST_TWO
    either = (found == POWERS_OF_TWO) | (found == -INF)
    return found, found if either.all() else BEST_TWO  # whether the right ones are kept, is another question


@top_p_filter.check(
    "Is the token kept that carries the sum over p, a sum of probabilities and not of logits? "
    "With 8 : 4 : 2 : 1 and p = 0.75 it is the second."
)
def crossing_token_kept(answer):
    return answer(POWERS_OF_TWO, 0.75), BEST_TWO


@top_p_filter.check("Does it stop as soon as p is reached? Two of four equally likely tokens are 0.5 exactly.")
def no_more_than_needed(answer):
    return int(answer(torch.zeros(1, 4), 0.5).isfinite().sum()), 2


@top_p_filter.check("Is at least one token kept, however small p is?")
def at_least_one(answer):
    expected = POWERS_OF_TWO.clone()
    expected[0, 1:] = -INF
    return answer(POWERS_OF_TWO, 0.01), expected


@top_p_filter.check("Are the decisions carried back from sorted order to the order of the vocabulary?")
def vocabulary_order(answer):
    logits = 2 * torch.randn(1, 11)
    return answer(logits, 0.8), top_p_by_loops(logits, 0.8)


@top_p_filter.check("Does each row keep tokens of its own?")
def each_row_by_itself(answer):
    logits = torch.randn(3, 11) * torch.tensor([0.1, 1.0, 5.0])[:, None]  # from flat to peaked
    return answer(logits, 0.8), top_p_by_loops(logits, 0.8)


@exercise("The repetition penalty")
def repetition_penalty(
    logits: Tensor, ids: Tensor, mask: Tensor, penalty: float
) -> Tensor:
    """Make the tokens that stand in a row less likely.

        z_v -> z_v / penalty  if z_v is positive,  z_v · penalty  if not

    for every v that occurs in the row's ids, once, however often it occurs. Padding does not
    count: a pad is no token of the text. Its id may occur as a real token too; then it counts.

    Args:
        logits: (B, V).
        ids: (B, S), the tokens so far.
        mask: (B, S), 1 for tokens, 0 for padding, which may stand anywhere.
        penalty: above 1.

    Returns:
        (B, V), new logits.
    """
    times = torch.zeros_like(logits).scatter_add(1, ids, mask.to(logits.dtype))  # (B, V)
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(times > 0, penalised, logits)


def penalty_by_loops(logits: Tensor, ids: Tensor, mask: Tensor, penalty: float) -> np.ndarray:
    new = logits.double().numpy().copy()
    for row in range(len(ids)):
        for token in {token for token, real in zip(ids[row].tolist(), mask[row].tolist(), strict=True) if real}:
            new[row, token] = new[row, token] / penalty if new[row, token] > 0 else new[row, token] * penalty
    return new


@repetition_penalty.check("Are positive logits of tokens that occurred divided by the penalty, and no others?")
def positive_divided(answer):
    logits, ids = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0]])
    return answer(logits, ids, torch.ones_like(ids), 2.0), torch.tensor([[1.5, 2.0, 1.0]])


@repetition_penalty.check("Are negative logits multiplied? Divided, they would grow.")
def negative_multiplied(answer):
    logits, ids = torch.tensor([[4.0, -2.0, -1.0]]), torch.tensor([[1]])
    return answer(logits, ids, torch.ones_like(ids), 2.0), torch.tensor([[4.0, -4.0, -1.0]])


@repetition_penalty.check("Is a token punished once, also where it occurred more often?")
def only_once(answer):
    logits, ids = torch.tensor([[4.0, 2.0, -1.0]]), torch.tensor([[0, 2, 0, 0, 2]])
    return answer(logits, ids, torch.ones_like(ids), 2.0), torch.tensor([[2.0, 2.0, -2.0]])


@repetition_penalty.check("Does each row look at its own ids alone?")
def own_ids(answer):
    logits, ids = torch.randn(3, 7), torch.tensor([[0, 1, 1, 2], [3, 3, 3, 3], [6, 0, 4, 5]])
    mask = torch.ones_like(ids)
    return answer(logits, ids, mask, 1.5), penalty_by_loops(logits, ids, mask, 1.5)


@repetition_penalty.check("Are pads left out? An id that occurs only as padding did not occur.")
def pads_left_out(answer):
    logits, ids, mask = torch.tensor([[4.0, 2.0, 1.0]]), torch.tensor([[0, 0, 2]]), torch.tensor([[0, 0, 1]])
    return answer(logits, ids, mask, 2.0), torch.tensor([[4.0, 2.0, 0.5]])


@repetition_penalty.check("Does an id count that is both padding and a real token of the row, whichever comes last?")
def pad_id_as_a_token(answer):
    logits, expected = torch.tensor([[4.0, 2.0, 1.0]]), torch.tensor([[2.0, 2.0, 0.5]])
    pads_left = torch.tensor([[0, 0, 2, 0]]), torch.tensor([[0, 0, 1, 1]])  # ids and mask
    pads_right = torch.tensor([[0, 2, 0]]), torch.tensor([[1, 1, 0]])
    return [answer(logits, *row, 2.0) for row in (pads_left, pads_right)], [expected, expected]


@exercise("A batch with padding on the left")
def left_pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make one rectangle of rows of unequal length, for generation.

    Args:
        rows: B lists of ids, none of them empty.
        pad_id: fills short rows up, on the left, to the length T of the longest. The same id
            may also occur as a real token.

    Returns:
        ids, mask and positions, each an int64 tensor (B, T). The mask is 1 for tokens and 0
        for padding. Positions count from the row's first token, which has 0; pads have 0 too.
    """
    T = max(len(row) for row in rows)
    pads = [T - len(row) for row in rows]
    ids = [[pad_id] * n + row for n, row in zip(pads, rows, strict=True)]
    mask = [[0] * n + [1] * len(row) for n, row in zip(pads, rows, strict=True)]
    positions = [[0] * n + list(range(len(row))) for n, row in zip(pads, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(positions)


ROWS = [[1, 7], [1, 5, 6, 9], [1, 4, 8]]


@left_pad.check("Do rows end with their own last token, with the pads before their first?")
def pads_on_the_left(answer):
    return answer(ROWS, 0)[0], torch.tensor([[0, 0, 1, 7], [1, 5, 6, 9], [0, 1, 4, 8]])


@left_pad.check("Is the mask 1 for tokens and 0 for pads?")
def ones_for_tokens(answer):
    return answer(ROWS, 0)[1], torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])


@left_pad.check("Does the mask come from the lengths? The pad's id may be a token of the text.")
def mask_from_lengths(answer):
    rows = [[2, 5], [2, 2, 7]]
    return answer(rows, 2)[1], torch.tensor([[0, 1, 1], [1, 1, 1]])


@left_pad.check("Does each row count its positions from its own first token, beginning with 0?")
def positions_of_the_row(answer):
    return answer(ROWS, 0)[2] * answer(ROWS, 0)[1], torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 1, 2]])


@left_pad.check("Is the position of pads 0, and never negative?")
def pads_at_zero(answer):
    return answer(ROWS, 0)[2], torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 1, 2]])
