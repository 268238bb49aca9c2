"""What a forward pass refuses, before anything is computed or a cache is touched."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.attention import ATTENTION_BACKENDS, GroupedQueryAttention
from mixtral_edu.cache import RollingCache
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.fast.engine import has_plain
from mixtral_edu.fast.flash import check_flash
from mixtral_edu.heads import IGNORED_LABEL, mean_cross_entropy
from mixtral_edu.masks import NO_POSITION
from mixtral_edu.moe import EXPERT_DISPATCH, SparseMoE
from mixtral_edu.sampling import can_look_at

_WHOLE = (torch.int64, torch.int32)
_CHOICES = (  # settings, whose parts follow them, and what these parts can do without the engine
    ("attn_implementation", GroupedQueryAttention, ATTENTION_BACKENDS),
    ("experts_implementation", SparseMoE, EXPERT_DISPATCH),
)


def check_inputs(
    config: MixtralConfig,
    dtype: torch.dtype,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: RollingCache | None,
) -> tuple[int, int]:
    """Return B and T; raise a TypeError or ValueError that names the first argument that does not fit, and what would.

    Values of ids are looked at on a CPU only: elsewhere that would wait for the device.
    """
    given = check_tokens(config, input_ids, inputs_embeds)
    B, T = given.shape[:2]
    past = 0
    if cache is not None:
        check_cache(cache, config, B, dtype, given.device)
        past = cache.seen
    if attention_mask is not None:
        _check_mask(attention_mask, B, config.num_attention_heads, T, past)
        if attention_mask.ndim == 2 and attention_mask.shape[1] > T and can_look_at(attention_mask):
            _check_past(attention_mask[:, :past], cache)
    if position_ids is not None:
        _require_tensor("position_ids", position_ids)
        fits = tuple(position_ids.shape) in ((B, T), (1, T))
        _require(fits, "position_ids", position_ids, f"({B}, {T}) or (1, {T})")
    return B, T


def check_tokens(config: MixtralConfig, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return the ids (B, T) or embeddings (B, T, D), whichever is given; raise unless one is, and is right."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids and inputs_embeds: exactly one of them must be given")
    if input_ids is not None:
        check_prompt(config, input_ids)
        return input_ids
    _require_tensor("inputs_embeds", inputs_embeds)
    fits = inputs_embeds.ndim == 3 and inputs_embeds.numel() > 0 and inputs_embeds.shape[2] == config.hidden_size
    wanted = f"(batch, tokens, hidden_size={config.hidden_size}), not empty"
    _require(fits, "inputs_embeds", inputs_embeds, wanted)
    return inputs_embeds


def check_prompt(config: Any, input_ids: Tensor, wait: bool = False) -> None:
    """Raise unless `input_ids` are ids (B, T) of the vocabulary, looked at on a CPU only, unless one may `wait`."""
    _require_tensor("input_ids", input_ids)
    _require(input_ids.ndim == 2 and input_ids.numel() > 0, "input_ids", input_ids, "(batch, tokens), not empty")
    check_ids("input_ids", input_ids, config.vocab_size, wait or can_look_at(input_ids))


def check_backend(
    config: MixtralConfig,
    device: torch.device,
    dtype: torch.dtype,
    output_attentions: bool,
    model: nn.Module | None = None,
) -> None:
    """Raise a ValueError, which says what to choose instead, unless the config's backends can do what is asked."""
    for name, part, textbook in _CHOICES:
        if getattr(config, name) not in textbook and model is not None and has_plain(model, part):
            choice = " or ".join(map(repr, textbook))
            raise ValueError(
                f"{name}={getattr(config, name)!r} needs the engine: it must be {choice} with engine=False"
            )
    if output_attentions and config.attn_implementation != "eager":
        raise ValueError(
            f"output_attentions=True: the {config.attn_implementation!r} backend never holds the weights; "
            "load the model with attn_implementation='eager'"
        )
    if config.attn_implementation == "flash_attention_2":
        check_flash(device, dtype, config.head_dim)


