"""Loading and saving models: what comes back is what was there, here and in transformers, and nothing is guessed."""

import json
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import mixtral_edu
from mixtral_edu import MixtralConfig, MixtralForCausalLM, MixtralModel
from mixtral_edu import MixtralForTokenClassification as Classifier  # a model whose head a checkpoint may lack
from mixtral_edu.api.models import PreTrained
from mixtral_edu.checkpoints import shards
from mixtral_edu.checkpoints.safetensors_file import write_safetensors

pytestmark = pytest.mark.numerics

NORM = "model.layers.1.input_layernorm.weight"
IDS = torch.arange(14).reshape(2, 7)


def small_model(model_class: type[PreTrained] = MixtralForCausalLM, seed: int = 0, **changes) -> PreTrained:
    sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
             "num_attention_heads": 6, "num_key_value_heads": 2, "num_local_experts": 3, "sliding_window": 5}
    torch.manual_seed(seed)
    model = model_class(MixtralConfig(**sizes | changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)  # norms and biases too: two tensors of one shape are never alike
    return model.eval()


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    expected, found = one.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def edit_weights(folder: Path, change, file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved checkpoint in one file."""
    small_model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def refused(monkeypatch):
    """Assert that a folder is refused before a single tensor is read."""

    def read(stored, buffer=None):
        pytest.fail(f"{stored.name} was read")

    def check(folder: Path, error: type[Exception], match: str, model_class=MixtralForCausalLM, **options) -> None:
        with pytest.raises(error, match=match):
            model_class.from_pretrained(folder, **options)

    monkeypatch.setattr(shards.StoredTensor, "read", read)
    return check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB", 1])
def test_a_round_trip_is_bit_equal(tmp_path, dtype, max_shard_size):
    model = small_model().to(dtype)
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    assert (tmp_path / "saved" / "model.safetensors").exists() == (max_shard_size == "5GB")
    loaded = MixtralForCausalLM.from_pretrained(tmp_path / "saved")
    assert_equal_weights(model, loaded)
    assert loaded.config == MixtralConfig.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_loaded_model_evaluates_and_every_parameter_trains(folder):
    loaded = MixtralForCausalLM.from_pretrained(folder)
    assert not any(module.training for module in loaded.modules())
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded(IDS, labels=IDS).loss.backward()
    assert loaded.lm_head.weight.grad.abs().sum() > 0


def test_dtype_is_converted_while_loading(folder):
    loaded = MixtralForCausalLM.from_pretrained(folder, dtype="bfloat16")
    assert_equal_weights(small_model().to(torch.bfloat16), loaded)
    assert loaded.config.dtype == "bfloat16"
    assert MixtralForCausalLM.from_pretrained(folder, torch_dtype=torch.float16).dtype == torch.float16
    assert MixtralForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.float32
    with pytest.raises(ValueError, match="dtype='int8'"):
        MixtralForCausalLM.from_pretrained(folder, dtype="int8")


def test_the_checkpoints_dtype_is_the_configs_or_else_each_tensors_own(tmp_path):
    mixed = small_model()
    mixed.model.layers[0].to(torch.bfloat16)
    mixed.save_pretrained(tmp_path / "mixed")
    assert_equal_weights(mixed, MixtralForCausalLM.from_pretrained(tmp_path / "mixed"))
    edit_config(tmp_path / "mixed", lambda config: config.update(dtype="float16"))
    assert_equal_weights(mixed.to(torch.float16), MixtralForCausalLM.from_pretrained(tmp_path / "mixed"))


def test_devices_have_an_old_name(folder):
    assert MixtralForCausalLM.from_pretrained(folder, device_map="cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="device='cpu' and device_map='auto'"):
        MixtralForCausalLM.from_pretrained(folder, device="cpu", device_map="auto")


@pytest.mark.gpu
def test_weights_go_to_the_gpu(folder):
    for options in ({"device": "cuda"}, {"device_map": "auto"}, {"device_map": "cuda"}):
        loaded = MixtralForCausalLM.from_pretrained(folder, **options)
        assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert_equal_weights(small_model(), loaded.cpu())


def test_settings_reach_the_config(folder):
    loaded = MixtralForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="reference", num_labels=5, problem_type="regression"
    )
    assert (loaded.config.attn_implementation, loaded.config.experts_implementation) == ("eager", "reference")
    assert (loaded.config.num_labels, loaded.config.problem_type) == (5, "regression")
    assert loaded(IDS, output_attentions=True).attentions is not None
    for option in ("attn_implementation", "experts_implementation", "problem_type"):
        with pytest.raises(ValueError, match=f"{option}='fastest'"):
            MixtralForCausalLM.from_pretrained(folder, **{option: "fastest"})
    with pytest.raises(ValueError, match="num_labels=0"):
        MixtralForCausalLM.from_pretrained(folder, num_labels=0)


def test_transformers_loads_what_was_saved(tmp_path):
    model = small_model()
    for max_shard_size in ("5GB", "40KB"):
        model.save_pretrained(tmp_path / max_shard_size, max_shard_size=max_shard_size)
        theirs, info = transformers.MixtralForCausalLM.from_pretrained(
            tmp_path / max_shard_size, output_loading_info=True)
        assert {"missing_keys", "unexpected_keys"} <= info.keys() and not any(info.values()), info
        torch.testing.assert_close(theirs.eval()(IDS).logits, model(IDS).logits, atol=2e-5, rtol=1e-5)


def test_transformers_loads_a_model_without_a_head(tmp_path):
    model = small_model(MixtralModel)
    model.save_pretrained(tmp_path / "base")
    theirs, info = transformers.MixtralModel.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not any(info.values()), info
    expected = model(IDS).last_hidden_state
    torch.testing.assert_close(theirs.eval()(IDS).last_hidden_state, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_what_transformers_saved_is_loaded(tmp_path, max_shard_size):
    config = transformers.MixtralConfig(**small_model().config.to_dict())
    theirs = transformers.MixtralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    ours = MixtralForCausalLM.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=2e-5, rtol=1e-5)


def test_a_base_model_that_transformers_saved_is_loaded(tmp_path):
    config = transformers.MixtralConfig(**small_model().config.to_dict())
    theirs = transformers.MixtralModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = MixtralModel.from_pretrained(tmp_path / "theirs")
    expected = theirs(IDS).last_hidden_state
    torch.testing.assert_close(ours(IDS).last_hidden_state, expected, atol=2e-5, rtol=1e-5)


def test_a_config_of_transformers_v4_is_read(folder):
    def as_in_v4(config):
        del config["rope_parameters"], config["dtype"]
        config.update(torch_dtype="bfloat16", transformers_version="4.36.0.dev0")

    edit_config(folder, as_in_v4)
    assert_equal_weights(small_model().to(torch.bfloat16), MixtralForCausalLM.from_pretrained(folder))


def test_the_prefix_is_optional_both_ways(folder):
    assert_equal_weights(small_model().model, MixtralModel.from_pretrained(folder))

    def drop_prefix(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_weights(folder, drop_prefix)
    assert_equal_weights(small_model(), MixtralForCausalLM.from_pretrained(folder))


def test_a_tensor_with_and_without_prefix_is_refused(folder, refused):
    edit_weights(folder, lambda tensors: tensors.update({"norm.weight": tensors["model.norm.weight"] + 1}))
    refused(folder, ValueError, r"norm\.weight in model\.safetensors, besides (model\.)?norm\.weight")


def test_a_missing_head_is_initialised_with_one_warning_where_it_is_optional(folder):
    with pytest.warns(UserWarning, match=r"score\.weight, score\.bias.*train") as caught:
        classifier = Classifier.from_pretrained(folder, num_labels=3, dtype="float64")
    assert len(caught) == 1
    assert_equal_weights(small_model().model.to(torch.float64), classifier.model)
    weight, bias = classifier.score.weight, classifier.score.bias
    assert weight.shape == (3, 24) and weight.dtype == bias.dtype == torch.float64
    assert 0.5 < weight.std() / classifier.config.initializer_range < 2 and bias.eq(0).all()
    assert weight.requires_grad and not classifier.training


def test_a_present_head_is_loaded_and_other_models_leave_it_out(tmp_path):
    classifier = small_model(Classifier, num_labels=4)
    classifier.save_pretrained(tmp_path / "classifier")
    assert_equal_weights(classifier, Classifier.from_pretrained(tmp_path / "classifier"))
    assert_equal_weights(classifier.model, MixtralModel.from_pretrained(tmp_path / "classifier"))


def test_a_head_for_another_number_of_labels_is_refused(tmp_path, refused):
    small_model(Classifier, num_labels=4).save_pretrained(tmp_path / "classifier")
    message = r"score\.weight .*\(4, 24\).* \(3, 24\) .*ignore_mismatched_sizes=True"
    refused(tmp_path / "classifier", ValueError, message, Classifier, num_labels=3)


@pytest.mark.parametrize("name", ["MixtralForSequenceClassification", "MixtralForTokenClassification"])
def test_a_head_for_another_number_of_labels_is_drawn_where_that_is_asked_for(tmp_path, name, recwarn):
    ours, theirs = getattr(mixtral_edu, name), getattr(transformers, name)
    trained = small_model(ours, num_labels=4, dtype="float32")
    trained.save_pretrained(tmp_path / "saved")
    options = {"num_labels": 300, "ignore_mismatched_sizes": True}
    model = ours.from_pretrained(tmp_path / "saved", **options)
    (warning,) = recwarn
    text = str(warning.message)
    assert "score.weight of shape (300, 24), but (4, 24)" in text and "train before use" in text
    assert ("score.bias of shape (300,), but (4,)" in text) == (model.score.bias is not None)
    twin = theirs.from_pretrained(tmp_path / "saved", **options)
    for head in (model.score, twin.score):
        assert head.weight.shape == (300, 24) and head.weight.requires_grad
        assert head.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert head.bias is None or head.bias.shape == (300,) and not head.bias.any()
    assert_equal_weights(trained.model, model.model)
    assert model.config.num_labels == len(model.config.id2label) == twin.config.num_labels == 300
    model.save_pretrained(tmp_path / "again")
    assert_equal_weights(model, ours.from_pretrained(tmp_path / "again"))
    assert_equal_weights(trained, ours.from_pretrained(tmp_path / "saved", ignore_mismatched_sizes=True))
    assert len(recwarn) == 1, "a head that fits is loaded"


def test_only_a_heads_size_is_ignored(tmp_path, refused):
    small_model(Classifier, num_labels=4).save_pretrained(tmp_path / "saved")
    options = {"model_class": Classifier, "num_labels": 3, "ignore_mismatched_sizes": True}
    edit_weights(tmp_path / "saved", lambda tensors: tensors.update({NORM: torch.ones(23)}))
    refused(tmp_path / "saved", ValueError, rf"\(1\): {NORM} in model\.safetensors is \(23,\) .*\(24,\) by the config$",
            **options)  # fmt: skip
    edit_weights(tmp_path / "saved", lambda tensors: tensors.update({NORM: torch.ones(24)}))
    edit_weights(tmp_path / "saved", lambda tensors: tensors.update({"score.gain": torch.ones(2)}))
    refused(tmp_path / "saved", ValueError, r"unexpected \(1\): score\.gain", **options)
    small_model().save_pretrained(tmp_path / "causal")
    edit_weights(tmp_path / "causal", lambda tensors: tensors.update({"lm_head.weight": torch.ones(98, 24)}))
    refused(tmp_path / "causal", ValueError, r"lm_head\.weight .*\(98, 24\).*by the config$",
            ignore_mismatched_sizes=True)  # fmt: skip


def test_a_causal_model_needs_its_head(tmp_path, refused):
    small_model(Classifier).save_pretrained(tmp_path / "classifier")
    refused(tmp_path / "classifier", ValueError, r"missing \(1\): lm_head\.weight")


def test_an_optional_head_excuses_nothing_else(folder, refused):
    edit_weights(folder, lambda tensors: tensors.update({"score.gain": torch.ones(2)}))
    refused(folder, ValueError, r"unexpected \(1\): score\.gain", Classifier)
    edit_weights(folder, lambda tensors: (tensors.pop("score.gain"), tensors.pop(NORM)))
    refused(folder, ValueError, rf"missing \(1\): {NORM}", Classifier)


def test_rotary_tables_of_old_checkpoints_are_left_out(folder):
    table = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(2)}
    edit_weights(folder, lambda tensors: tensors.update(table))
    assert_equal_weights(small_model(), MixtralForCausalLM.from_pretrained(folder))


def test_missing_tensors_are_named_and_counted(folder, refused):
    edit_weights(folder, lambda tensors: tensors.pop(NORM))
    refused(folder, ValueError, rf"saved does not fit MixtralForCausalLM:\n  missing \(1\): {NORM}$")
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "experts" in name])
    refused(folder, ValueError, r"missing \(19\): .*experts\.0\.w1\.weight.* and 15 more$")


def test_unexpected_and_misshapen_tensors_are_named_with_their_file(folder, refused):
    edit_weights(folder, lambda tensors: tensors.update({NORM: torch.ones(23), "model.surplus": torch.ones(1)}))
    refused(folder, ValueError, r"unexpected \(1\): model\.surplus in model\.safetensors\n")
    refused(folder, ValueError, rf"{NORM} in model\.safetensors is \(23,\) .*\(24,\)")
    edit_weights(folder, lambda tensors: tensors.update({NORM: torch.ones(24, dtype=torch.int8)}))
    refused(folder, ValueError, rf"{NORM} in model\.safetensors is stored as I8")


def test_damage_is_noticed_before_loading(folder, refused):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, ValueError, r"model\.safetensors is truncated or corrupted")
    path.unlink()
    refused(folder, FileNotFoundError, r"neither model\.safetensors nor")
    edit_config(folder, lambda config: config.update(dtype="int4"))
    refused(folder, ValueError, "dtype='int4'")
    (folder / "config.json").unlink()
    refused(folder, FileNotFoundError, r"config\.json")


def test_a_raw_mistral_folder_is_recognised(folder, refused):
    (folder / "config.json").rename(folder / "params.json")
    refused(folder, ValueError, r"raw Mistral checkpoint.*\n    python -m mixtral_edu convert .*saved TARGET --to hf$")


def test_too_little_memory_is_noticed_before_loading(folder, monkeypatch, refused):
    needed = sum(p.numel() * 4 for p in small_model().parameters()) + 97 * 24 * 4  # and the largest tensor on its way
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=needed - 1))
    refused(folder, MemoryError, f"saved needs {needed / 1e9:.3g} GB on cpu.* {(needed - 1) / 1e9:.3g} GB are free")
    monkeypatch.undo()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=needed))
    MixtralForCausalLM.from_pretrained(folder)


@pytest.mark.gpu
def test_too_little_gpu_memory_is_noticed_before_loading(folder, monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    refused(folder, MemoryError, "on cuda.* 1e-06 GB are free", device="cuda")


def test_shared_and_strided_weights_are_saved_right(tmp_path):
    model = small_model()
    expert = model.model.layers[0].block_sparse_moe.experts[0]
    expert.w3.weight = expert.w1.weight  # one parameter under two names
    both = torch.randn(2 * 24, 24)
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight = nn.Parameter(both[:24])  # two views of one memory
    attention.o_proj.weight = nn.Parameter(both[24:])
    model.lm_head.weight = nn.Parameter(torch.randn(24, 97).T)
    model.save_pretrained(tmp_path / "saved")
    assert_equal_weights(model, MixtralForCausalLM.from_pretrained(tmp_path / "saved"))


def test_a_model_is_saved_over_the_folder_it_came_from(folder):
    (folder / "tokenizer.model").write_bytes(b"pieces")
    loaded = MixtralForCausalLM.from_pretrained(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        loaded.save_pretrained(folder)
    loaded.save_pretrained(folder, max_shard_size="40KB", overwrite=True)
    assert not (folder / "model.safetensors").exists()
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    assert_equal_weights(small_model(), loaded)  # its memory was never the file's
    assert_equal_weights(small_model(), MixtralForCausalLM.from_pretrained(folder))


def test_a_save_that_fails_between_shards_leaves_the_old_checkpoint(folder, monkeypatch):
    written = []

    def fail_at_the_third(path, tensors):
        if len(written) == 2:
            raise OSError("disk full")
        written.append(path)
        write_safetensors(path, tensors)

    monkeypatch.setattr(shards, "write_safetensors", fail_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        small_model(seed=1).save_pretrained(folder, max_shard_size="20KB", overwrite=True)
    assert len(written) == 2 and [path.name for path in folder.parent.iterdir()] == ["saved"]
    assert_equal_weights(small_model(), MixtralForCausalLM.from_pretrained(folder))


def test_runtime_settings_are_not_saved(folder):
    model = MixtralForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="bfloat16")
    before = model.config.to_dict()
    model.save_pretrained(folder.with_name("again"))
    assert model.config.to_dict() == before
    config = json.loads((folder.with_name("again") / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"] and config["dtype"] == "bfloat16"
    assert "attn_implementation" not in config
    assert MixtralForCausalLM.from_pretrained(folder.with_name("again")).config.attn_implementation == "sdpa"
