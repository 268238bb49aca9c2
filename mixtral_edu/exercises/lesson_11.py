"""Exercises of lesson 11: a gap of two loads, a faulty baseline, bits beyond the token, forced choices, a forecast."""

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("Is the difference of two loads larger than chance?")
def load_gap(
    first: Tensor,
    second: Tensor,
    expert: int,
    block: int,
) -> tuple[float, float]:
    """Say how far apart an expert's loads on two texts are, and how far by chance.

    The load is the share of a text's tokens that the expert works on, as any of their K
    choices. Neighbouring tokens are alike, so the spread is that of block means: a text of n
    blocks adds s²/n to the squared standard error, with s² the sample variance (with n - 1)
    of its n block means.

    Args:
        first: (N, K), the experts of each token of one text.
        second: (M, K), the experts of each token of another.
        expert: the expert in question.
        block: tokens per block, a divisor of N and of M.

    Returns:
        The load on the first text minus the load on the second, and its standard error.
    """
    loads, squared_error = [], 0.0
    for experts in (first, second):
        hits = (experts == expert).any(dim=1).double()  # (N,), 1 where it works
        means = hits.unflatten(0, (-1, block)).mean(dim=1)  # (n,)
        loads.append(hits.mean().item())
        squared_error += means.var().item() / len(means)
    return loads[0] - loads[1], squared_error**0.5


def gap_by_numpy(first: Tensor, second: Tensor, expert: int, block: int) -> tuple[float, float]:
    loads, squared = [], 0.0
    for experts in (first, second):
        hits = [float(expert in token) for token in experts.tolist()]
        means = [np.mean(hits[start : start + block]) for start in range(0, len(hits), block)]
        loads.append(np.mean(hits))
        squared += np.var(means, ddof=1) / len(means)
    return float(loads[0] - loads[1]), float(np.sqrt(squared))


@load_gap.check("Is it the share of the first text's tokens minus that of the second's?")
def first_minus_second(answer):
    return answer(torch.tensor([[1], [1], [1], [0]]), torch.tensor([[1], [0], [0], [2]]), 1, 2)[0], 0.5


@load_gap.check("Does the expert count whichever of the K choices it is?")
def any_choice(answer):
    first = torch.tensor([[3, 1], [1, 0], [2, 1], [0, 2]])
    return answer(first, torch.tensor([[0, 2], [2, 3]] * 2), 1, 2)[0], 0.75


@load_gap.check("Is the spread that of the n block means, with n - 1, over √n, and not that of the tokens?")
def spread_of_blocks(answer):
    first = torch.tensor([[5]] * 4 + [[0]] * 4).repeat(2, 1)  # tokens of a block agree: four numbers, not sixteen
    return answer(first, torch.zeros(16, 1, dtype=torch.int64), 5, 4)[1], (1 / 12) ** 0.5


@load_gap.check("Do both texts add to the error, as squares, each with its own number of blocks?")
def both_texts(answer):
    first = torch.tensor([[5]] * 4 + [[0]] * 4).repeat(2, 1)
    second = torch.tensor([[5]] * 2 + [[0]] * 6 + [[5]] * 16)
    return answer(first, second, 5, 4), gap_by_numpy(first, second, 5, 4)


def pooled_baseline(texts):
    pooled = torch.cat(texts)
    common = (pooled[:, None, :, None] == pooled[None, :, None, :]).flatten(2).any(dim=2)
    in_order = common.diagonal(1).double().mean()
    shuffled = common.double().mean()
    return (in_order - shuffled).item()


@exercise("A baseline with a fault", faulty=pooled_baseline)
def order_adds(texts: list[Tensor]) -> float:
    """Say what the order of tokens adds to the repetition of their experts.

    Two tokens repeat if they have at least one expert in common. A text's number is the share
    of its neighbouring tokens that repeat, minus the mean of that share over all orders of
    its tokens. That mean is exact: the share of all pairs of two different tokens that repeat.

    A colleague's code below runs. Two symptoms:
    1. Of two texts, one always uses experts 0 and 1, the other always 2 and 3. The order adds
       nothing to either, yet the result is about 0.4.
    2. For one text of four tokens without a common expert, it is -0.25 instead of 0.

    Args:
        texts: for each text (N, K), the experts of its N tokens in order. N is at least 2
            and differs from text to text.

    Returns:
        The mean over the texts of what the order adds, each text counted equally.
    """
    total = 0.0
    for experts in texts:
        N = len(experts)
        common = (experts[:, None, :, None] == experts[None, :, None, :]).flatten(2).any(dim=2)
        in_order = common.diagonal(1).double().mean().item()
        shuffled = (common.sum().item() - N) / (N * (N - 1))  # no token paired with itself
        total += in_order - shuffled
    return total / len(texts)


