"""The reader's functions between a model's logits and the next token."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from mixtral_edu import sampling
from mixtral_edu.exercises.own.functions import Own


@contextmanager
def own_sampling(own: Own) -> Iterator[None]:
    """Let the textbook's `Sampler` shape logits by the reader's functions inside the `with` block."""
    rules, penalise = sampling.RULES, sampling.apply_repetition_penalty
    changed = dict(rules)
    if "temperature_softmax" in own:  # logarithms of probabilities are logits again, whose softmax they are
        changed["temperature"] = rules["temperature"]._replace(
            apply=lambda logits, t: own("temperature_softmax", logits, float(t), like=logits).log()
        )
    if "top_p_filter" in own:
        changed["top_p"] = rules["top_p"]._replace(
            apply=lambda logits, p: own("top_p_filter", logits, float(p), like=logits)
        )

    def penalised(logits: Tensor, ids: Tensor, penalty: float, mask: Tensor) -> Tensor:
        return own("repetition_penalty", logits, ids, mask, float(penalty), like=logits)

    try:
        sampling.RULES = changed
        if "repetition_penalty" in own:
            sampling.apply_repetition_penalty = penalised
        yield
    finally:
        sampling.RULES, sampling.apply_repetition_penalty = rules, penalise
