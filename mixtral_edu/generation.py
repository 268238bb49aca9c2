"""Generation over any causal model: prefill the prompt once, then one forward pass per token.

The model is called as `model(input_ids, attention_mask=..., past_key_values=..., use_cache=True, logits_to_keep=1)`,
with the new tokens alone, and returns `.logits` (B, 1, V) and `.past_key_values`.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixtral_edu.checkpoints.memory import free_memory
from mixtral_edu.fast.cuda_graph import GraphedStep
from mixtral_edu.input_checks import check_ids
from mixtral_edu.quantization.layers import Int4Linear
from mixtral_edu.sampling import (
    FROM_CONFIG,
    GenerationOptions,
    apply_repetition_penalty,
    apply_temperature,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token,
)
from mixtral_edu.text.streaming import IncrementalDecoder, TextStreamer
from mixtral_edu.text.tokenizer import MixtralTokenizer

__all__ = [
    "IncrementalDecoder",
    "TextStreamer",
    "apply_repetition_penalty",
    "apply_temperature",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "next_token",
    "stream",
]


class Streamer(Protocol):
    """What `generate` hands ids to as they come: the prompt (1, T), then each new id (1,), then `end`."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


def generate(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool = False,
    temperature: float | None = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    eos_token_id: int | Sequence[int] | None = FROM_CONFIG,
    pad_token_id: int | None = FROM_CONFIG,
    seed: int | None = None,
    streamer: Streamer | None = None,
    progress: bool = False,
) -> Tensor:
    """Continue each row, up to `max_new_tokens` ids or a stop id, and return prompt and new ids, (B, T + new).

    Rows stop one by one; one that has stopped is filled up with the pad id, and the call ends when all have.

    Args:
        model: a causal language model with a `config`; used in evaluation mode, and left in the mode it was in.
        input_ids: (B, T) prompts.
        attention_mask: (B, T), 0 for padding, which must be on the left. None means that there is none.
        max_new_tokens: the most new ids per row; either this or `max_length` must be given.
        max_length: an older way to say it: the most ids in all, the T of the prompt included.
        do_sample: draw from the distribution; otherwise take the most likely id, and ignore the next four.
        temperature, top_k, top_p, min_p: shape the distribution, in this order; None leaves it as it is. A temperature
            near 0 comes to `do_sample=False`.
        repetition_penalty: before them, for all ids of the row so far, pads left out.
        eos_token_id: the id or ids that stop a row; None: nothing stops it.
        pad_token_id: fills up rows that have stopped; None: the first stop id.
        seed: makes sampling repeat for the same batch on the same device; None uses torch's global generator.
        streamer: gets the ids as they come, for a batch of one; such as `TextStreamer`.
        progress: show a bar on stderr.

    Raises:
        TypeError, ValueError: an argument is not what it must be; the message names it.
    """
    options = GenerationOptions(max_new_tokens, max_length, do_sample, temperature, top_k, top_p, min_p,
                                repetition_penalty, eos_token_id, pad_token_id, seed)  # fmt: skip
    tokens = _new_tokens(model, input_ids, attention_mask, options)
    if streamer is not None:
        _check_single(input_ids, "a streamer")
        streamer.put(input_ids.cpu())
    ids = [input_ids]
    try:
        # Closed also when a streamer or Ctrl-C interrupts: a traceback that is kept would keep it open.
        with closing(tokens), _progress_bar(options.steps(input_ids.shape[1])) if progress else nullcontext() as bar:
            for token in tokens:
                ids.append(token[:, None])
                if streamer is not None:
                    streamer.put(token.cpu())
                if bar is not None:
                    bar.update()
    finally:  # also when interrupted, so that the streamer is ready for the next generation
        if streamer is not None:
            streamer.end()
    return torch.cat(ids, dim=1)


def stream(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    tokenizer: MixtralTokenizer,
    skip_prompt: bool = True,
    skip_special_tokens: bool = True,
    **options: Any,
) -> Iterator[str]:
    """Continue one text and yield it as it grows, each character as soon as it is whole.

    The pieces joined are `tokenizer.decode` of the new ids: a text of its own, without the space that may stand between
    it and the prompt. `skip_prompt=False` gives the whole text, prompt included. The options are those of
    `generate`, but for `streamer` and `progress`; arguments are checked here, at once.
    """
    tokens = _new_tokens(model, input_ids, attention_mask, GenerationOptions(**options))
    _check_single(input_ids, "stream")

    def texts() -> Iterator[str]:
        decoder = IncrementalDecoder(tokenizer, skip_special_tokens)
        if not skip_prompt:
            yield decoder.push(input_ids[0])
        with closing(tokens):
            for token in tokens:
                yield decoder.push(token)
        yield decoder.flush()

    return (text for text in texts() if text)


