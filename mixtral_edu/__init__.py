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
__all__ = list(_PLACES)

if TYPE_CHECKING:  # what editors and type checkers read
    from mixtral_edu.api.cache import RollingKVCache as RollingKVCache
    from mixtral_edu.api.models import MixtralForCausalLM as MixtralForCausalLM
    from mixtral_edu.api.models import MixtralForQuestionAnswering as MixtralForQuestionAnswering
    from mixtral_edu.api.models import MixtralForSequenceClassification as MixtralForSequenceClassification
    from mixtral_edu.api.models import MixtralForTokenClassification as MixtralForTokenClassification
    from mixtral_edu.api.models import MixtralModel as MixtralModel
    from mixtral_edu.checkpoints.config import MixtralConfig as MixtralConfig
    from mixtral_edu.checkpoints.convert import convert_checkpoint as convert_checkpoint
    from mixtral_edu.text.streaming import TextStreamer as TextStreamer
    from mixtral_edu.text.tokenizer import MixtralTokenizer as MixtralTokenizer


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
