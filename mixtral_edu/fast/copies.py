"""Copies of weights in the form that a kernel reads fastest, beside the weights, which stay as they are.

4-bit weights in the layout of PyTorch's kernel make a step of one row several times as fast as dequantizing does; plain
weights in oneDNN's own order are read faster on some processors; the experts of a layer stacked in one tensor let one
product meet them all. A copy is only looked at while a step of a generation runs: `in_use` puts each beside its layer's
weights, if those are still the ones that were copied, and takes it away again. So nothing of a model is changed between
steps, and whatever is done to it then meets its own weights.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Held:
    """What a module may read until a step is over. A module that is deep-copied or pickled takes none along."""

    def __init__(self, value: Any, step: "Step"):
        self.value, self.step = value, step

    def __reduce__(self):
        return type(None), ()


class Step:
    """One use of copies, in whatever thread."""

    is_over = False


class Copy(NamedTuple):
    """What `module.make_copy(num_steps)` gave, `value`, and the tensors that it was made from, as they were then.

    Each tensor is stored with its version and an alias. The alias keeps the copied memory allocated, so that no other
    tensor can take its place.
    """

    module: nn.Module
    value: Any
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
    copies, served = [], set()
    for module in model.modules():
        if not hasattr(module, "make_copy") or isinstance(module, but) or module in served:
            continue
        tensors = _tensors(module)
        size = sum(tensor.nbytes for tensor in tensors)
        if size > most_bytes or any(tensor.is_inference() for tensor in tensors):  # which do not tell of writing
            continue
        sources = [(tensor, tensor._version, tensor.detach()) for tensor in tensors]
        if (value := module.make_copy(num_steps)) is not None:
            copies.append(Copy(module, value, sources))
            most_bytes -= size
            served.update(module.modules())  # whose own weights are not read then
    return copies


@contextmanager
def in_use(copies: Iterable[Copy]) -> Iterator[None]:
    """Let modules read their copies, those that are current."""
    step = Step()
    try:
        for copy in copies:
            if copy.is_current():
                vars(copy.module)["copy"] = Held(copy.value, step)
        yield
    finally:
        step.is_over = True  # first: if Ctrl-C interrupts the rest, what is left behind is not read
        for copy in copies:
            vars(copy.module).pop("copy", None)


def of(module: nn.Module) -> Any | None:
    """Return the copy that this module may read now, None without one."""
    held = vars(module).get("copy")
    if held is None or not torch.compiler.is_compiling() and held.step.is_over:
        return None
    return held.value


def _tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers that a copy is made from: the module's own and those of modules inside it."""
    if module._modules:
        return [*module.parameters(), *module.buffers()]
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]  # far quicker
