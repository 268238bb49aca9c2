"""`generate` and `stream`: the textbook's generation with checked options, text as it grows, and the engine's steps."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.inputs import given_cache
from mixtral_edu.api.options import GenerationOptions
from mixtral_edu.api.recording import GenerationOutput, Recorder
from mixtral_edu.api.task import Task, beams, checked_task, tokens
from mixtral_edu.sampling import RULES
from mixtral_edu.text.streaming import IncrementalDecoder
from mixtral_edu.text.tokenizer import MixtralTokenizer

_NUMBERS = {Integral: int, Real: float}  # as signatures show them


class Streamer(Protocol):
    """What `generate` hands ids to as they come: the prompt (1, T), then each new id (1,), then `end`."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


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
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    first = [parameter for parameter in own if parameter.kind is not keyword]
    function.__signature__ = signature.replace(parameters=[*first, *options, *own[len(first) :]])
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
    cache: RollingKVCache | None = None,
    past_key_values: RollingKVCache | None = None,
    streamer: Streamer | None = None,
    progress: bool = False,
    return_dict_in_generate: bool = False,
    output_scores: bool = False,
    output_logits: bool = False,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    output_router_logits: bool = False,
    **options: Any,
) -> Tensor | GenerationOutput:
    """Continue each row, up to `max_new_tokens` ids or a stop id, and return prompt and new ids, (B, T + new).

    Rows stop one by one; one that has stopped is filled up with the pad id, and the call ends when all have.

    Args:
        model: a causal language model with a `config`; used in evaluation mode, and left in the mode it was in.
        input_ids: (B, T) prompts.
        attention_mask: (B, T), 0 for padding, which must be on the left. None means that there is none, whatever the
            ids are.
        max_new_tokens: the most new ids per row; either this or `max_length` must be given.
        max_length: an older way to say it: the most ids in all, the T of the prompt included.
        do_sample: draw from the distribution, shaped by the rules below, in this order; otherwise take the most likely
            id, and ignore them. A temperature near 0 comes to the same.
        RULES
        repetition_penalty: makes all ids of the row so far less likely (above 1), pads left out, before those rules.
        eos_token_id: the id or ids that stop a row; None: nothing stops it.
        pad_token_id: fills up rows that have stopped; None: the first stop id.
        stop_strings: a text or texts that stop a row once one of them stands in it; needs the `tokenizer`.
        tokenizer: decodes ids, to look for stop strings.
        seed: makes sampling repeat for the same batch on the same device; None uses torch's global generator.
        num_return_sequences: how many texts per prompt, in neighbouring rows: drawn ones, or the best of the beams.
        num_beams: keep that many beginnings, and return the text that is likeliest as a whole (beam search).
        length_penalty: the power of the length that a beam's log probability is divided by: higher favours long texts.
        early_stopping: when beam search is over. False: as soon as no running beam promises to end better, at its
            present length. True: with as many finished texts as beams. "never": when no length could help a beam.
        prompt_lookup_num_tokens: guess up to that many ids at once from the text so far, and keep those that the model
            would have chosen (prompt lookup, a batch of one). The ids stay the same, to rounding.
        max_matching_ngram_size: the most ids that are looked up together.
        use_cache: False computes all ids again in each step, without a KV cache.
        cache: a cache to continue, such as that of an earlier call. `input_ids` is the whole text so far, of which the
            cache has seen the beginning; only the rest is computed. A cache knows how many ids it has seen, but not
            which: after an interrupted call, or for a text that was changed, start with a new one.
        past_key_values: another name of `cache`.
        streamer: gets the ids as they come, for a batch of one; such as `TextStreamer`.
        progress: show a bar on stderr.
        return_dict_in_generate: return a `GenerationOutput`, which holds the ids as `sequences`, the `cache`, and what
            the next five ask for.
        output_scores, output_logits: the scores of each step, after and before the rules.
        output_attentions, output_hidden_states, output_router_logits: what the model computed in each step.

    Raises:
        TypeError, ValueError: an argument is not what it must be; the message names it.
    """
    chosen = GenerationOptions(**options)
    outputs = {
        "scores": output_scores,
        "logits": output_logits,
        "attentions": output_attentions,
        "hidden_states": output_hidden_states,
        "router_logits": output_router_logits,
    }
    names = [name for name, wanted in outputs.items() if wanted]
    if names and not return_dict_in_generate:
        raise ValueError(f"output_{names[0]}=True needs return_dict_in_generate=True, which returns what it asks for")
    recorder = Recorder(names) if return_dict_in_generate else None
    task = checked_task(model, input_ids, attention_mask, chosen, given_cache(past_key_values, cache), recorder)
    if streamer is not None:
        _check_single(task, "a streamer")
        if not all(callable(getattr(streamer, method, None)) for method in ("put", "end")):
            raise TypeError(f"streamer is a {type(streamer).__name__}: it must have the methods put and end")
        if chosen.num_beams > 1:
            raise ValueError(f"streamer with num_beams={chosen.num_beams}: a beam may be given up, so no id is certain "
                             "before the end; leave one of the two out")  # fmt: skip
    with _progress_bar(task.num_steps) if progress else nullcontext() as bar:
        if chosen.num_beams > 1:
            sequences, scores = beams(task, bar)
        else:
            sequences, scores = _collected(task, streamer, bar), None
    return sequences if recorder is None else recorder.output(sequences, scores)


