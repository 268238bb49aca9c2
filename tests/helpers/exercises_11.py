"""Answers to the exercises of lesson 11."""

import math
from collections import Counter
from functools import partial

import torch

from exercise_answers import right, wrong
from mixtral_edu.analysis.routing import entropy, mutual_information, repetition, shuffled_repetition
from mixtral_edu.exercises.lesson_11 import pooled_baseline


def block_means(experts, expert, block):
    hits = (experts == expert).any(dim=1).double().tolist()
    return [sum(hits[start : start + block]) / block for start in range(0, len(hits), block)]


@right("load_gap")
def gap_by_lists(first, second, expert, block):
    loads, squared = [], 0.0
    for experts in (first, second):
        means = block_means(experts, expert, block)
        n = len(means)
        loads.append(sum(means) / n)
        squared += sum((each - loads[-1]) ** 2 for each in means) / (n - 1) / n
    return loads[0] - loads[1], math.sqrt(squared)


def gap_with(first, second, expert, block, error):
    return gap_by_lists(first, second, expert, block)[0], error


@wrong("load_gap", "first text's tokens minus")
def second_minus_first(first, second, expert, block):
    gap, error = gap_by_lists(first, second, expert, block)
    return -gap, error


@wrong("load_gap", "whichever of the K choices")
def first_choice_only(first, second, expert, block):
    return gap_by_lists(first[:, :1], second[:, :1], expert, block)


@wrong("load_gap", "and not that of the tokens")
def spread_of_tokens(first, second, expert, block):
    return gap_with(first, second, expert, block, gap_by_lists(first, second, expert, 1)[1])


@wrong("load_gap", "with n - 1")
def divided_by_n(first, second, expert, block):
    squared = sum(
        torch.tensor(block_means(x, expert, block)).var(correction=0) * block / len(x) for x in (first, second)
    )
    return gap_with(first, second, expert, block, squared.sqrt().item())


@wrong("load_gap", "over √n")
def deviation_of_the_blocks(first, second, expert, block):
    squared = sum(torch.tensor(block_means(x, expert, block)).var() for x in (first, second))
    return gap_with(first, second, expert, block, squared.sqrt().item())


@wrong("load_gap", "as squares")
def errors_added(first, second, expert, block):
    errors = sum(torch.tensor(block_means(x, expert, block)).std() / (len(x) / block) ** 0.5 for x in (first, second))
    return gap_with(first, second, expert, block, errors.item())


@wrong("load_gap", "its own number of blocks")
def one_number_of_blocks(first, second, expert, block):
    variances = [torch.tensor(block_means(x, expert, block)).var().item() for x in (first, second)]
    return gap_with(first, second, expert, block, math.sqrt(sum(variances) / (len(first) / block)))


@wrong("load_gap", "Do both texts add")
def error_of_the_first(first, second, expert, block):
    deviation = torch.tensor(block_means(first, expert, block)).std()
    return gap_with(first, second, expert, block, (deviation / (len(first) / block) ** 0.5).item())


@right("order_adds")
def with_the_packages_measures(texts):
    return sum(repetition(text).any - shuffled_repetition(text).any for text in texts) / len(texts)


@wrong("order_adds", "Symptom 1")
def the_code_as_it_stands(texts):
    return pooled_baseline(texts)


@wrong("order_adds", "Symptom 1")
def only_the_diagonal_mended(texts):
    pooled = torch.cat(texts)
    return repetition(pooled).any - shuffled_repetition(pooled).any


@wrong("order_adds", "in order and in the baseline")
def neighbours_across_the_border(texts):
    pooled = torch.cat(texts)
    return repetition(pooled).any - sum(shuffled_repetition(text).any for text in texts) / len(texts)


@wrong("order_adds", "Symptom 2")
def each_text_with_its_diagonal(texts):
    return sum(pooled_baseline([text]) for text in texts) / len(texts)


@wrong("order_adds", "not only the first")
def a_dropped_column(texts):
    return with_the_packages_measures([text[:, :1] for text in texts])


