"""The whole model against transformers on small random ones, its options, and what it refuses."""

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from mixtral_edu import MixtralForCausalLM, MixtralModel, RollingKVCache
from mixtral_edu.api import models
from mixtral_edu.config import Config
from mixtral_edu.moe import load_balancing_loss
from tolerances import FORWARD, chain_error

pytestmark = pytest.mark.numerics

MODELS = {
    "E=8 K=2, window": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 7},
    "E=8 K=2, eager": {"num_local_experts": 8, "sliding_window": 3, "attn_implementation": "eager"},
    "E=16 K=4, no window": {"num_local_experts": 16, "num_experts_per_tok": 4, "sliding_window": None},
    "E=16 K=4, Hq = Hkv": {"num_local_experts": 16, "num_experts_per_tok": 4, "num_key_value_heads": 4},
    "one key-value head, window of one": {"num_key_value_heads": 1, "sliding_window": 1, "pad_token_id": 3},
    "wide window, reference experts": {
        "sliding_window": 50,
        "num_key_value_heads": 1,
        "experts_implementation": "reference",
    },
}
PADDINGS = ("none", "left", "right", "holes")
B, T = 3, 23


def mask_of(padding: str, T: int = T) -> Tensor:
    mask = torch.ones(B, T, dtype=torch.long)
    if padding == "left":
        mask[0, :4] = mask[1, :11] = 0
    if padding == "right":
        mask[0, -4:] = mask[1, -11:] = 0
    if padding == "holes":
        mask[0, 4:6] = mask[1, 2] = mask[1, 7:17] = mask[2, 0] = 0
    return mask


def random_model(make_config, cls=MixtralForCausalLM, **changes):
    """A model in evaluation mode whose layers really change their input."""
    return cls(make_config(initializer_range=0.2, router_aux_loss_coef=0.5, **changes)).eval()


def labels_of(ids: Tensor, mask: Tensor) -> Tensor:
    """The ids, but for padding, for what comes after it (nothing is predicted from padding), and two more."""
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 1:].masked_fill_(mask[:, :-1] == 0, -100)
    labels[2, 5:7] = -100
    return labels


@pytest.fixture(scope="module", params=[(name, padding) for name in MODELS for padding in PADDINGS], ids=" | ".join)
def pair(request, make_config, transformers_twin):
    """Outputs and gradients of a model and its twin for the same batch."""
    name, padding = request.param
    torch.manual_seed(1)
    ours = random_model(make_config, **MODELS[name])
    theirs = transformers_twin(ours)
    ids, mask = torch.randint(0, 101, (B, T)), mask_of(padding)
    call = {
        "input_ids": ids,
        "attention_mask": None if padding == "none" else mask,
        "labels": labels_of(ids, mask),
        "use_cache": False,
        "output_router_logits": True,
        "output_hidden_states": True,
    }
    outputs = ours(**call), theirs(**call)
    for output in outputs:
        output.loss.backward()
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (ours, theirs)]
    return SimpleNamespace(
        ours=outputs[0], theirs=outputs[1], gradients=gradients, real=mask.bool(), window=ours.config.sliding_window
    )


def test_logits_equal_transformers(pair):
    assert pair.theirs.logits.std() > 0.5, "large enough for a difference to show"
    assert_close(pair.ours.logits[pair.real], pair.theirs.logits[pair.real], **FORWARD)


def test_hidden_states_equal_transformers(pair):
    assert len(pair.ours.hidden_states) == 3 + 1
    for ours, theirs in zip(pair.ours.hidden_states, pair.theirs.hidden_states, strict=True):
        assert_close(ours[pair.real], theirs[pair.real], **FORWARD)


def test_router_logits_equal_transformers(pair):
    real = pair.real.flatten()
    for ours, theirs in zip(pair.ours.router_logits, pair.theirs.router_logits, strict=True):
        assert ours.shape == theirs.shape
        assert_close(ours[real], theirs[real], **FORWARD)


