"""Load and save checkpoints in the Hugging Face layout: `config.json`, and safetensors files under published names."""

import shlex
import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mixtral_edu.checkpoints.config import MixtralConfig, settings_file
from mixtral_edu.checkpoints.folders import find_folder, replace_folder
from mixtral_edu.checkpoints.layouts import check_sizes, layout_of
from mixtral_edu.checkpoints.memory import (
    FLOATS,
    INTEGERS,
    TYPES,
    choose_device,
    choose_dtype,
    common_dtype,
    dtype_name,
    require_memory,
)
from mixtral_edu.checkpoints.mistral import is_raw
from mixtral_edu.checkpoints.shards import (
    WEIGHT_FILES,
    StoredTensor,
    is_derived,
    parse_size,
    require_fit,
    stored_tensors,
    summary,
    write_shards,
)
from mixtral_edu.fast.engine import remove as remove_engine
from mixtral_edu.quantization.model import (
    QuantizationConfig,
    check_finite,
    choose_form,
    install,
    quantization_of,
    quantized_layers,
)

PREFIX = "model."  # in models with a head, the names of all other tensors start with it
HEADS = ("lm_head.", "score.", "qa_outputs.")  # the heads of all Mixtral models; a checkpoint may hold another's


@torch.inference_mode(False)  # a parameter made in inference mode could never be trained
def load_pretrained(
    model_class: type[nn.Module],
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
    quantization: str | QuantizationConfig | None = None,
    num_labels: int | None = None,
    problem_type: str | None = None,
    ignore_mismatched_sizes: bool = False,
    engine: bool = True,
    quantization_config: QuantizationConfig | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: torch.device | str | None = None,
) -> nn.Module:
    """Build `model_class` from a checkpoint, with at most one tensor in memory besides the model.

    Everything that can be checked is checked before memory is allocated. The checkpoint must hold exactly the model's
    tensors, with three exceptions. The prefix `model.` is optional. The heads of other models are skipped. If the class
    sets `optional_head`, its own head may be missing, or with `ignore_mismatched_sizes` have another size; it is then
    initialised at random, with one warning.

    Args:
        model_class: a class with `head_keys`, `optional_head` and `check_backend`, built as `model_class(config)`.
        name_or_folder: "tiny", "tiny-instruct", or a folder. Nothing is ever downloaded.
        dtype: the floating-point type to convert to ("bfloat16"), or None or "auto" for the checkpoint's own.
        device: None for the CPU.
        attn_implementation, experts_implementation, num_labels, problem_type: None for the config's value.
            `mixtral_edu.fast.flash.flash_kernel().name` says which kernel "flash_attention_2" uses here.
        ignore_mismatched_sizes: whether the checkpoint may hold a head for another number of labels, which is skipped.
        quantization: "int8", "int4" or a `QuantizationConfig`: round attention and experts while loading, each matrix
            as soon as it is read. None for the checkpoint's own form.
        engine: compute in the fast forms of `mixtral_edu.fast`; False for the textbook's own, as they read.
        quantization_config, torch_dtype, device_map: transformers' names for `quantization`, `dtype` and `device`.
            `device_map="auto"` chooses a CUDA device if there is one.

    Returns:
        The model in eval mode, with every parameter trainable.

    Raises:
        FileNotFoundError: the folder, its `config.json` or a safetensors file is missing.
        ValueError: a file is damaged, an index contradicts its shards, tensors are missing, unexpected or wrongly
            shaped (the message names them), an argument is not valid, or `attn_implementation` cannot run on the device
            or in the dtype, or cannot return the weights that the config's `output_attentions` asks for.
        MemoryError: the model needs more memory than the device has free.
    """
    folder = find_folder(name_or_folder)
    device = choose_device(device, device_map)
    dtype = choose_dtype(dtype, torch_dtype)
    changes = {
        "attn_implementation": attn_implementation,
        "experts_implementation": experts_implementation,
        "num_labels": num_labels,
        "problem_type": problem_type,
    }
    config = _read_config(folder)
    if num_labels not in (None, config.num_labels):  # the checkpoint's names are for another number of labels
        config = replace(config, num_labels=num_labels, id2label=None)
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    dtype = dtype or choose_dtype(config.dtype)
    config.dtype = dtype_name(dtype) if dtype else None
    stored_form = _stored_form(config, folder)
    form = choose_form(quantization, quantization_config, stored_form, folder)
    config.quantization_config = form.to_dict() if form else None
    stored = stored_tensors(folder)
    check_sizes(config, ((tensor.name, tensor.shape) for tensor in stored), settings_file(folder))

    # Without drawing, as the first draw on the meta device would spend a second on imports.
    with torch.device("meta"), WithoutDrawing(*LAYERS_DRAW, torch.Tensor.normal_):
        model = model_class(config)
    if not engine:
        remove_engine(model)
    layers = quantized_layers(model, form, dtype) if form else {}
    if stored_form:
        install(model, layers)
    sources, skipped = _match(model, stored, folder, ignore_mismatched_sizes)
    first, _ = next(model.named_parameters())  # the embedding, whose dtype is that of the activations
    model.check_backend(device, dtype or FLOATS[sources[first].dtype])
    if not stored_form:
        install(model, layers)
    _check_memory(model, sources, dtype, device, folder)

    to_round = {} if stored_form else layers
    # Tensors that stay as they are get their own memory. All others are read into one buffer and copied from it.
    kept = {
        name
        for name, source in sources.items()
        if name.removesuffix(".weight") not in to_round
        and device.type == "cpu"
        and dtype in (None, TYPES[source.dtype])
    }
    largest = max((sources[name].nbytes for name in sources.keys() - kept), default=0)
    buffer = torch.empty(largest, dtype=torch.uint8, device="cpu")
    for name, source in sources.items():
        tensor = source.read(None if name in kept else buffer)
        if layer := to_round.get(name.removesuffix(".weight")):
            check_finite(f"{source.name} in {source.file.name}", tensor)
            layer.quantize_(tensor.to(device), dtype or tensor.dtype)
        else:
            own_dtype = dtype if tensor.is_floating_point() else None
            _place(model, name, tensor.to(device=device, dtype=own_dtype, copy=name not in kept))
    _initialise_head(model, folder, skipped)
    return model.eval()


