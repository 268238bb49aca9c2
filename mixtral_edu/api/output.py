"""What a model returns: by attribute, by key, by index and as a tuple, as outputs of transformers are."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch.utils import _pytree as pytree

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.model import Output


class Keyed(Mapping[str, Any]):
    """Fields by attribute, by key and by index.

    `out.logits`, `out["logits"]` and, where nothing comes before it, `out[0]` are the same tensor; `out[:2]` and
    `out.to_tuple()` are tuples. Keys and tuple hold what `order` lists, in that order, without what is None.

    As in transformers, iteration is over keys: to unpack values, take `out.to_tuple()`. `cache` and `past_key_values`
    are two names of the KV cache, as attributes and as keys; among the keys it is listed once, as `cache`.
    """

    order: ClassVar[tuple[str, ...]]
    past_key_values: RollingKVCache | None

    def __post_init__(self) -> None:
        first = next(iter(self.__dataclass_fields__))
        if isinstance(given := getattr(self, first), dict):  # all of it, as tools that rebuild mappings give it
            setattr(self, first, None)
            for key, value in given.items():
                self[key] = value

    @property
    def cache(self) -> RollingKVCache | None:
        """Another name of `past_key_values`, the only one in newer releases of transformers."""
        return self.past_key_values

    @cache.setter
    def cache(self, value: RollingKVCache | None) -> None:
        self.past_key_values = value

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values of all keys as a tuple."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(f"{key}: this output has {', '.join(self)}")
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        if _listed(key) not in self.order:
            raise KeyError(f"{key}: it must be one of {', '.join(self.order)}")
        setattr(self, key, value)

    def __contains__(self, key: object) -> bool:
        return _listed(key) in self._present()

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def keys(self) -> KeysView[str]:
        """Return the names of what is there."""
        return self._present().keys()

    def values(self) -> ValuesView[Any]:
        """Return what is there."""
        return self._present().values()

    def items(self) -> ItemsView[str, Any]:
        """Return what is there with its names."""
        return self._present().items()

    def _present(self) -> dict[str, Any]:
        return {key: value for key in self.order if (value := getattr(self, key)) is not None}


@dataclass
class MixtralOutput(Output, Keyed):
    """What a model returns, see `mixtral_edu.model.Output`: by attribute, by key and by index, see `Keyed`.

    Keys and tuple are those of transformers' model of the same name. Other results are attributes only: the
    `last_hidden_state` of a model with a head, the router logits of a classifier, the cache of a token classification.
    """

    order = ("last_hidden_state", "cache", "router_logits", "hidden_states", "attentions")

    def as_asked(self, return_dict: bool | None) -> Self | tuple[Any, ...]:
        """Return the output itself, or where `return_dict` is False its tuple."""
        return self.to_tuple() if return_dict is False else self


class CausalOutput(MixtralOutput):
    """What `MixtralForCausalLM` returns."""

    order = ("loss", "aux_loss", "logits", "cache", "hidden_states", "attentions", "router_logits")


class SequenceOutput(MixtralOutput):
    """What `MixtralForSequenceClassification` returns."""

    order = ("loss", "logits", "cache", "hidden_states", "attentions")


class TokenOutput(MixtralOutput):
    """What `MixtralForTokenClassification` returns."""

    order = ("loss", "logits", "hidden_states", "attentions")


class AnswerOutput(MixtralOutput):
    """What `MixtralForQuestionAnswering` returns."""

    order = ("loss", "start_logits", "end_logits", "hidden_states", "attentions")


def _listed(key: object) -> object:
    return "cache" if key == "past_key_values" else key


def _fields(out: Keyed) -> dict[str, Any]:
    """All that an output holds, attributes that are no keys included, for PyTorch's tools to find its tensors."""
    return {name: value for name, value in vars(out).items() if value is not None}


def register(cls: type[Keyed]) -> None:
    """Let PyTorch's tools find the tensors of such an output."""
    pytree.register_pytree_node(
        cls,
        lambda out: (list(_fields(out).values()), list(_fields(out))),
        lambda values, names: cls(**dict(zip(names, values, strict=True))),
        serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        flatten_with_keys_fn=lambda out: (
            [(pytree.MappingKey(name), value) for name, value in _fields(out).items()],
            list(_fields(out)),
        ),
    )


for _cls in (MixtralOutput, CausalOutput, SequenceOutput, TokenOutput, AnswerOutput):
    register(_cls)
