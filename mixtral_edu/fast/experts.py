"""Other ways to send tokens through their experts: all experts in one product, or without waiting for the choices.

One product over the sorted choices of all experts lets `torch.compile` and CUDA graphs see a layer as one piece, as how
many rows an expert gets stays on the device. For a single token there is nothing to sort: with experts of 256 x 256
that takes 0.55 of the time of `sorted_dispatch` (0.49 to 0.59, one thread of an Intel Xeon); with 512 x 1,792, where
reading the weights is most of the time, 0.9 (0.67 to 1.13).

Source: one product over groups of unequal size, MegaBlocks, arXiv 2211.15841; in PyTorch `grouped_mm`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mixtral_edu.fast import copies
from mixtral_edu.fast.linear import Linear
from mixtral_edu.moe import Expert, RouterOutput, SparseMoE, sorted_dispatch

_GROUPING_GPUS = ((9, 0), (10, 0))  # compute capabilities that PyTorch has a kernel for, Hopper's and Blackwell's
_FEW_TOKENS = 64  # cost an expert hardly more than one does: the time of reading its weights
_OWN_FORWARD = {Expert: Expert.forward, Linear: Linear.forward, nn.Linear: nn.Linear.forward}


class FastMoE(SparseMoE):
    """`SparseMoE` with the engine's ways to dispatch."""

    def dispatch(self, x: Tensor, routing: RouterOutput) -> Tensor:
        """Compute the sum over each token's experts in the way that the config names. x (N, D) to (N, D)."""
        form = self.config.experts_implementation
        if form == "grouped":
            return grouped_dispatch(x, routing, self.experts, copies.of(self))
        if form == "sorted" and len(x) == 1 and not (torch.is_grad_enabled() and self.training):
            return single_dispatch(x, routing, self.experts)
        return super().dispatch(x, routing)

    def make_copy(self, num_steps: float) -> tuple[Tensor, Tensor] | None:
        """Return the experts' weights stacked, to be kept, if the form in use multiplies with all of them at once."""
        used = self.config.experts_implementation == "grouped" and math.isinf(num_steps)
        if not used or not are_stackable(self.experts):
            return None
        weight = self.experts[0].w1.weight
        return stacked(self.experts) if _takes_groups(weight.dtype, weight.device) and _fits(weight) else None


def single_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Run the experts of a single token, one by one. x (1, D) to (1, D)."""
    chosen = zip(routing.weights[0], routing.experts[0].tolist(), strict=True)
    return sum((weight * experts[expert_idx](x)).to(x.dtype) for weight, expert_idx in chosen)


def dense_dispatch(x: Tensor, routing: RouterOutput, experts: Sequence[Expert]) -> Tensor:
    """Every expert on every token, and nothing of it where it was not chosen. x (N, D) to (N, D).

    Which kernels run does not depend on the choices, so nothing waits for them. Several tokens choose most experts
    anyway; a single one pays for that by reading E experts instead of K.
    """
    weights = torch.zeros(len(x), len(experts), dtype=routing.weights.dtype, device=x.device)
    weights = weights.scatter(1, routing.experts, routing.weights)  # (N, E)
    pairs = zip(weights.split(1, dim=1), experts, strict=True)
    return sum(torch.where(weight > 0, weight * expert(x), 0).to(x.dtype) for weight, expert in pairs)


def grouped_dispatch(
    x: Tensor, routing: RouterOutput, experts: Sequence[Expert], copy: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """All experts at once: sorted choices, and one product in which each group of rows meets its own matrix.

    How many rows an expert gets stays on the device, so nothing waits for it, and `torch.compile` sees one graph. Where
    the product does not take a model (in double precision, quantized, sizes that are no multiples of 16 bytes, experts
    with hooks, adapters or other changes; on a GPU anything but bfloat16 on Hopper or Blackwell) this is
    `sorted_dispatch`, or for a few tokens on a GPU `dense_dispatch`.

    Args:
        x: (N, D).
        routing: for these tokens.
        experts: E of them.
        copy: their weights, `stacked`. Without it they are stacked here, which for a few tokens takes longer than
            everything else, so those go the other way.

    Returns:
        (N, D).
    """
    N, K = routing.experts.shape
    weights = _weights_for(x, experts, copy)
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


_grouped_product.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def stacked(experts: Sequence[Expert]) -> tuple[Tensor, Tensor]:
    """Return all experts' weights: w1 above w3 (E, 2F, D), and w2 (E, D, F); gradients flow through them."""
    up = torch.stack([torch.cat((expert.w1.weight, expert.w3.weight)) for expert in experts])
    return up, torch.stack([expert.w2.weight for expert in experts])


def are_stackable(experts: Sequence[nn.Module]) -> bool:
    """Whether stacked weights are all that these experts are: each as this package makes it, all of one size."""
    if len(experts) == 0 or not all(type(expert) is Expert and is_untouched(expert) for expert in experts):
        return False
    layers = [layer for expert in experts for layer in (expert.w1, expert.w3, expert.w2)]
    if not all(type(layer) in (Linear, nn.Linear) and is_untouched(layer) for layer in layers):
        return False
    kinds = [(layer.weight.shape, layer.weight.dtype, layer.weight.device) for layer in layers]
    return kinds == kinds[:3] * len(experts)


def is_untouched(module: nn.Module) -> bool:
    """Whether calling this module would run this package's own code for it, and nothing else.

    A subclass, an adapter in its place, a hook, a parametrization, pruning, a bias given to it, a forward that was
    replaced: a faster way around any of these would leave it out silently.
    """
    kind = type(module)
    if _OWN_FORWARD.get(kind) is not kind.forward or "forward" in module.__dict__:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    parameters = [name for name, p in module._parameters.items() if p is not None]
    return not _has_any_global_hook() and parameters == (["weight"] if hasattr(module, "weight") else [])


def _suits_dense(x: Tensor) -> bool:
    """Whether to read every expert, so that nothing waits for the choices: a few tokens on a GPU."""
    return x.device.type == "cuda" and len(x) <= _FEW_TOKENS


def _weights_for(
    x: Tensor, experts: Sequence[Expert], copy: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """Return the experts' weights as one product takes them; None if it does not take them or would not pay."""
    if not _takes_groups(x.dtype, x.device) or not are_stackable(experts):
        return None
    weight = experts[0].w1.weight
    if weight.dtype != x.dtype or not _fits(weight):
        return None
    if copy is not None and not torch.is_grad_enabled():
        return copy
    only_reads = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return None if only_reads and len(x) <= _FEW_TOKENS else stacked(experts)


def _takes_groups(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PyTorch has a kernel for groups. (On other GPUs it runs too, but reads their sizes back to the host.)"""
    if device.type == "cuda":
        return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) in _GROUPING_GPUS
    return dtype in (torch.float32, torch.bfloat16, torch.float16)


def _fits(weight: Tensor) -> bool:
    """Whether all rows are whole units of 16 bytes, as the kernels want them."""
    return not any(size * weight.itemsize % 16 for size in weight.shape)
