"""Times that can be compared: rounds in which all take their turn, and what the machine could do at best.

On a shared machine a time says little by itself. Two pieces of work that alternate meet the same disturbances, so the
ratio of their times in a round is steady where each time is not.
"""

import gc
import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import NamedTuple, Protocol

import torch

_FLOATS_TO_READ = 2**27  # 512 MiB in float32: far more than any cache holds
_PRODUCT_SIZE = 2048  # of a square matrix product: large enough that memory does not limit it
_REPEATS = 5
_LONG = 10.0  # seconds of a round after which it does not matter that caches and memory were cold


class Work(Protocol):
    """A piece of work to time: `prepare`, untimed, before each `run`."""

    def prepare(self) -> None: ...

    def run(self) -> None: ...


class Quartiles(NamedTuple):
    """A quarter of the values lies below `low`, half below `median`, three quarters below `high`."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the three quartiles, interpolated between neighbours.

    >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    Quartiles(low=2.0, median=3.0, high=4.0)
    """
    if not values:
        raise ValueError("values is empty: at least one is wanted")
    return Quartiles(*quantiles(values, n=4, method="inclusive")) if len(values) > 1 else Quartiles(*values * 3)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Time one call, until the device has done all of it. The garbage collector rests meanwhile."""
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
    """Time all `works` in each round, from first to last and in the next round from last to first.

    Args:
        works: a first round warms up, and counts only if it is long.
        budget: seconds to spend, preparation included. No round begins that would exceed it, as long as others did.
        device: what the works run on.
        least, most: bounds of the number of rounds, whatever they take.

    Returns:
        for each work the seconds of all rounds; equal places in two lists belong to the same round.
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


def read_bandwidth(device: torch.device, floats: int | None = None) -> float:
    """Measure how many bytes a second PyTorch reads from memory: the fastest of three ways, in float32.

    They are a sum, a matrix times a vector, and a copy, which writes as many bytes as it reads.
    """
    floats = floats or _FLOATS_TO_READ * (4 if device.type == "cuda" else 1)
    buffer = torch.ones(floats, dtype=torch.float32, device=device)
    matrix, vector = buffer.view(-1, 1024), buffer.new_ones(1024)
    rates = [buffer.nbytes / _fastest(buffer.sum, device), buffer.nbytes / _fastest(lambda: matrix @ vector, device)]
    half, other = buffer.chunk(2)
    return max(*rates, buffer.nbytes / _fastest(lambda: half.copy_(other), device))


def product_rate(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """Measure how many operations a second a large matrix product takes; each multiply-add counts as two.

    On a CPU it is that of `dtype`, or of float32 where that is faster: some processors have no instructions for shorter
    numbers. A small product tells which.
    """
    is_gpu = device.type == "cuda"
    size = size or _PRODUCT_SIZE * (4 if is_gpu else 1)

    def seconds(choice: torch.dtype, size: int) -> float:
        matrix = torch.randn(size, size, dtype=torch.float32, device=device).to(choice)
        return _fastest(lambda: matrix @ matrix, device)

    faster = dtype if is_gpu else min((dtype, torch.float32), key=lambda choice: seconds(choice, size // 8))
    return 2 * size**3 / seconds(faster, size)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    calls = 10 if device.type == "cuda" else 1  # of a GPU, so that starting one does not count

    def several() -> None:
        for _ in range(calls):
            run()

    several()
    return min(seconds_of(several, device) for _ in range(_REPEATS)) / calls


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
