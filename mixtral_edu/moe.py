"""The sparse mixture of experts: a router sends each token to K of E feed-forward networks.

    y = Σ_{e ∈ Top-K} softmax(Top-K(x·W_g))_e · expert_e(x)        expert(x) = w2(silu(w1 x) · w3 x)

Source: Mixtral of Experts, arXiv 2401.04088, section 2.1; SwiGLU: Shazeer 2020, arXiv 2002.05202.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.config import MixtralConfig
from mixtral_edu.linear import Linear, laid_out, multiply_all, pack_together, still_in

_GROUPING_GPUS = ((9, 0), (10, 0))  # compute capabilities that PyTorch has a kernel for, Hopper's and Blackwell's
_FEW_TOKENS = 64  # on a GPU; so many cost every expert hardly more than one, the time of reading its weights


class RouterOutput(NamedTuple):
    """The router's decision for N tokens.

    `logits` (N, E) in the model's dtype; `experts` (N, K), the chosen experts, best first; `weights` (N, K) in float32,
    positive and of sum 1 for each token.
    """

    logits: Tensor
    weights: Tensor
    experts: Tensor


class Router(nn.Linear):
    """A linear layer that scores experts, and the choice of the K best."""

    def __init__(self, config: MixtralConfig):
        super().__init__(config.hidden_size, config.num_local_experts, bias=False)
        self.top_k = config.num_experts_per_tok

    def forward(self, x: Tensor) -> RouterOutput:
        """Score and choose experts for x (N, D).

        The softmax runs over the K chosen scores only, in float32. (A softmax over all E that is cut to K and rescaled
        to sum 1 gives the same numbers: the terms left out cancel.)
        """
        logits = super().forward(x)  # (N, E)
        best, experts = logits.float().topk(self.top_k, dim=-1)  # (N, K) each
        return RouterOutput(logits, best.softmax(dim=-1), experts)


class Expert(nn.Module):
    """One gated feed-forward network: w1 is the gate, w3 goes up, w2 comes down."""

    def __init__(self, config: MixtralConfig):
        super().__init__()
        self.w1 = Linear(config.hidden_size, config.intermediate_size)
        self.w2 = Linear(config.intermediate_size, config.hidden_size)
        self.w3 = Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, D) to (N, D)."""
        gate, up = multiply_all(x, self.w1, self.w3)  # (N, F) each
        return self.w2(F.silu(gate) * up)


class Experts(nn.ModuleList):
    """The E experts of a layer, each with weights of its own; packed, they lie side by side in two blocks."""

    _blocks: tuple[Tensor, Tensor] | None = None

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return all experts' weights: w1 above w3 (E, 2F, D), and w2 (E, D, F).

        Views of the two blocks where they are packed and no gradient is wanted, else copies through which it flows.
        """
        if not torch.is_grad_enabled() and self._in_blocks():
            return self._blocks
        up = torch.stack([torch.cat((expert.w1.weight, expert.w3.weight)) for expert in self])
        return up, torch.stack([expert.w2.weight for expert in self])

    def pack(self) -> None:
        """Move the weights into the two blocks; each stays a parameter of its expert, as a view."""
        layers = [layer for expert in self for layer in (expert.w1, expert.w2, expert.w3)]
        if self._blocks is not None or not all(isinstance(layer, Linear) for layer in layers):
            return
        like = self[0].w1.weight
        F_, D = like.shape
        self._blocks = laid_out((len(self), 2 * F_, D), like), laid_out((len(self), D, F_), like)
        for expert, up, down in zip(self, *self._blocks, strict=True):
            pack_together((expert.w1, expert.w3), up)
            pack_together((expert.w2,), down)

    def unpack(self) -> None:
        """Forget the blocks; each weight gets memory of its own again when its layer is unpacked."""
        self._blocks = None

    def _in_blocks(self) -> bool:
        """Whether the weights still are what lies in the blocks."""
        return self._blocks is not None and all(
            still_in(up, (expert.w1, expert.w3)) and still_in(down, (expert.w2,))
            for expert, up, down in zip(self, *self._blocks, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:  # of a copy, whose weights get memory of their own
        return self.__dict__ | {"_blocks": None}

    def _apply(self, fn, recurse=True):  # moves to a device, changes the dtype: each weight for itself
        self.unpack()
        return super()._apply(fn, recurse)


def reference_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Token by token, choice by choice: the formula as it stands. x (N, D) to (N, D)."""
    tokens = []
    for token_idx in range(x.shape[0]):
        y = torch.zeros_like(x[0])
        for weight, expert_idx in zip(routing.weights[token_idx], routing.experts[token_idx].tolist(), strict=True):
            y = y + (weight * experts[expert_idx](x[token_idx])).to(x.dtype)
        tokens.append(y)
    return torch.stack(tokens) if tokens else x  # no tokens, nothing to do


