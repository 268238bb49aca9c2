"""Linear layers whose weights are 8-bit or 4-bit integers.

    y = x wᵀ        x (..., D), w ≈ q · scale in 8 bits, w ≈ (q - 8) · scale + zero in 4 bits

Activations stay as they are: a product turns the integers back first, `F.linear(x, layer.dequantize())`, or leaves that
to a kernel of PyTorch that does it on the way. The first form says what is computed, and is the faster one for many
rows, the second for few.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.linear import multiplies_in_float32
from mixtral_edu.rounding import pack_pairs, quantize_groups, quantize_rows, unpack_pairs

_HALVES = (torch.bfloat16, torch.float16)
_INT8_KERNEL_ROWS = 32  # for more, turning 8 bits back once is faster on a CPU than on the way, row by row
_INT4_KERNEL_ROWS = 64  # the same for 4 bits; both measured with AVX2
_BLOCKS = (64, 32)  # how many rows lie together in the CPU kernel's layout, with AVX-512 and with AVX2


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
        """Return the weights as numbers, (F, D), in `dtype`, a floating-point type; by default that of the scales."""
        dtype = dtype or self.scale.dtype
        weight = self.weight_int8.to(dtype)  # integers up to 127 are exact in any dtype
        return weight.mul_(self.scale.to(dtype)[:, None])

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
    activations, in the order that PyTorch's kernels read.

    `pack` rearranges `weight_int4` into the layout of such a kernel. Few rows then go through it, which is far faster;
    many meet weights that are turned back, as before. (On CUDA, on a CPU without AVX2, and where F is no multiple of
    the kernel's blocks, only the kernel can read its layout: many rows go through it too, and slower.) `unpack` puts
    two neighbours into each byte again, and so do saving, loading, copying and moving the layer.
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
        """Return the weights as numbers, (F, D), in `dtype`, a floating-point type; by default that of the scales."""
        q = self._integers().view(torch.int8).sub_(8).unflatten(1, (-1, self.group_size))  # (F, D/g, g)
        scale, zero = self.scale_and_zero.float().transpose(0, 1)[..., None].unbind(2)  # (F, D/g, 1) each
        weight = q.float().mul_(scale).add_(zero)  # in place: most of the time is that of passing through memory
        return weight.flatten(1).to(dtype or self.scale_and_zero.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., D) to (..., F)."""
        takes = self.kernel is not None and _takes_kernel(x, self.in_features, self.scale_and_zero.dtype)
        if not takes or self._turns_back(x):
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
        """Two neighbours a byte, (F, D/2)."""
        return self.weight_int4 if self.kernel is None else pack_pairs(self._integers())

    def _integers(self) -> Tensor:
        """The integers, (F, D), from whatever layout they are in."""
        if self.kernel is None:
            return unpack_pairs(self.weight_int4)
        if rows := _INT4_KERNELS[self.kernel].rows_of_block:
            return _unpack_blocks(self.weight_int4, rows, self.in_features)
        unit = torch.eye(self.in_features, dtype=torch.bfloat16, device=self.weight_int4.device)
        ones = torch.ones_like(self.scale_and_zero[..., 0], dtype=torch.bfloat16)  # holds 0 to 15 exactly
        q = self._multiply(unit, torch.stack((ones, 8 * ones), dim=2)).T  # the kernel's own way: (q - 8) · 1 + 8
        return q.to(torch.uint8).contiguous()

    def _turns_back(self, x: Tensor) -> bool:
        """Whether x has so many rows that turning the integers back once is faster than the kernel."""
        return bool(_INT4_KERNELS[self.kernel].rows_of_block) and x.numel() > _INT4_KERNEL_ROWS * x.shape[-1]

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
    few_rows = x.numel() <= _INT8_KERNEL_ROWS * x.shape[-1]
    return few_rows and x.device.type == "cpu" and x.dtype in _HALVES and x.shape[-1] % 32 == 0


class _Int4Kernel(NamedTuple):
    """`pack` rearranges (F, D/2) pairs; `multiply(x, packed, group_size, scale_and_zero)` is x times the weights.

    `rows_of_block`: for `_unpack_blocks`; None where only the kernel can read its layout.
    """

    dtypes: tuple[torch.dtype, ...]
    pack: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, int, Tensor], Tensor]
    rows_of_block: int | None = None


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
_INT4_KERNELS |= {f"cpu, {rows} rows": _INT4_KERNELS["cpu"]._replace(rows_of_block=rows) for rows in _BLOCKS}


@cache
def _rows_of_block() -> int | None:
    """How many rows lie together in the CPU kernel's layout: it depends on the processor's vectors, so a trial tells.

    None if the layout is another than `_unpack_blocks` reads.
    """
    q = torch.arange(64 * 32, device="cpu").mul(7).remainder(13).to(torch.uint8).view(64, 32)
    packed = _INT4_KERNELS["cpu"].pack(pack_pairs(q))
    return next((rows for rows in _BLOCKS if torch.equal(_unpack_blocks(packed, rows, 32), q)), None)


def _unpack_blocks(packed: Tensor, rows: int, in_features: int) -> Tensor:
    """Read the integers (F, D) from blocks of rows, in which a byte holds two rows' entries of one column.

    The first half of a block's rows is in the lower halves of its bytes, the second half in the upper ones.
    """
    columns = packed.view(-1, in_features, rows // 2).mT.contiguous()  # (F/rows, rows/2, D)
    return torch.stack((columns & 15, columns >> 4), dim=1).view(-1, in_features)


def _int4_kernel_for(x: Tensor, out_features: int, group_size: int) -> str | None:
    """Return the name of the kernel that can take x and these sizes, None if there is none."""
    name = x.device.type
    fits = group_size in (32, 64, 128, 256) and out_features % 16 == 0
    if not fits or name not in _INT4_KERNELS or x.dtype not in _INT4_KERNELS[name].dtypes:
        return None
    rows = _rows_of_block() if name == "cpu" else None
    return f"cpu, {rows} rows" if rows and out_features % rows == 0 else name


def _inner_k_tiles(in_features: int) -> int:
    """How many tiles of 16 inputs one load of the CUDA kernel covers: the most that divide the input size."""
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)
