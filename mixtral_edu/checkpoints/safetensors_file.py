"""Write safetensors files: the header first, then one tensor after the other, so that memory holds only one.

    8 bytes   length of the header, little-endian
    header    JSON: name -> dtype, shape, and where its bytes start and end, counted from the end of the header
    data      the tensors' bytes, without gaps

Source: https://huggingface.co/docs/safetensors.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mixtral_edu.checkpoints.memory import CODES


class LazyTensor(NamedTuple):
    """A tensor that is read only when it is written. Its shape and dtype are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def byte_count(tensor: torch.Tensor | LazyTensor) -> int:
    """Return how many bytes a tensor's numbers take."""
    return prod(tensor.shape) * tensor.dtype.itemsize


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor | LazyTensor]) -> None:
    """Write a safetensors file. At most one lazy tensor is in memory at a time.

    Tensors of one dtype keep their order. Wider dtypes go first, so that each tensor starts at a multiple of its
    numbers' size, as readers that map the file expect.
    """
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header, end = {"__metadata__": {"format": "pt"}}, 0  # older versions of transformers require this entry
    for name in names:
        start, end = end, end + byte_count(tensors[name])
        code, shape = CODES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes_of(tensors[name]))  # no variable holds a tensor while the next one is made


def data_starts(path: Path) -> dict[str, int]:
    """Return the byte of a safetensors file at which each tensor starts."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


def _bytes_of(tensor: torch.Tensor | LazyTensor) -> np.ndarray:
    tensor = tensor.read() if isinstance(tensor, LazyTensor) else tensor
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16
