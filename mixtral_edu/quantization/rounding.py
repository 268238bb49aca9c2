"""How a matrix is rounded to 8-bit or 4-bit integers: to the nearest, without calibration.

    8 bits:  w ≈ q · scale                    q from -127 to 127, one scale for each row of a matrix
    4 bits:  w ≈ (q - 8) · scale + zero       q from 0 to 15, scale and zero for each group of neighbours in a row

Source: group-wise rounding as in GPTQ and AWQ without their corrections, arXiv 2210.17323 and 2306.00978; the 4-bit
formula is that of PyTorch's kernels.
"""

import torch
from torch import Tensor


def quantize_rows(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits: integers and scales such that `weight ≈ q * scale[:, None]`.

    >>> q, scale = quantize_rows(torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0]]), torch.float32)
    >>> q
    tensor([[  64, -127,   32],
            [   0,    0,    0]], dtype=torch.int8)
    >>> [round(s, 5) for s in scale.tolist()]
    [0.00787, 0.0]

    Args:
        weight: (F, D).
        dtype: of the scales; q is chosen for them as they are rounded.

    Returns:
        (F, D) in int8, and (F,) in `dtype`.
    """
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / 127).to(dtype)  # (F,)
    steps = (weight / scale.float()[:, None]).nan_to_num_(0)  # a row of zeros has scale 0
    return steps.round_().clamp_(-127, 127).to(torch.int8), scale


def quantize_groups(weight: Tensor, group_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix to 4 bits: integers, and scale and zero of each group, `weight ≈ (q - 8) * scale + zero`.

    A group's smallest number becomes q = 0, its largest q = 15.

    >>> q, scale, zero = quantize_groups(torch.tensor([[0.0, 1.0, 15.0, 7.0]]), group_size=4, dtype=torch.float32)
    >>> q, scale, zero
    (tensor([[ 0,  1, 15,  7]], dtype=torch.uint8), tensor([[1.]]), tensor([[8.]]))

    Args:
        weight: (F, D).
        group_size: g, a divisor of D.
        dtype: of scale and zero; q is chosen for them as they are rounded.

    Returns:
        (F, D) in uint8 with values 0 to 15, and twice (F, D/g) in `dtype`.
    """
    groups = weight.float().unflatten(1, (-1, group_size))  # (F, D/g, g)
    low, high = groups.aminmax(dim=2)  # (F, D/g) each
    scale = ((high - low) / 15).to(dtype)
    zero = (low + 8 * scale.float()).to(dtype)
    steps = (groups - zero.float()[..., None]).div_(scale.float()[..., None])  # in place: these matrices are large
    steps.nan_to_num_(0)  # where all are equal, scale is 0 and zero says it all
    return steps.round_().add_(8).clamp_(0, 15).to(torch.uint8).flatten(1), scale, zero


def pack_pairs(q: Tensor) -> Tensor:
    """Put two neighbours (0 to 15 each) into one byte, the first into its upper half: (F, D) to (F, D/2) in uint8.

    >>> pack_pairs(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    tensor([[ 18, 240]], dtype=torch.uint8)
    """
    return q[:, ::2] << 4 | q[:, 1::2]


def unpack_pairs(packed: Tensor) -> Tensor:
    """The way back: (F, D/2) to (F, D)."""
    return torch.stack((packed >> 4, packed & 15), dim=2).flatten(1)
