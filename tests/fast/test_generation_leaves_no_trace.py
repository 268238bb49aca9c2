"""After `generate`, whatever is done to a model gives what it gives before.

Each action is done to a model that has generated and to its twin that has not, and must give the same: in each form of
the experts, in two dtypes, quantized or not, and however the generation ended.
"""

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters
from torch.nn.utils.parametrizations import weight_norm

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.moe import Expert
from mixtral_edu.quantization.layers import Int4Linear
from mixtral_edu.quantization.model import QuantizationConfig, quantize_model
from mixtral_edu.text.tokenizer import MixtralTokenizer

IDS = torch.arange(3, 33).view(2, 15)
NEW = 20



@pytest.fixture
def make_pair(make_config) -> Callable[..., tuple[MixtralForCausalLM, MixtralForCausalLM]]:
    """A function that makes a model and its twin, in sizes that all kernels take."""

    def make(experts: str, dtype: torch.dtype, quantization: str | None):
        sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}
        model = MixtralForCausalLM(make_config(**sizes, experts_implementation=experts)).to(dtype).eval()
        for layer in model.model.layers:  # far from ties, which roundings would decide
            nn.init.normal_(layer.block_sparse_moe.gate.weight)
        if quantization:
            quantize_model(model, QuantizationConfig(8) if quantization == "int8" else QuantizationConfig(4, 32))
        return model, copy.deepcopy(model)

    return make


# How a generation comes to its end.


class Interrupting:
    """A streamer during which Ctrl-C is pressed."""

    def __init__(self):
        self.calls = 0

    def put(self, value: Tensor) -> None:
        self.calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


def generate_whole(model: nn.Module) -> Any:
    return model.generate(IDS, max_new_tokens=NEW)


def generate_in_inference_mode(model: nn.Module) -> Any:
    with torch.inference_mode():
        return model.generate(IDS, max_new_tokens=NEW)


def generate_interrupted(model: nn.Module) -> Any:
    try:
        model.generate(IDS[:1], max_new_tokens=NEW, streamer=Interrupting())
    except KeyboardInterrupt as error:
        return error  # kept, as a notebook keeps the last one with its traceback
    raise AssertionError("not interrupted")


def generate_twice_and_fail(model: nn.Module) -> Any:
    model.generate(IDS, max_new_tokens=NEW)

    def fail(module, inputs, output):
        raise ArithmeticError("in the middle of a step")

    steps = []
    handle = model.model.norm.register_forward_hook(lambda *given: len(steps) == 3 and fail(*given) or steps.append(1))
    with pytest.raises(ArithmeticError):
        model.generate(IDS, max_new_tokens=NEW)
    handle.remove()


ENDS = [generate_whole, generate_in_inference_mode, generate_interrupted, generate_twice_and_fail]

# Actions. Each returns what to compare; those that touch attention's or experts' weights as numbers are `FLOAT_ONLY`.


def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits.detach()


def gradients_in_evaluation_mode(model: nn.Module) -> list[Tensor]:
    model(IDS, labels=IDS).loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def train_with(make_optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], list[Tensor]]:
    def train(model: nn.Module) -> list[Tensor]:
        optimizer = make_optimizer(model.parameters())
        losses = []
        for _ in range(3):
            loss = model(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        with torch.no_grad():
            return [*losses, model(IDS, labels=IDS).loss]

    train.__name__ = f"train_with_{make_optimizer.__name__}"
    return train


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


def fused_sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, fused=True)


def fused_adagrad(parameters):
    return torch.optim.Adagrad(parameters, lr=1e-3, fused=True)


def foreach_adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-4, foreach=True)


class Wrapper(nn.Module):
    """An adapter around a layer, which also shows the layer's weight and size."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    @property
    def out_features(self) -> int:
        return self.inner.out_features

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


class Bare(nn.Module):
    """An adapter that shows nothing."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    layer = model.model.layers[1]
    return layer.self_attn, layer.block_sparse_moe.experts[2]


def wrap_a_layer(model: nn.Module) -> Tensor:
    attention, expert = parts(model)
    attention.v_proj, expert.w1 = Wrapper(attention.v_proj), Wrapper(expert.w1)
    return both(model)


