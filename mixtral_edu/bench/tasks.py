"""The tasks that are timed: prefill, decoding and training, as work on any causal model, and the floor of each.

The floor is the least time that a task can take. For decoding it is the time to read each needed weight and the visible
keys and values once, at the machine's measured bandwidth. For prefill and training it is the time of their
multiplications and additions, at the measured rate of a large matrix product.
"""

import copy
import inspect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.fast import copies

STEPS = 16  # tokens per row that one timed stretch decodes
_FIRST_ID = 3  # lower ids are special tokens
_FORMS = {  # the numbers in the names of each kind
    "prefill": ("tokens",),
    "decode": ("batch", "tokens"),
    "train": ("batch", "tokens"),
    "attention": ("tokens", "window"),
    "loading": (),
}


@dataclass(frozen=True)
class Task:
    """One thing to measure.

    `prefill-T` reads T tokens of one text into a new cache and computes the scores of the last token. `decode-B-C` adds
    one token to each of B rows with a context of C tokens. `train-B-T` is a forward pass, loss, backward pass and
    optimizer step on B rows of T tokens. `attention-T-W` is attention alone, over T tokens with a window of W; there is
    no window if W is T or more. `loading` is import, load and memory.

    >>> Task.parse("decode-8-4096")
    Task(kind='decode', batch=8, tokens=4096, window=0)

    Raises:
        ValueError: the name has another form, or one of its numbers is 0.
    """

    kind: str
    batch: int = 1
    tokens: int = 1
    window: int = 0

    @classmethod
    def parse(cls, name: str) -> "Task":
        kind, *numbers = name.split("-")
        fits = all(re.fullmatch("[1-9][0-9]*", number) for number in numbers)
        if kind not in _FORMS or len(_FORMS[kind]) != len(numbers) or not fits:
            raise ValueError(f"task {name!r}: it must be prefill-TOKENS, decode-BATCH-CONTEXT, train-BATCH-TOKENS, "
                             "attention-TOKENS-WINDOW or loading")  # fmt: skip
        return cls(kind, **dict(zip(_FORMS[kind], map(int, numbers), strict=True)))

    @property
    def name(self) -> str:
        return "-".join(map(str, (self.kind, *(getattr(self, number) for number in _FORMS[self.kind]))))

    @property
    def has_window(self) -> bool:
        """Whether the window is shorter than the text."""
        return 0 < self.window < self.tokens

    @property
    def new_tokens(self) -> int:
        """Tokens per pass or step; a row's time divided by them is its time per token."""
        return self.batch if self.kind == "decode" else self.batch * self.tokens


TASKS = tuple(
    Task.parse(name)
    for name in ("prefill-512", "prefill-2048", "prefill-16384", "decode-1-64", "decode-1-4096", "decode-8-64",
                 "decode-8-4096", "train-4-256", "loading")
)  # fmt: skip
ATTENTION_TASKS = tuple(  # measured only if they are named
    Task("attention", tokens=tokens, window=window)
    for tokens in (512, 1024, 2048, 4096, 8192, 16384, 32768)
    for window in ((tokens, 4096) if tokens > 4096 else (tokens,))
)
QUICK_TASKS = tuple(
    Task.parse(name)
    for name in ("prefill-512", "prefill-2048", "decode-1-64", "decode-8-64", "train-1-256", "loading")
)  # fmt: skip
FULL_TASKS = tuple(
    Task.parse(name)
    for name in ("prefill-4096", "prefill-32768", "decode-1-64", "decode-1-4096", "decode-8-64", "decode-32-64")
)  # fmt: skip


def choose_tasks(names: Sequence[str] | None, usual: Sequence[Task] = TASKS) -> list[Task]:
    """Return the tasks that `names` stand for; all usual tasks if it is None.

    A name is a task's name, or the beginning of usual tasks' names. "attention" stands for those of `ATTENTION_TASKS`
    that are no longer than the longest usual prefill.

    >>> [task.name for task in choose_tasks(["prefill", "decode-32-64"])]
    ['prefill-512', 'prefill-2048', 'prefill-16384', 'decode-32-64']

    Raises:
        ValueError: a name is neither.
    """
    if names is None:
        return list(usual)
    longest = max((task.tokens for task in usual if task.kind == "prefill"), default=0)
    known, chosen = (*usual, *(task for task in ATTENTION_TASKS if task.tokens <= longest)), []
    for name in names:
        chosen += [task for task in known if task.name.startswith(f"{name}-")] or [Task.parse(name)]
    return list(dict.fromkeys(chosen))


