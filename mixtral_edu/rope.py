"""Rotary position embedding: position is a rotation of queries and keys, so scores depend on distance alone.

The numbers of a head are turned in pairs. Pair i of Dh/2 turns by `position · theta^(-2i/Dh)` radians. This module
pairs number i with number i + Dh/2 (the half-split layout of Hugging Face checkpoints); raw Mistral files pair
neighbours 2i and 2i + 1 instead, which is the same up to a permutation of the rows of the q and k matrices.

Source: Su et al. 2021, arXiv 2104.09864.
"""

import torch
from torch import Tensor


def rotary_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return the angle that each pair turns by per position, in radians: (Dh/2,) in float32.

    >>> rotary_frequencies(4, theta=100.0)
    tensor([1.0000, 0.1000])
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each position's angles, each (B, T, Dh), for positions (B, T); B may be 1.

    Angles are computed in float32: bfloat16 cannot tell position 1000 from 1001. The result is given in `dtype`.
    """
    frequencies = rotary_frequencies(head_dim, theta, positions.device)
    angles = positions[..., None].float() * frequencies  # (B, T, Dh/2)
    angles = torch.cat((angles, angles), dim=-1)  # (B, T, Dh)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's vector x (B, H, T, Dh) by tables (B, T, Dh) of its token's position.

    (a, b) -> (a·cos - b·sin, b·cos + a·sin)      for the pair a = x[i], b = x[i + Dh/2]
    """
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (B, 1, T, Dh), shared by all heads
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin
