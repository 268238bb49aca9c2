"""`torch.compile` takes the model: in one graph with grouped experts, and with named breaks with sorted ones.

The backend "eager" runs the captured graphs as they are, so that no C++ compiler is needed.
"""

import copy
import warnings

import pytest
import torch

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.fast import copies


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model(make_config):
    sizes = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "sliding_window": 4}
    return MixtralForCausalLM(make_config(**sizes, experts_implementation="grouped")).eval()


def whole(model):
    return torch.compile(model.forward, fullgraph=True, backend="eager")


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "with_copies"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_decoding_one_row_is_one_graph(model, dtype, with_copies):
    model = model.to(dtype)
    twin = copy.deepcopy(model)
    made = copies.make(model) if with_copies else []
    assert len(made) == 2 * with_copies
    compiled = whole(model)
    ids = torch.randint(101, (1, 12))
    caches = [m(ids[:, :3], use_cache=True).past_key_values for m in (model, twin)]
    for t in range(3, 12):  # through the ring (W = 4) twice
        token = ids[:, t : t + 1]
        with copies.in_use(made):
            found = compiled(token, past_key_values=caches[0]).logits
        wanted = twin(token, past_key_values=caches[1]).logits
        torch.testing.assert_close(found, wanted, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)


@pytest.mark.numerics
@torch.no_grad()
def test_a_padded_batch_is_one_graph(model):
    ids, mask = torch.randint(101, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    mask[0, :4] = 0
    wanted = model(ids, attention_mask=mask).logits
    found = whole(model)(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], atol=1e-5, rtol=0)


@pytest.mark.numerics
@torch.no_grad()
@pytest.mark.parametrize("how", ["a mask of its own", "packed texts", "one text"])
def test_who_sees_whom_as_a_call_says_is_one_graph(model, how):
    ids = torch.randint(101, (2, 12))
    call = {
        "a mask of its own": {"attention_mask": (torch.rand(2, 1, 12, 12) < 0.5) | torch.eye(12, dtype=torch.bool)},
        "packed texts": {"position_ids": torch.cat((torch.arange(5), torch.arange(7)))[None], "use_cache": False},
        "one text": {"position_ids": torch.arange(12)[None], "use_cache": False},
    }[how]
    found, wanted = whole(model)(ids, **call).logits, model(ids, **call).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.numerics
def test_outputs_are_read_by_key_and_index_inside_one_graph(model):
    def loss(ids, positions):
        out = model(ids, labels=ids, position_ids=positions, output_router_logits=True, use_cache=False)
        as_tuple = model(ids, labels=ids, use_cache=False, return_dict=False)
        assert "cache" not in out and len(out) == 4
        return out["loss"] + out[1] + out.to_tuple()[2].mean() + as_tuple[0]

    ids = torch.randint(101, (2, 9))
    arguments = ids, torch.arange(9)[None]
    found = torch.compile(loss, fullgraph=True, backend="eager")(*arguments)
    torch.testing.assert_close(found, loss(*arguments), atol=1e-5, rtol=0)
    found.backward()


def test_numbers_that_are_added_to_scores_are_refused_while_compiling(model):
    """Nobody may look at them there, so biases would pass for what they are not."""
    ids, mask = torch.randint(101, (2, 4)), torch.zeros(1, 1, 4, 4)
    model(ids, mask)
    with pytest.raises((ValueError, RuntimeError), match="attention_mask of four dimensions is torch.float32.*boolean"):
        whole(model)(ids, mask)


@pytest.mark.numerics
def test_training_in_bfloat16_is_one_graph(model):
    model = model.to(torch.bfloat16).train()
    twin = copy.deepcopy(model)
    ids = torch.randint(101, (2, 9))
    whole(model)(ids, labels=ids, use_cache=False).loss.backward()
    twin(ids, labels=ids, use_cache=False).loss.backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, msg=name, atol=2e-3, rtol=0.05)


