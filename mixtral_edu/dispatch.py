"""Ways to send each token through the experts that the router chose for it; all give the same sum.

    y = Σ_k weights_k · expert_{experts_k}(x)        k = 1 … K, for each token x

Source: one product over groups of unequal size, MegaBlocks, arXiv 2211.15841; in PyTorch `grouped_mm`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_edu.experts import Expert, Experts

_GROUPING_GPUS = ((9, 0), (10, 0))  # compute capabilities that PyTorch has a kernel for, Hopper's and Blackwell's
_FEW_TOKENS = 64  # cost an expert hardly more than one does: the time of reading its weights


class RouterOutput(NamedTuple):
    """The router's decision for N tokens.

    `logits` (N, E) in the model's dtype; `experts` (N, K), the chosen experts, best first; `weights` (N, K) in float32,
    positive and of sum 1 for each token.
    """

    logits: Tensor
    weights: Tensor
    experts: Tensor


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

    Experts without a token do nothing, or in training get a batch of no tokens: so each weight has a gradient, if only
    of zeros, and processes that train one model together agree on what they exchange. x (N, D) to (N, D).
    """
    is_training = torch.is_grad_enabled() and any(getattr(expert, "training", False) for expert in experts)
    if len(x) == 1 and not is_training:  # nothing to sort
        chosen = zip(routing.weights[0], routing.experts[0].tolist(), strict=True)
        return sum((weight * experts[expert_idx](x)).to(x.dtype) for weight, expert_idx in chosen)
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


def dense_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Every expert on every token, and nothing of it where it was not chosen. x (N, D) to (N, D).

    Which kernels run does not depend on the choices, so nothing waits for them. Several tokens choose most experts
    anyway; a single one pays for that by reading E experts instead of K.
    """
    weights = torch.zeros(len(x), len(experts), dtype=routing.weights.dtype, device=x.device)
    weights = weights.scatter(1, routing.experts, routing.weights)  # (N, E)
    pairs = zip(weights.split(1, dim=1), experts, strict=True)
    return sum(torch.where(weight > 0, weight * expert(x), 0).to(x.dtype) for weight, expert in pairs)


def grouped_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """All experts at once: sorted choices, and one product in which each group of rows meets its own matrix.

    How many rows an expert gets stays on the device, so nothing waits for it, and `torch.compile` sees one graph. Where
    the product does not take a model (in double precision, quantized, sizes that are no multiples of 16 bytes, experts
    with hooks, adapters or other changes; on a GPU anything but bfloat16 on Hopper or Blackwell) this is
    `sorted_dispatch`, or for a few tokens on a GPU `dense_dispatch`. x (N, D) to (N, D).
    """
    N, K = routing.experts.shape
    weights = _stacked_for(x, experts)
    if weights is None:
        return (dense_dispatch if _suits_dense(x) else sorted_dispatch)(x, routing, experts)
    chosen, order = routing.experts.flatten().sort(stable=True)  # (N*K,)
    ends = torch.searchsorted(chosen, torch.arange(len(experts), device=x.device), right=True).int()  # (E,)
    up, down = weights
    # `torch.compile` itself takes the product in bfloat16 only.
    product = _grouped_product if torch.compiler.is_compiling() and x.device.type == "cpu" else F.grouped_mm
    gate, up = product(x[order // K], up.mT, offs=ends).chunk(2, dim=-1)  # (N*K, F) each
    out = product(F.silu(gate) * up, down.mT, offs=ends)  # (N*K, D)
    out = out[order.argsort()].view(N, K, -1)
    return (routing.weights[..., None] * out).sum(dim=1).to(x.dtype)


@torch.library.custom_op("mixtral_edu::grouped_product", mutates_args=())
def _grouped_product(x: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
    """`F.grouped_mm` on a CPU as one piece, which `torch.compile` does not look into."""
    return F.grouped_mm(x, weights, offs=offs)


@_grouped_product.register_fake
def _(x: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
    return x.new_empty(len(x), weights.shape[2])


@torch.library.custom_op("mixtral_edu::grouped_product_backward", mutates_args=())
def _grouped_product_backward(grad: Tensor, x: Tensor, weights: Tensor, offs: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `_grouped_product` with respect to x (N, D) and weights (E, D, F), for those of (N, F)."""
    grad = grad.contiguous()  # an expanded one is refused
    return F.grouped_mm(grad, weights.mT, offs=offs), F.grouped_mm(x.mT, grad, offs=offs)


@_grouped_product_backward.register_fake
def _(grad: Tensor, x: Tensor, weights: Tensor, offs: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), weights.new_empty(weights.shape)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_grouped_product_backward(grad, *ctx.saved_tensors), None


_grouped_product.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def _suits_dense(x: Tensor) -> bool:
    """Whether to read every expert, so that nothing waits for the choices: a few tokens on a GPU."""
    return x.device.type == "cuda" and len(x) <= _FEW_TOKENS


def _stacked_for(x: Tensor, experts: Sequence[Expert]) -> tuple[Tensor, Tensor] | None:
    """Return the experts' weights as one product takes them; None if it does not take them or would not pay.

    PyTorch has kernels for weights of some types, in rows of whole 16 bytes. (On other GPUs it runs too, but reads the
    groups' sizes back to the host.) Without a copy the weights are stacked first, which for a few tokens takes longer
    than everything else.
    """
    if x.device.type == "cuda":
        takes = x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) in _GROUPING_GPUS
    else:
        takes = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not takes or type(experts) is not Experts or not experts.are_stackable():
        return None
    weight = experts[0].w1.weight
    if weight.dtype != x.dtype or any(size * x.element_size() % 16 for size in weight.shape):
        return None
    if (copied := experts.stacked_copy()) is not None:
        return copied
    only_reads = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return None if only_reads and len(x) <= _FEW_TOKENS else experts.stacked()


EXPERT_DISPATCH: dict[str, Callable[..., Tensor]] = {
    "reference": reference_dispatch,
    "sorted": sorted_dispatch,
    "grouped": grouped_dispatch,
}
