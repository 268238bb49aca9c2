"""Beam search: of all continuations, look for the one that is likeliest as a whole.

Greedy decoding takes the likeliest id in each step, and may so miss a text whose first id is less likely and all others
more. Beam search keeps the `num_beams` likeliest beginnings. Each step extends all of them by all ids and keeps the
best again.

    score(text) = Σ log p(id | ids before it) / (number of ids) ** length_penalty

Source: Sutskever et al. 2014, arXiv 1409.3215, section 3.2; what ends the search is as in transformers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.generation import evaluation_mode
from mixtral_edu.sampling import Sampler


class Search(NamedTuple):
    """How beams are kept and finished texts compared; `generate` tells what each field means."""

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1


class Finished:
    """The best finished texts of one prompt, with their scores."""

    def __init__(self, search: Search, num_steps: int):
        self.search, self.num_steps = search, num_steps
        self.texts: list[tuple[float, Tensor]] = []  # best first
        self.closed = False  # whether no running beam can do better

    @property
    def full(self) -> bool:
        """Whether there are as many as beams."""
        return len(self.texts) == self.search.num_beams

    def add(self, log_probabilities: Tensor, texts: Tensor, length: int) -> None:
        """Take in those texts (n, T + length) that a step has finished, as far as they are good enough."""
        if self.closed or self.full and self.search.early_stopping is True:
            return
        scores = log_probabilities / length**self.search.length_penalty
        self.texts += zip(scores.tolist(), texts, strict=True)
        self.texts.sort(key=lambda scored: scored[0], reverse=True)
        del self.texts[self.search.num_beams :]

    def close_if_settled(self, best_running: float, length: int) -> None:
        """Close unless the best running beam, of this log probability, may still end better than the worst text."""
        penalty = self.search.length_penalty
        if self.search.early_stopping == "never" and penalty > 0:
            length = self.num_steps  # the length that would flatter it most
        self.closed |= self.full and best_running / length**penalty <= self.texts[-1][0]


@torch.no_grad()
def beam_search(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None,
    cache: RollingKVCache,
    num_steps: int,
    sampler: Sampler,
    search: Search,
    *,
    stop_ids: list[int],
    pad_id: int,
    forward: Callable[..., Any],
    keep: Callable[[str, Tensor], None] = lambda name, value: None,
    after_step: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Return the best texts of each prompt and their scores.

    Args:
        model: used in evaluation mode.
        ids, mask: (B, T) prompts, and 0 for padding on the left; None without padding.
        cache: an empty one of B rows; it is made wider.
        num_steps: the most new ids.
        sampler: its repetition penalty is applied to the log probabilities.
        search: how many beams, and which texts are best.
        stop_ids, pad_id: what ends a text, and what fills it up.
        forward: called in place of the model, with its arguments.
        keep: is told the logits and the log probabilities of each step, both (B * beams, V), by name.
        after_step: is called after each step.

    Returns:
        (B * num_return_sequences, T + new), best first, and as many scores.
    """
    B, M, modules = len(ids), search.num_beams, list(model.modules())
    rows = torch.arange(B, device=ids.device)[:, None]  # (B, 1)
    texts = ids[:, None]  # (B, beams, T), one beam at first
    sums = torch.zeros(B, 1, dtype=torch.float32, device=ids.device)  # (B, beams)
    stops, num_candidates = torch.tensor(stop_ids, dtype=torch.long, device=ids.device), (1 + max(1, len(stop_ids))) * M
    finished = [Finished(search, num_steps) for _ in range(B)]
    new, real = ids, torch.ones_like(ids) if mask is None else mask
    for length in range(1, num_steps + 1):
        with evaluation_mode(modules):
            out = forward(new, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        logits = out.logits[:, -1].float()
        seen_mask = nn.functional.pad(real, (0, length - 1), value=1).repeat_interleave(texts.shape[1], 0)
        log_probabilities = sampler.shape(logits.log_softmax(-1), texts.flatten(0, 1), seen_mask)  # (B * beams, V)
        keep("logits", logits)
        keep("scores", log_probabilities)
        V = logits.shape[1]
        totals = (sums.reshape(-1, 1) + log_probabilities).view(B, -1)  # (B, beams * V)
        best, places = totals.topk(min(num_candidates, totals.shape[1]))  # (B, candidates), best first
        parents, tokens = places // V, places % V
        candidates = torch.cat((texts[rows, parents], tokens[:, :, None]), 2)  # (B, candidates, T + length)
        ends = torch.isin(tokens, stops) if length < num_steps else torch.ones_like(tokens, dtype=torch.bool)
        sums, kept = best.masked_fill(ends, -torch.inf).topk(min(M, best.shape[1]))  # (B, beams)
        for b in range(B):
            over = ends[b, :M].nonzero()[:, 0]  # what ends among the best M; the other candidates are spare
            finished[b].add(best[b, over], candidates[b, over], length)
            finished[b].close_if_settled(float(sums[b, 0]), length)
        after_step()
        if length == num_steps or all(text.closed for text in finished):
            break
        if search.early_stopping is True and all(text.full for text in finished):
            break
        cache.reorder_cache((rows * texts.shape[1] + parents.gather(1, kept)).flatten())
        texts, new = candidates[rows, kept], tokens.gather(1, kept).view(-1, 1)
        mask = None  # the cache remembers padding
    chosen = [scored for text in finished for scored in text.texts[: search.num_return_sequences]]
    longest = max(len(text) for _, text in chosen)
    padded = [nn.functional.pad(text, (0, longest - len(text)), value=pad_id) for _, text in chosen]
    return torch.stack(padded), torch.tensor([score for score, _ in chosen], dtype=torch.float32, device=ids.device)
