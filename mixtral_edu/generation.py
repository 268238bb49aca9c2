"""Generation over any causal model: prefill the prompt once, then one forward pass per token.

The model is called as `model(input_ids, attention_mask=…, past_key_values=…, logits_to_keep=1)`, with the new tokens
alone, and returns `.logits` (B, 1, V) and `.past_key_values`.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.cache import RollingCache
from mixtral_edu.sampling import Sampler


@torch.no_grad()  # not inference_mode, whose tensors a later training could not use; left while the caller has a token
def new_tokens(
    model: nn.Module, ids: Tensor, mask: Tensor | None, cache: RollingCache | None, num_steps: int, sampler: Sampler, *,
    stop_ids: Sequence[int] = (), pad_id: int = 0, generator: torch.Generator | None = None,
    forward: Callable[..., Any] | None = None,
) -> Generator[Tensor, None, None]:  # fmt: skip
    """Continue each row, and yield the new ids (B,) step by step until all rows have stopped.

    Args:
        model: a causal language model; used in evaluation mode, and left in the mode it was in.
        ids, mask: (B, T) prompts, and 0 for padding, which must be on the left; None without padding.
        cache: an empty KV cache; None for a new one, or for that of `forward`.
        num_steps, sampler: the most new ids per row, and what chooses them.
        stop_ids, pad_id: what stops a row, and fills it up from then on.
        generator: makes sampling repeat.
        forward: called in place of the model, with its arguments.
    """
    if cache is None and forward is None:
        cache = RollingCache(model.config, len(ids), device=ids.device, dtype=next(model.parameters()).dtype)
    forward, modules = forward or model, list(model.modules())
    stops = torch.tensor(stop_ids, dtype=torch.long, device=ids.device)
    seen, seen_mask = ids, torch.ones_like(ids) if mask is None else mask  # what the repetition penalty looks at
    stopped, num_stopped = torch.zeros(len(ids), dtype=torch.bool, device=ids.device), 0
    for _ in range(num_steps):
        with _evaluation_mode(modules):  # not between steps, when a stream waits for its reader
            out = forward(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        cache = out.past_key_values
        token = sampler.choose(out.logits[:, -1].float(), seen, seen_mask, generator)  # (B,)
        if num_stopped:
            token = token.masked_fill(stopped, pad_id)
        if stop_ids:
            stopped = stopped | torch.isin(token, stops)
            num_stopped = int(stopped.sum())  # the one wait for the device in a step
        yield token
        if num_stopped == len(stopped):
            return
        ids = token[:, None]  # (B, 1)
        mask = (~stopped).long()[:, None] if num_stopped else None  # a row that has stopped stores nothing more
        if sampler.repetition_penalty is not None:
            seen, seen_mask = torch.cat((seen, ids), 1), torch.cat((seen_mask, torch.ones_like(ids)), 1)


@contextmanager
def _evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Switch dropout and jitter off, and afterwards on again exactly where they were on."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
