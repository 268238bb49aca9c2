"""Times that can be compared: rounds in which all works take a turn, and the most that the machine can do.

On a shared machine a single time says little. Two works that alternate meet the same disturbances, so the ratio of
their times in a round is steady even where each time is not.
"""

import gc
import time
from collections.abc import Callable, Container, Sequence
from functools import partial
from statistics import quantiles
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixtral_edu.fast import products

_BYTES_TO_READ = 2**29  # more than caches hold for one process
_ROW = 1024  # numbers in a row of a matrix that is read
_TRIAL_PART = 16  # a trial of all ways reads one part of so many
_NEAR = 3  # times as long as the fastest way in a trial: what may still be the fastest at full size
_PRODUCT_SIZE = 2048  # rows of a square matrix product, enough that memory does not limit it
_REPEATS = 5
_LONG = 10.0  # seconds; in a longer round it does not matter that caches and memory were cold


class Work(Protocol):
    """A piece of work to time: `prepare`, untimed, before each `run`."""

    def prepare(self) -> None: ...

    def run(self) -> None: ...


class Quartiles(NamedTuple):
    """A quarter of the values are below `low`, half below `median`, three quarters below `high`."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the three quartiles, interpolated between neighbours.

    >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    Quartiles(low=2.0, median=3.0, high=4.0)
    """
    if not values:
        raise ValueError("values is empty: it must hold at least one number")
    return Quartiles(*quantiles(values, n=4, method="inclusive")) if len(values) > 1 else Quartiles(*values * 3)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Time one call until the device has finished it, with the garbage collector paused."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        _wait_for(device)
        started = time.perf_counter()
        run()
        _wait_for(device)
        return time.perf_counter() - started
    finally:
        if collecting:
            gc.enable()


def paired_rounds(
    works: Sequence[Work], budget: float, device: torch.device, least: int = 3, most: int = 100
) -> list[list[float]]:
    """Time all `works` in each round, from first to last, and in the next round from last to first.

    A first round warms up. It counts only if it is long.

    Args:
        works: what to time.
        budget: seconds to spend, preparation included. No round starts that is expected to exceed it.
        device: the device that the works run on.
        least, most: bounds on the number of rounds, whatever the budget.

    Returns:
        For each work, the seconds of all rounds; items at the same index belong to the same round.
    """

    def one_round(backwards: bool) -> list[float]:
        seconds = [0.0] * len(works)
        for index in range(len(works))[:: -1 if backwards else 1]:
            works[index].prepare()
            seconds[index] = seconds_of(works[index].run, device)
        return seconds

    gc.collect()
    first = one_round(backwards=True)
    rounds = [first] if sum(first) > _LONG else []
    started, timed = time.perf_counter(), 0
    while len(rounds) < most:
        spent = time.perf_counter() - started
        if len(rounds) >= least and spent * (timed + 1) > budget * timed:
            break
        rounds.append(one_round(backwards=timed % 2 == 1))
        timed += 1
    return [list(times) for times in zip(*rounds, strict=True)]


def read_bandwidth(device: torch.device, size: int | None = None, dtypes: Sequence[torch.dtype] = ()) -> float:
    """Measure how many bytes per second PyTorch reads from memory: the fastest way that this machine has.

    The ways are a sum, a copy, which writes as many bytes as it reads, and the product of one row with a matrix, see
    `product_ways`.

    Args:
        device: the device to measure.
        size: bytes that are read again and again; None for far more than caches hold, which is also the most. What
            caches keep of a smaller size is read faster.
        dtypes: the dtypes of the products besides float32.
    """
    most = _BYTES_TO_READ * (4 if device.type == "cuda" else 1)
    rows = max(_TRIAL_PART, min(size or most, most) // (4 * _ROW))

    def ways(rows: int) -> dict[str, Callable[[], object]]:
        buffer = torch.ones(rows * _ROW, dtype=torch.float32, device=device)
        half, other = buffer.chunk(2)
        found: dict[str, Callable[[], object]] = {"sum": buffer.sum, "copy": lambda: half.copy_(other)}
        for dtype in dict.fromkeys((torch.float32, *dtypes)):
            weight = buffer.view(dtype).view(-1, _ROW)
            found |= {f"{name} {dtype}": run for name, run in product_ways(weight.new_ones(1, _ROW), weight).items()}
        return found

    _, seconds = _least_seconds(ways, rows // _TRIAL_PART, rows, device)
    return 4 * rows * _ROW / seconds


def product_rate(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """Measure how many operations per second a large matrix product does; each multiply-add counts as two.

    It is computed in each way of `product_ways`, and the fastest one counts. On a CPU float32 counts too: some
    processors have no instructions for shorter numbers.

    Args:
        dtype: the numbers' dtype.
        device: the device to measure.
        size: rows of the square matrices; None for enough that memory does not limit the product.
    """
    is_gpu = device.type == "cuda"
    size = size or _PRODUCT_SIZE * (4 if is_gpu else 1)

    def ways(size: int) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {}
        for choice in (dtype,) if is_gpu else dict.fromkeys((torch.float32, dtype)):
            matrix = torch.randn(size, size, dtype=torch.float32, device=device).to(choice)
            found |= {f"{name} {choice}": run for name, run in product_ways(matrix, matrix).items()}
        return found

    small, large = _least_seconds(ways, size // 4, size, device)
    return 2 * max((size // 4) ** 3 / small, size**3 / large)


def product_ways(x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """Return ways to compute x wᵀ with x (N, D) and w (F, D): those of `fast.products`, and with a re-ordered weight.

    oneDNN has a layout of its own for weights, which PyTorch reaches by private operators. Some of the ways may not run
    here.
    """
    ways: dict[str, Callable[[], object]] = {
        name: partial(products.WAYS[name], x, weight) for name in products.ways_for(len(x))
    }
    if weight.device.type == "cpu":
        try:
            reordered = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        except (AttributeError, RuntimeError):  # another release, another processor, or a build without oneDNN
            return ways
        ways["reordered"] = partial(products.WAYS["onednn"], x, reordered)
    return ways


def _least_seconds(
    ways: Callable[[int], dict[str, Callable[[], object]]], small: int, large: int, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of the fastest way at a small and at a large size.

    All ways are tried at the small size, and at the large one those that came near the fastest.
    """

    def seconds(size: int, names: Container[str] | None = None) -> dict[str, float]:
        found = {}
        for name, run in ways(size).items():
            if names is None or name in names:
                try:
                    found[name] = _fastest(run, device)
                except (AttributeError, RuntimeError):  # this way is not for such numbers, or not in this release
                    continue
        return found

    at_small = seconds(small)
    near = {name for name, time_of in at_small.items() if time_of <= _NEAR * min(at_small.values())}
    return min(at_small.values()), min(seconds(large, near).values())


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    calls = 10 if device.type == "cuda" else 1  # ten on a GPU, so that the time to launch one does not count

    @torch.no_grad()
    def several() -> None:
        for _ in range(calls):
            run()

    several()
    return min(seconds_of(several, device) for _ in range(_REPEATS)) / calls


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
