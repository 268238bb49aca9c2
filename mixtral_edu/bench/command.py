"""Measure how fast this model is, compared with transformers on the same weights and with what the machine could do.

    python -m mixtral_edu benchmark --against transformers --json results.json --picture results.png
    python -m mixtral_edu benchmark --markdown results.json

Both systems load one checkpoint of random weights and take turns in one process. The ratio of each row is the median
over rounds. transformers runs each task in its fastest setting. A CUDA device runs the same tasks, with one row per way
to compute attention, and `--tasks attention` times attention alone. That path has not run on a GPU yet.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mixtral_edu.bench.machine import describe_machine
from mixtral_edu.bench.peers import check_peer
from mixtral_edu.bench.results import Result, ResultFile, as_table
from mixtral_edu.bench.run import Run
from mixtral_edu.bench.tasks import FULL_TASKS, QUICK_TASKS, TASKS, Task, choose_tasks
from mixtral_edu.bench.variants import benchmark_config
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.memory import choose_device, choose_dtype, dtype_name

__all__ = ["Result", "Task", "as_table", "benchmark", "benchmark_config"]
_SECONDS, _QUICK_SECONDS = 20.0, 2.0  # per row


def benchmark(
    config: MixtralConfig | None = None,
    *,
    tasks: Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    threads: int | None = None,
    against: str | None = None,
    full_size: bool = False,
    layers: int | None = None,
    quick: bool = False,
    seconds: float | None = None,
    json_file: str | Path | None = None,
    again: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Run the benchmark and return one row per task and form of the model.

    Args:
        config: the model's sizes; None for `benchmark_config()`.
        tasks: names, or beginnings of names: "prefill", "decode-8"; see `Task`. None for all of `TASKS`, or of
            `QUICK_TASKS` or `FULL_TASKS` if quick or full size. "attention" is measured only if it is named.
        forms: names of forms of the model, or their first words: "plain float32", "compiled", "int4"; None for all
            `variants`. Loading and attention are measured whatever the forms.
        dtype: the checkpoint's dtype, in which both systems run; None for float32, or bfloat16 on CUDA. Quantized forms
            run in bfloat16, on a CPU also in float32, and are compared with the peer in `dtype`.
        device: None for the CPU.
        threads: PyTorch's threads; None leaves them as they are.
        against: "transformers", or None to measure only this package.
        full_size: measure Mixtral-8x7B, or `config`, without training. Its weights are made on the device, one form
            after the other, with no copy on disk or in host memory: 93 GB in bfloat16, 27 GB in 4 bits, twice as much
            for forms that keep copies for their kernels. Forms that do not fit in memory are skipped. With a peer only
            some `layers` fit. They come from a checkpoint in the temporary folder, which both systems read: 24 GB for 8
            layers.
        layers: the number of layers; None for as many as `config` has.
        quick: fewer layers, forms and rounds, and shorter contexts: under three minutes on a quiet machine.
        seconds: time to spend per row, warm-up not included; each row gets at least three rounds.
        json_file: a file to write after each row. If it already holds rows of an equal run (machine, sizes, dtype,
            device, threads, against), they are not measured again.
        again: measure those rows again.
        report: gets a line at each step.

    Raises:
        ValueError: an argument is not valid; the message names it.
        MemoryError: no form fits in the device's memory, or the peer does not fit next to it.
        RuntimeError: the two systems compute different scores from the same weights.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    check_peer(against)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds}: it must be above 0")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: it must be at least 1")
    if full_size and quick:
        raise ValueError("full_size=True and quick=True: give only one of them")
    if full_size and against is not None and layers is None:
        raise ValueError(f"full_size=True: {against} does not fit in memory next to it; give layers=8")
    config = config or (MixtralConfig.mixtral_8x7b() if full_size else benchmark_config(quick))
    if layers is not None:
        config = replace(config, num_hidden_layers=layers)
    chosen = choose_tasks(tasks, FULL_TASKS if full_size else QUICK_TASKS if quick else TASKS)
    if full_size and (unfit := [task.name for task in chosen if task.kind in ("train", "loading")]):
        raise ValueError(f"tasks={unfit}: with full_size=True they must be prefill, decode or attention")
    with _threads(threads):
        settings = {
            "sizes": {name: value for name, value in config.to_dict().items() if isinstance(value, int)},
            "dtype": dtype_name(dtype),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "against": against,
        } | ({"weights": "made on the device"} if full_size and against is None else {})
        machine = describe_machine(device)
        report(", ".join(f"{name} {value}" for name, value in (machine | settings).items() if name != "sizes"))
        file = ResultFile(None if json_file is None else Path(json_file), machine, settings, again)
        with tempfile.TemporaryDirectory(prefix="mixtral-edu-") as folder:
            folder = Path(folder) / "checkpoint"
            run = Run(folder, config, dtype, device, against, file, report, quick, full_size, forms)
            run.measure(chosen, seconds or (_QUICK_SECONDS if quick else _SECONDS))
            run.measure_loading(chosen)
            run.measure_attention(chosen, seconds or (_QUICK_SECONDS if quick else _SECONDS))
    place = {task.name: number for number, task in enumerate(dict.fromkeys([*chosen, *TASKS]))}
    return sorted(file.results, key=lambda result: place.get(result.task, len(place)))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Give PyTorch `count` threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
