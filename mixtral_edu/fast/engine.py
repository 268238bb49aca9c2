"""Put the engine into a model built from the textbook's parts, and take it out again.

The parts stay where they are, with their weights, hooks and names; what changes is their class, and with it how they
compute the same thing.
"""

from torch import nn

from mixtral_edu.attention import GroupedQueryAttention
from mixtral_edu.fast import decoding, products
from mixtral_edu.fast.attention import FastAttention
from mixtral_edu.fast.experts import FastMoE
from mixtral_edu.fast.linear import Linear
from mixtral_edu.fast.norm import FastNorm
from mixtral_edu.moe import SparseMoE
from mixtral_edu.norm import RMSNorm

_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    GroupedQueryAttention: FastAttention,
    SparseMoE: FastMoE,
    RMSNorm: FastNorm,
}


def install(model: nn.Module) -> nn.Module:
    """Let each norm, linear layer, attention and mixture of experts compute in its fast form; return the model.

    Subclasses are left alone: they have a forward of their own, which must run.
    """
    _exchange(model, _FAST)
    products.know(module for module in model.modules() if type(module) is Linear)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Let the model compute as the textbook says again, without what was prepared for it; return it."""
    decoding.drop(model)
    return _exchange(model, {fast: plain for plain, fast in _FAST.items()})


def has_plain(model: nn.Module, part: type[nn.Module]) -> bool:
    """Whether any such part of the model computes as the textbook says."""
    return any(type(module) is part for module in model.modules())


def _exchange(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for module in model.modules():
        if (other := classes.get(type(module))) is not None:
            module.__class__ = other
    return model
