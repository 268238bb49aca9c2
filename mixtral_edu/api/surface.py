"""Other methods that users of transformers call: counts, choice of backends, gradient checkpointing."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import nn

from mixtral_edu.api.inputs import check_backend
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.fast import checkpointing, decoding
from mixtral_edu.quantization.layers import Int4Linear, Int8Linear
from mixtral_edu.text.pieces import whole_number


def num_parameters(model: nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Return the number of weights in the model, quantized ones included.

    Args:
        only_trainable: count only those that get gradients; quantized ones never do.
        exclude_embeddings: leave out the input embedding; `lm_head` counts, as in transformers.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Embedding)] if exclude_embeddings else []
    left_out = {id(layer.weight) for layer in layers}
    counted = [p for p in model.parameters() if id(p) not in left_out and (p.requires_grad or not only_trainable)]
    quantized = [m for m in model.modules() if isinstance(m, Int8Linear | Int4Linear) and not only_trainable]
    return sum(p.numel() for p in counted) + sum(layer.in_features * layer.out_features for layer in quantized)


def get_memory_footprint(model: nn.Module, return_buffers: bool = True) -> int:
    """Return the bytes that parameters and buffers take; quantized weights are buffers."""
    tensors = [*model.parameters(), *(model.buffers() if return_buffers else ())]
    return sum(tensor.nbytes for tensor in tensors)


def tie_weights(model: nn.Module) -> None:
    """Do nothing: in a Mixtral, embedding and `lm_head` share no weights."""


def generation_config(model: nn.Module) -> MixtralConfig | None:
    """The config, which holds the ids that begin, end and pad a text; None for a model that cannot generate.

    All other options are arguments of `generate`.
    """
    return model.config if hasattr(model, "lm_head") else None


def set_attn_implementation(model: nn.Module, attn_implementation: str) -> None:
    """Choose how attention is computed from now on: "eager", "sdpa" or "flash_attention_2".

    This assigns `model.config.attn_implementation`, which all layers follow, and drops what `prepare_for_inference`
    made.

    Raises:
        ValueError: there is no such backend, or it cannot run without the engine, on the model's device or in its
            dtype. The model then keeps the one that it had.
    """
    _choose(model, "attn_implementation", attn_implementation)


def set_experts_implementation(model: nn.Module, experts_implementation: str) -> None:
    """Choose how tokens reach their experts from now on: "reference", "sorted" or "grouped".

    Everything else is as with `set_attn_implementation`.
    """
    _choose(model, "experts_implementation", experts_implementation)


def _choose(model: nn.Module, name: str, backend: str) -> None:
    trial = copy(model.config)
    setattr(trial, name, backend)
    check_backend(trial, model.device, model.dtype, trial.output_attentions, model)
    setattr(model.config, name, backend)
    decoding.drop(model)


def activation_checkpointing_enable(
    model: nn.Module,
    activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
    every_n_layers: int = 1,
    offload: bool = False,
) -> None:
    """In training, let each layer keep only its input, and compute everything else again in the backward pass.

    That frees most of the memory of activations, for about a third more computation: `mixtral_edu.fast.checkpointing`
    has the figures. Nothing changes in evaluation mode or without gradients. In training no cache is made, and asking
    for one is an error.

    Args:
        activation_checkpointing_kwargs: None or {"use_reentrant": False}.
        every_n_layers: checkpoint only every n-th decoder layer, the first one included.
        offload: must be False; what is kept stays on its device.

    Raises:
        ValueError: an argument is something else, or the model has no `DecoderLayer`.
    """
    if activation_checkpointing_kwargs not in (None, {}, {"use_reentrant": False}):
        raise ValueError(
            f"activation_checkpointing_kwargs (gradient_checkpointing_kwargs) is {activation_checkpointing_kwargs!r}; "
            "it must be None or {'use_reentrant': False}: the reentrant form gives no gradients to a layer whose input "
            "has none, and other options are not passed on"
        )
    every_n_layers = whole_number("every_n_layers", every_n_layers, "a whole number", 1)
    if offload:
        raise ValueError(f"offload={offload!r}: it must be False; wrap the step in torch.autograd.graph.save_on_cpu()")
    checkpointing.install(model, every_n_layers)


def gradient_checkpointing_enable(
    model: nn.Module, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
) -> None:
    """Another name of `activation_checkpointing_enable`, the only one in releases of transformers before 5.24."""
    activation_checkpointing_enable(model, gradient_checkpointing_kwargs, **options)


def activation_checkpointing_disable(model: nn.Module) -> None:
    """Let layers keep what they compute, as before `activation_checkpointing_enable`."""
    checkpointing.remove(model)


def is_activation_checkpointing(model: nn.Module) -> bool:
    """Whether gradient checkpointing is switched on."""
    return checkpointing.is_installed(model)
