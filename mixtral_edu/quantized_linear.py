"""Linear layers whose weights are 8-bit or 4-bit integers, and how a matrix is rounded to them.

    8 bits:  w ≈ q · scale                    q from -127 to 127, one scale for each row of a matrix
    4 bits:  w ≈ (q - 8) · scale + zero       q from 0 to 15, scale and zero for each group of neighbours in a row

Activations stay as they are: a product turns the integers back first, `F.linear(x, layer.dequantize())`, or leaves that
to a kernel of PyTorch that does it on the way. The first form says what is computed, and is the faster one for many
rows, the second for few. Round to nearest, no calibration.

Source: group-wise rounding as in GPTQ and AWQ without their corrections, arXiv 2210.17323 and 2306.00978; the 4-bit
formula is that of PyTorch's kernels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.linear import multiplies_in_float32

_HALVES = (torch.bfloat16, torch.float16)
_KERNEL_ROWS = 32  # for more, turning 8 bits back once is faster on a CPU than on the way, row by row


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


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights are 8-bit integers with one scale a row.

    Buffers: `weight_int8` (F, D), `scale` (F,) in the dtype of the activations that it takes.
    """

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype | None = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight_int8", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(out_features, dtype=dtype))

    def quantize_(self, weight: Tensor, dtype: torch.dtype) -> Self:
        """Take the values of `weight` (F, D); the scales get `dtype`."""
        self.weight_int8, self.scale = quantize_rows(weight, dtype)
        return self

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weights as numbers, (F, D), rounded to `dtype`; by default to that of the scales."""
        dtype = dtype or self.scale.dtype
        return self.weight_int8.to(dtype) * self.scale.to(dtype)[:, None]  # integers up to 127 are exact in any dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        if not _takes_kernel(x, self.in_features, self.scale.dtype) or not _int8_kernel_takes(x):
            return _multiply_turned_back(x, self, self.scale.dtype)
        y = torch.ops.aten._weight_int8pack_mm(_as_rows(x), self.weight_int8, self.scale)
        return y.view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Int4Linear(nn.Module):
    """A linear layer without bias whose weights are 4-bit integers, with a scale and a zero for each group.

    Buffers: `weight_int4` (F, D/2) in uint8, two neighbours a byte; `scale_and_zero` (D/g, F, 2) in the dtype of the
    activations, in the order that PyTorch's kernels read. `pack` rearranges `weight_int4` into the layout of such a
    kernel, and from then on products go through it: far faster for few rows, slower for many, and slowest where the
    kernel cannot take the input (where gradients are wanted, say). `unpack` turns it back, and so do saving, loading,
    copying and moving the layer.
    """

    def __init__(self, in_features: int, out_features: int, group_size: int, dtype: torch.dtype | None = None):
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.kernel: str | None = None  # in whose layout `weight_int4` lies; None: two neighbours a byte
        self.register_buffer("weight_int4", torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("scale_and_zero", torch.empty(in_features // group_size, out_features, 2, dtype=dtype))

    def quantize_(self, weight: Tensor, dtype: torch.dtype) -> Self:
        """Take the values of `weight` (F, D); scales and zeros get `dtype`."""
        q, scale, zero = quantize_groups(weight, self.group_size, dtype)
        self.kernel, self.weight_int4 = None, pack_pairs(q)
        self.scale_and_zero = torch.stack((scale.T, zero.T), dim=2)  # (D/g, F, 2)
        return self

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weights as numbers, (F, D), rounded to `dtype`; by default to that of the scales."""
        q = unpack_pairs(self._pairs()).unflatten(1, (-1, self.group_size)).float()  # (F, D/g, g)
        scale, zero = self.scale_and_zero.float().transpose(0, 1)[..., None].unbind(2)  # (F, D/g, 1) each
        weight = q.sub_(8).mul_(scale).add_(zero)  # in place: most of the time is that of passing through memory
        return weight.flatten(1).to(dtype or self.scale_and_zero.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        if self.kernel is None or not _takes_kernel(x, self.in_features, self.scale_and_zero.dtype):
            return _multiply_turned_back(x, self, self.scale_and_zero.dtype)
        return self._multiply(_as_rows(x), self.scale_and_zero).view(*x.shape[:-1], -1)

    def pack(self) -> None:
        """Rearrange `weight_int4` in place into the layout of PyTorch's kernel for its device, if there is one."""
        kernel = _int4_kernel_for(self.scale_and_zero, self.out_features, self.group_size)
        if kernel is not None and self.kernel is None:
            self.weight_int4, self.kernel = _INT4_KERNELS[kernel].pack(self.weight_int4), kernel

    def unpack(self) -> None:
        """Put two neighbours into each byte again."""
        self.weight_int4, self.kernel = self._pairs(), None

    def _multiply(self, x: Tensor, scale_and_zero: Tensor) -> Tensor:
        return _INT4_KERNELS[self.kernel].multiply(x, self.weight_int4, self.group_size, scale_and_zero)

    def _pairs(self) -> Tensor:
        """Two neighbours a byte, (F, D/2): read through the kernel, whatever its layout, as q = (q - 8) · 1 + 8."""
        if self.kernel is None:
            return self.weight_int4
        unit = torch.eye(self.in_features, dtype=torch.bfloat16, device=self.weight_int4.device)
        ones = torch.ones_like(self.scale_and_zero[..., 0], dtype=torch.bfloat16)  # holds 0 to 15 exactly
        q = self._multiply(unit, torch.stack((ones, 8 * ones), dim=2)).T  # (F, D)
        return pack_pairs(q.to(torch.uint8))

    def __getstate__(self) -> dict[str, Any]:  # of a copy, which may go to a processor whose kernel has another layout
        return self.__dict__ | {"kernel": None, "_buffers": self._buffers | {"weight_int4": self._pairs()}}

    def _apply(self, fn, recurse=True):  # moves to a device, changes the dtype
        self.unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *arguments):
        self.unpack()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments):
        self.unpack()
        super()._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group_size={self.group_size}"


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _takes_kernel(x: Tensor, in_features: int, dtype: torch.dtype) -> bool:
    """Kernels have no backward pass, trust the sizes that they are given, and want scales of x's dtype.

    Under autocast x may have another, which `F.linear` then takes.
    """
    fits = x.shape[-1] == in_features and x.numel() > 0 and x.dtype == dtype
    return fits and not (torch.is_grad_enabled() and x.requires_grad)


