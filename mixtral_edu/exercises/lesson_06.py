"""Exercises of lesson 06: router, expert, dispatch, a router's gradient, fair opponents, balance, what a step reads."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("The router's choice and its weights")
def route_tokens(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose the `top_k` best experts of each token, and weigh them.

    The weights are the softmax over the chosen scores only, computed in float32. The gradient
    has to flow through the weights.

    Args:
        logits: (N, E), each token's scores for the experts, in any dtype.
        top_k: K, the number of experts per token.

    Returns:
        weights (N, K) in float32, and experts (N, K); the best expert of a token first.
    """
    best = logits.float().topk(top_k, dim=-1)
    return best.values.softmax(dim=-1), best.indices


def route_by_probability(logits: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The other way round, in float64: softmax over all, the best of these, divided by their sum."""
    best = logits.double().softmax(dim=-1).topk(top_k)
    return (best.values / best.values.sum(dim=-1, keepdim=True)).numpy(), best.indices.numpy()


def gradient(result: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of the sum of `result`, for each input; 0 where nothing flows."""
    joined = result.sum() + 0 * sum(each.sum() for each in inputs)  # joined to the inputs, whatever `result` is
    return list(torch.autograd.grad(joined, inputs))


@route_tokens.check("Are the experts those with the highest scores, the best first?")
def highest_scores(answer):
    _, experts = answer(torch.tensor([[0.0, 2.0, -5.0, 3.0]]), 2)
    return experts, np.array([[3, 1]])


@route_tokens.check("Are they a softmax, e to the power of each score over their sum, along one token's experts?")
def softmax_of_a_token(answer):
    weights, _ = answer(torch.tensor([[-1.0, -1.0 - math.log(3), -9e9]]), 2)
    return weights, np.array([[0.75, 0.25]])


@route_tokens.check("Do the weights of the chosen sum to 1? Those left out have no part in them.")
def weights_sum_to_one(answer):
    weights, _ = answer(torch.tensor([[1.0, 1.0 - math.log(3), 0.0, -0.5]]), 1)
    return weights, np.array([[1.0]])


@route_tokens.check("Does each token choose for itself, by its own scores?")
def each_token_for_itself(answer):
    logits = torch.randn(5, 4)
    return answer(logits, 2), route_by_probability(logits, 2)


@route_tokens.check("Are there top_k experts, also where that is not 2?")
def other_k(answer):
    logits = torch.randn(3, 5)
    return answer(logits, 4), route_by_probability(logits, 4)


@route_tokens.check(
    "Is the best chosen among the scores themselves? In bfloat16, different scores may tie as probabilities."
)
def chosen_by_score(answer):
    logits = torch.tensor([[0.5, 0.1001, 0.1006, -1.0]]).bfloat16()  # experts 1 and 2 tie after a softmax in bfloat16
    _, experts = answer(logits, 2)
    return experts, np.array([[0, 2]])


@route_tokens.check("Are the weights in float32, and computed in it, whatever the dtype of the scores?")
def weights_in_float32(answer):
    logits = torch.tensor([[1.0, 0.5, -2.0]]).bfloat16()
    weights, _ = answer(logits, 2)
    return weights, torch.tensor([[1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))]])


@route_tokens.check("Is it PyTorch's softmax? Written out, e to the power of a large score overflows.")
def large_scores(answer):
    weights, _ = answer(torch.tensor([[100.0, 0.0, 100 - math.log(3)]]), 2)
    return weights, np.array([[0.75, 0.25]])


@route_tokens.check(
    "Does the gradient flow through the weights? Without it a router learns nothing from its choices.",
    compared="the gradient of the first weight for the logits",
)
def gradient_through_weights(answer):
    logits = torch.tensor([[-5.0, 1.0, -2.0, 1 - math.log(3)]], requires_grad=True)  # weights 0.75 and 0.25
    weights, _ = answer(logits, 2)
    (found,) = gradient(weights[:, 0], logits)
    return found, np.array([[0, 0.75 * 0.25, 0, -0.75 * 0.25]])


