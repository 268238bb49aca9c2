"""Lesson 10's measurements: one short run, repeated with one part changed at a time.

    python -m mixtral_edu.training.ablation RESULTS.json

An ablation takes one part away and keeps the rest. Each run trains lesson 10's small model on generated stories and
writes what it ends with. All runs together take about half an hour on one core; the command continues an older file.
"""

import argparse
import json
import math
import platform
import statistics
from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path

import torch

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.text.tokenizer import MixtralTokenizer
from mixtral_edu.training.corpus import held_out_stories
from mixtral_edu.training.recipes import Mixture, Recipe, processor_name
from mixtral_edu.training.trainer import Trainer, TrainingConfig, token_bits

ROWS, LENGTH, STEPS, PEAK = 4, 192, 240, 6e-3  # of the run "as it is"
HELD_OUT = 20  # stories
STORED = Path(__file__).parents[1] / "data" / "results" / "training_ablations.json"

SETTINGS: dict[str, dict] = {  # what `plan` changes
    "as it is": {},
    "no warm-up": {"warmup_steps": 0},
    "no clipping": {"clip_norm": math.inf},
    "neither": {"warmup_steps": 0, "clip_norm": math.inf},
    "clipped at 3": {"clip_norm": 3.0},
    "clipped at 0.1": {"clip_norm": 0.1},
    "constant rate": {"constant": True},
    "no weight decay": {"weight_decay": 0.0},
    "decay on norms too": {"decay_norms": True},
    "α = 0": {"aux_loss_coef": 0.0},
    "α = 1": {"aux_loss_coef": 1.0},
    "two experts": {"experts": 2},
    "SGD": {"sgd": True},
}


class ConstantRate(TrainingConfig):
    """A training config without decay: after the warm-up the learning rate stays at its peak."""

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


def plan(seed: int = 0, *, rows: int = ROWS, experts: int = 8, constant: bool = False, **training) -> Recipe:
    """Return the recipe of one run: lesson 10's model and plan, with some of it changed.

    Args:
        seed: decides on the random weights and on the stories.
        rows: rows per batch.
        experts: experts per layer; each token uses two.
        constant: keep the learning rate at its peak after the warm-up.
        training: fields of `TrainingConfig` that differ.
    """
    config = MixtralConfig.tiny(
        hidden_size=96,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        sliding_window=64,
        attn_implementation="eager",
        experts_implementation="grouped",
    )
    usual = {"steps": STEPS, "learning_rate": PEAK, "warmup_steps": 20, "mixed_precision": False}
    kind = ConstantRate if constant else TrainingConfig
    return Recipe(config, {0: {"stories": 1.0}}, kind(**usual | training), rows, LENGTH, seed=seed)


def trainer_for(recipe: Recipe, tokenizer: MixtralTokenizer, sgd: bool = False, decay_norms: bool = False) -> Trainer:
    """Return a trainer of a new model.

    With `sgd`, plain gradient steps with momentum take AdamW's place; with `decay_norms`, weight decay acts on the
    scales of the norms as well.
    """
    torch.manual_seed(recipe.seed)
    trainer = Trainer(MixtralForCausalLM(recipe.config), Mixture(tokenizer, recipe), recipe.training)
    if decay_norms:
        trainer.optimizer.param_groups[1]["weight_decay"] = recipe.training.weight_decay
    if sgd:
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=recipe.training.learning_rate, momentum=0.9)
    return trainer


def held_out_loss(model: MixtralForCausalLM, tokenizer: MixtralTokenizer) -> float:
    """Return the loss, in nats per token, on stories about combinations that training never uses."""
    bits = [token_bits(model, tokenizer.encode(story)) for story in islice(held_out_stories(), HELD_OUT)]
    return torch.cat(bits).mean().item() * math.log(2)


