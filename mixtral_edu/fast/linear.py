"""Linear layers that multiply in the fastest way of this machine, and are usable in half precision on any.

y = x wᵀ        x (..., D), w (F, D), y (..., F)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.fast import copies, products

# What this processor has no instructions for, as far as PyTorch's CPU library knows, where it is part of PyTorch.
_EMULATED = {
    dtype
    for dtype, name in ((torch.bfloat16, "_is_mkldnn_bf16_supported"), (torch.float16, "_is_mkldnn_fp16_supported"))
    if torch.backends.mkldnn.is_available() and not getattr(torch.ops.mkldnn, name, lambda: True)()
}
_FEW_ROWS = 2  # with no more rows, a product in half precision is faster than converting the weights
_STEPS_PER_USE = 4  # of an expert: two of eight meet a token
_PIECE = 2**19  # numbers of a matrix that are converted at once: memory for more takes longer to get than to fill


class Linear(nn.Linear):
    """`nn.Linear` with the engine's product; with a bias, which only heads have, as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        if self.bias is not None:
            return super().forward(x)
        copy = copies.of(self)
        if copy is None or torch.is_grad_enabled() or not products.may_reorder(x, self.weight):
            return multiply(x, self.weight)
        return products.multiply_reordered(x, copy)

    def make_copy(self, num_steps: float) -> Tensor | None:
        """Return the weight in another order, if that is read faster and pays within so many steps."""
        weight = self._parameters.get("weight")  # not one that is computed when it is asked for
        if weight is None or weight.dtype in _EMULATED:
            return None
        return products.reordered(weight, num_steps / _STEPS_PER_USE)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Map x (..., D) to x wᵀ (..., F) with w (F, D).

    Processors without instructions for bfloat16 or float16 multiply such numbers one by one. Where there are more than
    a few rows, the product is then taken in float32, piece by piece, and rounded once, as those do that have them.
    """
    if x.dtype in _EMULATED and x.dtype == weight.dtype and multiplies_in_float32(x):
        wide, pieces = x.float(), weight.split(max(1, _PIECE // weight.shape[1]))
        return torch.cat([F.linear(wide, piece.float()) for piece in pieces], dim=-1).to(x.dtype)
    return products.multiply(x, weight)


def multiplies_in_float32(x: Tensor) -> bool:
    """Whether `multiply` converts x (..., D) and the weights to float32 first."""
    return x.numel() > _FEW_ROWS * x.shape[-1] and x.device.type == "cpu" and x.dtype in _EMULATED
