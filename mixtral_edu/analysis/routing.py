"""What the router does, in numbers: load, repetition, information, and what changes when it must choose otherwise.

Measures are functions of choices, (N, K) for each layer, the first choice first. Each has a baseline beside it, for a
number alone says little: a text that mostly visits one expert repeats it often, in any order of its tokens.

Source: Mixtral of Experts, arXiv 2401.04088, section 5.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mixtral_edu.dispatch import RouterOutput

Change = Callable[[RouterOutput], RouterOutput]


def chosen_experts(router_logits: Sequence[Tensor], top_k: int) -> Tensor:
    """The choices behind `router_logits`, one (N, E) tensor a layer: (L, N, K), the first choice first."""
    return torch.stack([logits.float().topk(top_k, dim=-1).indices for logits in router_logits])


def token_shares(experts: Tensor, num_experts: int) -> Tensor:
    """Return the share of tokens that each expert works on, (E,) in float64; an even load is K/E each.

    >>> token_shares(torch.tensor([[0, 1], [0, 2]]), num_experts=4).tolist()
    [1.0, 0.5, 0.5, 0.0]

    Args:
        experts: (N, K) choices; or (N,), first choices alone.
        num_experts: E.
    """
    return experts.flatten().bincount(minlength=num_experts).double() / len(experts)


class Repetition(NamedTuple):
    """How often two neighbouring tokens share an expert: `first` choice with first choice; `any` of K with any of K."""

    first: float
    any: float


def repetition(experts: Tensor) -> Repetition:
    """Return the share of neighbouring tokens (n, n + 1) that share an expert, as in the paper's Table 5.

    Args:
        experts: (N, K) choices for the tokens of one text, in its order; N at least 2.
    """
    _at_least_two(experts)
    earlier, later = experts[:-1], experts[1:]
    return Repetition(
        (earlier[:, 0] == later[:, 0]).double().mean().item(),
        (earlier[:, :, None] == later[:, None, :]).flatten(1).any(dim=1).double().mean().item(),
    )


def shuffled_repetition(experts: Tensor) -> Repetition:
    """Return the mean of `repetition` over all orders of the tokens: what skewed load alone explains.

    In a random order, neighbours are any two of the N tokens. So it is the share of pairs of tokens, neighbours or
    not, that share an expert, counted over the different choices that occur: at most E^K of them.
    """
    _at_least_two(experts)
    N = len(experts)
    kinds, counts = experts.unique(dim=0, return_counts=True)  # (C, K) and (C,)
    same_first = kinds[:, None, 0] == kinds[None, :, 0]  # (C, C)
    same_any = (kinds[:, None, :, None] == kinds[None, :, None, :]).flatten(2).any(dim=2)
    pairs = torch.outer(counts, counts) - torch.diag(counts)  # ordered pairs of two different tokens
    return Repetition(*((pairs * same).sum().item() / (N * (N - 1)) for same in (same_first, same_any)))


def chance_repetition(num_experts: int, top_k: int) -> Repetition:
    """Return what even load and choices without memory give: 1/E, and 1 - C(E-K, K) / C(E, K).

    >>> chance_repetition(8, 2)
    Repetition(first=0.125, any=0.4642857142857143)
    """
    return Repetition(1 / num_experts, 1 - math.comb(num_experts - top_k, top_k) / math.comb(num_experts, top_k))


def entropy(labels: Tensor) -> float:
    """Return H = -Σ p·log2 p in bits, p the share of each label among `labels` (N,)."""
    p = labels.unique(return_counts=True)[1].double() / len(labels)
    return -(p * p.log2()).sum().item()


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Return how many bits one list of labels tells about the other: I = H(first) + H(second) - H(both).

    0 if they are independent, at most the smaller of the two entropies. From N samples it comes out too large, by
    about (A-1)·(B-1) / (2·N·ln 2) for A and B independent labels: compare with `shuffled_information`.

    Args:
        first: (N,) labels, whole numbers.
        second: (N,) labels of the same N things.

    Raises:
        ValueError: lists of different lengths, or empty ones.
    """
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        shapes = f"{(*first.shape,)} and {(*second.shape,)}"
        raise ValueError(f"first and second have the shapes {shapes}: two lists of N labels, N at least 1, are wanted")
    _, index = second.unique(return_inverse=True)
    both = first.unique(return_inverse=True)[1] * (index.max() + 1) + index  # one number for each pair of labels
    return max(0.0, entropy(first) + entropy(second) - entropy(both))


