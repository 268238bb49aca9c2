"""What a forward pass refuses, before anything is computed or a cache is touched."""

import torch
from torch import Tensor

from mixtral_edu.cache import RollingKVCache
from mixtral_edu.config import MixtralConfig

IGNORED_LABEL = -100  # of a token whose prediction is not counted


def check_inputs(
    config: MixtralConfig,
    dtype: torch.dtype,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: RollingKVCache | None,
) -> None:
    """Raise a TypeError or ValueError that names the first argument that does not fit, and what would fit.

    Values of ids are looked at on a CPU only: elsewhere that would wait for the device.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("exactly one of input_ids and inputs_embeds is wanted")
    if input_ids is not None:
        _require_tensor("input_ids", input_ids)
        _require(input_ids.ndim == 2 and input_ids.numel() > 0, "input_ids", input_ids, "(batch, tokens), not empty,")
        check_ids("input_ids", input_ids, config.vocab_size, can_look_at(input_ids))
        given = input_ids
    else:
        _require_tensor("inputs_embeds", inputs_embeds)
        fits = inputs_embeds.ndim == 3 and inputs_embeds.numel() > 0 and inputs_embeds.shape[2] == config.hidden_size
        wanted = f"(batch, tokens, hidden_size={config.hidden_size}), not empty,"
        _require(fits, "inputs_embeds", inputs_embeds, wanted)
        given = inputs_embeds

    B, T = given.shape[:2]
    past = 0
    if cache is not None:
        _check_cache(cache, config, B, dtype, given.device)
        past = cache.get_seq_length()
    if attention_mask is not None:
        _require_tensor("attention_mask", attention_mask)
        wanted = f"({B}, {T})" + (f", or with the {past} columns of the cache ({B}, {past + T})," if past else "")
        fits = tuple(attention_mask.shape) in ((B, T), (B, past + T))
        _require(fits, "attention_mask", attention_mask, wanted)
    if position_ids is not None:
        _require_tensor("position_ids", position_ids)
        fits = tuple(position_ids.shape) in ((B, T), (1, T))
        _require(fits, "position_ids", position_ids, f"({B}, {T}) or (1, {T})")


def check_ids(name: str, ids: Tensor, vocab_size: int, look: bool = True) -> None:
    """Raise unless `ids` are whole numbers and, where one may `look` at them, inside the vocabulary."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} has dtype {ids.dtype}: torch.int64 is wanted")
    if look:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} reach from {low} to {high}: ids from 0 to vocab_size - 1 = {vocab_size - 1} are wanted"
            )


def check_labels(config: MixtralConfig, labels: Tensor, given: Tensor | None, logits_to_keep: int | Tensor) -> None:
    """Raise unless `labels` (B, T) go with the given tokens (B, T) or embeddings (B, T, D), and all logits are kept."""
    _require_tensor("labels", labels)
    if isinstance(given, Tensor):
        _require(labels.shape == given.shape[:2], "labels", labels, f"that of the tokens, {tuple(given.shape[:2])},")
    if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
        raise ValueError("labels are given with logits_to_keep: a loss needs all logits, logits_to_keep=0")
    counted = labels[labels != IGNORED_LABEL] if can_look_at(labels) else labels
    check_ids("labels", counted, config.vocab_size, look=can_look_at(labels) and counted.numel() > 0)


def can_look_at(tensor: Tensor) -> bool:
    """Whether values may be looked at here: not while compiling, and not where that would wait for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_cache(
    cache: RollingKVCache, config: MixtralConfig, B: int, dtype: torch.dtype, device: torch.device
) -> None:
    if not isinstance(cache, RollingKVCache):
        raise TypeError(f"past_key_values is a {type(cache).__name__}: a RollingKVCache is wanted")
    rows, heads, _, head_dim = cache.keys[0].shape
    for what, found, wanted in (
        ("rows", rows, B),
        ("layers", len(cache.keys), config.num_hidden_layers),
        ("key-value heads", heads, config.num_key_value_heads),
        ("head_dim", head_dim, config.head_dim),
        ("window", cache.window, config.sliding_window),
        ("dtype", cache.keys[0].dtype, dtype),
        ("device", cache.keys[0].device, device),
    ):
        if found != wanted:
            raise ValueError(f"past_key_values has {what} {found}, but this call needs {wanted}")


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}: a tensor is wanted")


def _require(fits: bool, name: str, tensor: Tensor, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: {wanted} is wanted")
