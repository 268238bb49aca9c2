"""Linear layers without bias that are usable in half precision on any processor.

    y = x wᵀ        x (..., D), w (F, D), y (..., F)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.fast.weights import Product, current_copy, is_untouched, laid_out, may_be_bypassed, reads_down

# What this processor has no instructions for, as far as PyTorch's CPU library knows.
_EMULATED = {
    dtype
    for dtype, is_supported in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if torch.backends.mkldnn.is_available() and not is_supported()
}
_FEW_ROWS = 2  # with no more rows, a product in half precision is faster than converting the weights
_PIECE = 2**19  # numbers of a matrix that are converted at once: memory for more takes longer to get than to fill


@may_be_bypassed
class Linear(nn.Linear):
    """`nn.Linear` without bias, usable in half precision on any processor.

    `product`: a copy of the weight, or of it and of neighbours', if `keep_fast_weights` made one.
    """

    product: Product | None = None

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        copied = None if self.product is None or torch.is_grad_enabled() else current_copy(self, self)
        y = multiply(x, self.weight if copied is None else copied)
        return y if self.bias is None else y + self.bias  # which somebody may have given the layer


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
    """Whether `multiply` converts x (..., D) and the weights to float32 first."""
    return x.numel() > _FEW_ROWS * x.shape[-1] and x.device.type == "cpu" and x.dtype in _EMULATED


def multiply_all(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Map x (..., D) through several layers; in one product where a copy of their weights lies in one block."""
    if not torch.is_grad_enabled() and getattr(layers[0], "product", None) is not None:
        block = current_copy(layers[0], *layers)
        if block is not None and all(map(is_untouched, layers)):
            return multiply(x, block).split([len(layer.weight) for layer in layers], dim=-1)
    return tuple(layer(x) for layer in layers)


def lay_out_together(*layers: nn.Module, block: Tensor | None = None) -> None:
    """Copy the weights of layers that share an input into one block, for `multiply_all`.

    Args:
        layers: of F₁, F₂ … outputs; nothing happens unless each is a `Linear` as this package made it, of one type.
        block: (F₁ + F₂ + …, D), memory to use. If None, memory is taken, but only if its order is read faster.
    """
    if not all(type(layer) is Linear and is_untouched(layer) for layer in layers):
        return
    weights = [layer.weight for layer in layers]
    like, shape = weights[0], (sum(map(len, weights)), weights[0].shape[1])
    if any((w.dtype, w.device) != (like.dtype, like.device) or w.is_inference() for w in weights):
        return  # inference tensors do not tell when they are written to
    if block is None:
        if len(layers) == 1 and not reads_down(shape, like):
            return
        block = laid_out(shape, like)
    for weight, place in zip(weights, block.split([len(weight) for weight in weights]), strict=True):
        place.copy_(weight)
    layers[0].product = Product(layers, block)
