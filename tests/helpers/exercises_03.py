"""Answers to the exercises of lesson 03."""

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.attention import sdpa_attention


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


@wrong("grouped_attention", "are scores divided by √Dh")
def not_scaled(q, k, v):
    return by_copies(q * q.shape[3] ** 0.5, k, v)


@wrong("grouped_attention", "does each query see all keys")
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


@right("cache_bytes")
def by_an_empty_tensor(
    texts: int, tokens: int, num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, bytes_per_number=2
) -> int:
    cache = torch.empty(2, texts, num_layers, num_kv_heads, tokens, head_dim, device="meta")
    return cache.numel() * bytes_per_number


@wrong("cache_bytes", "both keys and values")
def keys_alone(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    return texts * tokens * num_layers * num_kv_heads * head_dim * bytes_per_number


@wrong("cache_bytes", "in every layer")
def one_layer(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    return 2 * texts * tokens * num_kv_heads * head_dim * bytes_per_number


@wrong("cache_bytes", "each token of each text")
def one_text(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    return 2 * tokens * num_layers * num_kv_heads * head_dim * bytes_per_number


@wrong("cache_bytes", "Queries are used once and not kept")
def query_heads(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    return 2 * texts * tokens * num_layers * num_heads * head_dim * bytes_per_number


@wrong("cache_bytes", "Is the result an int?")
def a_float(*sizes):
    return float(by_an_empty_tensor(*sizes))


@wrong("cache_bytes", "twice as much as numbers of 2")
def two_bytes_always(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    return by_an_empty_tensor(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, 2)


@wrong("cache_bytes", "twice as much as numbers of 2")
def numbers_instead_of_bytes(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    size = bytes_per_number if bytes_per_number == 1 else 1
    return 2 * texts * tokens * num_layers * num_kv_heads * head_dim * size


@wrong("cache_bytes", "Are bytes returned")
def as_gibibytes_rounded(texts, tokens, num_layers, num_heads, num_kv_heads, head_dim, bytes_per_number=2):
    size = 2 * texts * tokens * num_layers * num_kv_heads * head_dim * bytes_per_number
    return size if size < 2**30 else size / 2**30
