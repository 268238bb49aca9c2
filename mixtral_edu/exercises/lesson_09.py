"""Exercises of lesson 09: temperatures 0 to infinity, a faulty top-p, the penalty, seeds, a next turn, predictions."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.comparison import form
from mixtral_edu.exercises.framework import exercise

INF = math.inf


@exercise("The softmax from temperature 0 to infinity")
def temperature_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits into probabilities, at any temperature, its two limits included.

        p_v = exp(z_v / temperature) / sum over u of exp(z_u / temperature)

    At temperature 0 the probability belongs to the largest logit; equally large ones share
    it. At temperature infinity all tokens are equally likely, except those that are ruled out.

    Args:
        logits: (..., V), scores of any size; -inf for a token that is ruled out, but never
            for all.
        temperature: from 0 to torch.inf, both included.

    Returns:
        (..., V), the probabilities along the last dimension; 0 for what is ruled out.
    """
    shifted = logits - logits.amax(dim=-1, keepdim=True)  # the largest is 0 now
    if temperature == 0:
        weights = (shifted == 0).to(logits.dtype)
    elif temperature == torch.inf:
        weights = (shifted > -torch.inf).to(logits.dtype)
    else:
        weights = (shifted / temperature).exp()  # at most exp(0), as shifted is never above 0
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


@temperature_softmax.check(
    "Is the largest logit subtracted before the division? At temperature 1e-37 a logit of 1000 becomes infinite in "
    "float32, and inf - inf is NaN."
)
def nearly_zero(answer):
    return answer(torch.tensor([[1000.0, 999.0, -1000.0]]), 1e-37), torch.tensor([[1.0, 0.0, 0.0]])


@temperature_softmax.check("At temperature 0, do the tokens with the largest logit share everything? (0 / 0 is NaN.)")
def zero(answer):
    rows = torch.tensor([[2.0, 5.0, -INF, 1.0]]), torch.tensor([[3.0, -1.0, 3.0, -INF], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]])
    return [answer(row, 0.0) for row in rows], list(expected)


@temperature_softmax.check("At temperature infinity, does a token that is ruled out stay so? (-inf / inf is NaN.)")
def infinity(answer):
    rows = torch.tensor([[2.0, 500.0, 0.0, 1.0]]), torch.tensor([[2.0, -INF, 0.0, -INF], [9.0, 1.0, 0.0, -INF]])
    expected = torch.full((1, 4), 0.25), torch.tensor([[0.5, 0.0, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]])
    return [answer(row, INF) for row in rows], list(expected)


def nucleus_with_three_faults(logits, p):
    falling, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    dropped = falling.cumsum(dim=-1) > p
    return logits.masked_fill(dropped.gather(1, order), -torch.inf)


