"""A model in 8 or 4 bits: which weights are quantized, how, and what they take.

The large matrices are: attention's and the experts', 99.4 % of Mixtral-8x7B. Router, norms, embedding and heads stay as
they are. `rounding` says how a matrix is rounded, `layers` how it is multiplied.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixtral_edu.config import Config
from mixtral_edu.fast import decoding
from mixtral_edu.quantization.layers import Int4Linear, Int8Linear

METHOD = "mixtral_edu"  # "quant_method" in a config.json: whose integers these are
_QUANTIZED = re.compile(r"(model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|block_sparse_moe\.experts\.\d+\.w[123])")


@dataclass(frozen=True)
class QuantizationConfig:
    """How weights are quantized.

    Args:
        bits: 8 or 4.
        group_size: with 4 bits, how many neighbours in a row share scale and zero; it has to divide every matrix's
            input size. 64 if None. Smaller groups follow the weights more closely and cost more bytes. With 8 bits
            None: the whole row is one group.

    Raises:
        ValueError: another number of bits, or a group size that goes with none.
    """

    bits: int
    group_size: int | None = None

    def __post_init__(self):
        if self.bits not in (4, 8):
            raise ValueError(f"bits={self.bits!r}: it must be 8 or 4")
        if self.bits == 8 and self.group_size is not None:
            raise ValueError(f"group_size={self.group_size!r} with bits=8: it must be None, each row has one scale")
        if self.bits == 4 and self.group_size is None:
            object.__setattr__(self, "group_size", 64)
        if self.bits == 4 and (not isinstance(self.group_size, int) or self.group_size < 2):
            raise ValueError(f"group_size={self.group_size!r}: it must be a whole number of at least 2")

    @classmethod
    def parse(cls, value: "str | QuantizationConfig | Mapping | None") -> Self | None:
        """Return what `quantization=` means: "int8", "int4", a `QuantizationConfig`, or None.

        Also reads the dictionary that a checkpoint's `config.json` holds.

        Raises:
            ValueError: anything else, such as another library's object; the message says what is taken.
        """
        if value is None or isinstance(value, cls):
            return value
        if value in ("int8", "int4"):
            return cls(8 if value == "int8" else 4)
        if isinstance(value, Mapping):
            if value.get("quant_method") == METHOD:
                return cls(value.get("bits"), value.get("group_size"))
            raise ValueError(
                f"quantization_config with quant_method={value.get('quant_method')!r}: such checkpoints cannot be "
                'read; take the unquantized one, and quantize it with quantization="int4"'
            )
        found = f"={value!r}" if isinstance(value, str) else f" of type {type(value).__name__}"
        raise ValueError(
            f'quantization{found}: it must be quantization="int4", "int8" or a '
            "mixtral_edu.quantization.QuantizationConfig"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the entry "quantization_config" of a `config.json`."""
        return {"quant_method": METHOD} | asdict(self)


def choose_form(
    quantization: str | QuantizationConfig | None,
    quantization_config: QuantizationConfig | None,
    stored: QuantizationConfig | None,
    folder: Path,
) -> QuantizationConfig | None:
    """Return how a loaded model's weights are to be held: as asked for, or else as they are `stored`.

    Raises:
        ValueError: both arguments are given, one has no meaning, or the checkpoint is quantized in another way.
    """
    if quantization is not None and quantization_config is not None:
        raise ValueError(
            f"quantization={quantization!r} and quantization_config={quantization_config!r}: give one of them"
        )
    wanted = QuantizationConfig.parse(quantization_config if quantization is None else quantization)
    if stored and wanted not in (None, stored):
        raise ValueError(f"quantization={wanted}: {folder} holds weights that are quantized already, with {stored}")
    return wanted or stored


def is_quantized_layer(name: str) -> bool:
    """Whether the layer of this full name is one of the large matrices; router, norms, embedding and heads are not."""
    return _QUANTIZED.fullmatch(name) is not None