def shuffled_information(first: Tensor, second: Tensor, times: int = 10, seed: int = 0) -> float:
    """Return the mean of `mutual_information` after shuffling `second`, `times` times: the truth there is 0."""
    generator = torch.Generator("cpu").manual_seed(seed)
    orders = (torch.randperm(len(second), generator=generator, device="cpu") for _ in range(times))
    return sum(mutual_information(first, second[order]) for order in orders) / times


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the Jensen-Shannon distance of two distributions: 0 if they are equal, 1 if they share nothing.

        √( ½·KL(p ‖ m) + ½·KL(q ‖ m) )    with m = ½(p + q) and KL(p ‖ m) = Σ p·log2(p / m)

    Args:
        p: (E,) numbers from 0 on, such as shares or counts; they are divided by their sum.
        q: the same.
    """
    p, q = p.double() / p.sum(), q.double() / q.sum()
    m = (p + q) / 2
    divergence = sum(torch.xlogy(x, x / m).nansum() for x in (p, q)) / (2 * math.log(2))  # nan: 0 in both
    return math.sqrt(max(0.0, divergence.item()))


@contextmanager
def rerouted(model: torch.nn.Module, change: Change, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Inside a `with` block, replace the router's decisions by `change(decision)`; afterwards all is as before.

    Args:
        model: a `MixtralForCausalLM`, or any other head.
        change: such as `knock_out(3)`, `top_one` or `random_experts(seed)`.
        layers: where; all of them if None.

    Raises:
        IndexError: there is no such layer.
    """
    all_layers = model.model.layers
    chosen = all_layers if layers is None else [all_layers[layer] for layer in layers]
    hooks = [
        layer.block_sparse_moe.gate.register_forward_hook(lambda gate, inputs, routing: change(routing))
        for layer in chosen
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def knock_out(expert: int) -> Change:
    """A change for `rerouted`: the score of `expert` becomes -inf before the top-k; the next best takes its place."""

    def change(routing: RouterOutput) -> RouterOutput:
        if not 0 <= expert < routing.logits.shape[1]:
            raise ValueError(f"expert={expert}: the router has the experts 0 to {routing.logits.shape[1] - 1}")
        logits = routing.logits.clone()
        logits[:, expert] = -math.inf
        best, experts = logits.float().topk(routing.experts.shape[1], dim=-1)
        return RouterOutput(logits, best.softmax(dim=-1), experts)

    return change


def top_one(routing: RouterOutput) -> RouterOutput:
    """A change for `rerouted`: only the first choice works, with weight 1."""
    return RouterOutput(routing.logits, torch.ones_like(routing.weights[:, :1]), routing.experts[:, :1])


def random_experts(seed: int) -> Change:
    """A change for `rerouted`: K different experts drawn at random for each token; the weights stay."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def change(routing: RouterOutput) -> RouterOutput:
        scores = torch.rand(routing.logits.shape, generator=generator, dtype=torch.float32, device="cpu")
        scores = scores.to(routing.logits.device)
        return routing._replace(experts=scores.topk(routing.experts.shape[1], dim=-1).indices)

    return change


def _at_least_two(experts: Tensor) -> None:
    if experts.ndim != 2 or len(experts) < 2:
        raise ValueError(f"experts have the shape {(*experts.shape,)}: (N, K) with N of 2 or more is wanted")
