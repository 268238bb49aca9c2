"""What users of transformers' models call besides forward and generate: embeddings, counts, choices of a backend."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

import mixtral_edu
from mixtral_edu import (
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
)
from mixtral_edu.api.embeddings import SPREAD
from mixtral_edu.fast.engine import remove
from mixtral_edu.fast.linear import Linear
from mixtral_edu.quantization.model import checkpoint_bytes, quantization_of, quantize_model
from tolerances import FORWARD, chain_error, frequency_error, unit

CLASSES = (MixtralModel, MixtralForCausalLM, MixtralForSequenceClassification, MixtralForTokenClassification,
           MixtralForQuestionAnswering)  # fmt: skip
V = 101
IDS = torch.arange(2 * 9).view(2, 9)


def make(make_config, cls=MixtralForCausalLM, **changes) -> nn.Module:
    return cls(make_config(initializer_range=0.2, **changes)).eval()


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits.detach()


# Embeddings


@pytest.mark.parametrize("cls", CLASSES)
def test_embeddings_are_found_where_they_are_in_transformers(make_config, transformers_twin, cls):
    model = make(make_config, cls)
    twin = transformers_twin(model)
    names = {id(module): name for name, module in model.named_modules()}
    their_names = {id(module): name for name, module in twin.named_modules()}
    for method in ("get_input_embeddings", "get_output_embeddings"):
        found, expected = getattr(model, method)(), getattr(twin, method)()
        assert (found is None) == (expected is None)
        assert found is None or names[id(found)] == their_names[id(expected)]


@pytest.mark.numerics
def test_other_embeddings_take_their_place(make_config, transformers_twin):
    model = make(make_config, pad_token_id=4)
    twin, before = transformers_twin(model), logits(model)
    model.prepare_for_inference()
    other = nn.Embedding(V, 44)
    for each in (model, twin):
        each.set_input_embeddings(other)
        assert each.get_input_embeddings() is other and each.model.embed_tokens is other
    assert model.prepared is None
    assert_close(logits(model), logits(twin), **FORWARD)
    assert (logits(model) - before).abs().max() > 0.1
    other = nn.Embedding(V, 44)
    model.model.set_input_embeddings(other)  # the decoder's own method
    assert model.get_input_embeddings() is other


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (nn.Linear(V, 44), TypeError, r"^value is a Linear; it must be a torch\.nn\.Embedding"),
        (None, TypeError, "^value is a NoneType"),
        (nn.Embedding(V + 1, 44), ValueError, r"^value has a weight of shape \(102, 44\).*= \(101, 44\).*resize_token"),
        (nn.Embedding(V, 45), ValueError, r"^value has a weight of shape \(101, 45\)"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(make_config, value, error, message):
    model = make(make_config)
    old = model.get_input_embeddings()
    with pytest.raises(error, match=message):
        model.set_input_embeddings(value)
    assert model.get_input_embeddings() is old


# Another number of tokens


@pytest.mark.numerics
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("rows", [V + 1, V + 27, V, V - 1, 50])
def test_a_resized_model_is_that_of_transformers(make_config, transformers_twin, to_transformers, cls, rows):
    model = make(make_config, cls, pad_token_id=4)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = min(V, rows)
    ids = torch.cat((IDS[:1] % kept, IDS[:1] + rows - 9))  # the last tokens that there are, too
    twin = transformers_twin(model)
    for each in (model, twin):
        embedding = each.resize_token_embeddings(rows)
        assert embedding is each.get_input_embeddings() and embedding.num_embeddings == rows
        assert each.config.vocab_size == rows and embedding.padding_idx == 4
    for name, tensor in model.state_dict().items():
        resized = "embed_tokens" in name or "lm_head" in name
        assert tensor.shape == (rows if resized else len(old[name]), *old[name].shape[1:])
        assert torch.equal(tensor[:kept], old[name][:kept])
    twin.load_state_dict(to_transformers(model.state_dict()))  # for the new rows, which each has drawn on its own
    outputs = [each(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True) for each in (model, twin)]
    assert_close(outputs[0].hidden_states, outputs[1].hidden_states, **FORWARD)
    for name in ("logits", "start_logits", "last_hidden_state"):
        if getattr(outputs[1], name, None) is not None:
            assert_close(getattr(outputs[0], name), getattr(outputs[1], name), **FORWARD)
    with pytest.raises(ValueError, match=f"^input_ids reach from .* to {rows}; .* = {rows - 1}$"):
        model(torch.tensor([[rows]]))


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [((), V), ((None, 64), 128), ((110, 64), 128), ((128, 64), 128), ((129, 64), 192), ((90, 8), 96), ((V, 1), V)],
)
def test_sizes_that_are_padded_to_a_multiple(make_config, transformers_twin, arguments, rows):
    model = make(make_config)
    twin = transformers_twin(model)
    for each in (model, twin):
        assert len(each.resize_token_embeddings(*arguments).weight) == rows
        assert each.config.vocab_size == rows == each.lm_head.out_features == len(each.lm_head.weight)
    assert logits(model).shape == logits(twin).shape == (2, 9, rows)


def matrices(model: nn.Module) -> list[Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def added_rows(model: nn.Module, count: int, **options) -> list[tuple[Tensor, Tensor]]:
    """The old and the new rows of both matrices, in float64."""
    old = [weight.double() for weight in matrices(model)]
    model.resize_token_embeddings(len(old[0]) + count, **options)
    return [(before, after[len(before) :].double()) for before, after in zip(old, matrices(model), strict=True)]


NEW = 3000  # so many that their statistics say something


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_new_rows_have_the_mean_of_the_old_ones_and_a_little_of_their_covariance(make_config, transformers_twin, whose):
    """The same assertions hold for rows that transformers draws."""
    model = make(make_config, hidden_size=20)
    nn.init.normal_(model.lm_head.weight, mean=0.3)
    nn.init.normal_(model.model.embed_tokens.weight, mean=-0.1)
    model = model if whose == "ours" else transformers_twin(model)
    for old, new in added_rows(model, NEW):
        mean, covariance = old.mean(0), old.T.cov(correction=0)
        variance, deviation = covariance.diag(), covariance.diag().sqrt()
        rounding = chain_error(len(old)) * old.abs().max()  # of a mean in float32
        assert ((new.mean(0) - mean).abs() <= 6 * SPREAD**0.5 * deviation / NEW**0.5 + rounding).all()
        centred = (new - new.mean(0)) / SPREAD**0.5
        step = unit(torch.float32) * new.abs().max() / SPREAD**0.5  # of a number in float32
        # A covariance that is estimated from n normal draws has a deviation of √((c_ii c_jj + c_ij²) / n).
        allowed = 6 * ((torch.outer(variance, variance) + covariance.square()) / NEW).sqrt()
        allowed += step * (deviation[:, None] + deviation) + step**2
        assert ((centred.T @ centred / NEW - covariance).abs() <= allowed).all()
        assert covariance.abs().sum() > 1.2 * variance.sum(), "not everything is on the diagonal"
        near = (centred.abs() <= deviation).double().mean(0)  # 68 % of normal numbers, 58 % of uniform ones
        assert (near - math.erf(0.5**0.5)).abs().max() <= frequency_error(NEW) + 0.01  # the centre is an estimate too


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_new_rows_can_be_those_of_a_new_model(make_config, transformers_twin, whose):
    model = make(make_config)
    nn.init.normal_(model.lm_head.weight, mean=5.0)
    model = model if whose == "ours" else transformers_twin(model)
    for _, new in added_rows(model, NEW, mean_resizing=False):
        numbers = new.numel()
        assert abs(new.mean()) <= 6 * 0.2 / numbers**0.5
        assert new.std() == pytest.approx(0.2, rel=6 / (2 * numbers) ** 0.5)


def test_new_tokens_of_a_trained_model_are_no_likelier_than_the_old_ones_on_average(make_config):
    model = make(make_config)
    with torch.no_grad():  # low logits, as trained models have
        model.lm_head.weight -= 3 * model.model(IDS).last_hidden_state.mean((0, 1))
    likelihoods = {}
    for mean_resizing in (True, False):
        resized = copy.deepcopy(model)
        resized.resize_token_embeddings(V + 10, mean_resizing=mean_resizing)
        probabilities = logits(resized).softmax(-1)
        likelihoods[mean_resizing] = probabilities[..., V:].amax(-1) / probabilities[..., :V].mean(-1)
    assert (likelihoods[True] <= 1.01).all() and (likelihoods[False] > 1.01).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("old_rows", [101, 12])  # more and fewer than D
def test_rows_are_added_in_the_models_own_dtype(make_config, dtype, old_rows):
    model = make(make_config, vocab_size=old_rows).to(dtype)
    for old, new in added_rows(model, 5):
        assert model.dtype == model.lm_head.weight.dtype == dtype and new.isfinite().all()
        off = SPREAD**0.5 * 6 * old.std(0) + torch.finfo(dtype).eps * old.abs().amax(0)
        assert ((new - old.mean(0)).abs() <= off).all()
        assert dtype != torch.float64 or not torch.equal(new[0], new[1])


def test_many_rows_are_drawn_piece_by_piece(make_config, monkeypatch):
    sizes = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **kw: (sizes.append(size), randn(*size, **kw))[1])
    make(make_config).resize_token_embeddings(V + 2500)
    assert sizes == 2 * [(1024, V), (1024, V), (452, V)]


def test_a_row_that_pads_learns_nothing_and_all_others_do(make_config):
    model = make(make_config, pad_token_id=4).train()
    model.config.pad_token_id = 99  # no forward pass has seen that yet
    embedding = model.resize_token_embeddings(120)
    assert embedding.padding_idx == 99
    ids = torch.arange(90, 120)[None]
    model(ids, labels=ids).loss.backward()
    learns = embedding.weight.grad.abs().sum(1) > 0
    assert learns.tolist() == [90 <= i < 119 and i != 99 for i in range(120)]  # nothing follows the last one
    assert model.lm_head.weight.grad[110:].any(1).all()
    model.config.pad_token_id = None
    model.resize_token_embeddings(90)
    assert embedding.padding_idx is None


@pytest.mark.parametrize(("name", "value"), [("pad_token_id", 99), ("bos_token_id", 60), ("eos_token_id", [2, 100])])
def test_a_vocabulary_without_a_special_token_is_refused(make_config, transformers_twin, name, value):
    model = make(make_config, **{name: value}).prepare_for_inference(compile=False)
    before, prepared, right = dataclasses.replace(model.config), model.prepared, logits(model)
    with pytest.raises(ValueError, match=f"^new_num_tokens=60 does not fit the config: {name}=.*vocab_size - 1 = 59"):
        model.resize_token_embeddings(60)
    assert model.config == before and model.prepared is prepared and torch.equal(logits(model), right)
    twin = transformers_twin(model)
    twin.resize_token_embeddings(60)  # which keeps the id of a token that is gone
    assert getattr(twin.config, name) == value and twin.config.vocab_size == 60
    setattr(model.config, name, 59)
    assert len(model.resize_token_embeddings(60).weight) == 60


def test_what_is_no_size_is_refused(make_config):
    model = make(make_config)
    for arguments, name in (((0,), "new_num_tokens=0"), ((-3,), "new_num_tokens=-3"), ((7.0,), "new_num_tokens=7.0"),
                            ((True,), "new_num_tokens=True"), ((7, 0), "pad_to_multiple_of=0"),
                            ((None, 1.5), "pad_to_multiple_of=1.5")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}: it must be None or a whole number of at least 1"):
            model.resize_token_embeddings(*arguments)
    assert model.config.vocab_size == len(model.lm_head.weight) == V
    model.resize_token_embeddings(np.int64(V + 1), np.int32(8))  # numbers of numpy are
    assert type(model.config.vocab_size) is int and model.config.vocab_size == -(-(V + 1) // 8) * 8


def test_layers_whose_weight_is_not_their_own_are_refused(make_config):
    model = make(make_config)
    weight_norm(model.lm_head)
    with pytest.raises(TypeError, match=r"^a ParametrizedLinear cannot be resized: it must be a torch\.nn\.Linear"):
        model.resize_token_embeddings(120)
    model = make(make_config)
    model.model.embed_tokens = nn.Sequential(model.model.embed_tokens)
    with pytest.raises(TypeError, match=r"^a Sequential cannot be resized: it must be a torch\.nn\.Embedding"):
        model.resize_token_embeddings(120)
    assert model.config.vocab_size == V


@pytest.mark.numerics
@pytest.mark.engine
def test_layers_stay_the_modules_that_they_are(make_config):
    model = make(make_config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.bias = nn.Parameter(torch.linspace(1, 2, V))  # somebody's own
    embedding.weight.requires_grad_(False)
    seen = []
    for layer in (embedding, head):
        layer.register_forward_hook(lambda layer, *_: seen.append(layer))
    assert type(head) is Linear
    assert model.resize_token_embeddings(120) is embedding and model.get_output_embeddings() is head
    assert type(head) is Linear and head.bias.shape == (120,)
    assert_close(head.bias[V:], torch.full((19,), 1.5), rtol=0, atol=6 * SPREAD**0.5)
    assert head.weight.requires_grad and not embedding.weight.requires_grad
    assert logits(model).shape[-1] == 120 and seen == [embedding, head]
    model.resize_token_embeddings(130, mean_resizing=False)
    assert not head.bias[120:].any() and head.weight[120:].std() > 0.1
    without = remove(make(make_config))
    without.resize_token_embeddings(120)
    assert type(without.lm_head) is nn.Linear and logits(without).shape[-1] == 120


def test_a_config_that_models_share_changes_for_the_resized_one_only(make_config):
    config = make_config()
    model, other = MixtralForCausalLM(config), MixtralForCausalLM(config)
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == 120 and other.config is config and config.vocab_size == V
    assert logits(model).shape[-1] == 120 and logits(other).shape[-1] == V
    for module in model.modules():
        assert getattr(module, "config", model.config) is model.config
    model.config.num_experts_per_tok = 1
    assert model.model.layers[0].block_sparse_moe.gate.top_k == 1
    with pytest.raises(ValueError, match="^vocab_size=101: a model was built"):
        model.config.vocab_size = V
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.config.vocab_size == 120 and torch.equal(logits(copied), logits(model))


@pytest.mark.numerics
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("rows", [V + 27, 50])
def test_a_resized_model_generates_and_is_saved_and_loaded(make_config, tmp_path, quantization, rows):
    model = make(make_config, hidden_size=64, intermediate_size=128, head_dim=16, eos_token_id=None)
    if quantization:
        quantize_model(model, quantization)
    model.prepare_for_inference()
    model.generate(IDS, max_new_tokens=8)
    model.resize_token_embeddings(rows)
    assert model.prepared is None and (quantization is None or quantization_of(model).bits == int(quantization[-1]))
    with torch.no_grad():
        model.lm_head.weight[-1] = 10 * model.lm_head.weight.abs().amax()  # the last token becomes a likely one
    ids = IDS.clamp(max=rows - 1)
    found = model.generate(ids, max_new_tokens=20)
    model.save_pretrained(tmp_path / "saved")
    loaded = MixtralForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.config.vocab_size == rows and torch.equal(logits(loaded, ids), logits(model, ids))
    assert torch.equal(loaded.generate(ids, max_new_tokens=20), found)
    assert torch.equal(model.prepare_for_inference().generate(ids, max_new_tokens=20), found)
    assert (found[:, 9:] == rows - 1).any()
    if quantization is None:
        theirs = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "saved", experts_implementation="eager")
        assert_close(logits(model, ids), logits(theirs, ids), rtol=0,
                     atol=chain_error(2000) * logits(theirs, ids).abs().max().item())  # fmt: skip
        theirs.resize_token_embeddings(rows + 3)
        theirs.save_pretrained(tmp_path / "theirs")
        assert MixtralForCausalLM.from_pretrained(tmp_path / "theirs").config.vocab_size == rows + 3


def test_new_rows_train_whatever_the_mode_that_they_were_made_in(make_config):
    model = make(make_config)
    with torch.inference_mode():
        model.resize_token_embeddings(110)
    with torch.no_grad():
        model.resize_token_embeddings(120)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1.0)
    before = model.lm_head.weight.detach().clone()
    ids = torch.arange(105, 120)[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert (model.lm_head.weight - before).abs().amax(1)[105:].min() > 0


# Counts


@pytest.mark.parametrize("cls", CLASSES)
def test_counts_are_those_of_transformers(make_config, transformers_twin, cls):
    model = make(make_config, cls, num_labels=3)
    twin = transformers_twin(model)
    for each in (model, twin):
        each.model.embed_tokens.requires_grad_(False) if cls is not MixtralModel else each.norm.requires_grad_(False)
    for only_trainable in (False, True):
        for exclude in (False, True):
            options = {"only_trainable": only_trainable, "exclude_embeddings": exclude}
            assert model.num_parameters(**options) == twin.num_parameters(**options)
    assert model.num_parameters() > model.num_parameters(True) > model.num_parameters(True, True) - 1
    if cls is MixtralForCausalLM:
        assert model.num_parameters() == model.config.parameter_counts().total
    assert model.get_memory_footprint() == 4 * model.num_parameters()
    assert model.get_memory_footprint(return_buffers=False) == twin.get_memory_footprint(return_buffers=False)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_weights_are_counted_as_numbers_and_as_the_bytes_that_they_take(make_config, quantization):
    model = make(make_config, hidden_size=64, intermediate_size=128, head_dim=16)
    config, count = model.config, model.num_parameters()
    quantize_model(model, quantization)
    assert model.num_parameters() == count == config.parameter_counts().total
    assert model.num_parameters(only_trainable=True) == sum(p.numel() for p in model.parameters())
    assert model.get_memory_footprint() == checkpoint_bytes(config, quantization, torch.float32)
    assert model.get_memory_footprint(return_buffers=False) == 4 * model.num_parameters(only_trainable=True)


# Backends


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("method", "field", "values"),
    [("set_attn_implementation", "attn_implementation", ("eager", "sdpa")),
     ("set_experts_implementation", "experts_implementation", ("reference", "sorted", "grouped"))],
)  # fmt: skip
@pytest.mark.engine
def test_backends_are_settings_that_layers_follow(make_config, method, field, values):
    model = make(make_config, **{field: values[0]})
    right = logits(model)
    for value in values[::-1]:
        model.prepare_for_inference()
        assert getattr(model, method)(value) is None
        assert getattr(model.config, field) == value and model.prepared is None
        assert all(getattr(layer.self_attn.config, field) == value for layer in model.model.layers)
        assert_close(logits(model), right, **FORWARD)
        getattr(model.model, method)(value)  # a decoder has it too
    if field == "attn_implementation":
        model.set_attn_implementation("eager")
        assert model(IDS, output_attentions=True).attentions[0].shape == (2, 4, 9, 9)


@pytest.mark.numerics
def test_backends_are_those_of_transformers_where_both_have_them(make_config, transformers_twin):
    model = make(make_config)
    twin = transformers_twin(model)
    for name in ("eager", "sdpa"):
        for each in (model, twin):
            each.set_attn_implementation(name)
        assert_close(logits(model), logits(twin), **FORWARD)
    for each in (model, twin):
        with pytest.raises(ValueError, match="attn_implementation.*foo"):
            each.set_attn_implementation("foo")
        with pytest.raises(ValueError, match="experts_implementation.*foo"):
            each.set_experts_implementation("foo")


@pytest.mark.parametrize("value", ["foo", None, "", 3, {"": "eager"}])
def test_unknown_backends_are_refused_as_the_config_refuses_them(make_config, value):
    model = make(make_config)
    for name in ("attn_implementation", "experts_implementation"):
        before = getattr(model.config, name)
        with pytest.raises(ValueError) as expected:
            setattr(model.config, name, value)
        with pytest.raises(ValueError, match=f"^{name}=") as found:
            getattr(model, f"set_{name}")(value)
        assert str(found.value) == str(expected.value) and getattr(model.config, name) == before


def test_backends_that_cannot_run_here_are_refused_and_the_old_one_stays(make_config):
    model = make(make_config)
    with pytest.raises(ValueError, match="flash_attention_2"):
        model.set_attn_implementation("flash_attention_2")  # on a CPU
    model.config.attn_implementation = "eager"
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions=True.*'sdpa'"):
        model.set_attn_implementation("sdpa")
    assert model.config.attn_implementation == "eager"


@pytest.mark.engine
def test_a_model_without_the_engine_has_fewer_backends(make_config, tmp_path):
    make(make_config).save_pretrained(tmp_path / "saved")
    model = MixtralForCausalLM.from_pretrained(tmp_path / "saved", engine=False)
    with pytest.raises(ValueError, match="^experts_implementation='grouped' needs the engine.*'reference' or 'sorted'"):
        model.set_experts_implementation("grouped")
    with pytest.raises(ValueError, match="^attn_implementation='flash_attention_2' needs the engine"):
        model.set_attn_implementation("flash_attention_2")
    assert model.config.experts_implementation == "sorted" and model.config.attn_implementation == "sdpa"
    model.set_experts_implementation("reference")
    assert logits(model).isfinite().all()


# The rest


def test_modes_return_the_model_and_tying_changes_nothing(make_config):
    model = make(make_config)
    assert model.train() is model and model.training and model.eval() is model and not model.training
    right = logits(model)
    assert model.tie_weights() is None and torch.equal(logits(model), right)
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_ids_of_the_generation_config_are_followed(make_config, transformers_twin):
    model = make(make_config, eos_token_id=None, pad_token_id=3)
    twin = transformers_twin(model)
    stop = model.generate(IDS, max_new_tokens=1)[0, -1].item()
    results = []
    for each in (model, twin):
        assert each.generation_config.pad_token_id == 3 and each.generation_config.eos_token_id is None
        each.generation_config.eos_token_id, each.generation_config.pad_token_id = stop, 7
        results.append(each.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False))
    assert torch.equal(*results) and (results[0][0, 10:] == 7).all()
    assert make(make_config, MixtralForTokenClassification).generation_config is None
    with pytest.raises(AttributeError, match="temperature"):
        model.generation_config.temperature = 0.7
    with pytest.raises(AttributeError, match="generation_config"):
        model.generation_config = transformers.GenerationConfig()


TASKS = {
    MixtralModel: "FEATURE_EXTRACTION", MixtralForCausalLM: None, MixtralForSequenceClassification: "SEQ_CLS",
    MixtralForTokenClassification: "TOKEN_CLS", MixtralForQuestionAnswering: "QUESTION_ANS",
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
def test_adapters_of_peft_are_trained_saved_and_loaded(make_config, tmp_path, cls):
    """The causal model without a `task_type`: with "CAUSAL_LM" peft asks for attributes of the class in transformers.

    Given those, it would look for experts that are stacked in one tensor, as they are there.
    """
    model = make(make_config, cls, eos_token_id=None)
    twin = copy.deepcopy(model)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "w1"], task_type=TASKS[cls], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(twin, tmp_path / "adapter")

    def result(each: nn.Module) -> Tensor:
        out = each(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        return next(t for t in (out.logits, out.start_logits, out.last_hidden_state) if t is not None)

    assert torch.equal(result(adapted), result(again))
    with adapted.disable_adapter():
        assert not torch.equal(result(adapted), result(again))
    if cls is MixtralForCausalLM:
        found = [each.generate(input_ids=IDS, max_new_tokens=8) for each in (adapted, again, model)]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["push_to_hub", "enable_input_require_grads", "add_adapter", "dequantize"])
def test_what_is_not_here_is_not_there(make_config, name):
    assert hasattr(transformers.MixtralForCausalLM, name)
    with pytest.raises(AttributeError, match=f"'MixtralForCausalLM' object has no attribute '{name}'"):
        getattr(make(make_config), name)


def test_the_bundled_model_takes_new_tokens():
    model = MixtralForCausalLM.from_pretrained("tiny")
    tokenizer = mixtral_edu.MixtralTokenizer.from_pretrained("tiny")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    right = model.generate(ids, max_new_tokens=30)
    model.resize_token_embeddings(len(tokenizer) + 8, pad_to_multiple_of=64)
    assert torch.equal(model.generate(ids, max_new_tokens=30), right), "new tokens are not in the way"
    assert MixtralConfig.from_dict(model.config.to_dict()).vocab_size == model.config.vocab_size == 2112