def quantized_layers(
    model: nn.Module, quantization: QuantizationConfig, dtype: torch.dtype | None = None
) -> dict[str, Int8Linear | Int4Linear]:
    """Return a layer without memory for each of the model's large matrices, by full name; the model stays as it is.

    Args:
        model: its shapes are looked at, so it may be on the meta device.
        quantization: how.
        dtype: of scales and zeros; torch's default if None.

    Raises:
        ValueError: the model is quantized already, or a group size does not divide a matrix; the message names it.
    """
    layers: dict[str, Int8Linear | Int4Linear] = {}
    with torch.device("meta"):
        for name, old in model.named_modules():
            if not is_quantized_layer(name):
                continue
            if not isinstance(old, nn.Linear):
                raise ValueError(f"{name} is quantized already: load the model without quantization first")
            D, outputs = old.in_features, old.out_features
            if quantization.bits == 8:
                layers[name] = Int8Linear(D, outputs, dtype)
            elif D % quantization.group_size or D % 2:
                raise ValueError(
                    f"group_size={quantization.group_size}: {name} has {D} inputs; it must divide them, and they must "
                    "be even"
                )
            else:
                layers[name] = Int4Linear(D, outputs, quantization.group_size, dtype)
    return layers


@torch.inference_mode(False)  # router and norms can be trained afterwards
def quantize_model(model: nn.Module, quantization: str | QuantizationConfig) -> None:
    """Quantize a model's attention and experts in place, one matrix at a time.

    `from_pretrained(..., quantization="int4")` does the same while loading, and never holds the whole model as it was.
    What stays trainable are router, norms, embedding and head. `model.config` becomes a copy that says how the model is
    quantized, so that other models that were built from the same config keep it as it was.

    Args:
        model: with a `config`; on any device.
        quantization: "int8", "int4" or a `QuantizationConfig`.

    Raises:
        ValueError: as `quantized_layers`, or `quantization` is None, or a matrix holds numbers that are not finite; the
            model is then as it was.
    """
    quantization = QuantizationConfig.parse(quantization)
    if quantization is None:
        raise ValueError('quantization=None: it must be "int4", "int8" or a QuantizationConfig')
    layers = quantized_layers(model, quantization)
    for name in layers:
        check_finite(name, model.get_submodule(name).weight)
    decoding.drop(model)  # what was prepared of the layers that go
    for name, layer in layers.items():
        weight = model.get_submodule(name).weight.detach()
        install(model, {name: layer.quantize_(weight, weight.dtype).train(model.training)})
    model.config.copy_for(model, quantization_config=quantization.to_dict())


def install(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put `layers` in the places of the model's layers of these names."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def check_finite(name: str, weight: Tensor) -> None:
    """Raise a ValueError that has `name` where `weight` cannot be rounded to a scale."""
    if not weight.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite and cannot be quantized")


def quantization_of(model: nn.Module) -> QuantizationConfig | None:
    """Return how a model's layers are quantized, None if they are not."""
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            return QuantizationConfig(8)
        if isinstance(layer, Int4Linear):
            return QuantizationConfig(4, layer.group_size)
    return None


def checkpoint_bytes(
    config: Config, quantization: str | QuantizationConfig | None = None, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Derive the bytes of all weights from the sizes alone, scales and zeros included.

    >>> sizes = [checkpoint_bytes(Config.mixtral_8x7b(), how) for how in (None, "int8", "int4")]
    >>> [f"{size / 1e9:.1f} GB" for size in sizes]
    ['93.4 GB', '47.0 GB', '26.6 GB']

    Args:
        config: the model's sizes.
        quantization: how its large matrices are stored; None for `dtype`.
        dtype: of all other weights, and of scales and zeros.
    """
    quantization = QuantizationConfig.parse(quantization)
    total = 0
    for name, (*rows, size) in config.weight_shapes().items():
        numbers, F = prod(rows) * size, prod(rows)
        if quantization is None or not is_quantized_layer(name.removesuffix(".weight")):
            total += numbers * dtype.itemsize
        elif quantization.bits == 8:  # a scale for each row
            total += numbers + F * dtype.itemsize
        else:  # scale and zero for each group
            total += numbers // 2 + 2 * (numbers // quantization.group_size) * dtype.itemsize
    return total
