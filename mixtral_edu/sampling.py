"""From scores to a token: pure functions over logits (B, V), each of which returns new logits.

`generate` applies them in the order in which they stand here. What is ruled out gets the score -inf, so its probability
is exactly 0. All compute what transformers' processors of the same names compute.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from mixtral_edu.input_checks import can_look_at

# Float32 can multiply and divide by all between these, also on devices that divide by multiplying with the reciprocal.
_LEAST_FACTOR = torch.finfo(torch.float32).tiny
_MOST_FACTOR = 1 / _LEAST_FACTOR


def apply_repetition_penalty(logits: Tensor, ids: Tensor, penalty: float, mask: Tensor | None = None) -> Tensor:
    """Make tokens that occurred less likely (penalty > 1) or more likely (penalty < 1).

        l_v <- l_v / penalty  if l_v > 0,  l_v * penalty  otherwise,      for every v in the row's ids

    Args:
        logits: (B, V) scores.
        ids: (B, S) prompt and generated ids.
        penalty: above 0; 1 changes nothing. Scores that grow beyond all numbers leave the best of them alone.
        mask: (B, S), 0 for padding, whose ids did not occur; None: all did.

    Source: CTRL, arXiv 1909.05858, section 4.1.
    """
    B, V = logits.shape
    penalty = _factor(penalty)
    if mask is not None:
        ids = ids.masked_fill(mask == 0, V)  # one more column takes what does not count
    occurred = torch.zeros(B, V + 1, dtype=torch.bool, device=logits.device).scatter(1, ids, True)[:, :V]
    penalised = torch.where(occurred, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    return _best_where_infinite(penalised, logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharpen (below 1) or flatten (above 1) the distribution: softmax(logits / temperature).

    A temperature near 0 leaves the best token alone (several, if they tie); a huge one makes all that can be drawn
    equally likely.
    """
    return _best_where_infinite(logits / _factor(temperature), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k highest scores of each row, and what ties with the last of them."""
    last_kept = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < last_kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens of each row that together have probability p or more; at least one.

    Source: The Curious Case of Neural Text Degeneration, arXiv 1904.09751, section 3.1.
    """
    rising, order = logits.sort()  # both (B, V)
    tail = _probabilities(rising).cumsum(-1)  # the probability of a token and of all less likely ones
    drop = tail <= 1 - float(p)
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as likely as the row's most likely one.

    Source: Turning Up the Heat, arXiv 2407.01082, section 3.
    """
    probabilities = _probabilities(logits)
    return logits.masked_fill(probabilities < float(p) * probabilities.amax(-1, keepdim=True), -torch.inf)


def next_token(logits: Tensor, do_sample: bool, generator: torch.Generator | None = None) -> Tensor:
    """Return one id a row, (B,): drawn from softmax(logits), or the most likely one.

    Raises:
        ValueError: there is nothing to draw from, as logits hold nan or inf; told on a CPU only.
    """
    if not do_sample:
        return logits.argmax(-1)
    probabilities = _probabilities(logits)
    if can_look_at(probabilities) and probabilities.isnan().any():
        raise ValueError(
            "logits hold nan or inf, or a row of nothing but -inf: they must be finite where a token may be drawn; "
            "look for nan and inf in the model's weights"
        )
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _probabilities(logits: Tensor) -> Tensor:
    """softmax(logits), in float32 at least: sums of half-precision numbers would lose the unlikely ones."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _factor(number: Real) -> float:
    """The number itself, or the nearest to it that float32 can multiply and divide by."""
    return float(min(max(number, _LEAST_FACTOR), _MOST_FACTOR))


def _best_where_infinite(scaled: Tensor, logits: Tensor) -> Tensor:
    """Return `scaled` (B, V), and for a row whose highest score overflowed its limit: only the best tokens are left.

    Scores that leave a number's range differ by more than any softmax can show, unless they were equal. The best are
    those with the highest of the `logits` before, among the ones that overflowed. A row whose highest score was
    infinite before is broken and stays so: `next_token` refuses it.
    """
    highest = scaled.amax(-1, keepdim=True)  # (B, 1)
    if can_look_at(highest) and not highest.isinf().any():
        return scaled  # the usual case, for the price of one look
    overflowed = highest.isinf() & logits.amax(-1, keepdim=True).isfinite()  # (B, 1)
    candidates = logits.masked_fill(scaled != highest, -torch.inf)
    best = candidates == candidates.amax(-1, keepdim=True)
    limit = torch.zeros_like(logits).masked_fill(~best, -torch.inf)
    return torch.where(overflowed, limit, scaled)


class _FromConfig:
    """Stands for the config's value where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "<the config's>"


FROM_CONFIG: Any = _FromConfig()


@dataclass(frozen=True)
class GenerationOptions:
    """How the next token is chosen and when to stop; `generate` tells what each field means.

    Raises:
        TypeError, ValueError: a field is not what it must be; the message names it.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool = False
    temperature: float | None = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_id: int | Sequence[int] | None = FROM_CONFIG
    pad_token_id: int | None = FROM_CONFIG
    seed: int | None = None

    def __post_init__(self):
        if self.max_new_tokens is None and self.max_length is None:
            raise TypeError("max_new_tokens=None: it must be an int of at least 1")
        if self.max_new_tokens is not None and self.max_length is not None:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} and max_length={self.max_length}: give one of them, better the "
                "first"
            )
        for name in ("max_new_tokens", "max_length"):
            _check(name, getattr(self, name), Integral, lambda n: n >= 1, "an int of at least 1")
        _check("temperature", self.temperature, Real, lambda t: 0 < t < math.inf,
               "a finite number above 0 (do_sample=False takes the most likely token)")  # fmt: skip
        _check("top_k", self.top_k, Integral, lambda k: k >= 1, "an int of at least 1, or None")
        _check("top_p", self.top_p, Real, lambda p: 0 < p <= 1, "a number above 0 and up to 1, or None")
        _check("min_p", self.min_p, Real, lambda p: 0 <= p <= 1, "a number from 0 to 1, or None")
        _check("repetition_penalty", self.repetition_penalty, Real, lambda r: 0 < r < math.inf,
               "a finite number above 0, or None")  # fmt: skip
        _check("seed", self.seed, Integral, lambda s: -(2**63) <= s < 2**64, "an int from -2**63 to 2**64 - 1, or None")
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed))  # a torch.Generator takes no integer of numpy
        defaults = {"temperature": (None, 1.0), "top_k": (None,), "top_p": (None,), "min_p": (None,)}
        unused = [name for name, values in defaults.items() if getattr(self, name) not in values]
        if unused and not self.do_sample:
            warnings.warn(f"{', '.join(unused)} only matter with do_sample=True, and are ignored", stacklevel=4)

    def steps(self, prompt_length: int) -> int:
        """Return how many new ids there may be after a prompt of so many.

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

    def shape(self, logits: Tensor, seen: Tensor, seen_mask: Tensor) -> Tensor:
        """Return what the next ids are chosen from: logits (B, V) with everything applied that is set.

        Args:
            logits: (B, V), of the model.
            seen: (B, S) ids so far.
            seen_mask: (B, S), 0 for padding.
        """
        if self.repetition_penalty is not None:
            logits = apply_repetition_penalty(logits, seen, self.repetition_penalty, seen_mask)
        if self.do_sample:
            if self.temperature is not None:
                logits = apply_temperature(logits, self.temperature)
            if self.top_k is not None:
                logits = keep_top_k(logits, self.top_k)
            if self.top_p is not None:
                logits = keep_top_p(logits, self.top_p)
            if self.min_p is not None:
                logits = keep_min_p(logits, self.min_p)
        return logits

    def choose(self, logits: Tensor, seen: Tensor, seen_mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the next ids (B,) for logits (B, V) after the ids `seen` (B, S), those masked 0 left out."""
        return next_token(self.shape(logits, seen, seen_mask), self.do_sample, generator)

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


def _check(name: str, value: Any, kind: type, is_fine: Callable[[Any], bool], wanted: str) -> None:
    if value is not None:
        _require(name, value, kind, is_fine, wanted)


def _require(name: str, value: Any, kind: type, is_fine: Callable[[Any], bool], wanted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: it must be {wanted}")
    if not is_fine(value):
        raise ValueError(f"{name}={value!r}: it must be {wanted}")
