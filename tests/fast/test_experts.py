"""Forms of dispatch, against each other and by hand."""

import pytest
import torch

from mixtral_edu.fast.experts import dense_dispatch, grouped_dispatch
from mixtral_edu.moe import EXPERT_DISPATCH, RouterOutput, SparseMoE, reference_dispatch, sorted_dispatch
from tolerances import chain_error

pytestmark = pytest.mark.numerics

D = 44
ALL_FORMS = EXPERT_DISPATCH | {"dense": dense_dispatch, "grouped": grouped_dispatch}


def routing_of(weights: list[list[float]], experts: list[list[int]], E: int = 5) -> RouterOutput:
    return RouterOutput(torch.zeros(len(experts), E), torch.tensor(weights), torch.tensor(experts))


@pytest.mark.parametrize("dispatch", ALL_FORMS.values(), ids=ALL_FORMS)
def test_dispatch_is_the_weighted_sum_of_the_chosen_experts(dispatch):
    experts = [lambda x, factor=factor: x * factor for factor in (1, 10, 100, 1000, 10_000)]
    x = torch.tensor([[1.0], [2.0], [3.0]])
    routing = routing_of([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], [[3, 0], [1, 4], [0, 3]])
    assert dispatch(x, routing, experts).tolist() == [[750.25], [10010.0], [3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("E", "K", "N"), [(5, 2, 13), (8, 2, 1), (16, 4, 29), (16, 4, 2), (3, 3, 7), (5, 1, 13), (1, 1, 4)]
)
def test_reference_sorted_and_dense_agree_forward_and_backward(make_config, E, K, N, dtype):
    """With one token, with experts that get none (16 experts, 2 tokens), with K = E and K = 1."""
    config = make_config(num_local_experts=E, num_experts_per_tok=K)
    moe = SparseMoE(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    moe.to(dtype)
    x = torch.randn(N, D, dtype=dtype, requires_grad=True)
    direction = torch.randn(N, D, dtype=dtype)
    results = []
    for dispatch in (reference_dispatch, sorted_dispatch, dense_dispatch):
        y = dispatch(x, moe.gate(x), moe.experts)
        wanted = [x, *moe.parameters()]
        gradients = torch.autograd.grad(y, wanted, direction, allow_unused=True)
        results.append((y, *(torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True))))
    # sums of D, F and K numbers; in bfloat16 each step is rounded: w1, w3, silu, their product, w2, the weight, K sums
    tolerance = chain_error(D + 37 + K) if dtype == torch.float32 else chain_error(6 + K, dtype)
    for reference, *values in zip(*results, strict=True):
        assert {value.dtype for value in values} == {dtype}
        assert all((reference - value).abs().max() <= tolerance * reference.abs().max() for value in values)


def test_what_an_expert_says_that_was_not_chosen_does_not_matter():
    experts = [lambda x: x, lambda x: x * torch.inf, lambda x: x * torch.nan]
    y = dense_dispatch(torch.tensor([[2.0]]), routing_of([[1.0]], [[0]], E=3), experts)
    assert y.tolist() == [[2.0]]


class Noting(torch.nn.Module):
    """An expert that changes nothing, and notes the batches that it gets."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(x[:, 0].tolist())
        return x


@pytest.mark.parametrize(("training", "gradients"), [(False, True), (True, False), (True, True)])
def test_sorted_runs_each_expert_once_on_its_own_tokens(training, gradients):
    """Idle ones not at all, or in training on no tokens, so that each weight has a gradient."""
    experts = torch.nn.ModuleList(Noting() for _ in range(5)).train(training)
    routing = routing_of([[0.5, 0.5]] * 4, [[3, 0], [0, 3], [3, 1], [0, 1]])
    idle = [[]] if training and gradients else []
    with torch.set_grad_enabled(gradients):
        sorted_dispatch(torch.arange(4.0)[:, None], routing, experts)
    assert [expert.batches for expert in experts] == [[[0, 1, 3]], [[2, 3]], idle, [[0, 1, 2]], idle]
