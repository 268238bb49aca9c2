"""`bench.variants`: the forms of the model, how they are chosen and made."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark_runs import CPU
from mixtral_edu.bench.tasks import (
    Task,
)
from mixtral_edu.bench.variants import Variant, benchmark_config, choose_forms, random_model, variants
from mixtral_edu.fast.linear import Linear
from mixtral_edu.fast.products import pinned
from mixtral_edu.model import init_module
from mixtral_edu.quantization.layers import Int4Linear
from mixtral_edu.quantization.model import quantize_model


def test_the_measured_model_has_the_published_size():
    assert round(benchmark_config().parameter_counts().total / 1e6) == 214


def test_forms_on_a_card_have_a_row_for_each_attention():
    names = [variant.name for variant in variants(torch.bfloat16, torch.device("cuda"))]
    attention = ("eager", "sdpa", "flash_attention_2")
    ways = {f"{form} bfloat16 {way}" for form in ("plain", "prepared") for way in attention}
    whole = {"compiled bfloat16", "graph bfloat16", "compiled graph bfloat16"}
    rounded = {f"{form}{kind} bfloat16" for form in ("", "graph ") for kind in ("int8", "int4")}
    assert {*names} == {*ways, *whole, *rounded} and len(names) == len({*names})


def test_a_quick_run_rounds_to_integers_in_bfloat16_alone():
    names = [variant.name for variant in variants(torch.float32, CPU, quick=True)]
    rounded = ["int8 bfloat16", "int4 bfloat16", "plain int4 bfloat16"]
    assert names == ["plain float32", *rounded]


def test_each_form_is_measured_where_it_applies():
    forms = variants(torch.float32, CPU)

    def rows(task: str) -> list[str]:
        return [form.name for form in forms if form.takes(Task.parse(task))]

    assert rows("train-4-256") == ["plain float32"] and rows("loading") == []
    assert rows("prefill-2048") == ["plain float32"]
    assert set(rows("decode-8-4096")) - set(rows("prefill-512")) == {"compiled float32"}
    assert rows("decode-8-4096") == [form.name for form in forms if not form.name.startswith("plain int")]
    assert set(rows("prefill-512")) >= {"int4 float32", "int8 bfloat16", "int4 bfloat16", "plain int4 bfloat16"}


def test_a_prepared_form_keeps_copies(checkpoint: Path):
    forms = [Variant(torch.float32, prepared=prepared, experts="grouped") for prepared in (False, True)]
    with pinned("linear"):  # which no copy of plain weights serves
        plain, prepared = (form.load(checkpoint, CPU) for form in forms)
    weights = [dict(model.named_parameters()) for model in (plain, prepared)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert plain.prepared is None and len(prepared.prepared.copies) == plain.config.num_hidden_layers


@pytest.mark.parametrize("quantization", [None, "int4"])
def test_the_bytes_of_copies_are_known_before_they_are_made(config, quantization):
    form = Variant(torch.bfloat16, prepared=True, quantization=quantization, experts="grouped")
    with pinned("linear"):
        copied = [copy.value for copy in form.make(config, CPU).prepared.copies]
    tensors = [tensor for value in copied for tensor in (value if isinstance(value, tuple) else (value,))]
    assert form._copied_bytes(config) == sum(tensor.nbytes for tensor in tensors) > 0
    assert replace(form, prepared=False)._copied_bytes(config) == 0


def test_forms_are_chosen_by_their_names_and_first_words():
    forms = variants(torch.float32, CPU)

    def chosen(*names: str) -> list[str]:
        return [form.name for form in choose_forms(names, forms)]

    assert choose_forms(None, forms) == forms
    assert chosen("int4", "plain float32") == ["plain float32", "int4 bfloat16", "int4 float32"]
    assert chosen("plain") == ["plain float32", "plain int4 bfloat16"]
    assert chosen("compiled float32", "compiled") == ["compiled float32"]


@pytest.mark.parametrize("name", ["int", "int4 bfloat", "packed", "graph", ""])
def test_a_form_that_there_is_not_is_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match=f"forms='{name}'.*plain float32, compiled float32, int8 bfloat16"):
        choose_forms(["plain float32", name], variants(torch.float32, CPU))


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
    form = Variant(torch.float32, prepared=True, quantization=quantization, attention="eager", experts="grouped")
    random_model(config, torch.float32, CPU).save_pretrained(tmp_path / "checkpoint")
    made, loaded = form.make(config, CPU), form.load(tmp_path / "checkpoint", CPU)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(made(ids).logits, loaded(ids).logits) and not made.training
    for model in (made, loaded):
        assert (model.config.attn_implementation, model.config.experts_implementation) == ("eager", "grouped")


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


def test_a_form_that_cannot_run_here_is_left_out_when_it_is_made(config):
    with pytest.raises(ValueError, match="flash_attention_2.* needs a CUDA device"):
        Variant(torch.float32, attention="flash_attention_2").make(config, CPU)
