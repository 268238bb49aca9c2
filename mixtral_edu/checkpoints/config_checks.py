"""What no Mixtral can have: each rule names a config's field, whether it is fine, and what would be right."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

COUNTS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "num_experts_per_tok num_local_experts max_position_embeddings"
).split()
# What the tensors and modules of a built model have taken up for good.
FIXED = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "num_local_experts rms_norm_eps num_labels dtype quantization_config"
).split()
NOT_SAVED = {"attn_implementation", "experts_implementation", "extra"}  # chosen when a model is loaded
ATTENTION = ("eager", "flash_attention_2", "sdpa")
EXPERTS = ("grouped", "reference", "sorted")
DTYPES = (None, "float64", "float32", "float16", "bfloat16")
SWITCHES = "use_cache output_router_logits output_hidden_states output_attentions".split()
MOST = 2**63 - 1  # what torch can count
MOST_LABELS = 2**20  # each of them has a name
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # float32, in which norms and rotary tables are computed
_COUNT = "a whole number from 1 to 2**63 - 1"
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


def check(config: Any) -> None:
    """Raise a ValueError for the first field of `config` that breaks a rule."""
    for name, is_fine, wanted in _rules(config):
        if not is_fine:
            raise ValueError(f"{name}={shown(getattr(config, name))}: it must be {wanted}")


def check_changes(config: Any, name: str, changes: dict[str, Any]) -> None:
    """Raise a ValueError if assigning the field `name` brings `changes` that a model built from `config` cannot follow.

    They may be of other fields: names for more labels change `num_labels`.
    """
    fixed = [other for other in FIXED if other in changes]
    if fixed:
        old = " and ".join(f"{other}={shown(getattr(config, other))}" for other in fixed)
        wanted = ", ".join(f"{other}={shown(changes[other])}" for other in dict.fromkeys([name, *fixed]))
        instead = _INSTEAD.get(name, f"build another from dataclasses.replace(config, {wanted})")
        raise ValueError(
            f"{name}={shown(changes[name])}: a model was built from this config with {old}, which it cannot change; "
            f"{instead}"
        )


_INSTEAD = {
    "dtype": "convert the model with model.to(...)",
    "quantization_config": "quantize a model with mixtral_edu.quantization.quantize_model(model, 'int8'), or load it "
    "again with from_pretrained(..., quantization=...)",
}


class ReadOnly(dict):
    """A dictionary that a property makes at each look: what is written into it would be lost, and is refused.

    It is a dict, since transformers, json and copies take no other mapping; they may write what is there already.
    """

    def __init__(self, values: dict, instead: str):
        super().__init__(values)
        self.instead = instead

    def __reduce__(self):  # a copy is an ordinary one
        return dict, (dict(self),)


def _refusing(method: str) -> Callable[..., Any]:
    def write(self: ReadOnly, *args: Any, **kwargs: Any) -> Any:
        changed = dict(self)
        result = getattr(changed, method)(*args, **kwargs)
        if changed != self:
            raise TypeError(f"this dictionary is a copy to read, made at each look: {self.instead}")
        return result

    return write


for _method in ("__setitem__", "__delitem__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(ReadOnly, _method, _refusing(_method))


def _rules(config: Any) -> Iterator[tuple[str, bool, str]]:
    """Yield (field, whether it is fine, what it must be); a rule may rely on those before it."""
    for name in COUNTS:
        yield name, is_count(getattr(config, name)), _COUNT

    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    if config.head_dim is None:
        splits = config.hidden_size % heads == 0
        yield "hidden_size", splits, f"a multiple of num_attention_heads={heads}, or head_dim has to be given"
    head_dim = config.hidden_size // heads if config.head_dim is None else config.head_dim
    pairs = is_count(head_dim) and head_dim % 2 == 0
    yield "head_dim", pairs, f"an even number, not {shown(head_dim)}: the rotary embedding turns pairs of numbers"
    shares = heads % key_value_heads == 0
    yield "num_key_value_heads", shares, f"a divisor of num_attention_heads={heads}: groups of query heads are equal"
    experts = config.num_local_experts
    yield "num_experts_per_tok", config.num_experts_per_tok <= experts, f"at most num_local_experts={experts}"
    window = config.sliding_window
    yield "sliding_window", window is None or is_count(window), "None, or at least 1: a query sees its own position"

    yield "hidden_act", config.hidden_act == "silu", "'silu', the gate of Mixtral's experts"
    yield "tie_word_embeddings", config.tie_word_embeddings in (False, None), "False: lm_head has weights of its own"
    for name in SWITCHES:
        yield name, getattr(config, name) in (None, True, False), "True or False"
    for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
        value = getattr(config, name)
        yield name, _is_number(value) and _SMALLEST <= value <= _LARGEST, "a positive number that float32 holds"
    yield "router_aux_loss_coef", _is_number(config.router_aux_loss_coef), "a finite number"
    for name in ("attention_dropout", "router_jitter_noise"):
        yield name, _is_number(getattr(config, name)) and 0 <= getattr(config, name) < 1, "a number from 0 to below 1"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        several = name == "eos_token_id" and isinstance(value, list) and value
        inside = all(_is_int(i) and 0 <= i < config.vocab_size for i in (value if several else [value]))
        yield name, value is None or inside, f"None, or from 0 to vocab_size - 1 = {config.vocab_size - 1}"
    labels = config.num_labels
    yield "num_labels", labels is None or is_count(labels) and labels <= MOST_LABELS, f"from 1 to {MOST_LABELS:,}"
    named = config.id2label is None or _names_labels(config.id2label)
    yield "id2label", named, 'an object from the numbers 0, 1, 2 … to names, such as {"0": "bad", "1": "good"}'
    yield "attn_implementation", config.attn_implementation in ATTENTION, f"one of {ATTENTION}"
    yield "experts_implementation", config.experts_implementation in EXPERTS, f"one of {EXPERTS}"
    saved = {f.name for f in fields(config)} - NOT_SAVED | {"label2id", "model_type", "rope_parameters", "rope_scaling"}
    apart = isinstance(config.extra, dict) and not saved & config.extra.keys()
    yield "extra", apart, "a dictionary without the names of fields, which are saved from their own values"
    yield "dtype", config.dtype in DTYPES, f"one of {DTYPES}"
    yield "problem_type", config.problem_type in PROBLEM_TYPES, f"one of {PROBLEM_TYPES}"
    form = config.quantization_config
    yield "quantization_config", form is None or isinstance(form, Mapping), "None, or an object with quant_method"
    one_label = config.num_labels == 1 or config.num_labels is None and len(config.id2label or ()) == 1
    choice = config.problem_type != "single_label_classification" or not one_label
    yield "problem_type", choice, "another with one label: a choice needs num_labels=2 or more"


def _names_labels(names: Any) -> bool:
    """Whether `names` gives each of the labels 0, 1, 2 … one name; JSON has the numbers as text."""
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        return False
    return sorted(map(str, names)) == sorted(map(str, range(len(names))))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and if it is a whole one, one that torch can hold."""
    return isinstance(value, float) and math.isfinite(value) or _is_int(value) and abs(value) <= MOST


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number of at least 1 that torch can hold."""
    return _is_int(value) and 1 <= value <= MOST


def shown(value: Any) -> str:
    """Return `repr(value)` for an error message, cut where it is long: a damaged file may hold anything."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # Python refuses to spell an int of more than 4300 digits
        return f"a {type(value).__name__} too long to show"


def shortened(text: str, most: int = 200) -> str:
    """Return `text` for a message, cut after so many characters."""
    return text if len(text) <= most else f"{text[:most]}…"
