"""Exercises of lesson 03: a masked softmax, one head, numbers to predict, shared keys, a cache, parts of a head."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("Softmax over the keys that a query may see")
def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Turn each row of scores into weights over the keys that its query may see.

    Weights are e^score, divided by their sum over the seen keys of the row. Keys that are not
    seen get exactly 0; a row that sees nothing gets zeros only.

    Args:
        scores: (..., T, S), a row for each query.
        mask: (T, S), or any shape that broadcasts to that of the scores; True where the query
            may attend to the key.

    Returns:
        (..., T, S), in the dtype of the scores.
    """
    lowest = torch.finfo(torch.float32).min  # not -inf: a row that sees nothing stays finite
    hidden = scores.float().masked_fill(~mask, lowest)
    weights = hidden.softmax(dim=-1)
    return weights.masked_fill(~mask, 0).to(scores.dtype)


def softmax_by_loops(scores: Tensor, mask: Tensor) -> np.ndarray:
    weights = np.zeros(scores.shape)
    mask = mask.expand(scores.shape)
    for place in np.ndindex(*scores.shape[:-1]):
        seen = mask[place].nonzero()[:, 0].tolist()
        values = [scores[place][key].item() for key in seen]
        powers = [math.exp(value - max(values)) for value in values]
        for key, power in zip(seen, powers, strict=True):
            weights[place][key] = power / sum(powers)
    return weights.astype(np.float32)


def all_seen(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool)


@masked_softmax.check("Does each row sum to 1, over the keys (the last dimension)?")
def over_the_keys(answer):
    scores = torch.tensor([[0.0, math.log(3), 0.0], [0.0, 0.0, math.log(2)]])
    expected = torch.tensor([[0.2, 0.6, 0.2], [0.25, 0.25, 0.5]])
    return answer(scores, all_seen(2, 3)), expected


@masked_softmax.check("Are hidden keys left out before the softmax, so that the seen ones still sum to 1?")
def hidden_before(answer):
    scores = torch.tensor([[0.0, math.log(3), 5.0]])
    return answer(scores, torch.tensor([[True, True, False]])), torch.tensor([[0.25, 0.75, 0.0]])


@masked_softmax.check("Are large scores safe? e^100 is more than float32 can hold, e^(score - largest score) is not.")
def large_scores(answer):
    return answer(torch.tensor([[100.0, 100.0]]), all_seen(1, 2)), torch.tensor([[0.5, 0.5]])


@masked_softmax.check("Is a key hidden by a score below all others, rather than by a score of 0?")
def hidden_below_all(answer):
    scores = torch.tensor([[-300.0, -300.0, -200.0]])
    return answer(scores, torch.tensor([[True, True, False]])), torch.tensor([[0.5, 0.5, 0.0]])


@masked_softmax.check("Does True mean that the query may see the key, in rows and columns as they are?")
def true_means_seen(answer):
    scores = torch.randn(3, 3)
    mask = all_seen(3, 3).tril()
    return answer(scores, mask), softmax_by_loops(scores, mask)


@masked_softmax.check("Does a row that sees nothing get zeros, and not NaN or equal weights?")
def row_that_sees_nothing(answer):
    mask = torch.tensor([[True, False], [False, False]])
    return answer(torch.randn(2, 2), mask), torch.tensor([[1.0, 0.0], [0.0, 0.0]])


@masked_softmax.check("Does it work for a batch of heads, whose scores are (B, H, T, S)?")
def batch_of_heads(answer):
    scores, mask = torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5) > 0.5
    return answer(scores, mask), softmax_by_loops(scores, mask)


@masked_softmax.check("Does the result have the dtype of the scores?")
def dtype_of_the_scores(answer):
    scores, mask = torch.randn(3, 4).bfloat16(), all_seen(3, 4)
    return answer(scores, mask), torch.tensor(softmax_by_loops(scores, mask)).bfloat16()


@exercise("One head: scores, mask, weights, sum")
def one_head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Let each query gather values from the keys that it may see.

        out = softmax(q kᵀ / √Dh, over the seen keys) v

    Args:
        q: (B, T, Dh), one query for each new token.
        k: (B, S, Dh).
        v: (B, S, Dv), a value for each key.
        mask: (T, S), True where the query may attend to the key. Each query sees a key.

    Returns:
        (B, T, Dv)
    """
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, T, S)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return weights @ v


def head_by_loops(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> np.ndarray:
    out = np.zeros((*q.shape[:2], v.shape[2]))
    for b, t in itertools.product(range(q.shape[0]), range(q.shape[1])):
        seen = [s for s in range(k.shape[1]) if mask[t, s]]
        powers = [math.exp(float(q[b, t].double() @ k[b, s].double()) / math.sqrt(q.shape[2])) for s in seen]
        for s, power in zip(seen, powers, strict=True):
            out[b, t] += power / sum(powers) * v[b, s].double().numpy()
    return out.astype(np.float32)


def head_inputs(B: int, T: int, S: int, Dh: int, Dv: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The T queries are the last of S tokens."""
    return torch.randn(B, T, Dh), torch.randn(B, S, Dh), torch.randn(B, S, Dv), all_seen(T, S).tril(S - T)