@exercise("Top-p with three faults", faulty=nucleus_with_three_faults)
def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens of each row whose probabilities reach p together.

    Go through a row from the most likely token down and add up probabilities; stop as soon as
    the sum is p or more. The token that brings it there is kept, so at least one always is.
    Where equally likely tokens are not all needed, keep any of them, but no more than needed.

    Args:
        logits: (B, V), in float32 or bfloat16.
        p: above 0, at most 1.

    Returns:
        (B, V), in the dtype of the logits: those of what is kept, as they were, and -inf for
        the rest.
    """
    falling, order = logits.float().softmax(dim=-1).sort(dim=-1, descending=True)  # (B, V)
    before = falling.cumsum(dim=-1) - falling  # what the more likely tokens have together
    dropped = before >= p  # in sorted order: never the first
    dropped = torch.zeros_like(dropped).scatter(1, order, dropped)  # in the vocabulary's
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


def best_of_powers(count: int) -> Tensor:
    return POWERS_OF_TWO.masked_fill(torch.arange(4) >= count, -INF)


@top_p_filter.check(
    "Symptom 1: what is kept where the likeliest token alone has more than p? At least one token is, with its logit as "
    "it was."
)
def at_least_one(answer):
    return answer(POWERS_OF_TWO, 0.4), best_of_powers(1)


@top_p_filter.check(
    "Is the token kept that carries the sum over p, a sum of probabilities and not of logits? "
    "With 8 : 4 : 2 : 1 and p = 0.75 it is the second."
)
def crossing_token_kept(answer):
    return [answer(POWERS_OF_TWO, p) for p in (0.75, 0.9)], [best_of_powers(2), best_of_powers(3)]


@top_p_filter.check("Does it stop as soon as p is reached? Two of four equally likely tokens are 0.5 exactly.")
def no_more_than_needed(answer):
    return [int(answer(torch.zeros(1, 4), p).isfinite().sum()) for p in (0.5, 0.4)], [2, 2]


@top_p_filter.check(
    "Symptom 2: which way does `order` lead? order[i] is the token at place i; `gather` reads at these places, and "
    "`scatter` writes to them."
)
def vocabulary_order(answer):
    logits = torch.tensor([[1.0, 8.0, 4.0, 2.0]]).log()
    several = 2 * torch.randn(1, 11)
    return [answer(logits, 0.75), answer(several, 0.8)], [top_p_by_loops(logits, 0.75), top_p_by_loops(several, 0.8)]


@top_p_filter.check("Does each row keep tokens of its own?")
def each_row_by_itself(answer):
    logits = torch.randn(3, 11) * torch.tensor([0.1, 1.0, 5.0])[:, None]  # from flat to peaked
    return answer(logits, 0.8), top_p_by_loops(logits, 0.8)


@top_p_filter.check(
    "Symptom 3: are the probabilities of bfloat16 logits added in float32, and the logits returned in bfloat16? "
    "Between 0.5 and 1, bfloat16 has steps of 1/256.",
    compared="the dtype, and how many of 5,000 equally likely tokens are kept",
)
def sums_in_float32(answer):
    found = answer(torch.zeros(1, 5000, dtype=torch.bfloat16), 0.8999)
    return [form(found), int(found.isfinite().sum())], ["bfloat16 (1, 5000)", 4500]


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


@exercise("A seed for each row")
def sample_rows(model: Callable, ids: Tensor, seeds: list[int], steps: int) -> Tensor:
    """Continue each row of a batch with random numbers of its own.

    A row's text then depends on its prompt and its seed, and not on its neighbours. Each row
    draws from one `torch.Generator().manual_seed(seed)`, by one call of
    `torch.multinomial(probabilities, 1, generator=…)` per token.

    Args:
        model: `model(ids, cache)` reads tokens (B, T) that follow those in the cache, which is
            None at first. It returns logits (B, T, V), one row after each token that it read,
            and the new cache.
        ids: (B, T), prompts of equal length.
        seeds: B seeds, one per row.
        steps: tokens to draw per row, at least 1. The model reads no token twice, and never
            the last.

    Returns:
        (B, steps), the new tokens.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    new, cache, drawn = ids, None, []
    for _ in range(steps):
        logits, cache = model(new, cache)
        rows = logits[:, -1].softmax(dim=-1)  # (B, V)
        pairs = zip(rows, generators, strict=True)
        new = torch.stack([torch.multinomial(p, 1, generator=g) for p, g in pairs])  # (B, 1)
        drawn.append(new)
    return torch.cat(drawn, dim=1)


class Scripted:
    """Stands in for a model: the scores after a token are a row of a table, chosen by all tokens up to it."""

    def __init__(self, table: Tensor):
        self.table = table
        self.reads: list[int] = []  # tokens of a row, pass by pass

    def __call__(self, ids: Tensor, cache: tuple[Tensor, int] | None = None) -> tuple[Tensor, tuple[Tensor, int]]:
        self.reads.append(ids.shape[1])
        total, count = cache or (torch.zeros(len(ids), 1, dtype=torch.long), 0)
        totals = total + ((ids + 1) * torch.arange(count + 1, count + 1 + ids.shape[1])).cumsum(1)  # (B, T)
        return self.table[totals % len(self.table)], (totals[:, -1:], count + ids.shape[1])


CERTAIN = 100 * torch.eye(7)  # each row of the table has one token that is drawn for certain


