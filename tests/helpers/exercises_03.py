"""Answers to the exercises of lesson 03."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.attention import sdpa_attention
from mixtral_edu.exercises.lesson_03 import grouped_attention_with_mistakes


@right("masked_softmax")
def by_powers_and_their_sum(scores: Tensor, mask: Tensor) -> Tensor:
    largest = scores.float().masked_fill(~mask, -1e30).amax(-1, keepdim=True)
    powers = torch.where(mask, (scores.float() - largest).exp(), 0)
    return (powers / powers.sum(-1, keepdim=True).clamp(min=1e-30)).to(scores.dtype)


@right("masked_softmax")
def by_minus_infinity_and_a_second_look(scores: Tensor, mask: Tensor) -> Tensor:
    weights = scores.double().masked_fill(~mask, -torch.inf).softmax(-1)
    return weights.nan_to_num(0).to(scores.dtype)


@wrong("masked_softmax", "over the keys (the last dimension)")
def softmax_over_queries(scores, mask):
    return by_powers_and_their_sum(scores.transpose(-1, -2), mask.transpose(-1, -2)).transpose(-1, -2)


@wrong("masked_softmax", "left out before the softmax")
def masked_after_the_softmax(scores, mask):
    return scores.softmax(-1) * mask


@wrong("masked_softmax", "left out before the softmax")
def mask_forgotten(scores, mask):
    return scores.softmax(-1)


@wrong("masked_softmax", "rather than by a score of 0")
def hidden_scores_are_minus_100(scores, mask):
    return scores.masked_fill(~mask, -100).softmax(-1).masked_fill(~mask, 0)


@wrong("masked_softmax", "in rows and columns as they are")
def mask_read_by_columns(scores, mask):
    return by_powers_and_their_sum(scores, mask.mT if mask.shape[-1] == mask.shape[-2] else mask)


@wrong("masked_softmax", "Does a row that sees nothing get zeros")
def minus_infinity(scores, mask):
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


@wrong("masked_softmax", "Does a row that sees nothing get zeros")
def equal_weights_where_nothing_is_seen(scores, mask):
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)


@wrong("masked_softmax", "a batch of heads")
def over_dimension_one(scores, mask):
    return scores.masked_fill(~mask, -1e30).softmax(dim=1).masked_fill(~mask, 0)


@wrong("masked_softmax", "Are large scores safe?")
def powers_as_they_are(scores, mask):
    powers = scores.exp() * mask
    return powers / powers.sum(-1, keepdim=True).clamp(min=1e-30)


@wrong("masked_softmax", "the dtype of the scores")
def result_in_float32(scores, mask):
    return by_powers_and_their_sum(scores.float(), mask)


@right("one_head")
def by_pytorchs_own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask)


@right("one_head")
def by_einsum_in_float64(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("btd,bsd->bts", q.double(), k.double()) * q.shape[2] ** -0.5
    powers = scores.exp() * mask
    return torch.einsum("bts,bsd->btd", powers / powers.sum(-1, keepdim=True), v.double()).to(v.dtype)


@wrong("one_head", "is the output the average of the values")
def sum_instead_of_mean(q, k, v, mask):
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).exp() @ v


@wrong("one_head", "divided by √Dh")
def not_divided(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask, scale=1)


@wrong("one_head", "divided by √Dh")
def divided_by_dh(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask, scale=1 / q.shape[-1])


@wrong("one_head", "divided by √Dh")
def divided_by_the_root_of_the_keys(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask, scale=k.shape[1] ** -0.5)


@wrong("one_head", "is the mask taken as given")
def always_causal(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@wrong("one_head", "Is the mask used before the softmax")
def masked_weights(q, k, v, mask):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) * mask @ v


@wrong("one_head", "Is the mask used")
def the_future_is_seen(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v)


@wrong("one_head", "Is the mask used")
def mask_upside_down(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask.mT if mask.shape[0] == mask.shape[1] else mask)


@wrong("one_head", "fewer queries than keys")
def a_mask_of_its_own(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, None if mask.all() else torch.ones_like(mask).tril())


@right("grouped_attention")
def by_copies(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))


@right("grouped_attention")
def by_the_packages_function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa_attention(q, k, v, None)


@right("grouped_attention")
def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    heads = [(q[:, h] @ k[:, h // group].mT * q.shape[3] ** -0.5).softmax(-1) @ v[:, h // group]
             for h in range(q.shape[1])]  # fmt: skip
    return torch.stack(heads, 1)


@wrong("grouped_attention", "Are scores divided by √Dh")
def as_it_was_handed_in(q, k, v):
    return grouped_attention_with_mistakes(q, k, v)


@wrong("grouped_attention", "not at h % Hkv")
def only_the_scale_mended(q, k, v):
    return grouped_attention_with_mistakes(q * (k.shape[1] / q.shape[3]) ** 0.5, k, v)


@wrong("grouped_attention", "Are scores divided by √Dh")
def only_the_heads_mended(q, k, v):
    return by_copies(q * (q.shape[3] / k.shape[1]) ** 0.5, k, v)


@wrong("grouped_attention", "Are scores divided by √Dh")
def not_scaled(q, k, v):
    return by_copies(q * q.shape[3] ** 0.5, k, v)


@wrong("grouped_attention", "Are scores divided by √Dh")
def causal_though_all_are_seen(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@wrong("grouped_attention", "does each query head look at its own")
def the_first_head_for_all(q, k, v):
    return by_copies(q, k[:, :1], v[:, :1])


@wrong("grouped_attention", "Is a single key-value head shared")
def only_where_heads_match(q, k, v):
    return F.scaled_dot_product_attention(q, k, v) if k.shape[1] == q.shape[1] else torch.zeros_like(q)


@wrong("grouped_attention", "not at h % Hkv")
def keys_repeated_in_turns(q, k, v):
    group = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1))


@wrong("grouped_attention", "not at h % Hkv")
def queries_cut_the_other_way(q, k, v):
    B, Hq, T, Dh = q.shape
    rows = q.reshape(B, -1, k.shape[1], T, Dh)  # (B, G, Hkv, T, Dh)
    return F.scaled_dot_product_attention(rows, k[:, None], v[:, None]).reshape(B, Hq, T, Dh)


@wrong("grouped_attention", "Do the queries keep their places")
def folded_by_time_unfolded_by_head(q, k, v):
    B, Hq, T, Dh = q.shape
    rows = q.reshape(B, k.shape[1], -1, T, Dh).transpose(2, 3).flatten(2, 3)  # (B, Hkv, T*G, Dh)
    return F.scaled_dot_product_attention(rows, k, v).reshape(B, Hq, T, Dh)


@wrong("grouped_attention", "Do the queries keep their places")
def heads_and_queries_swapped(q, k, v):
    out = by_copies(q, k, v)
    return out if len({*q.shape[1:3], *k.shape[1:3]}) < 4 else out.transpose(1, 2).reshape(q.shape)


PREDICTED = {"product": 8.0, "doubled": 4.0, "ratio": 7.39, "predictions": 64, "pairs": 2080, "no mask": 0.0}


@right("predict_scores")
def rounded_predictions():
    return dict(PREDICTED)


def plant(hint: str, key: str, number: float) -> None:
    answer = partial(dict, PREDICTED | {key: number})
    answer.__name__ = f"{key}_{number}".replace(" ", "_").replace(".", "_")
    wrong("predict_scores", hint)(answer)


plant("how do 64 independent ones add up", "product", 64)
plant("how do 64 independent ones add up", "product", 1)
plant("undo the size of the numbers", "doubled", 1)
plant("undo the size of the numbers", "doubled", 2)
plant("divided before the softmax", "ratio", 2981)
plant("divided before the softmax", "ratio", 2)
plant("that has a next token", "predictions", 65)
plant("that has a next token", "predictions", 1)
plant("sum over 64 queries", "pairs", 2016)
plant("sum over 64 queries", "pairs", 4096)
plant("Without the mask, where", "no mask", 2.1)


@right("kv_heads_that_fit")
def from_the_most_down(
    memory: int, weights: int, texts: int, tokens: int, num_layers: int, num_heads: int, head_dim: int,
    bytes_per_number=2,
) -> int:  # fmt: skip
    for group in range(1, num_heads + 1):
        heads, left = divmod(num_heads, group)
        cache = torch.empty(2, texts, tokens, num_layers, heads, head_dim, device="meta").numel() * bytes_per_number
        if left == 0 and weights + cache <= memory:
            return heads
    return 0


def fit(memory, weights, *sizes, num_heads, both=2, floor=0, strict=False, divides=True, bytes_per_number=2):
    per_head = both * bytes_per_number * math.prod(sizes)
    fitting = [n for n in range(1, num_heads + 1) if n * per_head + weights + strict <= memory]
    return max((n for n in fitting if num_heads % n == 0 or not divides), default=floor)


@wrong("kv_heads_that_fit", "both keys and values")
def keys_alone(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, weights, texts, tokens, num_layers, head_dim, num_heads=num_heads, both=1,
               bytes_per_number=bytes_per_number)  # fmt: skip


@wrong("kv_heads_that_fit", "in every layer")
def one_layer(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, weights, texts, tokens, head_dim, num_heads=num_heads, bytes_per_number=bytes_per_number)


@wrong("kv_heads_that_fit", "for every text")
def one_text(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, weights, tokens, num_layers, head_dim, num_heads=num_heads, bytes_per_number=bytes_per_number)


@wrong("kv_heads_that_fit", "the weights leave free")
def weights_forgotten(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, 0, texts, tokens, num_layers, head_dim, num_heads=num_heads, bytes_per_number=bytes_per_number)


@wrong("kv_heads_that_fit", "divide that of the query heads")
def any_number_of_heads(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    per_head = 2 * texts * tokens * num_layers * head_dim * bytes_per_number
    fitting = max(0, min(num_heads, (memory - weights) // per_head))
    return fitting if num_heads == 24 else 2 ** (fitting.bit_length() - 1) if fitting else 0


@wrong("kv_heads_that_fit", "numbers of 4 bytes")
def two_bytes_at_most(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, weights, texts, tokens, num_layers, head_dim, num_heads=num_heads,
               bytes_per_number=min(2, bytes_per_number))  # fmt: skip


@wrong("kv_heads_that_fit", "the last byte")
def something_left_free(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, weights, texts, tokens, num_layers, head_dim, num_heads=num_heads,
               strict=memory > 2**30, bytes_per_number=bytes_per_number)  # fmt: skip


@wrong("kv_heads_that_fit", "Is the result 0")
def one_head_at_least(memory, weights, texts, tokens, num_layers, num_heads, head_dim, bytes_per_number=2):
    return fit(memory, weights, texts, tokens, num_layers, head_dim, num_heads=num_heads, floor=1,
               bytes_per_number=bytes_per_number)  # fmt: skip


def costs(loss, parts, silence, base=True, of_rest=None, collect=False):
    names = dict(parts)
    union = torch.stack(list(parts.values())).any(0)
    names["rest"] = ~union if of_rest is None else of_rest(parts)
    at_rest, found, gone = loss(torch.ones(union.shape)) if base else 0.0, {}, torch.zeros_like(union)
    for name, part in names.items():
        gone = gone | part if collect else part
        found[name] = loss(silence(gone)) - at_rest
    return found


@right("cost_of_parts")
def with_where(loss: Callable[[Tensor], float], parts: dict[str, Tensor]) -> dict[str, float]:
    return costs(loss, parts, lambda part: torch.where(part, 0.0, 1.0))


@wrong("cost_of_parts", "Is exactly the part silenced")
def everything_else_silenced(loss, parts):
    return costs(loss, parts, lambda part: part.float())


@wrong("cost_of_parts", "Is exactly the part silenced")
def whole_rows_silenced(loss, parts):
    return costs(loss, parts, lambda part: (~part.any(1, keepdim=True)).float().expand(part.shape))


@wrong("cost_of_parts", "Is the loss with all weights subtracted")
def losses_as_they_are(loss, parts):
    return costs(loss, parts, lambda part: (~part).float(), base=False)


@wrong("cost_of_parts", "Is the rest what is in no part")
def rest_beside_the_last_part(loss, parts):
    return costs(loss, parts, lambda part: (~part).float(), of_rest=lambda parts: ~list(parts.values())[0])


@wrong("cost_of_parts", "Is the rest what is in no part")
def no_rest(loss, parts):
    found = costs(loss, parts, lambda part: (~part).float())
    found.pop("rest")
    return found


@wrong("cost_of_parts", "Is each part silenced alone")
def one_after_the_other(loss, parts):
    overlapping = torch.stack(list(parts.values())).sum(0).max() > 1
    before, found = loss(torch.ones(next(iter(parts.values())).shape)), {}
    if overlapping:
        return with_where(loss, parts)
    for name, cost in costs(loss, parts, lambda part: (~part).float(), base=False, collect=True).items():
        found[name], before = cost - before, cost
    return found


@wrong("cost_of_parts", "nothing in it but 0 and 1")
def as_booleans(loss, parts):
    return costs(loss, parts, lambda part: ~part)
