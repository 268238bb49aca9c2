"""`bench.peers`: the same weights in transformers, and the fastest of its settings."""

import subprocess

import pytest
import torch

from benchmark_runs import CPU
from mixtral_edu import MixtralForCausalLM
from mixtral_edu.bench.peers import Setting, Transformers
from mixtral_edu.bench.tasks import (
    Prefill,
    Task,
)


@pytest.mark.numerics
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
