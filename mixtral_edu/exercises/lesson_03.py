"""Exercises of lesson 03: softmax under a mask, one head, shared keys, and what a cache costs."""

import itertools
import math

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


@exercise("Query heads that share keys and values")
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


@grouped_attention.check("With a single head: are scores divided by √Dh, and does each query see all keys?")
def a_single_head(answer):
    inputs = torch.randn(2, 1, 4, 5), torch.randn(2, 1, 6, 5), torch.randn(2, 1, 6, 5)
    return answer(*inputs), grouped_by_loops(*inputs)


@grouped_attention.check("With as many key-value heads as query heads, does each query head look at its own?")
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


@exercise("Bytes of the key-value cache")
def cache_bytes(
    texts: int,
    tokens: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    bytes_per_number: int = 2,
) -> int:
    """Say how many bytes the keys and values of a batch of texts take, without a window.

    In each layer, each token leaves one key and one value behind for each key-value head;
    each of them has head_dim numbers.

    Args:
        texts: B.
        tokens: of each text.
        num_layers: L.
        num_heads: Hq, the query heads.
        num_kv_heads: Hkv.
        head_dim: Dh.
        bytes_per_number: 2 for bfloat16, 4 for float32.

    Returns:
        The bytes, as an integer.
    """
    per_token = 2 * num_layers * num_kv_heads * head_dim * bytes_per_number
    return texts * tokens * per_token


ALL_ONE = dict.fromkeys(("texts", "tokens", "num_layers", "num_heads", "num_kv_heads", "head_dim"), 1)


@cache_bytes.check("Is the result an int?", compared="its type")
def whole_number(answer):
    return type(answer(**ALL_ONE)).__name__, "int"


@cache_bytes.check("Do numbers of 4 bytes take twice as much as numbers of 2?")
def size_of_a_number(answer):
    half = answer(**ALL_ONE, bytes_per_number=2)
    return answer(**ALL_ONE, bytes_per_number=4), 2 * half


@cache_bytes.check("Are both keys and values counted, in every layer?")
def keys_and_values_of_all_layers(answer):
    return answer(**ALL_ONE | {"num_layers": 3, "head_dim": 5}, bytes_per_number=1), 30


@cache_bytes.check("Does each token of each text count?")
def all_tokens_of_all_texts(answer):
    return answer(**ALL_ONE | {"texts": 3, "tokens": 7}, bytes_per_number=1), 42


@cache_bytes.check("Is it the key-value heads that are counted? Queries are used once and not kept.")
def key_value_heads(answer):
    return answer(**ALL_ONE | {"num_heads": 6, "num_kv_heads": 2}, bytes_per_number=1), 4


@cache_bytes.check("Are bytes returned, 2**34 of them (16 GiB) for one Mixtral-8x7B text of 131,072 tokens?")
def mixtral_8x7b(answer):
    return answer(1, 131_072, 32, 32, 8, 128, 2), 2**34