def cache_name(model: nn.Module) -> str:
    """Return the name of the cache in a model's forward pass and result. transformers 5.24 changed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class Prefill:
    """The work of a prefill task on one model."""

    def __init__(self, model: nn.Module, task: Task):
        self.model, self.ids = model, random_ids(model, 1, task.tokens)

    def prepare(self) -> None:
        self.model.eval()

    @torch.no_grad()
    def run(self) -> None:
        self.model(self.ids, use_cache=True, logits_to_keep=1)


class Decode:
    """The work of a decode task on one model: `STEPS` tokens per row, always after the same context.

    All rows share the context and continue with tokens of their own, which are given, not generated.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, task: Task):
        self.model, self.cache_name = model.eval(), cache_name(model)
        room = {}
        if isinstance(model, MixtralForCausalLM):  # a cache with room for all steps, so that no round grows it
            most = task.tokens + STEPS
            room = {self.cache_name: RollingKVCache(model.config, 1, most, model.device, model.dtype)}
        out = model(random_ids(model, 1, task.tokens), use_cache=True, logits_to_keep=1, **room)
        self.context = getattr(out, self.cache_name)
        repeat_rows(self.context, task.batch)
        self.ids = random_ids(model, task.batch, STEPS)
        self.cache: Any = None

    def prepare(self) -> None:
        self.model.eval()
        if isinstance(self.cache, RollingKVCache):  # a CUDA graph may be recorded on this very cache
            self.cache.copy_(self.context)
        else:
            self.cache = copy.deepcopy(self.context)

    def run(self) -> None:
        self._steps()

    @torch.no_grad()
    def _steps(self, **options: Any) -> list[Any]:
        prepared = getattr(self.model, "prepared", None)
        step = self.model if options or prepared is None or prepared.step is None else prepared.step
        options |= {"use_cache": True, "logits_to_keep": 1, self.cache_name: self.cache}
        with copies.in_use(prepared.copies if prepared is not None else ()):
            return [step(ids, **options) for ids in self.ids.split(1, dim=1)]

    def experts_met(self) -> float:
        """Count how many experts per layer a step reads, by the router's decisions: the mean over steps and layers."""
        self.prepare()
        K = self.model.config.num_experts_per_tok
        logits = [layer for out in self._steps(output_router_logits=True) for layer in out.router_logits]  # (B, E) each
        return sum(layer.topk(K).indices.unique().numel() for layer in logits) / len(logits)


class TrainingStep:
    """The work of a training task on one model.

    It is plain gradient descent with a learning rate of 0. A step costs as much as with any other rate, and every round
    starts from the same weights.
    """

    def __init__(self, model: nn.Module, task: Task):
        self.model, self.ids = model, random_ids(model, task.batch, task.tokens)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def prepare(self) -> None:
        self.model.train()

    def run(self) -> None:
        self.model(self.ids, labels=self.ids, use_cache=False, output_router_logits=True).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def work_on(model: nn.Module, task: Task) -> Prefill | Decode | TrainingStep:
    """Return a task's work on a causal model of this package or of transformers."""
    return {"prefill": Prefill, "decode": Decode, "train": TrainingStep}[task.kind](model, task)


def random_ids(model: nn.Module, batch: int, tokens: int) -> Tensor:
    """Return token ids (batch, tokens), the same at each call."""
    generator = torch.Generator("cpu").manual_seed(tokens)
    ids = torch.randint(_FIRST_ID, model.config.vocab_size, (batch, tokens), generator=generator, device="cpu")
    return ids.to(model.device)


def repeat_rows(cache: Any, times: int) -> None:
    """Turn the cache of one text into the cache of `times` equal texts, in place."""
    if not isinstance(cache, RollingKVCache):
        cache.batch_repeat_interleave(times)
        return
    cache.keys = [keys.repeat(times, 1, 1, 1) for keys in cache.keys]
    cache.values = [values.repeat(times, 1, 1, 1) for values in cache.values]
    cache.positions, cache.next_position = cache.positions.repeat(times, 1), cache.next_position.repeat(times)


def bytes_read(model: MixtralForCausalLM, task: Task, experts_met: float) -> float:
    """Return the bytes that a decoding step must read, on average over `STEPS` steps.

    It reads B rows of the embedding, all other weights except the experts that no token is routed to, and the keys and
    values that the rows see. Each layer reads `experts_met` of its E experts.
    """
    config, embedding = model.config, model.model.embed_tokens.weight
    experts = sum(_nbytes(layer.block_sparse_moe.experts) for layer in model.model.layers)
    weights = _nbytes(model) - embedding.nbytes - experts * (1 - experts_met / config.num_local_experts)
    seen = [min(task.tokens + step, config.sliding_window or task.tokens + step) for step in range(1, STEPS + 1)]
    numbers_a_key = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    keys_and_values = task.batch * numbers_a_key * sum(seen) / STEPS * embedding.itemsize
    return weights + task.batch * config.hidden_size * embedding.itemsize + keys_and_values


def operations(config: MixtralConfig, task: Task) -> int:
    """Count the multiplications and additions of a prefill or a training step, as matrix products need them.

    There are two per active weight and token; the head's weights count only where scores are computed. There are four
    per number of a head and query-key pair inside the window. The backward pass takes twice as many as the forward.
    """
    counts, B, T = config.parameter_counts(), task.batch, task.tokens
    head = counts.per_part["lm_head"]
    a_token = counts.active - counts.per_part["embedding"] - counts.per_part["norms"] - head
    scored = T if task.kind == "train" else 1
    pairs = sum(min(position + 1, config.sliding_window or T) for position in range(T))
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs
    forward = B * (2 * a_token * T + 2 * head * scored + attention)
    return 3 * forward if task.kind == "train" else forward


def _nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in itertools.chain(module.parameters(), module.buffers()))
