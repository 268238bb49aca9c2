"""The whole model: embedding, L decoder layers, a norm, and a head that scores the next token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu import generation
from mixtral_edu.attention import GroupedQueryAttention, check_backend
from mixtral_edu.cache import CacheStep, RollingKVCache
from mixtral_edu.config import MixtralConfig
from mixtral_edu.dispatch import RouterOutput
from mixtral_edu.fast.linear import Linear, lay_out_together
from mixtral_edu.input_checks import IGNORED_LABEL, can_look_at, check_inputs, check_labels, check_tokens, given_cache
from mixtral_edu.masks import NO_POSITION, Visibility, row_positions
from mixtral_edu.moe import SparseMoE, load_balancing_loss
from mixtral_edu.norm import RMSNorm
from mixtral_edu.pretrained import MixtralModelOutput, MixtralOutput, PreTrained
from mixtral_edu.rope import rotary_tables


class MixtralDecoderLayer(nn.Module):
    """Attention lets tokens exchange, experts work on each token alone; both add to a stream that flows past them.

    h = x + attention(norm(x))        y = h + experts(norm(h))
    """

    def __init__(self, config: MixtralConfig, layer_idx: int):
        super().__init__()
        self.self_attn = GroupedQueryAttention(config, layer_idx)
        self.block_sparse_moe = SparseMoE(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visibility: Visibility,
        cache_step: CacheStep | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, RouterOutput]:
        """Map x (B, T, D) to (B, T, D), with the attention weights (or None) and the router's decision."""
        attended, weights = self.self_attn(self.input_layernorm(x), cos, sin, visibility, cache_step, output_attentions)
        x = x + attended
        mixed, routing = self.block_sparse_moe(self.post_attention_layernorm(x))
        return x + mixed, weights, routing


