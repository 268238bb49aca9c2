"""`bench.tasks`: each task is the work that its name says, and its floor counts what it needs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark_runs import CPU
from mixtral_edu import MixtralForCausalLM
from mixtral_edu.bench.tasks import (
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
from mixtral_edu.bench.variants import Variant
from mixtral_edu.moe import Expert
from mixtral_edu.quantization.model import quantize_model


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


def test_beginnings_of_names_are_those_of_the_usual_tasks():
    assert [task.name for task in choose_tasks(["prefill"], FULL_TASKS)] == ["prefill-4096", "prefill-32768"]


def test_attention_is_measured_by_name_only_with_both_windows():
    names = [task.name for task in choose_tasks(["attention"], FULL_TASKS)]
    assert {"attention-512-512", "attention-32768-4096", "attention-32768-32768"} <= {*names}
    assert "attention-512-4096" not in names and not {*names} & {task.name for task in choose_tasks(None)}
    longest = [max(task.tokens for task in choose_tasks(["attention"], usual)) for usual in (QUICK_TASKS, TASKS)]
    assert longest == [2048, 16384]


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
@pytest.mark.numerics
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


def test_the_compiled_form_decodes_with_its_compiled_step(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    steps = []
    monkeypatch.setattr(torch, "compile", lambda forward: lambda *a, **k: steps.append(1) or forward(*a, **k))
    model = Variant(torch.float32, prepared=True, compiled=True, experts="grouped").load(checkpoint, CPU)
    work = Decode(model, Task.parse("decode-2-8"))
    work.prepare()
    work.run()
    assert len(steps) == STEPS
