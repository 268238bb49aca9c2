"""Exercises of lesson 04: masks from positions, padding, how far layers reach, and what a window costs."""

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


@exercise("The first position out of reach")
def first_out_of_reach(num_layers: int, window: int | None) -> int | None:
    """Find the first position whose output cannot depend on the token at position 0.

    In each layer a position gathers from itself and from the W - 1 positions before it, where
    the layer below has already gathered.

    Args:
        num_layers: L.
        window: W, which counts the query itself; None for no window.

    Returns:
        The position, or None if there is no such position.
    """
    if window is None:
        return None
    return num_layers * (window - 1) + 1


def first_dark_position(num_layers: int, window: int) -> int:
    """Spread what position 0 holds, layer by layer, over a row that is long enough."""
    informed = [True] + [False] * (num_layers * window + 1)
    for _ in range(num_layers):
        informed = [any(informed[max(0, i - window + 1) : i + 1]) for i in range(len(informed))]
    return informed.index(False)


@first_out_of_reach.check("One layer, W = 4: position 3 still sees position 0. Which is the first that does not?")
def one_layer(answer):
    return answer(1, 4), first_dark_position(1, 4)


@first_out_of_reach.check(
    "Does each layer add W - 1 positions? The query itself takes one of the W places, in each layer."
)
def several_layers(answer):
    cases = [(2, 4), (3, 4), (5, 8)]
    return [answer(*case) for case in cases], [first_dark_position(*case) for case in cases]


@first_out_of_reach.check(
    "What does W = 1 allow? A token that sees itself alone stays alone, however many layers follow."
)
def window_of_one(answer):
    return answer(32, 1), first_dark_position(32, 1)


@first_out_of_reach.check("Is the answer None without a window? Then every later position sees position 0.")
def no_window(answer):
    return answer(32, None), None


@first_out_of_reach.check("Is the position an int?", compared="its type")
def whole_number(answer):
    return type(answer(2, 3)).__name__, "int"


@exercise("How many pairs a mask allows")
def allowed_pairs(num_tokens: int, window: int | None) -> int:
    """Count the pairs of query and key that are causal and within the window.

    The query at position i sees min(i + 1, W) keys, and there is no padding. A formula does
    it, without a loop.

    Args:
        num_tokens: T.
        window: W, which counts the query itself and may be longer than the text; None for no
            window.

    Returns:
        The number of pairs, an int.
    """
    if window is None or window > num_tokens:
        window = num_tokens
    return num_tokens * window - window * (window - 1) // 2


def pairs_by_loops(num_tokens: int, window: int | None) -> int:
    return int(sum(np.minimum(np.arange(1, num_tokens + 1), window or num_tokens)))


def check_pairs(answer, cases: list[tuple[int, int | None]]) -> tuple[list, list[int]]:
    return [answer(*case) for case in cases], [pairs_by_loops(*case) for case in cases]


@allowed_pairs.check(
    "Without a window: do the queries see 1, 2, … T keys? Their sum is half of a square, and a bit more."
)
def causal_alone(answer):
    return check_pairs(answer, [(4, None), (7, None)])


@allowed_pairs.check("Do the first W - 1 queries see fewer than W keys?")
def warm_up(answer):
    return check_pairs(answer, [(6, 3), (10, 4)])


@allowed_pairs.check("May the window be longer than the text? Then it changes nothing.")
def long_window(answer):
    return check_pairs(answer, [(4, 9), (1, 4096)])


@allowed_pairs.check("Is it an exact int? Whole-number division `//` gives one, and `/` does not.")
def exact(answer):
    found = answer(131072, 4096)
    return [found, type(found).__name__], [pairs_by_loops(131072, 4096), "int"]