@one_head.check("With equal scores, is the output the average of the values, and is the mask taken as given?")
def mean_of_the_values(answer):
    v = torch.tensor([[[1.0], [2.0], [6.0]]])
    return answer(torch.zeros(1, 2, 4), torch.randn(1, 3, 4), v, all_seen(2, 3)), torch.full((1, 2, 1), 3.0)


@one_head.check("Are scores divided by √Dh, the root of the size of a query?")
def divided_by_the_root(answer):
    q = torch.full((1, 1, 16), 0.5)
    k = torch.stack((torch.zeros(16), torch.full((16,), 0.5 * math.log(3))))[None]  # q·k = 4 ln 3, and 4 is √16
    return answer(q, k, torch.tensor([[[0.0], [4.0]]]), all_seen(1, 2)), torch.tensor([[[3.0]]])


@one_head.check("Is the mask used before the softmax, so that no query sees a later token?")
def causal(answer):
    inputs = head_inputs(B=1, T=4, S=4, Dh=3, Dv=3)
    return answer(*inputs), head_by_loops(*inputs)


@one_head.check("Does it work for fewer queries than keys, values of another size, and more than one text?")
def all_sizes_differ(answer):
    inputs = head_inputs(B=3, T=2, S=5, Dh=4, Dv=7)
    return answer(*inputs), head_by_loops(*inputs)


@exercise("Predict before you run")
def predict_scores() -> dict[str, float]:
    """Commit to six numbers before you run anything.

    Queries and keys are random, their numbers independent, with mean 0.

    Returns:
        "product": the standard deviation of q·k for Dh = 64, where the numbers of q have the
            standard deviation 2 and those of k 0.5.
        "doubled": the factor by which the standard deviation of the scores q·k / √Dh grows
            when all numbers of q and of k are doubled.
        "ratio": a query has the products q·k = 0 and 8 with two keys, and Dh = 16. How many
            times as large is the larger weight?
        "predictions": over how many predictions the loss is averaged when one text of 65
            tokens is read once in training, with the causal mask.
        "pairs": how many pairs of query and key the causal mask leaves among 64 tokens.
        "no mask": the lowest training loss, in nats per token, that a model with enough layers
            could reach without the causal mask, at all positions but the last.
    """
    return {
        "product": 8,  # each of 64 products has the variance 2² · 0.5² = 1
        "doubled": 4,  # 2 · 2; dividing by √Dh does not undo it
        "ratio": math.exp(2),  # the scores are 0 and 8 / √16 = 2
        "predictions": 64,  # each token but the first is predicted
        "pairs": 64 * 65 // 2,
        "no mask": 0,  # the answer is the input of the next position
    }


def verdict(found: object, exact: float) -> object:
    """Compare in words, so that a message does not give the number away."""
    if not isinstance(found, int | float):
        return found
    return "right" if abs(found - exact) <= 0.01 * exact else "too low" if found < exact else "too high"


@predict_scores.check("What is the variance of one product, and how do 64 independent ones add up?")
def spread_of_a_product(answer):
    return verdict(answer()["product"], math.sqrt(64) * 2 * 0.5), "right"


@predict_scores.check("Dividing by √Dh undoes the size of the head. Does it undo the size of the numbers too?")
def doubled_numbers(answer):
    return verdict(answer()["doubled"], 2 * 2), "right"


@predict_scores.check("By what are the products divided before the softmax, and what is e to the difference?")
def ratio_of_weights(answer):
    weights = torch.tensor([0.0, 8.0]).div(math.sqrt(16)).softmax(0)
    return verdict(answer()["ratio"], float(weights[1] / weights[0])), "right"


@predict_scores.check("Is there a prediction at each position that has a next token?")
def predictions_of_a_pass(answer):
    return verdict(answer()["predictions"], len(range(1, 65))), "right"


@predict_scores.check("Query i sees i + 1 keys, counted from i = 0: what is the sum over 64 queries?")
def pairs_left(answer):
    return verdict(answer()["pairs"], sum(range(1, 65))), "right"


@predict_scores.check("Without the mask, where among the inputs does the token stand that position i must predict?")
def answer_among_the_inputs(answer):
    return verdict(answer()["no mask"], 0), "right"


