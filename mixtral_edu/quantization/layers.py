"""Linear layers whose weights are 8-bit or 4-bit integers.

    y = x wᵀ        x (..., D), w ≈ q · scale in 8 bits, w ≈ (q - 8) · scale + zero in 4 bits

Activations stay as they are. A product dequantizes first, `F.linear(x, layer.dequantize())`, or leaves that to a kernel
of PyTorch, which does it on the way. The first form says what is computed and is faster for many rows, the second for
few.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.fast import copies, products
from mixtral_edu.fast.linear import multiplies_in_float32
from mixtral_edu.quantization.rounding import pack_pairs, quantize_groups, quantize_rows, unpack_pairs

_HALVES = (torch.bfloat16, torch.float16)
# With more rows, dequantizing once is faster on any processor than doing so on the way, row by row. With fewer, a trial
# tells, or while compiling a smaller number of rows.
_MOST_KERNEL_ROWS = 256
_COPY_STEPS = 4  # making the copy for a kernel takes as long as this many steps of one row


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights are 8-bit integers with one scale per row.

    Buffers: `weight_int8` (F, D), `scale` (F,) in the dtype of the activations that it takes.
    """

    compiled_rows = 32  # of a compiled product, the most that go through the kernel

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
        """Return the weights as numbers, (F, D), in `dtype`, a floating-point type; by default that of the scales."""
        dtype = dtype or self.scale.dtype
        weight = self.weight_int8.to(dtype)  # integers up to 127 are exact in any dtype
        return weight.mul_(self.scale.to(dtype)[:, None])

    @property
    def dtype(self) -> torch.dtype:
        """That of the scales."""
        return self.scale.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        if not _takes_kernel(x, self) or not _int8_kernel_takes(x):
            return _multiply_dequantized(x, self)
        return _multiply_faster(x, self, self._multiply_by_kernel)

    def _multiply_by_kernel(self, rows: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(rows, self.weight_int8, self.scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Int4Linear(nn.Module):
    """A linear layer without bias whose weights are 4-bit integers, with a scale and a zero for each group.

    Buffers: `weight_int4` (F, D/2) in uint8, two neighbours per byte; `scale_and_zero` (D/g, F, 2) in the dtype of the
    activations, in the order that PyTorch's kernels read.

    PyTorch's kernels read `weight_int4` in another layout, which `make_copy` gives. While the layer has such a copy in
    use (see `fast.copies`; `generate` sees to it), few rows go through the kernel, which is far faster. Many meet
    dequantized weights, as before.
    """

    compiled_rows = 64

    def __init__(self, in_features: int, out_features: int, group_size: int, dtype: torch.dtype | None = None):
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.register_buffer("weight_int4", torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("scale_and_zero", torch.empty(in_features // group_size, out_features, 2, dtype=dtype))

    def quantize_(self, weight: Tensor, dtype: torch.dtype) -> Self:
        """Take the values of `weight` (F, D); scales and zeros get `dtype`."""
        q, scale, zero = quantize_groups(weight, self.group_size, dtype)
        self.weight_int4 = pack_pairs(q)
        self.scale_and_zero = torch.stack((scale.T, zero.T), dim=2)  # (D/g, F, 2)
        return self

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weights as numbers, (F, D), in `dtype`, a floating-point type; by default that of the scales."""
        q = unpack_pairs(self.weight_int4).view(torch.int8).sub_(8).unflatten(1, (-1, self.group_size))  # (F, D/g, g)
        scale, zero = self.scale_and_zero.float().transpose(0, 1)[..., None].unbind(2)  # (F, D/g, 1) each
        weight = q.float().mul_(scale).add_(zero)  # in place: most of the time is that of passing through memory
        return weight.flatten(1).to(dtype or self.scale_and_zero.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """That of scales and zeros."""
        return self.scale_and_zero.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        packed = copies.of(self)
        if packed is None or not _takes_kernel(x, self):
            return _multiply_dequantized(x, self)
        kernel = _INT4_KERNELS[x.device.type].multiply
        return _multiply_faster(x, self, lambda rows: kernel(rows, packed, self.group_size, self.scale_and_zero))

    def make_copy(self, num_steps: float = math.inf) -> Tensor | None:
        """Return `weight_int4` in the layout of PyTorch's kernel for its device.

        None if there is no such kernel, or it serves too few steps to be worth the making.
        """
        kernel = _int4_kernel_for(self.scale_and_zero, self.out_features, self.group_size)
        return None if kernel is None or num_steps <= _COPY_STEPS else kernel.pack(self.weight_int4)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group_size={self.group_size}"


def _multiply_faster(x: Tensor, layer: Int8Linear | Int4Linear, by_kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiply x (..., D) by a kernel that dequantizes on the way, or after dequantizing: whichever is faster here."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        faster = "kernel" if len(rows) <= layer.compiled_rows else "dequantized"
    elif len(rows) > _MOST_KERNEL_ROWS:
        faster = "dequantized"
    else:
        faster = products.choose(
            (type(layer).__name__, products.up(len(rows)), layer.extra_repr(), layer.dtype, torch.get_num_threads()),
            {"kernel": lambda: by_kernel(rows), "dequantized": lambda: _multiply_dequantized(rows, layer)},
        )
    return _multiply_dequantized(x, layer) if faster == "dequantized" else by_kernel(rows).view(*x.shape[:-1], -1)


def _takes_kernel(x: Tensor, layer: Int8Linear | Int4Linear) -> bool:
    """Kernels have no backward pass, trust the sizes that they are given, and want scales of x's dtype.

    Under autocast x may have another, which `F.linear` then takes.
    """
    fits = x.shape[-1] == layer.in_features and x.numel() > 0 and x.dtype == layer.dtype
    usual = torch.compiler.is_compiling() or not products.modes_are_on()
    return fits and usual and not (torch.is_grad_enabled() and x.requires_grad)


def _multiply_dequantized(x: Tensor, layer: Int8Linear | Int4Linear) -> Tensor:
    """Multiply x (..., D) with the weights as numbers.

    Where `multiply` would convert the weights to float32, they are not rounded on the way there.
    """
    alike = x.dtype == layer.dtype
    wide = torch.float32 if alike and multiplies_in_float32(x) else layer.dtype
    autocasts = x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)
    if isinstance(layer, Int8Linear) and alike and x.dtype != torch.float16 and not autocasts:
        # One scale for each row of w is one for each column of y, which has fewer numbers. (The sums of integers that
        # are scaled afterwards could leave float16's range.)
        return (products.multiply(x.to(wide), layer.weight_int8.to(wide)) * layer.scale.to(wide)).to(x.dtype)
    if wide != layer.dtype:
        return F.linear(x.to(wide), layer.dequantize(wide)).to(x.dtype)
    return products.multiply(x, layer.dequantize())


def _int8_kernel_takes(x: Tensor) -> bool:
    """Whether PyTorch has an 8-bit product for x that is right, and faster than dequantizing.

    In float32, and on CUDA, it is slower; rows that do not fill the processor's vectors are read past their end.
    """
    return x.device.type == "cpu" and x.dtype in _HALVES and x.shape[-1] % 32 == 0


class _Int4Kernel(NamedTuple):
    """`pack` rearranges (F, D/2) pairs; `multiply(x, packed, group_size, scale_and_zero)` is x times the weights."""

    dtypes: tuple[torch.dtype, ...]
    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, int, Tensor], Tensor]


_INT4_KERNELS = {
    "cpu": _Int4Kernel(
        _HALVES,  # float32 too, but slower than dequantizing
        lambda pairs: torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack_pairs(pairs).int(), 1),
        torch.ops.aten._weight_int4pack_mm_for_cpu,
    ),
    "cuda": _Int4Kernel(
        (torch.bfloat16,),
        lambda pairs: torch.ops.aten._convert_weight_to_int4pack(pairs, _inner_k_tiles(2 * pairs.shape[1])),
        torch.ops.aten._weight_int4pack_mm,
    ),
}


def _int4_kernel_for(x: Tensor, out_features: int, group_size: int) -> _Int4Kernel | None:
    """Return the kernel that can take x and these sizes, None if there is none."""
    kernel = _INT4_KERNELS.get(x.device.type)
    fits = group_size in (32, 64, 128, 256) and out_features % 16 == 0
    return kernel if kernel is not None and fits and x.dtype in kernel.dtypes else None


def _inner_k_tiles(in_features: int) -> int:
    """How many tiles of 16 inputs one load of the CUDA kernel covers: the most that divide the input size."""
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)
