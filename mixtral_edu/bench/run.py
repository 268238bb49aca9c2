"""One run of the benchmark: rows for whole models, loading and attention, each written once it is measured."""

import gc
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

import torch
from torch import nn

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.bench.attention import bytes_of_attention, compare_attention, dtypes_of, row_name, ways_of
from mixtral_edu.bench.loading import OURS, measure_loading
from mixtral_edu.bench.peers import Transformers, largest_difference
from mixtral_edu.bench.results import (
    Result,
    ResultFile,
    amount,
    floor_by_bytes,
    floor_by_operations,
    ratio_text,
)
from mixtral_edu.bench.tasks import STEPS, Decode, Task, bytes_read, operations, work_on
from mixtral_edu.bench.timing import paired_rounds, product_rate, read_bandwidth
from mixtral_edu.bench.variants import Variant, choose_forms, random_model, variants
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.memory import dtype_name
from mixtral_edu.fast.cuda_graph import NotRecordable
from mixtral_edu.quantization.model import checkpoint_bytes

_TOLERANCE = 1e-3  # the scores of both systems may differ by this much in float32
_LOADINGS, _QUICK_LOADINGS = 5, 2


class Run:
    """One call of `benchmark`: make the checkpoint, load models when they are needed, and add rows to a file."""

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
        forms: Sequence[str] | None = None,
    ):
        self.folder, self.config, self.dtype, self.device = folder, config, dtype, device
        self.against, self.file, self.report = against, file, report
        self.quick = quick
        self.forms = choose_forms(forms, variants(dtype, device, quick))
        self.on_device = full_size and against is None  # a peer reads a checkpoint
        self.todo: list[tuple[Variant, Task]] = []
        self.peer: Transformers | None = None
        self.rates: dict[torch.dtype, float] = {}
        self.bandwidths: dict[tuple[torch.dtype, int], float] = {}

    def measure(self, tasks: Sequence[Task], seconds: float) -> None:
        """Measure all tasks of a whole model, one form at a time.

        Raises:
            MemoryError: no form fits in memory, or the peer does not fit next to it.
        """
        self.todo = [(form, task) for form in self.forms for task in tasks if form.takes(task)]
        self.todo = [(form, task) for form, task in self.todo if (task.name, form.name) not in self.file.done]
        rows = {form: [task for _, task in rows] for form, rows in groupby(self.todo, key=lambda row: row[0])}
        no_room = []
        for form, tasks_of_form in rows.items():
            try:
                model = self._model(form)
            except (ValueError, MemoryError) as error:  # these sizes cannot be quantized, or the backend cannot run
                self.report(f"{form.name} is skipped: {error}")
                no_room += [str(error)] if isinstance(error, MemoryError) else []
            else:
                self._measure_form(model, form, tasks_of_form, seconds)
                del model  # two models of full size do not fit in memory
                if form.compiled and "torch._dynamo" in sys.modules:
                    torch.compiler.reset()  # the compiler keeps a reference to the model and limits recompilations
        if rows and len(no_room) == len(rows) and not self.file.results:
            raise MemoryError(no_room[-1])

    def _measure_form(self, model: MixtralForCausalLM, variant: Variant, tasks: Sequence[Task], seconds: float) -> None:
        if self.against and self.peer is None:
            try:
                self.peer = Transformers(self.folder, self.device, with_flex=not self.quick)
            except torch.OutOfMemoryError as error:
                raise MemoryError(
                    f"{self.against} does not fit in the memory of {self.device} next to {variant.name}: "
                    "measure fewer layers, or this package alone"
                ) from error
        if variant.dtype == self.dtype == torch.float32 and variant.quantization is None and self.peer:
            _require_agreement(model, self.peer)
        for task in tasks:
            number = self.todo.index((variant, task)) + 1
            self.report(f"row {number} of {len(self.todo)}: {task.name}, {variant.name}")
            try:
                self._add(self._result(model, variant, task, seconds))
            except (RuntimeError, NotRecordable) as error:  # no memory, no C++ compiler, a step that waits for the host
                of_compiler = variant.compiled and isinstance(error, _compiler_errors())
                if not of_compiler and not isinstance(error, (NotRecordable, torch.OutOfMemoryError)):
                    raise
                reason = str(error).partition("\n")[0]
                self.report(f"    skipped: {reason}")
                if not of_compiler:  # once a compiler is installed, the row can be measured
                    self.file.leave_out(task.name, variant.name, reason)

    def measure_loading(self, tasks: Sequence[Task]) -> None:
        """Measure import, loading and memory in separate processes."""
        name, last = "loading", "memory to load"
        if Task.parse(name) not in tasks or (name, last) in self.file.done:
            return
        self._make_checkpoint()
        rounds = _QUICK_LOADINGS if self.quick else _LOADINGS
        self.report(f"loading: {rounds} times, after one warm-up")
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
        """Measure attention alone: all ways in turns, each compared with "eager", which stores all scores."""
        for task in tasks:
            for dtype in dtypes_of(self.dtype, self.device) if task.kind == "attention" else ():
                if any((task.name, row_name(way, dtype)) in self.file.done for way in ways_of(self.device)):
                    continue
                self.report(f"{task.name}, {dtype_name(dtype)}")
                rates = self._bandwidth(bytes_of_attention(self.config, task, dtype), dtype), self._rate(dtype)
                for row in compare_attention(self.config, task, dtype, self.device, seconds, *rates, self.report):
                    self._add(row)

    def _bandwidth(self, count: float, dtype: torch.dtype) -> float:
        """Return the most bytes per second at which `count` bytes can be read, some of them from caches."""
        size = 1 << (int(count).bit_length() - 1)  # a power of two, not above `count`
        if (dtype, size) not in self.bandwidths:
            self.bandwidths[dtype, size] = read_bandwidth(self.device, size, [dtype])
        return self.bandwidths[dtype, size]

    def _rate(self, dtype: torch.dtype) -> float:
        if dtype not in self.rates:
            self.rates[dtype] = product_rate(dtype, self.device)
        return self.rates[dtype]

    def _model(self, variant: Variant) -> MixtralForCausalLM:
        gc.collect()  # a compiled step and its model refer to each other, and two models may not fit in memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # graphs and libraries allocate memory outside PyTorch's cache
        try:
            if self.on_device:
                self.report(f"making {variant.name} on {self.device}")
                return variant.make(self.config, self.device)
            self._make_checkpoint()
            return variant.load(self.folder, self.device)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{self.device} is out of memory: {error}".partition("\n")[0]) from None

    def _make_checkpoint(self) -> None:
        if not self.folder.exists():
            self.report("making a checkpoint of random weights")
            random_model(self.config, self.dtype, self.device).save_pretrained(self.folder)

    def _result(self, model: MixtralForCausalLM, variant: Variant, task: Task, seconds: float) -> Result:
        """Measure one row."""
        works, found = [work_on(model, task)], {}
        steps = STEPS if task.kind == "decode" else 1
        peer = None if self.peer is None else self.peer.fastest(task)
        if peer is not None:
            theirs, setting = peer
            works.append(theirs)
            found = {
                "against": self.against,
                "setting": f"{setting}, {dtype_name(self.dtype)}",
                "tried": {str(other): trial / steps for other, trial in self.peer.tried[task].items()},
                "left_out": self.peer.left_out[task],
            }
        if variant.one_program:  # compiling or recording it does not count as a round
            works[0].prepare()
            works[0].run()
        times = [tuple(t / steps for t in each) for each in paired_rounds(works, seconds, self.device)]
        floor, floor_from = self._floor(model, variant, task, works[0])
        return Result(task.name, variant.name, *times, tokens=task.new_tokens, floor=floor, floor_from=floor_from,
                      **found)  # fmt: skip

    def _floor(self, model: MixtralForCausalLM, variant: Variant, task: Task, work: object) -> tuple[float, str]:
        """Return the least time of one pass or step, and how it is computed."""
        if isinstance(work, Decode):
            experts = work.experts_met()
            note = f" ({experts:.2f} experts per layer)"
            count = bytes_read(model, task, experts)
            return floor_by_bytes(count, self._bandwidth(count, variant.dtype), note)
        return floor_by_operations(operations(self.config, task), self._rate(variant.dtype))

    def _add(self, result: Result) -> None:
        self.file.add(result)
        words = f"    {result.variant}: {amount(median(result.ours), result.unit)}"
        if result.theirs:
            words += f", theirs {amount(median(result.theirs), result.unit)}, {ratio_text(result.ratio)}"
        self.report(words)


def _compiler_errors() -> tuple[type[Exception], ...]:
    """Return what `torch.compile` raises when it cannot compile a program or finds no C++ compiler."""
    from torch._dynamo.exc import TorchDynamoException  # not at the top, because this import takes seconds
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


def _require_agreement(model: nn.Module, peer: Transformers) -> None:
    difference = largest_difference(model, peer)
    if not difference < _TOLERANCE:
        raise RuntimeError(
            f"both systems have the same weights, but their scores differ by {difference:.2g}; "
            f"the difference must be below {_TOLERANCE:g}"
        )
