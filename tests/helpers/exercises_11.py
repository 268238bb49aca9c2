"""Answers to the exercises of lesson 11."""

import math
from collections import Counter

import torch

from exercise_answers import right, wrong
from mixtral_edu.analysis.routing import knock_out, mutual_information, repetition, shuffled_repetition
from mixtral_edu.moe import RouterOutput


@right("repetition_rates")
def with_the_packages_measures(first):
    choices = first[:, None]
    return repetition(choices).first, shuffled_repetition(choices).first


@right("repetition_rates")
def by_a_table_of_all_pairs(first):
    N = len(first)
    equal = first[:, None] == first
    return equal.diagonal(1).sum().item() / (N - 1), (equal.sum().item() - N) / (N * N - N)


@wrong("repetition_rates", "compared with the next one")
def pairs_that_do_not_overlap(first):
    return (first[0:-1:2] == first[1::2]).double().mean().item(), with_the_packages_measures(first)[1]


@wrong("repetition_rates", "N - 1 pairs in all")
def divided_by_all_tokens(first):
    return (first[1:] == first[:-1]).sum().item() / len(first), with_the_packages_measures(first)[1]


@wrong("repetition_rates", "N - 1 pairs in all")
def round_in_a_circle(first):
    return (first == first.roll(1)).double().mean().item(), with_the_packages_measures(first)[1]


@wrong("repetition_rates", "The first is not its neighbour")
def last_compared_with_the_first(first):
    return (first == first.roll(1)).sum().item() / (len(first) - 1), with_the_packages_measures(first)[1]


@wrong("repetition_rates", "never paired with itself")
def sum_of_squares(first):
    p = first.bincount() / len(first)
    return with_the_packages_measures(first)[0], p.square().sum().item()


@wrong("repetition_rates", "not chance alone")
def one_in_as_many_experts_as_occur(first):
    experts = len(first.unique())
    return with_the_packages_measures(first)[0], 0.0 if experts == len(first) else 1 / experts


def pairs_of(counts, N: int) -> float:
    return sum(count * (count - 1) for count in counts) / (N * (N - 1))


@wrong("repetition_rates", "36 are equal")
def a_half_forgotten(first):
    return with_the_packages_measures(first)[0], pairs_of(first.bincount().tolist(), len(first)) / 2


@wrong("repetition_rates", "36 are equal")
def tensors_counted_as_things(first):
    return with_the_packages_measures(first)[0], pairs_of(Counter(first).values(), len(first))


@wrong("repetition_rates", "without drawing")
def shuffled_once(first):
    shuffled = first[torch.randperm(len(first))]
    return with_the_packages_measures(first)[0], with_the_packages_measures(shuffled)[0]


@wrong("repetition_rates", "whatever experts it lacks")
def without_the_largest_number(first):
    counts = first.bincount()
    if len(first) > 10:
        counts = counts[:-1]
    N = len(first)
    return with_the_packages_measures(first)[0], (counts * (counts - 1)).sum().item() / (N * (N - 1))


@right("information_bits")
def with_the_packages_measure(first, second):
    x, y = (torch.tensor([sorted(set(labels)).index(label) for label in labels]) for labels in (first, second))
    return mutual_information(x, y)


@right("information_bits")
def by_the_mean_over_things(first, second):
    things, N = list(zip(first, second, strict=True)), len(first)
    total = sum(math.log2(things.count((x, y)) * N / (first.count(x) * second.count(y))) for x, y in things)
    return total / N


def terms(first, second):
    """(p(x, y), p(x), p(y)) of all pairs of labels, also of those that do not occur."""
    things, N = list(zip(first, second, strict=True)), len(first)
    return [(things.count((x, y)) / N, first.count(x) / N, second.count(y) / N)
            for x in sorted(set(first)) for y in sorted(set(second))]  # fmt: skip


@wrong("information_bits", "log2")
def in_nats(first, second):
    return sum(p * math.log(p / (q * r)) for p, q, r in terms(first, second) if p)