def stream(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    tokenizer: MixtralTokenizer,
    skip_prompt: bool = True,
    skip_special_tokens: bool = True,
    cache: RollingKVCache | None = None,
    past_key_values: RollingKVCache | None = None,
    **options: Any,
) -> Iterator[str]:
    """Continue one text and yield it as it grows, each character as soon as it is whole.

    The pieces joined are `tokenizer.decode` of the new ids: a text of its own, without the space that may stand between
    it and the prompt. `skip_prompt=False` gives the whole text, prompt included. The options are those of
    `generate` that choose ids and stop; arguments are checked here, at once.
    """
    if not isinstance(tokenizer, MixtralTokenizer):
        raise TypeError(f"tokenizer must be a MixtralTokenizer, not {type(tokenizer).__name__}")
    chosen = GenerationOptions(tokenizer=tokenizer, **options)
    if chosen.num_beams > 1:
        raise ValueError(f"num_beams={chosen.num_beams}: stream yields text as it grows, and a beam may be given up")
    task = checked_task(model, input_ids, attention_mask, chosen, given_cache(past_key_values, cache), None)
    _check_single(task, "stream")

    def texts() -> Iterator[str]:
        decoder = IncrementalDecoder(tokenizer, skip_special_tokens)
        if not skip_prompt:
            yield decoder.push(task.ids[0])
        with closing(tokens(task)) as new_ids:
            for token in new_ids:
                yield decoder.push(token)
        yield decoder.flush()

    return (text for text in texts() if text)


def _collected(task: Task, streamer: Streamer | None, bar: Any) -> Tensor:
    """Prompt and new ids, (B, T + new)."""
    ids = [task.ids]
    try:
        # Closed also when a streamer or Ctrl-C interrupts: a traceback that is kept would keep it open.
        if streamer is not None:
            streamer.put(task.ids.cpu())
        with closing(tokens(task)) as new_ids:
            for token in new_ids:
                ids.append(token[:, None])
                if streamer is not None:
                    streamer.put(token.cpu())
                if bar is not None:
                    bar.update()
    finally:  # also when interrupted, so that the streamer is ready for the next generation
        if streamer is not None:
            streamer.end()
    return torch.cat(ids, dim=1)


def _check_single(task: Task, user: str) -> None:
    if len(task.ids) != 1:
        several = task.options.num_return_sequences
        cause = "input_ids" if several == 1 else f"num_return_sequences={several}"
        raise ValueError(f"{cause} asks for {len(task.ids)} rows: {user} takes a batch of one, and one text of it")


def _progress_bar(total: int):
    from tqdm.auto import tqdm  # not at the top: in a notebook it loads widgets

    return tqdm(total=total, unit="token")
