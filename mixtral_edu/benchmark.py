"""How fast this model is: against transformers on the same weights, and against what the machine could do.

    python -m mixtral_edu benchmark --against transformers --json results.json --picture results.png

Both systems load one checkpoint of random weights and work in one process, in turns; the ratio of each row is the
median over rounds. transformers is given its fastest setting for each task. On a CUDA device the same tasks run, with a
row for each way to compute attention, and `--tasks attention` times attention alone; that path has not run on a card
yet.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from statistics import median

import torch
from torch import nn

from mixtral_edu.benchmark_attention import (
    Attention,
    bytes_of_attention,
    dtypes_of,
    operations_of_attention,
    ways_of,
)
from mixtral_edu.benchmark_loading import OURS, measure_loading
from mixtral_edu.benchmark_peers import Transformers, check_peer, largest_difference
from mixtral_edu.benchmark_results import Result, ResultFile, amount, as_table, describe_machine, ratio_text
from mixtral_edu.benchmark_tasks import (
    FULL_TASKS,
    QUICK_TASKS,
    STEPS,
    TASKS,
    Decode,
    Task,
    bytes_read,
    choose_tasks,
    operations,
    work_on,
)
from mixtral_edu.benchmark_variants import Variant, benchmark_config, random_model, variants
from mixtral_edu.config import MixtralConfig
from mixtral_edu.model import MixtralForCausalLM
from mixtral_edu.placement import choose_device, choose_dtype, dtype_name
from mixtral_edu.quantization import checkpoint_bytes
from mixtral_edu.timing import paired_rounds, product_rate, read_bandwidth

__all__ = ["Result", "Task", "as_table", "benchmark", "benchmark_config"]
_TOLERANCE = 1e-3  # between the scores of both systems in float32
_SECONDS, _QUICK_SECONDS = 20.0, 2.0  # a row
_LOADINGS, _QUICK_LOADINGS = 5, 2


def benchmark(
    config: MixtralConfig | None = None,
    *,
    tasks: Sequence[str] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    threads: int | None = None,
    against: str | None = None,
    full_size: bool = False,
    quick: bool = False,
    seconds: float | None = None,
    json_file: str | Path | None = None,
    again: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Measure, and return one row for each task and form of the model.

    Args:
        config: sizes; `benchmark_config()` if None.
        tasks: names, or beginnings of names: "prefill", "decode-8", "attention"; see `Task`. If None, all of `TASKS`;
            of `QUICK_TASKS` or `FULL_TASKS` if quick or full size.
        dtype: of the checkpoint, which both systems run in; float32 if None, on CUDA bfloat16. Quantized forms are
            measured in bfloat16 and float32, against the peer in `dtype`.
        device: the CPU if None.
        threads: of PyTorch; as they are if None.
        against: "transformers", or None to measure our times alone.
        full_size: Mixtral-8x7B, or `config`, with weights made on the device: 93 GB in bfloat16, quantized forms too
            at first, of which no copy is on disk or in host memory; without a peer and without training.
        quick: fewer layers, forms and rounds, shorter contexts: under three minutes on a quiet machine.
        seconds: to spend on a row, beside warming up; at least three rounds are done.
        json_file: written after each row. What it holds of an equal run (machine, sizes, dtype, device, threads,
            against) is not measured again.
        again: measure it all the same.
        report: gets a line at each step.

    Raises:
        ValueError: an argument without meaning; the message names it.
        MemoryError: the device has no room for the full size.
        RuntimeError: the two systems disagree about the scores of the same weights.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    check_peer(against)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds}: more than 0 is wanted")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: at least 1 is wanted")
    if full_size and (against is not None or quick):
        raise ValueError("full_size=True: there is no room for another system beside it, and no quick form")
    config = config or (MixtralConfig.mixtral_8x7b() if full_size else benchmark_config(quick))
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
        } | ({"weights": "made on the device"} if full_size else {})
        machine = describe_machine(device)
        report(", ".join(f"{name} {value}" for name, value in (machine | settings).items() if name != "sizes"))
        file = ResultFile(None if json_file is None else Path(json_file), machine, settings, again)
        with tempfile.TemporaryDirectory(prefix="mixtral-edu-") as folder:
            run = _Run(Path(folder) / "checkpoint", config, dtype, device, against, file, report, quick, full_size)
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


class _Run:
    """One call of `benchmark`: makes the checkpoint, loads models when they are needed, and adds rows to a file."""

    def __init__(
        self,
        folder: Path,
        config: MixtralConfig,
        dtype: torch.dtype,
        device: torch.device,
        against: str | None,
        file: ResultFile,
        report: Callable[[str], None],
        quick: bool,
        full_size: bool,
    ):
        self.folder, self.config, self.dtype, self.device = folder, config, dtype, device
        self.against, self.file, self.report, self.quick, self.full_size = against, file, report, quick, full_size
        self.done = {(result.task, result.variant) for result in file.results}
        self.todo: list[tuple[Variant, Task]] = []
        self.peer: Transformers | None = None
        self.bandwidth = 0.0
        self.rates: dict[torch.dtype, float] = {}

    def measure(self, tasks: Sequence[Task], seconds: float) -> None:
        """Measure all tasks but loading, one form of the model at a time."""
        forms = [form for form in variants(self.dtype, self.device, self.quick) if form.packed or not self.full_size]
        self.todo = [(form, task) for form in forms for task in tasks if form.takes(task)]
        self.todo = [(form, task) for form, task in self.todo if (task.name, form.name) not in self.done]
        for form, rows in groupby(self.todo, key=lambda row: row[0]):
            self._measure_form(form, [task for _, task in rows], seconds)

    def _measure_form(self, variant: Variant, tasks: Sequence[Task], seconds: float) -> None:
        try:
            model = self._model(variant)
        except ValueError as error:  # sizes that cannot be quantized so, a backend that cannot run here
            self.report(f"{variant.name} is left out: {error}")
            return
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{variant.name} finds no room on {self.device}: {error}") from None
        if self.against and self.peer is None:
            self.peer = Transformers(self.folder, self.device, with_flex=not self.quick)
        if variant.dtype == self.dtype == torch.float32 and variant.quantization is None and self.peer:
            _require_agreement(model, self.peer)
        for task in tasks:
            number = self.todo.index((variant, task)) + 1
            self.report(f"row {number} of {len(self.todo)}: {task.name}, {variant.name}")
            try:
                self._add(self._result(model, variant, task, seconds))
            except RuntimeError as error:  # a GPU's memory was not enough; there is no C++ compiler
                is_of_compiler = variant.compiled and isinstance(error, compiler_errors())
                if not is_of_compiler and not isinstance(error, torch.OutOfMemoryError):
                    raise
                self.report(f"    left out: {error}".partition("\n")[0])

    def measure_loading(self, tasks: Sequence[Task]) -> None:
        """Measure import, loading and memory in processes of their own."""
        name, last = "loading", "memory to load"
        if Task.parse(name) not in tasks or (name, last) in self.done:
            return
        self._make_checkpoint()
        rounds = _QUICK_LOADINGS if self.quick else _LOADINGS
        self.report(f"loading, {rounds} times and once to warm up")
        self.peer = None  # its memory may be needed
        systems = [OURS, self.against] if self.against else [OURS]
        loadings = measure_loading(systems, self.folder, str(self.device), torch.get_num_threads(), rounds)

        def add(variant: str, field: str, unit: str = "s", floor: float | None = None, floor_from: str = "") -> None:
            ours, *theirs = [tuple(loading[field] for loading in loadings[system]) for system in systems]
            self._add(Result(name, variant, ours, *theirs, unit=unit, against=self.against or "",
                             setting=dtype_name(self.dtype), floor=floor, floor_from=floor_from))  # fmt: skip

        torch_alone = median(loading["torch_seconds"] for loading in loadings[OURS])
        add("import", "import_seconds", floor=torch_alone, floor_from="torch alone")
        add("load", "load_seconds")
        add("peak memory", "peak_bytes", "bytes")
        weights = checkpoint_bytes(self.config, dtype=self.dtype)
        add(last, "extra_bytes", "bytes", floor=weights, floor_from="the weights")

    def measure_attention(self, tasks: Sequence[Task], seconds: float) -> None:
        """Measure attention alone: all ways in turns, each beside the one that writes all scores down."""
        for task in tasks:
            for dtype in dtypes_of(self.dtype, self.device) if task.kind == "attention" else ():
                names = {way: f"{way} {dtype_name(dtype)}" for way in ways_of(self.device)}
                if not any((task.name, name) in self.done for name in names.values()):
                    self.report(f"{task.name}, {dtype_name(dtype)}")
                    self._compare_attention(task, dtype, names, seconds)

    def _compare_attention(self, task: Task, dtype: torch.dtype, names: dict[str, str], seconds: float) -> None:
        works, found = {}, {}
        for way, name in names.items():
            try:
                work = Attention(way, self.config, task, dtype, self.device)
                found[way] = {"error": work.error(), "peak_bytes": work.peak_bytes()}
                works[way] = work
            except (ValueError, MemoryError, RuntimeError) as error:  # the last: memory, or a kernel for other cards
                self.report(f"    {name} is left out: {error}".partition("\n")[0])
        rounds = paired_rounds([*works.values()], seconds, self.device)
        times = {way: tuple(each) for way, each in zip(works, rounds, strict=True)}
        self.bandwidth = self.bandwidth or read_bandwidth(self.device)
        needed, rate = operations_of_attention(self.config, task), self._rate(dtype)
        moved = bytes_of_attention(self.config, task, dtype)
        floor, floor_from = max(
            (needed / rate, f"{needed / 1e9:.4g} GFLOP at {rate / 1e9:.4g} GFLOP/s"),
            (moved / self.bandwidth, f"{amount(moved, 'bytes')} at {amount(self.bandwidth, 'bytes')}/s"),
        )
        for way, ours in times.items():
            if "eager" in times and way != "eager":
                found[way] |= {"theirs": times["eager"], "against": "eager", "setting": names["eager"]}
            self._add(Result(task.name, names[way], ours, tokens=task.tokens, floor=floor, floor_from=floor_from,
                             **found[way]))  # fmt: skip

    def _rate(self, dtype: torch.dtype) -> float:
        if dtype not in self.rates:
            self.rates[dtype] = product_rate(dtype, self.device)
        return self.rates[dtype]

    def _model(self, variant: Variant) -> MixtralForCausalLM:
        if self.full_size:
            gc.collect()  # a compiled step and its model refer to each other, and two models have no room
            self.report(f"making {variant.name} on {self.device}")
            return variant.make(self.config, self.device)
        self._make_checkpoint()
        return variant.load(self.folder, self.device)

    def _make_checkpoint(self) -> None:
        if not self.folder.exists():
            self.report("making a checkpoint of random weights")
            random_model(self.config, self.dtype, self.device).save_pretrained(self.folder)

    def _result(self, model: MixtralForCausalLM, variant: Variant, task: Task, seconds: float) -> Result:
        """Measure one row."""
        works, found = [work_on(model, task)], {}
        steps = STEPS if task.kind == "decode" else 1
        if self.peer is not None:
            theirs, setting = self.peer.fastest(task)
            works.append(theirs)
            found = {
                "against": self.against,
                "setting": f"{setting}, {dtype_name(self.dtype)}",
                "tried": {str(other): trial / steps for other, trial in self.peer.tried[task].items()},
                "left_out": self.peer.left_out[task],
            }
        if variant.compiled:  # compiling is not a round
            works[0].prepare()
            works[0].run()
        times = [tuple(t / steps for t in each) for each in paired_rounds(works, seconds, self.device)]
        floor, floor_from = self._floor(model, variant, task, works[0])
        return Result(task.name, variant.name, *times, tokens=task.new_tokens, floor=floor, floor_from=floor_from,
                      **found)  # fmt: skip

    def _floor(self, model: MixtralForCausalLM, variant: Variant, task: Task, work: object) -> tuple[float, str]:
        """The least time of one pass or step, and where it comes from."""
        if isinstance(work, Decode):
            self.bandwidth = self.bandwidth or read_bandwidth(self.device)
            experts = work.experts_met()
            needed = bytes_read(model, task, experts)
            words = f"{amount(needed, 'bytes')} ({experts:.2f} experts a layer) at {amount(self.bandwidth, 'bytes')}/s"
            return needed / self.bandwidth, words
        needed, rate = operations(self.config, task), self._rate(variant.dtype)
        return needed / rate, f"{needed / 1e9:.4g} GFLOP at {rate / 1e9:.4g} GFLOP/s"

    def _add(self, result: Result) -> None:
        self.file.add(result)
        words = f"    {result.variant}: {amount(median(result.ours), result.unit)}"
        if result.theirs:
            words += f", theirs {amount(median(result.theirs), result.unit)}, {ratio_text(result.ratio)}"
        self.report(words)


def compiler_errors() -> tuple[type[Exception], ...]:
    """What `torch.compile` raises: where it cannot take a program, or finds no C++ compiler."""
    from torch._dynamo.exc import TorchDynamoException  # not at the top: it takes seconds
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _require_agreement(model: nn.Module, peer: Transformers) -> None:
    difference = largest_difference(model, peer)
    if not difference < _TOLERANCE:
        raise RuntimeError(f"both systems have the same weights, but their scores differ by {difference:.2g}")
