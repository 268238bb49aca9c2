"""Exercises of lesson 04: masks from positions, padding, attention in blocks and its price, how far layers reach."""

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.comparison import form
from mixtral_edu.exercises.framework import exercise


@exercise("A sliding window, from positions")
def band_mask(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """Say which query may attend to which key: to itself and to the W - 1 positions before it.

        0 <= i - j < W

    Args:
        query_positions: (T,) integers, the position i of each query.
        key_positions: (S,) integers, the position j of each key, in any order.
        window: W.

    Returns:
        (T, S) booleans, True where the query may attend.
    """
    distance = query_positions[:, None] - key_positions  # (T, S)
    return (distance >= 0) & (distance < window)


def window_by_loops(queries: list[int], keys: list[int], window: int) -> Tensor:
    return torch.tensor([[j <= i and i - j < window for j in keys] for i in queries])


@band_mask.check("Is there a row for each query and a column for each key, and is each entry True or False?")
def shape_and_dtype(answer):
    return form(answer(torch.tensor([3, 4]), torch.arange(4), 10)), "bool (2, 4)"


@band_mask.check(
    "Is an entry True where the query may attend, its own position included?", compared="the last query's row"
)
def true_means_seen(answer):
    positions = torch.arange(4)
    return answer(positions, positions, 10)[3], torch.ones(4, dtype=torch.bool)


@band_mask.check("May no query see a later position?")
def no_future(answer):
    positions = torch.arange(4)
    return answer(positions, positions, 10), torch.ones(4, 4, dtype=torch.bool).tril()


@band_mask.check("Is the query's own position counted in W? With W = 3 it sees itself and two more.")
def itself_counted(answer):
    positions = torch.arange(6)
    return answer(positions, positions, 3), window_by_loops([*range(6)], [*range(6)], 3)


@band_mask.check("Is the mask made from the positions, not from the columns? A ring keeps keys in another order.")
def any_order(answer):
    queries, keys = [9, 10], [8, 9, 10, 7]
    return answer(torch.tensor(queries), torch.tensor(keys), 3), window_by_loops(queries, keys, 3)


@exercise("A mask for a padded batch")
def padded_window_mask(real: Tensor, window: int) -> Tensor:
    """Combine three rules for a batch of texts: causal, window, and no padding.

    Query t sees key s of the same row if both are tokens and 0 <= t - s < W. A padded query
    sees nothing, and nobody sees a padded key.

    Args:
        real: (B, T) integers, 1 for a token and 0 for padding: a tokenizer's `attention_mask`.
        window: W, which counts the query itself.

    Returns:
        (B, T, T) booleans: row of the batch, query, key.
    """
    columns = torch.arange(real.shape[1], device=real.device)
    distance = columns[:, None] - columns  # (T, T)
    in_reach = (distance >= 0) & (distance < window)
    token = real.bool()
    return in_reach & token[:, :, None] & token[:, None, :]  # (B, T, T)


def padded_by_loops(real: list[list[int]], window: int) -> Tensor:
    return torch.tensor(
        [
            [[bool(q and k) and s <= t and t - s < window for s, k in enumerate(row)] for t, q in enumerate(row)]
            for row in real
        ]
    )


def check_padded(answer, real: list[list[int]], window: int) -> tuple[object, Tensor]:
    return answer(torch.tensor(real), window), padded_by_loops(real, window)


@padded_window_mask.check("Without padding: is each row's mask causal, with W keys at most, the query's own included?")
def without_padding(answer):
    return check_padded(answer, [[1] * 5] * 2, 3)


@padded_window_mask.check("Is a padded key hidden from everybody?")
def padded_keys(answer):
    mask = answer(torch.tensor([[0, 0, 1, 1, 1]]), 4)
    return mask[0, 2:], padded_by_loops([[0, 0, 1, 1, 1]], 4)[0, 2:]  # the rows of real queries alone


@padded_window_mask.check("Does a padded query see nothing, not even itself?")
def padded_queries(answer):
    return check_padded(answer, [[0, 0, 1, 1, 1]], 4)


@padded_window_mask.check("Does each text of the batch get a mask from its own padding?")
def own_padding(answer):
    return check_padded(answer, [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]], 2)


@padded_window_mask.check(
    "With padding on the right: are tokens where `real` says so, and is a padded query's row all False?"
)
def padding_on_the_right(answer):
    return check_padded(answer, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], 3)


