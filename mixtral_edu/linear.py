"""Linear layers without bias, and how weights lie in memory while a model is only read.

    y = x wᵀ        x (..., D), w (F, D), y (..., F)

To continue a text, each token multiplies one row with every weight that is active: the time is that of reading them.
A processor in float32 reads fastest along the longer side of a matrix, so while a model generates, that side is the
contiguous one, and layers that share an input lie in one block. The numbers, their shape and their names stay the
same; only strides change, so a packed weight is still a parameter.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Linear(nn.Linear):
    """`nn.Linear` without bias, that can be packed, and is usable in half precision on any processor.

    `block` is None, or, where several layers that share an input were packed together, their weights as one matrix,
    which starts with this layer's.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.block: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        return multiply(x, self.weight)

    def pack(self) -> None:
        """Lay the weight out for reading."""
        if self.weight.is_contiguous() and _reads_down(self.weight.shape, self.weight):
            self.weight.data = laid_out(self.weight.shape, self.weight).copy_(self.weight.data)

    def unpack(self) -> None:
        """Lay the weight out row by row, as it was, in memory of its own."""
        self.block = None
        if not self.weight.is_contiguous() or self.weight.untyped_storage().nbytes() > self.weight.nbytes:
            self.weight.data = self.weight.data.clone(memory_format=torch.contiguous_format)

    def _apply(self, fn, recurse=True):  # moves to a device, changes the dtype: each weight for itself
        self.block = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:  # of a copy, whose weights get memory of their own
        return self.__dict__ | {"block": None}


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
    """Map x (..., D) through several layers; in one product where their weights lie in one block."""
    block = getattr(layers[0], "block", None)
    if block is None or torch.is_grad_enabled() or not still_in(block, layers):
        return tuple(layer(x) for layer in layers)
    return multiply(x, block).split([layer.out_features for layer in layers], dim=-1)


def pack_together(layers: Sequence[Linear], block: Tensor | None = None) -> None:
    """Move the weights of layers that share an input into one block; each stays a parameter of its layer, as a view.

    Args:
        layers: of F₁, F₂ … outputs; nothing happens unless each is a `Linear`.
        block: (F₁ + F₂ + …, D), memory to use; made here if None.
    """
    if not all(isinstance(layer, Linear) for layer in layers) or layers[0].block is not None:
        return
    sizes, like = [layer.out_features for layer in layers], layers[0].weight
    if block is None:
        block = laid_out((sum(sizes), like.shape[1]), like)
    for layer, place in zip(layers, block.split(sizes), strict=True):
        layer.weight.data = place.copy_(layer.weight.data)
    layers[0].block = block


def still_in(block: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether each layer's weight still is its part of the block, and nobody wants to see the layers one by one."""
    if torch.compiler.is_compiling():  # where memory has no address: taken as packed last
        return True
    places = block.split([layer.out_features for layer in layers])
    return all(
        not layer._forward_hooks and not layer._forward_pre_hooks and layer.weight.data_ptr() == place.data_ptr()
        for layer, place in zip(layers, places, strict=True)
    )


def laid_out(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return memory for matrices (..., F, D) of the type of `like`, in the order that is read fastest.

    Elsewhere than in single or double precision on a CPU that is row by row, as kernels for those expect.

    >>> laid_out((1792, 512), torch.zeros(1)).stride(), laid_out((512, 1792), torch.zeros(1)).stride()
    ((1, 1792), (1792, 1))
    """
    if _reads_down(shape, like):
        *batch, outputs, inputs = shape
        return like.new_empty(*batch, inputs, outputs).mT
    return like.new_empty(shape)


def _reads_down(shape: tuple[int, ...], like: Tensor) -> bool:
    """Whether a matrix is read fastest column by column."""
    outputs, inputs = shape[-2:]
    return like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64) and outputs > inputs
