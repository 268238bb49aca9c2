"""Convert checkpoints between Hugging Face's layout and Mistral's own, one tensor at a time."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mixtral_edu.checkpoints.config import MixtralConfig, settings_file
from mixtral_edu.checkpoints.folders import TOKENIZER_FILES, find_folder, replace_folder
from mixtral_edu.checkpoints.layouts import (
    Place,
    check_sizes,
    find_places,
    layout_of,
    raw_name,
    rotated_heads,
    to_interleaved,
)
from mixtral_edu.checkpoints.memory import FLOATS, common_dtype, require_memory
from mixtral_edu.checkpoints.mistral import RAW_FILE, RAW_FILES, PickledTensor, is_raw, raw_tensors
from mixtral_edu.checkpoints.params import PARAMS_FILE, to_params
from mixtral_edu.checkpoints.safetensors_file import LazyTensor, byte_count, write_safetensors
from mixtral_edu.checkpoints.shards import (
    WEIGHT_FILES,
    StoredTensor,
    is_derived,
    parse_size,
    require_fit,
    stored_tensors,
    write_shards,
)


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    to: str = "hf",
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    progress: bool = True,
) -> None:
    """Write a causal Mixtral's checkpoint in another layout. No number changes; one tensor is in memory at a time.

    Everything that headers can show is checked before anything is written. The new files are written to a folder beside
    `target` and swapped in at the end, as in `save_pretrained`. A tokenizer's files are copied under their own names.

    Args:
        source: "tiny", "tiny-instruct", or a folder. It may hold Hugging Face's layout, sharded or not, under the
            published names or those of a transformers 5 model in memory. It may also hold raw Mistral files,
            `consolidated.*` with `params.json`, with one tensor per expert matrix or stacked as in the first release.
        target: a folder that is missing or empty; or, with `overwrite`, one with content.
        to: "hf" for safetensors under the published names with `config.json`; "mistral" for one
            `consolidated.safetensors` with `params.json`, with one tensor per expert matrix.
        overwrite: whether to replace a checkpoint in `target`. Other files there are kept.
        max_shard_size: for "hf", bytes as a number or as text ("5GB", "200MiB").
        progress: show a bar on standard error.

    Raises:
        FileNotFoundError: the source, its settings or one of its files is missing.
        FileExistsError: the target has content, and `overwrite` is False.
        ValueError: an argument is not valid, source and target lie inside one another, a file is damaged or holds more
            than tensors, or tensors are missing, unexpected, doubled or wrongly shaped; the message names them.
        OSError, MemoryError: the disk or the memory has too little space.
    """
    if to not in ("hf", "mistral"):
        raise ValueError(f"to={to!r}: it must be 'hf' or 'mistral'")
    limit = parse_size(max_shard_size)
    for name, path in (("source", source), ("target", target)):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"{name} is a {type(path).__name__}: it must be the path of a folder")
    source, target = find_folder(source).resolve(), Path(target).expanduser().resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(f"target={str(target)!r}: it must not be {str(source)!r}, contain it or lie inside it")
    config, tensors = open_checkpoint(source)
    dtype = common_dtype(tensor.dtype for tensor in tensors.values())
    config.dtype = config.dtype or dtype
    if to == "mistral":
        tensors = {raw_name(name): _to_raw(name, tensor, config) for name, tensor in tensors.items()}
    _check_space(tensors, source, target)

    tokenizer = {path.name: path for pattern in TOKENIZER_FILES for path in source.glob(pattern) if path.is_file()}
    replaced = ["config.json", *WEIGHT_FILES, *RAW_FILES, *(TOKENIZER_FILES if tokenizer else ())]
    folder = replace_folder(target, overwrite, written=replaced, argument="target")
    with folder as new, _progress_bar(tensors, progress) as bar:
        for name, path in tokenizer.items():
            shutil.copyfile(path, new / name)
        tensors = {name: _counted(tensor, bar.update) for name, tensor in tensors.items()}
        if to == "hf":
            config.extra["architectures"] = ["MixtralForCausalLM"]
            config.save_pretrained(new)
            write_shards(new, tensors, limit)
        else:
            params = to_params(config.to_dict(), MixtralConfig(dtype=dtype).to_dict())
            (new / PARAMS_FILE).write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")
            write_safetensors(new / RAW_FILE, tensors)


def open_checkpoint(folder: Path) -> tuple[MixtralConfig, dict[str, LazyTensor]]:
    """Read a causal Mixtral's settings and headers in any layout; return its config, and its tensors by published name.

    Raises:
        FileNotFoundError, ValueError: as in `convert_checkpoint`.
    """
    if not (folder / "config.json").is_file() and not (folder / PARAMS_FILE).is_file():
        beside = " beside its weights" if is_raw(folder) else ""
        raise FileNotFoundError(f"{folder} holds neither config.json nor {PARAMS_FILE}{beside}: it is not a checkpoint")
    config = MixtralConfig.from_pretrained(folder)
    if config.quantization_config:
        raise ValueError(f"{folder} holds quantized weights: convert the checkpoint they were made from instead")
    stored = raw_tensors(folder) if is_raw(folder) else stored_tensors(folder)
    check_sizes(config, ((tensor.name, tensor.shape) for tensor in stored), settings_file(folder))
    layout = layout_of([tensor.name for tensor in stored], is_raw(folder))
    places, shapes = find_places(layout, config), config.weight_shapes()
    found = _match(places, stored, f"{folder} holds no causal Mixtral in the {layout} layout")
    sources = {name: (found[place.name], place) for name, place in places.items()}
    return config, {
        name: LazyTensor(shapes[name], FLOATS[source.dtype], partial(_read, source, place))
        for name, (source, place) in sources.items()
    }


def _match(
    places: dict[str, Place], stored: list[StoredTensor | PickledTensor], otherwise: str
) -> dict[str, StoredTensor | PickledTensor]:
    """Return the stored tensors by name if they are exactly those of `places`; else raise an error with all misfits."""
    wanted = {place.name: place.shape for place in places.values()}
    found, unexpected, doubled, misfits = {}, [], [], []
    for tensor in stored:
        place = f"{tensor.name} in {tensor.file.name}"
        if tensor.name not in wanted:
            if not is_derived(tensor.name):
                unexpected.append(place)
        elif tensor.name in found:
            doubled.append(f"{place} and in {found[tensor.name].file.name}")
        elif tensor.shape != wanted[tensor.name]:
            misfits.append(f"{place} is {tensor.shape} but must be {wanted[tensor.name]} by the settings")
        elif tensor.dtype not in FLOATS:
            misfits.append(f"{place} is stored as {tensor.dtype} but must be {' or '.join(FLOATS)}")
        found[tensor.name] = tensor
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": unexpected,
        "doubled": doubled,
        "wrong shape or type": misfits,
    }
    require_fit(otherwise, kinds)
    return found


def _read(source: StoredTensor | PickledTensor, place: Place) -> torch.Tensor:
    part = source.read()[place.part]
    return place.change(part) if place.change else part


def _to_raw(name: str, tensor: LazyTensor, config: MixtralConfig) -> LazyTensor:
    heads = rotated_heads(name, config)
    return tensor._replace(read=lambda: to_interleaved(tensor.read(), heads)) if heads else tensor


def _check_space(tensors: dict[str, LazyTensor], source: Path, target: Path) -> None:
    sizes = [byte_count(tensor) for tensor in tensors.values()]
    require_memory(2 * max(sizes), torch.device("cpu"), f"converting {source}")  # one tensor, as stored and as written
    folder = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if sum(sizes) > free:
        raise OSError(f"{target} needs {sum(sizes) / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free on that disk")


def _counted(tensor: LazyTensor, count: Callable[[int], None]) -> LazyTensor:
    def read() -> torch.Tensor:
        count(byte_count(tensor))
        return tensor.read()

    return tensor._replace(read=read)


def _progress_bar(tensors: dict[str, LazyTensor], progress: bool):
    from tqdm.auto import tqdm  # not at the top, because in a notebook it loads widgets

    return tqdm(total=sum(map(byte_count, tensors.values())), unit="B", unit_scale=True, disable=not progress)