@exercise("One expert: a gated feed-forward network")
def gated_expert(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """Compute w2(silu(w1 x) · w3 x) for each token x.

    silu(g) = g / (1 + e^-g). The matrices have the shape (out, in), as layers store them.

    Args:
        x: (N, D), one token per row.
        w1: (F, D), the gate.
        w2: (D, F), down.
        w3: (F, D), up.

    Returns:
        (N, D)
    """
    gates = x @ w1.T  # (N, F)
    gates = gates * torch.sigmoid(gates)
    return (gates * (x @ w3.T)) @ w2.T


@gated_expert.check("Is a matrix of shape (out, in) applied to rows x as x @ w.T? The result has the shape of x.")
def matrices_of_layers(answer):
    return answer(torch.ones(2, 1), torch.ones(3, 1), torch.zeros(1, 3), torch.ones(3, 1)), torch.zeros(2, 1)


@gated_expert.check("Is the gate silu(w1 x), with silu(g) = g · sigmoid(g), and w3 x without silu?")
def silu_of_the_gate(answer):
    one = torch.ones(1, 1)
    return answer(one, -2 * one, one, one), np.array([[-2 / (1 + math.exp(2))]])


@gated_expert.check("Is silu(w1 x) multiplied by w3 x, number by number, after the silu?")
def multiplied_by_the_way_up(answer):
    one = torch.ones(1, 1)
    return answer(one, 2 * one, one, 3 * one), np.array([[3 * 2 / (1 + math.exp(-2))]])


@gated_expert.check("Are the matrices transposed where they have to be, also where they are square?")
def square_matrices(answer):
    x, (w1, w2, w3) = torch.randn(4, 3), torch.randn(3, 3, 3)
    return answer(x, w1, w2, w3), F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


@exercise("Send tokens to their experts")
def dispatch_tokens(
    x: Tensor, weights: Tensor, chosen: Tensor, experts: list
) -> Tensor:
    """Compute the weighted sum of each token's experts.

        y[n] = Σ_k weights[n, k] · experts[chosen[n, k]](x[n])

    Each expert is called at most once, with all of its tokens and no others; an expert
    without a token is not called. The gradient has to flow through the weights and experts.

    Args:
        x: (N, D), one token per row.
        weights: (N, K), in float32.
        chosen: (N, K), the K different experts of each token, 0 to E - 1.
        experts: E functions from (n, D) to (n, D), for any n above 0.

    Returns:
        (N, D), in the dtype of x.
    """
    y = torch.zeros_like(x)
    for expert_idx, expert in enumerate(experts):
        token_idx, choice_idx = (chosen == expert_idx).nonzero(as_tuple=True)  # (n,) each
        if len(token_idx):
            out = expert(x[token_idx]) * weights[token_idx, choice_idx, None]  # (n, D)
            y[token_idx] += out.to(x.dtype)
    return y


class Times:
    """An expert that multiplies by a factor and notes, for each call, the first number of each row it gets."""

    def __init__(self, factor: float):
        self.factor = factor
        self.calls: list[list[float]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(sorted(x.reshape(-1, x.shape[-1])[:, 0].tolist()))
        return self.factor * x

    def __repr__(self) -> str:  # in messages
        return f"× {self.factor}"


def calls_of(experts: Sequence[Times]) -> dict[str, list[list[float]]]:
    return {f"expert {expert_idx}": expert.calls for expert_idx, expert in enumerate(experts)}


CALLS = "the first number of each row, in each call of each expert"


def dispatch_by_loops(x: Tensor, weights: Tensor, chosen: Tensor, factors: Sequence[float]) -> np.ndarray:
    y = np.zeros(x.shape)
    for token_idx, choice_idx in np.ndindex(*chosen.shape):
        factor = factors[chosen[token_idx, choice_idx].item()]
        y[token_idx] += weights[token_idx, choice_idx].item() * factor * x[token_idx].double().numpy()
    return y


@dispatch_tokens.check("Does a token go to the expert that it chose, and the output back to its row?")
def own_expert(answer):
    x, ones, chosen = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 1), torch.tensor([[1], [0]])
    return answer(x, ones, chosen, [Times(10), Times(100)]), torch.tensor([[100.0, 200.0], [30.0, 40.0]])


@dispatch_tokens.check("Is each output multiplied by the weight of that token for that expert?")
def own_weight(answer):
    x, weights, chosen = torch.ones(3, 2), torch.tensor([[0.5], [0.25], [2.0]]), torch.tensor([[1], [0], [1]])
    return answer(x, weights, chosen, [Times(10), Times(100)]), dispatch_by_loops(x, weights, chosen, [10, 100])


@dispatch_tokens.check("Are the outputs of a token's experts added, so that none replaces another?")
def outputs_added(answer):
    x, weights = torch.randn(4, 3), torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    chosen = torch.tensor([[0, 1], [0, 1], [0, 1], [0, 1]])
    return answer(x, weights, chosen, [Times(10), Times(100)]), dispatch_by_loops(x, weights, chosen, [10, 100])


@dispatch_tokens.check("Does a weight stay with its token and expert, in whatever order the choices stand?")
def any_order(answer):
    x, weights, factors = torch.randn(5, 3), torch.rand(5, 2), [1, -10, 100, -1000]
    chosen = torch.tensor([[3, 1], [0, 2], [2, 3], [1, 0], [3, 0]])
    return answer(x, weights, chosen, [*map(Times, factors)]), dispatch_by_loops(x, weights, chosen, factors)


@dispatch_tokens.check(
    "Is each expert called once at most, with all of its tokens and no others, unchanged, before any weight?",
    compared=CALLS,
)
def one_call(answer):
    x, experts = torch.arange(1.0, 5.0)[:, None].repeat(1, 3), [Times(1), Times(2), Times(3)]
    chosen = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]])
    answer(x, torch.full((4, 2), 0.5), chosen, experts)
    return calls_of(experts), {"expert 0": [[1, 2, 4]], "expert 1": [[1, 3]], "expert 2": [[2, 3, 4]]}