def put_bare_adapters(model: nn.Module) -> Tensor:
    attention, expert = parts(model)
    attention.k_proj, attention.v_proj, expert.w3 = map(Bare, (attention.k_proj, attention.v_proj, expert.w3))
    return both(model)


def both(model: nn.Module) -> Tensor:
    """With gradients wanted and without, as faster ways are for the latter only."""
    with torch.no_grad():
        return torch.cat((model(IDS).logits, logits(model)))


def give_a_bias(model: nn.Module) -> Tensor:
    attention, expert = parts(model)
    for owner, name in ((attention, "q_proj"), (expert, "w2")):
        old = getattr(owner, name)
        new = nn.Linear(old.in_features, old.out_features, bias=True, dtype=old.weight.dtype)
        new.weight = old.weight
        nn.init.ones_(new.bias)
        setattr(owner, name, new)
    return both(model)


def replace_a_forward(model: nn.Module) -> Tensor:
    for layer in (parts(model)[0].v_proj, parts(model)[1].w3):
        layer.forward = lambda x, forward=layer.forward: 3 * forward(x)
    return both(model)


def replace_an_experts_forward(model: nn.Module) -> Tensor:
    parts(model)[1].forward = lambda x: 3 * x
    return both(model)


def replace_a_class_forward(model: nn.Module) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Expert, "forward", lambda self, x: self.w2(torch.relu(self.w1(x)) * self.w3(x)))
        return both(model)


def count_global_hook_calls(model: nn.Module) -> int:
    calls = []
    linear = nn.Linear | type(parts(model)[1].w1)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: calls.append(1) if isinstance(module, linear) else None
    )
    try:
        with torch.no_grad():
            model(IDS)
    finally:
        handle.remove()
    return len(calls)


def hook_layers(model: nn.Module) -> list[int]:
    seen = []
    attention, expert = parts(model)
    for place, module in enumerate((attention.k_proj, expert, expert.w3, model.lm_head)):
        module.register_forward_hook(lambda *_, place=place: seen.append(place))
    with torch.no_grad():
        model(IDS)
    return seen


def change_the_experts(model: nn.Module) -> Tensor:
    """One more, that the router does not know, a subclass, and one that another takes the place of."""

    class Doubling(Expert):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    experts = model.model.layers[0].block_sparse_moe.experts
    experts[1].__class__ = Doubling
    experts[3] = Bare(experts[0])
    experts.append(copy.deepcopy(experts[2]))
    return both(model)


def write_through_data(model: nn.Module) -> Tensor:
    for p in model.parameters():
        p.data.mul_(1.5)
    return both(model)


def write_to_weights(model: nn.Module) -> Tensor:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return both(model)


def exchange_data(model: nn.Module) -> Tensor:
    for p in model.parameters():
        p.data = p.data * 1.5
    return both(model)


def load_other_weights(model: nn.Module) -> Tensor:
    state = {name: t * 2 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    return both(model)


def weights_as_a_vector(model: nn.Module) -> Tensor:
    vector = parameters_to_vector(model.parameters())
    vector_to_parameters(vector * 2, model.parameters())
    return torch.cat((vector.detach(), both(model).flatten()))


def prune_a_layer(model: nn.Module) -> Tensor:
    for layer in (parts(model)[0].v_proj, parts(model)[1].w1, model.lm_head):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    return both(model)


def parametrize_a_layer(model: nn.Module) -> Tensor:
    for layer in (parts(model)[0].v_proj, parts(model)[1].w1):
        weight_norm(layer)
        with torch.no_grad():
            layer.parametrizations.weight.original0.mul_(2)
    return both(model)


def save_a_part(model: nn.Module) -> list[int]:
    """Sizes of files: of a head by safetensors, of an expert by `torch.save`, of the model by pickle."""
    sizes = [len(safetensors.torch.save(model.lm_head.state_dict()))]
    for thing in (parts(model)[1].state_dict(), model.state_dict(), model):
        file = io.BytesIO()
        torch.save(thing, file)
        sizes.append(file.getbuffer().nbytes)
    return [*sizes, len(pickle.dumps(model))]


def share_memory(model: nn.Module) -> list[bool]:
    return [tensor.is_shared() for tensor in (*model.parameters(), *model.buffers())]


def copy_and_move(model: nn.Module) -> list[Tensor]:
    return [both(copy.deepcopy(model)), both(pickle.loads(pickle.dumps(model))), both(model.to(torch.float64))]


def adapt_with_peft(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    names = ["q_proj", "v_proj", "w1", "w3"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False), model)
    model(IDS, labels=IDS).loss.backward()
    return [both(model), *(p.grad for p in model.parameters() if p.grad is not None)]


ACTIONS = [
    logits, gradients_in_evaluation_mode, *map(train_with, (fused_adamw, fused_sgd, fused_adagrad, foreach_adam)),
    put_bare_adapters, replace_a_forward, replace_an_experts_forward, replace_a_class_forward, count_global_hook_calls,
    hook_layers, change_the_experts, write_through_data, write_to_weights, exchange_data, load_other_weights,
    weights_as_a_vector, save_a_part, share_memory, copy_and_move,
]  # fmt: skip
FLOAT_ONLY = [wrap_a_layer, give_a_bias, prune_a_layer, parametrize_a_layer, adapt_with_peft]


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted), (found - wanted).abs().max()
    elif isinstance(wanted, list) and wanted and isinstance(wanted[0], Tensor):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            same(*pair)
    else:
        assert found == wanted