def added_by_loops(texts: list[Tensor]) -> float:
    added = []
    for text in texts:
        sets = [set(token) for token in text.tolist()]
        pairs = [(i, j) for j in range(len(sets)) for i in range(j)]
        repeats = {(i, j): bool(sets[i] & sets[j]) for i, j in pairs}
        neighbours = [repeats[i, i + 1] for i in range(len(sets) - 1)]
        added.append(sum(neighbours) / len(neighbours) - sum(repeats.values()) / len(pairs))
    return sum(added) / len(added)


@order_adds.check("Symptom 1: is each text compared with its own tokens only, in order and in the baseline?")
def each_text_alone(answer):
    return answer([torch.tensor([[0, 1]] * 6), torch.tensor([[2, 3]] * 6)]), 0.0


@order_adds.check("Symptom 2: is a token never paired with itself in the baseline?")
def not_with_itself(answer):
    return answer([torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])]), 0.0


@order_adds.check("Do two tokens repeat if any of their K experts is the same, not only the first?")
def any_in_common(answer):  # expert 9 is in all tokens of the first text, expert 8 in all of the second
    return answer([torch.tensor([[0, 9], [0, 9], [9, 1]]), torch.tensor([[2, 8], [2, 8], [8, 3]])]), 0.0


@order_adds.check(
    "Is the baseline the exact share of all pairs, with nothing drawn? Of 5 zeros and 3 ones, 13 of 28 pairs repeat."
)
def exact_baseline(answer):
    return answer([torch.tensor([[0]] * 5 + [[1]] * 3)]), 6 / 7 - 13 / 28


@order_adds.check("Does each text count equally, whatever its length?")
def each_text_equally(answer):
    texts = [torch.tensor([[0], [0], [1], [1]]), torch.tensor([[2]] * 10 + [[3]] * 10)]
    return answer(texts), added_by_loops(texts)


@exercise("What the domain tells beyond the token")
def bits_beyond(expert: list, token: list, domain: list) -> float:
    """Say how many bits the domain tells about the expert of a token that you know already.

        I = Σ p(x, t, d) · log2( p(x, t, d) · p(t) / (p(x, t) · p(t, d)) )

    over the triples of expert x, token t and domain d that occur. p is the share of the N
    places that have these labels.

    Args:
        expert: N labels.
        token: N labels of the same places.
        domain: N labels of the same places.

    Returns:
        The conditional mutual information of expert and domain given the token, in bits.
    """
    N = len(expert)
    all_three = Counter(zip(expert, token, domain, strict=True))
    expert_token = Counter(zip(expert, token, strict=True))
    token_domain = Counter(zip(token, domain, strict=True))
    only_token = Counter(token)
    bits = 0.0
    for (x, t, d), n in all_three.items():
        ratio = n * only_token[t] / (expert_token[x, t] * token_domain[t, d])  # the N cancel
        bits += n / N * math.log2(ratio)
    return bits


def entropy_of(*labels: list) -> float:
    p = np.array(list(Counter(zip(*labels, strict=True)).values())) / len(labels[0])
    return float(-np.sum(p * np.log2(p)))


def beyond_by_entropies(x: list, t: list, d: list) -> float:
    return entropy_of(x, t) + entropy_of(t, d) - entropy_of(x, t, d) - entropy_of(t)


@bits_beyond.check("One token, two domains that fix its expert: 1 bit. Are shares used, and log2?")
def domain_decides(answer):
    return answer([6, 6, 2, 2], [","] * 4, ["english", "english", "spanish", "spanish"]), 1.0


@bits_beyond.check("Each token has one expert. Is what the token tells already left out, so that 0 bits remain?")
def token_decides(answer):
    return answer([3, 3, 5, 5], ["the", "the", "el", "el"], ["english", "english", "spanish", "spanish"]), 0.0


@bits_beyond.check("One token, with an expert that has nothing to do with the domain: is that 0 bits?")
def domain_is_silent(answer):
    return answer([6, 2, 6, 2], [","] * 4, ["english", "english", "spanish", "spanish"]), 0.0