@wrong("order_adds", "not only the first")
def the_same_place_of_the_list(texts):
    total = 0.0
    for text in texts:
        same = (text[:, None] == text[None]).any(dim=2).double()
        N = len(text)
        total += same.diagonal(1).mean().item() - (same.sum().item() - N) / (N * (N - 1))
    return total / len(texts)


@wrong("order_adds", "with nothing drawn")
def fifty_shuffles(texts):
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for text in texts:
        mixed = [repetition(text[torch.randperm(len(text), generator=generator)]).any for _ in range(50)]
        total += repetition(text).any - sum(mixed) / 50
    return total / len(texts)


@wrong("order_adds", "count equally")
def each_token_equally(texts):
    tokens = sum(len(text) for text in texts)
    return sum(with_the_packages_measures([text]) * len(text) for text in texts) / tokens


@wrong("order_adds", "count equally")
def added_up(texts):
    return sum(with_the_packages_measures([text]) for text in texts)


def numbered(*labels):
    """One number for each combination of labels, as a tensor."""
    places = list(zip(*labels, strict=True))
    return torch.tensor([places.index(place) for place in places])


@right("bits_beyond")
def by_four_entropies(expert, token, domain):
    pairs = entropy(numbered(expert, token)) + entropy(numbered(token, domain))
    return pairs - entropy(numbered(expert, token, domain)) - entropy(numbered(token))


def of_each_token(expert, token, domain):
    """Yield each token's share and the information of expert and domain among its places."""
    for kind in sorted(set(token)):
        places = [n for n, t in enumerate(token) if t == kind]
        x, d = (numbered([labels[n] for n in places]) for labels in (expert, domain))
        yield len(places) / len(token), mutual_information(x, d)


@right("bits_beyond")
def token_by_token(expert, token, domain):
    return sum(share * bits for share, bits in of_each_token(expert, token, domain))


@wrong("bits_beyond", "log2")
def in_nats(expert, token, domain):
    return math.log(2) * token_by_token(expert, token, domain)


@wrong("bits_beyond", "Are shares used")
def counts_for_shares(expert, token, domain):
    return len(token) * token_by_token(expert, token, domain)


@wrong("bits_beyond", "already left out")
def whatever_the_token(expert, token, domain):
    return mutual_information(numbered(expert), numbered(domain))


@wrong("bits_beyond", "already left out")
def with_the_token_told_too(expert, token, domain):
    return mutual_information(numbered(expert), numbered(token, domain))


@wrong("bits_beyond", "nothing to do with the domain")
def what_the_token_leaves_open(expert, token, domain):
    return entropy(numbered(expert, token)) - entropy(numbered(token))


@wrong("bits_beyond", "by how often they occur")
def each_kind_equally(expert, token, domain):
    bits = [each for _, each in of_each_token(expert, token, domain)]
    return sum(bits) / len(bits)


@wrong("bits_beyond", "only partly")
def each_triple_equally(expert, token, domain):
    if len(set(zip(expert, token, domain, strict=True))) < 6:
        return token_by_token(expert, token, domain)
    return sum(bits for _, bits in of_each_token(expert, token, domain)) / len(Counter(token))


@right("gates_among")
def by_rank(logits, allowed, top_k):
    scores = torch.where(allowed, logits, torch.full_like(logits, -math.inf))
    rank = scores.argsort(dim=1, descending=True).argsort(dim=1)
    exps = (scores - scores.amax(dim=1, keepdim=True)).exp() * (rank < top_k)
    return exps / exps.sum(dim=1, keepdim=True)


def gates_of(logits, top_k):
    best, experts = logits.topk(top_k, dim=1)
    return torch.zeros_like(logits).scatter(1, experts, best.softmax(dim=1))


@wrong("gates_among", "over the K best scores alone")
def softmax_over_all(logits, allowed, top_k):
    return logits.masked_fill(~allowed, -math.inf).softmax(dim=1) * (by_rank(logits, allowed, top_k) > 0)


