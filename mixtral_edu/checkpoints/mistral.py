"""Read the files of a raw Mistral checkpoint: `consolidated.*`, safetensors or pickled by torch, and `params.json`."""

import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixtral_edu.checkpoints.memory import CODES, require_memory
from mixtral_edu.checkpoints.params import PARAMS_FILE
from mixtral_edu.checkpoints.shards import INDEX_FILE, SINGLE_FILE, StoredTensor, damaged, indexed_tensors, read_header

RAW_FILE = "consolidated.safetensors"
RAW_FILES = (PARAMS_FILE, "consolidated*")  # patterns of all files that may belong to a raw checkpoint


class PickledTensor(NamedTuple):
    """A tensor in a file that torch pickled, the counterpart of a safetensors file's `StoredTensor`."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    pickle: "_Pickle"

    def read(self) -> torch.Tensor:
        """Return the tensor on the CPU; it may be a view of the mapped file."""
        return self.pickle.read(self.name)


def is_raw(folder: Path) -> bool:
    """Return whether a folder holds a raw checkpoint and none in the Hugging Face layout."""
    if (folder / PARAMS_FILE).is_file() and not (folder / "config.json").is_file():
        return True
    has_published = (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()
    return not has_published and bool(_weight_files(folder))


def raw_tensors(folder: Path) -> list[StoredTensor | PickledTensor]:
    """Read the names, shapes and types of the tensors in all of the folder's `consolidated` files.

    Raises:
        FileNotFoundError: there is no such file, or a file that an index names is missing.
        ValueError: a file is truncated or corrupted, holds more than tensors, or contradicts the index.
    """
    files = _weight_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no consolidated.safetensors, consolidated.*.pth or consolidated.*.pt")
    pickled = [tensor for file in files if file.suffix != ".safetensors" for tensor in _pickled_tensors(file)]
    index = folder / f"{RAW_FILE}.index.json"
    if index.is_file():
        return indexed_tensors(index) + pickled
    return [tensor for file in files if file.suffix == ".safetensors" for tensor in read_header(file)] + pickled


def _weight_files(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("consolidated*") if path.suffix in (".safetensors", ".pth", ".pt")]
    return sorted(path for path in files if path.is_file())


def _pickled_tensors(file: Path) -> list[PickledTensor]:
    content = _load(file)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} must hold a dictionary from names to tensors, with at least one")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file} holds {name!r}, a {type(tensor).__name__}: it must hold only tensors, by name")
        if tensor.layout != torch.strided:
            raise ValueError(f"{file} holds {name!r} as {tensor.layout}: it must be a plain (strided) tensor")
    opened = _Pickle(file, content)
    return [
        PickledTensor(name, file, tuple(tensor.shape), CODES.get(tensor.dtype, str(tensor.dtype)), opened)
        for name, tensor in content.items()
    ]


class _Pickle:
    """An open file that is closed each time a 32nd of it has been read. Pages that were read stay in memory until then.

    Mapping the file again for each tensor would be slow, because that unpickles all names every time.
    """

    def __init__(self, file: Path, content: dict[str, torch.Tensor]):
        self.file, self.content, self.bytes_read = file, content, 0
        self.limit = file.stat().st_size // 32 if _can_be_mapped(file) else math.inf

    def read(self, name: str) -> torch.Tensor:
        if self.content is None:
            self.content, self.bytes_read = _load(self.file), 0
        tensor = self.content[name]
        self.bytes_read += tensor.nbytes
        if self.bytes_read > self.limit:
            self.content = None  # `tensor` keeps the mapping alive until it is freed
        return tensor


def _can_be_mapped(file: Path) -> bool:
    """Return whether torch 1.6 or later wrote the file: a zip archive. Older versions wrote a bare pickle."""
    with open(file, "rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _load(file: Path) -> Any:
    """Unpickle tensors and nothing else: a pickle may name any function, and opening it would call that function."""
    mapped = _can_be_mapped(file)
    if not mapped:
        require_memory(file.stat().st_size, torch.device("cpu"), str(file))
    try:
        with warnings.catch_warnings():  # a program may turn warnings into errors, which would look like damage
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if forbidden := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{file} is not opened: it holds more than tensors ({forbidden[1]}), and opening it could run code"
            ) from error
        raise damaged(file, "it is not a pickle of tensors") from error
    except Exception as error:  # damaged bytes may look like any instruction to the unpickler and fail in any way
        raise damaged(file, str(error).partition("\n")[0] or "it ends too early") from error
