"""How fast this model is: against transformers on the same weights, and against what the machine could do.

    python -m mixtral_edu benchmark --against transformers --json results.json --picture results.png

Both systems load one checkpoint of random weights and work in one process, in turns; the ratio of each row is the
median over rounds. transformers is given its fastest setting for each task. On a CUDA device the same tasks run, with a
row for each way to compute attention, and `--tasks attention` times attention alone; that path has not run on a card
yet.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mixtral_edu.bench.peers import check_peer
from mixtral_edu.bench.results import Result, ResultFile, as_table, describe_machine
from mixtral_edu.bench.run import Run
from mixtral_edu.bench.tasks import FULL_TASKS, QUICK_TASKS, TASKS, Task, choose_tasks
from mixtral_edu.bench.variants import benchmark_config
from mixtral_edu.checkpoints.memory import choose_device, choose_dtype, dtype_name
from mixtral_edu.config import MixtralConfig

__all__ = ["Result", "Task", "as_table", "benchmark", "benchmark_config"]
_SECONDS, _QUICK_SECONDS = 20.0, 2.0  # a row


def benchmark(
    config: MixtralConfig | None = None,
    *,
    tasks: Sequence[str] | None = None,
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
    """Measure, and return one row for each task and form of the model.

    Args:
        config: sizes; `benchmark_config()` if None.
        tasks: names, or beginnings of names: "prefill", "decode-8"; see `Task`. If None, all of `TASKS`; of
            `QUICK_TASKS` or `FULL_TASKS` if quick or full size. "attention" is measured only if it is named.
        dtype: of the checkpoint, which both systems run in; float32 if None, on CUDA bfloat16. Quantized forms are
            measured in bfloat16, on a CPU in float32 too, against the peer in `dtype`.
        device: the CPU if None.
        threads: of PyTorch; as they are if None.
        against: "transformers", or None to measure our times alone.
        full_size: Mixtral-8x7B, or `config`, without training. Its weights are made on the device, form by form, and
            have no copy on disk or in host memory: 93 GB in bfloat16, 27 GB in 4 bits. A form without room is left out.
            Beside a peer there is room for some `layers` only; they come from a checkpoint in the temporary folder, as
            both read the same: 24 GB for 8.
        layers: only so many; as many as the sizes say if None.
        quick: fewer layers, forms and rounds, shorter contexts: under three minutes on a quiet machine.
        seconds: to spend on a row, beside warming up; at least three rounds are done.
        json_file: written after each row. What it holds of an equal run (machine, sizes, dtype, device, threads,
            against) is not measured again.
        again: measure it all the same.
        report: gets a line at each step.

    Raises:
        ValueError: an argument without meaning; the message names it.
        MemoryError: the device has no room for any form, or for the peer beside it.
        RuntimeError: the two systems disagree about the scores of the same weights.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    check_peer(against)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds}: more than 0 is wanted")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: at least 1 is wanted")
    if full_size and quick:
        raise ValueError("full_size=True: there is no quick form of it")
    if full_size and against is not None and layers is None:
        raise ValueError(f"full_size=True: there is no room for {against} beside it; with layers=8 there is")
    config = config or (MixtralConfig.mixtral_8x7b() if full_size else benchmark_config(quick))
    if layers is not None:
        config = replace(config, num_hidden_layers=layers)
    chosen = choose_tasks(tasks, FULL_TASKS if full_size else QUICK_TASKS if quick else TASKS)
    if full_size and (unfit := [task.name for task in chosen if task.kind in ("train", "loading")]):
        raise ValueError(f"tasks={unfit}: with full_size=True prefill, decode and attention can be measured")
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
            run = Run(Path(folder) / "checkpoint", config, dtype, device, against, file, report, quick, full_size)
            run.measure(chosen, seconds or (_QUICK_SECONDS if quick else _SECONDS))
            run.measure_loading(chosen)
            run.measure_attention(chosen, seconds or (_QUICK_SECONDS if quick else _SECONDS))
    place = {task.name: number for number, task in enumerate(dict.fromkeys([*chosen, *TASKS]))}
    return sorted(file.results, key=lambda result: place.get(result.task, len(place)))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Give PyTorch so many threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
