"""`params.json`, the settings beside raw Mistral weights, and what its fields are called in `config.json`.

Two forms are in use. Mistral's own has names such as `dim` and a `moe` block; the file of the first Mixtral release
has Hugging Face's names (`hidden_size`), and its `sliding_window` may be text.
"""

from pathlib import Path
from typing import Any

from mixtral_edu.checkpoints.config_checks import COUNTS, is_count, shown
from mixtral_edu.checkpoints.folders import read_json_object

PARAMS_FILE = "params.json"
NAMES = {  # Mistral's and ours
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
    "max_position_embeddings": "max_position_embeddings",
}
MOE_NAMES = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}  # in the `moe` block
REQUIRED = {ours: name for name, ours in NAMES.items() if ours in COUNTS and name != "max_position_embeddings"} | {
    ours: f"moe.{name}" for name, ours in MOE_NAMES.items()
}
# Fields of Mistral's other models, with the values that a Mixtral may have there.
_OTHER_MODELS = {
    "model_type": (None, "transformer", "mixtral"),
    "causal": (None, True),
    "use_biases": (None, False),
    "tied_embeddings": (None, False),
    **dict.fromkeys(("_sliding_window", "llama_4_scaling", "lora", "quantization", "vision_encoder", "yarn"), (None,)),
}


def read_params(path: Path) -> dict[str, Any]:
    """Return what `params.json` says, under the names of `config.json`; fields that neither knows keep theirs.

    Where they are missing, `MixtralConfig` has the right values: rope_theta 1e6, no window, norm_eps 1e-5 and a
    head_dim of D/Hq. Only the longest text is not its default but the released Mixtral-8x7B's, 32768.

    Raises:
        ValueError: no JSON object, a missing or invalid field (by the file's name for it), or another model's.
    """
    params = read_json_object(path)
    for name, fine in _OTHER_MODELS.items():
        value = params.pop(name, None)
        if value not in fine:
            raise ValueError(f"{path}: {name}={shown(value)} is another model's: in a Mixtral it must be {fine[-1]!r}")
    moe = params.pop("moe", None)
    if not isinstance(moe, dict | None):
        raise ValueError(f"{path}: moe={shown(moe)}: it must be an object with {' and '.join(MOE_NAMES)}")
    if isinstance(params.get("sliding_window"), str):
        params["sliding_window"] = _window(params["sliding_window"], path)

    values, spelled = {}, {}
    for name, value in (*params.items(), *(moe or {}).items()):
        ours = NAMES.get(name) or MOE_NAMES.get(name, name)
        if value is None and ours in (*NAMES.values(), *MOE_NAMES.values()):
            continue  # as if it were missing
        if ours in COUNTS and not is_count(value):
            raise ValueError(f"{path}: {name}={shown(value)}: it must be a whole number of at least 1")
        if ours in values and values[ours] != value:
            raise ValueError(f"{path}: {spelled[ours]}={shown(values[ours])} and {name}={shown(value)} disagree")
        values[ours], spelled[ours] = value, name
    if moe is None and "num_local_experts" in values:
        values.setdefault("num_experts_per_tok", 2)  # the first release does not say
    missing = [f"{name!r} (or {ours!r})" for ours, name in REQUIRED.items() if ours not in values]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return {"max_position_embeddings": 32768} | values


def to_params(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return what a `params.json` in Mistral's own form holds, so that `read_params` finds all of `values` again.

    Args:
        values: a config's `to_dict()`.
        defaults: that of `MixtralConfig()`; what equals them and has no name in Mistral's form is left out.
    """
    params = {name: values[ours] for name, ours in NAMES.items()}
    if params["sliding_window"] is None:
        del params["sliding_window"]
    params["moe"] = {name: values[ours] for name, ours in MOE_NAMES.items()}
    known = {*params, *NAMES.values(), *MOE_NAMES.values(), "model_type", "rope_parameters", "label2id"}
    others = {name: value for name, value in values.items() if name not in known}
    return params | {name: value for name, value in others.items() if name not in defaults or value != defaults[name]}


def _window(text: str, path: Path) -> int | None:
    if text.lower() in ("", "none", "null"):
        return None
    if not text.isdecimal() or len(text) > 18:  # more digits than any window has
        raise ValueError(f"{path}: sliding_window={shown(text)}: it must be a number of keys, or null")
    return int(text)
