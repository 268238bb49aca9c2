"""The sizes and settings of a Mixtral model, under the names that transformers' `config.json` gives them."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Self


class ParameterCounts(NamedTuple):
    """How many parameters a model holds (`total`), and how many of them one token uses (`active`).

    A token passes through K of the E experts in each layer; all other parts count in full. `per_part` sums over the
    layers, under the names "embedding", "attention", "router", "experts", "norms" and "lm_head".
    """

    total: int
    active: int
    per_part: dict[str, int]


@dataclass
class Config:
    """The settings that a model is built from.

    The package writes each size as one letter, given below. Besides, B is the number of texts (rows) in a batch, T the
    number of new tokens per row, each with a query, S the number of keys those queries may look at, and N = B*T.
    """

    vocab_size: int = 32000  # V: different tokens
    hidden_size: int = 4096  # D: numbers in the vector that stands for a token
    intermediate_size: int = 14336  # F: numbers per token inside an expert
    num_hidden_layers: int = 32  # L: decoder layers
    num_attention_heads: int = 32  # Hq: query heads
    num_key_value_heads: int = 8  # Hkv: key-value heads, each shared by Hq/Hkv query heads
    head_dim: int | None = None  # Dh: numbers per head; None for D/Hq
    num_local_experts: int = 8  # E: experts per layer
    num_experts_per_tok: int = 2  # K: experts that each token passes through
    sliding_window: int | None = None  # W: keys a query may see, its own included; None for no window
    max_position_embeddings: int = 4096 * 32  # the longest text it is meant for, in tokens; not enforced
    rope_theta: float = 1e6  # the larger, the slower the rotary angles turn
    rms_norm_eps: float = 1e-5  # keeps RMSNorm from dividing by zero
    initializer_range: float = 0.02  # standard deviation of new weights
    attention_dropout: float = 0.0  # share of attention weights set to 0 in training
    router_jitter_noise: float = 0.0  # in training, router and experts read x times 1 ± up to this
    router_aux_loss_coef: float = 0.001  # factor of the load-balancing loss
    bos_token_id: int | None = 1  # the id that begins a text
    eos_token_id: int | list[int] | None = 2  # what ends it
    pad_token_id: int | None = None  # what fills up short rows of a batch
    num_labels: int | None = 2  # classes of a classification head
    problem_type: str | None = None  # which loss the API's sequence classifier takes
    attn_implementation: str = "sdpa"  # a key of `attention.ATTENTION_BACKENDS`
    experts_implementation: str = "sorted"  # a key of `moe.EXPERT_DISPATCH`
    dtype: str | None = None  # number format of the weights, such as "bfloat16"

    def __post_init__(self):
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads

    @classmethod
    def mixtral_8x7b(cls, **changes) -> Self:
        """The released Mixtral-8x7B-v0.1: no sliding window, so attention is dense over up to 32,768 positions."""
        return cls(**{"max_position_embeddings": 32768, "router_aux_loss_coef": 0.02, "dtype": "bfloat16"} | changes)

    @classmethod
    def tiny(cls, **changes) -> Self:
        """The bundled base model's sizes: every part of Mixtral in 8 million parameters, with a window of 128."""
        sizes = dict(vocab_size=2048, hidden_size=256, intermediate_size=256, num_hidden_layers=4,
                     num_attention_heads=8, num_key_value_heads=2, sliding_window=128)  # fmt: skip
        usual = {"max_position_embeddings": 32768, "rope_theta": 1e4, "router_aux_loss_coef": 0.02}
        return cls(**sizes | usual | changes)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each weight of a language model, in the model's order; matrices are (out, in).

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
        """Count total and active parameters from the sizes alone, without building the model.

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
    """Return the part of the model that a weight belongs to, as `ParameterCounts.per_part` names it.

    >>> part_of("model.layers.0.block_sparse_moe.gate.weight")
    'router'
    """
    words = {"embed_tokens": "embedding", "self_attn": "attention", "gate": "router", "experts": "experts",
             "lm_head": "lm_head"}  # fmt: skip
    return next((part for word, part in words.items() if f".{word}." in f".{name}"), "norms")
