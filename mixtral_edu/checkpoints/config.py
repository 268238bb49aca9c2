"""`config.json`: a `Config` with the fields, spellings and checks of transformers', to be read and written."""

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from mixtral_edu.checkpoints.config_checks import NOT_SAVED, ReadOnly, check, check_changes, shown
from mixtral_edu.checkpoints.folders import read_json_object
from mixtral_edu.checkpoints.params import PARAMS_FILE, read_params
from mixtral_edu.config import Config

# Written by transformers into each config.json, without a meaning for this model: neither kept nor warned about.
_SILENT_KEYS = frozenset(
    "_attn_implementation_autoset _name_or_path architectures auto_map chunk_size_feed_forward is_encoder_decoder "
    "label2id model_type output_past return_dict rope_parameters rope_scaling torch_dtype transformers_version".split()
)
# No fields of Mixtral in transformers either, but used there and here where they are in `extra`.
_EXTRA_KEYS = {"classifier_dropout"}
# What transformers' configs have beyond these fields, and what to use here.
_NAMES_HERE = {
    "_attn_implementation": "assign attn_implementation",
    "_experts_implementation": "assign experts_implementation",
    "num_experts": "assign num_local_experts",
    "torch_dtype": "assign dtype, or convert a model with model.to(...)",
    **dict.fromkeys(
        ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "num_beams"),
        "give it to generate(...), as an argument",
    ),
    "return_dict": "a model always returns named fields (model(...).logits) unless called with return_dict=False",
}


class _Binding:
    """Holds a config's `_bound`, whether a model is built from it, apart from the fields: `vars` has those alone.

    It is missing while a config is constructed.
    """

    __slots__ = ("_bound",)