@bits_beyond.check("Do tokens count by how often they occur? Here a quarter of them has its bit from the domain.")
def weighted_by_token(answer):
    return answer([6, 2, *[3] * 6], [",", ",", *["the"] * 6], ["a", "b", *["a", "b"] * 3]), 0.25


@bits_beyond.check("Is it right where token, domain and expert hang together only partly?")
def partly(answer):
    rows = [(0, "s", "a")] * 5 + [(1, "s", "a")] * 2 + [(0, "s", "b")] + [(1, "s", "b")] * 4
    rows += [(1, "t", "a")] * 3 + [(2, "t", "b")] * 2 + [(1, "t", "b")] + [(2, "t", "c")] * 3
    labels = [list(each) for each in zip(*rows, strict=True)]
    return answer(*labels), beyond_by_entropies(*labels)


@exercise("A router that may use only some experts")
def gates_among(logits: Tensor, allowed: Tensor, top_k: int) -> Tensor:
    """Choose and weigh the best allowed experts of each token.

    Experts may be forbidden token by token: one that is knocked out, one whose device is
    full. The softmax runs over the scores of the experts that are chosen.

    Args:
        logits: (N, E), each token's scores.
        allowed: (N, E) in torch.bool, whether the token may use the expert; at least one in
            each row.
        top_k: K. A token with fewer than K allowed experts uses all that it may.

    Returns:
        (N, E): the weight of each expert, 0 for those not chosen. Each row has the sum 1.
    """
    scores = logits.masked_fill(~allowed, -torch.inf)
    best, experts = scores.topk(top_k, dim=-1)  # (N, K); -inf where too few are allowed
    return torch.zeros_like(logits).scatter(1, experts, best.softmax(dim=-1))


def gates_by_loops(logits: Tensor, allowed: Tensor, top_k: int) -> np.ndarray:
    gates = np.zeros(logits.shape)
    for row, (scores, may) in enumerate(zip(logits.tolist(), allowed.tolist(), strict=True)):
        chosen = sorted((e for e in range(len(scores)) if may[e]), key=lambda e: -scores[e])[:top_k]
        exps = [math.exp(scores[e] - scores[chosen[0]]) for e in chosen]
        gates[row, chosen] = np.array(exps) / sum(exps)
    return gates


@gates_among.check("With all experts allowed: are K weights left, the softmax over the K best scores alone?")
def all_allowed(answer):
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    return answer(logits, torch.ones(1, 4, dtype=torch.bool), 2), np.array([[0.731058, 0.268941, 0, 0]])


@gates_among.check("Does the next best take the place of a forbidden expert, so that K experts work?")
def next_best(answer):
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.5]])
    allowed = torch.tensor([[True, False, True, True]])
    return answer(logits, allowed, 2), np.array([[0.880797, 0, 0.119203, 0]])


@gates_among.check("Can a forbidden expert never win? A score of 0 beats negative ones; -inf beats none.")
def all_scores_negative(answer):
    logits, allowed = torch.tensor([[-3.0, -2.0, -1.0, -4.0]]), torch.tensor([[True, True, False, True]])
    return answer(logits, allowed, 2), gates_by_loops(logits, allowed, 2)


@gates_among.check("Does each token have its own allowed experts?")
def token_by_token(answer):
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    allowed = torch.tensor([[False, True, True, True], [True, False, True, True], [True, True, True, False]])
    return answer(logits, allowed, 2), gates_by_loops(logits, allowed, 2)


@gates_among.check("Does a token with fewer than K allowed experts use those alone, with weights of sum 1?")
def too_few_allowed(answer):
    logits = torch.tensor([[1.0, -2.0, 3.0, 0.0], [-1.0, -2.0, -3.0, -4.0]])
    allowed = torch.tensor([[False, True, False, False], [True, False, True, False]])
    return answer(logits, allowed, 3), gates_by_loops(logits, allowed, 3)