@torch.no_grad()
def test_sorted_experts_break_at_their_counts_and_nowhere_else(model):
    model.config.experts_implementation = "sorted"
    ids = torch.randint(101, (2, 9))
    explanation = torch._dynamo.explain(model.forward)(ids, use_cache=False)
    assert explanation.graph_break_count > 0
    assert all("moe.py" in str(b.user_stack[-1]) for b in explanation.break_reasons), explanation.break_reasons


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gradients", [True, False])
def test_training_and_plain_calls_with_grouped_experts_compile(model, dtype, gradients):
    """With the compiler's own product for backward, too, which takes the place of PyTorch's."""
    model = model.to(dtype).train(gradients)
    twin = copy.deepcopy(model)
    ids = torch.randint(101, (2, 9))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found, wanted = (m(ids, labels=ids, use_cache=False) for m in (compiled, twin))
    tolerance = 100 * torch.finfo(dtype).eps  # some ten roundings, of sums of up to 48 products
    assert (found.logits - wanted.logits).abs().max() <= tolerance * wanted.logits.abs().max()
    if gradients:
        found.loss.backward(), wanted.loss.backward()
        theirs = dict(twin.named_parameters())
        for name, p in model.named_parameters():
            assert (p.grad - theirs[name].grad).abs().max() <= tolerance * theirs[name].grad.abs().max(), name


def test_generation_uses_the_compiled_step_and_leaves_it_for_training(model, monkeypatch):
    ids = torch.randint(101, (1, 5))
    wanted = model.generate(ids, max_new_tokens=6)
    compiled, calls = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f: calls.append(f) or compiled(f, backend="eager"))
    assert torch.equal(model.prepare_for_inference(compile=True).generate(ids, max_new_tokens=6), wanted)
    model.prepare_for_inference(compile=True)
    assert len(calls) == 1, "compiled once"
    assert copy.deepcopy(model).prepared is None
    assert model.train().prepared is None


@pytest.fixture
def wide_model(make_config):
    """Sizes in whole 16 bytes of bfloat16, as grouped products want them."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2, "sliding_window": 8}
    model = MixtralForCausalLM(make_config(**sizes, experts_implementation="grouped")).eval()
    return model.to("cuda", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("with_copies", [False, True])
@torch.no_grad()
def test_grouped_experts_on_a_gpu_wait_for_nothing_and_equal_sorted_ones(wide_model, with_copies):
    moe = wide_model.model.layers[0].block_sparse_moe
    x = torch.randn(2, 33, 64, device="cuda", dtype=torch.bfloat16)
    moe.config.experts_implementation = "sorted"
    wanted, routing = moe(x)
    moe.config.experts_implementation = "grouped"
    made = copies.make(wide_model) if with_copies else []
    moe(x)  # the first call prepares
    try:
        with copies.in_use(made), warnings.catch_warnings():  # about the mode being new
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        found, again = moe(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again.experts, routing.experts)
    assert (found - wanted).abs().max() <= 0.03 * wanted.abs().max() > 0


@pytest.mark.gpu
@torch.no_grad()
def test_a_compiled_step_on_a_gpu_equals_the_plain_one(wide_model):
    twin = copy.deepcopy(wide_model)
    step = wide_model.prepare_for_inference(compile=True).prepared.step
    ids = torch.randint(101, (2, 30), device="cuda")
    caches = [m(ids[:, :5], use_cache=True).past_key_values for m in (wide_model, twin)]
    for t in range(5, 30):  # through the ring (W = 8) three times
        token = ids[:, t : t + 1]
        found = step(token, past_key_values=caches[0], use_cache=True).logits
        wanted = twin(token, past_key_values=caches[1], use_cache=True).logits
        assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max() > 0


def test_a_compiled_model_follows_its_config(make_config):
    config = make_config(initializer_range=0.2, num_hidden_layers=1, experts_implementation="grouped")
    model = MixtralForCausalLM(config).eval()
    compiled = torch.compile(model, backend="eager")
    ids = torch.arange(18).view(2, 9)
    with torch.no_grad():
        before = compiled(ids).logits
        config.num_experts_per_tok, config.rope_theta = 1, 50.0
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, rtol=0, atol=3e-5)
        assert not torch.allclose(before, model(ids).logits, rtol=0, atol=3e-2)