CASES = [
    pytest.param(action, experts, dtype, quantization, id=f"{action.__name__}-{experts}-{dtype}-{quantization}")
    for action in [*ACTIONS, *FLOAT_ONLY]
    for experts in ("reference", "sorted", "grouped")
    for dtype in (torch.float32, torch.bfloat16)
    for quantization in (None, "int8", "int4")
    if quantization is None or action not in FLOAT_ONLY
]


@pytest.mark.parametrize(("action", "experts", "dtype", "quantization"), CASES)
def test_every_action_gives_what_it_gave_before(make_pair, action, experts, dtype, quantization, request):
    model, twin = make_pair(experts, dtype, quantization)
    if action is share_memory:
        model.share_memory(), twin.share_memory()
    end = ENDS[sum(map(ord, request.node.callspec.id)) % len(ENDS)]  # all of them in turn
    kept = end(model)
    same(action(model), action(twin))
    del kept


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that there is to see of a model: where each tensor lies and what was written to it, and each attribute."""
    seen: dict[str, Any] = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        seen[name] = (id(t), t.data_ptr(), t.stride(), t.untyped_storage().nbytes(), t._version, t.is_inference())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | str | type(None))}
        seen[f"{name} attributes"] = (id(module), type(module), sorted(vars(module)), plain)
    return seen


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("experts", ["reference", "sorted", "grouped"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_a_model_is_changed(make_pair, end, experts, quantization, training):
    model, _ = make_pair(experts, torch.float32 if quantization is None else torch.bfloat16, quantization)
    model.train(training)
    model.model.layers[0].train(not training)
    before = snapshot(model)
    kept = end(model)
    assert snapshot(model) == before
    del kept


def test_a_getter_changes_nothing(make_pair):
    model, _ = make_pair("grouped", torch.bfloat16, "int4")
    model.prepare_for_inference()
    before = snapshot(model)
    state = model.state_dict()
    assert snapshot(model) == before
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())


@contextmanager
def streaming(model: nn.Module):
    """A stream that waits for its reader after its first piece."""

    class Tokens(MixtralTokenizer):
        """Writes ids as numbers."""

        pad_token_id, byte_values = 0, {}

        def __init__(self):
            pass

        def checked_ids(self, ids):
            return torch.as_tensor(ids).flatten().tolist()

        def decode_part(self, ids, skip_special_tokens, at_start):
            return " ".join(map(str, ids)) + " "

    pieces = model.stream(IDS[:1], tokenizer=Tokens(), max_new_tokens=NEW)
    next(pieces)
    yield pieces
    pieces_left = "".join(pieces)
    assert pieces_left


@pytest.mark.parametrize(
    "action", [logits, gradients_in_evaluation_mode, train_with(fused_adamw), write_through_data, hook_layers,
               put_bare_adapters, adapt_with_peft]
)  # fmt: skip
@pytest.mark.parametrize("experts", ["sorted", "grouped"])
def test_a_stream_that_waits_for_its_reader_is_not_in_the_way(make_pair, action, experts):
    model, twin = make_pair(experts, torch.float32, None)
    with streaming(model):
        same(action(model), action(twin))


@pytest.mark.parametrize("action", ACTIONS)
def test_copies_that_quantized_layers_keep_are_not_in_the_way(make_pair, action):
    model, twin = make_pair("sorted", torch.bfloat16, "int4")
    if action is share_memory:
        model.share_memory(), twin.share_memory()
    same(action(model.prepare_for_inference()), action(twin.prepare_for_inference()))


@pytest.mark.numerics
def test_losses_of_a_training_that_follows_a_generation(make_pair):
    """The right values are those of PyTorch's plain optimizer on the plain model."""
    model, twin = make_pair("sorted", torch.float32, None)
    model.generate(IDS, max_new_tokens=NEW)
    found = train_with(fused_adamw)(model)
    wanted = train_with(lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, foreach=False))(twin)
    torch.testing.assert_close(found, wanted)


