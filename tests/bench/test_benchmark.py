"""The benchmark compares what it says: equal weights, paired times, floors counted right. No time is judged."""

import json
import subprocess
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.flop_counter import FlopCounterMode

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.__main__ import main
from mixtral_edu.bench.attention import Attention, bytes_of_attention, operations_of_attention
from mixtral_edu.bench.command import benchmark
from mixtral_edu.bench.loading import _in_new_process, measure_loading
from mixtral_edu.bench.peers import Setting, Transformers
from mixtral_edu.bench.results import Result, ResultFile, as_table, describe_machine, stored_runs
from mixtral_edu.bench.tasks import (
    FULL_TASKS,
    QUICK_TASKS,
    STEPS,
    TASKS,
    Decode,
    Prefill,
    Task,
    bytes_read,
    choose_tasks,
    operations,
    work_on,
)
from mixtral_edu.bench.timing import paired_rounds, product_rate, read_bandwidth
from mixtral_edu.bench.variants import Variant, benchmark_config, random_model, variants
from mixtral_edu.experts import Expert
from mixtral_edu.fast.cuda_graph import GraphedStep, NotRecordable
from mixtral_edu.fast.linear import Linear
from mixtral_edu.masks import Visibility
from mixtral_edu.pretrained import init_module
from mixtral_edu.quantization.layers import Int4Linear
from mixtral_edu.quantization.model import quantize_model
from mixtral_edu.viz.benchmark import attention_by_length, ratios_and_floors

matplotlib.use("Agg")

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "vocab_size": 96}  # what quantization can take


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def config(make_config) -> MixtralConfig:
    return make_config(**SIZES)


