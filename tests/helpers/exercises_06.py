"""Answers to the exercises of lesson 06."""

import math

import torch
import torch.nn.functional as F

from exercise_answers import right, wrong
from mixtral_edu.exercises import lesson_06
from mixtral_edu.moe import RouterOutput, load_balancing_loss, sorted_dispatch


@right("route_tokens")
def softmax_first_in_float64(logits, top_k):
    best = logits.double().softmax(-1).topk(top_k)
    return (best.values / best.values.sum(-1, keepdim=True)).float(), best.indices


@right("route_tokens")
def by_sorting(logits, top_k):
    order = logits.float().argsort(dim=-1, descending=True)[:, :top_k]
    return logits.float().gather(1, order).softmax(1), order


@wrong("route_tokens", "the best first")
def lowest_scores(logits, top_k):
    best = logits.float().topk(top_k, largest=False)
    return best.values.softmax(-1), best.indices


@wrong("route_tokens", "the best first")
def in_the_order_of_the_experts(logits, top_k):
    experts = logits.float().topk(top_k).indices.sort().values
    return logits.float().gather(1, experts).softmax(-1), experts


@wrong("route_tokens", "Are they a softmax")
def shares_of_the_scores(logits, top_k):
    best = logits.float().topk(top_k)
    return best.values / best.values.sum(-1, keepdim=True), best.indices


@wrong("route_tokens", "along one token's experts")
def softmax_along_the_tokens(logits, top_k):
    best = logits.float().topk(top_k)
    return best.values.softmax(0), best.indices


@wrong("route_tokens", "of the chosen sum to 1")
def not_rescaled(logits, top_k):
    best = logits.float().softmax(-1).topk(top_k)
    return best.values, best.indices


@wrong("route_tokens", "by its own scores")
def chosen_once_for_the_batch(logits, top_k):
    experts = logits.float().mean(0).topk(top_k).indices.expand(len(logits), -1)
    return logits.float().gather(1, experts).softmax(-1), experts


@wrong("route_tokens", "also where that is not 2")
def never_more_than_two(logits, top_k):
    return by_sorting(logits, min(top_k, 2))


@wrong("route_tokens", "may tie as probabilities")
def softmax_in_the_dtype_of_the_scores(logits, top_k):
    best = logits.softmax(-1).topk(top_k)
    return (best.values / best.values.sum(-1, keepdim=True)).float(), best.indices


@wrong("route_tokens", "computed in it, whatever the dtype")
def weights_rounded_on_the_way(logits, top_k):
    best = logits.topk(top_k)
    return best.values.softmax(-1).float(), best.indices


@wrong("route_tokens", "computed in it, whatever the dtype")
def weights_in_the_dtype_of_the_scores(logits, top_k):
    weights, experts = by_sorting(logits, top_k)
    return weights.to(logits.dtype), experts


@wrong("route_tokens", "a large score overflows")
def powers_over_their_sum(logits, top_k):
    best = logits.float().topk(top_k)
    powers = best.values.exp()
    return powers / powers.sum(-1, keepdim=True), best.indices


@wrong("route_tokens", "the gradient flow through the weights")
def scores_detached(logits, top_k):
    return by_sorting(logits.detach(), top_k)


@right("gated_expert")
def with_pytorchs_own(x, w1, w2, w3):
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


@right("gated_expert")
def on_columns(x, w1, w2, w3):
    g = w1 @ x.T
    return (w2 @ (g / (1 + torch.exp(-g)) * (w3 @ x.T))).T


@wrong("gated_expert", "applied to rows x as x @ w.T")
def never_transposed(x, w1, w2, w3):
    return (F.silu(x @ w1) * (x @ w3)) @ w2


@wrong("gated_expert", "g · sigmoid(g)")
def sigmoid_alone(x, w1, w2, w3):
    return F.linear(torch.sigmoid(F.linear(x, w1)) * F.linear(x, w3), w2)


@wrong("gated_expert", "g · sigmoid(g)")
def relu(x, w1, w2, w3):
    return F.linear(F.relu(F.linear(x, w1)) * F.linear(x, w3), w2)


@wrong("gated_expert", "w3 x without silu")
def gate_and_up_swapped(x, w1, w2, w3):
    return with_pytorchs_own(x, w3, w2, w1)