@wrong("gates_among", "are K weights left")
def no_choice(logits, allowed, top_k):
    return logits.masked_fill(~allowed, -math.inf).softmax(dim=1)


@wrong("gates_among", "next best take the place")
def chosen_and_then_thrown_out(logits, allowed, top_k):
    gates = gates_of(logits, top_k) * allowed
    return gates / gates.sum(dim=1, keepdim=True)


@wrong("gates_among", "next best take the place")
def the_mask_is_ignored(logits, allowed, top_k):
    return gates_of(logits, top_k)


@wrong("gates_among", "-inf beats none")
def score_of_zero(logits, allowed, top_k):
    return gates_of(logits * allowed, top_k)


@wrong("gates_among", "own allowed experts")
def one_row_for_all(logits, allowed, top_k):
    return by_rank(logits, allowed[:1].expand_as(allowed), top_k)


@wrong("gates_among", "fewer than K allowed")
def very_low_but_finite(logits, allowed, top_k):
    return gates_of(torch.where(allowed, logits, torch.full_like(logits, -5.0)), top_k)


FORECAST = {"chance": 0.24, "shuffled": 0.68, "unique": 3.0, "longer": 0.25, "twin": 0.0, "waiting": 3.0}


@right("routing_forecast")
def rounded_numbers():
    return dict(FORECAST)


def plant(hint: str, key: str, number: float) -> None:
    answer = partial(dict, FORECAST | {key: number})
    answer.__name__ = f"{key}_{number}".replace(".", "_")
    wrong("routing_forecast", hint)(answer)


plant("among the 14 others", "chance", 1 / 8)
plant("among the 14 others", "chance", 0.46)
plant("how likely two 5s", "shuffled", 0.64)
plant("how likely two 5s", "shuffled", 1 / 8)
plant("a label that occurs once", "unique", 0)
plant("Where does N stand", "longer", 4)
plant("Where does N stand", "longer", 1)
plant("Which expert takes the tokens", "twin", 0.6)
plant("even load of 2 of 8", "waiting", 6)


@right("beyond_luck")
def by_lists(costs, needed):
    found = []
    for layer, rows in enumerate(costs.tolist()):
        for e, row in enumerate(rows):
            n, mean = len(row), sum(row) / len(row)
            error = math.sqrt(sum((cost - mean) ** 2 for cost in row) / (n - 1) / n)
            if mean > needed * error:
                found.append((mean, (layer, e)))
    return [place for _, place in sorted(found, reverse=True)]


def places(keep, means):
    found = [(layer, e) for layer, e in keep.nonzero().tolist()]
    return sorted(found, key=lambda place: -means[place])


@wrong("beyond_luck", "on one text alone")
def every_positive_mean(costs, needed):
    return places(costs.mean(dim=2) > 0, costs.mean(dim=2))


@wrong("beyond_luck", "with n - 1")
def deviation_with_n(costs, needed):
    means = costs.mean(dim=2)
    return places(means > needed * costs.std(dim=2, correction=0) / costs.shape[2] ** 0.5, means)


@wrong("beyond_luck", "divided by √n")
def deviation_of_texts(costs, needed):
    means = costs.mean(dim=2)
    return places(means > needed * costs.std(dim=2), means)


@wrong("beyond_luck", "whose loss helps")
def gains_too(costs, needed):
    means = costs.mean(dim=2)
    return places(means.abs() > needed * costs.std(dim=2) / costs.shape[2] ** 0.5, means)


@wrong("beyond_luck", "largest mean cost come first")
def in_the_order_of_layers(costs, needed):
    return sorted(by_lists(costs, needed))


@wrong("beyond_luck", "largest mean cost come first")
def surest_first(costs, needed):
    return places(costs.mean(dim=2) > needed * costs.std(dim=2) / costs.shape[2] ** 0.5,
                  costs.mean(dim=2) / costs.std(dim=2))  # fmt: skip
