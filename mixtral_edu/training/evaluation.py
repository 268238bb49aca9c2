"""What a trained model can do, in numbers: bits per byte, answers that are right, experts that are used."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixtral_edu.model import MixtralForCausalLM
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

_MOST_TOKENS = 16_384  # read of one document


def held_out_documents(
    domain: str, tokenizer: MixtralTokenizer, tokens: int, cache: Path | None = None
) -> list[Document]:
    """Documents of a domain that training never saw, the first ones, as many as about `tokens` tokens need."""
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
    """Bits per byte of each domain on documents that training never saw; of each at most the first 16,384 tokens."""
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
    """Put each prompt as a chat of one turn, and return the greedy answers."""
    answers = []
    for start in range(0, len(prompts), batch_size):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch_size]]
        inputs = tokenizer.pad([tokenizer.apply_chat_template(chat) for chat in chats]).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens)
        answers += tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return answers


def behaviour(model: MixtralForCausalLM, tokenizer: MixtralTokenizer, seed: int = 0) -> dict[str, float]:
    """Ask for 50 stories about fresh triples, 100 small facts, and the sums that training left out.

    Returns:
        "stories": how many were asked for; "stories_naming_all": how many name animal, colour and object;
        "stories_keeping_hero": how many keep their hero's name; "facts", "facts_right"; "unseen_sums",
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
    """Return which share of all choices each expert gets in each layer: (L, E), each row of sum 1; balance is 1/E.

    Raises:
        ValueError: there are no documents.
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
        raise ValueError("documents is empty: it must hold at least one text, whose tokens are counted")
    return counts / counts.sum(dim=1, keepdim=True)


def evaluate(
    model: MixtralForCausalLM, tokenizer: MixtralTokenizer, domains: Sequence[str], cache: Path | None = None
) -> dict:
    """All figures of a model card: bits per byte, behaviour, and the smallest and largest load of an expert.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        domains: domains and probes of `mixtral_edu.training.corpus`, whose held-out documents are read.
        cache: where downloaded sources are kept.
    """
    documents = [d for domain in domains for d in held_out_documents(domain, tokenizer, 8_000, cache)]
    load = expert_load(model, tokenizer, documents)
    return {
        "held_out_bits_per_byte": held_out_bits(model, tokenizer, domains, cache=cache),
        "behaviour": behaviour(model, tokenizer),
        "expert_load": {"least": load.min().item(), "most": load.max().item(), "per_layer": load.tolist()},
    }
