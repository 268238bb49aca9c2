"""Mixtral, readable: every component of Mixtral-8x7B in PyTorch, with a small trained model that runs anywhere."""

from mixtral_edu.cache import RollingKVCache
from mixtral_edu.checkpoints.convert import convert_checkpoint
from mixtral_edu.config import MixtralConfig
from mixtral_edu.generation import TextStreamer
from mixtral_edu.heads import (
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
)
from mixtral_edu.model import MixtralForCausalLM, MixtralModel
from mixtral_edu.text.tokenizer import MixtralTokenizer

__version__ = "0.1.0"

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
