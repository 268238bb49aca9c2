"""Sizes and settings: the released models' numbers, what is refused, and config.json in both of transformers' forms."""

import dataclasses
import json

import pytest
import torch

from mixtral_edu import MixtralConfig, MixtralForCausalLM

# As transformers 4 wrote it for the released Mixtral-8x7B.
V4_CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}


def without_the_attributes_of_loading(config: MixtralConfig) -> dict:
    return {name: value for name, value in dataclasses.asdict(config).items() if not name.endswith("_implementation")}


def test_defaults_are_those_of_transformers():
    import transformers

    theirs = transformers.MixtralConfig()
    ours = MixtralConfig()
    assert ours.head_dim == 128 and theirs.head_dim is None  # which means the same there
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    for name, value in ours.to_dict().items():
        if name not in ("head_dim", "rope_theta"):
            assert getattr(theirs, name) == value, name


def test_parameters_of_the_released_models():
    counts = MixtralConfig.mixtral_8x7b().parameter_counts()
    assert counts.total == 46_702_792_704 == MixtralConfig().parameter_counts().total
    assert round(counts.active / 1e9, 2) == 12.88
    assert sum(counts.per_part.values()) == counts.total
    large = MixtralConfig.mixtral_8x22b().parameter_counts()
    assert round(large.total / 1e9) == 141 and round(large.active / 1e9) == 39


def test_presets():
    released = MixtralConfig.mixtral_8x7b()
    assert (released.max_position_embeddings, released.router_aux_loss_coef) == (32768, 0.02)
    assert released.sliding_window is None and released.rope_theta == 1e6 and released.head_dim == 128
    assert MixtralConfig.from_dict(V4_CONFIG) == released
    large = MixtralConfig.mixtral_8x22b()
    assert (large.hidden_size, large.intermediate_size, large.num_hidden_layers) == (6144, 16384, 56)
    assert (large.num_attention_heads, large.num_key_value_heads, large.head_dim) == (48, 8, 128)
    assert large.max_position_embeddings == 65536
    assert MixtralConfig.tiny(sliding_window=9, vocab_size=50).sliding_window == 9
    assert MixtralConfig.mixtral_8x7b(num_hidden_layers=1).num_hidden_layers == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_local_experts": 1, "num_experts_per_tok": 1},
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 1, "vocab_size": 3},
    ],
)
def test_counts_are_those_of_a_built_model(make_config, changes):
    config = make_config(**changes)
    model = MixtralForCausalLM(config)
    counts = config.parameter_counts()
    parts = {
        "embedding": "embed_tokens",
        "attention": "self_attn",
        "router": "gate",
        "experts": ".experts.",
        "norms": "norm",
        "lm_head": "lm_head",
    }
    for part, name in parts.items():
        assert counts.per_part[part] == sum(p.numel() for n, p in model.named_parameters() if name in n), part
    assert counts.total == sum(p.numel() for p in model.parameters())
    unused = config.num_local_experts - config.num_experts_per_tok
    expert = sum(p.numel() for p in model.model.layers[0].block_sparse_moe.experts[0].parameters())
    assert counts.active == counts.total - config.num_hidden_layers * unused * expert


INVALID = [
    *(
        pytest.param({name: value}, name, id=f"{name}={value}")
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "num_experts_per_tok",
            "num_local_experts",
            "max_position_embeddings",
        )
        for value in (0, 2.5, True)
    ),
    *(
        pytest.param({name: value}, name, id=f"{name}={value}")
        for name, value in {
            "num_key_value_heads": 3,
            "num_experts_per_tok": 6,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
            "attention_dropout": 1.0,
            "router_jitter_noise": -0.1,
            "rms_norm_eps": 0.0,
            "rope_theta": 0.0,
            "num_labels": 0,
            "problem_type": "guessing",
            "pad_token_id": 101,
            "bos_token_id": -1,
            "eos_token_id": [2, 101],
        }.items()
    ),
    pytest.param({"sliding_window": 0}, "sliding_window", id="W=0"),
    pytest.param({"sliding_window": -3}, "sliding_window", id="W=-3"),
    pytest.param({"sliding_window": 2.0}, "sliding_window", id="W=2.0"),
    pytest.param({"head_dim": 7}, "head_dim", id="odd head_dim"),
    pytest.param({"head_dim": 0}, "head_dim", id="head_dim=0"),
    pytest.param({"head_dim": None, "hidden_size": 42}, "hidden_size", id="hidden_size does not divide"),
    pytest.param({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters", id="yarn"),
    pytest.param({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling", id="linear"),
    pytest.param({"dtype": "float12"}, "dtype", id="dtype=float12"),
]


@pytest.mark.parametrize(("changes", "field"), INVALID)
def test_invalid_values_are_refused_and_the_message_begins_with_the_field(make_config, changes, field):
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        make_config(**changes)


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps", "attention_dropout", "router_jitter_noise"])
def test_a_missing_number_is_refused_by_name(make_config, field):
    with pytest.raises((TypeError, ValueError), match=field):
        make_config(**{field: None})


def test_head_dim_is_derived_or_given(make_config):
    assert make_config(head_dim=None, hidden_size=48).head_dim == 12
    assert make_config(head_dim=6, hidden_size=48).head_dim == 6


def test_labels():
    assert MixtralConfig().num_labels == 2 and MixtralConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert MixtralConfig(id2label={"0": "a", "1": "b", "2": "c"}).num_labels == 3
    assert MixtralConfig(num_labels=4).id2label[3] == "LABEL_3"


def test_rope_parameters_are_read_as_transformers_5_passes_them():
    assert MixtralConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e4}).rope_theta == 5e4
    assert MixtralConfig(rope_scaling={"type": "default", "rope_theta": 5e4}).rope_theta == 5e4
    assert MixtralConfig(rope_theta=5e4, rope_scaling=None).rope_scaling == {"rope_type": "default", "rope_theta": 5e4}


def test_a_dictionary_of_transformers_5_is_read_in_silence():
    import transformers

    theirs = transformers.MixtralConfig(
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=7,
        num_local_experts=5,
        rope_parameters={"rope_type": "default", "rope_theta": 3e4},
        id2label={0: "a", 1: "b", 2: "c"},
        eos_token_id=[2, 5],
        dtype="bfloat16",
    )
    ours = MixtralConfig.from_dict(json.loads(json.dumps(theirs.to_dict(), default=str)))
    assert ours.rope_theta == 3e4 and ours.dtype == "bfloat16" and ours.head_dim == 12 and ours.extra == {}
    for name in ("hidden_size", "sliding_window", "num_local_experts", "id2label", "num_labels", "eos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_dictionary_of_transformers_4_is_read_in_silence():
    config = MixtralConfig.from_dict(V4_CONFIG | {"rope_theta": 2e4, "rope_scaling": None, "_name_or_path": "x"})
    assert config.rope_theta == 2e4 and config.dtype == "bfloat16" and config.extra == {}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 7e3},
        {"rope_parameters": {"rope_theta": 7e3, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 7e3}},
        {"rope_theta": 7e3, "rope_scaling": {"type": "default"}},
        {"rope_theta": 7e3, "rope_parameters": {"rope_theta": 7e3, "rope_type": "default"}},
    ],
)
def test_each_spelling_of_rope_theta(spelling):
    assert MixtralConfig.from_dict(spelling).rope_theta == 7e3


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: .*'linear'.*'default'; scaled rotary"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}}, "rope_parameters: .*scaled rotary"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
        ({"model_type": "mistral"}, "model_type"),
    ],
)
def test_what_this_model_does_not_compute_is_refused_by_name(values, field):
    with pytest.raises(ValueError, match=f"^{field}"):
        MixtralConfig.from_dict(values)


def test_unknown_keys_are_kept_saved_again_and_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="colour.*flavour"):
        config = MixtralConfig.from_dict({"flavour": "up", "colour": {"hue": 3}, "hidden_size": 64})
    assert config.extra == {"flavour": "up", "colour": {"hue": 3}} and config.hidden_size == 64
    config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="colour.*flavour"):
        assert MixtralConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": None, "head_dim": 12, "eos_token_id": [1, 2], "pad_token_id": 0},
        {"id2label": {0: "yes", 1: "no", 2: "maybe"}, "problem_type": "regression"},
        {"dtype": "bfloat16", "rope_theta": 12345.0, "attention_dropout": 0.25},
    ],
)
def test_round_trip_through_a_file_and_into_transformers(make_config, tmp_path, changes):
    import transformers

    config = make_config(**changes, attn_implementation="eager", experts_implementation="reference")
    config.save_pretrained(tmp_path / "new" / "folder")
    again = MixtralConfig.from_pretrained(tmp_path / "new" / "folder")
    assert without_the_attributes_of_loading(again) == without_the_attributes_of_loading(config)
    assert (again.attn_implementation, again.experts_implementation) == ("sdpa", "sorted"), "not part of a checkpoint"

    theirs = transformers.MixtralConfig.from_pretrained(tmp_path / "new" / "folder")
    for name, value in without_the_attributes_of_loading(config).items():
        if name == "dtype" and value is not None:
            value = getattr(torch, value)
        if name == "quantization_config":
            assert value is None and not hasattr(theirs, name), "they take its presence for a quantized checkpoint"
        elif name not in ("extra", "rope_theta"):
            assert getattr(theirs, name) == value, name
    assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": config.rope_theta}


def test_a_saved_file_carries_both_spellings_of_rope_theta(tmp_path):
    MixtralConfig.tiny(rope_theta=77.0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 77.0
    assert values["model_type"] == "mixtral"


def test_a_file_that_is_missing_or_no_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        MixtralConfig.from_pretrained(tmp_path)
    for text in ("{", "[1, 2]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            MixtralConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("preset", ["mixtral_8x7b", "mixtral_8x22b", "tiny"])
def test_presets_take_rope_parameters_too(preset):
    config = getattr(MixtralConfig, preset)(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert config.rope_theta == 5e5


def test_label_names_that_nobody_chose_follow_the_number_of_labels():
    assert list(dataclasses.replace(MixtralConfig(), num_labels=3).id2label.values()) == [
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    ]
    with pytest.raises(ValueError, match="num_labels=3 and id2label with 2"):
        MixtralConfig(num_labels=3, id2label={0: "bad", 1: "good"})
