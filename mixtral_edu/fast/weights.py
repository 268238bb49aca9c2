"""Copies of weights in the order that is read fastest, beside the parameters, which stay as they are.

Each step of a generation multiplies few rows with every active weight, so it takes the time of reading them. Some
processors read a matrix in single precision fastest along its longer side, and layers that share an input are one
product when their weights lie in one block. With AVX2 a step of one row of 214 million parameters is 1.25 times as fast
so; on one processor with AVX-512 there was no difference beyond the spread (README has both). So nothing makes copies
by itself: `keep_fast_weights` does, for a model that is only read from then on.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def may_be_bypassed(module_class: type[nn.Module]) -> type[nn.Module]:
    """Decorate a class whose forward a faster way may go around: note that forward, to tell when it is another one."""
    module_class._own_forward = module_class.forward
    return module_class


def is_untouched(module: nn.Module) -> bool:
    """Whether calling this module would run this package's own code for it, and nothing else.

    A subclass, an adapter in its place, a hook, a parametrization, pruning, a bias given to it, a forward that was
    replaced: a faster way around any of these would leave it out silently.
    """
    kind = type(module)
    if kind.__dict__.get("_own_forward") is not kind.forward or "forward" in module.__dict__:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    parameters = [name for name, p in module._parameters.items() if p is not None]
    return not _has_any_global_hook() and parameters == (["weight"] if hasattr(module, "weight") else [])


class Product:
    """A copy of the weights of some layers, in whatever form its user takes; no gradient flows through it."""

    def __init__(self, layers: Sequence[nn.Module], weight: Any):
        self.layers, self.weight = tuple(layers), weight
        # The alias keeps the memory that was copied, so that no other tensor can be mistaken for it.
        self._copied = [[(tensor, tensor.detach(), tensor._version) for tensor in own_tensors(x)] for x in layers]

    def stands_for(self, layers: Sequence[nn.Module]) -> bool:
        """Whether these layers' weights are the ones that were copied, neither exchanged nor moved nor written to."""
        if len(layers) != len(self.layers) or any(a is not b for a, b in zip(layers, self.layers, strict=True)):
            return False
        if torch.compiler.is_compiling():  # where memory has no address: taken as it was then
            return True
        return all(map(_is_as_copied, layers, self._copied))

    def __reduce__(self):  # a module that is copied or pickled takes none along
        return type(None), ()


def current_copy(holder: nn.Module, *layers: nn.Module) -> Any | None:
    """Return the copy in `holder.product` of these layers' weights; None if there is none that still stands for them.

    The attribute is read once, as another thread may drop it.
    """
    product = getattr(holder, "product", None)
    return product.weight if product is not None and product.stands_for(layers) else None


@torch.no_grad()
def keep_fast_weights(model: nn.Module) -> nn.Module:
    """Make the copies, and return the model.

    The model needs the memory of its weights twice. A layer whose weight, hooks or forward change is used as it is
    then; `train()` and `to()` drop all copies. What no version counter shows goes unnoticed: an optimizer with
    `fused=True`, and writing through `.data`. Call `drop_fast_weights` before either.
    """
    for module in model.modules():
        if hasattr(module, "lay_out"):  # attention, experts, the head
            module.lay_out()
    return model


def drop_fast_weights(model: nn.Module) -> None:
    """Drop all copies of a model's weights, those of quantized layers included."""
    for module in model.modules():
        vars(module).pop("product", None)


def laid_out(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return memory for matrices (..., F, D) of the type of `like`, in the order that is read fastest.

    In single and double precision on a CPU that is along the longer side; elsewhere kernels expect rows.

    >>> laid_out((1792, 512), torch.zeros(1)).stride(), laid_out((512, 1792), torch.zeros(1)).stride()
    ((1, 1792), (1792, 1))
    """
    if reads_down(shape, like):
        *batch, outputs, inputs = shape
        return like.new_empty(*batch, inputs, outputs).mT
    return like.new_empty(shape)


def reads_down(shape: Sequence[int], like: Tensor) -> bool:
    """Whether a matrix (..., F, D) is read fastest column by column."""
    outputs, inputs = shape[-2:]
    return like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64) and outputs > inputs


def own_tensors(layer: nn.Module) -> list[Tensor]:
    """Return a layer's own parameters and buffers, not those of layers inside it."""
    return [t for t in chain(layer._parameters.values(), layer._buffers.values()) if t is not None]


def _is_as_copied(layer: nn.Module, copied: list[tuple[Tensor, Tensor, int]]) -> bool:
    tensors = own_tensors(layer)
    return len(tensors) == len(copied) and all(
        tensor is known and tensor.data_ptr() == alias.data_ptr() and tensor._version == version
        for tensor, (known, alias, version) in zip(tensors, copied, strict=True)
    )