def grouped_attention_with_mistakes(q, k, v):
    B, Hq, T, Dh = q.shape
    Hkv = k.shape[1]
    rows = q.reshape(B, -1, Hkv, T, Dh).transpose(1, 2).flatten(2, 3)  # (B, Hkv, G*T, Dh)
    scores = rows @ k.transpose(2, 3) / k.shape[1] ** 0.5  # (B, Hkv, G*T, S)
    out = scores.softmax(dim=-1) @ v  # (B, Hkv, G*T, Dh)
    return out.unflatten(2, (-1, T)).transpose(1, 2).reshape(B, Hq, T, Dh)


@exercise("Two mistakes in shared keys", faulty=grouped_attention_with_mistakes)
def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of Hq query heads over Hkv key-value heads; each query sees all keys.

    G = Hq / Hkv neighbouring query heads share one key-value head: query head h looks at
    key-value head h // G.

    Args:
        q: (B, Hq, T, Dh).
        k: (B, Hkv, S, Dh), where Hkv divides Hq.
        v: (B, Hkv, S, Dh).

    Returns:
        (B, Hq, T, Dh), query heads in their order.
    """
    B, Hq, T, Dh = q.shape
    Hkv = k.shape[1]
    rows = q.reshape(B, Hkv, -1, Dh)  # (B, Hkv, G*T, Dh): no key is copied
    weights = (rows @ k.transpose(2, 3) / Dh**0.5).softmax(dim=-1)  # (B, Hkv, G*T, S)
    return (weights @ v).reshape(B, Hq, T, Dh)


def grouped_by_loops(q: Tensor, k: Tensor, v: Tensor) -> np.ndarray:
    group = q.shape[1] // k.shape[1]
    heads = [head_by_loops(q[:, h], k[:, h // group], v[:, h // group], all_seen(q.shape[2], k.shape[2]))
             for h in range(q.shape[1])]  # fmt: skip
    return np.stack(heads, axis=1)


def heads_that_tell(Hq: int, Hkv: int) -> tuple[Tensor, Tensor, Tensor]:
    """Key-value head n has the value n everywhere: the output of a query head names the one that it looked at."""
    v = torch.arange(Hkv, dtype=torch.float32).view(1, Hkv, 1, 1).expand(1, Hkv, 3, 2)
    return torch.randn(1, Hq, 2, 2), torch.randn(1, Hkv, 3, 2), v


@grouped_attention.check("Are scores divided by √Dh, the root of the last dimension? Here is one head of 5 numbers.")
def a_single_head(answer):
    inputs = torch.randn(2, 1, 4, 5), torch.randn(2, 1, 6, 5), torch.randn(2, 1, 6, 5)
    return answer(*inputs), grouped_by_loops(*inputs)


@grouped_attention.check("With three key-value heads for three query heads, does each query head look at its own?")
def no_sharing(answer):
    inputs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    return answer(*inputs), grouped_by_loops(*inputs)


@grouped_attention.check("Is a single key-value head shared by all query heads?")
def all_share(answer):
    inputs = torch.randn(2, 3, 1, 5), torch.randn(2, 1, 6, 5), torch.randn(2, 1, 6, 5)
    return answer(*inputs), grouped_by_loops(*inputs)


@grouped_attention.check("Do neighbours share: query head h looks at key-value head h // G, not at h % Hkv?")
def neighbours_share(answer):
    looked_at = answer(*heads_that_tell(Hq=6, Hkv=2))[0, :, 0, 0]
    return looked_at, torch.tensor([0.0, 0, 0, 1, 1, 1])


@grouped_attention.check("Do the queries keep their places, also where heads, queries and keys differ in number?")
def queries_keep_their_places(answer):
    inputs = torch.randn(2, 6, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    return answer(*inputs), grouped_by_loops(*inputs)


@exercise("Key-value heads that fit")
def kv_heads_that_fit(
    memory: int,
    weights: int,
    texts: int,
    tokens: int,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    bytes_per_number: int = 2,
) -> int:
    """Choose the most key-value heads with which a model and its cache fit into memory.

    In each layer, each token of each text leaves one key and one value for each key-value
    head; each of them has head_dim numbers.

    Args:
        memory: bytes of the GPU; all of them may be used.
        weights: bytes of the model's weights, taken as the same for each number of heads.
        texts, tokens: B, and the tokens of each text.
        num_layers, num_heads, head_dim: L, Hq and Dh.
        bytes_per_number: of keys and values; 2 for bfloat16, 4 for float32.

    Returns:
        The largest Hkv that divides Hq and fits; 0 if not even one key-value head does.
    """
    per_head = 2 * texts * tokens * num_layers * head_dim * bytes_per_number
    fitting = (memory - weights) // per_head
    divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
    return max((n for n in divisors if n <= fitting), default=0)


ONE = {"texts": 1, "tokens": 1, "num_layers": 1, "num_heads": 16, "head_dim": 1, "bytes_per_number": 1}


@kv_heads_that_fit.check("Are both keys and values counted, in every layer and for every text?")
def keys_and_values_of_all(answer):
    sizes = {"texts": 3, "tokens": 10, "num_layers": 5, "head_dim": 7}
    return answer(2 * 3 * 10 * 5 * 7 * 5, 0, **ONE | sizes), 4


@kv_heads_that_fit.check("Is only the memory counted that the weights leave free?")
def beside_the_weights(answer):
    return answer(100, 83, **ONE), 8


@kv_heads_that_fit.check("Does the number of key-value heads divide that of the query heads? There are 24 of these.")
def a_divisor(answer):
    return answer(23, 0, **ONE | {"num_heads": 24}), 8


@kv_heads_that_fit.check("Do numbers of 4 bytes take twice the room of numbers of 2?")
def larger_numbers(answer):
    sizes = {key: value for key, value in ONE.items() if key != "bytes_per_number"}
    return [answer(40, 0, **sizes, bytes_per_number=4), answer(40, 0, **sizes, bytes_per_number=2)], [4, 8]


@kv_heads_that_fit.check("Do heads fit that take the last byte? Eight texts of 32,768 tokens of Mixtral-8x7B here.")
def to_the_last_byte(answer):
    return answer(121 * 2**30, 89 * 2**30, 8, 32_768, 32, 32, 128), 8


@kv_heads_that_fit.check("Is the result 0 if not even one key-value head fits, or the weights alone are too large?")
def nothing_fits(answer):
    return [answer(11, 10, **ONE), answer(10, 50, **ONE)], [0, 0]


@exercise("The cost of a head's parts")
def cost_of_parts(
    loss: Callable[[Tensor], float],
    parts: dict[str, Tensor],
) -> dict[str, float]:
    """Measure what each part of a head's attention is worth, by silencing exactly this part.

    Args:
        loss: a function that measures the model. Its argument `kept` is (T, T), float32: it
            multiplies the head's weights, so 1 leaves a weight as it is and 0 silences it.
        parts: (T, T) booleans by name, True at the pairs of query and key that a part consists
            of. Parts may overlap, and there may be pairs that are in none.

    Returns:
        For each part by its name, and for "rest", which are all pairs in no part: how much the
        loss grows when it is silenced and everything else is kept.
    """
    shape = next(iter(parts.values())).shape
    rest = torch.ones(shape, dtype=torch.bool)
    for part in parts.values():
        rest &= ~part
    base = loss(torch.ones(shape))
    silenced = {**parts, "rest": rest}
    return {name: loss((~part).float()) - base for name, part in silenced.items()}


def diagonals(T: int) -> dict[str, Tensor]:
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return {"own": distance == 0, "before": distance == 1}


def losing(worth: np.ndarray, base: float) -> Callable[[Tensor], float]:
    """A model whose loss is `base`, and grows by the worth of each pair that is silenced."""
    return lambda kept: base + float((worth * (1 - kept.double().numpy())).sum())


@cost_of_parts.check("Is exactly the part silenced, and everything else kept?")
def exactly_the_part(answer):
    worth = np.diag([1.0, 2, 3, 4]) + np.diag([10.0, 20, 30], -1)
    costs = answer(losing(worth, 0), diagonals(4))
    return [costs["own"], costs["before"]], [10.0, 60.0]


@cost_of_parts.check("Is the loss with all weights subtracted?")
def beyond_the_base(answer):
    costs = answer(losing(np.eye(3), 5), diagonals(3))
    return [costs["own"], costs["before"]], [3.0, 0.0]


@cost_of_parts.check("Is the rest what is in no part? Two parts overlap here.")
def the_rest(answer):
    columns = torch.arange(4).expand(4, 4)
    parts = {"first": columns == 0, "first two": columns < 2}
    worth = np.tile([1.0, 10, 100, 1000], (4, 1))
    return answer(losing(worth, 1), parts), {"first": 4.0, "first two": 44.0, "rest": 4400.0}


@cost_of_parts.check("Is each part silenced alone, with the others back? Two parts stand in for each other here.")
def one_at_a_time(answer):
    parts = diagonals(3)

    def needs_one_of_two(kept: Tensor) -> float:
        kept = kept.numpy()
        return 1.0 if kept.trace() == 0 and kept.trace(-1) == 0 else 0.0

    return answer(needs_one_of_two, parts), {"own": 0.0, "before": 0.0, "rest": 0.0}


@cost_of_parts.check(
    "Is `kept` float32 of shape (T, T), with nothing in it but 0 and 1?", compared="what `loss` was given"
)
def form_of_kept(answer):
    given = []

    def note(kept: Tensor) -> float:
        given.append((str(kept.dtype), tuple(kept.shape), set(kept.double().unique().tolist()) <= {0.0, 1.0}))
        return 0.0

    answer(note, diagonals(5))
    return sorted(set(given)), [("torch.float32", (5, 5), True)]
