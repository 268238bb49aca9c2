"""The model without its head: an embedding, L decoder layers and a norm turn token ids into vectors."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mixtral_edu.attention import GroupedQueryAttention
from mixtral_edu.cache import CacheStep, RollingCache
from mixtral_edu.config import Config
from mixtral_edu.masks import NO_POSITION, Visibility, row_positions
from mixtral_edu.moe import RouterOutput, SparseMoE
from mixtral_edu.norm import RMSNorm
from mixtral_edu.rope import rotary_tables


@dataclass
class Output:
    """What a model returns. A field is None if it was not asked for or belongs to another head (see `heads`).

    `last_hidden_state`: (B, T, D), normalised. `past_key_values`: the KV cache, ready for the next tokens.
    `router_logits`: one (B*T, E) tensor per layer. `hidden_states`: L + 1 tensors (B, T, D), the input of
    each layer and then `last_hidden_state`. `attentions`: one (B, Hq, T, S) tensor per layer.

    `logits`: scores, (B, T, V) from a language model, (B, num_labels) from sequence and (B, T, num_labels) from token
    classification. `start_logits`, `end_logits`: (B, T), from question answering. `loss`: a scalar, if labels are
    given. `aux_loss`: a language model's load-balancing loss, if router logits are returned; `loss` includes it, times
    `config.router_aux_loss_coef`.
    """

    loss: Tensor | None = None
    aux_loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: RollingCache | None = None
    router_logits: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DecoderLayer(nn.Module):
    """Attention moves information between tokens; experts work on each token alone.

    h = x + attention(norm(x))        y = h + experts(norm(h))

    Both add to the residual stream: the vector of each token that runs through all layers, x on the way in, y out.
    """

    def __init__(self, config: Config, layer_idx: int):
        super().__init__()
        self.self_attn = GroupedQueryAttention(config, layer_idx)
        self.block_sparse_moe = SparseMoE(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visibility: Visibility,
        cache_step: CacheStep | None = None, output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, RouterOutput]:  # fmt: skip
        """Map x (B, T, D) to (B, T, D), with the attention weights (or None) and the router's decision."""
        attended, weights = self.self_attn(self.input_layernorm(x), cos, sin, visibility, cache_step, output_attentions)
        x = x + attended
        mixed, routing = self.block_sparse_moe(self.post_attention_layernorm(x))
        return x + mixed, weights, routing


class Decoder(nn.Module):
    """The model without its head: token ids in, one vector per token out."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.apply(partial(init_module, deviation=config.initializer_range))

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        past_key_values: RollingCache | None = None, inputs_embeds: Tensor | None = None,
        output_router_logits: bool = False, output_hidden_states: bool = False, output_attentions: bool = False,
        visibility: Visibility | None = None,
    ) -> Output:  # fmt: skip
        """Run the decoder on T new tokens of B texts, and return its `Output`, without logits or loss.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), or (B, P + T) after P cached tokens: 1 for real tokens, 0 for padding; None: all 1.
            position_ids: (B, T) or (1, T), for the rotary embedding only; None: each row's own positions, as masks use.
            past_key_values: a cache to read and extend.
            inputs_embeds: (B, T, D) vectors, in place of `input_ids`.
            output_router_logits, output_hidden_states, output_attentions: what to return as well.
            visibility: which key each query sees, in place of the causal rule with its window.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        T = x.shape[1]
        real = None if attention_mask is None else attention_mask[:, -T:].to(x.device) != 0  # (B, T)
        cache_step = None if past_key_values is None else past_key_values.step(T, real)
        if visibility is None:
            visibility = cache_step.visibility if cache_step else _new_visibility(x, real, self.config.sliding_window)
        if position_ids is None:
            position_ids = visibility.query_positions.clamp(min=0)  # padding is never seen: any angle will do
        cos, sin = rotary_tables(position_ids, self.config.head_dim, self.config.rope_theta, x.dtype)

        hidden_states, attentions, router_logits = [], [], []
        for layer in self.layers:
            if output_hidden_states:
                hidden_states.append(x)
            x, weights, routing = layer(x, cos, sin, visibility, cache_step, output_attentions)
            attentions.append(weights)
            router_logits.append(routing.logits)
        x = self.norm(x)
        hidden_states.append(x)
        if cache_step is not None:
            cache_step.commit()
        return Output(
            last_hidden_state=x,
            past_key_values=past_key_values,
            router_logits=tuple(router_logits) if output_router_logits else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


def _new_visibility(x: Tensor, real: Tensor | None, window: int | None) -> Visibility:
    """Return the visibility among the tokens of x (B, T, D), with nothing cached before them."""
    if real is None:
        positions = torch.arange(x.shape[1], device=x.device)[None]  # (1, T)
    else:
        positions = row_positions(real, x.new_zeros(len(x), dtype=torch.long)).masked_fill(~real, NO_POSITION)  # (B, T)
    return Visibility(positions, positions, window, padded=real is not None)


@torch.no_grad()
def init_module(module: nn.Module, deviation: float) -> None:
    """Draw a module's own matrix from a normal distribution; set norms to 1, biases and the pad's embedding to 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(0.0, deviation)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.zero_()
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
    if isinstance(module, RMSNorm):
        module.weight.fill_(1.0)
