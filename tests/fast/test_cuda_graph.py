"""A recorded step gives what the model gives, with everything frozen that is no tensor.

Without a GPU a stand-in records: the list of PyTorch's operators with the tensors that they met. To replay it, each is
called again on the same tensors, and writes its result to the same place, as a CUDA graph does.
"""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.fast import copies, cuda_graph
from mixtral_edu.fast.cuda_graph import GraphedStep, NotRecordable
from mixtral_edu.fast.decoding import Prepared
from mixtral_edu.quantization.model import QuantizationConfig, install, quantize_model, quantized_layers

pytestmark = pytest.mark.numerics


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for place, value in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():  # no view, not in place
                    place.copy_(value)


@pytest.fixture
def recordings(monkeypatch) -> list[Recorder]:
    """All recordings of the stand-in, which takes the place of CUDA's."""
    made = []

    def record(step: Callable[[], Any], undo: Callable[[], None], device: torch.device) -> tuple[Any, Callable]:
        assert device.type == "cpu"
        step()
        undo()
        with (recorder := Recorder()):
            out = step()
        for tensor in tree_leaves(out.logits):
            tensor.zero_()  # recording runs nothing on a GPU
        made.append(recorder)
        return out, recorder.replay

    monkeypatch.setattr(cuda_graph, "record", record)
    return made