def test_layers_and_experts_of_ones_own_are_used_while_generating(make_pair):
    """Not only afterwards: an adapter changes what is generated, in the form that goes around plain experts too."""
    for experts in ("sorted", "grouped"):
        model, twin = make_pair(experts, torch.float32, None)
        twin.config.experts_implementation = "reference"
        for each in (model, twin):
            attention, expert = parts(each)
            attention.v_proj, expert.w1 = Wrapper(attention.v_proj), Bare(expert.w1)
            each.model.layers[0].block_sparse_moe.experts[0].w2 = nn.Linear(96, 64, bias=False)
            nn.init.constant_(each.model.layers[0].block_sparse_moe.experts[0].w2.weight, 0.1)
        assert torch.equal(model.generate(IDS, max_new_tokens=NEW), twin.generate(IDS, max_new_tokens=NEW))


@pytest.mark.parametrize("experts", ["sorted", "grouped"])
def test_an_interruption_while_weights_are_copied_leaves_nothing(make_pair, experts, monkeypatch):
    model, _ = make_pair(experts, torch.bfloat16, "int4")
    before, make_copy, made = snapshot(model), Int4Linear.make_copy, []

    def interrupted(self, num_steps):
        made.append(make_copy(self, num_steps))
        if len(made) == 4:
            raise KeyboardInterrupt
        return made[-1]

    monkeypatch.setattr(Int4Linear, "make_copy", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        model.generate(IDS, max_new_tokens=NEW)
    assert kept is not None and snapshot(model) == before


def test_copies_are_made_where_they_pay_and_there_is_room(make_pair, monkeypatch):
    model, _ = make_pair("sorted", torch.bfloat16, "int4")
    make_copy, made = Int4Linear.make_copy, []

    def counted(self, num_steps):
        copy = make_copy(self, num_steps)
        made.extend([copy] if copy is not None else [])
        return copy

    monkeypatch.setattr(Int4Linear, "make_copy", counted)
    model.generate(IDS, max_new_tokens=3)
    assert not made, "not for so few steps"
    model.generate(IDS, max_new_tokens=NEW)
    assert made
    made.clear()
    monkeypatch.setattr("mixtral_edu.api.task.free_memory", lambda device: 0)
    assert model.generate(IDS, max_new_tokens=NEW).shape == (2, 15 + NEW) and not made


def test_a_stream_that_is_left_open_leaves_the_mode_as_it_is(make_pair):
    model, _ = make_pair("sorted", torch.float32, None)
    model.train()
    with streaming(model):
        assert model.training
        model.eval()
    assert not model.training


def test_threads_do_not_take_copies_from_each_other(make_pair):
    """Whoever is done drops the copies; the others go on without, and find the same tokens but for near ties."""
    model, twin = make_pair("sorted", torch.bfloat16, "int4")
    wanted, failed = twin.generate(IDS, max_new_tokens=6), []

    def work() -> None:
        try:
            for _ in range(20):
                found = model.generate(IDS, max_new_tokens=6)
                assert torch.equal(found[:, :16], wanted[:, :16]), "later tokens may meet near ties"
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed
