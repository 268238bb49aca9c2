"""Exercises of lesson 00: text as it grows, the work of each expert, what a batch reads, a larger Mixtral counted."""

import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise
from mixtral_edu.text.tokenizer import MixtralTokenizer


def piece_after_piece(tokenizer: MixtralTokenizer, ids: list[int]) -> list[str]:
    texts, text = [], ""
    for i in ids:
        text += tokenizer.decode([i], skip_special_tokens=True)
        texts.append(text)
    return texts


@exercise("Mend a stream that swallows spaces", faulty=piece_after_piece)
def growing_text(tokenizer: MixtralTokenizer, ids: list[int]) -> list[str]:
    """Return the text after each token, as it would grow on a screen.

    Args:
        tokenizer: the tokenizer that the ids belong to.
        ids: token ids; the first one may be `<s>`.

    Returns:
        for each id the text of all ids up to it, without special tokens; the last one is the
        whole text.
    """
    return [tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]


def texts_of(answer, text: str):
    """Return what was found for the tokens of a text, and what SentencePiece says of each beginning."""
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    ids = tokenizer.encode(text)
    return answer(tokenizer, list(ids)), [tokenizer.processor.decode(ids[: n + 1]) for n in range(len(ids))]


@growing_text.check("Is there a space between two words? A token knows its space only when something stands before it.")
def spaces(answer):
    return texts_of(answer, "Once upon a time")


@growing_text.check("Does the text keep its own spaces, also several and those at the end?")
def all_spaces(answer):
    return texts_of(answer, "one  two ")


@growing_text.check("Is a character whole once its last byte has come? Four tokens make one tiger.")
def bytes_of_a_character(answer):
    return texts_of(answer, "a 🐅!")


@exercise("How much work does each expert get?")
def work_of_experts(scores: Tensor) -> Tensor:
    """Return the weight that each expert has in the results, as a share of all weight.

    For each token the two experts with the best scores work, and their results are added with
    weights: the softmax of these two scores.

    Args:
        scores: (N, E), the router's scores of N tokens for E experts; no two are equal.

    Returns:
        (E,), the mean weight of each expert over the tokens, 0 where it was not chosen.
    """
    best = scores.topk(2, dim=-1)
    weights = torch.zeros_like(scores).scatter(1, best.indices, best.values.softmax(dim=-1))
    return weights.mean(dim=0)


def work_by_loops(scores: Tensor) -> Tensor:
    total = [0.0] * scores.shape[1]
    for row in scores.double():
        first, second = sorted(range(len(row)), key=lambda e: -row[e])[:2]
        share = 1 / (1 + float((row[second] - row[first]).exp()))
        total[first] += share / len(scores)
        total[second] += (1 - share) / len(scores)
    return torch.tensor(total)


@work_of_experts.check("Is the softmax taken over the two best scores alone? Then their weights sum to 1.")
def of_the_best_two(answer):
    return answer(torch.tensor([[1.0, 3.0, 0.0, 3.0 + 1.0986123]])), torch.tensor([0, 0.25, 0, 0.75])


@work_of_experts.check("Does the better expert get the larger weight?")
def the_better_gets_more(answer):
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    return answer(scores), work_by_loops(scores)


@work_of_experts.check("Is each token counted alike, so that all shares sum to 1?")
def mean_over_tokens(answer):
    scores = torch.randn(7, 5)
    return answer(scores), work_by_loops(scores)


@exercise("What a batch reads, and what it computes")
def read_and_computed(experts: Tensor, num_experts: int) -> tuple[float, float]:
    """Say what share of a layer's experts is read from memory, and what share computes.

    An expert's weights are read once if at least one token of the batch chose it. A dense
    model of the same size would run every token through all experts.

    Args:
        experts: (N, K), the experts that each of the N tokens of a batch chose.
        num_experts: E.

    Returns:
        the share of the experts that is read, and the share of the dense model's arithmetic
        that is done.
    """
    read = len(experts.unique()) / num_experts
    return read, experts.shape[1] / num_experts


@read_and_computed.check("Does one token read its K experts, and compute with as many?")
def one_token(answer):
    return answer(torch.tensor([[3, 5]]), 8), (0.25, 0.25)


@read_and_computed.check("Is an expert that several tokens chose read once?")
def shared_experts(answer):
    return answer(torch.tensor([[0, 1], [1, 0], [0, 1]]), 8), (0.25, 0.25)


@read_and_computed.check("Does the share that computes stay K / E, however many tokens there are?")
def many_tokens(answer):
    experts = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 2]])
    return answer(experts, 12), (10 / 12, 3 / 12)


@exercise("Count a larger Mixtral")
def count_larger_mixtral(
    D: int, F: int, L: int, V: int, Hq: int, Hkv: int, Dh: int, E: int, K: int
) -> tuple[int, int]:
    """Count the parameters of a mixture of experts, and those that work on one token.

    Args:
        D: numbers that describe a token.
        F: width inside an expert, which has three matrices.
        L: layers.
        V: tokens in the vocabulary; embedding and output scores have a matrix each.
        Hq: query heads.
        Hkv: heads of keys, and of values.
        Dh: size of a head. Hq * Dh need not be D.
        E: experts per layer.
        K: experts that work on each token.

    Returns:
        all parameters, and those per token: the embedding's whole table counts in both.
    """
    attention = 2 * D * Hq * Dh + 2 * D * Hkv * Dh  # queries and output; keys and values
    shared = attention + D * E + 2 * D  # with the router and two norms
    around = 2 * V * D + D
    return tuple(around + L * (shared + experts * 3 * D * F) for experts in (E, K))


def by_names(D: int, F: int, L: int, V: int, Hq: int, Hkv: int, Dh: int, E: int, K: int) -> tuple[int, int]:
    """Count tensor by tensor."""
    layer = {"q": Hq * Dh * D, "k": Hkv * Dh * D, "v": Hkv * Dh * D, "o": D * Hq * Dh, "gate": E * D, "norms": D + D}
    expert = {"w1": F * D, "w2": D * F, "w3": F * D}
    around = {"embed_tokens": V * D, "norm": D, "lm_head": V * D}
    return tuple(
        sum(around.values()) + sum(sum(layer.values()) + n * sum(expert.values()) for _ in range(L)) for n in (E, K)
    )


@count_larger_mixtral.check("Are there three matrices per expert, and E or K of them in each layer?")
def experts_count(answer):
    sizes = dict(D=100, F=100_000, L=2, V=1, Hq=1, Hkv=1, Dh=1, E=4, K=1)
    total, active = by_names(**sizes)
    found = answer(**sizes)
    return (found[0] - found[1], round(found[0] / total, 2)), (total - active, 1.0)


@count_larger_mixtral.check("Do keys and values have Hkv heads of size Dh, where queries and output have Hq?")
def attention_counts(answer):
    sizes = dict(D=64, F=1, L=1, V=1, Hq=6, Hkv=2, Dh=16, E=2, K=1)
    return answer(**sizes), by_names(**sizes)


@count_larger_mixtral.check("Is nothing forgotten? There are a router and two norms per layer, and a last norm.")
def all_of_it(answer):
    sizes = dict(D=32, F=48, L=3, V=50, Hq=4, Hkv=2, Dh=8, E=5, K=2)
    return answer(**sizes), by_names(**sizes)


@count_larger_mixtral.check("Is it right for Mixtral-8x22B, 140.6 and 39.2 billion?")
def mixtral_8x22b(answer):
    sizes = dict(D=6144, F=16384, L=56, V=32768, Hq=48, Hkv=8, Dh=128, E=8, K=2)
    return answer(**sizes), by_names(**sizes)
