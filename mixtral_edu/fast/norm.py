"""RMSNorm as one call of PyTorch: 0.7 of the time for one token, and in training (Intel Xeon, one thread).

Only in float32, where it computes the same bits. In half precision it rounds once where transformers rounds twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_edu.norm import RMSNorm


class FastNorm(RMSNorm):
    """`RMSNorm` through `torch.nn.functional.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D)."""
        if x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(x)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