@dataclass
class MixtralConfig(_Binding, Config):
    """Sizes and settings of a Mixtral; field names and defaults are those of transformers.

    The defaults describe a Mixtral-8x7B but for `max_position_embeddings` and `router_aux_loss_coef`, where the
    released file differs: `MixtralConfig.mixtral_8x7b()` has its values. Shape letters: D `hidden_size`,
    F `intermediate_size`, L `num_hidden_layers`, Hq `num_attention_heads`, Hkv `num_key_value_heads`, Dh `head_dim`,
    V `vocab_size`, W `sliding_window` (the number of keys that a query may see, itself included; None for no window),
    E `num_local_experts`, K `num_experts_per_tok`.

    `attn_implementation` ("eager", "sdpa", "flash_attention_2") and `experts_implementation` ("reference", "sorted",
    "grouped") choose among equal forms of the computation and are not saved. `dtype` and `quantization_config` describe
    the checkpoint. `extra` keeps what a `config.json` held beyond the known fields.

    A field can be assigned later: it is checked as in construction, and a model follows it from its next call on. Those
    that the tensors of a built model fix (sizes, labels, `rms_norm_eps`, `dtype` …) then refuse another value. Only a
    subclass may have other attributes: fields of its own if it is a dataclass, or any that it assigns.

    Raises:
        ValueError: a size or a combination of sizes that no Mixtral can have; the message names the field. The config
            is then as it was.
        AttributeError: there is no field of that name.
    """

    hidden_act: str = "silu"
    use_cache: bool = True
    tie_word_embeddings: bool = False
    output_router_logits: bool = False
    output_hidden_states: bool = False
    output_attentions: bool = False
    num_labels: int | None = None
    id2label: dict[int, str] | None = None
    quantization_config: dict | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    rope_parameters: dict | None = field(default=None, repr=False, compare=False)  # where v5 keeps rope_theta
    rope_scaling: dict | None = field(default=None, repr=False, compare=False)  # its older name

    def __post_init__(self):
        if self.dtype is not None:
            self.dtype = str(self.dtype).removeprefix("torch.")
        check(self)
        super().__post_init__()
        if self.id2label is not None:
            self.id2label = {int(index): label for index, label in self.id2label.items()}
        if self.num_labels is None:
            self.num_labels = len(self.id2label) if self.id2label else 2
        if self.id2label in (None, _plain_labels(len(self.id2label or ()))):  # not names that somebody chose
            self.id2label = _plain_labels(self.num_labels)
        if len(self.id2label) != self.num_labels:
            raise ValueError(f"num_labels={self.num_labels} and id2label with {len(self.id2label)} labels disagree")
        self._bound = False

    def __setattr__(self, name: str, value: Any):
        """Assign with the checks of construction, and with what follows from the value."""
        if not hasattr(self, "_bound") or isinstance(getattr(type(self), name, None), property):
            return super().__setattr__(name, value)
        if type(self) is not MixtralConfig and name not in {f.name for f in fields(self)}:  # a subclass's own
            return super().__setattr__(name, value)
        follows = {"num_labels": None} if name == "id2label" and value else {}  # their number is that of the labels
        changes = self._changes({name: value} | follows)
        if self._bound:
            check_changes(self, name, changes)
        for changed, new in changes.items():
            super().__setattr__(changed, new)

    def bind(self, **facts: Any) -> None:
        """Note that a model is made of it, which fixes sizes; `facts` are fields that work on its modules has changed.

        A copy, `dataclasses.replace` and `from_dict` give a config that is free again.
        """
        for name, value in (self._changes(facts) | {"_bound": True}).items():
            super().__setattr__(name, value)

    def copy_for(self, model: Any, **facts: Any) -> Self:
        """Give a built `model` a copy of this config that notes `facts`, and return the copy.

        Another model that was built from this config keeps it as it is.
        """
        own = copy.copy(self)
        own.bind(**facts)
        for module in model.modules():
            vars(module).update({name: own for name, value in vars(module).items() if value is self})
        return own

    def _changes(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that change with these values, after the checks of construction."""
        names = [f.name for f in fields(self)]
        for name in values.keys() - set(names):
            instead = _NAMES_HERE.get(name, f"keep a value without effect as config.extra[{name!r}] = …")
            raise AttributeError(f"{type(self).__name__} has no field {name!r}: {instead}")
        new = copy.copy(self)  # not by a call: the constructor of a subclass may take other arguments
        del new._bound  # it is under construction again
        for name, value in values.items():
            setattr(new, name, value)
        new.__post_init__()
        return {name: getattr(new, name) for name in names if getattr(new, name) != getattr(self, name)}

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:  # of a copy
        values, slots = super().__getstate__()
        return values, slots | {"_bound": False}

    @property
    def label2id(self) -> dict[str, int]:
        """The class that each label's name stands for. It follows `id2label`: assign that to change it."""
        return ReadOnly({label: index for index, label in self.id2label.items()}, "assign id2label")

    @label2id.setter
    def label2id(self, names: dict[str, int]) -> None:
        raise AttributeError("label2id follows id2label: assign that")

    @classmethod
    def mixtral_8x22b(cls, **changes) -> Self:
        """The released Mixtral-8x22B-v0.1."""
        sizes = dict(hidden_size=6144, intermediate_size=16384, num_hidden_layers=56, num_attention_heads=48)
        return cls(**{**sizes, "max_position_embeddings": 65536, "dtype": "bfloat16"} | changes)

    @classmethod
    def tiny(cls, **changes) -> Self:
        if "rope_parameters" in changes:
            changes = {"rope_theta": cls.rope_theta} | changes  # they hold another
        return super().tiny(**changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MixtralConfig":
        """Read the dictionary of a `config.json` that transformers (v4 or v5) or this package wrote.

        Keys that transformers writes for its own use are dropped in silence. Really unknown ones are kept in `extra`,
        saved again, and named in one warning.

        Raises:
            TypeError: `values` is no dictionary.
            ValueError: another model type, a rotary embedding other than the default one, or an invalid field.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values is a {type(values).__name__}: it must be the dictionary of a config.json")
        if not all(isinstance(name, str) for name in values):
            raise ValueError(f"values has the fields {shown(list(values))}: their names must be text")
        model_type = values.get("model_type", "mixtral")
        if model_type != "mixtral":
            raise ValueError(f"model_type={shown(model_type)}: only 'mixtral' can be read")
        known = {f.name for f in fields(cls)} - NOT_SAVED
        arguments = {name: value for name, value in values.items() if name in known}
        if "dtype" not in arguments and "torch_dtype" in values:  # the name before transformers 4.56
            arguments["dtype"] = values["torch_dtype"]
        for name in ("rope_scaling", "rope_parameters"):
            if values.get(name) is not None:
                theta = _theta_of(values[name], default=values.get("rope_theta"), name=name)
                if "rope_theta" in values and theta != values["rope_theta"]:
                    own = shown(values["rope_theta"])
                    raise ValueError(f"rope_theta={own} and {name}['rope_theta']={shown(theta)} disagree")
                if theta is not None:
                    arguments["rope_theta"] = theta
        unknown = {name: value for name, value in values.items() if name not in known | _SILENT_KEYS}
        if idle := sorted(unknown.keys() - _EXTRA_KEYS):
            warnings.warn(f"unknown config fields are kept but have no effect: {idle}", stacklevel=2)
        return cls(**arguments, extra=unknown)

    def to_dict(self) -> dict[str, Any]:
        """Return what a `config.json` holds; transformers v4 reads `rope_theta` from it, v5 `rope_parameters`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= self._changes({})  # checked again: somebody may have changed a list or dictionary in place
        values = {name: value for name, value in values.items() if name not in NOT_SAVED}
        del values["num_labels"]  # the length of id2label
        if self.quantization_config is None:
            del values["quantization_config"]  # transformers takes its presence for a quantized checkpoint
        values |= {"label2id": dict(self.label2id), "rope_parameters": dict(self.rope_parameters)}
        return values | {"model_type": "mixtral"} | self.extra

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MixtralConfig":
        """Read `folder/config.json`; without one, `params.json`, which accompanies raw Mistral weights.

        Args:
            folder: the checkpoint's, or the file itself, in the form of a `config.json`.

        Raises:
            FileNotFoundError: there is neither file.
            ValueError: it holds no JSON object, or no Mixtral; the message names the file and the field.
        """
        path = Path(folder) if Path(folder).is_file() else settings_file(folder)
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: a checkpoint folder in the Hugging Face layout has one")
        values = read_params(path) if path.name == PARAMS_FILE else read_json_object(path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder/config.json`; the folder is made if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")


def settings_file(folder: str | Path) -> Path:
    """Return which file a checkpoint's settings are in: `params.json` where only that is there, else `config.json`."""
    path, params = Path(folder) / "config.json", Path(folder) / PARAMS_FILE
    return params if params.is_file() and not path.is_file() else path


def _spelling_of_rope_theta(name: str) -> property:
    """`rope_theta` as transformers v5 spells it; assigning such a dictionary sets `rope_theta`."""

    def get(self: MixtralConfig) -> dict[str, Any]:
        instead = "assign rope_theta, or rope_parameters"
        return ReadOnly({"rope_type": "default", "rope_theta": self.rope_theta}, instead)

    def assign(self: MixtralConfig, rope: dict | None) -> None:
        constructing = not hasattr(self, "_bound")
        if rope is None and (constructing or name == "rope_scaling"):
            return
        theta = _theta_of(rope, default=self.rope_theta, name=name)
        if constructing and self.rope_theta not in (theta, type(self).rope_theta):
            raise ValueError(f"rope_theta={self.rope_theta} and {name} with {theta} disagree")
        self.rope_theta = theta

    return property(get, assign)


# Other spellings of a field, not one more: arguments of the constructor, and then properties. What `fields` lists, and
# `dataclasses.replace` copies, is `rope_theta`.
for _name in ("rope_parameters", "rope_scaling"):
    setattr(MixtralConfig, _name, _spelling_of_rope_theta(_name))
    del MixtralConfig.__dataclass_fields__[_name]


def _plain_labels(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _theta_of(rope: dict, default: float | None, name: str) -> float | None:
    if not isinstance(rope, Mapping):
        raise ValueError(f"{name}={shown(rope)}: it must be an object with rope_type and rope_theta")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(
            f"{name}: rope_type={shown(rope_type)}: it must be 'default'; scaled rotary embeddings are not built in, "
            "as no released Mixtral uses one"
        )
    return rope.get("rope_theta", default)
