"""What `generate` returns besides ids: the scores, and what the model computed on the way."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.output import Keyed, register
from mixtral_edu.sampling import Sampler

_FROM_MODEL = ("attentions", "hidden_states", "router_logits")


@dataclass
class GenerationOutput(Keyed):
    """What `generate` returns with `return_dict_in_generate=True`, see `Keyed`; what was not asked for is None.

    `sequences` (B, T + new): prompt and new ids. `past_key_values`, or `cache`: the KV cache, which has seen all but
    the last column; give it to the next call to continue. All others are tuples with an entry per new id:

    `logits`, `scores`: (B, V), before and after the rules that shape the distribution. `hidden_states`: L + 1 tensors
    (B, T or 1, D). `attentions`: L tensors (B, Hq, T or 1, S), a column for each of the S latest columns of the text.
    `router_logits`: L tensors (B * T or B, E). Without a cache, each step has all columns so far. What a row has after
    its end means nothing.

    With drafts (`prompt_lookup_num_tokens`) the last three have an entry per forward pass, for as many ids as it read.
    With beams there is no cache; rows are B at first and then B * num_beams, `scores` are log probabilities, and
    `sequences_scores` (B * sequences) those of the texts as a whole, divided by a power of their length.
    """

    order = (
        "sequences", "sequences_scores", "scores", "logits", "attentions", "hidden_states", "cache", "router_logits"
    )  # fmt: skip

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    router_logits: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: RollingKVCache | None = None


register(GenerationOutput)


class Recorder:
    """Keeps, step by step, what was asked for: names of `GenerationOutput`'s fields."""

    def __init__(self, names: Iterable[str]):
        self.kept: dict[str, list[Any]] = {name: [] for name in names}
        self.cache: RollingKVCache | None = None

    def keep(self, name: str, value: Any) -> None:
        """Append what a step computed, if it was asked for."""
        if name in self.kept:
            self.kept[name].append(value)

    def forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return `forward` that also asks the model for what is to be kept, and keeps it."""
        asked = {f"output_{name}": True for name in _FROM_MODEL if name in self.kept}

        def recorded(input_ids: Tensor, **options: Any) -> Any:
            out = forward(input_ids, **options, **asked)
            self.cache = out.past_key_values
            for name in asked:
                self.keep(name.removeprefix("output_"), getattr(out, name.removeprefix("output_")))
            if "attentions" in self.kept and input_ids.shape[1] == 1 and isinstance(self.cache, RollingKVCache):
                self.kept["attentions"][-1] = in_columns(out.attentions, self.cache)
            return out

        return recorded

    def sampler(self, sampler: Sampler) -> Sampler:
        """Return a sampler that does the same and keeps scores."""
        return _RecordingSampler(sampler.do_sample, sampler.rules, sampler.repetition_penalty, self)

    def output(self, sequences: Tensor, scores: Tensor | None = None) -> GenerationOutput:
        """Return what was kept, with the `scores` of whole texts if scores were asked for."""
        kept = {name: tuple(values) for name, values in self.kept.items()}
        whole = scores if "scores" in kept else None
        return GenerationOutput(sequences, whole, past_key_values=self.cache, **kept)


@dataclass(frozen=True)
class _RecordingSampler(Sampler):
    recorder: Recorder | None = None

    def shape(self, logits: Tensor, seen: Tensor, seen_mask: Tensor) -> Tensor:
        shaped = super().shape(logits, seen, seen_mask)
        self.recorder.keep("logits", logits.clone())  # not a view that holds a whole pass, nor the scores themselves
        self.recorder.keep("scores", shaped)
        return shaped


def in_columns(attentions: tuple[Tensor, ...], cache: RollingKVCache) -> tuple[Tensor, ...]:
    """Order the weights of one query by the columns of the text, as prefill has them.

    A step's keys stand in the order of their slots, without padding. Args and returns: (B, Hq, 1, slots) per layer, and
    (B, Hq, 1, S), 0 for padding, where S is the number of columns so far, or W if that is less.
    """
    S = min(cache.seen, cache.window or cache.seen)
    pads = cache.seen - cache.next_position  # (B,)
    positions = torch.arange(cache.seen - S, cache.seen, device=pads.device) - pads[:, None]  # (B, S)
    slots = positions.clamp(min=0) % cache.num_slots

    def ordered(weights: Tensor) -> Tensor:
        found = weights.gather(3, slots[:, None, None].expand(-1, weights.shape[1], 1, -1))
        return found.masked_fill((positions < 0)[:, None, None], 0)

    return tuple(map(ordered, attentions))