@exercise("Predict before you run")
def routing_forecast() -> dict[str, float]:
    """Commit to six numbers before you run anything.

    Returns:
        "chance": even, independent choices of 2 of 16 experts: the share of neighbouring
            tokens with at least one expert in common, from 0 to 1.
        "shuffled": 80 % of a text's first choices are expert 3, 20 % are expert 5, and the
            tokens stand in random order: the share of neighbours with the same first expert.
        "unique": eight first experts equally often, and a different label for each token:
            the bits that the labels tell about the expert.
        "longer": the factor by which the information of shuffled labels changes, when a text
            has four times the tokens and the same kinds of labels.
        "twin": expert 5 is an exact copy of expert 2, and its score is always just below.
            A top-1 router sends 60 % of tokens to expert 2. The cost in bits per byte when
            expert 2 is knocked out.
        "waiting": 2 of 8 experts per token, each expert on a device of its own. One expert
            has a load of 0.75. How many times as long as with an even load does that device
            work?
    """
    return {
        "chance": 1 - (14 * 13) / (16 * 15),  # both experts among the 14 others
        "shuffled": 0.8**2 + 0.2**2,
        "unique": 3,  # all of the entropy, and all of it bias
        "longer": 1 / 4,  # (A - 1)(B - 1) / (2 N ln 2)
        "twin": 0,  # the next best does the same
        "waiting": 0.75 / (2 / 8),
    }


def verdict(found: object, exact: float) -> object:
    """Compare in words, so that a message does not give the number away."""
    if not isinstance(found, int | float):
        return found
    return "right" if abs(found - exact) <= 0.04 * max(exact, 0.01) else "too low" if found < exact else "too high"


@routing_forecast.check("What is the chance that both experts of the next token are among the 14 others?")
def two_of_sixteen(answer):
    return verdict(answer()["chance"], 1 - math.comb(14, 2) / math.comb(16, 2)), "right"


@routing_forecast.check("In random order, how likely are two 3s in a row, and how likely two 5s?")
def skewed_load(answer):
    return verdict(answer()["shuffled"], 0.68), "right"


@routing_forecast.check("If you know a label that occurs once, what do you still not know about its token's expert?")
def labels_that_never_recur(answer):
    return verdict(answer()["unique"], math.log2(8)), "right"


@routing_forecast.check("Shuffled labels tell only bias. Where does N stand in its formula?")
def less_bias(answer):
    return verdict(answer()["longer"], 0.25), "right"


@routing_forecast.check("Which expert takes the tokens of the one that is knocked out, and what does it compute?")
def a_perfect_substitute(answer):
    return verdict(answer()["twin"], 0), "right"


@routing_forecast.check("What is the even load of 2 of 8 experts?")
def the_busiest_device(answer):
    return verdict(answer()["waiting"], 3), "right"


@exercise("Which knock-outs are more than luck?")
def beyond_luck(costs: Tensor, needed: float) -> list[tuple[int, int]]:
    """Name the experts whose knock-out costs more than luck explains.

    You want to know about texts like these, so the texts are the sample: the standard error of
    a mean cost is the sample standard deviation over the n texts (with n - 1), divided by √n.

    Args:
        costs: (L, E, n), the cost of each expert's knock-out on each of n texts.
        needed: how many standard errors above 0 a mean cost must be. With many experts,
            two are not enough: of 32 without any effect, about one passes by luck.

    Returns:
        (layer, expert) of each expert whose mean cost is larger than `needed` standard
        errors, the largest mean cost first.
    """
    means, errors = costs.mean(dim=-1), costs.std(dim=-1) / costs.shape[-1] ** 0.5
    found = (means > needed * errors).nonzero().tolist()
    return sorted(((layer, e) for layer, e in found), key=lambda place: -means[place].item())


@beyond_luck.check("Is an expert left out whose mean cost is large on one text alone?")
def one_text_alone(answer):
    return answer(torch.tensor([[[0.8, 0.0, 0.0, 0.0], [0.10, 0.11, 0.09, 0.10]]]), 2.0), [(0, 1)]


@beyond_luck.check("Is the standard error the deviation with n - 1, divided by √n? Here the mean is 3.87 of them.")
def standard_error(answer):
    costs = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    return [answer(costs, 3.0), answer(costs, 4.0)], [[(0, 0)], []]


@beyond_luck.check("Is an expert left out whose loss helps?")
def gains(answer):
    return answer(torch.tensor([[[-0.2, -0.21, -0.19], [0.2, 0.21, 0.19]]]), 3.0), [(0, 1)]


@beyond_luck.check("Does the largest mean cost come first, named by layer and expert?")
def in_order(answer):
    spread = torch.tensor([-0.01, 0.0, 0.01])
    means = torch.tensor([[0.1, 0.0, 0.4], [0.3, 0.2, 0.0]])
    return answer(means[..., None] + spread * means[..., None].square(), 3.0), [(0, 2), (1, 0), (1, 1), (0, 0)]
