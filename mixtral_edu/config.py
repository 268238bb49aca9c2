"""The sizes of a Mixtral and how it computes, under the names of transformers' `config.json`."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Self


class ParameterCounts(NamedTuple):
    """How many numbers a model holds, and how many one token uses: `active` counts K instead of E experts per layer.

    `per_part`: those of all layers, for "embedding", "attention", "router", "experts", "norms", "lm_head".
    """

    total: int
    active: int
    per_part: dict[str, int]


@dataclass
class Config:
    """What a model is built from.

    Shape letters: V `vocab_size`, D `hidden_size`, F `intermediate_size`, L `num_hidden_layers`,
    Hq `num_attention_heads`, Hkv `num_key_value_heads`, Dh `head_dim` (D/Hq if None), E `num_local_experts`,
    K `num_experts_per_tok`, W `sliding_window` (how many keys a query may see, itself included; None for no window).
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    sliding_window: int | None = None
    max_position_embeddings: int = 4096 * 32
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    router_jitter_noise: float = 0.0
    router_aux_loss_coef: float = 0.001
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    num_labels: int | None = 2
    problem_type: str | None = None
    attn_implementation: str = "sdpa"
    experts_implementation: str = "sorted"
    dtype: str | None = None

    def __post_init__(self):
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads

    @classmethod
    def mixtral_8x7b(cls, **changes) -> Self:
        """The released Mixtral-8x7B-v0.1: dense attention over 32,768 positions, no sliding window."""
        return cls(**{"max_position_embeddings": 32768, "router_aux_loss_coef": 0.02, "dtype": "bfloat16"} | changes)

    @classmethod
    def tiny(cls, **changes) -> Self:
        """The bundled base model's sizes: all of Mixtral's parts at 8 million parameters, with a window of 128."""
        sizes = dict(vocab_size=2048, hidden_size=256, intermediate_size=256, num_hidden_layers=4,
                     num_attention_heads=8, num_key_value_heads=2, sliding_window=128)  # fmt: skip
        usual = {"max_position_embeddings": 32768, "rope_theta": 1e4, "router_aux_loss_coef": 0.02}
        return cls(**sizes | usual | changes)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each weight of a causal model, in the model's order.

        >>> shapes = Config.mixtral_8x7b().weight_shapes()
        >>> len(shapes), shapes["model.layers.31.block_sparse_moe.experts.7.w2.weight"]
        (995, (4096, 14336))
        """
        D, F, V = self.hidden_size, self.intermediate_size, self.vocab_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (queries, D),
            "self_attn.k_proj.weight": (keys, D),
            "self_attn.v_proj.weight": (keys, D),
            "self_attn.o_proj.weight": (D, queries),
            "block_sparse_moe.gate.weight": (self.num_local_experts, D),
        }
        for expert_idx in range(self.num_local_experts):
            for matrix, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D))):
                layer[f"block_sparse_moe.experts.{expert_idx}.{matrix}.weight"] = shape
        layer |= {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
        layers = range(self.num_hidden_layers)
        shapes = {f"model.layers.{i}.{name}": shape for i in layers for name, shape in layer.items()}
        return {"model.embed_tokens.weight": (V, D)} | shapes | {"model.norm.weight": (D,), "lm_head.weight": (V, D)}

    def parameter_counts(self) -> ParameterCounts:
        """Derive total and active parameters from the sizes alone.

        >>> counts = Config.mixtral_8x7b().parameter_counts()
        >>> f"{counts.total:,} parameters, {counts.active:,} active"
        '46,702,792,704 parameters, 12,879,925,248 active'
        """
        per_part = dict.fromkeys(("embedding", "attention", "router", "experts", "norms", "lm_head"), 0)
        for name, shape in self.weight_shapes().items():
            per_part[part_of(name)] += prod(shape)
        total, E, K = sum(per_part.values()), self.num_local_experts, self.num_experts_per_tok
        return ParameterCounts(total, total - per_part["experts"] * (E - K) // E, per_part)


def part_of(name: str) -> str:
    """Return which part of a model this weight belongs to, as `ParameterCounts.per_part` names it.

    >>> part_of("model.layers.0.block_sparse_moe.gate.weight")
    'router'
    """
    words = {"embed_tokens": "embedding", "self_attn": "attention", "gate": "router", "experts": "experts",
             "lm_head": "lm_head"}  # fmt: skip
    return next((part for word, part in words.items() if f".{word}." in f".{name}"), "norms")