def test_losses_equal_transformers(pair):
    assert_close(pair.ours.loss, pair.theirs.loss, rtol=0, atol=5e-6)
    assert_close(pair.ours.aux_loss, pair.theirs.aux_loss, rtol=0, atol=5e-6)


def test_gradients_equal_transformers(pair, to_transformers):
    ours, theirs = to_transformers(pair.gradients[0]), pair.gradients[1]
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # In a window of one the weight of the only key is 1, whatever q and k are.
        assert expected.any() or (pair.window == 1 and ("q_proj" in name or "k_proj" in name))
        assert_close(ours[name], expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_text_much_longer_than_the_window_equals_transformers(make_config, transformers_twin, backend, padding):
    ours = random_model(make_config, attn_implementation=backend, sliding_window=5)
    ids, mask = torch.randint(0, 101, (B, 150)), mask_of(padding, 150)
    with torch.no_grad():
        logits, expected = (model(ids, attention_mask=mask).logits for model in (ours, transformers_twin(ours)))
    assert_close(logits[mask.bool()], expected[mask.bool()], **FORWARD)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window", [None, 7])
def test_attentions_equal_transformers(make_config, transformers_twin, window, padding):
    ours = random_model(make_config, attn_implementation="eager", sliding_window=window)
    mask = mask_of(padding)
    call = {"input_ids": torch.randint(0, 101, (B, T)), "attention_mask": mask, "output_attentions": True}
    attentions = ours(**call).attentions
    assert len(attentions) == 3 and attentions[0].shape == (B, 4, T, T)
    for weights, expected in zip(attentions, transformers_twin(ours)(**call).attentions, strict=True):
        ours_real, theirs_real = (w.transpose(1, 2)[mask.bool()] for w in (weights, expected))
        assert_close(ours_real, theirs_real, rtol=0, atol=chain_error(1000))  # weights are at most 1


def test_base_model_equals_transformers(make_config, transformers_twin):
    ours = random_model(make_config, MixtralModel)
    call = {"input_ids": torch.randint(0, 101, (B, T)), "attention_mask": mask_of("left"), "output_hidden_states": True}
    out, expected = ours(**call), transformers_twin(ours)(**call)
    real = mask_of("left").bool()
    assert_close(out.last_hidden_state[real], expected.last_hidden_state[real], **FORWARD)
    assert_close(out.hidden_states[-1], out.last_hidden_state, rtol=0, atol=0)


def test_given_position_ids_equal_transformers(make_config, transformers_twin):
    ours = random_model(make_config)
    positions = torch.randint(0, 90, (B, T)).sort(dim=1).values
    call = {"input_ids": torch.randint(0, 101, (B, T)), "attention_mask": mask_of("none"), "position_ids": positions}
    logits = ours(**call).logits
    assert_close(logits, transformers_twin(ours)(**call).logits, **FORWARD)
    assert (logits - ours(call["input_ids"]).logits).abs().max() > 0.1, "they matter"
    one_row = {**call, "position_ids": positions[:1]}
    assert_close(ours(**one_row).logits, transformers_twin(ours)(**one_row).logits, **FORWARD)


@pytest.mark.parametrize("kept", [1, 5, T, 99, torch.tensor([0, 7, 22]), torch.tensor([3])])
def test_logits_to_keep_equals_transformers(make_config, transformers_twin, kept):
    ours = random_model(make_config)
    ids = torch.randint(0, 101, (B, T))
    logits = ours(ids, logits_to_keep=kept).logits
    assert_close(logits, transformers_twin(ours)(ids, logits_to_keep=kept).logits, **FORWARD)


def test_convention_documented_shapes(make_config):
    ours = random_model(make_config, attn_implementation="eager")
    ids = torch.randint(0, 101, (B, T))
    out = ours(ids, labels=ids, output_router_logits=True, output_hidden_states=True, output_attentions=True)
    assert out.loss.shape == out.aux_loss.shape == () and out.logits.shape == (B, T, 101)
    assert [h.shape for h in out.hidden_states] == [(B, T, 44)] * 4
    assert [r.shape for r in out.router_logits] == [(B * T, 5)] * 3
    assert [a.shape for a in out.attentions] == [(B, 4, T, T)] * 3
    assert ours.model(ids).last_hidden_state.shape == (B, T, 44)
    # A second pass: T=2 new tokens against W - 1 = 6 older ones and themselves.
    out = ours(ids[:, :2], past_key_values=out.past_key_values, output_attentions=True, output_router_logits=True)
    assert out.attentions[0].shape == (B, 4, 2, 8) and out.router_logits[0].shape == (B * 2, 5)


def test_none_means_the_configs_value(make_config):
    fields = ("output_router_logits", "output_hidden_states", "output_attentions", "use_cache")
    ids = torch.randint(0, 101, (B, T))
    on = random_model(make_config, attn_implementation="eager", **dict.fromkeys(fields, True))
    off = random_model(make_config, **dict.fromkeys(fields, False))
    returned = ("aux_loss", "router_logits", "hidden_states", "attentions", "past_key_values")
    assert all(getattr(on(ids), name) is not None for name in returned)
    assert all(getattr(off(ids), name) is None for name in (*returned, "loss"))
    assert all(getattr(on(ids, **dict.fromkeys(fields, False)), name) is None for name in returned)


def test_inputs_embeds_in_place_of_ids(make_config):
    ours = random_model(make_config)
    ids, mask = torch.randint(0, 101, (B, T)), mask_of("left")
    by_ids = ours(ids, attention_mask=mask).logits
    embeds = ours.model.embed_tokens(ids)
    assert_close(ours(inputs_embeds=embeds, attention_mask=mask).logits, by_ids, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.long])