@dispatch_tokens.check(
    "Is an expert without a token left alone? It must not be called, not even with no rows.", compared=CALLS
)
def idle_expert(answer):
    x, experts = torch.arange(1.0, 3.0)[:, None], [Times(1), Times(2), Times(3), Times(4)]
    answer(x, torch.ones(2, 2), torch.tensor([[3, 1], [1, 3]]), experts)
    return calls_of(experts), {"expert 0": [], "expert 1": [[1, 2]], "expert 2": [], "expert 3": [[1, 2]]}


@dispatch_tokens.check("Does the result have the dtype of x, although the weights are in float32?")
def dtype_of_tokens(answer):
    x, weights, chosen = torch.ones(2, 3).bfloat16(), torch.tensor([[0.75], [0.5]]), torch.tensor([[1], [0]])
    return answer(x, weights, chosen, [Times(1), Times(2)]), torch.tensor([[1.5] * 3, [0.5] * 3]).bfloat16()


@dispatch_tokens.check(
    "Does the gradient flow through the weights, to the router, and through the experts, to x?",
    compared="the gradients of the sum of the result, for x and for the weights",
)
def gradient_through_dispatch(answer):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]], requires_grad=True)
    found = answer(x, weights, torch.tensor([[1, 0], [0, 1]]), [Times(10), Times(100)])
    for_x = [[0.75 * 100 + 0.25 * 10] * 2, [0.5 * 10 + 0.5 * 100] * 2]
    for_weights = [[100 * 3.0, 10 * 3.0], [10 * 7.0, 100 * 7.0]]  # 3 and 7 are the sums of the rows
    return gradient(found, x, weights), [torch.tensor(for_x), torch.tensor(for_weights)]


def without_the_mean(weights, outputs, upstream):
    return weights * (outputs * upstream[:, None]).sum(dim=-1)


