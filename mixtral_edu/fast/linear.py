"""Linear layers that multiply in the fastest way of this machine, and are usable in half precision on any.

y = x wᵀ        x (..., D), w (F, D), y (..., F)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.fast import copies, products

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
_USED = 4  # steps per use of an expert, of which two of eight meet a token
_PIECE = 2**19  # numbers of a matrix that are converted at once: memory for more takes longer to get than to fill


class Linear(nn.Linear):
    """`nn.Linear` with the engine's product."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        copy = copies.of(self)
        if copy is None or torch.is_grad_enabled() or x.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
            y = multiply(x, self.weight)
        else:
            y = products.multiply_reordered(x, copy)
        return y if self.bias is None else y + self.bias

    def make_copy(self, num_steps: float) -> Tensor | None:
        """Return the weight in another order, if that is read faster and pays within so many steps."""
        weight = self.weight
        if not isinstance(weight, nn.Parameter) or weight.dtype in _EMULATED:
            return None
        return products.reordered(weight, num_steps / _USED)


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
