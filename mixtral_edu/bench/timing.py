"""Times that can be compared: rounds in which all works take a turn, and the most that the machine can do.

On a shared machine a single time says little. Two works that alternate meet the same disturbances, so the ratio of
their times in a round is steady even where each time is not.
"""

import gc
import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import NamedTuple, Protocol

import torch

_FLOATS_TO_READ = 2**27  # 512 MiB in float32, far more than any cache holds
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


def read_bandwidth(device: torch.device, floats: int | None = None) -> float:
    """Measure how many bytes per second PyTorch reads from memory: the fastest of three ways, in float32.

    The ways are a sum, a matrix times a vector, and a copy, which writes as many bytes as it reads.
    """
    floats = floats or _FLOATS_TO_READ * (4 if device.type == "cuda" else 1)
    buffer = torch.ones(floats, dtype=torch.float32, device=device)
    matrix, vector = buffer.view(-1, 1024), buffer.new_ones(1024)
    rates = [buffer.nbytes / _fastest(buffer.sum, device), buffer.nbytes / _fastest(lambda: matrix @ vector, device)]
    half, other = buffer.chunk(2)
    return max(*rates, buffer.nbytes / _fastest(lambda: half.copy_(other), device))


def product_rate(dtype: torch.dtype, device: torch.device, size: int | None = None) -> float:
    """Measure how many operations per second a large matrix product does; each multiply-add counts as two.

    A CPU computes it in `dtype` or in float32, whichever is faster in a small product: some processors have no
    instructions for shorter numbers.
    """
    is_gpu = device.type == "cuda"
    size = size or _PRODUCT_SIZE * (4 if is_gpu else 1)

    def seconds(choice: torch.dtype, size: int) -> float:
        matrix = torch.randn(size, size, dtype=torch.float32, device=device).to(choice)
        return _fastest(lambda: matrix @ matrix, device)

    faster = dtype if is_gpu else min((dtype, torch.float32), key=lambda choice: seconds(choice, size // 8))
    return 2 * size**3 / seconds(faster, size)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    calls = 10 if device.type == "cuda" else 1  # ten on a GPU, so that the time to launch one does not count

    def several() -> None:
        for _ in range(calls):
            run()

    several()
    return min(seconds_of(several, device) for _ in range(_REPEATS)) / calls


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
