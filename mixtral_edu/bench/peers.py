"""Other systems to compare with: transformers' Mixtral on the same weights, in its fastest setting for each task."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from mixtral_edu.bench.tasks import Decode, Prefill, Task, TrainingStep, work_on
from mixtral_edu.bench.timing import seconds_of

PEERS = ("transformers",)
_EXPERTS = ("eager", "grouped_mm")
_MOST_TOKENS_OF_EAGER = 4096  # eager attention holds T² scores per head several times
_FEWEST_TOKENS_OF_FLEX = 2048  # for shorter texts flex attention gains nothing
_FLEX_SECONDS = 60  # limit for compiling flex attention and running it once
_LONG = 2.0  # seconds after which one trial is enough

# A separate process can be stopped when compiling takes too long. What it compiled stays on disk for the next one.
_TRY_FLEX = """
import sys, torch, transformers
heads, kv_heads, head_dim, window, tokens = map(int, sys.argv[1:])
config = transformers.MixtralConfig(
    vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=heads,
    num_key_value_heads=kv_heads, head_dim=head_dim, sliding_window=window or None,
    attn_implementation="flex_attention",
)
with torch.no_grad():
    transformers.MixtralForCausalLM(config).eval()(torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
"""


class Setting(NamedTuple):
    """How transformers computes attention and experts."""

    attention: str
    experts: str

    def __str__(self) -> str:
        return f"{self.attention}, {self.experts}"


class Transformers:
    """transformers' model of a checkpoint, and its fastest setting for each task.

    The ways to compute experts are tried first. Then the ways to compute attention are tried with the best of them.
    "batched_mm" is never tried: it copies the weights of its experts for each token and can exhaust memory. "eager"
    attention is tried up to 4,096 tokens. "flex_attention" is tried for prefill from 2,048 tokens, if `with_flex` is
    set and if it compiles within a minute. On a CPU it has no backward pass and does not compile for decoding.

    Args:
        folder: the checkpoint.
        device: the device to run on.
        with_flex: whether to try flex attention.

    Attributes:
        tried: for each task, the seconds of each setting's trial.
        left_out: for each task, the settings that were not tried or did not run, and why.
    """

    def __init__(self, folder: Path, device: torch.device, with_flex: bool = True):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.MixtralForCausalLM.from_pretrained(folder).to(device)
        self.device, self.with_flex = device, with_flex
        self.tried: dict[Task, dict[Setting, float]] = {}
        self.left_out: dict[Task, dict[str, str]] = {}
        self._works: dict[Task, Prefill | Decode | TrainingStep] = {}
        self._has_flex: dict[int, str] = {}  # number of tokens: why it does not run, or "" if it does

    def use(self, setting: Setting) -> None:
        """Switch the model to a setting."""
        self.model.set_attn_implementation(setting.attention)
        self.model.set_experts_implementation(setting.experts)

    def fastest(self, task: Task) -> tuple[Prefill | Decode | TrainingStep, Setting] | None:
        """Return this system's work on a task, in its fastest setting, and that setting; None if no setting runs."""
        if task not in self._works:
            self.use(Setting("sdpa", "eager"))  # computes the context of decoding, which all trials share
            self._works[task] = work = work_on(self.model, task)
            self.tried[task], self.left_out[task] = {}, {}
            for experts in _EXPERTS:
                self._try(task, work, Setting("sdpa", experts))
            experts = self._best(task).experts if self.tried[task] else _EXPERTS[0]
            for attention in self._other_attention(task):
                self._try(task, work, Setting(attention, experts))
        if not self.tried[task]:
            return None
        best = self._best(task)
        self.use(best)
        return self._works[task], best

    def _best(self, task: Task) -> Setting:
        return min(self.tried[task], key=self.tried[task].__getitem__)

    def _try(self, task: Task, work: Prefill | Decode | TrainingStep, setting: Setting) -> None:
        """Time one setting: the best of three runs, fewer if they are long. Flex attention compiles in the first."""
        try:
            self.use(setting)
            least, seconds = 2 if setting.attention == "flex_attention" else 1, []
            while len(seconds) < least or len(seconds) < 3 and seconds[-1] < _LONG:
                work.prepare()
                seconds.append(seconds_of(work.run, self.device))
        except (ImportError, RuntimeError, ValueError) as error:  # a kernel refuses these sizes, or memory runs out
            self.left_out[task][str(setting)] = str(error).partition("\n")[0]
        else:
            self.tried[task][setting] = min(seconds)

    def _other_attention(self, task: Task) -> Iterator[str]:
        """Yield the ways to compute attention, besides "sdpa", that are worth a trial."""
        left_out, keys = self.left_out[task], 1 if task.kind == "decode" else task.tokens
        if keys <= _MOST_TOKENS_OF_EAGER:
            yield "eager"
        else:
            left_out["eager"] = f"holds {keys:,}² scores per head"
        if task.kind == "prefill" and task.tokens >= _FEWEST_TOKENS_OF_FLEX and self.device.type == "cpu":
            reason = self._why_no_flex(task.tokens) if self.with_flex else "not tried in a quick run"
            if reason:
                left_out["flex_attention"] = reason
            else:
                yield "flex_attention"
        if self.device.type == "cuda":
            from transformers.utils import is_flash_attn_2_available

            if is_flash_attn_2_available():
                yield "flash_attention_2"
            else:
                left_out["flash_attention_2"] = "the flash-attn package is not installed"

    def _why_no_flex(self, tokens: int) -> str:
        if tokens not in self._has_flex:
            config = self.model.config
            heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
            sizes = map(str, (*heads, config.sliding_window or 0, tokens))
            command = [sys.executable, "-c", _TRY_FLEX, *sizes]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_FLEX_SECONDS)
                self._has_flex[tokens] = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
            except subprocess.TimeoutExpired:
                self._has_flex[tokens] = f"does not compile within {_FLEX_SECONDS} s"
        return self._has_flex[tokens]


def check_peer(name: str | None) -> None:
    """Raise a ValueError unless `name` is None or names an installed peer."""
    if name not in (None, *PEERS):
        raise ValueError(f"against={name!r}: it must be {', '.join(PEERS)} or None")
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(f"against={name!r} is not installed here: pip install {name}")


def largest_difference(model: torch.nn.Module, peer: Transformers) -> float:
    """Return the largest difference between both systems' scores of 64 tokens; NaN if any score is not finite."""
    ids = torch.arange(3, 67, device=peer.device)[None] % model.config.vocab_size
    with torch.no_grad():
        difference = (model(ids, use_cache=False).logits - peer.model(ids, use_cache=False).logits).abs().max().item()
    return difference if math.isfinite(difference) else math.nan
