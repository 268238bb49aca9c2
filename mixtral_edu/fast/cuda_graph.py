"""The step that adds one token to each row, recorded as a CUDA graph.

Such a step starts dozens of kernels per layer, and for few rows a GPU is done with each before Python has started the
next. A CUDA graph is the list of them with all their places in memory: recorded once, it is started as a whole.
Whatever differs from one step to the next then has to lie on the device, in tensors that stay where they are: the ids,
how far each row is, and what its cache holds.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixtral_edu.cache import RollingCache

_WARM_UPS = 3  # kernels choose their form, and libraries make room, in the first calls; neither may be recorded
_WAIT = "called a synchronizing CUDA operation"  # in what PyTorch raises where one was forbidden


class NotRecordable(ValueError):
    """A step cannot be recorded, because it waits for the host on its way, say."""


class GraphedStep:
    """A model's forward pass that replays its one-token step, recorded for the cache that it is called with.

    It takes a model's arguments by name. One token per row, with a cache and without a mask, goes through the
    recording, and the tensors that come back are overwritten by the next such call. A new cache, or one that had to
    grow, is recorded for again, at the price of some steps. Everything else (a prompt, a batch in which a row has
    stopped) goes through `forward` as it is.
    """

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward
        self.forget()

    def forget(self) -> None:
        """Let the recording go, and the cache that it was made for."""
        self._recorded_for: tuple[Any, ...] = ()
        self._ids: Tensor | None = None
        self._out: Any = None
        self._replay: Callable[[], None] | None = None

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        past_key_values: RollingCache | None = None,
        cache: RollingCache | None = None,
        **options: Any,
    ) -> Any:
        """Run one step; arguments and result are those of the model.

        Raises:
            NotRecordable: the step cannot be recorded; `train()` makes the model forget that it was to be.
        """
        cache = past_key_values if cache is None else cache
        is_step = isinstance(cache, RollingCache) and input_ids is not None and input_ids.shape[1:] == (1,)
        if not is_step or attention_mask is not None or cache.half_written or _holds_tensor(options):
            return self.forward(input_ids, attention_mask=attention_mask, past_key_values=cache, **options)
        cache.make_room(1)
        # What the recording has fixed: places in memory, sizes, and what is decided in Python.
        wanted = (cache, cache.keys[0], cache.positions, cache.next_position, cache.padded, input_ids.shape, options)
        if not _same(self._recorded_for, wanted):
            self._record(input_ids, cache, options)
            self._recorded_for = wanted
        self._ids.copy_(input_ids)
        self._replay()
        cache.seen += 1
        return self._out

    def _record(self, input_ids: Tensor, cache: RollingCache, options: dict[str, Any]) -> None:
        self.forget()
        ids = input_ids.clone()
        positions, next_position, seen = cache.positions, cache.next_position, cache.seen
        before = positions.clone(), next_position.clone()

        def step() -> Any:
            cache.static = True
            out = self.forward(ids, past_key_values=cache, **options)
            positions.copy_(cache.positions)  # where the next replay reads
            next_position.copy_(cache.next_position)
            return out

        def undo() -> None:  # the slot that was written is the next token's, who writes it again
            positions.copy_(before[0])
            next_position.copy_(before[1])
            cache.positions, cache.next_position = positions, next_position
            cache.seen, cache.static, cache.half_written = seen, False, False

        try:
            out, replay = record(step, undo, input_ids.device)
        finally:
            undo()
        self._ids, self._out, self._replay = ids, out, replay


def record(step: Callable[[], Any], undo: Callable[[], None], device: torch.device) -> tuple[Any, Callable[[], None]]:
    """Record what `step` starts on a CUDA device.

    Args:
        step: called some times to warm up, and once to be recorded.
        undo: called after each of the first ones; to undo what Python did in the last one is the caller's part.
        device: on which all of it runs.

    Returns:
        What the recorded call returned, whose tensors each replay fills, and the function that replays.

    Raises:
        NotRecordable: the step waits for the host, or does something else that a recording cannot hold.
    """
    with torch.cuda.device(device):
        usual, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(usual)
        try:
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    step()
                    undo()
                _require_no_wait(step)
                undo()
        finally:
            usual.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                out = step()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise NotRecordable(f"graph=True: the step cannot be recorded: {reason}") from error
        finally:
            torch.cuda.set_stream(usual)  # where recording failed, its own would stay
    return out, graph.replay


def _require_no_wait(step: Callable[[], Any]) -> None:
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # about the mode being new
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        step()
    except RuntimeError as error:
        if _WAIT not in str(error):
            raise
        raise NotRecordable(
            "graph=True: the step waits for the host; attn_implementation='sdpa' or 'eager' does not, nor does "
            "experts_implementation='grouped' with up to 64 rows, or in bfloat16 on Hopper or Blackwell"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _holds_tensor(options: dict[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in options.values())


def _same(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    """Whether all parts are the same objects, or equal where they are neither tensors nor caches."""
    return len(found) == len(wanted) and all(
        a is b or not isinstance(a, Tensor | RollingCache) and a == b for a, b in zip(found, wanted, strict=True)
    )
