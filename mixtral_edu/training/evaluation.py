"""Measure what a trained model can do: bits per byte, correct answers, and the load of each expert."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.text.tokenizer import MixtralTokenizer
from mixtral_edu.training.corpus import (
    is_right,
    keeps_hero,
    load_chats,
    load_documents,
    names_all,
    quiz,
    story_requests,
)
from mixtral_edu.training.trainer import Document, bits_per_byte, document_ids

_MOST_TOKENS = 16_384  # per document; the rest is not read


def held_out_documents(
    domain: str, tokenizer: MixtralTokenizer, tokens: int, cache: Path | None = None
) -> list[Document]:
    """Return the first documents of a domain that training never saw, enough for about `tokens` tokens."""
    documents = load_chats("heldout") if domain == "chat" else load_documents(domain, "heldout", cache)
    chosen, room = [], tokens
    for document in documents:
        if room <= 0:
            break
        room -= min(len(document_ids(tokenizer, document)), _MOST_TOKENS)
        chosen.append(document)
    return chosen


def held_out_bits(
    model: MixtralForCausalLM,
    tokenizer: MixtralTokenizer,
    domains: Iterable[str],
    tokens: int = 60_000,
    cache: Path | None = None,
) -> dict[str, float]:
    """Return the bits per byte of each domain on documents that training never saw, at most 16,384 tokens of each."""
    return {
        domain: bits_per_byte(model, tokenizer, held_out_documents(domain, tokenizer, tokens, cache), _MOST_TOKENS)
        for domain in domains
    }


def ask(
    model: MixtralForCausalLM,
    tokenizer: MixtralTokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 200,
    batch_size: int = 25,
) -> list[str]:
    """Send each prompt as a chat of one turn and return the greedy answers."""
    answers = []
    for start in range(0, len(prompts), batch_size):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch_size]]
        inputs = tokenizer.pad([tokenizer.apply_chat_template(chat) for chat in chats]).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens)
        answers += tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return answers


def behaviour(model: MixtralForCausalLM, tokenizer: MixtralTokenizer, seed: int = 0) -> dict[str, float]:
    """Ask for 50 stories about unseen triples (animal, colour, object), 100 small facts, and the held-out sums.

    Returns:
        Counts. "stories": stories asked for; "stories_naming_all": those that name animal, colour and object;
        "stories_keeping_hero": those that keep their hero's name; "facts" and "facts_right"; "unseen_sums" and
        "unseen_sums_right".
    """
    requests = story_requests(50, seed)
    stories = ask(model, tokenizer, [request["prompt"] for request in requests])
    facts = quiz(100, seed)
    replies = ask(model, tokenizer, [fact["prompt"] for fact in facts], max_new_tokens=40)
    sums = [fact for fact in quiz(200, seed, unseen_sums=True) if not fact["seen"]]
    sum_replies = ask(model, tokenizer, [fact["prompt"] for fact in sums], max_new_tokens=40)
    return {
        "stories": len(requests),
        "stories_naming_all": sum(map(names_all, requests, stories)),
        "stories_keeping_hero": sum(map(keeps_hero, stories)),
        "facts": len(facts),
        "facts_right": sum(map(is_right, facts, replies)),
        "unseen_sums": len(sums),
        "unseen_sums_right": sum(map(is_right, sums, sum_replies)),
    }


@torch.no_grad()
def expert_load(model: MixtralForCausalLM, tokenizer: MixtralTokenizer, documents: Iterable[Document]) -> Tensor:
    """Return each expert's share of all choices in each layer: (L, E). Each row sums to 1; perfect balance is 1/E.

    Raises:
        ValueError: `documents` is empty.
    """
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_local_experts, dtype=torch.float32, device="cpu")
    for document in documents:
        input_ids = torch.tensor([document_ids(tokenizer, document)[:_MOST_TOKENS]], device=model.device)
        out = model.model(input_ids, use_cache=False, output_router_logits=True)
        for layer, logits in enumerate(out.router_logits):
            chosen = logits.topk(config.num_experts_per_tok, dim=-1).indices
            counts[layer] += chosen.flatten().bincount(minlength=config.num_local_experts).cpu()
    if not counts.any():
        raise ValueError("documents is empty: it must hold at least one text or chat")
    return counts / counts.sum(dim=1, keepdim=True)


def evaluate(
    model: MixtralForCausalLM, tokenizer: MixtralTokenizer, domains: Sequence[str], cache: Path | None = None
) -> dict:
    """Return all figures of a model card: bits per byte, behaviour, and the smallest and largest load of an expert.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        domains: names of domains and probes of `mixtral_edu.training.corpus`; their held-out documents are read.
        cache: the folder of downloaded sources.
    """
    documents = [d for domain in domains for d in held_out_documents(domain, tokenizer, 8_000, cache)]
    load = expert_load(model, tokenizer, documents)
    return {
        "held_out_bits_per_byte": held_out_bits(model, tokenizer, domains, cache=cache),
        "behaviour": behaviour(model, tokenizer),
        "expert_load": {"least": load.min().item(), "most": load.max().item(), "per_layer": load.tolist()},
    }