def sorted_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Expert by expert: sort the N·K choices by expert, and run each expert once on all of its tokens.

    Experts without a token do nothing. x (N, D) to (N, D).
    """
    if len(x) == 1:  # nothing to sort
        chosen = zip(routing.weights[0], routing.experts[0].tolist(), strict=True)
        return sum((weight * experts[expert_idx](x)).to(x.dtype) for weight, expert_idx in chosen)
    K = routing.experts.shape[1]
    order = routing.experts.flatten().argsort(stable=True)  # (N*K,), the choices grouped by expert
    counts = routing.experts.flatten().bincount(minlength=len(experts)).tolist()
    token_idx = (order // K).split(counts)
    weights = routing.weights.flatten()[order].split(counts)
    y = torch.zeros_like(x)
    for expert_idx in range(len(experts)):
        if counts[expert_idx]:
            out = experts[expert_idx](x[token_idx[expert_idx]]) * weights[expert_idx][:, None]
            y.index_add_(0, token_idx[expert_idx], out.to(x.dtype))
    return y


def dense_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Every expert on every token, and nothing of it where it was not chosen. x (N, D) to (N, D).

    Which kernels run does not depend on the choices, so nothing waits for them. Several tokens choose most experts
    anyway; a single one pays for that by reading E experts instead of K.
    """
    weights = torch.zeros(len(x), len(experts), device=x.device).scatter(1, routing.experts, routing.weights)  # (N, E)
    pairs = zip(weights.split(1, dim=1), experts, strict=True)
    return sum(torch.where(weight > 0, weight * expert(x), 0).to(x.dtype) for weight, expert in pairs)


def grouped_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """All experts at once: sorted choices, and one product in which each group of rows meets its own matrix.

    How many rows an expert gets stays on the device, so nothing waits for it, and `torch.compile` sees one graph. Where
    the product does not take a model (in double precision, quantized, sizes that are no multiples of 16 bytes; on a GPU
    anything but bfloat16 on Hopper or Blackwell) this is `sorted_dispatch`, or for a few tokens on a GPU
    `dense_dispatch`. x (N, D) to (N, D).
    """
    N, K = routing.experts.shape
    if not _takes_grouped_product(x, experts):
        return (dense_dispatch if _suits_dense(x) else sorted_dispatch)(x, routing, experts)
    chosen, order = routing.experts.flatten().sort(stable=True)  # (N*K,)
    ends = torch.searchsorted(chosen, torch.arange(len(experts), device=x.device), right=True).int()  # (E,)
    up, down = experts.stacked()
    product = F.grouped_mm
    if torch.compiler.is_compiling() and not torch.is_grad_enabled() and x.device.type == "cpu":
        product = _grouped_product
    gate, up = product(x[order // K], up.mT, offs=ends).chunk(2, dim=-1)  # (N*K, F) each
    out = product(F.silu(gate) * up, down.mT, offs=ends)  # (N*K, D)
    out = out[order.argsort()].view(N, K, -1)
    return (routing.weights[..., None] * out).sum(dim=1).to(x.dtype)


@torch.library.custom_op("mixtral_edu::grouped_product", mutates_args=())
def _grouped_product(x: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
    """`F.grouped_mm` on a CPU as one piece: `torch.compile` itself takes it in bfloat16 only."""
    return F.grouped_mm(x, weights, offs=offs)


@_grouped_product.register_fake
def _(x: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
    return x.new_empty(len(x), weights.shape[2])


def _suits_dense(x: Tensor) -> bool:
    """Whether to read every expert, so that nothing waits for the choices: a few tokens on a GPU."""
    return x.device.type == "cuda" and len(x) <= _FEW_TOKENS


def _takes_grouped_product(x: Tensor, experts: Sequence[Expert]) -> bool:
    """Whether PyTorch's product of groups can do it: plain weights of a type it takes, in rows of whole 16 bytes.

    On other GPUs it runs too, but reads the groups' sizes back to the host.
    """
    if x.device.type == "cuda":
        takes = x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) in _GROUPING_GPUS
    else:
        takes = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not takes or not isinstance(experts, Experts) or not isinstance(experts[0].w1, Linear):
        return False
    weight = experts[0].w1.weight
    return weight.dtype == x.dtype and all(size * x.element_size() % 16 == 0 for size in weight.shape)


EXPERT_DISPATCH: dict[str, Callable[..., Tensor]] = {
    "reference": reference_dispatch,
    "sorted": sorted_dispatch,
    "grouped": grouped_dispatch,
}


class SparseMoE(nn.Module):
    """Router and experts of one layer, in place of a Transformer's single feed-forward network.

    Raises:
        ValueError: `config.experts_implementation` names no form of dispatch.
    """

    def __init__(self, config: MixtralConfig):
        super().__init__()
        if config.experts_implementation not in EXPERT_DISPATCH:
            raise ValueError(
                f"experts_implementation={config.experts_implementation!r}: one of {sorted(EXPERT_DISPATCH)} is wanted"
            )
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
        router_logits: one (N, E) tensor a layer.
        num_experts: E.
        top_k: K.
        attention_mask: (B, T) with B*T = N; tokens where it is 0 do not count.
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
