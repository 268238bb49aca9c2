"""What no Mixtral can have: each rule names a config's field, whether it is fine, and what would be right."""

from collections.abc import Iterator
from typing import Any

COUNTS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "num_experts_per_tok num_local_experts max_position_embeddings"
).split()
DTYPES = (None, "float64", "float32", "float16", "bfloat16")
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


def check(config: Any) -> None:
    """Raise a ValueError for the first field of `config` that breaks a rule."""
    for name, is_fine, wanted in _rules(config):
        if not is_fine:
            raise ValueError(f"{name}={getattr(config, name)!r}: it has to be {wanted}")


def _rules(config: Any) -> Iterator[tuple[str, bool, str]]:
    """Yield (field, whether it is fine, what is wanted); a rule may rely on those before it."""
    for name in COUNTS:
        yield name, is_count(getattr(config, name)), "a whole number of at least 1"

    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    if config.head_dim is None:
        splits = config.hidden_size % heads == 0
        yield "hidden_size", splits, f"a multiple of num_attention_heads={heads}, or head_dim has to be given"
    head_dim = config.hidden_size // heads if config.head_dim is None else config.head_dim
    pairs = is_count(head_dim) and head_dim % 2 == 0
    yield "head_dim", pairs, f"an even number, not {head_dim}: the rotary embedding turns pairs of numbers"
    shares = heads % key_value_heads == 0
    yield "num_key_value_heads", shares, f"a divisor of num_attention_heads={heads}: groups of query heads are equal"
    experts = config.num_local_experts
    yield "num_experts_per_tok", config.num_experts_per_tok <= experts, f"at most num_local_experts={experts}"
    window = config.sliding_window
    yield "sliding_window", window is None or is_count(window), "None, or at least 1: a query sees its own position"

    yield "hidden_act", config.hidden_act == "silu", "'silu', the gate of Mixtral's experts"
    yield "tie_word_embeddings", not config.tie_word_embeddings, "False: lm_head has weights of its own"
    for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
        yield name, _is_number(getattr(config, name)) and getattr(config, name) > 0, "a positive number"
    for name in ("attention_dropout", "router_jitter_noise"):
        yield name, _is_number(getattr(config, name)) and 0 <= getattr(config, name) < 1, "a number from 0 to below 1"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        ids = value if isinstance(value, list) else [value]
        inside = all(i is None or (_is_int(i) and 0 <= i < config.vocab_size) for i in ids)
        yield name, inside, f"None, or from 0 to vocab_size - 1 = {config.vocab_size - 1}"
    yield "num_labels", config.num_labels is None or is_count(config.num_labels), "a whole number of at least 1"
    yield "dtype", config.dtype in DTYPES, f"one of {DTYPES}"
    yield "problem_type", config.problem_type in PROBLEM_TYPES, f"one of {PROBLEM_TYPES}"
    one_label = config.num_labels == 1 or config.num_labels is None and len(config.id2label or ()) == 1
    choice = config.problem_type != "single_label_classification" or not one_label
    yield "problem_type", choice, "another with one label: a choice needs num_labels=2 or more"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of at least 1."""
    return _is_int(value) and value >= 1