@pytest.fixture
def in_use() -> Iterator[ExitStack]:
    """Holds what is in use until the end of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_pair(make_config, in_use) -> Callable[..., tuple[MixtralForCausalLM, MixtralForCausalLM]]:
    """A function that makes a model with copies in use for good, and its plain twin."""

    def make(**changes) -> tuple[MixtralForCausalLM, MixtralForCausalLM]:
        sizes = {"hidden_size": 64, "intermediate_size": 48, "head_dim": 16, "num_hidden_layers": 2}
        model = MixtralForCausalLM(make_config(**sizes | {"experts_implementation": "grouped"} | changes)).eval()
        for layer in model.model.layers:  # far from ties, which roundings of different kernels would decide
            torch.nn.init.normal_(layer.block_sparse_moe.gate.weight)
        twin = copy.deepcopy(model)
        in_use.enter_context(copies.in_use(copies.make(model)))
        return model, twin

    return make


def give_step(model: MixtralForCausalLM) -> GraphedStep:
    """Let generation use a step that is recorded, as `prepare_for_inference(graph=True)` does on a GPU."""
    model.prepared = Prepared(model, compile=False, graph=True)
    return model.prepared.step


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("window", "prompt", "times"), [(8, 3, 1), (8, 20, 1), (None, 60, 2)])
@pytest.mark.parametrize("padded", [False, True])
def test_replays_equal_the_model_while_the_ring_fills_turns_and_grows(
    make_pair, recordings, attention, window, prompt, times, padded
):
    model, twin = make_pair(sliding_window=window, attn_implementation=attention)
    ids, mask = torch.randint(101, (2, prompt + 20)), torch.ones(2, prompt, dtype=torch.long)
    if padded:
        mask[0, :2] = 0
    caches = [m(ids[:, :prompt], attention_mask=mask, use_cache=True).past_key_values for m in (model, twin)]
    step = GraphedStep(model.forward)
    for t in range(prompt, prompt + 20):
        token = ids[:, t : t + 1]
        found = step(token, past_key_values=caches[0], use_cache=True, logits_to_keep=1)
        wanted = twin(token, past_key_values=caches[1], use_cache=True, logits_to_keep=1)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
        assert found.past_key_values is caches[0] and caches[0].seen == t + 1
    assert len(recordings) == times, "once, and again when a cache without window grew"
    view, of_twin = (cache.view(1) for cache in caches)
    assert torch.equal(view.positions, of_twin.positions) and torch.equal(view.write_slot, of_twin.write_slot)
    torch.testing.assert_close(view.keys, of_twin.keys, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_graph_belongs_to_a_cache_and_to_options(make_pair, recordings):
    model, _ = make_pair()
    step, ids = GraphedStep(model.forward), torch.randint(101, (2, 4))
    first, second = (model(ids, use_cache=True).past_key_values for _ in range(2))
    for cache, name in ((first, "past_key_values"), (first, "cache"), (second, "cache"), (second, "past_key_values")):
        step(ids[:, :1], **{name: cache}, use_cache=True)
    assert len(recordings) == 2
    assert step(ids[:, :1], past_key_values=second, use_cache=True, output_router_logits=True).router_logits is not None
    assert len(recordings) == 3
    model(ids, past_key_values=second)  # moves on without the recording, whose places are left
    step(ids[:, :1], past_key_values=second, use_cache=True, output_router_logits=True)
    assert len(recordings) == 4 and second.seen == 4 + 2 + 1 + 4 + 1


@torch.no_grad()
def test_prompts_masks_and_steps_without_cache_go_through_the_model(make_pair, recordings):
    model, twin = make_pair()
    step, ids = GraphedStep(model.forward), torch.randint(101, (2, 5))
    mask = torch.tensor([[1], [0]])
    caches = [m(ids, use_cache=True).past_key_values for m in (step, twin)]
    for options in ({}, {"attention_mask": mask}, {"past_key_values": None}):
        token = ids if options == {} else ids[:, :1]
        pairs = zip((step, twin), caches, strict=True)
        found, wanted = (m(token, **{"past_key_values": cache} | options) for m, cache in pairs)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert not recordings


def test_generation_replays_and_a_full_cache_is_refused_before_anything_is_written(make_pair, recordings):
    model, twin = make_pair(sliding_window=None)
    ids = torch.randint(101, (2, 50))
    wanted = twin.generate(ids, max_new_tokens=30)
    step = give_step(model)
    assert torch.equal(model.generate(ids, max_new_tokens=30), wanted)
    assert len(recordings) == 1, "the cache has room for all"
    assert step._replay is None, "what was recorded is let go with the text"
    cache = RollingKVCache(model.config, 1, max_length=4)
    with torch.no_grad():
        model(ids[:1, :3], past_key_values=cache)
        step(ids[:1, :1], past_key_values=cache)
        with pytest.raises(ValueError, match="max_length=4"):
            step(ids[:1, :1], past_key_values=cache)
    assert cache.seen == 4 and not cache.half_written


def test_a_failed_recording_leaves_the_cache_as_it_was(make_pair, monkeypatch):
    model, twin = make_pair()
    ids = torch.randint(101, (2, 5))

    def record(step, undo, device):
        step()
        raise NotRecordable("graph=True: the step waits for the host")

    monkeypatch.setattr(cuda_graph, "record", record)
    with torch.no_grad():
        cache, other = (m(ids, use_cache=True).past_key_values for m in (model, twin))
        with pytest.raises(ValueError, match="waits for the host"):
            GraphedStep(model.forward)(ids[:, :1], past_key_values=cache)
        found, wanted = model(ids[:, :1], past_key_values=cache), twin(ids[:, :1], past_key_values=other)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert cache.seen == other.seen and not cache.static


@torch.no_grad()
def test_a_half_written_cache_is_refused_before_and_after_a_recording(make_pair, recordings):
    model, _ = make_pair()
    step, ids = GraphedStep(model.forward), torch.randint(101, (2, 4))
    for _ in range(2):
        cache = model(ids, use_cache=True).past_key_values
        if recordings:
            step(ids[:, :1], past_key_values=cache)
        cache.half_written = True
        with pytest.raises(RuntimeError, match="half-way"):
            step(ids[:, :1], past_key_values=cache)
        assert cache.half_written
        recordings.append(None)


@torch.no_grad()
def test_another_text_in_the_same_cache_is_seen_as_it_is(make_pair, recordings):
    """A ring that was full when it was recorded is filled from a shorter cache, then from a padded one."""
    model, twin = make_pair(sliding_window=8)
    ids, mask = torch.randint(101, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    step, cache = GraphedStep(model.forward), RollingKVCache(model.config, 2)
    for T, padding in ((12, None), (3, None), (12, mask)):
        other = twin(ids[:, :T], attention_mask=padding, use_cache=True).past_key_values
        cache.copy_(other)
        for t in range(3):
            found, wanted = (m(ids[:, t : t + 1], past_key_values=c) for m, c in ((step, cache), (twin, other)))
            torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    assert len(recordings) == 2, "again for the one with padding"


def test_a_model_that_trains_between_two_tokens_replays_no_more(make_pair, recordings):
    """Training changes what a recording has fixed: the text is continued with the model as it is then."""
    model, twin = make_pair()
    ids = torch.randint(101, (1, 5))
    wanted = twin.generate(ids, max_new_tokens=8)[0].tolist()
    step, tokens = give_step(model), []

    class Reader:
        def put(self, token):
            tokens.extend(token.flatten().tolist())
            if len(tokens) == len(ids[0]) + 4:
                model.train()

        def end(self):
            pass

    assert model.generate(ids, max_new_tokens=8, streamer=Reader())[0].tolist() == wanted == tokens
    assert len(recordings) == 1 and model.prepared is None and step._replay is None


def test_a_prepared_model_lets_go_of_what_it_has_recorded(make_pair, recordings):
    model, _ = make_pair()
    step, ids = give_step(model), torch.randint(101, (2, 4))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        step(ids[:, :1], past_key_values=cache)
    gone = weakref.ref(cache)
    recordings.clear()
    del cache
    assert gone() is not None
    model.prepare_for_inference()
    gc.collect()
    assert gone() is None and model.prepared.step is None


def test_embeddings_and_tensors_among_the_options_go_through_the_model(make_pair, recordings):
    model, twin = make_pair()
    step, ids = GraphedStep(model.forward), torch.randint(101, (2, 4))
    caches = [m(ids, use_cache=True).past_key_values for m in (model, twin)]
    for _ in range(2):
        embedded = {"inputs_embeds": twin.model.embed_tokens(ids[:, :1])}
        given = {"input_ids": ids[:, :1], "position_ids": torch.full((2, 1), caches[0].seen)}
        for arguments in (embedded, given):
            pairs = zip((step, twin), caches, strict=True)
            found, wanted = (m(**arguments, past_key_values=cache).logits for m, cache in pairs)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert not recordings


def test_a_graph_needs_a_cuda_device(make_pair):
    with pytest.raises(ValueError, match="graph=True needs a model on a CUDA device, and this one is on cpu"):
        make_pair()[0].prepare_for_inference(graph=True)


@torch.no_grad()
@pytest.mark.parametrize("experts", ["grouped", "sorted"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_a_step_on_a_gpu_reads_no_value_back(make_config, experts, quantization, monkeypatch):
    """With PyTorch's tensors that have a shape but no values, to read one raises; they stand for those of a GPU."""
    monkeypatch.setattr("mixtral_edu.api.inputs.can_look_at", lambda tensor: False)
    monkeypatch.setattr("mixtral_edu.fast.experts._suits_dense", lambda x: True)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "attn_implementation": "sdpa"}
    with torch.device("meta"):
        model = MixtralForCausalLM(make_config(**sizes, experts_implementation=experts)).to(torch.bfloat16).eval()
        if quantization:
            install(model, quantized_layers(model, QuantizationConfig.parse(quantization), torch.bfloat16))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        cache, token = RollingKVCache(model.config, 3, dtype=torch.bfloat16), torch.zeros(3, 1, dtype=torch.long)
        cache.static = True
        if experts == "sorted":
            with pytest.raises(DynamicOutputShapeException):
                model(token, past_key_values=cache)
        else:
            assert model(token, past_key_values=cache).logits.shape == (3, 1, 101)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize(
    ("quantization", "compile"), [(None, False), (None, True), ("int8", False), ("int4", False)]
)
@pytest.mark.parametrize(("window", "prompt"), [(8, 3), (None, 60)])
def test_on_a_gpu_replays_equal_the_model(make_pair, quantization, compile, window, prompt):
    model, twin = (m.to("cuda", torch.bfloat16) for m in make_pair(sliding_window=window, intermediate_size=64))
    for each in (model, twin) if quantization else ():
        quantize_model(each, quantization)
    step = model.prepare_for_inference(compile=compile, graph=True).prepared.step
    ids = torch.randint(101, (2, prompt + 20), device="cuda")
    caches = [m(ids[:, :prompt], use_cache=True).past_key_values for m in (model, twin)]
    for t in range(prompt, prompt + 20):
        token = ids[:, t : t + 1]
        found = step(token, past_key_values=caches[0], use_cache=True).logits
        wanted = twin(token, past_key_values=caches[1], use_cache=True).logits
        assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max() > 0


@pytest.mark.gpu
def test_on_a_gpu_generation_replays(make_pair):
    model, twin = (m.to("cuda") for m in make_pair())  # in float32, where no two tokens are equally likely
    ids = torch.randint(101, (2, 5), device="cuda")
    wanted = twin.prepare_for_inference().generate(ids, max_new_tokens=20)
    assert torch.equal(model.prepare_for_inference(graph=True).generate(ids, max_new_tokens=20), wanted)


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_waits_for_the_host_is_refused(make_pair):
    model, _ = (m.to("cuda", torch.bfloat16) for m in make_pair(experts_implementation="sorted"))
    with pytest.raises(ValueError, match=r"graph=True: the step waits for the host.*experts_implementation='grouped'"):
        model.prepare_for_inference(graph=True).generate(torch.randint(101, (1, 5), device="cuda"), max_new_tokens=3)
