"""RMSNorm: rescale each vector to a root mean square of 1, so that each layer reads numbers of one scale."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension: LayerNorm without subtracting the mean.

        y = x / sqrt(mean(x²) + eps) · weight

    The mean square is taken in float32, because squares in half precision overflow or lose digits. The result has the
    dtype of x again before `weight` multiplies it. `eps` keeps a vector of zeros from a division by zero.
    Source: Zhang & Sennrich 2019, arXiv 1910.07467.
    """

    def __init__(self, size: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D), keeping its shape, and its dtype if `weight` has the same one."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