def test_mask_dtypes_and_a_mask_of_ones(make_config, dtype):
    ours = random_model(make_config)
    ids = torch.randint(0, 101, (B, T))
    assert_close(ours(ids, torch.ones(B, T, dtype=dtype)).logits, ours(ids).logits, **FORWARD)
    left = mask_of("left")
    assert_close(ours(ids, left.to(dtype)).logits, ours(ids, left).logits, rtol=0, atol=0)


def test_padding_is_never_inferred_from_ids(make_config):
    ours = random_model(make_config, pad_token_id=0)
    ids = torch.randint(1, 101, (B, T))
    ids[:, :3] = 0
    assert_close(ours(ids).logits, ours(ids, torch.ones_like(ids)).logits, **FORWARD)
    masked = ours(ids, (ids != 0).long()).logits
    assert (ours(ids).logits - masked)[:, 3:].abs().max() > 0.1


@pytest.mark.parametrize("padding", PADDINGS[1:])
def test_what_stands_at_padding_reaches_no_real_token_and_is_finite(make_config, padding):
    ours = random_model(make_config)
    ids, real = torch.randint(0, 101, (B, T)), mask_of(padding).bool()
    others = torch.where(real, ids, torch.randint(0, 101, (B, T)))
    first, second = ours(ids, real).logits, ours(others, real).logits
    assert first.isfinite().all() and second.isfinite().all()
    assert_close(first[real], second[real], **FORWARD)


def test_convention_a_rows_position_zero_is_its_first_real_token(make_config):
    """A left-padded text gets the same angles, not just the same distances, as the text alone."""
    ours = random_model(make_config, sliding_window=None)
    ids = torch.randint(0, 101, (1, 9))
    padded = torch.cat((torch.zeros(1, 6, dtype=torch.long), ids), 1)
    mask = torch.tensor([[0] * 6 + [1] * 9])
    cache = ours(padded, mask).past_key_values
    keys = cache.view().keys  # (1, Hkv, slots, Dh) of the first layer
    assert_close(keys[:, :, :9], ours(ids).past_key_values.view().keys[:, :, :9], **FORWARD)
    first = ours.model.layers[0]
    unrotated = first.self_attn.k_proj(first.input_layernorm(ours.model.embed_tokens(ids[0, 0])))
    assert_close(keys[0, :, 0].flatten(), unrotated, **FORWARD)


def test_the_loss_is_cross_entropy_of_the_next_token_plus_weighted_aux_loss(make_config):
    ours = random_model(make_config)
    ids = torch.randint(0, 101, (B, T))
    out = ours(ids, labels=ids, output_router_logits=True)
    plain = F.cross_entropy(out.logits[:, :-1].reshape(-1, 101), ids[:, 1:].reshape(-1))
    assert_close(ours(ids, labels=ids).loss, plain)
    assert_close(out.loss, plain + 0.5 * out.aux_loss)
    assert_close(out.aux_loss, load_balancing_loss(out.router_logits, 5, 2))


def test_a_text_of_one_token_has_no_next_one_and_costs_nothing(make_config):
    ours = random_model(make_config)
    ids = torch.randint(0, 101, (B, 1))
    loss = ours(ids, labels=ids).loss
    assert loss == 0
    loss.backward()
    assert not any(p.grad.any() for p in ours.parameters() if p.grad is not None)
    out = ours(ids, labels=ids, output_router_logits=True)
    assert_close(out.loss, 0.5 * out.aux_loss)


def test_a_batch_of_nothing_but_padding_adds_nothing_to_the_loss(make_config):
    ours = random_model(make_config)
    ids = torch.randint(0, 101, (B, T))
    out = ours(ids, torch.zeros_like(ids), labels=torch.full_like(ids, -100), output_router_logits=True)
    assert out.loss == 0 and out.aux_loss == 0
    out.loss.backward()
    assert not any(p.grad.any() for p in ours.parameters() if p.grad is not None)


@pytest.mark.parametrize("T", [1, 2, 9])
def test_gradients_do_not_depend_on_the_cache(make_config, T):
    gradients = []
    ours = random_model(make_config)
    ids = torch.randint(0, 101, (B, T))
    for use_cache in (False, True):
        ours.zero_grad()
        ours(ids, use_cache=use_cache).logits.square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in ours.named_parameters() if p.grad is not None})
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_bfloat16_is_close_to_float32_where_the_router_is_sure(make_config):
    """A near-tie may send a token to another expert in bfloat16. Only there may the two models differ in kind."""
    ours = random_model(make_config, num_local_experts=8)
    ids = torch.randint(0, 101, (64, 5))
    exact = ours(ids, output_router_logits=True)
    rounded = ours.bfloat16()(ids, output_router_logits=True)
    assert rounded.logits.dtype == torch.bfloat16 and rounded.router_logits[0].dtype == torch.bfloat16
    undisturbed = torch.ones(64, dtype=torch.bool)
    for logits, logits16 in zip(exact.router_logits, rounded.router_logits, strict=True):
        best = logits.topk(3).values
        margin = (best[:, 1] - best[:, 2]).view(64, 5)  # between the last expert chosen and the first left out
        chosen, chosen16 = (x.topk(2).indices.sort(-1).values for x in (logits, logits16.float()))
        flipped = (chosen != chosen16).any(-1).view(64, 5)
        assert not (flipped & undisturbed[:, None] & (margin > 0.1 * logits.std())).any()
        undisturbed &= ~flipped.any(1)
    assert undisturbed.sum() >= 16
    error = (rounded.logits - exact.logits)[undisturbed]
    assert error.norm() < 0.05 * exact.logits[undisturbed].norm()


def test_hidden_states_that_nobody_asked_for_are_freed_on_the_way(make_config):
    """A long prompt would otherwise hold L + 1 of them."""
    ours = random_model(make_config)
    outputs, alive = [], []
    for layer in ours.model.layers:
        layer.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in outputs)))
        layer.register_forward_hook(lambda *call: outputs.append(weakref.ref(call[-1][0])))
    with torch.no_grad():
        ours(torch.randint(0, 101, (B, T)), use_cache=False)
    assert alive == [0, 1, 1]


IDS = torch.arange(10).view(2, 5)
REFUSED = {
    "neither ids nor embeddings": ({}, "input_ids and inputs_embeds"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 5, 44)}, "input_ids and inputs_embeds"),
    "empty prompt": ({"input_ids": IDS[:, :0]}, r"input_ids.*\(2, 0\)"),
    "no rows": ({"input_ids": IDS[:0]}, r"input_ids.*\(0, 5\)"),
    "one row without a batch": ({"input_ids": IDS[0]}, r"input_ids.*\(5,\)"),
    "id too large": ({"input_ids": IDS + 92}, "input_ids.*101.*100"),
    "negative id": ({"input_ids": IDS - 1}, "input_ids.*-1"),
    "embeddings without a batch": ({"inputs_embeds": torch.zeros(5, 44)}, r"inputs_embeds.*\(5, 44\)"),
    "embeddings of another size": ({"inputs_embeds": torch.zeros(2, 5, 43)}, r"inputs_embeds.*\(2, 5, 43\).*44"),
    "mask too short": ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"attention_mask.*\(2, 4\).*\(2, 5\)"),
    "mask too long": ({"input_ids": IDS, "attention_mask": torch.ones(2, 6)}, r"attention_mask.*\(2, 6\).*\(2, 5\)"),
    "mask of another batch": ({"input_ids": IDS, "attention_mask": torch.ones(1, 5)}, r"attention_mask.*\(1, 5\)"),
    "mask of four dimensions": ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask"),
    "positions of another length": ({"input_ids": IDS, "position_ids": IDS[:, :4]}, r"position_ids.*\(2, 4\)"),
    "positions of another batch": ({"input_ids": IDS, "position_ids": IDS[:1].expand(3, 5)}, r"position_ids.*\(3, 5\)"),
    "positions without a batch": ({"input_ids": IDS, "position_ids": torch.arange(5)}, r"position_ids.*\(5,\)"),
    "labels of another length": ({"input_ids": IDS, "labels": IDS[:, :4]}, r"labels.*\(2, 4\).*\(2, 5\)"),
    "labels with few logits": ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, "labels.*logits_to_keep"),
    "a negative number of logits": ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep=-1"),
    "half a logit": ({"input_ids": IDS, "logits_to_keep": 0.5}, "logits_to_keep=0.5"),
    "attentions of sdpa": ({"input_ids": IDS, "output_attentions": True}, "output_attentions.*'sdpa'.*eager"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_and_the_cache_is_as_it_was(make_config, name):
    ours = random_model(make_config)
    cache = RollingKVCache(ours.config, 2)
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ours(**call, past_key_values=cache)
    assert cache.get_seq_length() == 0 and (cache.positions == -1).all()
    assert_close(ours(IDS, past_key_values=cache).logits, ours(IDS).logits, rtol=0, atol=0)


def test_a_mask_that_fits_neither_the_new_tokens_nor_all_of_them(make_config):
    ours = random_model(make_config)
    cache = ours(IDS).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask.*\(2, 6\).*\(2, 2\).*5 columns.*\(2, 7\)"):
        ours(IDS[:, :2], attention_mask=torch.ones(2, 6), past_key_values=cache)


OTHER_CACHES = {
    "rows": ({}, {"batch_size": 3}, "rows 3.* 2$"),
    "dtype": ({}, {"dtype": torch.bfloat16}, "dtype torch.bfloat16.*float32$"),
    "device": ({}, {"device": "meta"}, "device meta.*cpu$"),
    "window": ({"sliding_window": 5}, {}, "window 5.* 7$"),
    "layers": ({"num_hidden_layers": 2}, {}, "layers 2.* 3$"),
    "heads": ({"num_key_value_heads": 1}, {}, "key-value heads 1.* 2$"),
    "head_dim": ({"head_dim": 10}, {}, "head_dim 10.* 14$"),
}


@pytest.mark.parametrize("name", OTHER_CACHES)
def test_a_cache_that_was_made_for_something_else_is_refused(make_config, name):
    changes, arguments, message = OTHER_CACHES[name]
    ours = random_model(make_config)
    with pytest.raises(ValueError, match=rf"past_key_values \(cache\) has {message}"):
        ours(IDS, past_key_values=RollingKVCache(make_config(**changes), **{"batch_size": 2} | arguments))


def test_arguments_of_another_type_are_named(make_config):
    ours = random_model(make_config)
    for arguments in (
        {"input_ids": IDS.tolist()},
        {"input_ids": IDS.float()},
        {"inputs_embeds": [[1.0]]},
        {"input_ids": IDS, "attention_mask": [[1] * 5] * 2},
        {"input_ids": IDS, "position_ids": list(range(5))},
        {"input_ids": IDS, "labels": IDS.tolist()},
        {"input_ids": IDS, "past_key_values": ()},
    ):
        with pytest.raises(TypeError, match=f"^{list(arguments)[-1]}"):
            ours(**arguments)


def test_labels_outside_the_vocabulary_are_refused_and_ignored_ones_are_not(make_config):
    ours = random_model(make_config)
    labels = IDS.clone()
    labels[0, 2] = -100
    assert ours(IDS, labels=labels).loss == ours(IDS, labels=labels.int()).loss
    with pytest.raises(ValueError, match="labels.*0 to 101.*100"):
        ours(IDS, labels=labels.masked_fill(IDS == 7, 101).masked_fill(IDS == 1, 0))


def test_weights_start_with_the_configs_deviation_and_the_padding_row_at_zero(make_config):
    model = MixtralForCausalLM(make_config(initializer_range=0.05, hidden_size=440, vocab_size=1000, pad_token_id=3))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
    assert not model.model.embed_tokens.weight[3].any()
    assert not list(model.buffers())


def test_parameter_names_are_the_published_ones(make_config):
    layer = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "block_sparse_moe.gate",
        *(f"block_sparse_moe.experts.{e}.w{i}" for e in range(5) for i in (1, 2, 3)),
        "input_layernorm",
        "post_attention_layernorm",
    ]
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.layers.{i}.{name}.weight" for i in range(3) for name in layer}
    assert {name for name, _ in MixtralForCausalLM(make_config()).named_parameters()} == expected
    base = {name.removeprefix("model.") for name in expected - {"lm_head.weight"}}
    assert {name for name, _ in MixtralModel(make_config()).named_parameters()} == base


