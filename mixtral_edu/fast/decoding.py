"""What makes the steps of a generation fast: copies for kernels, and the step as one program or one recording."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.fast import copies
from mixtral_edu.fast.cuda_graph import GraphedStep
from mixtral_edu.fast.linear import Linear


class Prepared:
    """What a model keeps between texts: copies of weights, and the step as `torch.compile` or a CUDA graph made it."""

    def __init__(self, model: nn.Module, compile: bool, graph: bool, most_bytes: float = math.inf):
        self.compile, self.graph = compile, graph
        self.copies = self._made(model, most_bytes)
        step = torch.compile(model.forward) if compile else model.forward
        self.step: Callable[..., Any] | None = GraphedStep(step) if graph else step if compile else None

    def refresh(self, model: nn.Module, most_bytes: float) -> None:
        """Make the copies again if the weights have changed."""
        if not self.copies or not all(copy.is_current() and copy.is_in_place() for copy in self.copies):
            self.copies = []  # their memory first
            self.copies = self._made(model, most_bytes)

    def _made(self, model: nn.Module, most_bytes: float) -> list[copies.Copy]:
        """Copies to keep; a compiled program reads plain weights in its own way."""
        return copies.make(model, most_bytes=most_bytes, but=Linear if self.compile else ())

    def forget_recording(self) -> None:
        """Let a recorded step go, which holds a cache and knows where weights are."""
        if isinstance(self.step, GraphedStep):
            self.step.forget()


def prepare(model: nn.Module, compile: bool, graph: bool, most_bytes: float) -> None:
    """Give the model, as `prepared`, what is worth keeping. A step that was compiled before is used again."""
    prepared = getattr(model, "prepared", None)
    if prepared is None or (prepared.compile, prepared.graph) != (compile, graph):
        drop(model)
        model.prepared = Prepared(model, compile, graph, most_bytes)
    else:
        prepared.forget_recording()
        prepared.refresh(model, most_bytes)


def drop(model: nn.Module) -> None:
    """Let go of what was kept."""
    if getattr(model, "prepared", None) is not None:
        model.prepared.forget_recording()  # somebody may still have the step, which must not read weights that moved
    vars(model).pop("prepared", None)


@contextmanager
def decoding(
    model: nn.Module, num_steps: int, most_bytes: float, usual_step: bool = True
) -> Iterator[Callable[..., Any]]:
    """Yield what to call in place of the model while a text grows; what was made for this text goes at the end.

    Args:
        model: with the engine or without; quantized layers get copies for their kernels either way.
        num_steps: how many steps there will be at most.
        most_bytes: how much memory copies may take.
        usual_step: whether steps may go through what was compiled or recorded for them: those that want nothing but
            logits, with a cache that nobody reorders.
    """
    prepared = getattr(model, "prepared", None)
    found: list[copies.Copy] = []
    if prepared is not None:
        prepared.refresh(model, most_bytes)
        found = prepared.copies
    else:
        found = copies.make(model, num_steps, most_bytes)

    def forward(input_ids: Tensor, **options: Any) -> Any:
        if input_ids.shape[1] > 1:  # the prompt
            return model(input_ids, **options)
        kept = getattr(model, "prepared", None)  # `train()` may have dropped it since the last step
        step = model if kept is None or kept.step is None or not usual_step else kept.step
        with copies.in_use(found):
            return step(input_ids, **options)

    try:
        yield forward
    finally:
        if prepared is not None:
            prepared.forget_recording()
        else:
            found.clear()  # a traceback that somebody keeps would keep them
