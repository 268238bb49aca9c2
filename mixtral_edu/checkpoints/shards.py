"""Read and write a folder's safetensors files: `model.safetensors`, or shards `model-0000i-of-0000n` with an index."""

import json
import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from mixtral_edu.checkpoints.memory import TYPES
from mixtral_edu.checkpoints.safetensors_file import LazyTensor, byte_count, data_starts, write_safetensors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILES = (SINGLE_FILE, INDEX_FILE, "model-*-of-*.safetensors")  # patterns of all files of `write_shards`


class StoredTensor(NamedTuple):
    """What the header of a safetensors file says about one tensor.

    `dtype` is safetensors' name for it ("BF16"); `start` is the position of its first byte in the file.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def nbytes(self) -> int:
        """The bytes that its numbers take."""
        return prod(self.shape) * TYPES[self.dtype].itemsize

    def read(self, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tensor, on the CPU.

        Its bytes are read straight into its memory. A mapped file would keep the pages that were read in memory too.

        Args:
            buffer: the memory to read into, (`nbytes` or more,) in uint8; None to allocate new memory.

        Raises:
            ValueError: the file has become shorter.
        """
        if buffer is None:
            buffer = torch.empty(self.nbytes, dtype=torch.uint8, device="cpu")
        buffer = buffer[: self.nbytes]
        with open(self.file, "rb") as file:
            file.seek(self.start)
            if file.readinto(buffer.numpy()) < self.nbytes:
                raise damaged(self.file, f"it ends within {self.name}")
        return buffer.view(TYPES[self.dtype]).view(self.shape)


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Read the headers of all the folder's safetensors files, and nothing else.

    Raises:
        FileNotFoundError: there are no safetensors files, or a shard that the index names is missing.
        ValueError: a file is truncated or corrupted, or index and shards contradict each other.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}: remove the one that is out of date")
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        hint = f"; {others[0]} is not read: save the model as safetensors first" if others else ""
        raise FileNotFoundError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    return indexed_tensors(index)


def indexed_tensors(index: Path) -> list[StoredTensor]:
    """Read the headers of the shards that an index names; the errors are those of `stored_tensors`."""
    folder, weight_map = index.parent, _read_index(index)
    missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
    if missing:
        raise FileNotFoundError(f"{index} names {summary(missing)}, missing from {folder}")
    tensors = [tensor for name in sorted(set(weight_map.values())) for tensor in read_header(folder / name)]
    places = {(tensor.name, tensor.file.name) for tensor in tensors}
    for key, file in weight_map.items():
        if (key, file) not in places:
            raise ValueError(f"{index} places {key} in {file}, which does not hold it")
    for key, file in places:
        if weight_map.get(key) != file:
            raise ValueError(f"{folder / file} holds {key}, which {index.name} does not place there")
    return tensors


def _read_index(index: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index} is not valid JSON: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no 'weight_map': it must map tensor names to files")
    for key, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\:]+\.safetensors", file):
            raise ValueError(f"{index} places {key} in {file!r}: it must be a safetensors file in the same folder")
    return weight_map


def read_header(path: Path) -> list[StoredTensor]:
    """Read the header of one safetensors file.

    Raises:
        ValueError: the file is truncated or corrupted.
    """
    try:
        with safe_open(path, framework="pt") as file:  # this checks the whole header against the file's size
            slices = {name: file.get_slice(name) for name in file.keys()}
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
    starts = data_starts(path)
    return [StoredTensor(name, path, tuple(s.get_shape()), s.get_dtype(), starts[name]) for name, s in slices.items()]


def damaged(path: Path, reason: str) -> ValueError:
    """Return the error for a file of weights that cannot be read."""
    with open(path, "rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            reason = "holds a Git LFS pointer instead of weights: run `git lfs pull`"
    return ValueError(f"{path} is truncated or corrupted: {reason}")


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor | LazyTensor], max_shard_size: int) -> None:
    """Write `tensors` as one safetensors file, or as several with an index if they exceed `max_shard_size` bytes."""
    sizes = {name: byte_count(tensor) for name, tensor in tensors.items()}
    shards = list(_split(sizes, max_shard_size))
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Fill one shard after the other in the given order. A tensor above the limit gets a shard of its own."""
    names, filled = [], 0
    for name, size in sizes.items():
        if names and filled + size > limit:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def is_derived(name: str) -> bool:
    """Return whether a stored tensor is a table that old versions of transformers saved and that loading recomputes."""
    return name.endswith("rotary_emb.inv_freq")


def require_fit(headline: str, kinds: Mapping[str, list[str]]) -> None:
    """Raise a ValueError if anything does not fit; it lists the misfits by kind ("missing", "unexpected" …)."""
    problems = [f"{kind} ({len(items)}): {summary(items)}" for kind, items in kinds.items() if items]
    if problems:
        raise ValueError("\n  ".join([f"{headline}:", *problems]))


def parse_size(size: int | str) -> int:
    """Return `max_shard_size` in bytes. It is a number, or text such as "5GB" or "200MiB".

    Raises:
        ValueError: it is neither, or less than one byte.
    """
    value = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if isinstance(size, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B", size, re.IGNORECASE)):
        value = int(float(match[1]) * (1024 if match[3] else 1000) ** (1 + "KMGT".index(match[2].upper())))
    if value < 1:
        raise ValueError(f"max_shard_size={size!r}: it must be a number of bytes, or text such as '5GB' or '200MiB'")
    return value


def summary(items: list[str], limit: int = 4) -> str:
    """Join the first few items and count the others."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest
