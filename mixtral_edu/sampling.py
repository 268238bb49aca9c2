"""From logits (B, V) to the next token: pure functions that reshape the distribution, and the choice itself.

A token that a rule excludes gets the logit -inf, so its probability is exactly 0. Results equal those of transformers'
logits processors. `RULES` lists what `do_sample` applies, in order: a new rule is a function and an entry there.

Sources: CTRL, arXiv 1909.05858, section 4.1 (repetition penalty); The Curious Case of Neural Text Degeneration, arXiv
1904.09751, section 3.1 (top-p, or nucleus sampling); Turning Up the Heat, arXiv 2407.01082, section 3 (min-p).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LEAST = torch.finfo(torch.float32).tiny  # the smallest factor by which float32 can both multiply and divide


def apply_repetition_penalty(logits: Tensor, ids: Tensor, penalty: float, mask: Tensor | None = None) -> Tensor:
    """Make tokens that have already occurred less likely (penalty > 1) or more likely (penalty < 1).

        l_v <- l_v / penalty  if l_v > 0,  l_v * penalty  otherwise,      for every v in the row's ids

    `ids` (B, S) are prompt and generated ids; those where `mask` is 0 do not count. A penalty of 1 changes nothing.
    """
    B, V = logits.shape
    penalty = _factor(penalty)
    if mask is not None:
        ids = ids.masked_fill(mask == 0, V)  # an extra column V, cut off below, collects them
    occurred = torch.zeros(B, V + 1, dtype=torch.bool, device=logits.device).scatter(1, ids, True)[:, :V]
    penalised = torch.where(occurred, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    return _or_limit(penalised, logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharpen (below 1) or flatten (above 1) the distribution: softmax(logits / temperature).

    Near 0 only the most likely token is left (or several that tie); a huge temperature makes all equally likely.
    """
    return _or_limit(logits / _factor(temperature), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k highest logits of each row, and any that tie with the last of them."""
    last_kept = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < last_kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep each row's nucleus: the most likely tokens, as few as together have probability p or more; at least one."""
    rising, order = logits.sort()  # both (B, V)
    tail = _probabilities(rising).cumsum(-1)  # the probability of a token and of all less likely ones
    drop = tail <= 1 - float(p)
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens that are at least p times as likely as the most likely one: fewer, the surer the model is."""
    probabilities = _probabilities(logits)
    return logits.masked_fill(probabilities < float(p) * probabilities.amax(-1, keepdim=True), -torch.inf)


class Rule(NamedTuple):
    """A way to reshape the distribution: `apply(logits, value)`, for a `value` of type `kind` that `is_fine` allows."""

    apply: Callable[[Tensor, Any], Tensor]
    kind: type
    is_fine: Callable[[Any], bool]
    must_be: str  # ends the error message for any other value
    help: str  # what it does, for documentation
    default: float | None = None  # None switches the rule off


RULES = {
    "temperature": Rule(apply_temperature, Real, lambda t: 0 < t < math.inf,
                        "a finite number above 0 (do_sample=False takes the most likely token)",
                        "flattens (above 1) or sharpens (below 1) the distribution", default=1.0),
    "top_k": Rule(keep_top_k, Integral, lambda k: k >= 1, "an int of at least 1, or None",
                  "keeps the k most likely tokens"),
    "top_p": Rule(keep_top_p, Real, lambda p: 0 < p <= 1, "a number above 0 and up to 1, or None",
                  "keeps the fewest tokens whose probabilities reach p together (nucleus)"),
    "min_p": Rule(keep_min_p, Real, lambda p: 0 <= p <= 1, "a number from 0 to 1, or None",
                  "keeps tokens at least this many times as likely as the best"),
}  # fmt: skip


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen: the most likely one or, with `do_sample`, a draw under `rules` (values by name)."""

    do_sample: bool = False
    rules: dict[str, Any] | None = None
    repetition_penalty: float | None = None

    def shape(self, logits: Tensor, seen: Tensor, seen_mask: Tensor) -> Tensor:
        """Return the logits (B, V) to choose from, after the ids `seen` (B, S), where `seen_mask` is 0 for padding."""
        if self.repetition_penalty is not None:
            logits = apply_repetition_penalty(logits, seen, self.repetition_penalty, seen_mask)
        for name, rule in RULES.items() if self.do_sample else ():
            if (value := (self.rules or {}).get(name)) is not None:
                logits = rule.apply(logits, value)
        return logits

    def choose(self, logits: Tensor, seen: Tensor, seen_mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the next ids (B,); arguments as in `shape`."""
        return next_token(self.shape(logits, seen, seen_mask), self.do_sample, generator)


def next_token(logits: Tensor, do_sample: bool, generator: torch.Generator | None = None) -> Tensor:
    """Return one id per row, (B,): drawn from softmax(logits), or the most likely one.

    Drawing raises a ValueError if a row holds nan or +inf, or nothing but -inf; this is checked on a CPU only.
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
    """Return softmax(logits) in at least float32, as half-precision sums would lose the unlikely tokens."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def can_look_at(tensor: Tensor) -> bool:
    """Whether code may branch on values: not while compiling, nor on a GPU, where it would have to wait for them."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _factor(number: Real) -> float:
    return float(min(max(number, _LEAST), 1 / _LEAST))  # within what float32 can multiply and divide by


def _or_limit(scaled: Tensor, logits: Tensor) -> Tensor:
    """Return `scaled` (B, V), but keep only the best token (or ties) of a row whose highest logit has overflowed.

    Softmax tends to that as logits grow apart. A row whose highest logit was infinite before scaling is not repaired.
    """
    highest = scaled.amax(-1, keepdim=True)  # (B, 1)
    if can_look_at(highest) and not highest.isinf().any():
        return scaled  # the usual case, found out cheaply
    overflowed = highest.isinf() & logits.amax(-1, keepdim=True).isfinite()  # (B, 1)
    candidates = logits.masked_fill(scaled != highest, -torch.inf)
    rest = torch.zeros_like(logits).masked_fill(candidates != candidates.amax(-1, keepdim=True), -torch.inf)
    return torch.where(overflowed, rest, scaled)
