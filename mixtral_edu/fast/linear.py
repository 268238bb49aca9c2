"""Linear layers without bias that are usable in half precision on any processor.

    y = x wᵀ        x (..., D), w (F, D), y (..., F)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.fast.weights import FastWeights, Product, laid_out, may_be_bypassed, reads_down

# What this processor has no instructions for, as far as PyTorch's CPU library knows.
_EMULATED = {
    dtype
    for dtype, is_supported in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if torch.backends.mkldnn.is_available() and not is_supported()
}
_FEW_ROWS = 2  # up to so many, a product in half precision is faster than turning the weights into float32
_PIECE = 2**19  # of so many numbers of a matrix: to get memory for a large one takes longer than to multiply it


@may_be_bypassed
class Linear(nn.Linear):
    """`nn.Linear` without bias, usable in half precision on any processor.

    `product`: see `mixtral_edu.fast.weights`; None but while a model generates.
    """

    product: Product | None = None

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        copied = self.product is not None and not torch.is_grad_enabled() and self.product.stands_for(self)
        y = multiply(x, self.product.weight if copied else self.weight)
        return y if self.bias is None else y + self.bias  # which somebody may have given the layer

    def lay_out(self, fast: FastWeights) -> None:
        """Get a copy of the weight, if another order than its own is read faster."""
        lay_out_together(fast, (self,), if_faster=True)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Map x (..., D) to x wᵀ (..., F) with w (F, D).

    Processors without instructions for bfloat16 or float16 multiply such numbers one by one. Where there are more than
    a few rows, the product is then taken in float32, piece by piece, and rounded once, as those do that have them.
    """
    if x.dtype == weight.dtype and multiplies_in_float32(x):
        wide, pieces = x.float(), weight.split(max(1, _PIECE // weight.shape[1]))
        return torch.cat([F.linear(wide, piece.float()) for piece in pieces], dim=-1).to(x.dtype)
    return F.linear(x, weight)


def multiplies_in_float32(x: Tensor) -> bool:
    """Whether `multiply` turns x (..., D) and the weights into float32 first."""
    return x.numel() > _FEW_ROWS * x.shape[-1] and x.device.type == "cpu" and x.dtype in _EMULATED


def multiply_all(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Map x (..., D) through several layers; in one product where a copy of their weights lies in one block."""
    product = getattr(layers[0], "product", None)
    if product is None or torch.is_grad_enabled() or not product.stands_for(*layers):
        return tuple(layer(x) for layer in layers)
    return multiply(x, product.weight).split([layer.out_features for layer in layers], dim=-1)


def lay_out_together(
    fast: FastWeights, layers: Sequence[nn.Module], block: Tensor | None = None, if_faster: bool = False
) -> None:
    """Copy the weights of layers that share an input into one block, for `multiply_all`.

    Args:
        fast: whose copies these are.
        layers: of F₁, F₂ … outputs; nothing happens unless each is a `Linear` as this package made it, of one type.
        block: (F₁ + F₂ + …, D), memory to use; made here if None.
        if_faster: only if another order than the weights' own is read faster.
    """
    if not all(type(layer) is Linear for layer in layers) or not fast.takes(*layers):
        return
    sizes, like = [layer.out_features for layer in layers], layers[0].weight
    if any((layer.weight.dtype, layer.weight.device) != (like.dtype, like.device) for layer in layers):
        return
    shape = sum(sizes), like.shape[1]
    if if_faster and not reads_down(shape, like):
        return
    block = laid_out(shape, like) if block is None else block
    for layer, place in zip(layers, block.split(sizes), strict=True):
        place.copy_(layer.weight)
    fast.add(layers[0], layers, block)
