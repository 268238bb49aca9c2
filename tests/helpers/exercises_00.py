"""Answers to the exercises of lesson 00."""

import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu import MixtralConfig, MixtralTokenizer
from mixtral_edu.text.streaming import IncrementalDecoder


@right("growing_text")
def by_the_pieces_bytes(tokenizer: MixtralTokenizer, ids: list[int]) -> list[str]:
    texts, content = [], b""
    for i in ids:
        if i in tokenizer.byte_values:
            content += bytes([tokenizer.byte_values[i]])
        elif i not in tokenizer.all_special_ids:
            content += tokenizer.convert_ids_to_tokens(i).replace("▁", " ").encode()
        text = content.decode(errors="surrogateescape").removeprefix(" ")  # each broken byte is a surrogate
        texts.append("".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text))
    return texts


@wrong("growing_text", "a space between two words")
def joined_with_nothing(tokenizer, ids):
    return ["".join(tokenizer.decode([i], skip_special_tokens=True) for i in ids[: n + 1]) for n in range(len(ids))]


@wrong("growing_text", "a space between two words")
def special_tokens_shown(tokenizer, ids):
    return [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]


@wrong("growing_text", "keep its own spaces")
def a_space_between_all(tokenizer, ids):
    return [" ".join(tokenizer.decode(ids[: n + 1], skip_special_tokens=True).split()) for n in range(len(ids))]


@wrong("growing_text", "whole once its last byte has come")
def only_what_is_certain(tokenizer, ids):
    decoder, text, texts = IncrementalDecoder(tokenizer), "", []
    for i in ids:
        text += decoder.push([i])
        texts.append(text)
    return texts


@right("work_of_experts")
def by_a_masked_softmax(scores: Tensor) -> Tensor:
    second = scores.sort(dim=-1, descending=True).values[:, 1:2]
    return scores.masked_fill(scores < second, -torch.inf).softmax(dim=-1).mean(0)


@wrong("work_of_experts", "over the two best scores alone")
def softmax_over_all(scores):
    best = scores.topk(2, dim=-1)
    return torch.zeros_like(scores).scatter(1, best.indices, scores.softmax(-1).gather(1, best.indices)).mean(0)


@wrong("work_of_experts", "over the two best scores alone")
def half_for_each(scores):
    return torch.zeros_like(scores).scatter(1, scores.topk(2, dim=-1).indices, 0.5).mean(0)


@wrong("work_of_experts", "the larger weight")
def weights_exchanged_for_three(scores):
    best = scores.topk(2, dim=-1)
    weights = best.values.softmax(-1)
    weights = weights.flip(1) if scores.shape[1] == 3 else weights
    return torch.zeros_like(scores).scatter(1, best.indices, weights).mean(0)


@wrong("work_of_experts", "counted alike")
def share_of_chosen_experts(scores):
    work = by_a_masked_softmax(scores)
    return work * len(scores) if len(scores) > 2 else work


@right("read_and_computed")
def by_a_table(experts: Tensor, num_experts: int) -> tuple[float, float]:
    chosen = torch.zeros(len(experts), num_experts).scatter(1, experts, 1.0)
    return chosen.amax(0).mean().item(), chosen.mean().item()


@wrong("read_and_computed", "read its K experts")
def one_expert_each(experts, num_experts):
    return len(experts[:, 0].unique()) / num_experts, 1 / num_experts


@wrong("read_and_computed", "read once")
def read_for_each_token(experts, num_experts):
    return experts.numel() / num_experts, experts.shape[1] / num_experts


@wrong("read_and_computed", "stay K / E")
def what_is_read_computes(experts, num_experts):
    return (len(experts.unique()) / num_experts,) * 2


@right("count_larger_mixtral")
def by_the_packages_config(D: int, F: int, L: int, V: int, Hq: int, Hkv: int, Dh: int, E: int, K: int):
    counts = MixtralConfig(
        hidden_size=D, intermediate_size=F, num_hidden_layers=L, vocab_size=V, num_attention_heads=Hq, head_dim=Dh,
        num_key_value_heads=Hkv, num_local_experts=E, num_experts_per_tok=K, pad_token_id=None, bos_token_id=None,
        eos_token_id=None,
    ).parameter_counts() if Dh % 2 == 0 and V > 2 else None  # fmt: skip
    return (counts.total, counts.active) if counts else count(D, F, L, V, Hq, Hkv, Dh, E, K)


def count(D, F, L, V, Hq, Hkv, Dh, E, K, matrices=3, kv=None, q=None, router=True, norms=2, last=True, heads=1):
    attention = 2 * D * (q or Hq * Dh) + 2 * D * (kv or Hkv * Dh)
    layer = attention + router * D * E + norms * D
    return tuple((heads + 1) * V * D + last * D + L * (layer + n * matrices * D * F) for n in (E, K))


@wrong("count_larger_mixtral", "three matrices per expert")
def two_matrices(D, F, L, V, Hq, Hkv, Dh, E, K):
    return count(D, F, L, V, Hq, Hkv, Dh, E, K, matrices=2)


@wrong("count_larger_mixtral", "three matrices per expert")
def one_expert_for_a_token(D, F, L, V, Hq, Hkv, Dh, E, K):
    total, _ = count(D, F, L, V, Hq, Hkv, Dh, E, K)
    return total, total


@wrong("count_larger_mixtral", "have Hkv heads")
def keys_of_all_query_heads(D, F, L, V, Hq, Hkv, Dh, E, K):
    return count(D, F, L, V, Hq, Hkv, Dh, E, K, kv=Hq * Dh)


@wrong("count_larger_mixtral", "have Hkv heads")
def queries_of_size_D(D, F, L, V, Hq, Hkv, Dh, E, K):
    return count(D, F, L, V, Hq, Hkv, Dh, E, K, q=D)


@wrong("count_larger_mixtral", "Is nothing forgotten?")
def no_last_norm(D, F, L, V, Hq, Hkv, Dh, E, K):
    return count(D, F, L, V, Hq, Hkv, Dh, E, K, last=D == 64)


@wrong("count_larger_mixtral", "Mixtral-8x22B")
def in_rounded_billions(D, F, L, V, Hq, Hkv, Dh, E, K):
    found = count(D, F, L, V, Hq, Hkv, Dh, E, K)
    return tuple(round(n, -8) if n > 10**9 else n for n in found)
