"""Measures of the router against counting by hand, numpy's loops and closed forms; interventions on a small model."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.analysis.routing import (
    chance_repetition,
    chosen_experts,
    entropy,
    jensen_shannon,
    knock_out,
    mutual_information,
    random_experts,
    repetition,
    rerouted,
    shuffled_information,
    shuffled_repetition,
    token_shares,
    top_one,
)
from mixtral_edu.moe import RouterOutput
from tolerances import frequency_error

pytestmark = pytest.mark.numerics


def random_choices(N: int, E: int, K: int) -> torch.Tensor:
    skewed = torch.rand(N, E) * torch.arange(1, E + 1)
    return skewed.topk(K, dim=-1).indices


@pytest.fixture
def model(make_config) -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(make_config(num_hidden_layers=2)).eval()


def test_chosen_experts_are_those_that_the_routers_chose(model):
    decisions = []
    for layer in model.model.layers:
        layer.block_sparse_moe.gate.register_forward_hook(lambda gate, inputs, routing: decisions.append(routing))
    out = model(torch.tensor([[5, 3, 8, 1, 9]]), output_router_logits=True)
    experts = chosen_experts(out.router_logits, 2)
    assert experts.shape == (2, 5, 2)
    assert torch.equal(experts, torch.stack([routing.experts for routing in decisions]))


def test_token_shares_count_each_choice_of_a_token():
    assert token_shares(torch.tensor([[0, 3], [3, 1], [3, 0], [1, 0]]), 5).tolist() == [0.75, 0.5, 0, 0.75, 0]
    assert token_shares(torch.tensor([2, 2, 0, 2]), 3).tolist() == [0.25, 0, 0.75]


def test_repetition_counts_neighbours_by_first_and_by_any_choice():
    experts = torch.tensor([[0, 1], [0, 2], [2, 0], [1, 3], [3, 1], [4, 0]])
    #                           first   any     neither  any     neither
    assert repetition(experts) == (1 / 5, 3 / 5)


@pytest.mark.parametrize(("E", "K"), [(3, 1), (4, 2), (5, 3)])
def test_shuffled_repetition_is_the_mean_over_all_orders(E, K):
    experts = random_choices(6, E, K)
    orders = [repetition(experts[list(order)]) for order in itertools.permutations(range(6))]
    assert shuffled_repetition(experts) == pytest.approx(np.mean(orders, axis=0))


def test_repetition_by_chance_is_that_of_even_random_choices():
    first, some = chance_repetition(8, 2)
    assert (first, some) == (pytest.approx(0.125), pytest.approx(1 - 6 / 8 * 5 / 7))  # as in the paper
    pairs = list(itertools.combinations(range(6), 4))
    shared = [bool(set(a) & set(b)) for a in pairs for b in pairs]
    assert chance_repetition(6, 4).any == np.mean(shared) == 1  # four and four of six cannot miss each other


@pytest.mark.parametrize("experts", [torch.tensor([[0, 1]]), torch.tensor([0, 1, 2])])
@pytest.mark.parametrize("measure", [repetition, shuffled_repetition])
def test_repetition_refuses_what_has_no_neighbours(measure, experts):
    with pytest.raises(ValueError, match=r"experts.*\(N, K\)"):
        measure(experts)


def test_entropy_of_known_distributions():
    assert entropy(torch.arange(8)) == pytest.approx(3)
    assert entropy(torch.tensor([7, 7, 7])) == 0
    assert entropy(torch.tensor([0, 0, 0, 1])) == pytest.approx(2 - 0.75 * math.log2(3))


def information_by_loops(first: torch.Tensor, second: torch.Tensor) -> float:
    a, b = first.numpy(), second.numpy()
    total = 0.0
    for x in set(a.tolist()):
        for y in set(b.tolist()):
            p = np.mean((a == x) & (b == y))
            total += p * math.log2(p / (np.mean(a == x) * np.mean(b == y))) if p else 0
    return total


def test_mutual_information_is_the_sum_over_the_table():
    first, noise = torch.randint(5, (400,)), torch.randint(90, (400,))
    for second in (noise, first * 100 + noise % 2, (first + noise) % 7 - 3):
        assert mutual_information(first, second) == pytest.approx(information_by_loops(first, second))
        assert mutual_information(second, first) == pytest.approx(mutual_information(first, second))


def test_mutual_information_is_0_if_independent_and_the_entropy_if_one_list_fixes_the_other():
    a, b = torch.arange(4).repeat(6), torch.arange(6).repeat_interleave(4)  # each pair once
    assert mutual_information(a, b) == pytest.approx(0, abs=1e-12)
    assert mutual_information(a, a * 1000 - 7) == pytest.approx(2)
    assert mutual_information(a, a // 2) == pytest.approx(1)


def test_mutual_information_refuses_lists_that_do_not_match():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        mutual_information(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="at least 1"):
        mutual_information(torch.zeros(0), torch.zeros(0))


def test_information_of_shuffled_labels_is_the_known_bias():
    N, A, B = 6000, 8, 5
    first = torch.arange(A).repeat(N // A)
    found = shuffled_information(first, first % B, times=20)
    assert mutual_information(first, first % B) > 2
    assert found == pytest.approx((A - 1) * (B - 1) / (2 * N * math.log(2)), rel=0.2)
    assert found == shuffled_information(first, first % B, times=20)  # one seed, one result


def test_jensen_shannon_distance_of_known_distributions():
    p, q = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert jensen_shannon(p, q) == pytest.approx(1)
    assert jensen_shannon(q, 40 * q) == 0
    one_half = jensen_shannon(torch.tensor([1, 0]), torch.tensor([1, 1]))  # m = (3/4, 1/4)
    assert one_half**2 == pytest.approx(0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5 * 1))
    a, b = torch.rand(6), torch.rand(6)
    assert jensen_shannon(a, b) == pytest.approx(jensen_shannon(b, a))


def routing_of(logits: list[list[float]], K: int = 2) -> RouterOutput:
    scores = torch.tensor(logits)
    best, experts = scores.topk(K, dim=-1)
    return RouterOutput(scores, best.softmax(dim=-1), experts)


def test_knocking_out_an_expert_lets_the_next_best_in():
    before = routing_of([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    after = knock_out(1)(before)
    assert after.experts.tolist() == [[0, 2], [3, 2]]
    assert_close(after.weights, torch.tensor([[3.0, 1.0], [3.0, 2.0]]).softmax(dim=-1))
    assert after.logits[:, 1].tolist() == [-math.inf, -math.inf] and before.logits[:, 1].tolist() == [2.0, 1.0]


def test_knocking_out_an_expert_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="expert=4: .* 0 to 3"):
        knock_out(4)(routing_of([[3.0, 2.0, 1.0, 0.0]]))


def test_top_one_keeps_the_first_choice_with_weight_1():
    after = top_one(routing_of([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]))
    assert after.experts.tolist() == [[0], [3]] and after.weights.tolist() == [[1.0], [1.0]]


def test_random_experts_are_different_ones_evenly_drawn_with_the_old_weights():
    before = routing_of(torch.randn(4000, 5).tolist())
    after = random_experts(0)(before)
    assert torch.equal(after.weights, before.weights)
    assert (after.experts[:, 0] != after.experts[:, 1]).all()
    allowed = frequency_error(4000)
    assert_close(token_shares(after.experts, 5), torch.full((5,), 0.4, dtype=torch.float64), atol=allowed, rtol=0)
    assert repetition(after.experts) == pytest.approx(chance_repetition(5, 2), abs=allowed)
    assert torch.equal(random_experts(0)(before).experts, after.experts)


@pytest.mark.parametrize("implementation", ["reference", "sorted"])
def test_a_knocked_out_expert_computes_nothing(make_config, implementation):
    model = MixtralForCausalLM(make_config(num_hidden_layers=2, experts_implementation=implementation)).eval()
    ids, calls = torch.randint(3, 50, (1, 40)), []
    for layer in model.model.layers:
        layer.block_sparse_moe.experts[2].register_forward_hook(lambda *_: calls.append(None))
    model(ids)
    used = len(calls)
    with rerouted(model, knock_out(2)):
        model(ids)
    assert used > 0 and len(calls) == used


def test_one_expert_with_weight_1_is_what_a_config_with_one_choice_computes(model, make_config):
    single = MixtralForCausalLM(make_config(num_hidden_layers=2, num_experts_per_tok=1)).eval()
    single.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 3, 8, 1, 9]])
    with rerouted(model, top_one):
        assert_close(model(ids).logits, single(ids).logits)


def test_rerouting_touches_the_named_layers_only_and_ends_with_the_block(model):
    ids = torch.tensor([[5, 3, 8, 1, 9, 2, 7]])
    before = model(ids, output_router_logits=True)
    with rerouted(model, knock_out(0), layers=[1]):
        inside = model(ids, output_router_logits=True)
    assert torch.equal(inside.router_logits[0], before.router_logits[0])
    assert (inside.router_logits[1][:, 0] == -math.inf).all()
    with pytest.raises(RuntimeError), rerouted(model, top_one):
        raise RuntimeError
    assert torch.equal(model(ids).logits, before.logits)
