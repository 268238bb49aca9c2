"""The trained model with the reader's functions in place of its own.

An adapter is a subclass that changes nothing but a forward pass, so `put_in` exchanges the class of each module, and
weights and names stay. What the reader has not written falls back on the textbook.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.models import MixtralForCausalLM, MixtralModel
from mixtral_edu.attention import GroupedQueryAttention
from mixtral_edu.exercises.own.attention import OwnAttention, OwnCache
from mixtral_edu.exercises.own.functions import Own, PartFailed
from mixtral_edu.exercises.own.sampling import own_sampling
from mixtral_edu.heads import CausalLM, next_token_loss
from mixtral_edu.model import Decoder, DecoderLayer, Output
from mixtral_edu.moe import Expert, Router, RouterOutput, SparseMoE
from mixtral_edu.norm import RMSNorm


def put_in(model: MixtralForCausalLM, functions: dict[str, Callable]) -> MixtralForCausalLM:
    """Let a model without the engine compute with the reader's `functions`, by exercise name; return it."""
    own = Own(functions)
    for module in model.modules():
        if type(module) in _ADAPTERS:
            module.__class__ = _ADAPTERS[type(module)]
        module.own = own
    return model


class OwnNorm(RMSNorm):
    """Calls the reader's `rms_norm`, if there is one."""

    def forward(self, x: Tensor) -> Tensor:
        if "rms_norm" not in self.own:
            return super().forward(x)
        return self.own("rms_norm", x, self.weight, self.eps, like=x)


class OwnRouter(Router):
    """Calls the reader's `route_tokens` on its logits (N, E), if there is one.

    Raises:
        PartFailed: an expert was chosen that does not exist.
    """

    def forward(self, x: Tensor) -> RouterOutput:
        if "route_tokens" not in self.own:
            return super().forward(x)
        logits, shape = nn.Linear.forward(self, x), (len(x), self.top_k)
        like = tuple(logits.new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.long))
        weights, experts = self.own("route_tokens", logits, self.top_k, like=like)
        E = self.out_features
        if (odd := experts[(experts < 0) | (experts >= E)]).numel():  # dispatch would leave it out in silence
            raise PartFailed(f"It chose expert {odd[0]}; there are experts 0 to {E - 1}")
        return RouterOutput(logits, weights, experts)


class OwnExpert(Expert):
    """Calls the reader's `gated_expert` on rows (N, D), if there is one."""

    def forward(self, x: Tensor) -> Tensor:
        if "gated_expert" not in self.own:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])  # the dispatch "by the letter" calls an expert with a single vector
        matrices = self.w1.weight, self.w2.weight, self.w3.weight
        return self.own("gated_expert", rows, *matrices, like=rows).view(x.shape)


class OwnMoE(SparseMoE):
    """Calls the reader's `dispatch_tokens` on all tokens (N, D), if there is one."""

    def dispatch(self, x: Tensor, routing: RouterOutput) -> Tensor:
        if "dispatch_tokens" not in self.own:
            return super().dispatch(x, routing)
        return self.own("dispatch_tokens", x, routing.weights, routing.experts, list(self.experts), like=x)


class OwnLayer(DecoderLayer):
    """Calls the reader's `decoder_layer` on the stream (B, T, D), if there is one.

    Raises:
        PartFailed: it did not call attention or the experts.
    """

    def forward(self, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None, RouterOutput]:
        if "decoder_layer" not in self.own:
            return super().forward(x, *arguments)
        aside = {}  # what the layer returns besides x

        def attention(x: Tensor) -> Tensor:
            x, aside["weights"] = self.self_attn(x, *arguments)
            return x

        def experts(x: Tensor) -> Tensor:
            x, aside["routing"] = self.block_sparse_moe(x)
            return x

        norms = self.input_layernorm, self.post_attention_layernorm
        y = self.own("decoder_layer", x, norms[0], attention, norms[1], experts, like=x)
        if len(aside) < 2:
            raise PartFailed("It returned without a call of attention and of experts; a layer needs both")
        return y, aside["weights"], aside["routing"]


class _OwnDecoder(Decoder):
    """Comes between `MixtralModel`, which makes a cache, and the textbook, which reads it."""

    def forward(self, input_ids: Any, mask: Any, position_ids: Any, cache: Any, *options: Any) -> Output:
        if isinstance(cache, RollingKVCache):
            cache.__class__, cache.own = OwnCache, self.own
        return super().forward(input_ids, mask, position_ids, cache, *options)


class OwnModel(MixtralModel, _OwnDecoder):
    """A decoder whose caches hold what the reader's functions write."""


class _OwnHead(CausalLM):
    """Comes between `MixtralForCausalLM`, which checks arguments, and the textbook's head."""

    def forward(
        self, input_ids: Any, attention_mask: Any = None, labels: Any = None, *rest: Any, **options: Any
    ) -> Output:
        out = super().forward(input_ids, attention_mask, labels, *rest, **options)
        if out.aux_loss is not None and "balancing_loss" in self.own:
            out.aux_loss = self.balance(out.router_logits, attention_mask)
        if labels is not None:
            out.loss = self.token_loss(out.logits, labels)
            if out.aux_loss is not None:
                out.loss = out.loss + self.config.router_aux_loss_coef * out.aux_loss
        return out

    def balance(self, router_logits: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
        """The load-balancing loss of all layers together: one layer of L*N tokens, as each layer has N of them."""
        logits, L, N = torch.cat(router_logits), len(router_logits), len(router_logits[0])
        mask = logits.new_ones(N, dtype=torch.float32)
        if attention_mask is not None and attention_mask.ndim == 2:
            new = N // len(attention_mask)  # columns
            mask = attention_mask[:, -new:].reshape(-1).to(mask)
        return self.own("balancing_loss", logits, self.config.num_experts_per_tok, mask.repeat(L), like=0.0)

    def token_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of logits (B, T, V) that predict labels (B, T), in nats."""
        if "causal_loss" not in self.own:
            return next_token_loss(logits, labels)
        loss = self.own("causal_loss", logits, labels, like=0.0)
        return loss if isinstance(loss, Tensor) else logits.new_tensor(loss, dtype=torch.float32)


class OwnMixtral(MixtralForCausalLM, _OwnHead):
    """A language model some of whose parts the reader has written."""

    def generate(self, *arguments: Any, **options: Any) -> Any:
        with own_sampling(self.own):
            return super().generate(*arguments, **options)

    def stream(self, *arguments: Any, **options: Any) -> Iterator[str]:
        texts = super().stream(*arguments, **options)  # checks its arguments at once

        def steps() -> Iterator[str]:
            while True:
                with own_sampling(self.own):  # not while the caller holds a text
                    text = next(texts, None)
                if text is None:
                    return
                yield text

        return steps()


_ADAPTERS: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: OwnNorm,
    GroupedQueryAttention: OwnAttention,
    Router: OwnRouter,
    Expert: OwnExpert,
    SparseMoE: OwnMoE,
    DecoderLayer: OwnLayer,
    MixtralModel: OwnModel,
    MixtralForCausalLM: OwnMixtral,
}
