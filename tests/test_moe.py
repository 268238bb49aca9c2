"""The router, a layer of experts and the load-balancing loss, against transformers and by hand."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mixtral_edu.moe import EXPERT_DISPATCH, Expert, Router, SparseMoE, load_balancing_loss

pytestmark = pytest.mark.numerics

D = 44


def large_weights(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_router_returns_a_named_result_of_documented_shapes():
    routing = Router(D, 5, 2)(torch.randn(7, D))
    assert routing._fields == ("logits", "weights", "experts")
    assert routing.logits.shape == (7, 5) and routing.weights.shape == routing.experts.shape == (7, 2)
    assert routing.experts.dtype == torch.long


@pytest.mark.parametrize("K", [1, 2, 5])
def test_weights_are_the_full_softmax_cut_to_k_and_rescaled(K):
    routing = large_weights(Router(D, 5, K))(torch.randn(11, D))
    best, experts = routing.logits.softmax(-1).topk(K)
    assert_close(routing.weights, best / best.sum(-1, keepdim=True))
    assert_close(routing.experts, experts)
    assert_close(routing.weights.sum(-1), torch.ones(11))
    assert all(len(set(chosen)) == K for chosen in routing.experts.tolist())


def test_router_equals_transformers(make_config):
    import transformers
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    config = make_config()
    router = large_weights(Router(D, 5, 2))
    theirs = MixtralTopKRouter(transformers.MixtralConfig(**config.to_dict()))
    theirs.load_state_dict(router.state_dict())
    x = torch.randn(3, 7, D)
    for value, expected in zip(router(x.flatten(0, 1)), theirs(x), strict=True):
        assert_close(value, expected)


def test_convention_router_product_in_the_models_dtype_then_float32():
    router = large_weights(Router(D, 5, 2)).bfloat16()
    x = torch.randn(50, D).bfloat16()
    routing = router(x)
    assert routing.logits.dtype == torch.bfloat16 and routing.weights.dtype == torch.float32
    assert_close(routing.logits, F.linear(x, router.weight), rtol=0, atol=0)
    best, experts = routing.logits.float().topk(2)
    assert_close(routing.weights, best.softmax(-1), rtol=0, atol=0)
    assert_close(routing.experts, experts)


@pytest.mark.parametrize("form", [*EXPERT_DISPATCH, "grouped"])
@pytest.mark.parametrize(("E", "K"), [(8, 2), (16, 4)])
def test_layer_equals_transformers(make_config, transformers_twin, E, K, form):
    from mixtral_edu import MixtralModel

    config = make_config(num_local_experts=E, num_experts_per_tok=K, initializer_range=0.3, experts_implementation=form)
    model = MixtralModel(config).eval()
    ours, theirs = model.layers[1].block_sparse_moe, transformers_twin(model).layers[1].mlp
    x = torch.randn(2, 3, D)
    y, routing = ours(x)
    assert y.shape == (2, 3, D) and routing.logits.shape == (6, E)
    assert_close(y, theirs(x), rtol=1e-5, atol=1e-5)


def test_jitter_acts_in_training_only_and_stays_in_its_range(make_config):
    moe = large_weights(SparseMoE(make_config(router_jitter_noise=0.1)))
    with torch.no_grad():  # each router score is then one entry of the input
        moe.gate.weight.copy_(torch.eye(5, D))
    x = torch.rand(4, 50, D) + 0.5
    before = x.clone()
    expected = x.flatten(0, 1)[:, :5]
    assert_close(moe.eval()(x)[1].logits, expected)
    ratios = moe.train()(x)[1].logits / expected
    assert 0.9 <= ratios.min() < 0.91 and 1.09 < ratios.max() <= 1.1
    assert_close(x, before, rtol=0, atol=0)
    silent = SparseMoE(make_config()).train()
    assert_close(silent(x)[0], silent(x)[0], rtol=0, atol=0)


def test_an_unknown_form_of_dispatch_is_refused_by_name(make_config):
    with pytest.raises(ValueError, match="experts_implementation='grupped'.*reference.*sorted"):
        SparseMoE(make_config(experts_implementation="grupped"))


def loss_by_hand(layers: list[torch.Tensor], K: int, real: list[bool]) -> float:
    """E times the sum over experts of (choices a token) times (mean probability), over all layers' real tokens."""
    counts, mass, tokens = Counter(), Counter(), 0
    for logits in layers:
        for scores in logits[torch.tensor(real)]:
            tokens += 1
            counts.update(scores.topk(K).indices.tolist())
            for e, probability in enumerate((scores.exp() / scores.exp().sum()).tolist()):
                mass[e] += probability
    E = layers[0].shape[1]
    return E * sum(counts[e] / tokens * mass[e] / tokens for e in range(E))


