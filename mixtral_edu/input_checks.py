"""What a forward pass refuses, before anything is computed or a cache is touched."""

import torch
from torch import Tensor

from mixtral_edu.cache import RollingKVCache
from mixtral_edu.config import MixtralConfig


def check_inputs(
    config: MixtralConfig,
    dtype: torch.dtype,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: RollingKVCache | None,
) -> None:
    """Raise a ValueError that names the first argument that does not fit, its shape, and what would fit.

    Values of ids are looked at on a CPU only: elsewhere that would wait for the device.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("exactly one of input_ids and inputs_embeds is wanted")
    if input_ids is not None:
        _require(input_ids.ndim == 2 and input_ids.numel() > 0, "input_ids", input_ids, "(batch, tokens), not empty,")
        if can_look_at(input_ids):
            low, high, last = int(input_ids.min()), int(input_ids.max()), config.vocab_size - 1
            if low < 0 or high > last:
                raise ValueError(f"input_ids reach from {low} to {high}: 0 to vocab_size - 1 = {last} are wanted")
    else:
        fits = inputs_embeds.ndim == 3 and inputs_embeds.numel() > 0 and inputs_embeds.shape[2] == config.hidden_size
        wanted = f"(batch, tokens, hidden_size={config.hidden_size}), not empty,"
        _require(fits, "inputs_embeds", inputs_embeds, wanted)

    B, T = (inputs_embeds if input_ids is None else input_ids).shape[:2]
    past = 0
    if cache is not None:
        past, rows, stored = cache.get_seq_length(), cache.positions.shape[0], cache.keys[0].dtype
        if rows != B:
            raise ValueError(f"past_key_values has {rows} rows, and the input {B}")
        if stored != dtype:
            raise ValueError(f"past_key_values stores {stored}, and the model computes in {dtype}: make it with dtype=")
    if attention_mask is not None:
        wanted = f"({B}, {T})" + (f", or with the {past} columns of the cache ({B}, {past + T})," if past else "")
        fits = tuple(attention_mask.shape) in ((B, T), (B, past + T))
        _require(fits, "attention_mask", attention_mask, wanted)
    if position_ids is not None:
        fits = tuple(position_ids.shape) in ((B, T), (1, T))
        _require(fits, "position_ids", position_ids, f"({B}, {T}) or (1, {T})")


def can_look_at(tensor: Tensor) -> bool:
    """Whether values may be looked at here: not while compiling, and not where that would wait for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _require(fits: bool, name: str, tensor: Tensor, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: {wanted} is wanted")