def with_effect(attention_mask: Tensor | None, T: int) -> Tensor | None:
    """Return the mask of the T new tokens, or None where it hides none of them; checked on a CPU only."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, -T:]
    return None if can_look_at(mask) and bool((mask != 0).all()) else mask


def given_cache(past_key_values: RollingCache | None, cache: RollingCache | None) -> RollingCache | None:
    """Return the cache by whichever of its two names it is given; raise a ValueError if by both."""
    if past_key_values is not None and cache is not None:
        raise ValueError("cache and past_key_values are both given; they are names of one argument: give one of them")
    return past_key_values if cache is None else cache


def check_ids(
    name: str, ids: Tensor, count: int, look: bool = True, wanted: str = "ids from 0 to vocab_size - 1"
) -> None:
    """Raise unless `ids` are whole numbers and, where one may `look` at them, from 0 to below `count`."""
    if ids.dtype not in _WHOLE:
        raise TypeError(f"{name} has dtype {ids.dtype}; it must be torch.int64")
    if look:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= count:
            raise ValueError(f"{name} reach from {low} to {high}; they must be {wanted} = {count - 1}")


def check_labels(
    labels: Tensor, shape: tuple[int, ...], classes: int, classes_name: str, each: str = "a class each"
) -> None:
    """Raise unless `labels` have this shape, and each is `IGNORED_LABEL` or one of the classes."""
    _require_tensor("labels", labels)
    _require(labels.shape == shape, "labels", labels, f"{tuple(shape)}, {each}")
    counted = labels[labels != IGNORED_LABEL] if can_look_at(labels) else labels
    look = can_look_at(labels) and counted.numel() > 0
    check_ids("labels", counted, classes, look, f"{IGNORED_LABEL} or numbers from 0 to {classes_name} - 1")


def check_sequence_labels(labels: Tensor, problem_type: str, B: int, num_labels: int) -> None:
    """Raise unless `labels` are what a loss of this type takes for B texts."""
    if problem_type == "single_label_classification":
        each = "a class each (several labels per text are given as floating-point numbers)"
        check_labels(labels, (B,), num_labels, "num_labels", each)
        return
    several = problem_type == "multi_label_classification"
    _require_tensor("labels", labels)
    shapes = [(B, num_labels)] if several or num_labels > 1 else [(B,), (B, 1)]
    _require(labels.shape in shapes, "labels", labels, f"{' or '.join(map(str, shapes))} for {problem_type=}")
    if not labels.is_floating_point() and (several or labels.dtype not in _WHOLE):
        raise TypeError(f"labels has dtype {labels.dtype}; it must be a floating-point type for {problem_type=}")
    if can_look_at(labels):
        fine = (labels >= 0) & (labels <= 1) if several else labels.isfinite()
        if not fine.all():
            wanted = "numbers from 0 to 1" if several else "finite numbers"
            raise ValueError(f"labels hold {labels[~fine][0].item()}; they must be {wanted} for {problem_type=}")


def problem_type_of(config: MixtralConfig, labels: Tensor) -> str:
    """The config's problem type; where it is None, the one that the labels' number and dtype tell, as in transformers.

    There a model keeps the type that its first labels tell, and saves it. Here the config stays as it is.
    """
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    several = isinstance(labels, Tensor) and labels.is_floating_point()
    return "multi_label_classification" if several else "single_label_classification"


def sequence_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Mean loss of logits (B, num_labels); a float32 scalar. The labels are as `problem_type` wants them.

    Squared error for "regression", cross entropy in nats over the labels for "single_label_classification", and over
    yes and no for each label of "multi_label_classification". 0 where all classes are -100.
    """
    logits = logits.float()
    if problem_type == "regression":
        return F.mse_loss(logits, labels.float().view_as(logits))
    if problem_type == "single_label_classification":
        return mean_cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.float())


def check_answer(start_positions: Tensor | None, end_positions: Tensor | None, rows: int) -> None:
    """Raise unless both positions of an answer are given, a whole number for each row."""
    for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
        if positions is None:
            raise ValueError(f"{name} is None: the loss of an answer needs its start_positions and its end_positions")
        _require_tensor(name, positions)
        _require(positions.shape == (rows,), name, positions, f"({rows},), one column each")
        check_ids(name, positions, 0, look=False)


def _check_mask(mask: Tensor, B: int, Hq: int, T: int, past: int) -> None:
    _require_tensor("attention_mask", mask)
    wanted = f"({B}, {T})" + (f", or with the {past} columns of the cache ({B}, {past + T})" if past else "")
    fits = tuple(mask.shape) in ((B, T), (B, past + T))
    if mask.ndim > 2:  # which key each query sees
        wanted += f", or ({B} or 1, {Hq} or 1, {T}, {past + T}): rows, query heads, new tokens, keys"
        fits = mask.ndim == 4 and mask.shape[0] in (1, B) and mask.shape[1] in (1, Hq)
        fits = fits and mask.shape[2:] == (T, past + T)
    _require(fits, "attention_mask", mask, wanted)
    if mask.ndim == 4 and mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"attention_mask of four dimensions has dtype {mask.dtype}; it must be torch.bool, True where a query may "
            "attend, or a floating-point type, 0 there and -inf elsewhere"
        )


def _check_past(mask: Tensor, cache: RollingCache) -> None:
    """Raise where a mask (B, P) of what a cache has seen hides more than the padding that it left out."""
    shown = (mask != 0).sum(1)  # (B,)
    held = (cache.positions != NO_POSITION).sum(1) if cache.padded else torch.full_like(shown, cache.seen)
    if (hidden := shown < held).any():
        row = int(hidden.int().argmax())
        raise ValueError(
            f"attention_mask shows {int(shown[row])} of the first {cache.seen} columns in row {row}, and "
            f"past_key_values (cache) holds {int(held[row])}, which it cannot hide: give it the mask from the first "
            "call on"
        )


def check_cache(cache: RollingCache, config: MixtralConfig, B: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise a TypeError or ValueError unless a cache fits a model, B rows, and their dtype and device."""
    if not isinstance(cache, RollingCache):
        raise TypeError(f"past_key_values (cache) must be a RollingKVCache, not {type(cache).__name__}")
    eager = not torch.compiler.is_compiling()  # what is compiled cannot ask
    if eager and cache.keys[0].is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            "past_key_values (cache) was made in torch.inference_mode(), and can be continued there only: use "
            "torch.no_grad() instead"
        )
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
            raise ValueError(f"past_key_values (cache) has {what} {found}, but this call needs {wanted}")


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor")


def _require(fits: bool, name: str, tensor: Tensor, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {wanted}")