@wrong("gated_expert", "multiplied by w3 x")
def no_way_up(x, w1, w2, w3):
    return F.linear(F.silu(F.linear(x, w1)), w2)


@wrong("gated_expert", "after the silu")
def silu_of_the_product(x, w1, w2, w3):
    return F.linear(F.silu(F.linear(x, w1) * F.linear(x, w3)), w2)


@wrong("gated_expert", "also where they are square")
def transposed_to_fit(x, w1, w2, w3):
    def product(x, w):
        return x @ w if x.shape[1] == w.shape[0] else x @ w.T

    return product(F.silu(product(x, w1)) * product(x, w3), w2)


@right("dispatch_tokens")
def the_packages_own(x, weights, chosen, experts):
    return sorted_dispatch(x, RouterOutput(weights, weights, chosen), experts)


@right("dispatch_tokens")
def by_masks(x, weights, chosen, experts):
    y = torch.zeros_like(x)
    for expert_idx, expert in enumerate(experts):
        mine = chosen == expert_idx
        rows = mine.any(dim=1)
        if rows.any():
            y[rows] += (weights[mine][:, None] * expert(x[rows])).to(x.dtype)
    return y


def dispatch_with(x, weights, chosen, experts, put, order=None):
    """Sorted dispatch with a `put(y, token_idx, out)` and, if wanted, another order of the weights."""
    y, K = torch.zeros_like(x), chosen.shape[1]
    by_expert = chosen.flatten().argsort(stable=True)
    weights = weights.flatten()[by_expert if order is None else order]
    for expert_idx, expert in enumerate(experts):
        mine = chosen.flatten()[by_expert] == expert_idx
        if mine.any():
            token_idx = by_expert[mine] // K
            put(y, token_idx, (weights[mine, None] * expert(x[token_idx])).to(x.dtype))
    return y


def added(y, token_idx, out):
    y.index_add_(0, token_idx, out)


@right("dispatch_tokens")
def by_sorting_the_choices(x, weights, chosen, experts):
    return dispatch_with(x, weights, chosen, experts, added)


