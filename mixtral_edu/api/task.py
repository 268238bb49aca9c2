"""One generation: its arguments checked against each other, its cache, what is called in place of the model."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.api.beams import Search, beam_search
from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.inputs import check_cache, check_prompt
from mixtral_edu.api.lookup import looked_up_tokens
from mixtral_edu.api.options import GenerationOptions
from mixtral_edu.api.recording import Recorder
from mixtral_edu.api.stopping import Stops
from mixtral_edu.checkpoints.memory import free_memory
from mixtral_edu.fast.decoding import decoding
from mixtral_edu.generation import new_tokens
from mixtral_edu.heads import CausalLM, WithHead
from mixtral_edu.model import Decoder

_MOST_SLOTS_AHEAD = 1024  # made before the tokens come; a text may stop long before its limit


@dataclass
class Task:
    """A generation, checked and ready to run: `ids` and `mask` have a row for each text to be returned."""

    model: nn.Module
    ids: Tensor
    mask: Tensor | None
    options: GenerationOptions
    cache: RollingKVCache | None
    recorder: Recorder | None
    num_steps: int
    stop_ids: list[int]
    pad_id: int

    @property
    def plain(self) -> bool:
        """Whether all steps are the usual one, which may have been compiled or recorded."""
        options, recorder = self.options, self.recorder
        usual = options.num_beams == 1 and options.prompt_lookup_num_tokens is None
        return usual and (recorder is None or not recorder.kept)


def checked_task(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None,
    options: GenerationOptions,
    cache: RollingKVCache | None,
    recorder: Recorder | None,
) -> Task:
    """Check the arguments against each other."""
    if not hasattr(model, "config") or isinstance(model, Decoder | WithHead) and not isinstance(model, CausalLM):
        raise TypeError(f"model is a {type(model).__name__}: it must be a causal language model that has a config")
    mask = _checked_prompt(model, ids, mask)
    num_steps = options.steps(ids.shape[1])
    stop_ids, pad_id = options.stop_and_pad_ids(model.config)
    beams, drafts = options.num_beams, options.prompt_lookup_num_tokens
    for name, asked in (("num_beams", beams > 1), ("prompt_lookup_num_tokens", drafts), ("cache", cache is not None)):
        if asked and not isinstance(model, CausalLM):
            raise TypeError(f"{name} is given for a {type(model).__name__}: it needs mixtral_edu's MixtralForCausalLM")
    if cache is not None:
        _check_given_cache(cache, model, ids, mask, num_steps, options)
    if drafts is not None and len(ids) * options.num_return_sequences > 1:
        raise ValueError(f"prompt_lookup_num_tokens={drafts} takes a batch of one, and one text of it")
    if drafts is not None and mask is not None:
        raise ValueError(f"attention_mask holds padding: prompt_lookup_num_tokens={drafts} takes a prompt without it")
    most = model.config.vocab_size // (1 + max(1, len(stop_ids)))
    if beams > max(1, most):
        raise ValueError(f"num_beams={beams}: it must be at most {most}, for a vocabulary of {model.config.vocab_size}")
    if options.num_return_sequences > 1 and beams == 1:
        ids = ids.repeat_interleave(options.num_return_sequences, 0)
        mask = None if mask is None else mask.repeat_interleave(options.num_return_sequences, 0)
    return Task(model, ids, mask, options, cache, recorder, num_steps, stop_ids, pad_id)


def _check_given_cache(
    cache: RollingKVCache,
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None,
    num_steps: int,
    options: GenerationOptions,
) -> None:
    """Raise unless generation can continue what the cache has seen of `ids`."""
    check_cache(cache, model.config, len(ids), next(model.parameters()).dtype, ids.device)
    for name, given in (("num_beams", options.num_beams > 1), ("use_cache=False", not options.use_cache),
                        ("num_return_sequences", options.num_return_sequences > 1)):  # fmt: skip
        if given:
            raise ValueError(f"cache is given with {name}: a cache continues one text per row; leave one of them out")
    if cache.seen >= ids.shape[1]:
        raise ValueError(
            f"input_ids has {ids.shape[1]} columns, and the cache has seen {cache.seen}: input_ids must be the whole "
            "text so far, with at least one id that the cache has not seen"
        )
    real = torch.ones_like(ids) if mask is None else mask
    expected, held = real[:, : cache.seen].sum(1), cache.positions.amax(1) + 1  # (B,)
    if bool((expected != held).any()):
        row = int((expected != held).int().argmax())
        raise ValueError(
            f"cache holds {int(held[row])} tokens of row {row}, and by input_ids and attention_mask it should hold "
            f"{int(expected[row])}: it is another text's, or the row had stopped before others; continue it alone"
        )
    columns = ids.shape[1] + num_steps - 1
    if cache.max_length is not None and columns > cache.max_length:
        raise ValueError(
            f"cache has max_length={cache.max_length}, and {ids.shape[1]} ids with {num_steps} new ones need {columns} "
            "columns: ask for fewer, or give a cache without max_length"
        )


def tokens(task: Task) -> Generator[Tensor, None, None]:
    """The new ids (B,), step by step until all rows have stopped."""
    options, model, ids, sampler = task.options, task.model, task.ids, task.options.sampler
    generator = None if options.seed is None else torch.Generator(ids.device).manual_seed(options.seed)
    strings, tokenizer = options.stop_strings, options.tokenizer
    stops = Stops(task.stop_ids, strings, tokenizer, ids, task.mask) if task.stop_ids or strings else None
    cache = _cache_for(task)
    with _forward_for(task, cache) as forward:
        if task.recorder is not None:
            forward, sampler = task.recorder.forward(forward), task.recorder.sampler(sampler)
        if options.prompt_lookup_num_tokens is not None:
            yield from looked_up_tokens(
                model, ids, cache, task.num_steps, sampler, num_guesses=options.prompt_lookup_num_tokens,
                max_ngram=options.max_matching_ngram_size, stops=stops, generator=generator, forward=forward,
            )  # fmt: skip
        else:
            yield from new_tokens(
                model, ids, task.mask, cache, task.num_steps, sampler, stops=stops, pad_id=task.pad_id,
                generator=generator, forward=forward,
            )  # fmt: skip


def beams(task: Task, bar: Any) -> tuple[Tensor, Tensor]:
    """The best texts, (B * num_return_sequences, T + new), and their scores."""
    options = task.options
    search = Search(options.num_beams, options.length_penalty, options.early_stopping, options.num_return_sequences)
    recorder = Recorder(()) if task.recorder is None else task.recorder
    cache = _cache_for(task)
    with _forward_for(task, cache) as forward:
        found = beam_search(
            task.model, task.ids, task.mask, cache, task.num_steps, options.sampler, search, stop_ids=task.stop_ids,
            pad_id=task.pad_id, forward=recorder.forward(forward), keep=recorder.keep,
            after_step=bar.update if bar is not None else lambda: None,
        )  # fmt: skip
    recorder.cache = None  # its rows are the beams that still ran, not the texts that are returned
    return found


@contextmanager
def _forward_for(task: Task, cache: RollingKVCache | None) -> Iterator[Callable[..., Any]]:
    """What is called in place of the model."""
    if not task.options.use_cache:
        yield _WithoutCache(task.model)
        return
    most_bytes = free_memory(task.ids.device) // 2  # the text needs memory too
    with decoding(task.model, task.num_steps, most_bytes, usual_step=task.plain) as forward:
        if cache is None:
            yield partial(forward, use_cache=True)
        elif cache.seen and task.options.prompt_lookup_num_tokens is None:
            yield _Continued(forward, cache.seen)
        else:
            yield forward


class _Continued:
    """Leaves out of the first call what the cache has seen."""

    def __init__(self, forward: Callable[..., Any], seen: int):
        self.forward, self.seen = forward, seen

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        start, self.seen = self.seen, 0
        mask = None if attention_mask is None else attention_mask[:, start:]
        return self.forward(input_ids[:, start:], attention_mask=mask, **options)


class _WithoutCache:
    """Runs all ids so far in each step."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.ids = self.mask = None

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **options: Any
    ) -> Any:
        new = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.ids = input_ids if self.ids is None else torch.cat((self.ids, input_ids), 1)
        self.mask = new if self.mask is None else torch.cat((self.mask, new), 1)
        return self.model(self.ids, attention_mask=self.mask, use_cache=False, **options)


def _cache_for(task: Task) -> RollingKVCache | None:
    """Return a cache with room for the prompt and the new tokens, so that it need not grow; None for others' models."""
    cache, ids = task.cache, task.ids
    if not task.options.use_cache or not isinstance(task.model, CausalLM):
        return None
    if cache is None:
        dtype = next(task.model.parameters()).dtype
        cache = RollingKVCache(task.model.config, len(ids), device=ids.device, dtype=dtype)
    if cache.max_length is None:
        cache.make_room(ids.shape[1] - cache.seen + min(task.num_steps, _MOST_SLOTS_AHEAD))
    return cache


def _checked_prompt(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Check the prompt; return its mask, or None where nothing is padding."""
    if not isinstance(input_ids, Tensor):
        raise TypeError(
            f"input_ids is a {type(input_ids).__name__}; it must be an int64 tensor (batch, tokens), as in "
            'generate(**tokenizer(texts, return_tensors="pt"))'
        )
    device = getattr(model, "device", input_ids.device)
    if input_ids.device != device:
        raise ValueError(f"input_ids is on {input_ids.device} and the model on {device}: call .to(model.device)")
    check_prompt(model.config, input_ids, wait=True)
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