def _new_tokens(
    model: nn.Module, ids: Tensor, mask: Tensor | None, options: GenerationOptions
) -> Generator[Tensor, None, None]:
    """Check the arguments; return an iterator of the new ids (B,), step by step until all rows have stopped."""
    mask = _checked_prompt(model, ids, mask)
    return _steps(model, ids, mask, options, options.steps(ids.shape[1]), *options.stop_and_pad_ids(model.config))


@torch.no_grad()  # left at each yield; in inference mode a model could not train later with tensors that it keeps
def _steps(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None,
    options: GenerationOptions,
    num_steps: int,
    stop_ids: list[int],
    pad_id: int,
) -> Generator[Tensor, None, None]:
    stops = torch.tensor(stop_ids, dtype=torch.long, device=ids.device)
    generator = None if options.seed is None else torch.Generator(ids.device).manual_seed(options.seed)
    seen, seen_mask = ids, torch.ones_like(ids) if mask is None else mask  # what the repetition penalty looks at
    stopped, num_stopped = torch.zeros(len(ids), dtype=torch.bool, device=ids.device), 0
    cache = None
    with kernel_copies(model, num_steps), _forgetful(model):
        for _ in range(num_steps):
            forward = model if cache is None else getattr(model, "compiled_step", None) or model
            with _evaluation_mode(model):  # not between steps, when a stream waits for its reader
                out = forward(ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = options.choose(out.logits[:, -1].float(), seen, seen_mask, generator)  # (B,)
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
            if options.repetition_penalty is not None:
                seen, seen_mask = torch.cat((seen, ids), 1), torch.cat((seen_mask, torch.ones_like(ids)), 1)


def _checked_prompt(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Check the prompt; return its mask, or None where nothing is padding."""
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids is a {type(input_ids).__name__}; it must be an int64 tensor (batch, tokens)")
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be (batch, tokens), each at least 1")
    device = getattr(model, "device", input_ids.device)
    if input_ids.device != device:
        raise ValueError(f"input_ids is on {input_ids.device} and the model on {device}: call .to(model.device)")
    check_ids("input_ids", input_ids, model.config.vocab_size)
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        found = tuple(getattr(attention_mask, "shape", ())) or type(attention_mask).__name__
        raise ValueError(f"attention_mask is {found}; it must have the shape of input_ids, {tuple(input_ids.shape)}")
    mask = attention_mask.to(input_ids.device)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask holds other values than 0 (padding) and 1")
    mask = mask.long()
    if bool((mask.diff(dim=1) < 0).any()):
        raise ValueError("attention_mask has a 0 after a 1: generation needs left padding, without holes")
    if not bool(mask.any(dim=1).all()):
        row = int(mask.sum(dim=1).argmin())
        raise ValueError(f"attention_mask is all 0 in row {row}: each row needs at least one token")
    return None if bool(mask.all()) else mask


def _check_single(input_ids: Tensor, user: str) -> None:
    if len(input_ids) != 1:
        raise ValueError(f"input_ids has {len(input_ids)} rows: {user} takes a batch of one")


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and jitter off, and afterwards on again exactly where they were on."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def kernel_copies(model: nn.Module, num_steps: int) -> Iterator[None]:
    """Give 4-bit layers copies for PyTorch's kernels if they pay and memory has room; drop them at the end."""
    layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
    if num_steps == 1 or layers and sum(t.nbytes for x in layers for t in x.buffers()) > free_memory(model.device):
        layers = []
    own = [layer for layer in layers if layer.product is None]
    try:
        for layer in layers:
            layer.pack()
        yield
    finally:
        for layer in own:
            layer.unpack()


@contextmanager
def _forgetful(model: nn.Module) -> Iterator[None]:
    """Let a recorded step go at the end, which holds the cache and the weights that it read."""
    try:
        yield
    finally:
        if isinstance(step := getattr(model, "compiled_step", None), GraphedStep):
            step.forget()


def _progress_bar(total: int):
    from tqdm.auto import tqdm  # not at the top: in a notebook it loads widgets

    return tqdm(total=total, unit="token")