def _multiply_turned_back(x: Tensor, layer: Int8Linear | Int4Linear, dtype: torch.dtype) -> Tensor:
    """Multiply x (..., D) with the weights as numbers; `dtype` is that of the scales.

    Where `multiply` would turn the weights into float32, they are not rounded on the way there.
    """
    if x.dtype == dtype and multiplies_in_float32(x):
        return F.linear(x.float(), layer.dequantize(torch.float32)).to(x.dtype)
    return F.linear(x, layer.dequantize())


def _int8_kernel_takes(x: Tensor) -> bool:
    """Whether PyTorch has an 8-bit product for x that is right, and faster than turning the integers back.

    In float32, and on CUDA, it is slower; rows that do not fill the processor's vectors are read past their end.
    """
    few_rows = x.numel() <= _KERNEL_ROWS * x.shape[-1]
    return few_rows and x.device.type == "cpu" and x.dtype in _HALVES and x.shape[-1] % 32 == 0


class _Int4Kernel(NamedTuple):
    """`pack` rearranges (F, D/2) pairs; `multiply(x, packed, group_size, scale_and_zero)` is x times the weights."""

    dtypes: tuple[torch.dtype, ...]
    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, int, Tensor], Tensor]


_INT4_KERNELS = {
    "cpu": _Int4Kernel(
        _HALVES,  # float32 too, but slower than turning the integers back
        lambda pairs: torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack_pairs(pairs).int(), 1),
        torch.ops.aten._weight_int4pack_mm_for_cpu,
    ),
    "cuda": _Int4Kernel(
        (torch.bfloat16,),
        lambda pairs: torch.ops.aten._convert_weight_to_int4pack(pairs, _inner_k_tiles(2 * pairs.shape[1])),
        torch.ops.aten._weight_int4pack_mm,
    ),
}


def _int4_kernel_for(x: Tensor, out_features: int, group_size: int) -> str | None:
    """Return the name of the kernel that can take x and these sizes, None if there is none."""
    name = x.device.type
    fits = group_size in (32, 64, 128, 256) and out_features % 16 == 0
    return name if fits and name in _INT4_KERNELS and x.dtype in _INT4_KERNELS[name].dtypes else None


def _inner_k_tiles(in_features: int) -> int:
    """How many tiles of 16 inputs one load of the CUDA kernel covers: the most that divide the input size."""
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)


