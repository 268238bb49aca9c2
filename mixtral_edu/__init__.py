"""Mixtral, readable: every component of Mixtral-8x7B in PyTorch, with a small trained model that runs anywhere."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and the modules that have them. They are imported when first used, so that a part of the textbook,
# such as `mixtral_edu.norm`, can be imported without all that users of whole models need.
_PLACES = {
    "MixtralConfig": "checkpoints.config",
    "MixtralForCausalLM": "api.models",
    "MixtralForQuestionAnswering": "api.models",
    "MixtralForSequenceClassification": "api.models",
    "MixtralForTokenClassification": "api.models",
    "MixtralModel": "api.models",
    "MixtralTokenizer": "text.tokenizer",
    "RollingKVCache": "api.cache",
    "TextStreamer": "text.streaming",
    "convert_checkpoint": "checkpoints.convert",
}
__all__ = [
    "MixtralConfig",
    "MixtralForCausalLM",
    "MixtralForQuestionAnswering",
    "MixtralForSequenceClassification",
    "MixtralForTokenClassification",
    "MixtralModel",
    "MixtralTokenizer",
    "RollingKVCache",
    "TextStreamer",
    "convert_checkpoint",
]

if TYPE_CHECKING:
    from mixtral_edu.api.cache import RollingKVCache
    from mixtral_edu.api.models import (
        MixtralForCausalLM,
        MixtralForQuestionAnswering,
        MixtralForSequenceClassification,
        MixtralForTokenClassification,
        MixtralModel,
    )
    from mixtral_edu.checkpoints.config import MixtralConfig
    from mixtral_edu.checkpoints.convert import convert_checkpoint
    from mixtral_edu.text.streaming import TextStreamer
    from mixtral_edu.text.tokenizer import MixtralTokenizer


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