class MixtralModel(PreTrained):
    """The decoder without a head: token ids in, one vector per token out."""

    def __init__(self, config: MixtralConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            MixtralDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache: RollingKVCache | None = None,
    ) -> MixtralModelOutput:
        """Run the decoder on T new tokens of B texts.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 for real tokens and 0 for padding, anywhere; with a cache also (B, P + T) for the
                P columns that it has seen, which it remembers itself. None means that all are real.
            position_ids: (B, T) or (1, T), the angles of the rotary embedding in place of each row's own count. What a
                token may see stays a matter of its place in the row.
            past_key_values: a cache to read and extend; made here if None and `use_cache`.
            inputs_embeds: (B, T, D), in place of `input_ids`.
            use_cache, output_router_logits, output_hidden_states, output_attentions: what to return; None means the
                config's value.
            cache: another name of `past_key_values`, the only one in newer releases of transformers. What is returned
                has both names too.

        Raises:
            TypeError: an argument that should be a tensor, or a cache, is something else.
            ValueError: neither or both of ids and embeddings, an id outside the vocabulary, shapes that do not fit, a
                cache made for something else, or given by both names, `output_attentions` with a backend that has no
                weights to show, or a backend that cannot run on the model's device or dtype.
            RuntimeError: the cache was left half-written by a pass that failed.
        """
        config = self.config
        output_router_logits = config.output_router_logits if output_router_logits is None else output_router_logits
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        dtype = getattr(inputs_embeds, "dtype", self.dtype)
        past_key_values = given_cache(past_key_values, cache)
        check_backend(config, self.device, dtype, output_attentions)
        check_inputs(config, dtype, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)

        if self.embed_tokens.padding_idx != config.pad_token_id:  # the row that learns nothing
            self.embed_tokens.padding_idx = config.pad_token_id
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        B, T = x.shape[:2]
        real = None if attention_mask is None else attention_mask[:, -T:].to(x.device) != 0  # (B, T)
        if real is not None and can_look_at(real) and real.all():
            real = None  # what is not there needs no mask
        if past_key_values is None and (config.use_cache if use_cache is None else use_cache):
            past_key_values = RollingKVCache(config, B, device=x.device, dtype=x.dtype)
        cache_step = None if past_key_values is None else past_key_values.step(T, real)
        visibility = _visibility_of_new(x, real, config.sliding_window) if cache_step is None else cache_step.visibility
        if position_ids is None:
            position_ids = visibility.query_positions.clamp(min=0)
        cos, sin = rotary_tables(position_ids, config.head_dim, config.rope_theta, x.dtype)

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
        return MixtralModelOutput(
            last_hidden_state=x,
            past_key_values=past_key_values,
            router_logits=tuple(router_logits) if output_router_logits else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


def _visibility_of_new(x: Tensor, real: Tensor | None, window: int | None) -> Visibility:
    """The visibility among new tokens (B, T, D) without a past."""
    B, T = x.shape[:2]
    if real is None:
        positions = torch.arange(T, device=x.device)[None]  # (1, T)
    else:
        no_past = torch.zeros(B, dtype=torch.long, device=x.device)
        positions = row_positions(real, no_past).masked_fill(~real, NO_POSITION)  # (B, T)
    return Visibility(positions, positions, window, padded=real is not None)


def mean_cross_entropy(logits: Tensor, labels: Tensor, ignored: int = IGNORED_LABEL) -> Tensor:
    """Mean cross entropy in nats of logits (N, C) over those labels (N,) that are not `ignored`; a float32 scalar.

    Where no label counts it is 0, as its gradient is: such a batch adds nothing. transformers' loss is nan there, with
    the same gradient, and one nan is enough to spoil an average over batches.
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp(min=1)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy in nats of logits (B, T, V) that predict labels (B, T) one step ahead; a float32 scalar.

    Labels of -100 are not counted. Where none is left, as for a text of a single token, the loss is 0.
    """
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # to cut the last logits off copies the others
    return mean_cross_entropy(logits.flatten(0, 1), wanted.flatten())


class MixtralForCausalLM(PreTrained):
    """The language model: for each token, a score for every possible next one."""

    head_keys = ("lm_head.",)

    def __init__(self, config: MixtralConfig):
        super().__init__(config)
        self.model = MixtralModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: RollingKVCache | None = None,
    ) -> MixtralOutput:
        """Score the next token after each of T new tokens of B texts.

        Args (beyond those of `MixtralModel.forward`):
            labels: (B, T), the input ids again; each is predicted from the tokens before it, and -100 is not counted.
                Give -100 to padding, and after padding also to the first real token: nothing stands before it. Where no
                label counts, the cross entropy is 0.
            logits_to_keep: compute scores for the last n tokens only, or for those at the given indices; 0: all.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if isinstance(logits_to_keep, int) and logits_to_keep < 0 or isinstance(logits_to_keep, float):
            raise ValueError(
                f"logits_to_keep={logits_to_keep}: it must be a number of tokens, 0 or more, or their indices"
            )
        if labels is not None:
            tokens = check_tokens(self.config, input_ids, inputs_embeds)
            check_labels(labels, tokens.shape[:2], self.config.vocab_size, "vocab_size")
            if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
                raise ValueError("labels are given with logits_to_keep: a loss needs all logits, logits_to_keep=0")
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            cache=cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # -0 is 0: all
        logits = self.lm_head(out.last_hidden_state[:, kept])  # (B, T or kept, V)

        loss = aux_loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels)
        if output_router_logits:
            new_mask = None if attention_mask is None else attention_mask[:, -out.last_hidden_state.shape[1] :]
            aux_loss = load_balancing_loss(
                out.router_logits, self.config.num_local_experts, self.config.num_experts_per_tok, new_mask
            )
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MixtralOutput(
            loss, aux_loss, logits, out.past_key_values, out.router_logits, out.hidden_states, out.attentions
        )

    def lay_out(self) -> None:
        """Copy the head's weight, if another order than its own is read faster."""
        lay_out_together(self.lm_head)

    generate = generation.generate
    stream = generation.stream