def save_pretrained(
    model: nn.Module, folder: str | Path, max_shard_size: int | str = "5GB", overwrite: bool = False
) -> None:
    """Write a checkpoint that this package and transformers load.

    It is written to a new folder beside `folder` and swapped in at the end, so `folder` never holds half a checkpoint.

    Args:
        folder: a folder that is missing or empty; or, with `overwrite`, one with content. An older checkpoint in it is
            replaced; files that a save does not write (a tokenizer, a README) are kept.
        max_shard_size: bytes, as a number or as text ("5GB", "200MiB"). A larger checkpoint is split into shards with
            an index. A single tensor is never split.
        overwrite: whether content may be replaced.

    Raises:
        FileExistsError: the folder has content, and `overwrite` is False.
        ValueError: `max_shard_size` is not a size.
    """
    limit = parse_size(max_shard_size)
    tensors = model.state_dict()
    form = quantization_of(model)
    config = copy(model.config)
    config.bind(
        dtype=common_dtype(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()),
        quantization_config=form.to_dict() if form else None,
        extra=model.config.extra | {"architectures": [type(model).__name__]},
    )
    with replace_folder(folder, overwrite, written=("config.json", *WEIGHT_FILES)) as new:
        config.save_pretrained(new)
        write_shards(new, tensors, limit)


LAYERS_DRAW = (nn.init.kaiming_uniform_, nn.init.normal_)  # what linear layers and embeddings call when they are made


class WithoutDrawing(TorchFunctionMode):
    """Let these functions, which fill a tensor with random values, leave it as it is."""

    def __init__(self, *functions: Callable[..., torch.Tensor]):
        super().__init__()
        self.functions = functions

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.functions:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _read_config(folder: Path) -> MixtralConfig:
    if is_raw(folder):
        raise ValueError(f"{folder} holds a raw Mistral checkpoint: {_how_to_convert(folder)}")
    return MixtralConfig.from_pretrained(folder)


def _stored_form(config: MixtralConfig, folder: Path) -> QuantizationConfig | None:
    try:
        return QuantizationConfig.parse(config.quantization_config)
    except ValueError as error:
        raise ValueError(f"{settings_file(folder)}: quantization_config: {error}") from error


def _how_to_convert(folder: Path) -> str:
    command = f"python -m mixtral_edu convert {shlex.quote(str(folder))} TARGET --to hf"
    return f"convert it first, and load the target\n    {command}"


