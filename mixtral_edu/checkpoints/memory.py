"""Choose the device and dtype of a model's weights, and check whether they fit there."""

from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch

# The names that safetensors files give to the types of weights.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I8": torch.int8, "U8": torch.uint8}  # quantized weights
TYPES = FLOATS | INTEGERS
CODES = {dtype: code for code, dtype in TYPES.items()}
_CGROUP = Path("/sys/fs/cgroup")  # the limits of a Linux container


def choose_device(
    device: torch.device | str | None = None, device_map: torch.device | str | None = None
) -> torch.device:
    """Return the device that the arguments ask for, or the CPU if they ask for none.

    `device_map` is an older name: "auto" (a CUDA device if there is one), "cpu", "cuda" or a `torch.device`.

    Raises:
        ValueError: both are given, one is not valid, or this machine does not have the device.
    """
    if device_map is not None:
        if device is not None:
            raise ValueError(f"device={device!r} and device_map={device_map!r}: give only device")
        if not isinstance(device_map, torch.device) and device_map not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device_map={device_map!r}: it must be 'auto', 'cpu' or 'cuda'; give others as device=")
        device = device_map
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}: it must be a device such as 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": lambda: (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if chosen.type not in available or not available[chosen.type]():
        raise ValueError(f"device={str(chosen)!r} is not available on this machine; 'cpu' always is")
    return chosen


def choose_dtype(
    dtype: torch.dtype | str | None = None, torch_dtype: torch.dtype | str | None = None
) -> torch.dtype | None:
    """Return the floating-point type that the arguments ask for, or None for "auto" or nothing.

    `torch_dtype` is an older name.

    Raises:
        ValueError: both are given, or one is not a floating-point type that weights can have.
    """
    if dtype is not None and torch_dtype is not None:
        raise ValueError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r}: give only dtype")
    value = torch_dtype if dtype is None else dtype
    if value is None or value == "auto":
        return None
    names = {dtype_name(choice): choice for choice in FLOATS.values()}
    chosen = names.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if chosen not in FLOATS.values():
        raise ValueError(f"dtype={value!r}: it must be {', '.join(names)}, or 'auto' for the checkpoint's own")
    return chosen


def common_dtype(dtypes: Iterable[torch.dtype]) -> str | None:
    """Return the name of the dtype that all share, or None if they differ; then each tensor keeps its own."""
    names = {dtype_name(dtype) for dtype in dtypes}
    return names.pop() if len(names) == 1 else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return "bfloat16" for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int:
    """Return a good guess of how many bytes new tensors on `device` can take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return min(free, limit - int(used["anon"]))
    except (OSError, ValueError):  # not a container, or one without a limit ("max")
        return free


def require_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise a `MemoryError` with both figures if `device` has less than `needed` bytes free for `what`."""
    free = free_memory(device)
    if needed > free:
        raise MemoryError(
            f"{what} needs {needed / 1e9:.3g} GB on {device}, but only {max(free, 0) / 1e9:.3g} GB are free: "
            "close other programs, or choose a smaller dtype or another device"
        )
