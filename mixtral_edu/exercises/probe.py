"""A student's function as the checks see it: called on copies, with its side effects recorded."""

import inspect
import os
import random
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.comparison import show
from mixtral_edu.exercises.settings import usual_settings

if TYPE_CHECKING:
    from mixtral_edu.exercises.framework import Exercise

RandomState = tuple[Tensor, tuple, tuple]


class Probe:
    """Call `answer` as if it were the reference solution of `exercise`.

    Each call passes copies of the arguments, so that the check's own inputs stay as they are. It passes them by
    position, keyword-only ones by name, because a student may name parameters differently. Modules and other objects
    are passed without a copy, and so are the arguments that the exercise must change.

    Attributes:
        last_call: the latest call, in words.
        returned: each call that finished, in words, with its result.
        error: what the latest call raised, if it did.
        side_effects: what calls changed besides returning a result, each as a question.
    """

    def __init__(self, exercise: "Exercise", answer: Callable):
        self.exercise = exercise
        self.answer = answer
        self.last_call: str | None = None
        self.returned: list[tuple[str, object]] = []
        self.error: BaseException | None = None
        self.side_effects: list[str] = []

    def __call__(self, *args, **kwargs):
        """Call the student's function and return what it returns."""
        wanted = self._bind(*args, **kwargs)
        in_words = ", ".join(f"{name}={show(value)}" for name, value in wanted.arguments.items())
        self.last_call, self.error = f"{self.exercise.name}({in_words})", None
        given = self._bind(*args, **kwargs)
        for name, value in wanted.arguments.items():
            given.arguments[name] = value if name in self.exercise.changes else _copied(value)
        state, process = random_state(), os.getpid()
        try:
            with usual_settings():  # a call may change settings; the check continues with the usual ones
                result = self.answer(*given.args, **given.kwargs)
        except BaseException as error:
            self.error = error
            raise
        finally:
            if os.getpid() != process:  # the function forked; only the parent continues
                os._exit(1)
        for name, value in wanted.arguments.items():
            if not _unchanged(value, given.arguments[name]):
                self.side_effects.append(f"Is {name} changed in place? It must be unchanged after the call.")
        if not self.exercise.random and not _unchanged(state, random_state()):
            self.side_effects.append("Are random numbers drawn, or is a seed set? Nothing is random here.")
        self.returned.append((self.last_call, result))
        return result

    def _bind(self, *args, **kwargs) -> inspect.BoundArguments:
        bound = self.exercise.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound

    def line_of(self, error: BaseException) -> str | None:
        """Return the line of the student's file or cell that raised `error`."""
        code = getattr(inspect.unwrap(self.answer), "__code__", None)
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if code and frame.filename == code.co_filename]
        return f"line {own[-1].lineno}: {own[-1].line}".rstrip(": ") if own else None


def random_state() -> RandomState:
    """Return the state of the random generators that a process shares: PyTorch's (CPU), numpy's and Python's."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_random_state(state: RandomState) -> None:
    """Reset the shared generators to a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


def _copied(value: object) -> object:
    """Copy tensors, arrays, and lists, tuples and dicts of them; return anything else as it is."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def _unchanged(before: object, after: object) -> bool:
    """Return whether a copy made by `_copied` still equals the original."""
    if isinstance(before, Tensor | np.ndarray):
        if not isinstance(after, Tensor | np.ndarray) or before.shape != after.shape or before.dtype != after.dtype:
            return False
        return bool(((before == after) | ((before != before) & (after != after))).all())
    if isinstance(before, Mapping):
        same_keys = isinstance(after, Mapping) and before.keys() == after.keys()
        return same_keys and all(_unchanged(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return isinstance(after, list | tuple) and len(before) == len(after) and all(map(_unchanged, before, after))
    return before is after or bool(before == after)