def _match(
    model: nn.Module, stored: list[StoredTensor], folder: Path, ignore_mismatched_sizes: bool
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Return where each of the model's tensors is stored, and which of its head are skipped for their size.

    Raises:
        ValueError: it names all misfits.
    """
    if layout_of([tensor.name for tensor in stored], is_raw=False) == "fused":
        raise ValueError(f"{folder} holds each layer's experts in one tensor: {_how_to_convert(folder)}")
    wanted = {name.removeprefix(PREFIX): (name, tensor) for name, tensor in model.state_dict().items()}
    sources, skipped, unexpected, misfits = {}, {}, [], []
    for tensor in stored:
        bare = tensor.name.removeprefix(PREFIX)
        place = f"{tensor.name} in {tensor.file.name}"
        if bare not in wanted:
            anothers_head = bare.startswith(HEADS) and not bare.startswith(model.head_keys)
            if not anothers_head and not is_derived(bare):
                unexpected.append(place)
            continue
        name, own = wanted[bare]
        optional = model.optional_head and bare.startswith(model.head_keys)
        if name in sources:
            unexpected.append(f"{place}, besides {sources[name].name} in {sources[name].file.name}")
        elif tensor.shape != tuple(own.shape) and optional and ignore_mismatched_sizes:
            skipped[name] = tensor
            continue
        elif tensor.shape != tuple(own.shape):
            way_out = "; ignore_mismatched_sizes=True draws a new one" if optional else ""
            misfits.append(f"{place} is {tensor.shape} but must be {tuple(own.shape)} by the config{way_out}")
        elif tensor.dtype not in _stored_types(own):
            types = " or ".join(_stored_types(own))
            misfits.append(f"{place} is stored as {tensor.dtype} but must be {types}")
        sources[name] = tensor

    missing = [name for name, _ in wanted.values() if name not in sources]
    if model.optional_head:
        missing = [name for name in missing if not name.startswith(model.head_keys)]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape or type": misfits}
    require_fit(f"{folder} does not fit {type(model).__name__}", kinds)
    return sources, skipped


def _stored_types(tensor: torch.Tensor) -> list[str]:
    """Return the types that a checkpoint may store for this tensor: any float for a float, else only its own type."""
    if tensor.is_floating_point():
        return list(FLOATS)
    return [name for name, dtype in INTEGERS.items() if dtype == tensor.dtype]


def _check_memory(
    model: nn.Module, sources: dict[str, StoredTensor], dtype: torch.dtype | None, device: torch.device, folder: Path
) -> None:
    in_model = on_the_way = 0
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        own = tensor.dtype
        if own.is_floating_point:
            own = dtype or (FLOATS[sources[name].dtype] if name in sources else own)
        in_model += tensor.numel() * own.itemsize
    for name, source in sources.items():
        itemsize = TYPES[source.dtype].itemsize
        if name not in tensors:  # rounding it takes twice as many numbers in float32
            itemsize += 2 * torch.float32.itemsize
        on_the_way = max(on_the_way, prod(source.shape) * itemsize)
    if device.type == "cpu":
        require_memory(in_model + on_the_way, device, str(folder))
    else:
        require_memory(in_model, device, str(folder))
        require_memory(2 * on_the_way, torch.device("cpu"), f"loading {folder}")  # as stored, and as converted


def _place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the model's parameter or buffer of this name."""
    module_name, _, own_name = name.rpartition(".")
    module = model.get_submodule(module_name)
    setattr(module, own_name, nn.Parameter(tensor) if own_name in module._parameters else tensor)


def _initialise_head(model: nn.Module, folder: Path, skipped: dict[str, StoredTensor]) -> None:
    """Initialise the parameters that the checkpoint does not hold in the right size: those of an optional head."""
    parameters = dict(model.named_parameters())
    new = {name: p for name, p in parameters.items() if p.is_meta}
    if not new:
        return
    loaded = next(p for p in parameters.values() if not p.is_meta)
    for name, p in new.items():
        tensor = torch.zeros(p.shape, dtype=loaded.dtype, device=loaded.device)
        if tensor.dim() > 1:
            nn.init.normal_(tensor, std=model.config.initializer_range)
        _place(model, name, tensor)
    places = [
        f"{name} of shape {tuple(p.shape)}, but {skipped[name].shape}" if name in skipped else name
        for name, p in new.items()
    ]
    warnings.warn(f"{folder} has no {summary(places)}: initialised at random, train before use", stacklevel=4)
