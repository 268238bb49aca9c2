"""`bench.run`: rows of whole models, which of them are skipped, and why."""

import json
import re
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from benchmark_runs import TINY_RUN
from mixtral_edu import MixtralForCausalLM
from mixtral_edu.bench.command import benchmark
from mixtral_edu.bench.peers import Transformers
from mixtral_edu.bench.tasks import STEPS, Task
from mixtral_edu.bench.variants import Variant, random_model
from mixtral_edu.fast.cuda_graph import GraphedStep, NotRecordable


def test_a_form_that_cannot_be_compiled_is_left_out(config, small_rates, monkeypatch: pytest.MonkeyPatch):
    def no_compiler(forward):
        def step(*args, **options):
            raise InvalidCxxCompiler()

        return step

    monkeypatch.setattr(torch, "compile", no_compiler)
    lines: list[str] = []
    results = benchmark(config, tasks=["decode-1-8"], seconds=0.01, report=lines.append)
    assert any(line.startswith("    skipped: No working C++ compiler found") for line in lines)
    assert "plain float32" in {result.variant for result in results}
    assert "compiled float32" not in {result.variant for result in results}


@pytest.mark.usefixtures("small_rates")
def test_compiling_is_not_a_round(config, monkeypatch: pytest.MonkeyPatch):
    def compile_slowly(forward):
        steps = []

        def step(*args, **options):
            steps.append(1)
            time.sleep(2 if len(steps) == 1 else 0)
            return forward(*args, **options)

        return step

    monkeypatch.setattr(torch, "compile", compile_slowly)
    monkeypatch.setattr("mixtral_edu.bench.timing._LONG", 1.0)
    results = benchmark(config, tasks=["decode-1-8"], seconds=0.01, threads=1)
    (compiled,) = [result for result in results if result.variant == "compiled float32"]
    assert max(compiled.ours) < 1 / STEPS


def test_the_full_size_needs_room_for_its_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.checkpoints.memory.free_memory", lambda device: 20_000_000_000)
    lines = []
    with pytest.raises(MemoryError, match="a model of these sizes.* needs .* GB on cpu.* 20 GB are free"):
        benchmark(full_size=True, dtype="bfloat16", report=lines.append)
    found = [re.match("(.*) is skipped: a model of these sizes.* needs (.*) on cpu", line) for line in lines]
    sizes = dict(match.groups() for match in found if match)
    alone = {"plain bfloat16": "93.4 GB", "int8 bfloat16": "47 GB"}
    with_copies = {"compiled bfloat16": "184 GB", "int4 bfloat16": "49.9 GB"}
    assert sizes.items() >= (alone | with_copies).items()


