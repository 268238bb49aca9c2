"""Gradient checkpointing: the same results and gradients, bit for bit, from far less that is kept."""

import copy
import io
import pickle

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from mixtral_edu import (
    MixtralForCausalLM,
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
    RollingKVCache,
)
from mixtral_edu.cache import RollingCache
from mixtral_edu.config import Config
from mixtral_edu.fast import checkpointing, engine
from mixtral_edu.fast.checkpointing import CheckpointedLayer
from mixtral_edu.heads import CausalLM
from mixtral_edu.model import DecoderLayer
from mixtral_edu.moe import Expert
from mixtral_edu.quantization.model import quantize_model
from mixtral_edu.training.trainer import Trainer, TrainingConfig
from tolerances import chain_error

pytestmark = pytest.mark.numerics

B, T = 2, 90  # longer than the window and a block of queries
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # that one product over all experts takes
RANDOM = {"attention_dropout": 0.3, "router_jitter_noise": 0.2}


def make_model(make_config, **changes) -> MixtralForCausalLM:
    return MixtralForCausalLM(make_config(**SIZES | {"initializer_range": 0.2} | changes)).train()


def ids_for(model: nn.Module, length: int = T) -> Tensor:
    return torch.randint(model.config.vocab_size, (B, length), generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, length: int = T, **call) -> list[Tensor | None]:
    """What a step of training gives: losses, logits, router logits, each gradient, and the next random number."""
    ids = ids_for(model, length)
    torch.manual_seed(5)
    model.zero_grad()
    out = model(ids, **{"labels": ids, "output_router_logits": True} | call)
    out.loss.backward()
    gradients = [p.grad for p in model.parameters()]
    return [out.loss, out.aux_loss, out.logits, *out.router_logits, *gradients, torch.rand(1)]


def assert_same(found: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))


def experts_run(model: nn.Module) -> list[int]:
    """Count how often experts run, by hooks on their own modules."""
    runs = []
    for module in model.modules():
        if isinstance(module, Expert):
            module.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("experts", ["reference", "sorted", "grouped"])
@pytest.mark.parametrize("changes", [{}, RANDOM, {"sliding_window": None}], ids=["plain", "random", "no window"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_results_and_gradients_are_the_same_bits(make_config, attention, experts, changes, autocast):
    model = make_model(make_config, attn_implementation=attention, experts_implementation=experts, **changes)
    length = 20 if experts == "reference" else T  # a loop over tokens is slow
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = step(model, length)
        model.gradient_checkpointing_enable()
        found = step(model, length)
    assert_same(found, wanted)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_random_numbers_are_those_of_the_first_computation(make_config, monkeypatch):
    """Without them the second computation would drop other weights: this shows that the test above would see it."""
    model = make_model(make_config, **RANDOM)
    wanted = step(model)
    plain = checkpointing.checkpoint
    monkeypatch.setattr(checkpointing, "checkpoint", lambda *args, **kw: plain(*args, **kw, preserve_rng_state=False))
    model.gradient_checkpointing_enable()
    with pytest.raises((AssertionError, torch.utils.checkpoint.CheckpointError)):
        assert_same(step(model), wanted)


def test_each_layer_runs_twice_in_training_and_once_everywhere_else(make_config):
    model = make_model(make_config)
    runs = experts_run(model)
    ids = ids_for(model)

    def counted(run) -> int:
        runs.clear()
        run()
        return len(runs)

    once = counted(lambda: step(model))
    model.gradient_checkpointing_enable()
    assert counted(lambda: step(model)) == 2 * once == 2 * 3 * 5
    with torch.no_grad():
        assert counted(lambda: model(ids)) <= once
    model.eval()
    assert counted(lambda: step(model)) <= once


def kept_bytes(model: nn.Module) -> int:
    """How many bytes a forward pass keeps for its backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(ids_for(model))
    assert out.last_hidden_state.requires_grad
    return sum(kept.values())


def test_a_layer_keeps_its_input_and_nothing_else(make_config):
    D, Dh = SIZES["hidden_size"], SIZES["head_dim"]
    kept = {}
    for layers in (2, 6):
        model = MixtralModel(make_config(**SIZES, num_hidden_layers=layers)).train()
        plain = kept_bytes(model)
        model.gradient_checkpointing_enable()
        kept[layers] = plain, kept_bytes(model)
    # Attention's queries, keys, values and output, K experts' inner numbers … far more than ten vectors per token.
    assert kept[6][0] - kept[2][0] > 4 * 10 * B * T * D * 4
    assert kept[6][1] - kept[2][1] == 4 * B * T * D * 4
    outside = B * T * (2 * D + 8) * 4 + 2 * T * Dh * 4  # the norm's input and output, ids; the rotary tables
    assert kept[2][1] <= 2 * B * T * D * 4 + outside


def test_only_every_nth_layer(make_config):
    model = make_model(make_config, num_hidden_layers=5)
    wanted = step(model)
    model.activation_checkpointing_enable(every_n_layers=2)
    assert [type(layer) is CheckpointedLayer for layer in model.model.layers] == [True, False, True, False, True]
    assert_same(step(model), wanted)
    model.activation_checkpointing_enable(every_n_layers=3)
    assert [type(layer) is CheckpointedLayer for layer in model.model.layers] == [True, False, False, True, False]


def test_gradients_are_those_of_transformers_with_its_checkpointing(make_config, transformers_twin, to_transformers):
    ours = make_model(make_config, attn_implementation="eager").eval()
    theirs = transformers_twin(ours).train()
    ours.train().activation_checkpointing_enable()
    enable = "gradient" if transformers.__version__ < "5.24" else "activation"
    getattr(theirs, f"{enable}_checkpointing_enable")()
    assert ours.is_activation_checkpointing and getattr(theirs, f"is_{enable}_checkpointing")
    ids = ids_for(ours)
    outputs = [model(ids, labels=ids, output_router_logits=True) for model in (ours, theirs)]
    for out in outputs:
        assert out.past_key_values is None
        out.loss.backward()
    found = to_transformers({name: p.grad for name, p in ours.named_parameters()})
    for name, p in theirs.named_parameters():
        allowed = chain_error(2000) * max(1.0, p.grad.abs().max().item())
        assert_close(found[name], p.grad, rtol=0, atol=allowed, msg=lambda text, name=name: f"{name}: {text}")


def call_of(model: nn.Module) -> dict[str, Tensor]:
    ids = ids_for(model)
    labels = {
        MixtralForCausalLM: {"labels": ids},
        MixtralForSequenceClassification: {"labels": ids[:, 0] % 2},
        MixtralForTokenClassification: {"labels": ids % 2},
        MixtralForQuestionAnswering: {"start_positions": ids[:, 0] % T, "end_positions": ids[:, 1] % T},
    }[type(model)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **labels}


@pytest.mark.parametrize(
    "cls", [MixtralForCausalLM, MixtralForSequenceClassification, MixtralForTokenClassification,
            MixtralForQuestionAnswering]
)  # fmt: skip
@pytest.mark.parametrize("padded", [False, True])
def test_every_head_trains(make_config, cls, padded):
    model = cls(make_config()).train()
    call = call_of(model)
    call["attention_mask"][0, :10] = 1 - padded
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        model.zero_grad()
        out = model(**call)
        out.loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        assert (out.past_key_values is None) == checkpointed
    assert_same(*gradients)


def test_texts_packed_into_one_row(make_config):
    model = make_model(make_config)
    positions = torch.cat((torch.arange(40), torch.arange(T - 40)))[None]
    wanted = step(model, position_ids=positions, use_cache=False)
    model.gradient_checkpointing_enable()
    assert_same(step(model, position_ids=positions), wanted)


def test_what_is_returned_besides_carries_gradients_too(make_config):
    model = make_model(make_config, attn_implementation="eager")
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        out = model(ids_for(model), output_attentions=True, output_hidden_states=True, output_router_logits=True)
        parts = (*out.attentions, *out.hidden_states, *out.router_logits)
        sum(part.square().sum() for part in parts).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_same(*gradients)
    assert gradients[0][0].any()


@pytest.mark.parametrize("experts", ["reference", "sorted", "grouped"])
def test_experts_without_a_token_and_frozen_layers(make_config, experts):
    """An expert that gets none has a gradient of zeros or none, as before; frozen weights have none."""
    model = make_model(make_config, experts_implementation=experts, num_local_experts=40)
    model.model.embed_tokens.requires_grad_(False)  # so that the first layer's input needs no gradient
    model.model.layers[1].requires_grad_(False)
    torch.manual_seed(0)
    ids = torch.randint(101, (1, 3))
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_same(*gradients)
    idle = [p.grad for p in model.model.layers[0].block_sparse_moe.experts.parameters()]
    assert any(gradient is None or not gradient.any() for gradient in idle)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantized_models_router_and_norms_train(make_config, quantization):
    model = make_model(make_config, intermediate_size=128)
    quantize_model(model, quantization)
    wanted = step(model)
    model.gradient_checkpointing_enable()
    assert_same(step(model), wanted)


def test_adapters_of_peft_train(make_config):
    model = make_model(make_config)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "w1"], init_lora_weights=False))
    wanted = step(adapted)
    assert {name.split(".")[-3] for name, p in adapted.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}
    model.gradient_checkpointing_enable()
    assert_same(step(adapted), wanted)
    again = MixtralForCausalLM(model.config)
    again.gradient_checkpointing_enable()  # before the adapters come
    assert peft.get_peft_model(again, peft.LoraConfig(r=2, target_modules=["v_proj"])).base_model.model is again
    step(again)
    assert again.model.layers[0].self_attn.v_proj.lora_B["default"].weight.grad.any()


def test_training_runs_the_same(make_config):
    histories = []
    for checkpointed in (False, True):
        torch.manual_seed(2)
        model = make_model(make_config, **RANDOM)
        if checkpointed:
            model.gradient_checkpointing_enable()
        ids = ids_for(model)
        history = Trainer(model, lambda step, ids=ids: (ids, ids), TrainingConfig(steps=3)).train(progress=False)
        histories.append([(entry["loss"], entry["aux_loss"]) for entry in history])
    assert histories[0] == histories[1] and len(set(histories[0])) == 3


def test_no_cache_is_made_in_training_and_none_may_be_given(make_config):
    model = make_model(make_config)
    ids = ids_for(model)
    cache = RollingKVCache(model.config, B)
    assert model(ids).past_key_values is not None
    model.gradient_checkpointing_enable()
    assert model(ids).past_key_values is None and model.model(ids).past_key_values is None
    assert model.model(ids, None, None, None, None, None).past_key_values is None, "by place too"
    refused = r"^use_cache=True or a cache \(past_key_values\) is given.*model\.eval\(\)"
    for call in ({"past_key_values": cache}, {"cache": cache}):
        with pytest.raises(ValueError, match=refused):
            model(ids, **call)
    for of in (model, model.model):
        with pytest.raises(ValueError, match="^use_cache=True .*twice"):
            of(ids, use_cache=True)
    with pytest.raises(ValueError, match="^use_cache=True"):
        model.model(ids, None, None, None, None, True)
    with pytest.raises(TypeError, match="no_such"):
        model.model(ids, no_such=1)
    with torch.no_grad():
        assert model(ids, past_key_values=cache).past_key_values is cache and cache.get_seq_length() == T
    assert not cache.half_written, "the refused calls have not touched it"
    model.eval()
    assert model(ids).past_key_values is not None and model(ids, use_cache=True).past_key_values is not None
    model.train().config.use_cache = False
    assert model(ids).past_key_values is None


def test_nothing_changes_in_evaluation_mode(make_config):
    model = make_model(make_config).eval()
    twin = copy.deepcopy(model)
    model.gradient_checkpointing_enable()
    ids = ids_for(model)
    assert_same(step(model), step(twin))
    assert torch.equal(model.generate(ids, max_new_tokens=12), twin.generate(ids, max_new_tokens=12))
    model.train()
    assert torch.equal(model.generate(ids, max_new_tokens=12), twin.generate(ids, max_new_tokens=12)) and model.training


def test_copies_and_saved_models(make_config, tmp_path):
    model = make_model(make_config)
    wanted = step(model)
    names = list(model.state_dict())
    model.gradient_checkpointing_enable()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for each in (*copies, model):
        assert each.is_gradient_checkpointing and list(each.state_dict()) == names
        assert each(ids_for(model)).past_key_values is None
        assert_same(step(each), wanted)
        each.gradient_checkpointing_disable()
        assert not each.is_gradient_checkpointing and each(ids_for(model)).past_key_values is not None
        assert_same(step(each), wanted)
        assert not any(isinstance(module, CheckpointedLayer) for module in each.modules())
        assert not each.model._forward_pre_hooks and vars(each.model).keys() == vars(MixtralModel(model.config)).keys()
    model.gradient_checkpointing_enable()
    model.save_pretrained(tmp_path / "saved")
    again = MixtralForCausalLM.from_pretrained(tmp_path / "saved").train()
    assert not again.is_gradient_checkpointing  # it is no setting, here as in transformers
    assert_same(step(again), wanted)


def test_the_engine_goes_and_comes(make_config):
    model = make_model(make_config)
    with_engine = step(model)
    without = step(engine.remove(copy.deepcopy(model)))
    model.gradient_checkpointing_enable()
    assert_same(step(engine.remove(model)), without)
    assert model.is_gradient_checkpointing
    assert_same(step(engine.install(model)), with_engine)
    model.gradient_checkpointing_disable()
    assert_same(step(model), with_engine)


def test_enabling_twice_is_enabling_once(make_config):
    model = make_model(make_config)
    for _ in range(2):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    runs = experts_run(model)
    step(model)
    assert len(runs) == 2 * 3 * 5
    for _ in range(2):
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing and not model.model._forward_pre_hooks
    assert model(ids_for(model)).past_key_values is not None


class Doubling(DecoderLayer):
    """A user's own layer."""

    def forward(self, x, *args):
        out, *rest = super().forward(x, *args)
        return 2 * out, *rest


def test_a_layer_of_ones_own_keeps_its_forward(make_config):
    model = make_model(make_config)
    model.model.layers[1].__class__ = Doubling
    wanted = step(model)
    model.gradient_checkpointing_enable()
    assert [type(layer) for layer in model.model.layers] == [CheckpointedLayer, Doubling, CheckpointedLayer]
    assert_same(step(model), wanted)
    model.gradient_checkpointing_disable()
    for layer in model.model.layers:
        layer.__class__ = Doubling
    with pytest.raises(ValueError, match="^MixtralForCausalLM has no DecoderLayer to checkpoint.*torch.utils"):
        model.gradient_checkpointing_enable()
    assert not model.is_gradient_checkpointing


def test_hooks_on_a_layer_run_once(make_config):
    model = make_model(make_config).requires_grad_(True)
    model.gradient_checkpointing_enable()
    seen = []
    model.model.layers[1].register_forward_hook(lambda *_: seen.append("layer"))
    model.model.layers[1].input_layernorm.register_forward_hook(lambda *_: seen.append("norm"))
    step(model)
    assert sorted(seen) == ["layer", "norm", "norm"], "what is inside a layer runs again"


def test_a_model_of_the_textbook():
    config = Config.tiny(num_hidden_layers=2, sliding_window=16)
    model = CausalLM(config).train()
    wanted = step(model)
    checkpointing.install(model)
    assert checkpointing.is_installed(model)
    assert_same(step(model), wanted)
    with pytest.raises(ValueError, match="^use_cache=True or a cache"):
        model(ids_for(model), past_key_values=RollingCache(config, B))
    assert_same(step(checkpointing.remove(model)), wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "gradient_checkpointing_kwargs.*entrant': True"),
        ({"gradient_checkpointing_kwargs": {"debug": True}}, "gradient_checkpointing_kwargs.*must be None or"),
        ({"every_n_layers": 0}, "^every_n_layers=0: it must be a whole number"),
        ({"every_n_layers": 1.5}, "^every_n_layers=1.5"),
        ({"offload": True}, "^offload=True: it must be False"),
    ],
)  # fmt: skip
def test_what_it_does_not_take_is_refused_by_name(make_config, arguments, message):
    model = make_model(make_config)
    with pytest.raises(ValueError, match=message):
        model.gradient_checkpointing_enable(**arguments)
    assert not model.is_gradient_checkpointing
    with pytest.raises(TypeError, match="no_such"):
        model.gradient_checkpointing_enable(no_such=1)


def test_gradients_of_gradients(make_config):
    model = make_model(make_config, num_hidden_layers=2)
    model.config.attn_implementation = "eager"  # whose parts have second derivatives
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        embeddings = model.model.embed_tokens(ids_for(model)[:, :6]).detach().requires_grad_()
        loss = model(inputs_embeds=embeddings).logits.square().mean()
        (slope,) = torch.autograd.grad(loss, embeddings, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [model.lm_head.weight, embeddings]))
    assert_same(*map(list, found))
    assert found[0][1].any()