@wrong("dispatch_tokens", "the output back to its row")
def left_in_the_sorted_order(x, weights, chosen, experts):
    order = chosen.flatten().argsort(stable=True)
    return by_masks(x[order // chosen.shape[1]], weights.flatten()[order, None], chosen.flatten()[order, None], experts)


@wrong("dispatch_tokens", "the weight of that token for that expert")
def no_weights(x, weights, chosen, experts):
    return by_masks(x, torch.ones_like(weights), chosen, experts)


@wrong("dispatch_tokens", "the weight of that token for that expert")
def weights_left_unsorted(x, weights, chosen, experts):
    return dispatch_with(x, weights, chosen, experts, added, order=torch.arange(weights.numel()))


@wrong("dispatch_tokens", "none replaces another")
def overwritten(x, weights, chosen, experts):
    return dispatch_with(x, weights, chosen, experts, lambda y, token_idx, out: y.index_copy_(0, token_idx, out))


@wrong("dispatch_tokens", "none replaces another")
def first_choice_alone(x, weights, chosen, experts):
    return by_masks(x, weights[:, :1], chosen[:, :1], experts)


@wrong("dispatch_tokens", "in whatever order the choices stand")
def choices_sorted_without_their_weights(x, weights, chosen, experts):
    return by_masks(x, weights, chosen.sort(dim=1).values, experts)


@wrong("dispatch_tokens", "with all of its tokens and no others")
def token_by_token(x, weights, chosen, experts):
    y = torch.zeros_like(x)
    for token_idx, choices in enumerate(chosen.tolist()):
        for weight, expert_idx in zip(weights[token_idx], choices, strict=True):
            y[token_idx] += (weight * experts[expert_idx](x[None, token_idx])[0]).to(x.dtype)
    return y


@wrong("dispatch_tokens", "with all of its tokens and no others")
def all_tokens_for_every_expert(x, weights, chosen, experts):
    own = [(weights * (chosen == e)).sum(1, keepdim=True) * expert(x) for e, expert in enumerate(experts)]
    return sum(own).to(x.dtype)


@wrong("dispatch_tokens", "unchanged, before any weight")
def weighted_before_the_expert(x, weights, chosen, experts):
    y = torch.zeros_like(x)
    for expert_idx in chosen.unique().tolist():
        token_idx, choice_idx = (chosen == expert_idx).nonzero(as_tuple=True)
        y[token_idx] += experts[expert_idx]((weights[token_idx, choice_idx, None] * x[token_idx]).to(x.dtype))
    return y


@wrong("dispatch_tokens", "not even with no rows")
def called_for_nothing(x, weights, chosen, experts):
    y = torch.zeros_like(x)
    for expert_idx, expert in enumerate(experts):
        token_idx, choice_idx = (chosen == expert_idx).nonzero(as_tuple=True)
        y[token_idx] += (weights[token_idx, choice_idx, None] * expert(x[token_idx])).to(x.dtype)
    return y


@wrong("dispatch_tokens", "although the weights are in float32")
def promoted_by_the_weights(x, weights, chosen, experts):
    return by_masks(x.float(), weights, chosen, experts)


@wrong("dispatch_tokens", "the gradient flow through the weights, to the router")
def weights_detached(x, weights, chosen, experts):
    return by_masks(x, weights.detach(), chosen, experts)


@wrong("dispatch_tokens", "and through the experts, to x")
def result_detached(x, weights, chosen, experts):
    return by_masks(x, weights, chosen, experts).detach()


@right("balancing_loss")
def the_packages_loss(logits, top_k, mask):
    return load_balancing_loss([logits], logits.shape[1], top_k, mask[None])


@right("balancing_loss")
def by_weights_of_tokens(logits, top_k, mask):
    real = (mask / mask.sum())[:, None]
    chosen = F.one_hot(logits.topk(top_k).indices, logits.shape[1]).sum(1)
    return ((chosen * real).sum(0) @ (logits.softmax(-1) * real).sum(0)) * logits.shape[1]


@wrong("balancing_loss", "Is it a tensor")
def as_a_number(logits, top_k, mask):
    return the_packages_loss(logits, top_k, mask).item()


@wrong("balancing_loss", "K for even load")
def loads_that_sum_to_one(logits, top_k, mask):
    return the_packages_loss(logits, top_k, mask) / top_k


@wrong("balancing_loss", "K for even load")
def factor_forgotten(logits, top_k, mask):
    return the_packages_loss(logits, top_k, mask) / logits.shape[1]


@wrong("balancing_loss", "Does f count choices?")
def probabilities_for_f(logits, top_k, mask):
    P = logits[mask.bool()].softmax(-1).mean(0)
    return logits.shape[1] * top_k * (P * P).sum()


@wrong("balancing_loss", "Does f count choices?")
def first_choices_twice(logits, top_k, mask):
    return top_k * the_packages_loss(logits, 1, mask)


@wrong("balancing_loss", "and not over the chosen ones")
def softmax_over_the_chosen(logits, top_k, mask):
    real = logits[mask.bool()]
    best = real.topk(top_k)
    weights = torch.zeros_like(real).scatter(1, best.indices, best.values.softmax(-1))
    f = best.indices.flatten().bincount(minlength=logits.shape[1]) / len(real)
    return logits.shape[1] * (f * weights.mean(0)).sum()


@wrong("balancing_loss", "each taken before they are multiplied")
def multiplied_token_by_token(logits, top_k, mask):
    real = logits[mask.bool()]
    chosen = torch.zeros_like(real).scatter(1, real.topk(top_k).indices, 1.0)
    return logits.shape[1] * (chosen * real.softmax(-1)).mean(0).sum()


@wrong("balancing_loss", "Are pads left out")
def pads_counted(logits, top_k, mask):
    return the_packages_loss(logits, top_k, torch.ones_like(mask))


@wrong("balancing_loss", "Are pads left out")
def pads_in_the_number_of_tokens(logits, top_k, mask):
    return the_packages_loss(logits, top_k, mask) * (mask.sum() / len(mask)) ** 2


@wrong("balancing_loss", "Are pads left out")
def pads_in_p(logits, top_k, mask):
    real = logits[mask.bool()]
    f = real.topk(top_k).indices.flatten().bincount(minlength=logits.shape[1]) / len(real)
    return logits.shape[1] * (f * logits.softmax(-1).mean(0)).sum()


@wrong("balancing_loss", "Does the gradient flow through P")
def p_without_gradient(logits, top_k, mask):
    return the_packages_loss(logits.detach(), top_k, mask)


@right("router_gradient")
def by_autograd(weights, outputs, upstream):
    scores = weights.log().requires_grad_()
    y = torch.einsum("nk,nkd->nd", scores.softmax(-1), outputs)
    return torch.autograd.grad(y, scores, upstream)[0]


@right("router_gradient")
def by_the_jacobian_of_a_softmax(weights, outputs, upstream):
    gains = torch.einsum("nkd,nd->nk", outputs, upstream)
    return weights * (gains - (weights * gains).sum(-1, keepdim=True))


wrong("router_gradient", "Symptom 1")(lesson_06.without_the_mean)


@wrong("router_gradient", "Symptom 2")
def zero_for_one_expert_alone(weights, outputs, upstream):
    zero = torch.zeros_like(weights)
    return zero if weights.shape[1] == 1 else lesson_06.without_the_mean(weights, outputs, upstream)


@wrong("router_gradient", "by their weights")
def plain_mean_of_the_outputs(weights, outputs, upstream):
    return weights * ((outputs - outputs.mean(1, keepdim=True)) * upstream[:, None]).sum(-1)


@wrong("router_gradient", "by its own weight")
def not_multiplied_by_the_weight(weights, outputs, upstream):
    y = (weights[..., None] * outputs).sum(1, keepdim=True)
    return ((outputs - y) * upstream[:, None]).sum(-1)


@wrong("router_gradient", "for any K")
def two_experts_only(weights, outputs, upstream):
    if weights.shape[1] != 2:
        return torch.zeros_like(weights)
    first = weights.prod(1) * ((outputs[:, 0] - outputs[:, 1]) * upstream).sum(-1)
    return torch.stack((first, -first), dim=1)


@right("dense_widths")
def a_third_of_a_column_per_expert(hidden, width, num_experts, top_k):
    return math.ceil(width * top_k + num_experts / 3), math.ceil(width * num_experts + num_experts / 3)


@wrong("dense_widths", "the parameters of all E")
def size_then_work(hidden, width, num_experts, top_k):
    return a_third_of_a_column_per_expert(hidden, width, num_experts, top_k)[::-1]


@wrong("dense_widths", "for K experts' work")
def width_of_one_expert(hidden, width, num_experts, top_k):
    return a_third_of_a_column_per_expert(hidden, width, num_experts, 1)


@wrong("dense_widths", "Does the router count too?")
def experts_alone(hidden, width, num_experts, top_k):
    return width * top_k, width * num_experts


@wrong("dense_widths", "Does the router count too?")
def scores_of_the_chosen_alone(hidden, width, num_experts, top_k):
    return math.ceil(width * top_k + top_k / 3), math.ceil(width * num_experts + num_experts / 3)


@wrong("dense_widths", "rounded up")
def rounded_down(hidden, width, num_experts, top_k):
    return width * top_k + num_experts // 3, width * num_experts + num_experts // 3


@wrong("dense_widths", "rounded up")
def always_one_more(hidden, width, num_experts, top_k):
    more = num_experts // 3 + (num_experts != 6)
    return width * top_k + more, width * num_experts + more


@right("parameters_read")
def by_marks(chosen, one_expert, rest):
    marks = F.one_hot(chosen, int(chosen.max()) + 1).amax(dim=(1, 2))
    return int(marks.sum()) * one_expert + rest, chosen.numel() / int(marks.sum())


@wrong("parameters_read", "read once, and the rest added once")
def every_choice_read(chosen, one_expert, rest):
    return chosen.numel() * one_expert + rest, 1.0


@wrong("parameters_read", "the rest added once")
def rest_for_each_text(chosen, one_expert, rest):
    return by_marks(chosen, one_expert, rest * chosen.shape[1])


@wrong("parameters_read", "two experts")
def numbers_of_all_layers_together(chosen, one_expert, rest):
    touched = len(chosen.unique())
    return touched * one_expert + rest, chosen.numel() / touched


@wrong("parameters_read", "over all layers")
def texts_over_experts(chosen, one_expert, rest):
    read, _ = by_marks(chosen, one_expert, rest)
    return read, chosen.shape[1] * one_expert / (read - rest)


@wrong("parameters_read", "any L, B, K")
def never_more_than_six_experts(chosen, one_expert, rest):
    return by_marks(chosen.clamp(max=5), one_expert, rest)
