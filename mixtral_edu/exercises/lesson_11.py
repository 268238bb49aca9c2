"""Exercises of lesson 11: repetition and its shuffle, mutual information, and a router without one of its experts."""

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("Repetition, and what a shuffle leaves of it")
def repetition_rates(first: Tensor) -> tuple[float, float]:
    """Say how often neighbouring tokens have the same first expert, in order and shuffled.

    Args:
        first: (N,), the first expert of each token of one text, in its order; N is at least 2.

    Returns:
        The share of the N - 1 neighbouring pairs whose experts are equal, and the mean of
        that share over all orders of the tokens: the share of all pairs of two different
        tokens, neighbours or not, whose experts are equal. (Nothing is drawn at random.)
    """
    counts = first.bincount()
    equal_pairs = (counts * (counts - 1)).sum() / (len(first) * (len(first) - 1))
    return (first[1:] == first[:-1]).double().mean().item(), equal_pairs.item()


def rates_by_loops(first: Tensor) -> tuple[float, float]:
    c = first.tolist()
    neighbours = [a == b for a, b in zip(c, c[1:], strict=False)]
    pairs = [c[i] == c[j] for i in range(len(c)) for j in range(i)]
    return sum(neighbours) / len(neighbours), sum(pairs) / len(pairs)


@repetition_rates.check("Is each token compared with the next one, N - 1 pairs in all?")
def next_token(answer):
    return answer(torch.tensor([4, 4, 4, 1, 1, 2]))[0], 3 / 5


@repetition_rates.check("Is the last token left without a next one? The first is not its neighbour.")
def last_without_a_next(answer):
    return answer(torch.tensor([3, 3, 0, 3]))[0], 1 / 3


@repetition_rates.check("Is a token never paired with itself? Of N tokens all different, no pair is equal.")
def not_with_itself(answer):
    return answer(torch.tensor([5, 2, 7, 0]))[1], 0.0


@repetition_rates.check(
    "Is the second number the exact share of equal pairs among all pairs, without drawing, and not chance alone? "
    "Of nine zeros and a one there are 45 pairs, and 36 are equal."
)
def skewed_load(answer):
    return answer(torch.tensor([0] * 9 + [1]))[1], 0.8


@repetition_rates.check("Are both right for a longer text, whatever experts it lacks?")
def longer_text(answer):
    first = torch.tensor([1, 6, 6])[torch.randint(3, (40,))]
    return answer(first), rates_by_loops(first)


@exercise("Mutual information of two lists")
def information_bits(first: list, second: list) -> float:
    """Say how many bits one list of labels tells about the other.

        I = Σ p(x, y) · log2( p(x, y) / (p(x) · p(y)) )

    over the pairs (x, y) that occur, with p the shares among the N things.

    Args:
        first: N labels, such as experts: numbers or words.
        second: N labels of the same things, such as domains.

    Returns:
        The mutual information, in bits.
    """
    N = len(first)
    both = Counter(zip(first, second, strict=True))
    x_count, y_count = Counter(first), Counter(second)
    bits = 0.0
    for (x, y), n in both.items():
        bits += n / N * math.log2(n * N / (x_count[x] * y_count[y]))  # shares n / N and so on
    return bits


def information_of_table(table: list[list[int]]) -> float:
    """The same from a table of counts, by numpy, as H(X) + H(Y) - H(X, Y)."""
    p = np.array(table) / np.sum(table)
    entropies = [-np.sum(q[q > 0] * np.log2(q[q > 0])) for q in (p.sum(0), p.sum(1), p)]
    return float(entropies[0] + entropies[1] - entropies[2])


def lists_of(table: list[list[int]]) -> tuple[list, list]:
    cells = [(x, y) for x, row in enumerate(table) for y, count in enumerate(row) for _ in range(count)]
    return [x for x, _ in cells], ["abc"[y] for _, y in cells]


@information_bits.check(
    "Is each term p(x, y) · log2(p(x, y) / (p(x) p(y))), with shares and not counts, each pair once? "
    "Labels that fix each other, two of them equally often: 1 bit."
)
def in_bits(answer):
    return answer([0, 0, 1, 1], ["a", "a", "b", "b"]), 1.0


@information_bits.check("Is p(x, y) divided by p(x) and by p(y)? Labels that have nothing to do with each other: 0.")
def independent(answer):
    return answer(*lists_of([[2, 4, 6], [1, 2, 3]])), 0.0


@information_bits.check("Does each term count with its share p(x, y) and its sign, so that rare pairs count little?")
def weighted(answer):
    table = [[9, 1], [1, 3]]
    return answer(*lists_of(table)), information_of_table(table)


@information_bits.check("Are pairs that never occur left out, and is it right for different numbers of labels?")
def missing_pairs(answer):
    table = [[5, 0, 1], [0, 7, 0], [2, 0, 0], [0, 3, 6]]
    return answer(*lists_of(table)), information_of_table(table)


@exercise("A router that must do without one expert")
def route_without(logits: Tensor, expert: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose and weigh the `top_k` best experts of each token, with one of them knocked out.

    The next best takes its place. The weights are the softmax over the chosen scores.

    Args:
        logits: (N, E), each token's scores for the experts; left as they are.
        expert: the one that may not be chosen, 0 to E - 1.
        top_k: K, the number of experts a token, less than E.

    Returns:
        weights (N, K) and experts (N, K); the best expert of a token first.
    """
    logits = logits.clone()
    logits[:, expert] = -torch.inf
    best, experts = logits.topk(top_k, dim=-1)
    return best.softmax(dim=-1), experts


def without_by_loops(logits: Tensor, expert: int, top_k: int) -> tuple[np.ndarray, Tensor]:
    weights, chosen = [], []
    for row in logits.tolist():
        order = sorted((e for e in range(len(row)) if e != expert), key=lambda e: -row[e])[:top_k]
        exps = np.exp(np.array([row[e] for e in order]) - row[order[0]])
        weights.append(exps / exps.sum())
        chosen.append(order)
    return np.array(weights), torch.tensor(chosen)


@route_without.check("Is the best expert first, and are tokens that did not want the expert routed as always?")
def others_as_always(answer):
    logits = torch.tensor([[0.5, 2.0, 3.0, -1.0], [2.0, -0.5, 0.0, -1.0]])
    return answer(logits, 3, 2)[1], torch.tensor([[2, 1], [0, 2]])


@route_without.check("Does the next best take the place, so that each token still has K experts?")
def next_best(answer):
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    return answer(logits, 1, 2)[1], torch.tensor([[0, 2], [3, 2]])


@route_without.check("Can the expert never come back? A score of 0 still beats negative ones; -inf beats none.")
def all_scores_negative(answer):
    logits = -1 - torch.rand(5, 6)
    return answer(logits, 4, 3)[1], without_by_loops(logits, 4, 3)[1]


@route_without.check("Do the numbers name the experts of the full list, also those behind the one left out?")
def numbers_stay(answer):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    return answer(logits, 0, 2)[1], torch.tensor([[4, 3]])


@route_without.check("Are the weights the softmax of the K scores that remain, of sum 1?")
def weights_of_those_chosen(answer):
    logits = torch.randn(7, 5)
    return answer(logits, 2, 3), without_by_loops(logits, 2, 3)