@pytest.mark.parametrize(("E", "K"), [(8, 2), (16, 4), (3, 3), (5, 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_convention_aux_loss_equals_transformers_and_the_definition(E, K, padded):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers = tuple(torch.randn(2 * 7, E, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]]) if padded else None
    loss, theirs = load_balancing_loss(layers, E, K, mask), load_balancing_loss_func(layers, E, K, mask)
    assert_close(loss, theirs, rtol=1e-6, atol=0)
    real = [True] * 14 if mask is None else mask.flatten().bool().tolist()
    assert loss.item() == pytest.approx(loss_by_hand(layers, K, real), rel=1e-5)
    for ours, expected in zip(torch.autograd.grad(loss, layers), torch.autograd.grad(theirs, layers), strict=True):
        assert_close(ours, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("E", "K"), [(8, 2), (16, 4), (5, 1)])
def test_convention_aux_loss_of_perfect_balance_is_k(E, K, per_layer):
    """Token n prefers experts n, n + 1 … n + K - 1, so each gets the same share of choices and of probability."""
    offset = (torch.arange(E)[None, :] - torch.arange(E)[:, None]) % E  # (N, E) with N = E
    logits = torch.where(offset < K, 3.0 - 0.1 * offset, 0.0)
    assert load_balancing_loss([logits] * 2, E, K, per_layer=per_layer).item() == pytest.approx(K, rel=1e-6)


def test_aux_loss_of_collapse_is_e():
    logits = torch.tensor([[60.0, 60.0, 0, 0, 0, 0, 0, 0]]).repeat(9, 1)
    assert load_balancing_loss([logits], 8, 2).item() == pytest.approx(8)


def test_aux_loss_per_layer_sees_imbalances_that_cancel_between_layers():
    left = torch.tensor([[9.0, 8.0, 0.0, 0.0]]).repeat(6, 1)
    layers = [left, left.flip(1)]
    together = load_balancing_loss(layers, 4, 2)
    separate = load_balancing_loss(layers, 4, 2, per_layer=True)
    assert together.item() == pytest.approx(2, rel=1e-3)
    assert separate.item() == pytest.approx(4, rel=1e-3)
    mean = torch.stack([load_balancing_loss([layer], 4, 2) for layer in layers]).mean()
    assert_close(separate, mean)


def test_aux_loss_leaves_padding_out_per_layer_too():
    layers = [torch.randn(6, 5) for _ in range(2)]
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    kept = [logits[mask.flatten().bool()] for logits in layers]
    for per_layer in (False, True):
        loss = load_balancing_loss(layers, 5, 2, mask, per_layer)
        assert_close(loss, load_balancing_loss(kept, 5, 2, None, per_layer))


@pytest.mark.parametrize("per_layer", [False, True])
def test_aux_loss_of_padding_alone_is_zero_where_that_of_transformers_is_nan(per_layer):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    layers = tuple(torch.randn(6, 5, requires_grad=True) for _ in range(2))
    loss = load_balancing_loss(layers, 5, 2, torch.zeros(2, 3), per_layer)
    assert loss == 0 and load_balancing_loss_func(layers, 5, 2, torch.zeros(2, 3)).isnan()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, layers))


def test_convention_expert_w1_gates_w3_goes_up_w2_comes_down():
    expert = Expert(44, 37)
    for parameter in expert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert expert.w1.weight.shape == expert.w3.weight.shape == (37, 44) and expert.w2.weight.shape == (44, 37)
    x = torch.randn(3, 44)
    gate, up = x @ expert.w1.weight.T, x @ expert.w3.weight.T
    assert_close(expert(x), (gate / (1 + torch.exp(-gate)) * up) @ expert.w2.weight.T, rtol=1e-4, atol=1e-5)
