"""`params.json` in both of Mistral's forms: read as a config, written so that nothing is lost, refused by name."""

import json

import pytest

from mixtral_edu import MixtralConfig
from mixtral_edu.checkpoints.params import to_params
from raw_checkpoints import first_release_params_of, params_of

# As Mistral published it beside the weights of Mixtral-8x22B; the file of 8x7B has no rope_theta.
RELEASED = {"dim": 6144, "n_layers": 56, "head_dim": 128, "hidden_dim": 16384, "n_heads": 48, "n_kv_heads": 8,
            "rope_theta": 1000000, "norm_eps": 1e-05, "vocab_size": 32000,
            "moe": {"num_experts_per_tok": 2, "num_experts": 8}}


@pytest.fixture
def read(tmp_path):
    """Write a dictionary (or a text) as params.json, and read it as a config."""

    def read(params: dict | str) -> MixtralConfig:
        (tmp_path / "params.json").write_text(params if isinstance(params, str) else json.dumps(params))
        return MixtralConfig.from_pretrained(tmp_path)

    return read


def without(params: dict, *names: str) -> dict:
    return {name: value for name, value in params.items() if name not in names}


def test_the_released_sizes_are_read(read):
    changes = {"max_position_embeddings": 32768, "dtype": None}
    assert read(RELEASED) == MixtralConfig.mixtral_8x22b(**changes)
    small = RELEASED | {"dim": 4096, "n_layers": 32, "hidden_dim": 14336, "n_heads": 32}
    assert read(without(small, "rope_theta")) == MixtralConfig.mixtral_8x7b(dtype=None, router_aux_loss_coef=0.001)


def test_both_forms_are_read(read, make_config):
    config = make_config(rope_theta=5e4, rms_norm_eps=1e-4)
    assert read(params_of(config)) == config
    assert read(first_release_params_of(config)) == config


def test_missing_fields_have_the_released_values(read):
    bare = without(RELEASED, "rope_theta", "norm_eps", "head_dim")
    nulls = bare | {"rope_theta": None, "norm_eps": None, "head_dim": None, "sliding_window": None}
    for params in (bare, nulls):
        config = read(params)
        assert (config.rope_theta, config.rms_norm_eps, config.head_dim) == (1e6, 1e-5, 128)
        assert config.sliding_window is None and config.max_position_embeddings == 32768


@pytest.mark.parametrize("window, wanted", [("4096", 4096), (4096, 4096), ("null", None), ("None", None), (None, None)])
def test_a_window_may_be_text(read, window, wanted):
    assert read(RELEASED | {"sliding_window": window}).sliding_window == wanted


@pytest.mark.parametrize("name", ["dim", "n_layers", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size"])
def test_missing_sizes_are_named(read, name):
    with pytest.raises(ValueError, match=rf"params\.json lacks '{name}' \(or '\w+'\)$"):
        read(without(RELEASED, name))


def test_all_missing_fields_are_named_at_once(read):
    with pytest.raises(ValueError, match=r"params\.json lacks 'dim' .*'moe\.num_experts' .*'moe\.num_experts_per_tok'"):
        read({})
    with pytest.raises(ValueError, match=r"lacks 'moe\.num_experts' \(or 'num_local_experts'\), 'moe\.num_"):
        read(without(RELEASED, "moe"))
    with pytest.raises(ValueError, match=r"lacks 'moe\.num_experts_per_tok'"):
        read(RELEASED | {"moe": {"num_experts": 8}})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": "4096"}, "dim='4096': .*whole number"),
        ({"n_layers": 0}, "n_layers=0: .*whole number"),
        ({"n_heads": True}, "n_heads=True: .*whole number"),
        ({"moe": {"num_experts": 2.5, "num_experts_per_tok": 2}}, "num_experts=2.5: .*whole number"),
        ({"moe": 8}, "moe=8: .*num_experts and num_experts_per_tok"),
        ({"sliding_window": "wide"}, "sliding_window='wide'"),
        ({"sliding_window": 0}, "sliding_window=0"),
        ({"n_kv_heads": 7}, "num_key_value_heads=7: .*divisor"),
        ({"norm_eps": -1}, "rms_norm_eps=-1: .*positive"),
        ({"hidden_size": 4096}, "dim=6144 and hidden_size=4096 disagree"),
        ({"model_type": "mamba"}, "model_type='mamba'"),
        ({"tied_embeddings": True}, "tied_embeddings=True .*False"),
        ({"yarn": {"factor": 4}}, r"yarn=\{'factor': 4\} .*None"),
        ({"lora": {"rank": 8}}, "lora="),
    ],
)
def test_invalid_values_are_named_with_their_file(read, change, message):
    with pytest.raises(ValueError, match=rf"params\.json: .*{message}"):
        read(RELEASED | change)


@pytest.mark.parametrize("text, message", [("", "not valid JSON"), ("{", "not valid JSON"), ("[]", "holds a list")])
def test_damage_is_named(read, text, message):
    with pytest.raises(ValueError, match=rf"params\.json {message}|params\.json is {message}"):
        read(text)


def test_a_config_json_goes_first(read, tmp_path, make_config):
    make_config().save_pretrained(tmp_path)
    assert read(RELEASED) == make_config()


def test_what_other_models_have_is_silent_where_it_says_no(read):
    silent = {"model_type": "transformer", "use_biases": False, "causal": True, "tied_embeddings": False, "lora": None}
    assert read(RELEASED | silent) == read(RELEASED)


def test_unknown_fields_are_kept_with_a_warning(read):
    with pytest.warns(UserWarning, match=r"unknown config fields .*\['max_batch_size'\]") as caught:
        config = read(RELEASED | {"max_batch_size": 4})
    assert len(caught) == 1 and config.extra == {"max_batch_size": 4}
    defaults = MixtralConfig().to_dict()
    written = to_params(config.to_dict(), defaults)
    assert written == RELEASED | {"max_batch_size": 4, "max_position_embeddings": 32768}


def test_what_is_written_is_read_as_the_same_config(read, make_config):
    defaults = MixtralConfig().to_dict()
    plain = to_params(make_config(sliding_window=None).to_dict(), defaults)
    assert plain == without(params_of(make_config(sliding_window=None)), "sliding_window")  # and nothing else
    rich = make_config(rope_theta=1e4, eos_token_id=[2, 3], pad_token_id=0, router_aux_loss_coef=0.02, dtype="float16",
                       id2label={0: "no", 1: "yes", 2: "perhaps"}, max_position_embeddings=131072)
    assert read(to_params(rich.to_dict(), defaults)) == rich