def blocks_with_faults(q, k, v, window, size):
    T, Dh = q.shape
    out = torch.zeros_like(v)
    for start in range(0, T // size * size, size):
        stop = start + size
        first = max(0, stop - window)
        i = torch.arange(start, stop)[:, None]
        j = torch.arange(first, stop)
        scores = q[start:stop] @ k[first:stop].T / Dh**0.5
        hidden = (j > i) | (i - j > window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out[start:stop] = weights @ v[first:stop]
    return out


@exercise("Attention in blocks: three faults, found by their symptoms", faulty=blocks_with_faults)
def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, size: int) -> Tensor:
    """Compute one head's attention with a window in blocks of queries, each with few keys.

    A colleague's code below runs. Three symptoms, seen when it is compared with the whole
    table of scores:
    1. With blocks of one query all is right. With larger blocks only the last query of a block
       sees all of its keys; those before it miss their oldest ones.
    2. Once that is mended, queries at positions from W on see one key too many, except for
       the first query of each block.
    3. For T = 10 and size = 4 the last two rows of the result are zeros.

    Args:
        q, k, v: (T, Dh) each, positions 0 to T - 1.
        window: W, which counts the query itself.
        size: queries per block; the last block may be shorter.

    Returns:
        (T, Dh). A block computes scores with the W - 1 keys before its first query and with
        its own, and with no others.
    """
    T, Dh = q.shape
    out = torch.zeros_like(v)
    for start in range(0, T, size):
        stop = min(start + size, T)
        first = max(0, start - (window - 1))  # the oldest key that the first query sees
        i = torch.arange(start, stop)[:, None]
        j = torch.arange(first, stop)
        scores = q[start:stop] @ k[first:stop].T / Dh**0.5
        hidden = (j > i) | (i - j >= window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out[start:stop] = weights @ v[first:stop]
    return out


def attention_by_loops(q: Tensor, k: Tensor, v: Tensor, window: int) -> np.ndarray:
    q, k, v = (each.double().numpy() for each in (q, k, v))
    rows = []
    for i in range(len(q)):
        seen = slice(max(0, i - window + 1), i + 1)
        weights = np.exp(k[seen] @ q[i] / q.shape[1] ** 0.5)
        rows.append(weights @ v[seen] / weights.sum())
    return np.array(rows)


def check_blocks(answer, T: int, window: int, size: int, rows: slice) -> tuple[Tensor, np.ndarray]:
    q, k, v = torch.randn(3, T, 5)
    return answer(q, k, v, window, size)[rows], attention_by_loops(q, k, v, window)[rows]


@attend_blocks.check("Is the result (T, Dh), in the dtype of v?")
def a_row_for_each_query(answer):
    return form(answer(*torch.randn(3, 8, 5), 3, 4)), "float32 (8, 5)"


@attend_blocks.check(
    "Symptom 1: which query of a block has the oldest key? The first one sees back to start - (W - 1), and so must the "
    "block's keys.",
    compared="the row of query 4, which sees keys 0 to 4: W = 5, blocks of 4",
)
def oldest_key_of_a_block(answer):
    return check_blocks(answer, 8, 5, 4, slice(4, 5))


@attend_blocks.check(
    "Symptom 2: does W count the query itself? A key W positions back is out of sight already.",
    compared="the rows of queries 4 to 7: W = 3, blocks of 4",
)
def own_position_counted(answer):
    return check_blocks(answer, 8, 3, 4, slice(4, 8))


@attend_blocks.check(
    "Symptom 3: is the last block computed too where it is shorter than the others?",
    compared="the last two rows of T = 10 with blocks of 4",
)
def shorter_last_block(answer):
    return check_blocks(answer, 10, 4, 4, slice(8, 10))


@attend_blocks.check("Is every row right, also where the window is longer than the text, or 1?")
def every_row(answer):
    found, expected = zip(*(check_blocks(answer, 11, window, 3, slice(None)) for window in (1, 2, 6, 20)), strict=True)
    return list(found), list(expected)


@attend_blocks.check(
    "Does a block leave out the keys that none of its queries sees? Here old keys and values are NaN, and 0 · NaN is "
    "NaN.",
    compared="rows 8 to 11 where keys and values 0 to 5 are NaN: W = 3, blocks of 4",
)
def old_keys_left_out(answer):
    q, k, v = torch.randn(3, 12, 5)
    expected = attention_by_loops(q, k, v, 3)[8:]
    k[:6], v[:6] = float("nan"), float("nan")
    return answer(q, k, v, 3, 4)[8:], expected


@exercise("What blocks compute in vain")
def scores_in_blocks(num_tokens: int, window: int, size: int) -> int:
    """Count the scores that attention computes in blocks of queries, hidden ones included.

    A block of queries computes a score with each of its own positions, and with each of the
    W - 1 positions before its first query, as far as there are any.

    Args:
        num_tokens: T.
        window: W, which counts the query itself and may be longer than the text.
        size: queries per block; the last block may be shorter.

    Returns:
        The number of scores, an int.
    """
    total = 0
    for start in range(0, num_tokens, size):
        stop = min(start + size, num_tokens)
        total += (stop - start) * (stop - max(0, start - (window - 1)))
    return total


def scores_by_loops(num_tokens: int, window: int, size: int) -> int:
    """Mark the scores in a table, one by one."""
    table = np.zeros((num_tokens, num_tokens), dtype=bool)
    for i in range(num_tokens):
        begin = i // size * size
        table[i, [j for j in range(num_tokens) if begin - window < j < begin + size]] = True
    return int(table.sum())


def check_scores(answer, cases: list[tuple[int, int, int]]) -> tuple[list, list[int]]:
    return [answer(*case) for case in cases], [scores_by_loops(*case) for case in cases]


@scores_in_blocks.check("In a single block, does each of its queries meet each of its keys, hidden or not?")
def one_block(answer):
    return check_scores(answer, [(4, 4, 4), (3, 1, 3)])


@scores_in_blocks.check(
    "Has a later block size + W - 1 keys? With blocks of one query it computes what the mask allows, and no more."
)
def later_blocks(answer):
    return check_scores(answer, [(6, 3, 1), (12, 3, 4)])


@scores_in_blocks.check("Near the beginning, are there fewer than W - 1 keys before a block?")
def first_blocks(answer):
    return check_scores(answer, [(8, 7, 2), (6, 9, 3)])


@scores_in_blocks.check("Is the last block shorter where size does not divide T, in queries and in keys?")
def last_block(answer):
    return check_scores(answer, [(10, 3, 4), (5, 2, 8)])


@scores_in_blocks.check("Is it an exact int?")
def exact(answer):
    found = answer(2**20, 4096, 64)
    expected = 64 * 64 * sum(range(1, 65)) + (2**14 - 64) * 64 * 4159  # 64 blocks grow to 4,096 keys, others have 4,159
    return [found, type(found).__name__], [expected, "int"]


@exercise("The reach of layers with different windows")
def first_out_of_reach(windows: list[int | None]) -> int | None:
    """Find the first position whose output cannot depend on the token at position 0.

    In each layer a position gathers from itself and from the W - 1 positions before it, where
    the layer below has already gathered. Each layer has a window of its own, or none.

    Args:
        windows: for each layer its W, which counts the query itself; None for no window.

    Returns:
        The position, an int; None if every position can depend on the token at position 0.
    """
    if None in windows:
        return None
    return sum(window - 1 for window in windows) + 1


def first_dark_position(windows: list[int | None]) -> int | None:
    """Spread what position 0 holds, layer by layer, over a row that is long enough."""
    longest = sum(window or 0 for window in windows) + 2
    informed = [True] + [False] * (longest - 1)
    for window in windows:
        informed = [any(informed[max(0, i - (window or longest) + 1) : i + 1]) for i in range(longest)]
    return informed.index(False) if False in informed else None


def check_reach(answer, cases: list[list[int | None]]) -> tuple[list, list[int | None]]:
    return [answer(list(case)) for case in cases], [first_dark_position(case) for case in cases]


@first_out_of_reach.check("One layer, W = 4: position 3 still sees position 0. Which is the first that does not?")
def one_layer(answer):
    return check_reach(answer, [[4], [1]])


@first_out_of_reach.check(
    "Does each layer add W - 1 positions? The query itself takes one of the W places, in each layer."
)
def several_layers(answer):
    return check_reach(answer, [[4, 4], [8, 8, 8], [1, 1, 1, 1]])


@first_out_of_reach.check("Does each layer add what its own window allows, in whatever order they come?")
def own_windows(answer):
    return check_reach(answer, [[2, 9], [9, 2], [3, 1, 6]])


@first_out_of_reach.check("Is one layer without a window enough to reach everything, wherever it is in the stack?")
def one_full_layer(answer):
    return check_reach(answer, [[None], [4, None], [None, 4], [4, None, 4]])


@first_out_of_reach.check("Is the position an int?", compared="its type")
def whole_number(answer):
    return type(answer([3, 3])).__name__, "int"


@exercise("How many layers a distance takes")
def layers_needed(distance: int, window: int) -> int | None:
    """Find how many layers it takes until a token can depend on the one `distance` before it.

    All layers have the same window, which counts the query itself. A token knows itself
    before any layer.

    Args:
        distance: how many positions back the other token is, 0 or more.
        window: W, at least 1.

    Returns:
        The smallest number of layers, an exact int; None if no number of them suffices.
    """
    if distance == 0:
        return 0
    if window == 1:
        return None
    return -(-distance // (window - 1))  # rounds up, exactly


def layers_by_steps(distance: int, window: int) -> int | None:
    layers = 0
    while distance > 0:
        if window == 1:
            return None
        distance, layers = distance - (window - 1), layers + 1
    return layers


def check_layers(answer, cases: list[tuple[int, int]]) -> tuple[list, list[int | None]]:
    return [answer(*case) for case in cases], [layers_by_steps(*case) for case in cases]


@layers_needed.check("Within the window, does one layer suffice? It sees W - 1 positions back.")
def within_the_window(answer):
    return check_layers(answer, [(1, 4), (3, 4)])


@layers_needed.check("Is a part of a step a layer too? With W = 4, five back is more than one layer's three.")
def rounded_up(answer):
    return check_layers(answer, [(5, 4), (10, 8)])


@layers_needed.check("Does each layer go W - 1 back, and not W? The query itself takes one of the places.")
def not_w(answer):
    return check_layers(answer, [(4, 4), (32, 9), (131071, 4096)])


@layers_needed.check("Is a distance of 0 reached without any layer, and what does a window of 1 reach?")
def nothing_to_do(answer):
    return check_layers(answer, [(0, 4), (0, 1), (5, 1)])


@layers_needed.check("Is it exact, however far? `/` makes floats, which have 16 digits; `//` keeps integers.")
def exact_however_far(answer):
    return answer(10**17 + 1, 4), 33333333333333334
