"""Measure what the router does: load, repetition, information, and what changes when it must choose otherwise.

Each measure takes the choices of one layer, (N, K), first choice first. Each comes with a baseline, because the number
alone can mislead: a text that mostly visits one expert repeats it often, in any order of its tokens.

Source: Mixtral of Experts, arXiv 2401.04088, section 5.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mixtral_edu.moe import RouterOutput

Change = Callable[[RouterOutput], RouterOutput]


def chosen_experts(router_logits: Sequence[Tensor], top_k: int) -> Tensor:
    """Return the choices that `router_logits` make, one (N, E) tensor per layer: (L, N, K), first choice first."""
    return torch.stack([logits.float().topk(top_k, dim=-1).indices for logits in router_logits])


def token_shares(experts: Tensor, num_experts: int) -> Tensor:
    """Return the share of tokens that each expert works on: (E,) in float64. Under an even load, each share is K/E.

    >>> token_shares(torch.tensor([[0, 1], [0, 2]]), num_experts=4).tolist()
    [1.0, 0.5, 0.5, 0.0]

    Args:
        experts: (N, K) choices, or (N,) first choices.
        num_experts: E.
    """
    return experts.flatten().bincount(minlength=num_experts).double() / len(experts)


class Repetition(NamedTuple):
    """How often two neighbouring tokens share an expert: as their `first` choice, or as `any` of their K choices."""

    first: float
    any: float


def repetition(experts: Tensor) -> Repetition:
    """Return the share of neighbouring tokens (n, n + 1) that share an expert, as in the paper's Table 5.

    Args:
        experts: (N, K) choices for the tokens of one text in order, N at least 2.
    """
    _at_least_two(experts)
    earlier, later = experts[:-1], experts[1:]
    return Repetition(
        (earlier[:, 0] == later[:, 0]).double().mean().item(),
        (earlier[:, :, None] == later[:, None, :]).flatten(1).any(dim=1).double().mean().item(),
    )


def shuffled_repetition(experts: Tensor) -> Repetition:
    """Return the mean of `repetition` over all orders of the tokens: what skewed load alone explains.

    In a random order, any two of the N tokens may be neighbours. So the mean is the share of all pairs of tokens that
    share an expert. It is counted over the distinct choices that occur, at most E^K of them.
    """
    _at_least_two(experts)
    N = len(experts)
    kinds, counts = experts.unique(dim=0, return_counts=True)  # (C, K) and (C,)
    same_first = kinds[:, None, 0] == kinds[None, :, 0]  # (C, C)
    same_any = (kinds[:, None, :, None] == kinds[None, :, None, :]).flatten(2).any(dim=2)
    pairs = torch.outer(counts, counts) - torch.diag(counts)  # ordered pairs of two different tokens
    return Repetition(*((pairs * same).sum().item() / (N * (N - 1)) for same in (same_first, same_any)))


def chance_repetition(num_experts: int, top_k: int) -> Repetition:
    """Return the repetition under even load and independent choices: 1/E, and 1 - C(E-K, K) / C(E, K).

    >>> chance_repetition(8, 2)
    Repetition(first=0.125, any=0.4642857142857143)
    """
    return Repetition(1 / num_experts, 1 - math.comb(num_experts - top_k, top_k) / math.comb(num_experts, top_k))


def entropy(labels: Tensor) -> float:
    """Return the entropy H = -Σ p·log2 p in bits, where p is the share of each label among `labels` (N,)."""
    p = labels.unique(return_counts=True)[1].double() / len(labels)
    return -(p * p.log2()).sum().item()


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Return how many bits one list of labels tells about the other: I = H(first) + H(second) - H(both).

    It is 0 for independent labels and at most the smaller of the two entropies. Estimated from N samples, it is too
    large by about (A-1)·(B-1) / (2·N·ln 2) for A and B independent labels: compare it with `shuffled_information`.

    Args:
        first: (N,) labels, whole numbers.
        second: (N,) labels of the same N items.

    Raises:
        ValueError: the lists differ in length, or are empty.
    """
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        shapes = f"{(*first.shape,)} and {(*second.shape,)}"
        raise ValueError(f"first and second have the shapes {shapes}: both must be (N,), with N at least 1")
    _, index = second.unique(return_inverse=True)
    both = first.unique(return_inverse=True)[1] * (index.max() + 1) + index  # one number per pair of labels
    return max(0.0, entropy(first) + entropy(second) - entropy(both))


def shuffled_information(first: Tensor, second: Tensor, times: int = 10, seed: int = 0) -> float:
    """Return the mean of `mutual_information` over `times` shuffles of `second`, where the true value is 0."""
    generator = torch.Generator("cpu").manual_seed(seed)
    orders = (torch.randperm(len(second), generator=generator, device="cpu") for _ in range(times))
    return sum(mutual_information(first, second[order]) for order in orders) / times


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the Jensen-Shannon distance of two distributions: 0 if they are equal, 1 if they do not overlap.

        √( ½·KL(p ‖ m) + ½·KL(q ‖ m) )    with m = ½(p + q) and KL(p ‖ m) = Σ p·log2(p / m)

    Args:
        p: (E,) numbers of at least 0, such as shares or counts; they are divided by their sum.
        q: likewise.
    """
    p, q = p.double() / p.sum(), q.double() / q.sum()
    m = (p + q) / 2
    divergence = sum(torch.xlogy(x, x / m).nansum() for x in (p, q)) / (2 * math.log(2))  # nan where both are 0
    return math.sqrt(max(0.0, divergence.item()))


@contextmanager
def rerouted(model: torch.nn.Module, change: Change, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Replace the router's decisions by `change(decision)` inside a `with` block. After it, the model is as before.

    Args:
        model: a `MixtralForCausalLM`, or a model with any other head.
        change: the change, such as `knock_out(3)`, `top_one` or `random_experts(seed)`.
        layers: the layers to change; None for all.

    Raises:
        IndexError: a layer does not exist.
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
    """Return a change for `rerouted` that knocks out `expert` (an ablation).

    Its score becomes -inf before the top-k, so the next best expert takes its place.
    """

    def change(routing: RouterOutput) -> RouterOutput:
        if not 0 <= expert < routing.logits.shape[1]:
            raise ValueError(f"expert={expert}: it must be from 0 to {routing.logits.shape[1] - 1}")
        logits = routing.logits.clone()
        logits[:, expert] = -math.inf
        best, experts = logits.float().topk(routing.experts.shape[1], dim=-1)
        return RouterOutput(logits, best.softmax(dim=-1), experts)

    return change


def top_one(routing: RouterOutput) -> RouterOutput:
    """Keep only the first choice, with weight 1; a change for `rerouted`."""
    return RouterOutput(routing.logits, torch.ones_like(routing.weights[:, :1]), routing.experts[:, :1])


def random_experts(seed: int) -> Change:
    """Return a change for `rerouted`: draw K different experts at random for each token, and keep the weights."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def change(routing: RouterOutput) -> RouterOutput:
        scores = torch.rand(routing.logits.shape, generator=generator, dtype=torch.float32, device="cpu")
        scores = scores.to(routing.logits.device)
        return routing._replace(experts=scores.topk(routing.experts.shape[1], dim=-1).indices)

    return change


def _at_least_two(experts: Tensor) -> None:
    if experts.ndim != 2 or len(experts) < 2:
        raise ValueError(f"experts has the shape {(*experts.shape,)}: it must be (N, K), with N at least 2")