def drawn_by_loops(table: Tensor, ids: Tensor, seeds: list[int], steps: int) -> Tensor:
    """Row by row, from all tokens each time."""
    rows = []
    for row, seed in zip(ids.tolist(), seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            total = sum(place * (token + 1) for place, token in enumerate(row, start=1))
            chances = table[total % len(table)].softmax(0)
            row.append(int(torch.multinomial(chances, 1, generator=generator)))
        rows.append(row[ids.shape[1] :])
    return torch.tensor(rows)


@sample_rows.check(
    "Is each token drawn from the scores after the last token, and read next? Here every draw is certain, "
    "whatever the seed."
)
def token_after_token(answer):
    ids = torch.tensor([[1, 5, 2, 4], [0, 3, 3, 6]])
    return answer(Scripted(CERTAIN), ids, [1, 2], 5), drawn_by_loops(CERTAIN, ids, [1, 2], 5)


@sample_rows.check(
    "Does the first pass read the prompt, and each later one only the token drawn before? The last is not read.",
    compared="the tokens of a row that the model reads, pass by pass",
)
def one_token_per_pass(answer):
    model = Scripted(CERTAIN)
    answer(model, torch.tensor([[1, 5, 2, 4]]), [1], 3)
    return model.reads, [4, 1, 1]


@sample_rows.check("Is a row's generator seeded once, for the whole text? Seeded again, it repeats its first number.")
def one_generator_for_a_text(answer):
    table, ids = 2 * torch.randn(5, 7), torch.tensor([[5, 5]])
    return answer(Scripted(table), ids, [5], 12), drawn_by_loops(table, ids, [5], 12)


@sample_rows.check("Does each row draw from a generator of its own? It writes the same alone and beside other rows.")
def same_alone(answer):
    table, ids, seeds = torch.randn(5, 7), torch.tensor([[3, 1], [3, 1], [0, 6]]), [5, 8, 5]
    model = Scripted(table)
    together = answer(model, ids, seeds, 9)
    alone = [answer(model, row[None], [seed], 9) for row, seed in zip(ids, seeds, strict=True)]
    expected = drawn_by_loops(table, ids, seeds, 9)
    return [together, *alone], [expected, *expected.split(1)]


@exercise("The next turn of a batch")
def next_turn(
    sequences: Tensor, mask: Tensor, turns: list[list[int]], stop_id: int, pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the next turn behind each answer, and make one batch of it again.

    `generate` returned prompts, padded on the left, and behind them the answers. An answer
    that stopped ends with its first stop_id; what stands behind that only fills the row up.
    An answer that did not stop fills its row. Neither pads nor filling may stay in the text.

    Args:
        sequences: (B, P + N), prompts and answers.
        mask: (B, P) of the prompts, 1 for tokens and 0 for padding.
        turns: B lists of ids, what the user says next.
        stop_id: ends an answer, and stays in the text. It may occur in a prompt too.
        pad_id: fills the new rows, on the left. It may also occur as a real token.

    Returns:
        ids, mask and positions, each an int64 tensor (B, T) with T the length of the longest
        row. Positions count a row's own tokens from 0; pads have position 0 too.
    """
    P, rows = mask.shape[1], []
    for sequence, real, turn in zip(sequences, mask.bool(), turns, strict=True):
        prompt, answer = sequence[:P][real].tolist(), sequence[P:].tolist()
        if stop_id in answer:
            answer = answer[: answer.index(stop_id) + 1]
        rows.append(prompt + answer + turn)
    T = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


# sequences, mask and turns, and what the rows have to become
UNSTOPPED = [[0, 0, 1, 7, 5, 6], [1, 3, 4, 8, 9, 5]], [[0, 0, 1, 1], [1, 1, 1, 1]], [[11, 12, 13, 14], [15]]
UNSTOPPED_ROWS = [[1, 7, 5, 6, 11, 12, 13, 14], [1, 3, 4, 8, 9, 5, 15]]


def padded_by_places(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions, place by place."""
    T = max(map(len, rows))
    ids, mask, positions = (np.zeros((len(rows), T), dtype=np.int64) for _ in range(3))
    for b, row in enumerate(rows):
        for column in range(T):
            place = column - (T - len(row))
            ids[b, column] = row[place] if place >= 0 else pad_id
            mask[b, column], positions[b, column] = place >= 0, max(place, 0)
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(positions)


def batch_after(answer, sequences, mask, turns, pad_id: int = 0):
    return answer(torch.tensor(sequences), torch.tensor(mask), turns, 2, pad_id)


@next_turn.check("Do rows end with their own turn, with pads only before their first token? (No answer stops here.)")
def pads_on_the_left(answer):
    return batch_after(answer, *UNSTOPPED)[0], padded_by_places(UNSTOPPED_ROWS, 0)[0]


@next_turn.check("Does the stop id stay at the end of an answer? The model has read conversations with it.")
def stop_stays(answer):
    given = [[0, 1, 7, 5, 2], [1, 3, 4, 9, 2]], [[0, 1, 1], [1, 1, 1]], [[11, 12], [13]]
    return batch_after(answer, *given)[0], padded_by_places([[1, 7, 5, 2, 11, 12], [1, 3, 4, 9, 2, 13]], 0)[0]


@next_turn.check("Is all that stands behind an answer's first stop id left out? It only fills the row up.")
def filling_left_out(answer):
    batches = [  # filled up with the stop id, as in the lesson, and with the pad id
        ([[0, 1, 7, 5, 2, 2, 2], [1, 3, 4, 9, 8, 6, 2]], [[0, 1, 1], [1, 1, 1]], [[11], [13]]),
        ([[0, 1, 7, 5, 2, 0, 0], [1, 3, 4, 9, 8, 6, 2]], [[0, 1, 1], [1, 1, 1]], [[11], [13]]),
    ]
    expected = padded_by_places([[1, 7, 5, 2, 11], [1, 3, 4, 9, 8, 6, 2, 13]], 0)[0]
    return [batch_after(answer, *each)[0] for each in batches], [expected] * 2


@next_turn.check("Is the stop id looked for in the answer alone? A prompt that holds earlier answers has some too.")
def stops_in_the_prompt(answer):
    given = [[1, 7, 2, 4, 9, 5, 6], [0, 0, 1, 8, 9, 2, 2]], [[1, 1, 1, 1], [0, 0, 1, 1]], [[11], [13]]
    return batch_after(answer, *given)[0], padded_by_places([[1, 7, 2, 4, 9, 5, 6, 11], [1, 8, 9, 2, 13]], 0)[0]


@next_turn.check("Are old pads told by the mask, and not by their id? The pad id is a real token of these rows too.")
def pads_by_the_mask(answer):
    given = [[7, 7, 1, 7, 5, 7], [1, 7, 7, 8, 9, 5]], [[0, 0, 1, 1], [1, 1, 1, 1]], [[7], [7, 11]]
    rows = [[1, 7, 5, 7, 7], [1, 7, 7, 8, 9, 5, 7, 11]]
    return batch_after(answer, *given, pad_id=7)[0], padded_by_places(rows, 7)[0]


@next_turn.check("Is the new mask 1 for tokens and 0 for pads, made from the lengths and not from the ids?")
def mask_from_lengths(answer):
    given = [[0, 1, 5, 0], [1, 8, 0, 5]], [[0, 1], [1, 1]], [[0], [0, 11]]
    found = [batch_after(answer, *each)[1] for each in (UNSTOPPED, given)]
    return found, [padded_by_places(rows, 0)[1] for rows in (UNSTOPPED_ROWS, [[1, 5, 0, 0], [1, 8, 0, 5, 0, 11]])]


@next_turn.check("Does each row count its positions from its own first token, and have pads the position 0?")
def positions_of_the_row(answer):
    return batch_after(answer, *UNSTOPPED)[2], padded_by_places(UNSTOPPED_ROWS, 0)[2]


@exercise("Predict before you run")
def forecast_generation() -> dict[str, float]:
    """Commit to six numbers before you run anything. The task says what each of them is.

    Returns:
        "passes": forward passes for a copy of 40 tokens, with four guesses per pass.
        "experts": different experts that the five tokens of a pass choose, of 16.
        "tokens per pass": how many tokens such a pass must yield to read no more experts per
            token than a pass without guesses.
        "two beams": the probability of the text that a search with two beams returns.
        "no mask": rows of four whose next token is predicted as without their batch, where
            the mask is forgotten.
        "columns": the same with the mask, but with positions that count the columns.
    """
    return {
        "passes": 9,  # the prompt's pass yields 1 token, seven yield 5, and the last one 4
        "experts": 16 * (1 - (1 - 4 / 16) ** 5),  # 12.2
        "tokens per pass": 16 * (1 - (1 - 4 / 16) ** 5) / 4,  # 3.05
        "two beams": 0.3 * 0.6,  # greedy 0.5 · 0.3; "and his", 0.2 · 1.0, fell out in step one
        "no mask": 2,  # the two longest prompts have no pads
        "columns": 4,  # attention depends on differences of positions alone
    }


def verdict(found: object, exact: float) -> object:
    """Compare in words, so that a message does not give the number away."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return found
    return "right" if abs(found - exact) <= 0.04 * exact else "too low" if found < exact else "too high"


def copying_passes(length: int, most: int) -> int:
    """Replay a copy of `length` different tokens, with at most `most` guesses per pass."""
    text, passes = [*range(length), -1, 0], 1  # the list, a sign, and what the prompt's pass yields
    while (left := 2 * length + 1 - len(text)) > 0:
        place = text[:-1].index(text[-1]) + 1  # the sign and a token never stood together before, two tokens did
        guesses = text[place : place + min(most, left - 1)]
        text += [*guesses, text[-1] + len(guesses) + 1]  # all of them are right, and the model adds one
        passes += 1
    assert text == [*range(length), -1, *range(length)]
    return passes


def experts_by_counting(E: int, K: int, tokens: int) -> float:
    """The mean number of different experts: from n chosen already, K more, of which some are new."""
    chances = {0: 1.0}
    for _ in range(tokens):
        after: dict[int, float] = {}
        for n, chance in chances.items():
            for new in range(max(0, K - n), min(K, E - n) + 1):
                ways = math.comb(E - n, new) * math.comb(n, K - new)
                after[n + new] = after.get(n + new, 0) + chance * ways / math.comb(E, K)
        chances = after
    return sum(n * chance for n, chance in chances.items())


TREE = {"of": (0.5, (0.3, 0.3, 0.2, 0.2)), "slept": (0.3, (0.6, 0.4)), "and": (0.2, (1.0,))}
PROMPT_LENGTHS = 9, 3, 9, 5


@forecast_generation.check("How many tokens does a pass yield if all its guesses are right, and how many the first?")
def passes_of_a_copy(answer):
    return verdict(answer()["passes"], copying_passes(40, 4)), "right"


@forecast_generation.check("With which probability do all five tokens leave out a given expert?")
def experts_of_five_tokens(answer):
    return verdict(answer()["experts"], experts_by_counting(16, 4, 5)), "right"


@forecast_generation.check("How many experts does one token read without guesses?")
def tokens_that_pay(answer):
    return verdict(answer()["tokens per pass"], experts_by_counting(16, 4, 5) / 4), "right"


@forecast_generation.check("Which two beginnings are kept after the first word, and which texts can still be reached?")
def two_beams(answer):
    kept = sorted(TREE.values(), reverse=True)[:2]
    return verdict(answer()["two beams"], max(first * second for first, rest in kept for second in rest)), "right"


@forecast_generation.check("Which of the four prompts get pads at all?")
def rows_without_pads(answer):
    return verdict(answer()["no mask"], PROMPT_LENGTHS.count(max(PROMPT_LENGTHS))), "right"


@forecast_generation.check("With rotary embedding, does attention change if all positions of a row are shifted alike?")
def shifted_rows(answer):
    return verdict(answer()["columns"], len(PROMPT_LENGTHS)), "right"
