"""What a part costs: the model reads stories in every way that caches and masks allow, and writes one.

The stories are of the kind that the bundled model was trained on, but held out from training. It predicts them well, so
a mistake shows; on other texts it is so unsure that some mistakes help it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.checkpoints.config_checks import shortened
from mixtral_edu.exercises.deadline import DeadlinePassed, deadline
from mixtral_edu.exercises.grading import LONGEST
from mixtral_edu.exercises.own.adapters import OwnMixtral, put_in
from mixtral_edu.exercises.own.functions import Own, PartFailed
from mixtral_edu.exercises.own.sampling import own_sampling
from mixtral_edu.exercises.probe import random_state, set_random_state
from mixtral_edu.exercises.settings import usual_settings
from mixtral_edu.heads import next_token_loss
from mixtral_edu.sampling import Sampler
from mixtral_edu.text.tokenizer import MixtralTokenizer
from mixtral_edu.training.corpus.storytelling import held_out_stories

TEXT = (136, 24, *[1] * 8)  # tokens of a story, as it comes: a prompt longer than the window of 128, more, then singles
BATCH = (48, 8, *[1] * 4)  # columns of two stories in one batch
SHORTER = 17  # tokens that the second story lacks: as much padding, on the left
PROMPT = "Once upon a time"
RULES = {"temperature": 0.7, "top_p": 0.9}
PENALTY = 1.2
STORY = 40  # tokens
# Changes below this are rounding: logits reach 30, and a float32 chain of some 1,000 roundings moves one of that size
# by less than 30 · 6 · 2⁻²⁴ · √1000 = 0.0004.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Measured:
    """What a model does with the probe.

    Attributes:
        logits: of each real token, (N, V).
        chances: probabilities of the next token after penalty, temperature and top-p, as a draw uses them, (n, V).
        loss: nats per token.
        balance: the load-balancing loss.
        story: how the model continues `PROMPT`; empty if it was not asked.
    """

    logits: Tensor
    chances: Tensor
    loss: float
    balance: float
    story: str

    def changes(self, other: "Measured") -> dict[str, float]:
        """The largest difference to `other`, by what differs; infinite where a number is missing (nan)."""
        found = {
            "a logit": (self.logits - other.logits).abs().max().item(),
            "a probability as drawn": (self.chances - other.chances).abs().max().item(),
            "the loss": abs(self.loss - other.loss),
            "the balancing loss": abs(self.balance - other.balance),
        }
        return {what: change if math.isfinite(change) else math.inf for what, change in found.items()}


@torch.no_grad()
def measure(model: MixtralForCausalLM, tokenizer: MixtralTokenizer, story: bool) -> Measured:
    """Let a model read the probe, and write a story if it is asked to."""
    own = model.own if isinstance(model, OwnMixtral) else Own()
    stories = (ids for ids in map(tokenizer.encode, held_out_stories()) if len(ids) >= sum(TEXT))
    text = torch.tensor([next(stories)[: sum(TEXT)]], device="cpu")  # (1, T)
    batch, mask = tokenizer.pad([next(stories)[: sum(BATCH)], next(stories)[: sum(BATCH) - SHORTER]]).values()
    text_logits, _ = _read(model, text, None, TEXT)
    batch_logits, balance = _read(model, batch, mask, BATCH)

    labels = batch.masked_fill((mask == 0) | (mask.cumsum(1) == 1), -100)  # nothing predicts a row's first token
    token_loss = model.token_loss if own else next_token_loss
    counts = text.shape[1] - 1, int((labels != -100).sum())
    losses = float(token_loss(text_logits, text)), float(token_loss(batch_logits, labels))

    columns = torch.arange(text.shape[1], device="cpu")
    places = columns[::8]
    seen = (columns <= places[:, None]).long()  # (n, T): what each place has before it
    with own_sampling(own):
        shaped = Sampler(True, RULES, PENALTY).shape(text_logits[0, places], text.expand(len(places), -1), seen)
    written = ""
    if story:
        prompt = torch.tensor([tokenizer.encode(PROMPT)], device="cpu")
        options = {"max_new_tokens": STORY, "do_sample": True, "repetition_penalty": PENALTY, "seed": 0, **RULES}
        written = tokenizer.decode(model.generate(prompt, **options)[0], skip_special_tokens=True)
    return Measured(
        logits=torch.cat((text_logits[0], batch_logits[mask == 1])),
        chances=shaped.softmax(dim=-1),
        loss=sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts),
        balance=balance,
        story=" ".join(written.split()),
    )


def _read(model: MixtralForCausalLM, ids: Tensor, mask: Tensor | None, pieces: tuple[int, ...]) -> tuple[Tensor, float]:
    """Read ids (B, T) piece by piece through a cache; return the logits (B, T, V) and the first balancing loss."""
    kv_cache = RollingKVCache(model.config, len(ids))
    masks = [None] * len(pieces) if mask is None else mask.split(pieces, dim=1)
    outs = [
        model(piece, attention_mask=real, past_key_values=kv_cache, output_router_logits=True)
        for piece, real in zip(ids.split(pieces, dim=1), masks, strict=True)
    ]
    return torch.cat([out.logits for out in outs], dim=1), float(outs[0].aux_loss)


@cache
def package(name: str | Path) -> tuple[MixtralForCausalLM, MixtralTokenizer, Measured]:
    """A bundled or other model as the package computes it, its tokenizer, and what it does with the probe."""
    with usual_settings():
        model = MixtralForCausalLM.from_pretrained(name, dtype="float32", engine=False)
        tokenizer = MixtralTokenizer.from_pretrained(name)
        return model, tokenizer, measure(model, tokenizer, story=True)


def measure_own(functions: dict[str, Callable], name: str | Path, seconds: float, story: bool) -> Measured | str:
    """Measure a model with the reader's functions, or say in words why it could not finish in `seconds`."""
    model, tokenizer, _ = package(name)
    model = put_in(copy.deepcopy(model), functions)  # a part may change weights; they are this copy's
    state = random_state()
    try:
        with usual_settings(), deadline(seconds):
            return measure(model, tokenizer, story)
    except DeadlinePassed:
        return (f"It did not finish within {seconds:g} seconds. Does every loop end? The model calls a part up to "
                f"{TEXT[0]} tokens at a time, in {model.config.num_hidden_layers} layers.")  # fmt: skip
    except PartFailed as error:
        return str(error)
    except Exception as error:
        what = shortened(f"{type(error).__name__}: {error}".partition("\n")[0], LONGEST)
        return f"The model could not use what it returned: {what}"
    finally:
        set_random_state(state)