@pytest.mark.usefixtures("small_rates")
def test_some_layers_of_the_full_size_meet_a_peer(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    file = tmp_path / "results.json"
    run = {"layers": 1, "tasks": ["decode-2-5"], "seconds": 0.01, "json_file": file}
    results = benchmark(config, full_size=True, against="transformers", **run)
    assert all(len(result.theirs) >= 3 for result in results)
    assert {result.variant for result in results} >= {"plain float32", "compiled float32", "int4 bfloat16"}
    (stored,) = json.loads(file.read_text())["runs"]
    assert stored["settings"]["sizes"]["num_hidden_layers"] == 1 and "weights" not in stored["settings"]


@pytest.mark.usefixtures("small_rates")
def test_a_step_that_cannot_be_one_program_is_left_out_with_the_reason(config, tmp_path, monkeypatch):
    def refuse(step, undo, device):
        raise NotRecordable("graph=True: the step waits for the host")

    monkeypatch.setattr("mixtral_edu.fast.cuda_graph.record", refuse)
    forms = [Variant(torch.float32, prepared=True, graph=True), Variant(torch.float32, prepared=True)]
    monkeypatch.setattr("mixtral_edu.bench.run.variants", lambda *_: forms)

    def prepared(self, model):
        model.prepare_for_inference()
        model.prepared.step = GraphedStep(model.forward) if self.graph else None
        return model

    monkeypatch.setattr(Variant, "_prepared", prepared)
    lines, run = [], {"tasks": ["decode-2-5"], "seconds": 0.01, "json_file": tmp_path / "results.json"}
    (result,) = benchmark(config, **run, report=lines.append)
    assert result.variant == "prepared float32" and "    skipped: graph=True: the step waits for the host" in lines
    lines.clear()
    assert benchmark(config, **run, report=lines.append) == [result] and len(lines) == 1, "nothing is tried again"
    benchmark(config, **run, report=lines.append, again=True)
    assert "    skipped: graph=True: the step waits for the host" in lines


@pytest.mark.usefixtures("small_rates")
def test_a_run_that_finds_no_room_any_more_returns_what_it_had_found(config, tmp_path: Path, monkeypatch):
    run = {"full_size": True, "tasks": ["decode-2-5"], "seconds": 0.01, "json_file": tmp_path / "results.json"}
    form = Variant(torch.float32, prepared=True)
    monkeypatch.setattr("mixtral_edu.bench.run.variants", lambda *_: [form])
    found = benchmark(config, **run)
    monkeypatch.setattr("mixtral_edu.bench.run.variants", lambda *_: [form, replace(form, experts="grouped")])
    monkeypatch.setattr(Variant, "name", property(lambda self: f"{self.experts or 'plain float32'}"))
    monkeypatch.setattr("mixtral_edu.checkpoints.memory.free_memory", lambda device: 0)
    assert benchmark(config, **run) == found != []


@pytest.mark.usefixtures("small_rates")
def test_where_no_setting_of_the_peer_runs_our_side_is_measured_alone(config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Transformers, "_try", lambda self, task, work, setting: None)
    results = benchmark(config, against="transformers", **TINY_RUN | {"tasks": ["decode-2-5"]})
    assert results and all(result.theirs == () and result.ratio is None for result in results)


@pytest.mark.usefixtures("small_rates")
def test_the_full_size_is_made_on_the_device_form_by_form(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_checkpoint(*args, **options):
        raise AssertionError("a checkpoint was written or read")

    monkeypatch.setattr(MixtralForCausalLM, "save_pretrained", no_checkpoint)
    monkeypatch.setattr(MixtralForCausalLM, "from_pretrained", no_checkpoint)
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    alive: list[weakref.ref] = []

    def make(*args):
        assert not any(model() is not None for model in alive)  # two would not fit
        model = random_model(*args)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr("mixtral_edu.bench.variants.random_model", make)
    monkeypatch.setattr("mixtral_edu.bench.command.FULL_TASKS", (Task.parse("prefill-9"), Task.parse("decode-2-5")))
    file = tmp_path / "results.json"
    results = benchmark(config, full_size=True, seconds=0.01, json_file=file)
    rounded = {f"{kind} {dtype}" for kind in ("int8", "int4") for dtype in ("bfloat16", "float32")}
    both, forms = {"plain float32"} | rounded, {"plain float32", "compiled float32", "plain int4 bfloat16"} | rounded
    assert {(r.task, r.variant) for r in results} == {
        *(("decode-2-5", form) for form in both | {"compiled float32"}),
        *(("prefill-9", form) for form in both | {"plain int4 bfloat16"}),
    }
    (run,) = json.loads(file.read_text())["runs"]
    assert run["settings"]["weights"] == "made on the device" and len(alive) == len(forms)


@pytest.mark.usefixtures("small_rates")
def test_a_run_without_a_peer_measures_every_form_and_goes_on(config, tmp_path: Path):
    lines, threads = [], torch.get_num_threads()
    run = TINY_RUN | {"json_file": tmp_path / "results.json"}
    results = benchmark(config, **run | {"tasks": ["decode-2-5"]}, report=lines.append)
    assert len(results) == 3 and "row 3 of 3: decode-2-5, int4 bfloat16" in lines
    more = benchmark(config, **run)
    assert [r for r in more if r.task == "decode-2-5"] == results  # not measured again
    assert [r.task for r in more] == ["prefill-9"] * 4 + ["decode-2-5"] * 3 + ["train-2-5"]
    assert all(r.ratio is None and r.share_of_floor > 0 and len(r.ours) >= 3 for r in more)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("small_rates")
def test_sizes_that_cannot_be_quantized_are_left_out_with_the_reason(make_config):
    lines = []
    results = benchmark(make_config(), **TINY_RUN | {"tasks": ["prefill-9"]}, report=lines.append)
    assert [r.variant for r in results] == ["plain float32", "int8 bfloat16"]
    assert any("int4 bfloat16 is skipped" in line and "group_size=64" in line for line in lines)


def test_systems_that_disagree_are_not_compared(config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.bench.run.largest_difference", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match="scores differ by nan"):
        benchmark(config, **TINY_RUN, against="transformers")


def test_a_floor_takes_the_speed_of_reading_as_many_bytes_in_the_dtype_of_the_form(config, monkeypatch):
    """What caches hold is read faster, so a small model must not be compared with the speed of memory."""
    asked = []
    monkeypatch.setattr("mixtral_edu.bench.run.read_bandwidth", lambda *kind: asked.append(kind) or 1e9)
    rows = benchmark(config, tasks=["decode-1-8", "decode-2-8"], forms=["plain", "int8 bfloat16"], seconds=0.01)
    assert len(rows) == 4 and len({*map(str, asked)}) == len(asked), "each is measured once"
    for row in rows:
        dtype, count = getattr(torch, row.variant.split()[1]), row.floor * 1e9
        assert any(dtypes == [dtype] and size <= count < 2 * size for _, size, dtypes in asked)


@pytest.mark.gpu
def test_the_full_size_on_a_gpu_is_made_there(config):
    results = benchmark(config, full_size=True, device="cuda", tasks=["prefill-9", "decode-2-5"], seconds=0.01)
    plain, graphs = {"prepared bfloat16 sdpa", "prepared bfloat16 flash_attention_2"}, {"compiled graph bfloat16"}
    assert plain | graphs | {"graph bfloat16", "graph int4 bfloat16"} <= {r.variant for r in results}