def stored_results() -> dict:
    """Return the results that the package brings: `runs`, as `measure` returns them, and where they were measured."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def measure(setting: str, seed: int, tokenizer: MixtralTokenizer, **changes) -> dict:
    """Run one setting from one seed and return what it ends with."""
    options = SETTINGS[setting] | changes
    optimizer = {name: options.pop(name) for name in ("sgd", "decay_norms") if name in options}
    recipe = plan(seed, **options)
    trainer = trainer_for(recipe, tokenizer, **optimizer)
    norms: list[float] = []  # of the gradient, after clipping
    loads: list[list[float]] = []  # one per layer and step

    def note_norm(*_) -> None:
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    def note_load(router, x, routing) -> None:
        chosen = routing.experts.flatten().bincount(minlength=recipe.config.num_local_experts)
        loads.append((chosen / len(routing.experts)).tolist())

    trainer.optimizer.register_step_pre_hook(note_norm)
    hooks = [layer.block_sparse_moe.gate.register_forward_hook(note_load) for layer in trainer.model.model.layers]
    history = trainer.train(progress=False)
    for hook in hooks:
        hook.remove()

    losses = [entry["loss"] for entry in history]
    tens = [losses[start : start + 10] for start in range(0, len(losses), 10)]
    last_loads = torch.tensor(loads, device="cpu").view(len(losses), len(hooks), -1)[-10:].mean(dim=0)
    return {
        "setting": setting,
        "seed": seed,
        "peak": recipe.training.learning_rate,
        "rows": recipe.batch_size,
        "steps": recipe.training.steps,
        "held_out": round(held_out_loss(trainer.model, tokenizer), 4),
        "losses": [round(statistics.mean(ten), 3) for ten in tens],  # means of ten steps
        "clipped": round(sum(norm > 0.999 * recipe.training.clip_norm for norm in norms) / len(norms), 3),
        "balance": round(statistics.mean(entry["aux_loss"] for entry in history[-10:]), 3),
        "loads": [[round(load, 3) for load in layer] for layer in last_loads.tolist()],  # (L, E), last ten steps
    }


def runs() -> Iterator[tuple[str, int, dict]]:
    """Yield setting, seed and changes of every run, the most important first."""
    for seed in range(3):
        for setting in SETTINGS:
            if setting != "SGD":
                yield setting, seed, {}
    for seed in (3, 4):
        for setting in ("as it is", "α = 0", "two experts"):
            yield setting, seed, {}
    for seed in range(2):
        for peak in (PEAK / 2, PEAK * 2):
            for setting in ("as it is", "no warm-up", "no clipping", "neither"):
                yield setting, seed, {"learning_rate": peak}
        for rows, peak in ((2, PEAK), (8, PEAK), (16, PEAK), (16, PEAK * 2)):  # the same number of tokens in all
            yield "as it is", seed, {"rows": rows, "steps": ROWS * STEPS // rows, "learning_rate": peak}
        for setting in ("as it is", "two experts"):
            yield setting, seed, {"steps": 2 * STEPS}
    for peak in (0.1, 0.3, 1.0):
        yield "SGD", 0, {"learning_rate": peak}


def main(argv: list[str] | None = None) -> None:
    """Run what the file does not hold yet, and write it after each run."""
    parser = argparse.ArgumentParser(prog="python -m mixtral_edu.training.ablation", description=__doc__)
    parser.add_argument("file", type=Path, help="the JSON file to write, or to continue")
    file = parser.parse_args(argv).file
    torch.set_num_threads(1)
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    results = {
        "what": "lesson 10's small model after one short training run, with one part changed at a time",
        "command": "python -m mixtral_edu.training.ablation",
        "measured": date.today().isoformat(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "runs": [],
    }
    if file.exists():
        results["runs"] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    done = {(run["setting"], run["seed"], run["peak"], run["rows"], run["steps"]) for run in results["runs"]}
    for setting, seed, changes in runs():
        peak, rows = changes.get("learning_rate", PEAK), changes.get("rows", ROWS)
        if (setting, seed, peak, rows, changes.get("steps", STEPS)) in done:
            continue
        run = measure(setting, seed, tokenizer, **changes)
        results["runs"].append(run)
        print(f"{setting}, seed {seed}, {changes}: {run['held_out']:.2f} nats on held-out stories", flush=True)
        head = json.dumps({key: value for key, value in results.items() if key != "runs"}, indent=1, ensure_ascii=False)
        rows = ",\n".join("  " + json.dumps(run, ensure_ascii=False) for run in results["runs"])
        file.write_text(f'{head[:-2]},\n "runs": [\n{rows}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
