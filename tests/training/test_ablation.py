"""Lesson 10's stored runs: the command that makes them, and that the stored file holds all of them."""

import json
import math

import pytest

from mixtral_edu import MixtralTokenizer
from mixtral_edu.training import ablation
from mixtral_edu.training.ablation import SETTINGS, main, measure, plan, runs, stored_results, trainer_for


@pytest.fixture(scope="module")
def tokenizer():
    return MixtralTokenizer.from_pretrained("tiny")


def key(run: dict) -> tuple:
    return run["setting"], run["seed"], run["peak"], run["rows"], run["steps"]


def test_the_stored_file_holds_every_run_once():
    expected = [
        (setting, seed, changes.get("learning_rate", 6e-3), changes.get("rows", 4), changes.get("steps", 240))
        for setting, seed, changes in runs()
    ]
    results = stored_results()
    assert sorted(map(key, results["runs"])) == sorted(expected) and len(set(expected)) == len(expected)
    assert results["command"] == "python -m mixtral_edu.training.ablation"
    assert {"measured", "processor", "threads", "torch", "python"} <= results.keys()


def test_a_run_has_what_a_stored_one_has(tokenizer):
    run = measure("no clipping", 1, tokenizer, steps=10, rows=1)
    stored = next(each for each in stored_results()["runs"] if each["setting"] == "no clipping")
    assert run.keys() == stored.keys()
    assert (run["setting"], run["seed"], run["steps"], run["rows"], run["clipped"]) == ("no clipping", 1, 10, 1, 0)
    assert len(run["losses"]) == 1 and 6 < run["losses"][0] < math.log(2048) + 0.3
    assert [sum(layer) for layer in run["loads"]] == pytest.approx([2, 2], abs=0.01)


def test_a_setting_changes_what_its_name_says(tokenizer):
    def trainer(setting):
        options = dict(SETTINGS[setting])
        optimizer = {name: options.pop(name) for name in ("sgd", "decay_norms") if name in options}
        return trainer_for(plan(**options), tokenizer, **optimizer)

    usual = trainer("as it is")
    assert [usual.config.learning_rate_at(step) for step in (0, 20, 239)] == pytest.approx([3e-4, 6e-3, 6e-4], rel=1e-2)
    assert [group["weight_decay"] for group in usual.optimizer.param_groups] == [0.1, 0.0]
    constant = trainer("constant rate").config
    assert [constant.learning_rate_at(step) for step in (0, 20, 239)] == pytest.approx([3e-4, 6e-3, 6e-3])
    assert trainer("no warm-up").config.learning_rate_at(0) == pytest.approx(6e-3)
    assert (trainer("neither").config.clip_norm, trainer("neither").config.warmup_steps) == (math.inf, 0)
    assert [group["weight_decay"] for group in trainer("decay on norms too").optimizer.param_groups] == [0.1, 0.1]
    assert trainer("two experts").model.config.num_local_experts == 2
    assert type(trainer("SGD").optimizer).__name__ == "SGD"


def test_the_command_continues_a_file(tmp_path, monkeypatch, capsys):
    measured = []

    def remembered(setting, seed, tokenizer, **changes):
        measured.append((setting, seed))
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"setting": setting, "seed": seed, "peak": 6e-3, "rows": 4, "steps": 240, "held_out": 1.0}

    monkeypatch.setattr(ablation, "measure", remembered)
    monkeypatch.setattr(ablation, "runs", lambda: iter([("as it is", 0, {}), ("α = 0", 0, {}), ("as it is", 1, {})]))
    monkeypatch.setattr(ablation.torch, "set_num_threads", lambda number: None)
    file = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        main([str(file)])
    main([str(file)])
    assert measured == [("as it is", 0), ("α = 0", 0), ("α = 0", 0), ("as it is", 1)]
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert [run["setting"] for run in stored["runs"]] == ["as it is", "α = 0", "as it is"]
    assert stored["threads"] >= 1 and "1.00 nats" in capsys.readouterr().out
