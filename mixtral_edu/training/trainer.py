"""Training: AdamW on next-token loss plus load balancing, resumable, measured in bits per byte.

    loss = cross entropy + aux_loss_coef · mean over layers of E · Σ_e f_e · P_e

Sources: Loshchilov & Hutter 2019, arXiv 1711.05101 (AdamW); Switch Transformer, arXiv 2101.03961 (load balancing).
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.checkpoints.folders import whole_file
from mixtral_edu.heads import next_token_loss
from mixtral_edu.moe import load_balancing_loss
from mixtral_edu.text.tokenizer import MixtralTokenizer

Document = str | Sequence[dict]  # plain text, or the messages of a chat


class Batches(Protocol):
    """Training data by step, so that a resumed run sees the same batches as an uninterrupted one."""

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the `input_ids` and `labels` of one step, both (B, T). A label is an id, or -100 to ignore it.

        A step whose labels are all -100 has a loss of 0; only the auxiliary loss trains the model there.
        """


@dataclass(frozen=True)
class TrainingConfig:
    """How to train: `steps` in all, a linear warm-up to `learning_rate`, then half a cosine down to a tenth of it.

    Warm-up and cosine start again at each step in `restarts` (warm restarts: arXiv 1608.03983), so that the model can
    still learn from data that changes there. `aux_loss_coef` weighs the load-balancing loss, which is computed per
    layer. `clip_norm` bounds the norm of the gradient (gradient clipping). Weight decay applies to matrices, not to
    norms. `mixed_precision` computes matrix products in bfloat16; weights stay in float32.
    """

    steps: int
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    restarts: tuple[int, ...] = ()
    clip_norm: float = 1.0
    aux_loss_coef: float = 0.02
    mixed_precision: bool = True

    def __post_init__(self):
        for name in ("steps", "learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be above 0")
        for name in ("warmup_steps", "weight_decay", "aux_loss_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 0 or more")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        begin = max(first for first in (0, *self.restarts) if first <= step)
        end = min((last for last in (*self.restarts, self.steps) if last > begin), default=self.steps)
        step, steps = step - begin, end - begin
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


class Trainer:
    """Train a model step by step and keep a history.

    Args:
        model: the model, with float32 weights, on the device to train on.
        batches: the data, by step.
        config: how to train.
        name: the run's name, such as its recipe. Only a run of the same name can resume from what this one saved.

    Attributes:
        step: steps done so far.
        resumed_at: the steps at which the run resumed from a file.
        history: one dictionary per step with "step", "loss" (nats per token, without the auxiliary part), "aux_loss"
            (K at perfect balance), "learning_rate" and "seconds".
    """

    def __init__(self, model: MixtralForCausalLM, batches: Batches, config: TrainingConfig, name: str = ""):
        self.model, self.batches, self.config, self.name = model, batches, config, name
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.step = 0
        self.resumed_at: list[int] = []
        self.history: list[dict[str, float]] = []

    def train(
        self, until: int | None = None, progress: bool = True, after_step: Callable[["Trainer"], None] | None = None
    ) -> list[dict[str, float]]:
        """Train up to step `until` and return the history.

        Args:
            until: stop after this many steps in all; None for the config's `steps`.
            progress: show a bar with loss and speed.
            after_step: called after each step, for evaluation and saving.
        """
        until = self.config.steps if until is None else min(until, self.config.steps)
        self.model.train()
        bar = tqdm(total=until, initial=self.step, disable=not progress, unit="step", mininterval=1.0)
        with bar:
            while self.step < until:
                self._train_step()
                last = self.history[-1]
                bar.set_postfix(loss=f"{last['loss']:.3f}", aux=f"{last['aux_loss']:.2f}", refresh=False)
                bar.update()
                if after_step is not None:
                    after_step(self)
                    self.model.train()
        self.model.eval()
        return self.history

    @torch.inference_mode(False)
    @torch.enable_grad()  # even if the caller has switched gradients off
    def _train_step(self) -> None:
        model, config, started = self.model, self.config, time.perf_counter()
        input_ids, labels = (t.to(model.device) for t in self.batches(self.step))
        learning_rate = config.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.mixed_precision):
            out = model(input_ids, use_cache=False, output_router_logits=True)
        loss = next_token_loss(out.logits, labels)
        aux_loss = load_balancing_loss(
            out.router_logits, model.config.num_local_experts, model.config.num_experts_per_tok, per_layer=True
        )
        (loss + config.aux_loss_coef * aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.history.append(
            {
                "step": self.step,
                "loss": loss.item(),
                "aux_loss": aux_loss.item(),
                "learning_rate": learning_rate,
                "seconds": time.perf_counter() - started,
            }
        )
        self.step += 1

    def save(self, path: str | Path) -> None:
        """Write all that a later run needs to resume from here. An interrupted write leaves the older file intact."""
        state = {
            "name": self.name,
            "step": self.step,
            "resumed_at": self.resumed_at,
            "history": self.history,
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        with whole_file(path) as file:
            torch.save(state, file)

    def load(self, path: str | Path) -> None:
        """Resume from a file that `save` wrote.

        Raises:
            ValueError: the file belongs to another run, or to another training config; the message says what differs.
        """
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        if state["name"] != self.name:
            raise ValueError(
                f"{path} belongs to a run of {state['name']!r}, not of {self.name!r}: resume it under its own name"
            )
        ours = asdict(self.config)
        differing = [name for name in ours if state["config"].get(name) != ours[name]]
        if differing:
            raise ValueError(
                f"{path} was written with another {', '.join(differing)}: the config must have "
                f"{ {name: state['config'].get(name) for name in differing} } to resume from it"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        self.resumed_at = state["resumed_at"] + [self.step] * (self.step < self.config.steps)
        torch.set_rng_state(state["rng"].cpu())


@torch.no_grad()
def token_bits(model: MixtralForCausalLM, ids: Sequence[int]) -> Tensor:
    """Return how many bits the model needs for each token, given all tokens before it: (T - 1,) in float32 for T ids.

    bits(x_t) = -log2 p(x_t | x_0 … x_{t-1})
    """
    input_ids = torch.tensor([list(ids)], device=model.device)
    logits = model(input_ids, use_cache=False).logits[0, :-1].float()
    return F.cross_entropy(logits, input_ids[0, 1:], reduction="none") / math.log(2)


def document_ids(tokenizer: MixtralTokenizer, document: Document) -> list[int]:
    """Return the ids of a text, or of a chat in the instruct format; both begin with `<s>`."""
    return tokenizer.encode(document) if isinstance(document, str) else tokenizer.encode_chat(document)[0]


def bits_per_byte(
    model: MixtralForCausalLM, tokenizer: MixtralTokenizer, documents: Iterable[Document], max_tokens: int = 2048
) -> float:
    """Return the bits that the model needs per byte of UTF-8 text.

    Unlike a loss per token, bits per byte are comparable between tokenizers.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the tokenizer that it was trained with.
        documents: texts, or chats as lists of messages. A chat counts in the instruct format, special tokens included.
        max_tokens: read at most this many tokens per document, from its start.

    Raises:
        ValueError: there are no documents, or all are empty.
    """
    bits = num_bytes = 0.0
    for document in documents:
        ids = document_ids(tokenizer, document)[:max_tokens]
        bits += token_bits(model, ids).sum().item()
        num_bytes += len(tokenizer.decode(ids[1:]).encode())
    if num_bytes == 0:
        raise ValueError("documents hold no text: at least one must not be empty")
    return bits / num_bytes