@pytest.fixture(scope="module")
def checkpoint(config: MixtralConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "checkpoint"
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> Transformers:
    return Transformers(checkpoint, CPU)


class Noted:
    """Work that writes down when it is done."""

    def __init__(self, name: str, diary: list[str]):
        self.name, self.diary = name, diary

    def prepare(self) -> None:
        self.diary.append(f"prepare {self.name}")

    def run(self) -> None:
        self.diary.append(self.name)


def test_rounds_alternate_their_order_after_one_to_warm_up():
    diary = []
    times = paired_rounds([Noted("a", diary), Noted("b", diary)], budget=0.0, device=CPU, least=3)
    assert [len(each) for each in times] == [3, 3]
    assert [entry for entry in diary if " " not in entry] == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert diary[::2] == [f"prepare {name}" for name in diary[1::2]]


def test_the_first_round_counts_if_it_is_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.bench.timing.seconds_of", lambda run, device: (run(), 6.0)[1])
    diary = []
    times = paired_rounds([Noted("a", diary), Noted("b", diary)], budget=0.0, device=CPU, least=3)
    assert times == [[6.0] * 3] * 2 and diary.count("a") == 3


def test_rounds_end_at_the_most():
    assert [len(each) for each in paired_rounds([Noted("a", [])], budget=60.0, device=CPU, most=4)] == [4]


def test_ratios_are_taken_round_by_round():
    result = Result("prefill-8", "plain", ours=(1.0, 2.0, 10.0), theirs=(2.0, 6.0, 10.0), floor=0.5)
    assert result.ratio == (1.5, 2.0, 2.5)  # of 2, 3 and 1; the medians' ratio would be 3
    assert result.share_of_floor == 0.25
    alone = replace(result, theirs=(), floor=None)
    assert alone.ratio is None and alone.share_of_floor is None


def test_rates_count_bytes_and_operations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.bench.timing._fastest", lambda run, device: (run(), 0.5)[1])
    assert read_bandwidth(CPU, floats=4096) == 4 * 4096 / 0.5
    assert product_rate(torch.float32, CPU, size=64) == 2 * 64**3 / 0.5


@pytest.mark.parametrize("name", ["prefill-512", "decode-8-4096", "train-4-256", "attention-9-4", "loading"])
def test_a_task_is_known_by_its_name(name):
    assert Task.parse(name).name == name


def test_new_tokens_are_those_that_one_pass_takes_in():
    tokens = {name: Task.parse(name).new_tokens for name in ("prefill-512", "decode-8-4096", "train-4-256")}
    assert tokens == {"prefill-512": 512, "decode-8-4096": 8, "train-4-256": 1024}


@pytest.mark.parametrize(
    "name", ["prefil-512", "prefill", "decode-8", "prefill-0", "train-4-256-1", "loading-3", "attention-9", ""]
)
def test_a_task_of_another_form_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*prefill-TOKENS"):
        Task.parse(name)


def test_beginnings_of_names_choose_the_usual_tasks():
    names = [task.name for task in choose_tasks(["decode-8", "prefill-7", "decode", "loading"])]
    assert names == ["decode-8-64", "decode-8-4096", "prefill-7", "decode-1-64", "decode-1-4096", "loading"]


def test_the_measured_model_has_the_published_size():
    assert round(benchmark_config().parameter_counts().total / 1e6) == 214


def flops(model: torch.nn.Module, run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["prefill-5", "train-3-5"])
def test_operations_are_those_that_pytorch_counts(make_config, name):
    config, task = make_config(sliding_window=None, attn_implementation="eager"), Task.parse(name)
    model, T = MixtralForCausalLM(config), task.tokens
    work = work_on(model, task)
    work.prepare()
    # Eager attention computes all T² scores; those that no query may see are not needed.
    idle = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * (T * T - T * (T + 1) // 2)
    assert operations(config, task) == flops(model, work.run) - task.batch * idle * (3 if task.kind == "train" else 1)


def test_operations_of_attention_follow_the_window(make_config):
    def pairs(window: int | None) -> int:
        config = make_config(sliding_window=window)
        a_pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return (operations(config, Task.parse("prefill-9")) - operations(config, Task.parse("prefill-8"))) // a_pair

    assert pairs(None) - pairs(4) == 9 - 4  # what the ninth token sees


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_the_bytes_of_a_step_are_those_of_the_modules_that_it_calls(config, quantization):
    model = MixtralForCausalLM(replace(config, experts_implementation="reference")).eval()
    if quantization:
        quantize_model(model, quantization)
    task = Task("decode", batch=3, tokens=5)
    work = Decode(model, task)
    called: list[set[torch.nn.Module]] = []  # in each step
    model.register_forward_pre_hook(lambda *_: called.append(set()))
    for leaf in model.modules():
        if not list(leaf.children()) and leaf is not model.model.embed_tokens:
            leaf.register_forward_pre_hook(lambda module, _: called[-1].add(module))
    work.prepare()
    work.run()
    assert len(called) == STEPS
    weights = sum(t.nbytes for step in called for leaf in step for t in (*leaf.parameters(), *leaf.buffers())) / STEPS
    rows = task.batch * config.hidden_size * 4
    stored = 0
    for length in range(task.tokens + 1, task.tokens + STEPS + 1):
        keys = min(length, config.sliding_window)
        stored += 2 * config.num_hidden_layers * task.batch * config.num_key_value_heads * keys * config.head_dim * 4
    assert bytes_read(model, task, work.experts_met()) == pytest.approx(weights + rows + stored / STEPS)


def test_the_experts_of_a_step_are_those_that_run(config):
    model = MixtralForCausalLM(replace(config, experts_implementation="reference")).eval()
    work = Decode(model, Task("decode", batch=3, tokens=5))
    met: list[set] = []
    for layer in model.model.layers:
        layer.block_sparse_moe.register_forward_pre_hook(lambda *_: met.append(set()))
    for module in model.modules():
        if isinstance(module, Expert):
            module.register_forward_pre_hook(lambda module, _: met[-1].add(module))
    assert work.experts_met() == sum(map(len, met)) / (STEPS * config.num_hidden_layers)
    assert 2 < work.experts_met() <= 5


@pytest.mark.parametrize("system", ["ours", "theirs"])
def test_a_context_repeated_is_that_of_equal_rows(checkpoint, peer, system):
    model = MixtralForCausalLM.from_pretrained(checkpoint) if system == "ours" else peer.model
    work = Decode(model, Task("decode", batch=3, tokens=11))
    alone = Decode(model, Task("decode", batch=1, tokens=11))
    work.prepare()
    alone.prepare()
    with torch.no_grad():
        for token in work.ids[1]:
            ids = token.expand(3, 1)
            batch, single = (
                model(ids[:rows], use_cache=True, logits_to_keep=1, **{each.cache_name: each.cache}).logits
                for each, rows in ((work, 3), (alone, 1))
            )
            torch.testing.assert_close(batch, single.expand_as(batch))


def test_decoding_begins_each_round_at_the_same_place(checkpoint, peer):
    for model in (MixtralForCausalLM.from_pretrained(checkpoint), peer.model):
        work, lengths = Decode(model, Task("decode", batch=2, tokens=9)), []
        for _ in range(2):
            work.prepare()
            lengths.append(work.cache.get_seq_length())
            work.run()
            lengths.append(work.cache.get_seq_length())
        assert lengths == [9, 9 + STEPS] * 2


def test_a_training_step_leaves_the_weights_and_no_gradients(checkpoint, peer):
    for model in (MixtralForCausalLM.from_pretrained(checkpoint), peer.model):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        work = work_on(model, Task.parse("train-3-40"))  # enough tokens for each expert to get some
        work.prepare()
        assert model.training
        with_gradient = []
        note = lambda p, into=with_gradient: into.append(p.grad.any())  # noqa: E731
        hooks = [p.register_post_accumulate_grad_hook(note) for p in model.parameters()]
        work.run()
        for hook in hooks:
            hook.remove()
        assert len(with_gradient) == len(before) and all(with_gradient)
        assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


def test_both_systems_hold_the_same_weights_in_the_dtype_of_the_checkpoint(checkpoint, peer, tmp_path):
    task = Task.parse("prefill-20")
    ours, theirs = MixtralForCausalLM.from_pretrained(checkpoint), peer.model.eval()
    ids = Prefill(ours, task).ids
    assert torch.equal(ids, Prefill(theirs, task).ids)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    ours.bfloat16().save_pretrained(tmp_path / "half")
    assert Transformers(tmp_path / "half", CPU).model.dtype == torch.bfloat16


def test_a_setting_of_the_peer_takes_effect(peer, monkeypatch: pytest.MonkeyPatch):
    from transformers.integrations import moe
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    met, seen = [], {}

    def note(functions, name: str) -> None:
        original = functions[name]
        noting = lambda *inputs, **options: (met.append(name), original(*inputs, **options))[1]  # noqa: E731
        monkeypatch.setitem(functions._global_mapping, name, noting)

    note(ALL_ATTENTION_FUNCTIONS, "sdpa")
    note(moe.ALL_EXPERTS_FUNCTIONS, "grouped_mm")
    for setting in (Setting(a, e) for a in ("sdpa", "eager") for e in ("eager", "grouped_mm")):
        peer.use(setting)
        met.clear()
        with torch.no_grad():
            peer.model.eval()(torch.arange(3, 12)[None])
        seen[setting] = set(met)
    assert seen == {setting: {*setting} - {"eager"} for setting in seen}


def test_the_fastest_setting_is_chosen_once_for_each_task(peer, monkeypatch: pytest.MonkeyPatch):
    seconds = {Setting("sdpa", "eager"): 5.0, Setting("sdpa", "grouped_mm"): 3.0, Setting("eager", "grouped_mm"): 4.0}
    current, trials = [], []

    def seconds_of_current(*_) -> float:
        trials.append(current[-1])
        return seconds[current[-1]]

    monkeypatch.setattr(peer, "use", current.append)
    monkeypatch.setattr("mixtral_edu.bench.peers.seconds_of", seconds_of_current)
    task = Task.parse("prefill-6")
    for _ in range(2):
        work, setting = peer.fastest(task)
        assert isinstance(work, Prefill) and setting == current[-1] == Setting("sdpa", "grouped_mm")
    assert trials == list(seconds) and peer.tried[task] == seconds and peer.left_out[task] == {}


def test_a_setting_that_fails_is_left_out_with_its_reason(peer, monkeypatch: pytest.MonkeyPatch):
    use = peer.use

    def refuse(setting: Setting) -> None:
        if setting.experts == "grouped_mm":
            raise RuntimeError("strides should be multiple of 16 bytes\nand more")
        use(setting)

    monkeypatch.setattr(peer, "use", refuse)
    task = Task.parse("prefill-7")
    assert peer.fastest(task)[1].experts == "eager"
    assert peer.left_out[task] == {"sdpa, grouped_mm": "strides should be multiple of 16 bytes"}


def test_flex_attention_is_tried_for_long_texts_if_it_compiles_in_time(peer, monkeypatch: pytest.MonkeyPatch):
    def endless(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    def others(name: str) -> list[str]:
        peer.left_out[Task.parse(name)] = {}
        return list(peer._other_attention(Task.parse(name)))

    monkeypatch.setattr("subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    assert others("prefill-2048") == ["eager", "flex_attention"]
    assert others("prefill-512") == others("train-1-2048") == others("decode-8-4097") == ["eager"]
    assert others("prefill-4098") == ["flex_attention"]
    assert peer.left_out[Task.parse("prefill-4098")] == {"eager": "holds 4,098² scores per head"}
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nInductorError: no compiler\n")
    for tokens, run, reason in ((2049, lambda *_, **__: failed, "no compiler"), (2050, endless, "within 60 s")):
        monkeypatch.setattr("subprocess.run", run)
        assert others(f"prefill-{tokens}") == ["eager"]
        assert reason in peer.left_out[Task.parse(f"prefill-{tokens}")]["flex_attention"]


def test_loading_is_measured_in_fresh_processes_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    started = []

    def process(system, *_):
        started.append(system)
        return {"load_seconds": len(started)}

    monkeypatch.setattr("mixtral_edu.bench.loading._in_new_process", process)
    times = measure_loading(["mixtral_edu", "transformers"], tmp_path, "cpu", threads=1, rounds=2)
    assert started == ["mixtral_edu", "transformers", "transformers", "mixtral_edu", "mixtral_edu", "transformers"]
    assert times == {
        "mixtral_edu": [{"load_seconds": 4}, {"load_seconds": 5}],
        "transformers": [{"load_seconds": 3}, {"load_seconds": 6}],
    }


def test_memory_of_loading_is_that_of_the_process_alone(checkpoint: Path):
    held = torch.ones(2**28)  # 1 GiB here must not count there
    loading = _in_new_process("mixtral_edu", checkpoint, "cpu", threads=1)
    assert 0 < loading["extra_bytes"] < loading["peak_bytes"] < held.nbytes
    assert 0 < loading["torch_seconds"] < loading["import_seconds"]


def test_a_process_that_fails_says_why(tmp_path: Path):
    with pytest.raises(RuntimeError, match="loading with mixtral_edu failed: FileNotFoundError"):
        measure_loading(["mixtral_edu"], tmp_path / "nothing", "cpu", threads=1, rounds=1)


def test_a_file_of_results_goes_on_where_machine_and_settings_are_the_same(tmp_path: Path):
    path, machine = tmp_path / "results.json", describe_machine(CPU)
    row = Result("prefill-8", "plain float32", ours=(1.0, 2.0), theirs=(2.0, 5.0), tried={"sdpa, eager": 2.0})
    ResultFile(path, machine, {"threads": 1}).add(row)
    assert ResultFile(path, machine, {"threads": 1}).results == [row]
    assert ResultFile(path, machine, {"threads": 2}).results == []
    assert ResultFile(path, machine | {"torch": "1.0"}, {"threads": 1}).results == []
    assert ResultFile(path, machine, {"threads": 1}, again=True).results == []
    ResultFile(path, machine, {"threads": 2}).add(row)
    assert len(json.loads(path.read_text())["runs"]) == 2


def test_stored_runs_come_with_where_and_when():
    run = stored_runs("cpu")[0]
    assert run.settings["device"] == "cpu" and isinstance(run.results[0], Result)
    day = min(result.date for result in run.results)[:10]
    assert run.origin.startswith(f"{day}, {run.machine['processor']}, torch {run.machine['torch']}")
    on_card = run._replace(machine=run.machine | {"gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"})
    assert on_card.origin.startswith(f"{day}, NVIDIA H200, driver 580.1, CUDA 13.0, torch ")
    assert stored_runs("abacus") == []


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "mixtral"}')
    with pytest.raises(ValueError, match="config.json.*no runs"):
        ResultFile(path, {}, {})


def test_forms_on_a_card_have_a_row_for_each_attention():
    names = [variant.name for variant in variants(torch.bfloat16, torch.device("cuda"))]
    ways = {f"{form} bfloat16 {way}" for form in ("plain", "packed") for way in ("eager", "sdpa", "flash_attention_2")}
    whole = {"compiled bfloat16", "graph bfloat16", "compiled graph bfloat16"}
    rounded = {f"{form}{kind} bfloat16" for form in ("", "graph ") for kind in ("int8", "int4")}
    assert {*names} == {*ways, *whole, *rounded} and len(names) == len({*names})


def test_a_quick_run_rounds_to_integers_in_bfloat16_alone():
    names = [variant.name for variant in variants(torch.float32, CPU, quick=True)]
    rounded = ["int8 bfloat16", "int4 bfloat16", "plain int4 bfloat16"]
    assert names == ["plain float32", "packed float32", *rounded]


def test_each_form_is_measured_where_it_applies():
    forms = variants(torch.float32, CPU)

    def rows(task: str) -> list[str]:
        return [form.name for form in forms if form.takes(Task.parse(task))]

    assert rows("train-4-256") == ["plain float32"] and rows("loading") == []
    assert rows("prefill-2048") == ["plain float32", "packed float32"]
    assert set(rows("decode-8-4096")) - set(rows("prefill-512")) == {"compiled float32"}
    assert rows("decode-8-4096") == [form.name for form in forms if not form.name.startswith("plain int")]
    assert set(rows("prefill-512")) >= {"int4 float32", "int8 bfloat16", "int4 bfloat16", "plain int4 bfloat16"}


def test_the_compiled_form_decodes_with_its_compiled_step(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    steps = []
    monkeypatch.setattr(torch, "compile", lambda forward: lambda *a, **k: steps.append(1) or forward(*a, **k))
    model = Variant(torch.float32, packed=True, compiled=True, experts="grouped").load(checkpoint, CPU)
    work = Decode(model, Task.parse("decode-2-8"))
    work.prepare()
    work.run()
    assert len(steps) == STEPS


def test_a_form_that_cannot_be_compiled_is_left_out(config, small_rates, monkeypatch: pytest.MonkeyPatch):
    def no_compiler(forward):
        def step(*args, **options):
            raise InvalidCxxCompiler()

        return step

    monkeypatch.setattr(torch, "compile", no_compiler)
    lines: list[str] = []
    results = benchmark(config, tasks=["decode-1-8"], seconds=0.01, report=lines.append)
    assert any(line.startswith("    skipped: No working C++ compiler found") for line in lines)
    assert {result.variant for result in results} >= {"plain float32", "packed float32"}
    assert "compiled float32" not in {result.variant for result in results}


def test_a_packed_form_reads_copies(checkpoint: Path):
    plain, packed = (Variant(torch.float32, packed=packed).load(checkpoint, CPU) for packed in (False, True))
    weights = [dict(model.named_parameters()) for model in (plain, packed)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert [model.lm_head.product is not None for model in (plain, packed)] == [False, True]


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure bandwidth and product rate on small tensors: quick, and of no meaning."""
    monkeypatch.setattr("mixtral_edu.bench.run.read_bandwidth", lambda device: read_bandwidth(device, floats=4096))
    monkeypatch.setattr("mixtral_edu.bench.run.product_rate", lambda *kind: product_rate(*kind, size=64))


@pytest.mark.numerics
@pytest.mark.parametrize("way", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["attention-200-200", "attention-200-37", "attention-9-64"])
def test_attention_alone_is_exact(config, way, name):
    task = Task.parse(name)
    work = Attention(way, config, task, torch.float64, CPU)
    W = min(task.window, task.tokens)
    positions = torch.arange(task.tokens)
    distance = positions[:, None] - positions
    mask = (distance >= 0) & (distance < W)
    k, v = (x.repeat_interleave(work.q.shape[1] // x.shape[1], 1) for x in (work.k, work.v))
    exact = F.scaled_dot_product_attention(work.q, k, v, mask)
    assert (work.run() - exact).abs().max() < 1e-6 and work.error() < 1e-6  # "eager" has a softmax in float32
    assert operations_of_attention(config, task) == 4 * mask.sum() * work.q.shape[1] * work.q.shape[3]
    assert bytes_of_attention(config, task, torch.float64) == sum(x.nbytes for x in (work.q, work.k, work.v, exact))


def test_the_error_of_attention_is_seen(config):
    work = Attention("sdpa", config, Task.parse("attention-200-37"), torch.float32, CPU)
    right, work.attend = work.attend, lambda *inputs: 1.01 * right(*inputs)
    exact = right(work.q, work.k, work.v, work.visibility)
    assert 0.001 < work.error() <= 0.011 * exact.abs().max()
    work.attend = lambda q, k, v, visibility: right(q, k, v, Visibility(*(visibility.query_positions,) * 2, 36))
    assert work.error() > 0.01


def test_attention_alone_needs_room_for_scores_and_a_card_for_its_kernel(config, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        Attention("flash_attention_2", config, Task.parse("attention-8-8"), torch.bfloat16, CPU)
    monkeypatch.setattr("mixtral_edu.checkpoints.memory.free_memory", lambda device: 1_000_000)
    with pytest.raises(MemoryError, match="the scores of 4,096 tokens in 4 heads"):
        Attention("eager", config, Task.parse("attention-4096-64"), torch.float32, CPU)


def test_beginnings_of_names_are_those_of_the_usual_tasks():
    assert [task.name for task in choose_tasks(["prefill"], FULL_TASKS)] == ["prefill-4096", "prefill-32768"]


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


def test_attention_is_measured_by_name_only_with_both_windows():
    names = [task.name for task in choose_tasks(["attention"], FULL_TASKS)]
    assert {"attention-512-512", "attention-32768-4096", "attention-32768-32768"} <= {*names}
    assert "attention-512-4096" not in names and not {*names} & {task.name for task in choose_tasks(None)}
    longest = [max(task.tokens for task in choose_tasks(["attention"], usual)) for usual in (QUICK_TASKS, TASKS)]
    assert longest == [2048, 16384]


def test_a_table_without_rows_is_its_head():
    assert as_table([]).split() == as_table([Result("prefill-9", "plain", (1.0,))]).splitlines()[0].split()


@pytest.mark.usefixtures("small_rates")
def test_a_run_of_attention_sets_each_way_beside_eager_and_goes_on(config, tmp_path, monkeypatch):
    ways = ("eager", "sdpa", "flash_attention_2")
    monkeypatch.setattr("mixtral_edu.bench.attention.ways_of", lambda device: ways)
    run = {"seconds": 0.01, "json_file": tmp_path / "results.json", "threads": 1}
    lines: list[str] = []
    results = benchmark(config, tasks=["attention-40-40"], report=lines.append, **run)
    assert [(r.task, r.variant) for r in results] == [("attention-40-40", f"{w} float32") for w in ("eager", "sdpa")]
    eager, sdpa = results
    assert eager.ratio is None and sdpa.theirs == eager.ours and sdpa.against == "eager"
    assert all(r.error < 1e-5 and r.peak_bytes is None and r.floor > 0 for r in results)
    assert any("flash_attention_2 float32 is skipped" in line and "CUDA" in line for line in lines)
    more = benchmark(config, tasks=["attention-40-40", "attention-40-8"], **run)
    assert more[:2] == results and len(more) == 4
    head, *rows = as_table(more).splitlines()
    assert head.split()[-1] == "error" and "memory" not in head and len(rows) == 4
    with pytest.raises(ValueError, match="no attention in bfloat16"):
        attention_by_length(more, "bfloat16")


@pytest.mark.parametrize("has_memory", [True, False])
def test_the_picture_of_attention_has_a_line_for_each_way_and_window(has_memory):
    def row(T: int, W: int, way: str, seconds: float) -> Result:
        theirs = (4 * seconds,) if way != "eager" else ()
        memory = T * T * 1e3 if has_memory else None
        return Result(f"attention-{T}-{W}", f"{way} float16", (seconds,), theirs, floor=seconds / 3, peak_bytes=memory)

    rows = [row(T, W, way, T * 1e-6) for way in ("eager", "sdpa") for T, W in ((512, 512), (8192, 8192), (8192, 4096))]
    figure = attention_by_length([*rows, Result("prefill-9", "plain float16", (1.0,))], "float16")
    assert len(figure.axes) == 1 + has_memory
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["eager", "eager, window", "sdpa", "sdpa, window", "floor", "floor, window"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["sdpa"] == [[512, 512e-6], [8192, 8192e-6]] and lines["sdpa, window"] == [[8192, 8192e-6]]
    texts = {text.get_text() for text in texts_of(figure)}
    assert "sdpa is 4.0 times as fast as eager at 8,192 tokens, in float16" in texts
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_random_weights_are_drawn_in_their_type_and_leave_the_settings(config):
    state = torch.random.get_rng_state()
    first, second = (random_model(config, torch.bfloat16, CPU) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    weight = first.model.layers[0].block_sparse_moe.experts[0].w1.weight.float()
    assert abs(weight.std() / config.initializer_range - 1) < 0.1


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@torch.no_grad()
def test_a_form_made_on_the_device_is_the_form_of_a_checkpoint(config, tmp_path: Path, quantization):
    form = Variant(torch.float32, packed=True, quantization=quantization, attention="eager", experts="grouped")
    random_model(config, torch.float32, CPU).save_pretrained(tmp_path / "checkpoint")
    made, loaded = form.make(config, CPU), form.load(tmp_path / "checkpoint", CPU)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(made(ids).logits, loaded(ids).logits) and not made.training
    for model in (made, loaded):
        assert (model.config.attn_implementation, model.config.experts_implementation) == ("eager", "grouped")


def test_the_full_size_needs_room_for_its_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.checkpoints.memory.free_memory", lambda device: 20_000_000_000)
    lines = []
    with pytest.raises(MemoryError, match="a model of these sizes needs .* GB on cpu.* 20 GB are free"):
        benchmark(full_size=True, dtype="bfloat16", report=lines.append)
    reasons = {line.partition(" is skipped: a model of these sizes needs ")[::2] for line in lines if "skipped" in line}
    words = {(form, rest.partition(" on cpu")[0]) for form, rest in reasons}
    assert words >= {("packed bfloat16", "93.4 GB"), ("int8 bfloat16", "47 GB"), ("int4 bfloat16", "26.6 GB")}


@torch.no_grad()
def test_a_model_is_quantized_matrix_by_matrix_as_it_is_made(config, monkeypatch: pytest.MonkeyPatch):
    """No more is asked for than the integers take, and no second matrix is drawn before the first one is gone."""
    asked, drawn = [], []
    monkeypatch.setattr("mixtral_edu.bench.variants.require_memory", lambda needed, *_: asked.append(needed))

    def init(module, deviation):
        if isinstance(module, Linear) and module.out_features != config.vocab_size:
            assert all(other() is None for other in drawn)
            drawn.append(weakref.ref(module))
        init_module(module, deviation)

    monkeypatch.setattr("mixtral_edu.bench.variants.init_module", init)
    model = random_model(config, torch.bfloat16, CPU, "int4")
    assert asked == [sum(t.nbytes for t in model.state_dict().values())]
    assert len(drawn) == sum(isinstance(module, Int4Linear) for module in model.modules())
    monkeypatch.undo()
    whole = random_model(config, torch.bfloat16, CPU)
    quantize_model(whole, "int4")
    states = model.state_dict(), whole.state_dict()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.usefixtures("small_rates")
def test_some_layers_of_the_full_size_meet_a_peer(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    file = tmp_path / "results.json"
    run = {"layers": 1, "tasks": ["decode-2-5"], "seconds": 0.01, "json_file": file}
    results = benchmark(config, full_size=True, against="transformers", **run)
    assert all(len(result.theirs) >= 3 for result in results) and "plain float32" not in {r.variant for r in results}
    (stored,) = json.loads(file.read_text())["runs"]
    assert stored["settings"]["sizes"]["num_hidden_layers"] == 1 and "weights" not in stored["settings"]


@pytest.mark.usefixtures("small_rates")
def test_a_step_that_cannot_be_one_program_is_left_out_with_the_reason(config, tmp_path, monkeypatch):
    def refuse(step, undo, device):
        raise NotRecordable("graph=True: the step waits for the host")

    monkeypatch.setattr("mixtral_edu.fast.cuda_graph.record", refuse)
    forms = [Variant(torch.float32, packed=True, graph=True), Variant(torch.float32, packed=True)]
    monkeypatch.setattr("mixtral_edu.bench.run.variants", lambda *_: forms)

    def prepared(self, model):
        model.prepare_for_inference()
        model.compiled_step = GraphedStep(model.forward) if self.graph else None
        return model

    monkeypatch.setattr(Variant, "_prepared", prepared)
    lines, run = [], {"tasks": ["decode-2-5"], "seconds": 0.01, "json_file": tmp_path / "results.json"}
    (result,) = benchmark(config, **run, report=lines.append)
    assert result.variant == "packed float32" and "    skipped: graph=True: the step waits for the host" in lines
    lines.clear()
    assert benchmark(config, **run, report=lines.append) == [result] and len(lines) == 1, "nothing is tried again"
    benchmark(config, **run, report=lines.append, again=True)
    assert "    skipped: graph=True: the step waits for the host" in lines


@pytest.mark.usefixtures("small_rates")
def test_a_run_that_finds_no_room_any_more_returns_what_it_had_found(config, tmp_path: Path, monkeypatch):
    run = {"full_size": True, "tasks": ["decode-2-5"], "seconds": 0.01, "json_file": tmp_path / "results.json"}
    form = Variant(torch.float32, packed=True)
    monkeypatch.setattr("mixtral_edu.bench.run.variants", lambda *_: [form])
    found = benchmark(config, **run)
    monkeypatch.setattr("mixtral_edu.bench.run.variants", lambda *_: [form, replace(form, experts="grouped")])
    monkeypatch.setattr(Variant, "name", property(lambda self: f"{self.experts or 'packed float32'}"))
    monkeypatch.setattr("mixtral_edu.checkpoints.memory.free_memory", lambda device: 0)
    assert benchmark(config, **run) == found != []


@pytest.mark.usefixtures("small_rates")
def test_where_no_setting_of_the_peer_runs_our_side_is_measured_alone(config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Transformers, "_try", lambda self, task, work, setting: None)
    results = benchmark(config, against="transformers", **TINY_RUN | {"tasks": ["decode-2-5"]})
    assert results and all(result.theirs == () and result.ratio is None for result in results)


def test_a_form_that_cannot_run_here_is_left_out_when_it_is_made(config):
    with pytest.raises(ValueError, match="flash_attention_2.* needs a CUDA device"):
        Variant(torch.float32, attention="flash_attention_2").make(config, CPU)


@pytest.mark.parametrize(
    "options",
    [{"against": "transformers"}, {"quick": True}, {"tasks": ["train-2-8"]}, {"tasks": ["loading"]}],
)
def test_all_layers_of_the_full_size_have_no_peer_no_quick_form_and_no_training(options):
    with pytest.raises(ValueError, match="full_size.*layers=8" if "against" in options else "full_size"):
        benchmark(full_size=True, **options)


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
    forms = {"packed float32", "compiled float32"} | rounded
    assert {(r.task, r.variant) for r in results} == {
        *(("decode-2-5", form) for form in forms), *(("prefill-9", form) for form in forms - {"compiled float32"})
    }  # fmt: skip
    (run,) = json.loads(file.read_text())["runs"]
    assert run["settings"]["weights"] == "made on the device" and len(alive) == len(forms)


TINY_RUN = {"tasks": ["prefill-9", "decode-2-5", "train-2-5"], "seconds": 0.01, "threads": 1, "quick": True}


@pytest.mark.usefixtures("small_rates")
def test_a_run_without_a_peer_measures_every_form_and_goes_on(config, tmp_path: Path):
    lines, threads = [], torch.get_num_threads()
    run = TINY_RUN | {"json_file": tmp_path / "results.json"}
    results = benchmark(config, **run | {"tasks": ["decode-2-5"]}, report=lines.append)
    assert len(results) == 4 and "row 4 of 4: decode-2-5, int4 bfloat16" in lines
    more = benchmark(config, **run)
    assert [r for r in more if r.task == "decode-2-5"] == results  # not measured again
    assert [r.task for r in more] == ["prefill-9"] * 5 + ["decode-2-5"] * 4 + ["train-2-5"]
    assert all(r.ratio is None and r.share_of_floor > 0 and len(r.ours) >= 3 for r in more)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("small_rates")
def test_sizes_that_cannot_be_quantized_are_left_out_with_the_reason(make_config):
    lines = []
    results = benchmark(make_config(), **TINY_RUN | {"tasks": ["prefill-9"]}, report=lines.append)
    assert [r.variant for r in results] == ["plain float32", "packed float32", "int8 bfloat16"]
    assert any("int4 bfloat16 is skipped" in line and "group_size=64" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"against": "llama"}, "against='llama'.*transformers"),
        ({"seconds": 0}, "seconds=0"),
        ({"threads": 0}, "threads=0"),
        ({"tasks": ["sleep"]}, "sleep"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_arguments_without_meaning_are_named(config, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        benchmark(config, **arguments)


def test_systems_that_disagree_are_not_compared(config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mixtral_edu.bench.run.largest_difference", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match="scores differ by nan"):
        benchmark(config, **TINY_RUN, against="transformers")


@pytest.mark.usefixtures("small_rates")
def test_the_command_measures_compares_draws_and_goes_on(config, tmp_path: Path, capsys: pytest.CaptureFixture):
    config.save_pretrained(tmp_path)
    json_file, picture = tmp_path / "results.json", tmp_path / "results.png"
    command = ["benchmark", "--config", str(tmp_path / "config.json"), "--against", "transformers", "--threads", "1",
               "--seconds", "0.01", "--json", str(json_file), "--picture", str(picture)]  # fmt: skip
    main([*command, "--tasks", "prefill-9", "train-2-5"])
    shown = capsys.readouterr()
    (run,) = json.loads(json_file.read_text())["runs"]
    assert {(row["task"], row["variant"]) for row in run["results"]} >= {
        ("prefill-9", "plain float32"), ("prefill-9", "packed float32"), ("prefill-9", "int8 bfloat16"),
        ("prefill-9", "int4 float32"), ("train-2-5", "plain float32"),
    }  # fmt: skip
    assert all(len(row["theirs"]) == len(row["ours"]) >= 3 and row["floor"] > 0 for row in run["results"])
    assert all(min(row["tried"], key=row["tried"].get) + ", float32" == row["setting"] for row in run["results"])
    assert run["machine"].keys() >= {"processor", "capability", "torch", "transformers", "mixtral_edu"}
    assert run["settings"]["threads"] == 1 and run["settings"]["sizes"]["hidden_size"] == 64
    assert len(shown.out.splitlines()) == 1 + len(run["results"]) and "row 1 of 8: prefill-9" in shown.err
    assert f"torch {torch.__version__}" in shown.err and "threads 1, against transformers" in shown.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    main([*command, "--tasks", "prefill-9", "train-2-5"])
    again = capsys.readouterr()
    assert again.out == shown.out and "row" not in again.err


RESULTS = [
    Result("prefill-512", "plain float32", (0.2, 0.21, 0.22), (0.3, 0.31, 0.3), tokens=512, against="transformers",
           setting="sdpa, eager, float32", floor=0.1),
    Result("prefill-512", "int4 bfloat16", (0.4, 0.4, 0.5), (0.3, 0.31, 0.3), tokens=512, against="transformers",
           setting="sdpa, eager, float32", floor=0.1),
    Result("loading", "peak memory", (2e9,), (3e9,), unit="bytes", against="transformers", setting="float32"),
]  # fmt: skip


def test_the_table_has_a_line_for_each_row():
    header, *lines = as_table(RESULTS).splitlines()
    assert header.split()[:5] == ["task", "ours", "takes", "per", "token"]
    numbers = "210 ms 410 µs 300 ms 1.48 (1.42–1.49) 100 ms 48% 3"
    assert lines[0].split() == f"prefill-512 plain float32 {numbers} sdpa, eager, float32".split()
    assert lines[2].split() == "loading peak memory 2 GB 3 GB 1.50 (1.50–1.50) 1 float32".split()


def test_the_picture_holds_every_row():
    figure = ratios_and_floors(RESULTS)
    ratios, shares = figure.axes
    dots = [line.get_xdata()[0] for line in ratios.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([result.ratio.median for result in RESULTS])
    assert [bar.get_width() for bar in shares.patches] == pytest.approx([100 * 0.1 / 0.21, 100 * 0.1 / 0.4])
    words = [text.get_text() for text in texts_of(figure)]
    assert {"prefill-512", "plain float32", "int4 bfloat16", "loading", "210 ms", "2 GB", "1.48", "48 %"} <= set(words)
    assert "Less time or memory than transformers in 2 of 3 rows" in words
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_the_picture_without_a_peer_or_a_floor_says_so():
    alone = [replace(result, theirs=(), against="") for result in RESULTS]
    assert "At best 48% of the floor" in [text.get_text() for text in texts_of(ratios_and_floors(alone))]
    with pytest.raises(ValueError, match="results is empty"):
        ratios_and_floors([])


@pytest.mark.gpu
def test_attention_on_a_gpu_is_measured_in_all_ways_with_its_memory(tmp_path: Path):
    config = MixtralConfig(hidden_size=1024, num_attention_heads=8, num_key_value_heads=2, head_dim=128)
    results = benchmark(config, tasks=["attention-4096-4096", "attention-4096-512"], device="cuda", seconds=0.1)
    assert len(results) == 2 * 2 * 3
    by_name = {(r.task, r.variant): r for r in results}
    for task in ("attention-4096-4096", "attention-4096-512"):
        for dtype in ("bfloat16", "float16"):
            eager, flash = (by_name[task, f"{way} {dtype}"] for way in ("eager", "flash_attention_2"))
            assert flash.peak_bytes < eager.peak_bytes / 10 and max(flash.error, eager.error) < 0.02
            assert 0 < flash.share_of_floor < 1


@pytest.mark.gpu
def test_the_full_size_on_a_gpu_is_made_there(config):
    results = benchmark(config, full_size=True, device="cuda", tasks=["prefill-9", "decode-2-5"], seconds=0.01)
    plain, graphs = {"packed bfloat16 sdpa", "packed bfloat16 flash_attention_2"}, {"compiled graph bfloat16"}
    assert plain | graphs | {"graph bfloat16", "graph int4 bfloat16"} <= {r.variant for r in results}
