"""Exercises of lesson 14: a softmax in blocks, two halves of an attention, and the tiles that are visited."""

import math

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("A softmax's sum in blocks")
def online_sum(blocks: list[Tensor]) -> tuple[float, float]:
    """Return the largest score m and the sum of exp(score - m), reading block after block.

    The scores may be large (1000), where exp overflows; nothing above exp(0) is ever needed.

    Args:
        blocks: rows of scores (n,), of any lengths, at least one of them.

    Returns:
        m and the sum.
    """
    largest, total = -math.inf, 0.0
    for block in blocks:
        new = max(largest, block.max().item())
        total = total * math.exp(largest - new) + (block - new).exp().sum().item()
        largest = new
    return largest, total


def sum_at_once(blocks: list[Tensor]) -> tuple[float, float]:
    scores = torch.cat(blocks).double().numpy()
    return float(scores.max()), float(np.exp(scores - scores.max()).sum())


@online_sum.check("Is the largest score subtracted before exp? One block alone, with a sum of two numbers.")
def one_block(answer):
    blocks = [torch.tensor([3.0, 2.0])]
    return answer(blocks), (3.0, 1 + math.exp(-1))


@online_sum.check("Is the largest score right where all are negative?")
def negative_scores(answer):
    largest, _ = answer([torch.tensor([-3.0, -2.0]), torch.tensor([-4.0])])
    return largest, -2.0


@online_sum.check("Do later blocks add to the sum, when no larger score comes?")
def falling_blocks(answer):
    blocks = [torch.tensor([3.0, 2.0]), torch.tensor([1.0]), torch.tensor([0.5, -2.0])]
    return answer(blocks), sum_at_once(blocks)


@online_sum.check("When a larger score comes, is the sum so far multiplied by exp(old largest - new largest)?")
def rising_blocks(answer):
    blocks = [torch.tensor([0.0, 1.0]), torch.tensor([3.0]), torch.tensor([2.0, 4.0])]
    return answer(blocks), sum_at_once(blocks)


@online_sum.check("Does it stay finite for large scores?")
def large_scores(answer):
    blocks = [torch.tensor([999.0]), torch.tensor([1000.0, 998.0])]
    return answer(blocks), sum_at_once(blocks)


@exercise("Two halves of an attention, merged")
def merge_attention(
    out1: Tensor,
    largest1: Tensor,
    total1: Tensor,
    out2: Tensor,
    largest2: Tensor,
    total2: Tensor,
) -> Tensor:
    """Merge the attention of the same queries to two sets of keys.

    Each half is complete in itself: `out = Σ_j exp(s_j - m) v_j / l`, with m the half's
    largest score and l its sum of exp(s_j - m).

    Args:
        out1, out2: (T, Dh), what each half gathered, already divided by its sum.
        largest1, largest2: (T,), the halves' m.
        total1, total2: (T,), the halves' l.

    Returns:
        (T, Dh), the attention to all keys together.
    """
    largest = torch.maximum(largest1, largest2)
    share1, share2 = total1 * (largest1 - largest).exp(), total2 * (largest2 - largest).exp()
    return (out1 * share1[:, None] + out2 * share2[:, None]) / (share1 + share2)[:, None]


def half(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    largest = scores.amax(1)
    weights = (scores - largest[:, None]).exp()
    return weights @ values / weights.sum(1, keepdim=True), largest, weights.sum(1)


def halves_and_whole(scores: Tensor, values: Tensor, cut: int) -> tuple[tuple[Tensor, ...], np.ndarray]:
    s, v = scores.double().numpy(), values.double().numpy()
    weights = np.exp(s - s.max(1, keepdims=True))
    whole = (weights / weights.sum(1, keepdims=True)) @ v
    return (*half(scores[:, :cut], values[:cut]), *half(scores[:, cut:], values[cut:])), whole


@merge_attention.check("Does a half with more weight count more? All scores are equal, and one half has 3 of 4 keys.")
def by_number_of_keys(answer):
    parts, whole = halves_and_whole(torch.zeros(1, 4), torch.tensor([[0.0], [0.0], [0.0], [8.0]]), cut=3)
    return answer(*parts), whole


@merge_attention.check("Are the sums brought to one largest score before they are compared?")
def different_largest(answer):
    parts, whole = halves_and_whole(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0], [2.0]]), cut=1)
    return answer(*parts), whole


@merge_attention.check("Does each query have shares of its own?")
def own_shares(answer):
    parts, whole = halves_and_whole(torch.randn(5, 7) * 3, torch.randn(7, 4), cut=3)
    return answer(*parts), whole


@merge_attention.check("Does it stay finite for large scores?")
def large_halves(answer):
    parts, whole = halves_and_whole(torch.tensor([[500.0, 499.0], [-500.0, -501.0]]), torch.randn(2, 3), cut=1)
    return answer(*parts), whole


@exercise("The tiles that are visited")
def visited_tiles(num_tokens: int, block: int, window: int) -> list[tuple[int, int]]:
    """List the tiles in which some query sees some key.

    Tile (a, b) has the queries a·block … and the keys b·block …, `block` of each. A query at
    position i sees the keys j with 0 <= i - j < window.

    Args:
        num_tokens: T, a multiple of `block`.
        block: tokens in a block.
        window: W, at least 1.

    Returns:
        pairs (a, b), in rising order.
    """
    tiles = []
    for a in range(num_tokens // block):
        oldest = max(0, a * block - window + 1)  # key that the first query of the block sees
        tiles += [(a, b) for b in range(oldest // block, a + 1)]
    return tiles


def tiles_by_pairs(T: int, block: int, window: int) -> list[tuple[int, int]]:
    return sorted({(i // block, j // block) for i in range(T) for j in range(T) if 0 <= i - j < window})


@visited_tiles.check("Without a window in reach, is every tile up to the diagonal visited, and none above it?")
def causal_only(answer):
    return answer(12, 4, 12), tiles_by_pairs(12, 4, 12)


@visited_tiles.check("Is a tile left out that is older than the window of all its queries?")
def older_than_the_window(answer):
    return (4, 0) in answer(20, 4, 4), False


@visited_tiles.check("Is the query's own position counted in W? Here a block is one token.")
def own_position(answer):
    return answer(6, 1, 3), tiles_by_pairs(6, 1, 3)


@visited_tiles.check("Is the first query of a block asked, which looks back the furthest?")
def first_query_of_a_block(answer):
    return answer(20, 4, 6), tiles_by_pairs(20, 4, 6)
