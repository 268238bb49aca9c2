"""The sparse mixture of experts: a router sends each token to K of E feed-forward networks.

    y = Σ_{e ∈ Top-K} softmax(Top-K(x·W_g))_e · expert_e(x)

Source: Mixtral of Experts, arXiv 2401.04088, section 2.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixtral_edu.config import MixtralConfig
from mixtral_edu.dispatch import EXPERT_DISPATCH, RouterOutput
from mixtral_edu.experts import Expert, Experts


class Router(nn.Linear):
    """A linear layer that scores experts, and the choice of the K best."""

    def __init__(self, config: MixtralConfig):
        super().__init__(config.hidden_size, config.num_local_experts, bias=False)
        self.config = config

    @property
    def top_k(self) -> int:
        """K, which the config may change at any time."""
        return self.config.num_experts_per_tok

    def forward(self, x: Tensor) -> RouterOutput:
        """Score and choose experts for x (N, D).

        The softmax runs over the K chosen scores only, in float32. (A softmax over all E that is cut to K and rescaled
        to sum 1 gives the same numbers: the terms left out cancel.)
        """
        logits = super().forward(x)  # (N, E)
        best, experts = logits.float().topk(self.top_k, dim=-1)  # (N, K) each
        return RouterOutput(logits, best.softmax(dim=-1), experts)


class SparseMoE(nn.Module):
    """Router and experts of one layer, in place of a Transformer's single feed-forward network."""

    def __init__(self, config: MixtralConfig):
        super().__init__()
        self.config = config
        self.gate = Router(config)
        self.experts = Experts(Expert(config) for _ in range(config.num_local_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, RouterOutput]:
        """Send each token of x (B, T, D) through its K experts.

        In training, `router_jitter_noise` multiplies the input by numbers around 1, so that choices near a tie vary.

        Returns:
            (B, T, D), and the router's decision for the N = B*T tokens.
        """
        jitter = self.config.router_jitter_noise
        if self.training and jitter > 0:
            x = x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
        tokens = x.reshape(-1, x.shape[-1])  # (N, D)
        routing = self.gate(tokens)
        y = EXPERT_DISPATCH[self.config.experts_implementation](tokens, routing, self.experts)
        return y.view(x.shape), routing

    def lay_out(self) -> None:
        """Copy the experts' weights: side by side for the form that multiplies with all of them at once."""
        together = self.config.experts_implementation == "grouped" and type(self.experts) is Experts
        for holder in [self.experts] if together else self.experts:
            if isinstance(holder, Expert | Experts):
                holder.copy_weights()


def load_balancing_loss(
    router_logits: Sequence[Tensor],
    num_experts: int,
    top_k: int,
    attention_mask: Tensor | None = None,
    per_layer: bool = False,
) -> Tensor:
    """Penalise routers that send most tokens to few experts.

        loss = E · Σ_e f_e · P_e

    with f_e the number of choices of expert e per token (Σ f_e = K) and P_e its mean router probability. Only P carries
    a gradient. Perfect balance gives K. Collapse onto K experts gives up to E.

    Args:
        router_logits: one (N, E) tensor per layer.
        num_experts: E.
        top_k: K.
        attention_mask: (B, T) with B*T = N; tokens where it is 0 do not count. Where none does, the loss is 0 (that of
            transformers is nan).
        per_layer: average each layer's own loss. Otherwise f and P are taken over all layers together, as transformers
            does, where opposite imbalances of two layers cancel. Perfect balance gives K in both.

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
