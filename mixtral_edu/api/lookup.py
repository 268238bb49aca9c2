"""Prompt lookup: guess the next ids from the text so far, and check all guesses in one forward pass.

Where a text repeats itself, what followed its last few ids before will often follow them again. A pass over n guesses
reads the weights once, as a pass over one id does, and each guess that is right saves a pass. The ids are those of
generation without guesses, to rounding: a guess counts only if the model's own choice is the same. In a mixture of
experts the saving is smaller, as n + 1 ids together choose more experts, whose weights have to be read.

Source: prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding (2023), a kind of speculative
decoding (arXiv 2211.17192) whose guesses cost nothing.
"""

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.generation import evaluation_mode
from mixtral_edu.sampling import Sampler


@torch.no_grad()
def looked_up_tokens(
    model: nn.Module,
    ids: Tensor,
    cache: RollingKVCache,
    num_steps: int,
    sampler: Sampler,
    *,
    num_guesses: int,
    max_ngram: int,
    stops: Callable[[Tensor], Tensor] | None,
    generator: torch.Generator | None,
    forward: Callable[..., Any],
) -> Generator[Tensor, None, None]:
    """Yield the new ids (1,) of one text, as `generation.new_tokens` does.

    Args:
        model: used in evaluation mode.
        ids: (1, T), of which the cache may have seen the first `cache.seen`.
        cache: holds, at the end, all ids but the last.
        num_steps: the most new ids.
        sampler: chooses each id, from the scores after the ids before it.
        num_guesses: the most ids guessed per pass.
        max_ngram: the most ids that are looked up together.
        stops: tells whether a new id (1,) ends the text.
        generator: makes sampling repeat.
        forward: called in place of the model, with its arguments.
    """
    modules, text, new = list(model.modules()), ids, ids[:, cache.seen :]
    guesses, left = ids[:, :0], num_steps  # the prompt goes first, alone
    while True:
        saved = cache.save_slots(1 + guesses.shape[1]) if guesses.shape[1] else None
        with evaluation_mode(modules):
            out = forward(torch.cat((new, guesses), 1), past_key_values=cache, logits_to_keep=1 + guesses.shape[1])
        unsure = guesses.shape[1]  # guesses that the cache has seen and the model has not chosen
        try:
            for logits in out.logits.float().unbind(1):  # (1, V) each: after the last certain id and each guess
                token = sampler.choose(logits, text, torch.ones_like(text), generator)  # (1,)
                text, left = torch.cat((text, token[:, None]), 1), left - 1
                over = left == 0 or stops is not None and bool(stops(token))
                yield token
                if over:
                    return
                if not unsure or token != guesses[0, -unsure]:
                    break
                unsure -= 1
        finally:  # also where nobody asks for the next id
            if unsure:
                cache.take_back(saved, unsure)
        new = text[:, -1:]
        guesses = guess(text, min(num_guesses, left - 1, cache.num_slots - 1 if cache.window else left), max_ngram)


def guess(text: Tensor, most: int, max_ngram: int) -> Tensor:
    """Return up to `most` ids (1, n) that followed, earlier in text (1, T), the ids that it ends with.

    The longest run of at most `max_ngram` ids counts, and of several places the first.

    >>> guess(torch.tensor([[5, 6, 7, 8, 9, 6, 7]]), most=2, max_ngram=3)
    tensor([[8, 9]])
    """
    T = text.shape[1]
    for n in range(min(max_ngram, T - 1), 0, -1):
        runs = text[0, :-1].unfold(0, n, 1)  # (T - n, n): each run that something follows
        places = (runs == text[0, -n:]).all(1).nonzero()
        if len(places) > 0:
            start = int(places[0]) + n
            return text[:, start : start + max(most, 0)]
    return text[:, :0]
