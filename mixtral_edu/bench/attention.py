"""Benchmark attention alone, on one text and with a model's heads: the time, memory and error of each way.

The floor is a roofline, the longer of two times: the time to multiply all pairs that may attend in both products, and
the time to read queries, keys and values once and to write the output.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mixtral_edu.attention import eager_attention
from mixtral_edu.bench.results import Result, floor_by_bytes, floor_by_operations
from mixtral_edu.bench.tasks import Task
from mixtral_edu.bench.timing import paired_rounds
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.memory import dtype_name, require_memory
from mixtral_edu.fast.attention import attend
from mixtral_edu.fast.flash import check_flash
from mixtral_edu.masks import Visibility

_QUERIES_CHECKED = 16


class Attention:
    """The work of one way to compute attention: a whole text at once, as in a prefill's layer.

    The way "eager" stores all scores and gets the window as a mask. A model makes that mask once for all layers, so its
    time and memory do not count here. The other ways skip what no window reaches.

    Raises:
        ValueError: the way cannot run on this device or in this dtype.
        MemoryError: the scores do not fit in memory.
    """

    def __init__(self, way: str, config: MixtralConfig, task: Task, dtype: torch.dtype, device: torch.device):
        T, Hq, Hkv, Dh = task.tokens, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if way == "flash_attention_2":
            check_flash(device, dtype, Dh)
        if way == "eager":  # it stores scores and weights, the softmax in float32, and the mask
            needed = Hq * T * T * (2 * dtype.itemsize + 4) + T * T
            require_memory(needed, device, f"the scores of {T:,} tokens in {Hq} heads")
        generator = torch.Generator("cpu").manual_seed(T)
        self.q, self.k, self.v = (
            torch.randn(1, heads, T, Dh, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)
            for heads in (Hq, Hkv, Hkv)
        )
        positions = torch.arange(T, device=device)[None]
        self.visibility = Visibility(positions, positions, task.window if task.has_window else None)
        self.attend: Callable[..., Tensor] = {
            "eager": lambda q, k, v, visibility: eager_attention(q, k, v, visibility.mask)[0],
            "sdpa": partial(attend, "sdpa"),
            "flash_attention_2": partial(attend, "flash_attention_2"),
        }[way]

    def prepare(self) -> None:
        """Do nothing: a run does not change its inputs."""

    @torch.no_grad()
    def run(self) -> Tensor:
        return self.attend(self.q, self.k, self.v, self.visibility)

    def peak_bytes(self) -> int | None:
        """Return the peak memory of one run besides its inputs; None on a CPU, where PyTorch does not count it."""
        if self.q.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.q.device)
        before = torch.cuda.memory_allocated(self.q.device)
        self.run()
        return torch.cuda.max_memory_allocated(self.q.device) - before

    @torch.no_grad()
    def error(self) -> float:
        """Return the largest difference from attention in float64, at queries spread evenly over the text."""
        T, G = self.q.shape[2], self.q.shape[1] // self.k.shape[1]
        out, window, errors = self.run(), self.visibility.window or T, []
        k, v = (x[0].double().repeat_interleave(G, 0) for x in (self.k, self.v))  # (Hq, T, Dh)
        checked = torch.linspace(0, T - 1, min(T, _QUERIES_CHECKED), dtype=torch.float32, device="cpu")
        for t in checked.long().tolist():
            seen = slice(max(0, t - window + 1), t + 1)
            scores = k[:, seen] @ self.q[0, :, t, :, None].double() * k.shape[-1] ** -0.5  # (Hq, S, 1)
            exact = (scores.softmax(dim=1) * v[:, seen]).sum(dim=1)  # (Hq, Dh)
            errors.append((out[0, :, t] - exact).abs().max().item())
        return max(errors)


def compare_attention(
    config: MixtralConfig,
    task: Task,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
    bandwidth: float,
    rate: float,
    report: Callable[[str], None],
) -> list[Result]:
    """Measure all ways in turns, and compare each with "eager" where that fits in memory.

    Args:
        config: gives the number and the size of the heads.
        task: `attention-T-W`.
        dtype: the dtype of queries, keys and values.
        device: the device to measure.
        seconds: time to spend on the rounds.
        bandwidth, rate: the device's bytes and operations per second.
        report: gets a line for each way that cannot run.
    """
    works, found = {}, {}
    for way in ways_of(device):
        try:
            work = Attention(way, config, task, dtype, device)
            found[way] = {"error": work.error(), "peak_bytes": work.peak_bytes()}
            works[way] = work
        except (ValueError, MemoryError, RuntimeError) as error:  # RuntimeError: no memory, or a kernel for other GPUs
            report(f"    {row_name(way, dtype)} is skipped: {error}".partition("\n")[0])
    rounds = paired_rounds([*works.values()], seconds, device)
    times = {way: tuple(each) for way, each in zip(works, rounds, strict=True)}
    floor, floor_from = max(
        floor_by_operations(operations_of_attention(config, task), rate),
        floor_by_bytes(bytes_of_attention(config, task, dtype), bandwidth),
    )
    if "eager" in times:
        beside = {"theirs": times["eager"], "against": "eager", "setting": row_name("eager", dtype)}
        found = {way: values if way == "eager" else values | beside for way, values in found.items()}
    return [
        Result(task.name, row_name(way, dtype), ours, tokens=task.tokens, floor=floor, floor_from=floor_from,
               **found[way])
        for way, ours in times.items()
    ]  # fmt: skip


def row_name(way: str, dtype: torch.dtype) -> str:
    """Return the name of a way in a row of results."""
    return f"{way} {dtype_name(dtype)}"


def ways_of(device: torch.device) -> tuple[str, ...]:
    """Return the ways to compare on a device."""
    return ("eager", "sdpa", "flash_attention_2") if device.type == "cuda" else ("eager", "sdpa")


def dtypes_of(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes to compare: bfloat16 and float16 on a GPU, the run's own elsewhere."""
    return (torch.bfloat16, torch.float16) if device.type == "cuda" else (dtype,)


def operations_of_attention(config: MixtralConfig, task: Task) -> int:
    """Count the multiplications and additions of the two products over all pairs that causality and window allow."""
    T, W = task.tokens, min(task.window, task.tokens)
    pairs = W * T - W * (W - 1) // 2
    return pairs * config.num_attention_heads * config.head_dim * 4


def bytes_of_attention(config: MixtralConfig, task: Task, dtype: torch.dtype) -> int:
    """Count the bytes of queries, keys, values and output."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return task.tokens * heads * config.head_dim * dtype.itemsize
