"""Copies of weights in the form that a kernel reads fastest, beside the weights, which stay as they are.

4-bit weights in the layout of PyTorch's kernel make a step of one row several times as fast as dequantizing does; plain
weights in oneDNN's own order are read faster on some processors; the experts of a layer stacked in one tensor let one
product meet them all. A copy is only looked at while a step of a
generation runs: `in_use` puts each beside its layer's weights, if those are still the ones that were copied, and takes
it away again. So nothing of a model is changed between steps, and whatever is done to it then meets its own weights.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_users: list[None] = []  # one for each step that is running, in whatever thread


class Held:
    """A copy's value while its module may read it. A module that is copied or pickled meanwhile takes none along."""

    def __init__(self, value: Any):
        self.value = value

    def __reduce__(self):
        return type(None), ()


class Copy(NamedTuple):
    """What `module.make_copy(num_steps)` gave, `held`, and the tensors that it was made from, as they were then.

    Each tensor is stored with its version and an alias. The alias keeps the copied memory allocated, so that no other
    tensor can take its place.
    """

    module: nn.Module
    held: Held
    sources: list[tuple[Tensor, int, Tensor]]

    def is_current(self) -> bool:
        """Whether the module's tensors are still those, not exchanged, moved or written to.

        What no version counter shows goes unnoticed: fused optimizers, and writing through `.data`.
        """
        tensors = _tensors(self.module)
        return len(tensors) == len(self.sources) and all(
            tensor is source and tensor._version == version
            for tensor, (source, version, _) in zip(tensors, self.sources, strict=True)
        )

    def is_in_place(self) -> bool:
        """Whether the numbers are still where they were, which `.data = …` changes: to be asked once per text."""
        return all(source.data_ptr() == alias.data_ptr() for source, _, alias in self.sources)


@torch.no_grad()
def make(
    model: nn.Module, num_steps: float = math.inf, most_bytes: float = math.inf, but: type[nn.Module] | tuple = ()
) -> list[Copy]:
    """Make a copy for each of the model's modules that has use for one.

    Args:
        model: in whatever form.
        num_steps: how many steps the copies will serve; infinitely many if they are to be kept.
        most_bytes: how much memory all copies together may take; what does not fit has none.
        but: classes whose modules get none.
    """
    copies = []
    for module in model.modules():
        if not hasattr(module, "make_copy") or isinstance(module, but):
            continue
        tensors = _tensors(module)
        size = sum(tensor.nbytes for tensor in tensors)
        if size > most_bytes or any(tensor.is_inference() for tensor in tensors):  # which do not tell of writing
            continue
        sources = [(tensor, tensor._version, tensor.detach()) for tensor in tensors]
        if (value := module.make_copy(num_steps)) is not None:
            copies.append(Copy(module, Held(value), sources))
            most_bytes -= size
    return copies


@contextmanager
def in_use(copies: Iterable[Copy]) -> Iterator[None]:
    """Let modules read their copies, those that are current."""
    _users.append(None)
    try:
        for copy in copies:
            if copy.is_current():
                vars(copy.module)["copy"] = copy.held
        yield
    finally:
        _users.pop()  # first: if Ctrl-C interrupts the rest, no copy is read any more
        for copy in copies:
            vars(copy.module).pop("copy", None)


def of(module: nn.Module) -> Any | None:
    """Return the copy that this module may read now, None without one."""
    held = vars(module).get("copy")
    return None if held is None or not (_users or torch.compiler.is_compiling()) else held.value


def _tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers that a copy is made from: the module's own and those of modules inside it."""
    if module._modules:
        return [*module.parameters(), *module.buffers()]
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]  # far quicker
