"""Which product of a few rows, or many, with a weight is fastest on this machine: found out by a short trial.

    y = x wᵀ        x (N, D), w (F, D), y (N, F)

PyTorch computes it through different libraries by the number type, and none is best on every processor. With one thread
of an Intel Xeon with AVX-512 and bfloat16 instructions, and a weight of 1,792 x 512 that comes from memory, `torch.mv`
takes 0.71 of the time of `F.linear` for one row in bfloat16, and `(w xᵀ)ᵀ` 0.81 for 8 rows in bfloat16 and 0.58 in
float32. On an AMD EPYC oneDNN takes less than half of the time of MKL, which `F.linear` calls there, for 512 rows in
float32, and with the weight in oneDNN's own order 0.4 to 0.6 for one row.

So the first product of a shape is computed in each way in turns, some milliseconds in all, and the fastest one is used
from then on. All are right to rounding. `choices` shows what was found. `pinned("linear")`, or the environment variable
MIXTRAL_EDU_PRODUCT, makes the choice by hand; then no trial is made, and no weight is laid out in another order.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

try:  # private, in all releases from 2.11 to 2.14
    from torch._C import _is_torch_function_mode_enabled as _function_mode_is_on
    from torch._C import _len_torch_dispatch_stack as _dispatch_modes
    from torch._C._functorch import peek_interpreter_stack as _functorch_stack
except ImportError:  # without them nothing is known, and all products are `F.linear`
    _function_mode_is_on = _dispatch_modes = _functorch_stack = None

_MOST_ROWS = 512  # more rows do not change which way is fastest
_MOST_OPERATIONS = 2**27  # in a product of a trial; a larger weight is tried in part
_TRIAL = 2e-3  # seconds for each way of a trial, at least
_MOST_ROUNDS = 1000
_HOPELESS = 10  # times as long as another way: not to be tried again
_FEW_ROWS = 64  # with more, the time is that of multiplying, in which ways differ less, and trials are less exact
_GAIN, _GAIN_OF_MANY = 0.9, 0.75  # of the time of `F.linear`: what another way must not exceed
VARIABLE = "MIXTRAL_EDU_PRODUCT"


class Shape(NamedTuple):
    """What a choice is made for. Sizes are rounded up to powers of two, and rows stop at 512."""

    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    threads: int


def _by_weight_first(x: Tensor, weight: Tensor) -> Tensor:
    return (weight @ x.t()).t().clone(memory_format=torch.contiguous_format)  # laid out as all other products


def _by_vector(x: Tensor, weight: Tensor) -> Tensor:
    return _as_own(torch.mv(weight, x[0]), (1, len(weight)))


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    return _onednn(x.contiguous(), weight.contiguous())  # other orders it reads a thousand times as slowly


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # a private operator of PyTorch


def _as_own(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`y.view(shape)`, but as a tensor of its own: a view could not be written to in all the places where y can."""
    return torch.ops.aten._unsafe_view(y, shape)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "weight-first": _by_weight_first,
    "vector": _by_vector,
    "onednn": _by_onednn,
}
_ONE_ROW = {"vector"}
_ORDINARY = (Tensor, nn.Parameter)
_MOST_BYTES = 2**28  # of a model's weights, which a trial reads in turn
_FEWEST_USES = 8  # no other order of a weight pays for fewer products
_layers: WeakSet[nn.Module] = WeakSet()
_lock = Lock()
_found: dict[tuple, str] = {}
_pays_after: dict[tuple, float] = {}  # how many products of one row repay laying a weight out in another order
_seen: dict[tuple, str] = {}  # choices by exact sizes, for a quick look
_MOST_SEEN = 100_000
_pinned: str | None = None


def choices() -> dict[tuple, str]:
    """Return what each trial so far has found.

    By `Shape` one of the `WAYS` for plain weights, and by the keys of `choose` others; for weights in another order,
    after how many products of one row it pays.
    """
    return _found | {key: f"after {number:.0f} products" for key, number in _pays_after.items()}


@contextmanager
def pinned(way: str | None) -> Iterator[None]:
    """Use this one of the `WAYS` inside the block, wherever it runs; None chooses by trial.

    Raises:
        ValueError: there is no such way.
    """
    global _pinned
    before, _pinned = _pinned, _checked(way, "way")
    try:
        yield
    finally:
        _pinned = before


def _checked(way: str | None, name: str) -> str | None:
    if way not in (None, *WAYS):
        raise ValueError(f"{name}={way!r}: it must be one of {', '.join(WAYS)}")
    return way


_pinned = _checked(os.environ.get(VARIABLE) or None, VARIABLE)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Map x (..., D) to x wᵀ (..., F) with w (F, D), in the fastest way that is known for it."""
    if not is_plain(x, weight):
        return F.linear(x, weight)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    way = "learning" if learns else _way_for(x, weight)
    if way == "linear":
        return F.linear(x, weight)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])  # (N, D)
    y = _Product.apply(rows, weight) if learns else WAYS[way](rows, weight)
    return y if x.ndim == 2 else _as_own(y, (*x.shape[:-1], len(weight)))


class _Product(torch.autograd.Function):
    """The product, and the two of its backward pass, each in its fastest way."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return WAYS[_way_for(x, weight)](x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        return (
            multiply(grad, weight.t()) if wants_x else None,  # (N, F) to (N, D)
            multiply(grad.t(), x.t()) if wants_weight else None,  # (F, N) to (F, D)
        )


def is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether these are ordinary numbers on a CPU, and nobody but us decides how they are multiplied.

    This is asked before each product, so it asks what is cheap.
    """
    dtype = x.dtype
    return (
        (dtype is torch.float32 or dtype is torch.bfloat16 or dtype is torch.float16)
        and weight.dtype is dtype
        and x.is_cpu
        and weight.is_cpu
        and type(x) in _ORDINARY
        and type(weight) in _ORDINARY
        and x.numel() > 0 < weight.numel()
        and x.shape[-1] == weight.shape[1]
        and not is_compiling()
        and not modes_are_on()
        and not torch.is_autocast_enabled("cpu")
    )


def modes_are_on() -> bool:
    """Whether somebody looks at each operation, or wants the usual ones: transforms, traces, modes, determinism."""
    return (
        _functorch_stack is None
        or _functorch_stack() is not None
        or forward_ad._current_level >= 0
        or _function_mode_is_on()
        or _dispatch_modes() > 0
        or torch.jit.is_tracing()
        or torch.are_deterministic_algorithms_enabled()
    )


def _way_for(x: Tensor, weight: Tensor) -> str:
    """Return how to multiply x (..., D) with weight (F, D)."""
    outputs, D = weight.shape
    N = x.numel() // D
    if _pinned is not None:
        return _pinned if _pinned in ways_for(N) and _runs(_pinned, x.dtype) else "linear"
    key = (N, D, outputs, x.dtype, torch.get_num_threads())
    if (way := _seen.get(key)) is not None:
        return way
    shape = Shape(min(up(N), _MOST_ROWS), up(D), up(outputs), *key[3:])
    if (way := _found.get(shape)) is None:
        rows = x.detach().reshape(-1, D)[:_MOST_ROWS]
        most = max(1, _MOST_OPERATIONS // (2 * rows.numel()))
        weights = itertools.cycle([w.detach()[:most] for w in _like(weight)])
        ways = {name: lambda name=name: WAYS[name](rows, next(weights)) for name in ways_for(N)}
        way = choose(shape, ways, _GAIN if N <= _FEW_ROWS else _GAIN_OF_MANY)
    if len(_seen) < _MOST_SEEN:
        _seen[key] = way
    return way


def know(layers: Iterable[nn.Module]) -> None:
    """Note linear layers, whose weights a trial may read.

    In a model each product meets another weight, which comes from memory. A trial that multiplied with the same one
    again and again would find it in the processor's cache, where other ways are the fastest.
    """
    with _lock:
        _layers.update(layers)


def _like(weight: Tensor) -> list[Tensor]:
    """Return weights of the same kind: of layers that are known, or else this one."""
    kind = (weight.shape, weight.stride(), weight.dtype, weight.device)
    with _lock:
        known = [layer._parameters.get("weight") for layer in _layers]  # looking at it as an attribute might compute it
    same = [w for w in known if w is not None and (w.shape, w.stride(), w.dtype, w.device) == kind]
    return same[: max(1, _MOST_BYTES // weight.nbytes)] or [weight]


def ways_for(num_rows: int) -> list[str]:
    """Return the names of those of the `WAYS` that can multiply this many rows here."""
    return [way for way in WAYS if (num_rows == 1 or way not in _ONE_ROW) and (way != "onednn" or _has_onednn())]


@cache
def _runs(way: str, dtype: torch.dtype) -> bool:
    """Whether this processor can multiply such numbers in this way."""
    try:
        with torch.no_grad():
            WAYS[way](torch.ones(1, 16, dtype=dtype, device="cpu"), torch.ones(16, 16, dtype=dtype, device="cpu"))
    except RuntimeError:
        return False
    return True


def _has_onednn() -> bool:
    here = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return here and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def reordered(weight: Tensor, num_uses: float) -> Tensor | None:
    """Return the weight in oneDNN's own order, if `num_uses` products of one row repay making it.

    It is for `multiply_reordered`. `reordered(…).to_dense()` has the same bits as the weight.
    """
    if num_uses < _FEWEST_USES or _pinned is not None or type(weight) not in _ORDINARY or weight.ndim != 2:
        return None
    if not is_plain(weight, weight[:1]) or not (_has_onednn() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return None
    key = ("re-ordered", *weight.shape, weight.dtype, torch.get_num_threads())
    if key not in _pays_after:
        row, known = weight.detach()[:1].clone(), _like(weight.detach())
        weights = itertools.cycle(known)
        copies = itertools.cycle([torch.ops.mkldnn._reorder_linear_weight(w) for w in known])
        ways = {name: lambda name=name: WAYS[name](row, next(weights)) for name in ways_for(1)}
        plain = min(_seconds(ways).values(), default=math.inf)
        times = _seconds({"copy": lambda: torch.ops.mkldnn._reorder_linear_weight(next(weights)),
                          "row": lambda: multiply_reordered(row, next(copies))})  # fmt: skip
        gain = plain - times.get("row", math.inf)
        _pays_after[key] = times.get("copy", math.inf) / gain if gain > (1 - _GAIN) * plain else math.inf
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if num_uses > _pays_after[key] else None


def may_reorder(x: Tensor, weight: Tensor) -> bool:
    """Whether x may be multiplied with a weight in another order: no way is pinned, and both are plain."""
    return _pinned is None and is_plain(x, weight)


def multiply_reordered(x: Tensor, copy: Tensor) -> Tensor:
    """Map x (..., D) to x wᵀ (..., F), with w as `reordered` gave it; for results that need no gradient."""
    return _onednn(x, copy)


def up(size: int) -> int:
    """The next power of two: sizes in between are alike.

    >>> [up(size) for size in (1, 5, 8)]
    [1, 8, 8]
    """
    return 1 << (size - 1).bit_length()


def choose(key: tuple, ways: dict[str, Callable[[], Any]], gain: float = _GAIN) -> str:
    """Return the name of the fastest of some ways to compute the same: by a trial, the first time for this key.

    The first way is the usual one: another must take less than `gain` of its time. While a way is pinned, the usual one
    is used.
    """
    if _pinned is not None:
        return next(iter(ways))
    if key not in _found:
        _found.setdefault(key, _fastest(ways, gain))  # of two threads the first decides
    return _found[key]


def _fastest(ways: dict[str, Callable[[], Any]], gain: float) -> str:
    """Return the name of the fastest; the first one's unless another takes less than `gain` of its time."""
    usual, times = next(iter(ways)), _seconds(ways)
    best = min(times, key=times.__getitem__, default=usual)
    return best if times and times[best] < gain * times.get(usual, math.inf) else usual


@torch.no_grad()
def _seconds(ways: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Time all ways in turns, and return the least time of each that can run."""
    times: dict[Any, float] = {}
    for name, run in ways.items():
        try:
            run()  # libraries prepare themselves in the first call
        except RuntimeError:  # a private operator may refuse what it took in another release
            continue
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        if seconds <= _HOPELESS * min(times.values(), default=math.inf):
            times[name] = seconds
    until = time.perf_counter() + _TRIAL * len(times)
    for round_idx in range(_MOST_ROUNDS):
        for name in times:
            start = time.perf_counter()
            ways[name]()
            times[name] = min(times[name], time.perf_counter() - start)
        if round_idx >= 2 and time.perf_counter() > until:
            break
    return times
