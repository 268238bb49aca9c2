"""Autoregressive generation with any causal model: each new token joins the text that predicts the next one.

Prefill runs the prompt once and fills the KV cache; decode is then one forward pass per new token. The model is called
as `model(input_ids, attention_mask=…, past_key_values=…, logits_to_keep=1)`, with only the tokens that the cache does
not hold yet, and returns `.logits` (B, 1, V) and `.past_key_values`.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.cache import RollingCache
from mixtral_edu.sampling import Sampler


@torch.no_grad()  # not inference_mode, whose tensors cannot be trained on later; off while the caller holds a token
def new_tokens(
    model: nn.Module, ids: Tensor, mask: Tensor | None, cache: RollingCache | None, num_steps: int, sampler: Sampler, *,
    stops: Callable[[Tensor], Tensor] | None = None, pad_id: int = 0, generator: torch.Generator | None = None,
    forward: Callable[..., Any] | None = None,
) -> Generator[Tensor, None, None]:  # fmt: skip
    """Continue each row: yield new ids (B,) step by step, `num_steps` times or until all rows have stopped.

    Args:
        model: a causal language model; it runs in evaluation mode and is left in the mode it was in.
        ids, mask: (B, T) prompts, padded on the left so that all end in the last column; 0 for padding, None without.
        cache: an empty KV cache; None makes one, or leaves that to `forward` if it is given.
        num_steps, sampler: at most how many new ids per row, and how each is chosen.
        stops, pad_id: maps new ids (B,) to booleans, True where a row ends; the id that fills it up from then on.
        generator: the source of random numbers; the same seed repeats the sampling.
        forward: called instead of the model, with the same arguments.
    """
    if cache is None and forward is None:
        cache = RollingCache(model.config, len(ids), device=ids.device, dtype=next(model.parameters()).dtype)
    forward, modules = forward or model, list(model.modules())
    seen, seen_mask = ids, torch.ones_like(ids) if mask is None else mask  # what the repetition penalty looks at
    stopped, num_stopped = torch.zeros(len(ids), dtype=torch.bool, device=ids.device), 0
    for _ in range(num_steps):
        with evaluation_mode(modules):  # only now: between steps the caller may train
            out = forward(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        cache = out.past_key_values
        token = sampler.choose(out.logits[:, -1].float(), seen, seen_mask, generator)  # (B,)
        if num_stopped:
            token = token.masked_fill(stopped, pad_id)
        if stops is not None:
            stopped = stopped | stops(token)
            num_stopped = int(stopped.sum())  # waits for the device, once per step
        yield token
        if num_stopped == len(stopped):
            return
        ids = token[:, None]  # (B, 1)
        mask = (~stopped).long()[:, None] if num_stopped else None  # a stopped row stores nothing more
        if sampler.repetition_penalty is not None:
            seen, seen_mask = torch.cat((seen, ids), 1), torch.cat((seen_mask, torch.ones_like(ids)), 1)


@contextmanager
def evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Switch dropout and jitter off, and afterwards on again in exactly the modules where they were on."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
