"""What all model classes share: what they return, and how they are initialised, loaded and saved."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixtral_edu import checkpoint
from mixtral_edu.cache import RollingKVCache
from mixtral_edu.config import MixtralConfig


@dataclass
class MixtralModelOutput:
    """What `MixtralModel` returns; what was not asked for is None.

    `last_hidden_state` (B, T, D), normalised. `past_key_values`: the cache, ready for the next tokens. `router_logits`:
    one (B*T, E) tensor a layer. `hidden_states`: L + 1 tensors (B, T, D), the embedding first, the normalised last one
    at the end. `attentions`: one (B, Hq, T, S) tensor a layer.
    """

    last_hidden_state: Tensor
    past_key_values: RollingKVCache | None = None
    router_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MixtralOutput:
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
class MixtralQuestionAnsweringOutput:
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
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw every matrix from a normal distribution of deviation `config.initializer_range`.

        Norms are ones, biases and the embedding of padding zeros.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()

    from_pretrained = classmethod(checkpoint.load_pretrained)
    save_pretrained = checkpoint.save_pretrained
