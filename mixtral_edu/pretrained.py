"""What all model classes share: what they return, and how they are initialised, loaded and saved."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixtral_edu.cache import RollingKVCache
from mixtral_edu.checkpoints import huggingface as checkpoint
from mixtral_edu.config import MixtralConfig
from mixtral_edu.fast.cuda_graph import GraphedStep
from mixtral_edu.fast.weights import drop_fast_weights
from mixtral_edu.norm import RMSNorm
from mixtral_edu.quantization.layers import Int4Linear


class _CacheByTwoNames:
    """For an output: `cache`, as transformers calls it since 5.24, is another name of the field `past_key_values`."""

    past_key_values: RollingKVCache | None

    @property
    def cache(self) -> RollingKVCache | None:
        """The cache, ready for the next tokens."""
        return self.past_key_values

    @cache.setter
    def cache(self, value: RollingKVCache | None) -> None:
        self.past_key_values = value


@dataclass
class MixtralModelOutput(_CacheByTwoNames):
    """What `MixtralModel` returns; what was not asked for is None.

    `last_hidden_state` (B, T, D), normalised. `past_key_values`, also named `cache`: the cache, ready for the next
    tokens. `router_logits`: one (B*T, E) tensor per layer. `hidden_states`: L + 1 tensors (B, T, D), the embedding
    first, the normalised last one at the end. `attentions`: one (B, Hq, T, S) tensor per layer.
    """

    last_hidden_state: Tensor
    past_key_values: RollingKVCache | None = None
    router_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MixtralOutput(_CacheByTwoNames):
    """What a model with a head returns: the fields of `MixtralModelOutput`, and those of the head.

    `logits` (B, T, V) for a causal model, (B, num_labels) for sequence classification and (B, T, num_labels) for token
    classification. `loss`: a scalar, if labels were given; of a causal model with `output_router_logits` it holds
    `aux_loss`, the load-balancing loss, times `config.router_aux_loss_coef`.
    """

    loss: Tensor | None = None
    aux_loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: RollingKVCache | None = None
    router_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MixtralQuestionAnsweringOutput(_CacheByTwoNames):
    """What the head for question answering returns: the fields of `MixtralModelOutput`, and those of the head.

    `start_logits`, `end_logits` (B, T). `loss`: a scalar, if positions were given.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    past_key_values: RollingKVCache | None = None
    router_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PreTrained(nn.Module):
    """What every model class shares: a config, an initialisation, loading and saving.

    For loading: `head_keys` are the prefixes of the class's own head, and `optional_head` tells whether a checkpoint
    without them may be loaded.
    """

    head_keys: tuple[str, ...] = ()
    optional_head = False

    def __init__(self, config: MixtralConfig):
        super().__init__()
        self._config = config
        config.bind()
        self._drop_step()

    @property
    def config(self) -> MixtralConfig:
        """Sizes and settings. To change a setting, assign its field: all layers read this one config."""
        return self._config

    @config.setter
    def config(self, config: MixtralConfig) -> None:
        if config is not self._config:
            name = type(self).__name__
            raise AttributeError(f"config: a model keeps the one it was built from; assign its fields, as in "
                                 f"model.config.use_cache = False, or build another model, {name}(config)")  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def init_weights(self) -> None:
        """Draw every matrix from a normal distribution of deviation `config.initializer_range`.

        Norms are ones, biases and the embedding of padding zeros.
        """
        for module in self.modules():
            init_module(module, self.config.initializer_range)

    def prepare_for_inference(self, compile: bool = False, graph: bool = False) -> Self:
        """Switch to evaluation mode, get ready what is worth keeping between texts, and return the model.

        Quantized layers keep their copies for PyTorch's kernels, which `generate` otherwise makes for each text (see
        `Int4Linear.pack`). Results stay the same to rounding.

        Args:
            compile: let `torch.compile` make one program of the step that continues a text by one token, as
                `compiled_step`, which `generate` then uses. The first steps take it some ten seconds and a C++
                compiler; with `experts_implementation="grouped"` nothing is left out of the program.
            graph: on a CUDA device, record that step for each cache and replay it, see `mixtral_edu.fast.cuda_graph`;
                with `experts_implementation="grouped"` (of at most 64 rows, unless in bfloat16 on Hopper or Blackwell)
                and another attention than FlashAttention-2.

        With either, hooks and other changes to the model are not seen by the step: call `train()`, which drops it, then
        this again.

        Raises:
            ValueError: a graph of a model that is on no CUDA device.
        """
        if graph and self.device.type != "cuda":
            raise ValueError(f"graph=True needs a model on a CUDA device, and this one is on {self.device}")
        self.eval()
        for module in self.modules():
            if isinstance(module, Int4Linear):
                module.pack()
        if isinstance(self.compiled_step, GraphedStep):
            self.compiled_step.forget()  # the cache of the last text
        if (compile or graph) and self._step_form != (compile, graph):
            step = torch.compile(self.forward) if compile else self.forward
            self.compiled_step, self._step_form = (GraphedStep(step) if graph else step), (compile, graph)
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or with False to evaluation mode."""
        if mode:
            self._drop_step()
            drop_fast_weights(self)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:  # of a copy
        return self.__dict__ | {"compiled_step": None, "_step_form": None}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy, whose config belongs to it
        super().__setstate__(state)
        self._config.bind()

    def _apply(self, fn, recurse=True):  # moves to a device, changes the dtype
        self._drop_step()
        drop_fast_weights(self)
        return super()._apply(fn, recurse)

    def _drop_step(self) -> None:
        if isinstance(self.__dict__.get("compiled_step"), GraphedStep):
            self.compiled_step.forget()  # who still has it must not read weights that have moved
        self.compiled_step: Callable[..., Any] | None = None
        self._step_form: tuple[bool, bool] | None = None  # compiled, a graph

    from_pretrained = classmethod(checkpoint.load_pretrained)
    save_pretrained = checkpoint.save_pretrained


@torch.no_grad()
def init_module(module: nn.Module, deviation: float) -> None:
    """Draw a module's own weights, as `PreTrained.init_weights` says."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(0.0, deviation)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.zero_()
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
    if isinstance(module, RMSNorm):
        module.weight.fill_(1.0)
