"""Models in 8 and 4 bits: which weights are rounded, what they take, how they load, save, run and refuse."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from mixtral_edu import (
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForSequenceClassification,
    MixtralModel,
    MixtralTokenizer,
)
from mixtral_edu.data import probe_text
from mixtral_edu.quantization.layers import Int4Linear, Int8Linear
from mixtral_edu.quantization.model import QuantizationConfig, checkpoint_bytes, quantization_of, quantize_model
from mixtral_edu.training.trainer import bits_per_byte
from tolerances import unit

pytestmark = pytest.mark.numerics

FORMS = ["int8", "int4", QuantizationConfig(4, group_size=32)]
SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "sliding_window": 5}  # fmt: skip
IDS = torch.arange(14).reshape(2, 7)
ROUNDED = {
    f"layers.{layer}.{name}"
    for layer in range(2)
    for name in [f"self_attn.{m}_proj" for m in "qkvo"]
    + [f"block_sparse_moe.experts.{e}.w{i}" for e in range(3) for i in (1, 2, 3)]
}


def small_model(model_class=MixtralForCausalLM, dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(0)
    return model_class(MixtralConfig(**SIZES | {"initializer_range": 0.1} | changes)).eval().to(dtype)


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    expected, found = one.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.fixture
def folder(tmp_path):
    small_model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_setting_is_a_name_a_config_or_what_a_checkpoint_says():
    assert QuantizationConfig.parse("int8") == QuantizationConfig(8) == QuantizationConfig(8, None)
    assert QuantizationConfig.parse("int4") == QuantizationConfig(4) == QuantizationConfig(4, 64)
    for form in (QuantizationConfig(8), QuantizationConfig(4, 32)):
        assert QuantizationConfig.parse(form) is form
        assert QuantizationConfig.parse(json.loads(json.dumps(form.to_dict()))) == form
    assert QuantizationConfig.parse(None) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizationConfig(2), "bits=2: it must be 8 or 4"),
        (lambda: QuantizationConfig("4"), "bits='4'"),
        (lambda: QuantizationConfig(8, 64), "group_size=64 with bits=8"),
        (lambda: QuantizationConfig(4, 1), "group_size=1: it must be a whole number of at least 2"),
        (lambda: QuantizationConfig(4, 64.0), "group_size=64.0"),
        (lambda: QuantizationConfig.parse("nf4"), "quantization='nf4': it must be quantization=\"int4\", \"int8\""),
        (lambda: QuantizationConfig.parse(4), "quantization of type int: it must be quantization=\"int4\""),
        (lambda: QuantizationConfig.parse({"quant_method": "gptq", "bits": 4}), "quant_method='gptq'.*=\"int4\""),
    ],
)  # fmt: skip
def test_a_setting_without_meaning_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_class", [MixtralForCausalLM, MixtralModel])
def test_attention_and_experts_are_rounded_and_nothing_else(form, model_class):
    model = small_model(model_class)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    quantize_model(model, form)
    rounded = {name for name, layer in model.named_modules() if isinstance(layer, Int8Linear | Int4Linear)}
    assert {name.removeprefix("model.") for name in rounded} == ROUNDED
    kept = dict(model.named_parameters())
    assert kept.keys() == {name for name in before if name.removesuffix(".weight") not in rounded}
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    assert quantization_of(model) == QuantizationConfig.parse(form)
    for name in rounded:
        error = (model.get_submodule(name).dequantize() - before[name + ".weight"]).norm()
        assert error < (0.01 if form == "int8" else 0.12) * before[name + ".weight"].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_a_rounded_model_computes_with_its_rounded_weights(form, dtype):
    """The same numbers in plain layers are the reference; in bfloat16 the kernels round differently."""
    model, plain = small_model(dtype=dtype), small_model(dtype=dtype)
    quantize_model(model, form)
    for name in ROUNDED:
        plain.model.get_submodule(name).weight.data = model.model.get_submodule(name).dequantize()
    ids = torch.arange(60).reshape(3, 20)
    with torch.no_grad():
        out, expected = (m(ids, output_hidden_states=True).hidden_states for m in (model, plain))
    if dtype == torch.float32:
        assert_close(out[-1], expected[-1], rtol=0, atol=1e-5)
    else:  # a router's near tie may fall the other way: most tokens have none
        error = (out[-1] - expected[-1]).float().norm(dim=-1) / expected[-1].float().norm(dim=-1)
        steps = 16 * model.config.num_hidden_layers  # numbers are rounded some 16 times a layer, in both models
        assert error.median() < unit(dtype) * (2 * steps) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [None, *FORMS])
def test_the_memory_is_what_the_sizes_say(form, dtype):
    model = small_model(dtype=dtype)
    if form is not None:
        quantize_model(model, form)
    found = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert found == checkpoint_bytes(model.config, form, dtype)


def test_mixtral_8x7b_takes_a_quarter():
    config = MixtralConfig.mixtral_8x7b()
    sizes = {g: checkpoint_bytes(config, QuantizationConfig(4, g)) / 1e9 for g in (32, 64, 128)}
    assert {g: round(size, 1) for g, size in sizes.items()} == {32: 29.6, 64: 26.6, 128: 25.2}
    large = 46_702_792_704 - 2 * 32000 * 4096 - 32 * 8 * 4096 - 65 * 4096  # without embedding, head, routers, norms
    assert checkpoint_bytes(config, QuantizationConfig(4, 64)) == large // 2 + 2 * (
        46_702_792_704 - large + 2 * large // 64
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_rounding_while_loading_is_rounding_afterwards(folder, form, dtype):
    loaded = MixtralForCausalLM.from_pretrained(folder, quantization=form, dtype=dtype)
    assert not loaded.training and not any(tensor.is_meta for tensor in loaded.state_dict().values())
    model = MixtralForCausalLM.from_pretrained(folder)
    if dtype is None:
        quantize_model(model, form)
        assert_equal_weights(loaded, model)
    for name in ROUNDED:  # from the stored float32 numbers, also where the scales are bfloat16
        layer = copy.deepcopy(loaded.model.get_submodule(name))
        weight = small_model().model.get_submodule(name).weight.detach()
        assert_equal_weights(layer, loaded.model.get_submodule(name))
        layer.quantize_(weight, torch.float32 if dtype is None else torch.bfloat16)
        assert_equal_weights(layer, loaded.model.get_submodule(name))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_a_rounded_checkpoint_saves_and_loads(folder, form, dtype, max_shard_size):
    model = MixtralForCausalLM.from_pretrained(folder, quantization=form, dtype=dtype)
    with torch.no_grad():
        logits = model(IDS).logits
    target = folder.with_name("rounded")
    model.save_pretrained(target, max_shard_size=max_shard_size)
    loaded = MixtralForCausalLM.from_pretrained(target)
    assert_equal_weights(model, loaded)
    assert loaded.config == MixtralConfig.from_pretrained(target)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, logits)
    assert_equal_weights(model, MixtralForCausalLM.from_pretrained(target, quantization=form))
    assert_equal_weights(model.model, MixtralModel.from_pretrained(target))
    stored = {}
    for path in target.glob("*.safetensors"):
        stored |= load_file(path)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == checkpoint_bytes(model.config, form, dtype)
    converted = MixtralForCausalLM.from_pretrained(target, dtype="float16")
    assert {t.dtype for t in converted.state_dict().values()} == {torch.float16, stored_type(form)}


def stored_type(form) -> torch.dtype:
    return torch.int8 if form == "int8" else torch.uint8


def test_an_unquantized_config_does_not_mention_it(folder):
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_a_checkpoint_rounded_in_another_way_is_refused(folder):
    target = folder.with_name("rounded")
    MixtralForCausalLM.from_pretrained(folder, quantization="int4").save_pretrained(target)
    with pytest.raises(ValueError, match=r"quantization=.*bits=8.*rounded holds weights .* quantized already.*bits=4"):
        MixtralForCausalLM.from_pretrained(target, quantization="int8")
    with pytest.raises(ValueError, match="q_proj is quantized already"):
        quantize_model(MixtralForCausalLM.from_pretrained(target), "int4")
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quant_method='awq'"):
        MixtralForCausalLM.from_pretrained(target)


def test_rounded_tensors_of_another_type_or_shape_are_named(folder):
    target = folder.with_name("rounded")
    MixtralForCausalLM.from_pretrained(folder, quantization="int4").save_pretrained(target)
    tensors = load_file(target / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight_int4"
    for wrong, message in (
        (tensors[name].to(torch.int8), "is stored as I8 .* U8"),
        (tensors[name].float(), "is stored as F32 .* U8"),
        (tensors[name][:, 1:].contiguous(), r"is \(64, 31\) .*\(64, 32\)"),
    ):
        save_file(tensors | {name: wrong}, target / "model.safetensors")
        with pytest.raises(ValueError, match=f"{name} in model.safetensors {message}"):
            MixtralForCausalLM.from_pretrained(target)
    (target / "config.json").write_text(json.dumps(small_model().config.to_dict()))
    with pytest.raises(ValueError, match=r"missing \(26\): .*\n  unexpected \(52\): "):
        MixtralForCausalLM.from_pretrained(target)


def test_a_form_that_does_not_fit_is_named_with_the_layer_and_leaves_the_model(folder):
    form = QuantizationConfig(4, 96)
    with pytest.raises(ValueError, match="group_size=96: model.layers.0.self_attn.q_proj has 64 inputs"):
        MixtralForCausalLM.from_pretrained(folder, quantization=form)
    model = small_model(intermediate_size=100)
    with pytest.raises(ValueError, match="group_size=64: model.layers.0.block_sparse_moe.experts.0.w2 has 100 inputs"):
        quantize_model(model, "int4")
    with pytest.raises(ValueError, match='^quantization=None: it must be "int4"'):
        quantize_model(model, None)
    assert quantization_of(model) is None and model.config.quantization_config is None


def test_numbers_that_are_not_finite_are_named(folder):
    model = MixtralForCausalLM.from_pretrained(folder)
    model.model.layers[1].self_attn.v_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(ValueError, match="model.layers.1.self_attn.v_proj holds numbers that are not finite"):
        quantize_model(model, "int8")
    assert quantization_of(model) is None
    model.save_pretrained(folder, overwrite=True)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.v_proj\.weight in model\.safetensors holds numbers"):
        MixtralForCausalLM.from_pretrained(folder, quantization="int4")


def test_transformers_name_of_the_argument_takes_our_settings_and_not_theirs(folder):
    form = QuantizationConfig(8)
    assert quantization_of(MixtralForCausalLM.from_pretrained(folder, quantization_config=form)) == form
    theirs = transformers.BitsAndBytesConfig(load_in_4bit=True)
    for name in ("quantization", "quantization_config"):
        with pytest.raises(ValueError, match='of type BitsAndBytesConfig: it must be quantization="int4"'):
            MixtralForCausalLM.from_pretrained(folder, **{name: theirs})
    with pytest.raises(ValueError, match="quantization='int4' and quantization_config="):
        MixtralForCausalLM.from_pretrained(folder, quantization="int4", quantization_config=form)


def test_a_head_on_rounded_weights_trains(folder):
    with pytest.warns(UserWarning, match=r"score\.weight"):
        model = MixtralForSequenceClassification.from_pretrained(folder, num_labels=3, quantization="int4")
    assert quantization_of(model) == QuantizationConfig(4) and isinstance(model.score, nn.Linear)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = model(IDS, attention_mask=torch.ones_like(IDS), labels=torch.tensor([0, 2])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    after = model.state_dict()
    changed = {name for name, t in before.items() if not torch.equal(after[name], t)}
    assert "score.weight" in changed and not any("int4" in name or "scale" in name for name in changed)


@pytest.fixture(scope="module")
def bits_of_tiny() -> dict[str | None, float]:
    """Bits per byte on texts that were written for this package and never trained on."""
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    documents = [probe_text(domain)[:2000] for domain in ("stories", "shakespeare", "python")]
    models = {form: MixtralForCausalLM.from_pretrained("tiny", dtype="float32", quantization=form)
              for form in (None, "int8", "int4")}  # fmt: skip
    return {form: bits_per_byte(model, tokenizer, documents) for form, model in models.items()}


def test_eight_bits_cost_the_trained_model_next_to_nothing_and_four_little(bits_of_tiny):
    assert abs(bits_of_tiny["int8"] - bits_of_tiny[None]) < 0.005
    assert 0 < bits_of_tiny["int4"] - bits_of_tiny[None] < 0.02


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rounded_model_tells_a_story(dtype):
    model = MixtralForCausalLM.from_pretrained("tiny", quantization="int4", dtype=dtype)
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    ids = model.generate(**tokenizer(["Once upon a time"], return_tensors="pt"), max_new_tokens=12)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True)[0].startswith("Once upon a time there was a")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own figure of peak memory")
def test_loading_in_four_bits_never_holds_the_whole_model(tmp_path):
    """A child loads 109 MB of bfloat16 weights; its peak grows by the 4-bit size, not by the 16-bit one."""
    config = MixtralConfig(**SIZES | {"hidden_size": 512, "intermediate_size": 1408, "num_local_experts": 8,
                                      "num_hidden_layers": 3, "dtype": "bfloat16"})  # fmt: skip
    MixtralForCausalLM(config).bfloat16().save_pretrained(tmp_path / "large")
    script = """
import re, sys
from mixtral_edu import MixtralForCausalLM
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
MixtralForCausalLM.from_pretrained("tiny", quantization="int4")  # whatever is imported or allocated once
before = peak()
model = MixtralForCausalLM.from_pretrained(sys.argv[1], quantization=sys.argv[2] if sys.argv[2:] else None)
print(peak() - before)
"""
    # Tensors get pages of their own, which go back at once; a heap with holes would add up to the whole model's size.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    grown = [
        int(subprocess.run([sys.executable, "-c", script, str(tmp_path / "large"), *form], text=True, check=True,
                           stdout=subprocess.PIPE, env=environment).stdout)
        for form in ((), ("int4",))
    ]  # fmt: skip
    whole, rounded = checkpoint_bytes(config), checkpoint_bytes(config, "int4")
    on_the_way = 512 * 1408 * (2 + 2 * 4)  # one matrix as stored, and twice in float32
    assert grown[0] > 0.8 * whole, "the measurement sees what it should"
    assert grown[1] < rounded + 2 * on_the_way < 0.6 * whole


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rounded_model_on_a_gpu_is_that_on_the_cpu(form, dtype):
    ids = MixtralTokenizer.from_pretrained("tiny")(["Once upon a time there was a fox"], return_tensors="pt").input_ids
    logits = {}
    for device in ("cpu", "cuda"):
        model = MixtralForCausalLM.from_pretrained("tiny", quantization=form, dtype=dtype, device=device)
        with torch.no_grad():
            logits[device] = model(ids.to(device)).logits.float().cpu()
    error = (logits["cuda"] - logits["cpu"]).norm(dim=-1) / logits["cpu"].norm(dim=-1)
    assert error.median() < (1e-4 if dtype == "float32" else 0.03)
