"""`generate` and `stream`: the textbook's generation with checked options, text as it grows, and the engine's steps."""

import inspect
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.inputs import check_ids
from mixtral_edu.checkpoints.memory import free_memory
from mixtral_edu.fast.decoding import decoding
from mixtral_edu.generation import new_tokens
from mixtral_edu.heads import CausalLM
from mixtral_edu.sampling import RULES, Sampler
from mixtral_edu.text.streaming import IncrementalDecoder
from mixtral_edu.text.tokenizer import MixtralTokenizer

_NUMBERS = {Integral: int, Real: float}  # as signatures show them
_MOST_SLOTS_AHEAD = 1024  # made before the tokens come; a text may stop long before its limit


class Streamer(Protocol):
    """What `generate` hands ids to as they come: the prompt (1, T), then each new id (1,), then `end`."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


class _FromConfig:
    """Stands for the config's value where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "<the config's>"


FROM_CONFIG: Any = _FromConfig()


class GenerationOptions:
    """How the next token is chosen and when to stop; `generate` tells what each option means.

    The options are `max_new_tokens`, `max_length`, `do_sample`, the names in `sampling.RULES`, `repetition_penalty`,
    `eos_token_id`, `pad_token_id` and `seed`.

    Raises:
        TypeError, ValueError: an option is unknown or not what it must be; the message names it.
    """

    def __init__(
        self,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        *,
        do_sample: bool = False,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = FROM_CONFIG,
        pad_token_id: int | None = FROM_CONFIG,
        seed: int | None = None,
        **rules: Any,
    ):
        for name in rules.keys() - RULES:
            raise TypeError(f"generate() got an unexpected keyword argument {name!r}")
        if max_new_tokens is None and max_length is None:
            raise TypeError("max_new_tokens=None: it must be an int of at least 1")
        if max_new_tokens is not None and max_length is not None:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} and max_length={max_length}: give one of them, better the first"
            )
        for name, value in (("max_new_tokens", max_new_tokens), ("max_length", max_length)):
            _check(name, value, Integral, lambda n: n >= 1, "an int of at least 1")
        rules = {name: rules.get(name, rule.default) for name, rule in RULES.items()}
        for name, value in rules.items():
            _check(name, value, RULES[name].kind, RULES[name].is_fine, RULES[name].must_be)
        _check("repetition_penalty", repetition_penalty, Real, lambda r: 0 < r < float("inf"),
               "a finite number above 0, or None")  # fmt: skip
        _check("seed", seed, Integral, lambda s: -(2**63) <= s < 2**64, "an int from -2**63 to 2**64 - 1, or None")
        unused = [name for name, value in rules.items() if value not in (None, RULES[name].default)]
        if unused and not do_sample:
            warnings.warn(f"{', '.join(unused)} only matter with do_sample=True, and are ignored", stacklevel=3)
        self.max_new_tokens, self.max_length = max_new_tokens, max_length
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        self.seed = None if seed is None else int(seed)  # a torch.Generator takes no integer of numpy
        self.sampler = Sampler(do_sample, rules, repetition_penalty)

    def steps(self, prompt_length: int) -> int:
        """Return the maximum number of new ids after a prompt of this length.

        Raises:
            ValueError: `max_length` leaves no room for one.
        """
        if self.max_length is None:
            return self.max_new_tokens
        if self.max_length <= prompt_length:
            raise ValueError(
                f"max_length={self.max_length}: the prompt alone has {prompt_length} ids; max_new_tokens counts the "
                "new ones only"
            )
        return self.max_length - prompt_length

    def stop_and_pad_ids(self, config: Any) -> tuple[list[int], int]:
        """Return the ids that stop a row, and the one that fills it up after that.

        Raises:
            ValueError: one lies outside the vocabulary of `config`.
        """
        eos = config.eos_token_id if self.eos_token_id is FROM_CONFIG else self.eos_token_id
        pad = config.pad_token_id if self.pad_token_id is FROM_CONFIG else self.pad_token_id
        stop_ids = [] if eos is None else list(eos) if isinstance(eos, Sequence) else [eos]
        for name, ids in (("eos_token_id", stop_ids), ("pad_token_id", [] if pad is None else [pad])):
            for i in ids:
                wanted = f"an id from 0 to vocab_size - 1 = {config.vocab_size - 1}"
                _require(name, i, Integral, lambda i: 0 <= i < config.vocab_size, wanted)
        return stop_ids, pad if pad is not None else next(iter(stop_ids), 0)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the signature of `generate` list the options that it passes on, and its docstring `sampling.RULES`."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        option.replace(kind=keyword)
        for option in inspect.signature(GenerationOptions).parameters.values()
        if option.kind is not option.VAR_KEYWORD
    ]
    place = [option.name for option in options].index("do_sample") + 1
    options[place:place] = [
        inspect.Parameter(name, keyword, default=rule.default, annotation=_NUMBERS[rule.kind] | None)
        for name, rule in RULES.items()
    ]
    signature = inspect.signature(function)
    *given, streamer, progress, _ = signature.parameters.values()
    function.__signature__ = signature.replace(parameters=[*given, *options, streamer, progress])
    if function.__doc__:  # which `python -OO` takes away; newer releases of Python, its indentation
        lines = (rf"\1{name}: {rule.help}; None leaves it as it is." for name, rule in RULES.items())
        function.__doc__ = re.sub(r"^( *)RULES$", "\n".join(lines), function.__doc__, flags=re.MULTILINE)
    return function