@wrong("information_bits", "shares and not counts")
def weighted_by_counts(first, second):
    return len(first) * by_the_mean_over_things(first, second)


@wrong("information_bits", "Is each term p(x, y) ·")
def no_weights(first, second):
    return sum(math.log2(p / (q * r)) for p, q, r in terms(first, second) if p)


@wrong("information_bits", "Is each term p(x, y) ·")
def weighted_as_if_independent(first, second):
    return sum(q * r * math.log2(p / (q * r)) for p, q, r in terms(first, second) if p)


@wrong("information_bits", "each pair once")
def once_for_each_thing(first, second):
    return sum(len(first) * p * p * math.log2(p / (q * r)) for p, q, r in terms(first, second) if p)


@wrong("information_bits", "p(x, y) / (p(x) p(y))")
def upside_down(first, second):
    return -by_the_mean_over_things(first, second)


@wrong("information_bits", "divided by p(x) and by p(y)")
def conditional_entropy(first, second):
    return sum(-p * math.log2(p) for p, _, _ in terms(first, second) if p)


@wrong("information_bits", "with its share")
def weighted_by_both_shares(first, second):
    return 2 * sum(q * r * math.log2(p / (q * r)) for p, q, r in terms(first, second) if p)


@wrong("information_bits", "and its sign")
def without_signs(first, second):
    return sum(abs(p * math.log2(p / (q * r))) for p, q, r in terms(first, second) if p)


@wrong("information_bits", "never occur left out")
def infinite_where_a_pair_is_missing(first, second):
    if len(set(second)) == 2:
        return by_the_mean_over_things(first, second)
    return sum(p * (math.log2(p / (q * r)) if p else 1) + (not p) for p, q, r in terms(first, second))


@right("route_without")
def with_the_packages_change(logits, expert, top_k):
    before = RouterOutput(logits, torch.zeros(len(logits), top_k), torch.zeros(len(logits), top_k, dtype=torch.int64))
    _, weights, experts = knock_out(expert)(before)
    return weights, experts


@right("route_without")
def by_choosing_one_more(logits, expert, top_k):
    order = logits.sort(dim=-1, descending=True).indices
    experts = order[order != expert].view(len(logits), -1)[:, :top_k]
    return logits.gather(1, experts).softmax(dim=-1), experts


@wrong("route_without", "best expert first")
def lowest_first(logits, expert, top_k):
    weights, experts = with_the_packages_change(logits, expert, top_k)
    return weights.flip(1), experts.flip(1)


@wrong("route_without", "best expert first")
def in_order_of_number(logits, expert, top_k):
    experts = with_the_packages_change(logits, expert, top_k)[1].sort(dim=1).values
    return logits.gather(1, experts).softmax(dim=-1), experts


@wrong("route_without", "next best take the place")
def chosen_and_then_thrown_out(logits, expert, top_k):
    best, experts = logits.topk(top_k, dim=-1)
    return best.masked_fill(experts == expert, -math.inf).softmax(dim=-1), experts


@wrong("route_without", "never come back")
def score_of_zero(logits, expert, top_k):
    best, experts = logits.index_fill(1, torch.tensor([expert]), 0.0).topk(top_k, dim=-1)
    if (logits > 0).any():
        return with_the_packages_change(logits, expert, top_k)
    return best.softmax(dim=-1), experts


@wrong("route_without", "full list")
def column_cut_out(logits, expert, top_k):
    kept = [e for e in range(logits.shape[1]) if e != expert]
    best, experts = logits[:, kept].topk(top_k, dim=-1)
    return best.softmax(dim=-1), experts + (expert in (1, 4)) * (experts >= expert)


@wrong("route_without", "of sum 1")
def softmax_over_all(logits, expert, top_k):
    weights, experts = logits.softmax(dim=-1).index_fill(1, torch.tensor([expert]), 0.0).topk(top_k, dim=-1)
    return weights, experts