def test_device_and_dtype_are_those_of_the_weights(make_config):
    model = MixtralForCausalLM(make_config())
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.bfloat16().dtype == torch.bfloat16
    with torch.device("meta"):
        assert MixtralForCausalLM(make_config()).device == torch.device("meta")


def test_a_class_of_ones_own_draws_its_weights_and_has_its_parts(make_config):
    class Scaled(MixtralForCausalLM):
        def init_weights(self):
            super().init_weights()
            for layer in self.model.layers:
                torch.nn.init.zeros_(layer.self_attn.o_proj.weight)

    class Own(models.PreTrained):
        def __init__(self, config):
            super().__init__(config)
            self.model = MixtralModel(config)

    assert not Scaled(make_config()).model.layers[0].self_attn.o_proj.weight.any()
    config = make_config()
    assert Own(config).config is config and Own(config).dtype == torch.float32
    with pytest.raises(TypeError, match="config is a Config; it must be a MixtralConfig"):
        MixtralForCausalLM(Config())


def test_hooks_keep_what_the_decoder_returned_without_a_heads_results(make_config):
    model, kept = MixtralForCausalLM(make_config()).eval(), []
    model.model.register_forward_hook(lambda module, inputs, output: kept.append(output))
    ids = torch.tensor([[3, 4]])
    assert model(ids, labels=ids).loss is not None and kept[0].loss is None and kept[0].logits is None