@_with_options
def generate(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    streamer: Streamer | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Continue each row, up to `max_new_tokens` ids or a stop id, and return prompt and new ids, (B, T + new).

    Rows stop one by one; one that has stopped is filled up with the pad id, and the call ends when all have.

    Args:
        model: a causal language model with a `config`; used in evaluation mode, and left in the mode it was in.
        input_ids: (B, T) prompts.
        attention_mask: (B, T), 0 for padding, which must be on the left. None means that there is none.
        max_new_tokens: the most new ids per row; either this or `max_length` must be given.
        max_length: an older way to say it: the most ids in all, the T of the prompt included.
        do_sample: draw from the distribution, shaped by the rules below, in this order; otherwise take the most likely
            id, and ignore them. A temperature near 0 comes to the same.
        RULES
        repetition_penalty: makes all ids of the row so far less likely (above 1), pads left out, before those rules.
        eos_token_id: the id or ids that stop a row; None: nothing stops it.
        pad_token_id: fills up rows that have stopped; None: the first stop id.
        seed: makes sampling repeat for the same batch on the same device; None uses torch's global generator.
        streamer: gets the ids as they come, for a batch of one; such as `TextStreamer`.
        progress: show a bar on stderr.

    Raises:
        TypeError, ValueError: an argument is not what it must be; the message names it.
    """
    chosen = GenerationOptions(**options)
    tokens = _new_tokens(model, input_ids, attention_mask, chosen)
    if streamer is not None:
        _check_single(input_ids, "a streamer")
        streamer.put(input_ids.cpu())
    ids = [input_ids]
    try:
        # Closed also when a streamer or Ctrl-C interrupts: a traceback that is kept would keep it open.
        with closing(tokens), _progress_bar(chosen.steps(input_ids.shape[1])) if progress else nullcontext() as bar:
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
    num_steps = options.steps(ids.shape[1])
    stop_ids, pad_id = options.stop_and_pad_ids(model.config)

    def tokens() -> Generator[Tensor, None, None]:
        generator = None if options.seed is None else torch.Generator(ids.device).manual_seed(options.seed)
        cache = _cache_for(model, ids, num_steps)
        with decoding(model, num_steps, free_memory(ids.device) // 2) as forward:  # the text needs memory too
            forward = partial(forward, use_cache=True) if cache is None else forward
            yield from new_tokens(
                model, ids, mask, cache, num_steps, options.sampler, stop_ids=stop_ids, pad_id=pad_id,
                generator=generator, forward=forward,
            )  # fmt: skip

    return tokens()


def _cache_for(model: nn.Module, ids: Tensor, num_steps: int) -> RollingKVCache | None:
    """Return a cache with room for the prompt and the new tokens, so that it need not grow; None for others' models."""
    if not isinstance(model, CausalLM):
        return None
    dtype = next(model.parameters()).dtype
    cache = RollingKVCache(model.config, len(ids), device=ids.device, dtype=dtype)
    cache.make_room(ids.shape[1] + min(num_steps, _MOST_SLOTS_AHEAD))
    return cache


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


def _progress_bar(total: int):
    from tqdm.auto import tqdm  # not at the top: in a notebook it loads widgets

    return tqdm(total=total, unit="token")


def _check(name: str, value: Any, kind: type, is_fine: Callable[[Any], bool], wanted: str) -> None:
    if value is not None:
        _require(name, value, kind, is_fine, wanted)


def _require(name: str, value: Any, kind: type, is_fine: Callable[[Any], bool], wanted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: it must be {wanted}")
    if not is_fine(value):
        raise ValueError(f"{name}={value!r}: it must be {wanted}")
