"""Rotary position embedding (RoPE): rotate queries and keys by angles proportional to their tokens' positions.

Attention scores a query against a key by their dot product (see `attention`). Once both are rotated, their positions
enter the score only through the distance between them.

The Dh numbers of a head are rotated in pairs. Pair i of Dh/2 turns by `position · theta^(-2i/Dh)` radians: the first
pairs tell neighbours apart, the last ones suit long texts. This module pairs number i with number i + Dh/2, the
half-split layout of Hugging Face checkpoints. Raw Mistral files pair neighbours 2i and 2i + 1 instead, which is the
same up to the order of the rows of the q and k matrices.

Source: Su et al. 2021, arXiv 2104.09864.
"""

import torch
from torch import Tensor


def rotary_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return the angle in radians by which each pair turns per position, (Dh/2,) in float32.

    >>> rotary_frequencies(4, theta=100.0)
    tensor([1.0000, 0.1000])
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the angles at positions (B, T), each (B, T, Dh); B may be 1 for all rows.

    Angles are computed in float32: bfloat16 cannot tell position 1000 from 1001. The tables are returned in `dtype`.
    """
    frequencies = rotary_frequencies(head_dim, theta, positions.device)
    angles = positions[..., None].float() * frequencies  # (B, T, Dh/2)
    angles = torch.cat((angles, angles), dim=-1)  # (B, T, Dh), the same for both numbers of a pair
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the vectors x (B, H, T, Dh) of H heads by the tables `cos` and `sin` (B, T, Dh) of their positions.

    (a, b) -> (a·cos - b·sin, b·cos + a·sin)      for the pair a = x[i], b = x[i + Dh/2]
    """
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (B, 1, T, Dh), shared by all heads
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin
