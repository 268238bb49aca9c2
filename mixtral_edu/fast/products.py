"""Which product of a few rows, or many, with a weight is fastest on this machine: found out by a short trial.

    y = x wᵀ        x (N, D), w (F, D), y (N, F)

PyTorch computes it through different libraries by the number type, and none is best on every processor. With one thread
of an Intel Xeon with AVX-512 and bfloat16 instructions, and a weight of 1,792 x 512 that comes from memory, `torch.mv`
takes 0.71 of the time of `F.linear` for one row in bfloat16, and `(w xᵀ)ᵀ` 0.81 for 8 rows in bfloat16 and 0.58 in
float32. On an AMD EPYC oneDNN takes less than half of the time of MKL, which `F.linear` calls there, for 512 rows in
float32, and with the weight in oneDNN's own order 0.4 to 0.6 for one row.

So the first product of a shape is computed in each way in turns, a few milliseconds in all, and the fastest one is used
from then on. All are right to rounding. `choices` shows what was found. `pinned("linear")`, or the environment variable
MIXTRAL_EDU_PRODUCT, makes the choice by hand.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _is_torch_function_mode_enabled as _function_mode_is_on
from torch._C import _len_torch_dispatch_stack as _dispatch_modes
from torch._C._functorch import peek_interpreter_stack as _functorch_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_MOST_ROWS = 512  # more rows do not change which way is fastest
_MOST_OPERATIONS = 2**27  # of one product of a trial: a larger weight is tried in part
_TRIAL = 2e-3  # seconds for each way of a trial, at least
_MOST_ROUNDS = 1000
_FEW_ROWS = 64  # with more, the time is that of multiplying, in which ways differ less, and trials are less exact
_GAIN, _GAIN_OF_MANY = 0.9, 0.75  # of the time of `F.linear`: what another way must not exceed
VARIABLE = "MIXTRAL_EDU_PRODUCT"


class Shape(NamedTuple):
    """What a choice is made for: x (rows, inputs), w (outputs, inputs), each up to so many, the type, the threads."""

    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    threads: int


def _by_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def _by_weight_first(x: Tensor, weight: Tensor) -> Tensor:
    return (weight @ x.t()).t().contiguous()  # laid out as all other products


def _by_vector(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mv(weight, x[0])[None]


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # a private operator of PyTorch


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": _by_linear,
    "weight-first": _by_weight_first,
    "vector": _by_vector,
    "onednn": _by_onednn,
}
_ONE_ROW = {"vector"}
_ORDINARY = (Tensor, nn.Parameter)
_MOST_WEIGHTS = 64  # that a trial reads in turn
_layers: WeakSet[nn.Module] = WeakSet()
_found: dict[tuple, str] = {}
_pays_after: dict[tuple, float] = {}  # how many products of one row a weight in another order has to serve
_seen: dict[tuple, str] = {}  # the same by exact sizes, for a quick look
_MOST_SEEN = 100_000
_pinned: str | None = None


def choices() -> dict[tuple, str]:
    """Return which way won each trial so far: by `Shape` for plain weights, see `WAYS`, and by `choose`'s keys."""
    return dict(_found)


@contextmanager
def pinned(way: str | None) -> Iterator[None]:
    """Multiply in this one of the `WAYS`, wherever it can be done; None: by trial.

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
    if not _is_plain(x, weight):
        return F.linear(x, weight)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    way = "learning" if learns else _way_for(x, weight)
    if way == "linear":
        return F.linear(x, weight)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])  # (N, D)
    y = _Product.apply(rows, weight) if learns else WAYS[way](rows, weight)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], len(weight))


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


def _is_plain(x: Tensor, weight: Tensor) -> bool:
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
        and not _modes_are_on()
        and not torch.is_autocast_enabled("cpu")
    )


def _modes_are_on() -> bool:
    """Whether function transforms, forward-mode gradients, or modes that look at each operation are at work."""
    return (
        _functorch_stack() is not None
        or forward_ad._current_level >= 0
        or _function_mode_is_on()
        or _dispatch_modes() > 0
    )


def _way_for(x: Tensor, weight: Tensor) -> str:
    """Return how to multiply x (..., D) with weight (F, D)."""
    outputs, D = weight.shape
    N = x.numel() // D
    key = (N, D, outputs, x.dtype, torch.get_num_threads())
    if (way := _seen.get(key)) is not None and _pinned is None:
        return way
    if _pinned is not None:
        return _pinned if _pinned in ways_for(N) else "linear"
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
    _layers.update(layers)


def _like(weight: Tensor) -> list[Tensor]:
    """Return weights of the same kind: of layers that are known, or else this one."""
    kind = (weight.shape, weight.stride(), weight.dtype, weight.device)
    known = [w for layer in list(_layers) if isinstance(w := getattr(layer, "weight", None), Tensor)]
    return [w for w in known if (w.shape, w.stride(), w.dtype, w.device) == kind][:_MOST_WEIGHTS] or [weight]


def ways_for(num_rows: int) -> list[str]:
    """Return the names of those of the `WAYS` that can multiply so many rows here."""
    return [way for way in WAYS if (num_rows == 1 or way not in _ONE_ROW) and (way != "onednn" or _has_onednn())]


def _has_onednn() -> bool:
    here = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return here and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def reordered(weight: Tensor, num_uses: float) -> Tensor | None:
    """Return the weight in oneDNN's own order, if so many products of one row are faster with it, its making included.

    It is for `multiply_reordered`. `reordered(…).to_dense()` has the same bits as the weight.
    """
    if not _is_plain(weight[:1], weight) or not (_has_onednn() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return None
    key = ("re-ordered", *weight.shape, weight.dtype, torch.get_num_threads())
    if key not in _pays_after:
        row, weights = weight.detach()[:1].clone(), itertools.cycle(_like(weight.detach()))
        ways = [lambda name=name: WAYS[name](row, next(weights)) for name in ways_for(1)]
        copies = itertools.cycle([torch.ops.mkldnn._reorder_linear_weight(w) for w in _like(weight.detach())])
        plain = min(_seconds(dict(enumerate(ways))).values(), default=math.inf)
        times = _seconds({"copy": lambda: torch.ops.mkldnn._reorder_linear_weight(next(weights)),
                          "row": lambda: multiply_reordered(row, next(copies))})  # fmt: skip
        gain = plain - times.get("row", math.inf)
        _pays_after[key] = times.get("copy", math.inf) / gain if gain > (1 - _GAIN) * plain else math.inf
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if num_uses > _pays_after[key] else None


def multiply_reordered(x: Tensor, copy: Tensor) -> Tensor:
    """Map x (..., D) to x wᵀ (..., F), with w as `reordered` gave it; for results that need no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, copy, None, "none", [], "")


def up(size: int) -> int:
    """The next power of two: sizes in between are alike.

    >>> [up(size) for size in (1, 5, 8)]
    [1, 8, 8]
    """
    return 1 << (size - 1).bit_length()


def choose(key: tuple, ways: dict[str, Callable[[], Any]], gain: float = _GAIN) -> str:
    """Return the name of the fastest of some ways to compute the same: by a trial, the first time for this key.

    The first way is the usual one: another must take less than `gain` of its time.
    """
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
    times = {}
    for name, run in ways.items():
        try:
            run()  # libraries prepare themselves in the first call
            times[name] = math.inf
        except RuntimeError:  # a private operator may refuse what it took in another release
            continue
    until = time.perf_counter() + _TRIAL * len(times)
    for round_idx in range(_MOST_ROUNDS):
        for name in times:
            start = time.perf_counter()
            ways[name]()
            times[name] = min(times[name], time.perf_counter() - start)
        if round_idx >= 2 and time.perf_counter() > until:
            break
    return times
