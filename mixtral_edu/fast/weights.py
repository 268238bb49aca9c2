"""Copies of weights in the order in which they are read fastest, beside the parameters, which stay as they are.

To continue a text, each token multiplies one row with every weight that is active: the time is that of reading them.
A processor in single precision reads fastest along the longer side of a matrix, and layers that share an input are one
product when their weights lie in one block. `generate` makes such copies, uses them in its own steps alone, and drops
them before it returns: whatever is done to the model afterwards meets its parameters, modules and hooks, and no more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mixtral_edu.checkpoints.memory import free_memory

# From so many on copies are made. On a processor with AVX-512, copying 214 million weights in single precision took as
# long as 340 steps of one row then saved; where the weights' own order is read slower, and for several rows, fewer pay.
_MANY_STEPS = 128


def may_be_bypassed(module_class: type[nn.Module]) -> type[nn.Module]:
    """Decorate a class whose forward a faster way may go around: note that forward, to tell when it is another one."""
    module_class._own_forward = module_class.forward
    return module_class


def is_untouched(module: nn.Module) -> bool:
    """Whether calling this module would run this package's own code for it, and nothing else.

    A subclass, an adapter in its place, a hook, a parametrization, pruning, a bias given to it, a forward that was
    replaced: a faster way around any of these would leave it out in silence.
    """
    kind = type(module)
    if kind.__dict__.get("_own_forward") is not kind.forward or "forward" in module.__dict__:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    return not _has_any_global_hook() and all(p is None for name, p in module._parameters.items() if name != "weight")


class Product:
    """A copy of the weights of some layers, that stands for them while nothing is done to them.

    `weight` is the copy, in whatever form its user takes. No gradient flows through it to the layers.
    """

    def __init__(self, owner: "FastWeights", layers: Sequence[nn.Module], weight: Any):
        self.owner, self.layers, self.weight = owner, tuple(layers), weight
        # The alias keeps the memory that was copied, so that no other tensor can be mistaken for it.
        self._copied = [[(tensor, tensor.detach(), tensor._version) for tensor in own_tensors(x)] for x in layers]

    def stands_for(self, *layers: nn.Module) -> bool:
        """Whether to use the copy instead of calling these layers."""
        if not self.owner.in_use or len(layers) != len(self.layers):
            return False
        if any(layer is not known for layer, known in zip(layers, self.layers, strict=True)):
            return False
        if torch.compiler.is_compiling():  # where memory has no address: taken as it was then
            return True
        return all(map(is_untouched, layers)) and all(map(self._is_as_copied, layers, self._copied))

    @staticmethod
    def _is_as_copied(layer: nn.Module, copied: list[tuple[Tensor, Tensor, int]]) -> bool:
        """Whether the layer's tensors are the ones that were copied, neither exchanged nor moved nor written to."""
        tensors = own_tensors(layer)
        return len(tensors) == len(copied) and all(
            tensor is known and tensor.data_ptr() == alias.data_ptr() and tensor._version == version
            for tensor, (known, alias, version) in zip(tensors, copied, strict=True)
        )

    def is_current(self) -> bool:
        """Whether the weights still are what was copied."""
        return all(map(self._is_as_copied, self.layers, self._copied))

    def __reduce__(self):  # a module that is copied or pickled takes none along
        return type(None), ()


class FastWeights:
    """Copies of weights, of a model or of some layers. Each module that has some knows how: see its `lay_out`.

    `in_use`: whether the model may read them. While a stream waits for its reader, others may use the model, so it is
    on during the stream's own steps only.

    Args:
        with_floats: copy floating-point weights too; otherwise only quantized ones, for which a kernel's own order is
            many times faster.
    """

    def __init__(self, with_floats: bool = True):
        self.in_use, self.with_floats = False, with_floats
        self._holders: list[nn.Module] = []
        self._covered: set[int] = set()  # ids of layers that have a copy, alone or together

    @torch.no_grad()
    def copy_weights_of(self, model: nn.Module) -> None:
        """Make the copies; to be closed also when this was interrupted."""
        for module in model.modules():  # those with parts before their parts
            if hasattr(module, "lay_out"):
                module.lay_out(self)

    def add(self, holder: nn.Module, layers: Sequence[nn.Module], weight: Any) -> None:
        """Let `holder.product` be a copy of these layers' weights."""
        holder.product = Product(self, layers, weight)
        self._holders.append(holder)
        self._covered |= {id(layer) for layer in layers}

    def takes(self, *layers: nn.Module) -> bool:
        """Whether to copy the weights of these layers: they are as this package made them, and have no copy so far."""
        if not all(is_untouched(layer) and id(layer) not in self._covered for layer in layers):
            return False
        if any(layer.product is not None and layer.product.is_current() for layer in layers):
            return False
        tensors = [tensor for layer in layers for tensor in own_tensors(layer)]
        if any(tensor.is_inference() for tensor in tensors):  # which do not tell when they are written to
            return False
        return self.with_floats or not all(tensor.is_floating_point() for tensor in tensors)

    @contextmanager
    def for_a_step(self) -> Iterator[None]:
        """Let the model read the copies."""
        before, self.in_use = self.in_use, True
        try:
            yield
        finally:
            self.in_use = before

    def close(self) -> None:
        """Drop the copies."""
        for holder in self._holders:
            if getattr(holder.product, "owner", None) is self:
                del holder.product
        self._holders.clear()


@contextmanager
def fast_weights_for(model: nn.Module, num_steps: int) -> Iterator[FastWeights]:
    """Make the copies that so many steps are worth, and drop them at the end."""
    fast = FastWeights(with_floats=num_steps >= _MANY_STEPS)
    try:
        if num_steps > 1 and has_room_for_copies(model):
            fast.copy_weights_of(model)
        yield fast
    finally:
        fast.close()


def keep_fast_weights(model: nn.Module) -> nn.Module:
    """Make copies that stay, and return the model: to measure, say, what `generate` has for the length of a text.

    For a model whose weights nobody changes any more: what an optimizer writes with `fused=True`, or anybody through
    `.data`, the copies do not notice.
    """
    fast = FastWeights()
    fast.copy_weights_of(model)
    fast.in_use = True
    return model


def laid_out(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return memory for matrices (..., F, D) of the type of `like`, in the order that is read fastest.

    Elsewhere than in single or double precision on a CPU that is row by row, as kernels for those expect.

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


def has_room_for_copies(model: nn.Module) -> bool:
    """Whether the model's device could hold all of its weights once more."""
    weights = list(chain(model.parameters(), model.buffers()))
    return sum(tensor.nbytes for tensor in weights) <= free_memory(weights[0].device)


def own_tensors(layer: nn.Module) -> list[Tensor]:
    """The parameters and buffers that are a layer's own, not those of layers in it."""
    return [t for t in chain(layer._parameters.values(), layer._buffers.values()) if t is not None]