@exercise("A router that learns from nothing", faulty=without_the_mean)
def router_gradient(weights: Tensor, outputs: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of the loss for each token's K chosen scores.

    The layer's output is y = Σ_k weights[k] · outputs[k], with weights = softmax(scores) over
    the chosen scores. A colleague's code below runs, and its shapes are right. Two symptoms:
    1. With K = 1, where the weight is 1 whatever the score is, the router still moves.
    2. With K = 2 and two experts that answer alike, so that the choice does not matter, the
       scores still get gradients, and all of them of one sign.

    Args:
        weights: (N, K), each token's weights, of sum 1.
        outputs: (N, K, D), what each token's experts answered.
        upstream: (N, D), the gradient of the loss for y.

    Returns:
        (N, K), the gradient for the scores.
    """
    y = (weights[..., None] * outputs).sum(dim=1, keepdim=True)  # (N, 1, D)
    return weights * ((outputs - y) * upstream[:, None]).sum(dim=-1)


def gradient_by_differences(weights: Tensor, outputs: Tensor, upstream: Tensor) -> np.ndarray:
    """By central differences in float64: move each score a little, and see what that does to upstream · y."""
    w, o, u = (each.double().numpy() for each in (weights, outputs, upstream))
    result, step = np.zeros(w.shape), 1e-5
    for token_idx, choice_idx in np.ndindex(*w.shape):
        for sign in (1, -1):
            powers = w[token_idx].copy()
            powers[choice_idx] *= np.exp(sign * step)
            y = (powers / powers.sum()) @ o[token_idx]
            result[token_idx, choice_idx] += sign * (y @ u[token_idx]) / (2 * step)
    return result


@router_gradient.check("Symptom 1: with K = 1, is the only expert's output compared with y, which it equals?")
def nothing_with_one_expert(answer):
    return answer(torch.ones(3, 1), torch.randn(3, 1, 4), torch.randn(3, 4)), torch.zeros(3, 1)


@router_gradient.check("Symptom 2: is it what an expert's output has beyond the mixture's y that counts?")
def experts_that_agree(answer):
    alike = torch.tensor([[[2.0, 4.0], [2.0, 4.0]]])  # 0.25 · 2 and 0.75 · 2 add up without rounding
    return answer(torch.tensor([[0.25, 0.75]]), alike, torch.ones(1, 2)), torch.zeros(1, 2)


@router_gradient.check(
    "Is y the mean of the outputs by their weights, and each difference multiplied by its own weight?"
)
def weighted_by_hand(answer):
    outputs = torch.tensor([[[8.0], [4.0]]])  # y = 5, and 0.25 · (8 - 5) = 0.75 · (5 - 4)
    return answer(torch.tensor([[0.25, 0.75]]), outputs, torch.ones(1, 1)), torch.tensor([[0.75, -0.75]])


@router_gradient.check("Does each token have a y and an upstream gradient of its own, summed over D, for any K?")
def several_tokens(answer):
    weights, outputs, upstream = torch.randn(5, 3).softmax(-1), torch.randn(5, 3, 4), torch.randn(5, 4)
    return answer(weights, outputs, upstream), gradient_by_differences(weights, outputs, upstream)


@exercise("Fair opponents for a mixture")
def dense_widths(size: int, width: int, experts: int, top_k: int) -> tuple[int, int]:
    """Return how wide two dense gated networks must be to be fair opponents of a mixture.

    Both have the form of one expert, without a router. Neither may have less than the
    mixture, so a part of a column counts as a whole one.

    Args:
        size: D.
        width: F, the width of one expert.
        experts: E.
        top_k: K.

    Returns:
        The least width with as many multiplications per token as the mixture, its router
        included; and the least width with as many parameters.
    """
    column = 3 * size  # parameters of one unit of width, each used once per token
    router = experts * size
    work = column * width * top_k + router
    parameters = column * width * experts + router
    return -(-work // column), -(-parameters // column)  # rounded up


def widths_by_trying(size: int, width: int, experts: int, top_k: int) -> tuple[int, int]:
    """Count up until a dense network has enough. All E scores are computed for each token."""
    found = []
    for working in (top_k, experts):
        wanted = sum([size * width] * 3 * working) + size * experts
        found.append(next(w for w in range(wanted) if 3 * size * w >= wanted))
    return found[0], found[1]


@dense_widths.check("Is the first for K experts' work, and the second for the parameters of all E?")
def work_then_size(answer):
    return [w // 100 for w in answer(4, 10_000, 8, 2)], [200, 800]  # the router is next to nothing here


@dense_widths.check("Does the router count too? It scores every expert for every token.")
def router_counts(answer):
    return answer(5, 2, 6, 2), (6, 14)


@dense_widths.check("Is a part of a column rounded up? Rounded down, the dense network has less than the mixture.")
def rounded_up(answer):
    sizes = [(16, 16, 8, 2), (7, 3, 4, 1), (2, 5, 3, 3)]
    return [answer(*each) for each in sizes], [widths_by_trying(*each) for each in sizes]


@exercise("The load-balancing loss, pads left out")
def balancing_loss(logits: Tensor, top_k: int, mask: Tensor) -> Tensor:
    """Compute E · Σ_e f_e · P_e over the real tokens of one layer.

    f_e is how many real tokens have expert e among their top_k best scores, divided by the
    number of real tokens. P_e is the mean over real tokens of the softmax over all E scores.

    Args:
        logits: (N, E), each token's scores for the experts.
        top_k: K, the number of experts per token.
        mask: (N,), numbers (not booleans), 1 for a real token and 0 for a pad; at least one
            is real.

    Returns:
        The loss, a tensor without dimensions, whose gradient flows through P.
    """
    real = logits[mask.bool()]  # (n, E)
    experts = real.topk(top_k, dim=-1).indices
    f = experts.flatten().bincount(minlength=logits.shape[1]) / len(real)  # (E,)
    P = real.softmax(dim=-1).mean(dim=0)  # (E,)
    return logits.shape[1] * (f * P).sum()


def loads_by_loops(logits: Tensor, top_k: int, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """f (E,), and the probabilities (n, E) of the n real tokens."""
    real = logits.detach().double().numpy()[mask.numpy() == 1]
    f, probabilities = np.zeros(logits.shape[1]), np.zeros(real.shape)
    for token_idx, scores in enumerate(real):
        probabilities[token_idx] = np.exp(scores) / np.exp(scores).sum()
        for expert_idx in np.argsort(-scores)[:top_k]:
            f[expert_idx] += 1 / len(real)
    return f, probabilities


def loss_by_loops(logits: Tensor, top_k: int, mask: Tensor) -> float:
    f, probabilities = loads_by_loops(logits, top_k, mask)
    return logits.shape[1] * float(f @ probabilities.mean(axis=0))


@balancing_loss.check("Is it a tensor, and K for even load? (Is there the factor E, and do the f sum to K?)")
def even_load_gives_k(answer):
    logits = 1e-5 * torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    return answer(logits, 2, torch.ones(2)), np.array(2.0)


@balancing_loss.check("Is P the softmax over all E scores, and not over the chosen ones?")
def softmax_over_all(answer):
    logits = 1e-5 * torch.tensor([3.0, 2.0, 1.0, 0.0]).repeat(3, 1)  # P is a quarter for each
    return answer(logits, 2, torch.ones(3)), 4 * (0.25 + 0.25)


@balancing_loss.check("Does f count choices? A token counts 1 for each of its top_k experts, however sure it is.")
def f_counts_choices(answer):
    logits = torch.tensor([0.4, 0.35, 0.15, 0.1]).log().repeat(3, 1)
    return answer(logits, 2, torch.ones(3)), 4 * (0.4 + 0.35)


@balancing_loss.check("Are f and P means over the tokens, each taken before they are multiplied?")
def means_first(answer):
    logits = torch.randn(5, 4)
    return answer(logits, 2, torch.ones(5)), loss_by_loops(logits, 2, torch.ones(5))


@balancing_loss.check("Are pads left out of f, of P, and of the number of tokens?")
def pads_left_out(answer):
    logits, mask = torch.randn(7, 4), torch.tensor([0, 0, 1, 1, 0, 1, 1])
    logits[:, 0] += 3 * (1 - mask)
    return answer(logits, 2, mask), loss_by_loops(logits, 2, mask)


@balancing_loss.check("Does the gradient flow through P, with f as it is?", compared="the gradient for the logits")
def gradient_through_p(answer):
    logits, mask = torch.randn(5, 4), torch.tensor([1, 1, 0, 1, 1])
    logits[:, 0] += 3  # an uneven load: an even one has no gradient
    logits.requires_grad_()
    (found,) = gradient(answer(logits, 2, mask), logits)
    f, p = loads_by_loops(logits, 2, mask)
    expected = np.zeros(logits.shape)
    expected[mask.numpy() == 1] = 4 / len(p) * p * (f - p @ f[:, None])
    return found, expected


@exercise("What a step reads")
def parameters_read(chosen: Tensor, one_expert: int, rest: int) -> tuple[int, float]:
    """Count the parameters that a step reads which adds a token to each of B texts.

    An expert that several texts choose in the same layer is read once. Experts of different
    layers are different experts, whatever their numbers.

    Args:
        chosen: (L, B, K), the experts that each text's token chose in each layer.
        one_expert: parameters of one expert.
        rest: parameters outside the experts, all of which are read.

    Returns:
        The parameters read; and how many texts share an expert on average: all choices
        divided by the experts read.
    """
    touched = sum(len(layer.unique()) for layer in chosen)
    return touched * one_expert + rest, chosen.numel() / touched


def read_by_sets(chosen: Tensor, one_expert: int, rest: int) -> tuple[int, float]:
    read = {(layer, e) for layer, texts in enumerate(chosen.tolist()) for text in texts for e in text}
    return len(read) * one_expert + rest, sum(len(text) for texts in chosen.tolist() for text in texts) / len(read)


@parameters_read.check("Is an expert that two texts choose read once, and the rest added once?")
def shared_expert(answer):
    return answer(torch.tensor([[[0, 3], [3, 5], [0, 3]]]), 100, 7)[0], 307


@parameters_read.check("Are expert 1 of layer 0 and expert 1 of layer 1 two experts?")
def layers_apart(answer):
    return answer(torch.tensor([[[1, 2]], [[1, 2]], [[2, 4]]]), 100, 7)[0], 607


@parameters_read.check("Is the second all choices, over all layers, divided by the experts read?")
def texts_per_expert(answer):
    return answer(torch.tensor([[[0, 3], [3, 5], [0, 3]], [[1, 2], [1, 2], [1, 2]]]), 100, 7)[1], 12 / 5


@parameters_read.check("Does it hold for any L, B, K and numbers of experts?")
def any_sizes(answer):
    chosen = torch.rand(3, 5, 11).topk(4).indices
    return answer(chosen, 176_160_768, 1_605_636_096), read_by_sets(chosen, 176_160_768, 1_605_636_096)
