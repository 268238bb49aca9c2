"""The sparse mixture of experts: a router sends each token to K of E feed-forward networks, the experts.

    y = Σ_{e ∈ Top-K} softmax(Top-K(x·W_g))_e · expert_e(x)          expert(x) = w2(silu(w1 x) · w3 x)

W_g is the router's matrix. All E experts add parameters, but a token costs the computation of only K.

Source: Mixtral of Experts, arXiv 2401.04088, section 2.1; SwiGLU, Shazeer 2020, arXiv 2002.05202.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.config import Config


class Expert(nn.Module):
    """One gated feed-forward network: w1 (the gate) and w3 map D numbers up to F, w2 maps them back down to D."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.w1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.w3 = nn.Linear(hidden_size, intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, D) to (N, D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RouterOutput(NamedTuple):
    """The router's decision for N tokens.

    `logits` (N, E): raw scores, in the model's dtype. `weights` (N, K): float32, with sum 1 for each token. `experts`
    (N, K): the indices of the chosen experts, best first.
    """

    logits: Tensor
    weights: Tensor
    experts: Tensor


class Router(nn.Linear):
    """A linear layer that scores all experts for a token; the K with the best scores are chosen."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int | Config):
        super().__init__(hidden_size, num_experts, bias=False)
        self._top_k = top_k

    @property
    def top_k(self) -> int:
        """K: the number given, or `num_experts_per_tok` of the config given in its place, read at each call."""
        return self._top_k if isinstance(self._top_k, int) else self._top_k.num_experts_per_tok

    def forward(self, x: Tensor) -> RouterOutput:
        """Score and choose experts for x (N, D).

        The softmax runs over the K chosen scores only, in float32. A softmax over all E scores, cut to the chosen K and
        rescaled to sum 1, gives the same weights.
        """
        logits = super().forward(x)  # (N, E)
        best, experts = logits.float().topk(self.top_k, dim=-1)  # (N, K) each
        return RouterOutput(logits, best.softmax(dim=-1), experts)


def reference_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Compute the formula literally, one token and expert at a time: slow, but easy to follow. x (N, D) to (N, D)."""
    tokens = []
    for token_idx in range(x.shape[0]):
        y = torch.zeros_like(x[0])
        for weight, expert_idx in zip(routing.weights[token_idx], routing.experts[token_idx].tolist(), strict=True):
            y = y + (weight * experts[expert_idx](x[token_idx])).to(x.dtype)
        tokens.append(y)
    return torch.stack(tokens) if tokens else x  # no tokens, nothing to do


def sorted_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Sort the N·K choices by expert, and run each expert once on all of its tokens: few large products.

    In training, an expert without tokens runs on an empty batch. So every weight gets a gradient, if only zeros, and
    processes that train one model together exchange the same set of gradients. x (N, D) to (N, D).
    """
    is_training = torch.is_grad_enabled() and any(getattr(expert, "training", False) for expert in experts)
    K = routing.experts.shape[1]
    order = routing.experts.flatten().argsort(stable=True)  # (N*K,), the choices grouped by expert
    counts = routing.experts.flatten().bincount(minlength=len(experts)).tolist()
    token_idx = (order // K).split(counts)
    weights = routing.weights.flatten()[order].split(counts)
    y = torch.zeros_like(x)
    for expert_idx in range(len(experts)):
        if counts[expert_idx] or is_training:
            out = experts[expert_idx](x[token_idx[expert_idx]]) * weights[expert_idx][:, None]
            y.index_add_(0, token_idx[expert_idx], out.to(x.dtype))
    return y


EXPERT_DISPATCH: dict[str, Callable[..., Tensor]] = {"reference": reference_dispatch, "sorted": sorted_dispatch}


class SparseMoE(nn.Module):
    """Router and experts of one layer, in place of a Transformer's single feed-forward network."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        D, E = config.hidden_size, config.num_local_experts
        self.gate = Router(D, E, config)
        self.experts = nn.ModuleList(Expert(D, config.intermediate_size) for _ in range(E))

    def forward(self, x: Tensor) -> tuple[Tensor, RouterOutput]:
        """Send each token of x (B, T, D) through its K experts; return the sums (B, T, D) and the router's decisions.

        In training, `router_jitter_noise` multiplies x by random numbers around 1, so that choices near a tie vary.
        """
        jitter = self.config.router_jitter_noise
        if self.training and jitter > 0:
            x = x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        routing = self.gate(tokens)
        return self.dispatch(tokens, routing).view(x.shape), routing

    def dispatch(self, x: Tensor, routing: RouterOutput) -> Tensor:
        """Sum over each token's experts in the way that `config.experts_implementation` names. x (N, D) to (N, D)."""
        return EXPERT_DISPATCH[self.config.experts_implementation](x, routing, self.experts)


def load_balancing_loss(
    router_logits: Sequence[Tensor], num_experts: int, top_k: int,
    attention_mask: Tensor | None = None, per_layer: bool = False,
) -> Tensor:  # fmt: skip
    """Penalise routers that send most tokens to a few experts. Returns a float32 scalar.

        loss = E · Σ_e f_e · P_e

    f_e is the share of tokens that choose expert e (Σ f_e = K), P_e the mean probability that the router gives it. Only
    P carries a gradient. Perfect balance gives K. Collapse onto K experts gives up to E.

    Args:
        router_logits: one (N, E) tensor per layer.
        num_experts, top_k: E and K.
        attention_mask: (B, T) with B*T = N; tokens where it is 0 do not count. If none counts, the loss is 0.
        per_layer: average each layer's own loss. Otherwise f and P are averaged over all layers first, as transformers
            does, so that opposite imbalances of two layers cancel. Perfect balance gives K either way.

    Source: Switch Transformer, arXiv 2101.03961, equations 4 to 6, with top-k as transformers counts it.
    """
    logits = torch.stack(tuple(router_logits))  # (L, N, E)
    probabilities = logits.softmax(dim=-1).float()
    chosen = torch.zeros_like(probabilities).scatter_(-1, logits.topk(top_k, dim=-1).indices, 1.0)  # (L, N, E)
    if attention_mask is None:
        f, P = chosen.mean(dim=1), probabilities.mean(dim=1)  # (L, E) each
    else:
        real = (attention_mask != 0).reshape(-1, 1).to(probabilities)  # (N, 1)
        count = real.sum().clamp(min=1)
        f, P = (chosen * real).sum(dim=1) / count, (probabilities * real).sum(dim=1) / count
    if not per_layer:
        f, P = f.mean(dim=0), P.mean(dim=0)  # (E,) each
    return num_experts * (f * P).sum(dim=-1).mean()
