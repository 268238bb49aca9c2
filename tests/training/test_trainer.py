"""The trainer, its data and its measures, on models of a few thousand parameters and without a network."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mixtral_edu import MixtralForCausalLM, MixtralTokenizer
from mixtral_edu.__main__ import main
from mixtral_edu.heads import IGNORED_LABEL
from mixtral_edu.text.tokenizer import train_tokenizer
from mixtral_edu.training import evaluation, recipes
from mixtral_edu.training.corpus import quiz, story_requests
from mixtral_edu.training.recipes import RECIPES, Mixture, train_recipe
from mixtral_edu.training.trainer import Trainer, TrainingConfig, bits_per_byte, token_bits

OFFLINE = {"chat": 0.7, "stories": 0.3}  # domains that need no download


@pytest.fixture(scope="module")
def tokenizer():
    return MixtralTokenizer.from_pretrained("tiny")


@pytest.fixture
def small_recipe(tokenizer):
    config = replace(
        RECIPES["tiny"].config,
        hidden_size=16,
        head_dim=4,
        num_attention_heads=4,
        intermediate_size=8,
        num_hidden_layers=2,
        sliding_window=16,
    )
    return replace(
        RECIPES["tiny-instruct"],
        config=config,
        stages={0: OFFLINE},
        batch_size=3,
        sequence_length=40,
        training=TrainingConfig(steps=8, warmup_steps=2),
    )


def trainer_for(recipe, tokenizer):
    torch.manual_seed(0)
    return Trainer(MixtralForCausalLM(recipe.config), Mixture(tokenizer, recipe), recipe.training)


def test_learning_rate_warms_up_then_falls_to_a_tenth():
    config = TrainingConfig(steps=110, learning_rate=1.0, warmup_steps=10)
    rates = [config.learning_rate_at(step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_a_restart_begins_the_schedule_anew():
    half = TrainingConfig(steps=100, warmup_steps=10)
    whole = replace(half, steps=200, restarts=(100,))
    rates = [half.learning_rate_at(step) for step in range(100)]
    assert [whole.learning_rate_at(step) for step in range(200)] == rates + rates
    cut_short = replace(half, restarts=(150,))
    assert [cut_short.learning_rate_at(step) for step in range(100)] == rates


@pytest.mark.parametrize("field", ["steps", "learning_rate", "clip_norm", "warmup_steps", "aux_loss_coef"])
def test_invalid_settings_are_named(field):
    with pytest.raises(ValueError, match=field):
        TrainingConfig(**{"steps": 5, field: -1})


def test_weight_decay_spares_the_norms(small_recipe, tokenizer):
    trainer = trainer_for(small_recipe, tokenizer)
    decayed, spared = (group["params"] for group in trainer.optimizer.param_groups)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in spared} == {"input_layernorm", "post_attention_layernorm", "norm"}
    assert len(decayed) + len(spared) == len(names)


@pytest.mark.numerics
def test_a_resumed_run_equals_an_uninterrupted_one(small_recipe, tokenizer, tmp_path):
    whole = trainer_for(small_recipe, tokenizer)
    whole.train(progress=False)
    first = trainer_for(small_recipe, tokenizer)
    first.train(until=3, progress=False)
    first.save(tmp_path / "training.pt")
    torch.manual_seed(99)
    second = Trainer(MixtralForCausalLM(small_recipe.config), Mixture(tokenizer, small_recipe), small_recipe.training)
    second.load(tmp_path / "training.pt")
    assert second.step == 3 and second.resumed_at == [3]
    second.train(progress=False)
    assert [entry["loss"] for entry in second.history] == [entry["loss"] for entry in whole.history]
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resuming_under_other_settings_is_refused(small_recipe, tokenizer, tmp_path):
    trainer = trainer_for(small_recipe, tokenizer)
    trainer.save(tmp_path / "training.pt")
    other = replace(small_recipe, training=replace(small_recipe.training, learning_rate=1.0))
    with pytest.raises(ValueError, match="learning_rate"):
        trainer_for(other, tokenizer).load(tmp_path / "training.pt")


@pytest.mark.numerics
def test_training_learns_a_repeated_batch(small_recipe, tokenizer):
    recipe = replace(small_recipe, training=TrainingConfig(steps=60, learning_rate=1e-2, warmup_steps=5))
    batch = Mixture(tokenizer, recipe)(0)
    torch.manual_seed(0)
    trainer = Trainer(MixtralForCausalLM(recipe.config), lambda step: batch, recipe.training)
    history = trainer.train(progress=False)
    assert history[0]["loss"] == pytest.approx(math.log(2048), abs=0.3)  # at first all tokens are equally likely
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_a_step_without_a_label_costs_nothing_and_moves_as_the_balancing_loss_says(small_recipe, tokenizer):
    """An average over steps stays a number; without the balancing loss no weight moves."""
    ids, labels = Mixture(tokenizer, small_recipe)(0)
    for coefficient, moves in ((0.0, False), (0.02, True)):
        training = TrainingConfig(steps=1, warmup_steps=1, weight_decay=0.0, aux_loss_coef=coefficient)
        torch.manual_seed(0)
        model = MixtralForCausalLM(small_recipe.config)
        before = [p.detach().clone() for p in model.parameters()]
        history = Trainer(model, lambda step: (ids, torch.full_like(labels, IGNORED_LABEL)), training).train(
            progress=False
        )
        assert history[0]["loss"] == 0 and math.isfinite(history[0]["aux_loss"])
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) == moves


def test_the_balancing_loss_spreads_the_load(small_recipe, tokenizer):
    """Without it a router that starts lopsided stays so; with it the auxiliary loss falls towards its minimum K = 2."""
    last = {}
    for coefficient in (0.0, 0.1):
        recipe = replace(small_recipe, training=TrainingConfig(steps=60, warmup_steps=1, aux_loss_coef=coefficient))
        trainer = trainer_for(recipe, tokenizer)
        with torch.no_grad():
            for layer in trainer.model.model.layers:
                layer.block_sparse_moe.gate.weight[0] += 1.0
        last[coefficient] = trainer.train(progress=False)[-1]["aux_loss"]
    assert last[0.1] < last[0.0] - 0.2
    assert last[0.1] >= 2.0 - 1e-3


def test_rows_are_full_begin_with_bos_and_repeat_for_the_step(small_recipe, tokenizer):
    mixture = Mixture(tokenizer, replace(small_recipe, batch_size=20))
    ids, labels = mixture(5)
    assert ids.shape == labels.shape == (20, 40)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(ids, mixture(5)[0]) and not torch.equal(ids, mixture(6)[0])
    learned = labels != IGNORED_LABEL
    assert torch.equal(labels[learned], ids[learned])


def test_a_later_stage_changes_where_rows_come_from(small_recipe, tokenizer):
    recipe = replace(small_recipe, stages={0: {"stories": 1.0}, 4: {"chat": 1.0}})
    mixture = Mixture(tokenizer, recipe)
    assert recipe.domains == ("stories", "chat")
    openings = [tokenizer.decode(mixture(step)[0][0], skip_special_tokens=True).startswith("[INST]") for step in (3, 4)]
    assert openings == [False, True]


def test_only_answers_are_learned_in_instruct_rows(small_recipe, tokenizer):
    recipe = replace(small_recipe, stages={0: {"chat": 1.0}}, batch_size=30, sequence_length=120)
    ids, labels = Mixture(tokenizer, recipe)(0)
    for row, learned in zip(ids.tolist(), (labels != IGNORED_LABEL).tolist(), strict=True):
        for group in _runs(row, learned):
            assert "[INST]" not in tokenizer.decode(group) and "[/INST]" not in tokenizer.decode(group)
        questions = tokenizer.decode([i for i, is_answer in zip(row, learned, strict=True) if not is_answer])
        assert questions.startswith("<s> [INST]")
    plain = Mixture(tokenizer, replace(recipe, answers_only=False))(0)
    assert torch.equal(plain[0], ids) and torch.equal(plain[1], ids)


def _runs(row, learned):
    run = []
    for i, flag in zip(row, learned, strict=True):
        if flag:
            run.append(i)
        elif run:
            yield run
            run = []


@pytest.mark.numerics
def test_bits_per_byte_is_the_loss_in_other_units(small_recipe, tokenizer):
    model = MixtralForCausalLM(small_recipe.config).eval()
    text = "A text of two lines,\nwith an emoji 🙂 that takes four bytes."
    ids = torch.tensor([tokenizer.encode(text)])
    nats = F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
    assert bits_per_byte(model, tokenizer, [text]) == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert token_bits(model, ids[0].tolist()).shape == (ids.shape[1] - 1,)
    assert token_bits(model, ids[0].tolist()).sum().item() == pytest.approx(nats / math.log(2), rel=1e-5)


def test_the_train_command_writes_a_checkpoint_and_goes_on(small_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES, "small", small_recipe)
    command = ["train", "--recipe", "small", "--out", str(tmp_path / "out"), "--tokenizer", "tiny"]
    main([*command, "--steps", "2"])
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (log["recipe"], log["steps"], log["tokens"]) == ("small", 2, 2 * 3 * 40)
    model = MixtralForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert len(MixtralTokenizer.from_pretrained(tmp_path / "out")) == 2048
    main([*command, "--steps", "2"])
    assert "from step 2 of 2" in capsys.readouterr().out
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log["resumed_at"] == []  # nothing was left to do


def test_a_run_never_writes_over_something_else(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "small", small_recipe)
    (tmp_path / "weights").write_text("dear to someone")
    with pytest.raises(FileExistsError, match="out=.*training.pt"):
        train_recipe("small", tmp_path, tokenizer="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="out=.*working folder"):
        train_recipe("small", tmp_path, tokenizer="tiny")
    with pytest.raises(FileExistsError, match="out=.*is a file"):
        train_recipe("small", tmp_path / "weights", tokenizer="tiny")


def test_a_run_of_one_recipe_is_not_gone_on_with_as_another(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "small", small_recipe)
    monkeypatch.setitem(recipes.RECIPES, "other", small_recipe)
    train_recipe("small", tmp_path / "run", steps=1, tokenizer="tiny")
    with pytest.raises(ValueError, match="run of 'small', not of 'other'"):
        train_recipe("other", tmp_path / "run", steps=1)


def test_a_run_goes_on_with_the_tokenizer_it_began_with(small_recipe, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "small", small_recipe)
    train_recipe("small", tmp_path / "run", steps=1, tokenizer="tiny")
    train_recipe("small", tmp_path / "run", steps=1)  # needs neither the option nor a new tokenizer
    other = train_tokenizer(["another text, " * 50, "and one more"], tmp_path / "other.model", vocab_size=280)
    with pytest.raises(ValueError, match="tokenizer=.*began with"):
        train_recipe("small", tmp_path / "run", steps=1, tokenizer=str(tmp_path / "other.model"))
    with pytest.raises(ValueError, match="280 pieces.*2048"):
        train_recipe("small", tmp_path / "new", steps=1, tokenizer=str(tmp_path / "other.model"))
    assert len(other) == 280


def test_the_evaluate_command_measures_offline(small_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES, "small", small_recipe)
    monkeypatch.setattr(evaluation, "story_requests", lambda n, seed: story_requests(2, seed))
    monkeypatch.setattr(evaluation, "quiz", lambda n, seed, unseen_sums=False: quiz(8, seed, unseen_sums))
    train_recipe("small", tmp_path / "run", steps=1, tokenizer="tiny")
    main(["evaluate", str(tmp_path / "run"), "--domains", "stories", "--json", str(tmp_path / "figures.json")])
    text = (tmp_path / "figures.json").read_text()
    figures = json.loads(text)
    assert text in capsys.readouterr().out
    assert list(figures["held_out_bits_per_byte"]) == ["stories"]
    assert 2 < figures["held_out_bits_per_byte"]["stories"] < 5  # after one step: about log2(2048) bits a token
    assert figures["behaviour"]["stories"] == 2 and figures["behaviour"]["unseen_sums"] == 2
    assert sum(figures["expert_load"]["per_layer"][0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--threads", "0"], "less than 1"), (["--steps", "-1"], "less than 1"), (["--device", "abacus"], "'abacus'")],
)
def test_unusable_options_end_in_a_sentence(tmp_path, arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "tiny", "--out", str(tmp_path / "out"), *arguments])
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_to_measure_is_an_error(small_recipe, tokenizer):
    with pytest.raises(ValueError, match="documents"):
        bits_per_byte(MixtralForCausalLM(small_recipe.config), tokenizer, [])
    with pytest.raises(ValueError, match="documents"):
        evaluation.expert_load(MixtralForCausalLM(small_recipe.config), tokenizer, [])


def test_an_unknown_recipe_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="recipe='huge'.*tiny"):
        train_recipe("huge", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--recipe", "huge", "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
