"""How the bundled checkpoints were trained: on what, for how long, and the function that repeats it."""

import json
import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.folders import TOKENIZER_FILE
from mixtral_edu.checkpoints.memory import choose_device
from mixtral_edu.heads import IGNORED_LABEL
from mixtral_edu.model import Decoder
from mixtral_edu.text.tokenizer import MixtralTokenizer, train_tokenizer
from mixtral_edu.training.corpus import DOMAINS, arithmetic, chats, load_documents, stories
from mixtral_edu.training.trainer import Trainer, TrainingConfig

GENERATORS: dict[str, Callable[[int], Iterator]] = {"arithmetic": arithmetic, "stories": stories, "chat": chats}
_TOKENIZER_BYTES = 1_000_000  # per domain


@dataclass(frozen=True)
class Recipe:
    """A model and its training.

    `stages` maps the first step of each stage to the share of rows that each domain gets. `answers_only` counts only
    the assistant's words of a chat in the loss.
    """

    config: MixtralConfig
    stages: dict[int, dict[str, float]]
    training: TrainingConfig
    batch_size: int = 16
    sequence_length: int = 256
    answers_only: bool = False
    seed: int = 0

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of all stages."""
        return tuple(dict.fromkeys(domain for shares in self.stages.values() for domain in shares))

    def shares_at(self, step: int) -> dict[str, float]:
        """The share of rows that each domain gets at this step."""
        return self.stages[max(first for first in self.stages if first <= step)]


def _shares(**percent: int) -> dict[str, float]:
    return {domain: share / 100 for domain, share in percent.items()}


# Eager attention in bfloat16 trains faster on a CPU than a fused kernel with a mask. A model learns to copy (a hero's
# name, say) from texts that repeat their names, so the later stages of "tiny" hold more of those.
RECIPES = {
    "tiny": Recipe(
        config=MixtralConfig.tiny(attn_implementation="eager"),
        stages={
            0: _shares(shakespeare=20, python=17, spanish=12, jargon=15, arithmetic=8, stories=18, chat=10),
            1800: _shares(shakespeare=10, python=9, spanish=6, jargon=7, arithmetic=4, stories=44, chat=20),
            3000: _shares(shakespeare=8, python=7, spanish=5, jargon=6, arithmetic=4, stories=50, chat=20),
        },
        training=TrainingConfig(steps=4400, restarts=(3000,)),
    ),
    "tiny-instruct": Recipe(
        config=MixtralConfig.tiny(
            hidden_size=128, intermediate_size=192, num_attention_heads=4, attn_implementation="eager"
        ),
        stages={0: _shares(chat=85, stories=15)},
        training=TrainingConfig(steps=3000),
        answers_only=True,
    ),
}


class Mixture:
    """Rows of several domains. Each step draws its own rows from its own seed.

    Every row is full and starts with `<s>`. It holds a random stretch of a source's text, or generated documents, each
    between `<s>` and `</s>`, the last one cut off. Call it with a step to get `input_ids` and `labels` (B, T).

    Args:
        tokenizer: encodes the documents.
        recipe: sets domains, sizes and seed.
        cache: the folder of downloaded sources; None for the default of `mixtral_edu.training.corpus`.
    """

    def __init__(self, tokenizer: MixtralTokenizer, recipe: Recipe, cache: Path | None = None):
        self.tokenizer, self.recipe = tokenizer, recipe
        self._texts = {
            domain: self._joined(load_documents(domain, "train", cache))
            for domain in recipe.domains
            if domain not in GENERATORS
        }

    def _joined(self, documents: list[str]) -> Tensor:
        return torch.cat([torch.tensor(self.tokenizer.encode(text), device="cpu") for text in documents])

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        recipe, rng = self.recipe, random.Random(f"{self.recipe.seed}/{step}")
        shares = recipe.shares_at(step)
        domains = rng.choices(list(shares), list(shares.values()), k=recipe.batch_size)
        rows = [self._from_source(d, rng) if d in self._texts else self._from_generator(d, rng) for d in domains]
        input_ids, labels = zip(*rows, strict=True)
        return torch.stack(input_ids), torch.stack(labels)

    def _from_source(self, domain: str, rng: random.Random) -> tuple[Tensor, Tensor]:
        tokens, T = self._texts[domain], self.recipe.sequence_length
        start = rng.randrange(len(tokens) - T)
        row = tokens[start : start + T].clone()
        row[0] = self.tokenizer.bos_token_id
        return row, row

    def _from_generator(self, domain: str, rng: random.Random) -> tuple[Tensor, Tensor]:
        ids, learned = [], []
        for document in GENERATORS[domain](rng.getrandbits(32)):
            if isinstance(document, str):
                new = [*self.tokenizer.encode(document), self.tokenizer.eos_token_id]
                mask = [True] * len(new)
            else:
                new, mask = self.tokenizer.encode_chat(document)
            ids += new
            learned += mask if self.recipe.answers_only else [True] * len(new)
            if len(ids) >= self.recipe.sequence_length:
                break
        row = torch.tensor(ids[: self.recipe.sequence_length], device="cpu")
        return row, row.masked_fill(~torch.tensor(learned[: len(row)], device="cpu"), IGNORED_LABEL)


def make_tokenizer(path: Path, vocab_size: int, cache: Path | None = None) -> MixtralTokenizer:
    """Train the tokenizer of the bundled models on a sample of all domains. The same sources give the same bytes."""
    sample = []
    for domain in DOMAINS:
        documents = load_documents(domain, "train", cache)
        random.Random(domain).shuffle(documents)
        room = _TOKENIZER_BYTES
        for text in documents:
            sample.append(text[: min(room, 50_000)])
            room -= len(sample[-1])
            if room <= 0:
                break
    return train_tokenizer(sample, path, vocab_size)


def initial_model(recipe: Recipe) -> MixtralForCausalLM:
    """Return a recipe's model as it is before training, drawn from its seed.

    When the recorded runs were made, a model drew its weights three times and kept the last ones. The first two draws
    are made here, so that these runs can be had again.
    """
    torch.manual_seed(recipe.seed)
    Decoder(recipe.config), nn.Linear(recipe.config.hidden_size, recipe.config.vocab_size, bias=False)
    return MixtralForCausalLM(recipe.config)


def train_recipe(
    name: str,
    out: Path,
    *,
    steps: int | None = None,
    tokenizer: str | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    save_every: int = 100,
) -> None:
    """Train a recipe and write a checkpoint folder: weights in bfloat16, tokenizer, `training.json`.

    Args:
        name: "tiny" or "tiny-instruct".
        out: a new or empty folder; or one with the `training.pt` of an interrupted run, which then resumes.
        steps: the number of steps; None for the recipe's.
        tokenizer: a name, folder or file. None trains one on all domains, which downloads their sources.
        cache: the folder of downloaded sources.
        device: the device to train on.
        save_every: write `training.pt` every `save_every` steps.

    Raises:
        ValueError: the recipe or the device does not exist, the tokenizer does not fit the recipe, or `out` is or holds
            the working folder.
        FileExistsError: `out` is a file, or holds something other than a run.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe={name!r}: it must be one of {sorted(RECIPES)}")
    recipe, device = RECIPES[name], choose_device(device)
    if steps is not None:
        recipe = replace(recipe, training=replace(recipe.training, steps=steps))
    out = out.expanduser().resolve()
    state = out / "training.pt"
    if out == Path.cwd() or out in Path.cwd().parents:
        raise ValueError(f"out={str(out)!r} holds the current working folder: name a folder inside it")
    if out.is_file():
        raise FileExistsError(f"out={str(out)!r} is a file: name a new folder")
    begun = {TOKENIZER_FILE, TOKENIZER_FILE + ".partial", state.name + ".partial"}  # what a run that stopped early left
    if out.exists() and not state.exists() and {path.name for path in out.iterdir()} - begun:
        raise FileExistsError(f"out={str(out)!r} has content but no training.pt to resume from: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = _tokenizer_in(out, recipe, tokenizer, cache)

    model = initial_model(recipe).to(device)
    trainer = Trainer(model, Mixture(vocabulary, recipe, cache), recipe.training, name)
    if state.exists():
        trainer.load(state)
        print(f"resuming from step {trainer.step} of {recipe.training.steps}")

    def save_now_and_then(trainer: Trainer) -> None:
        if trainer.step % save_every == 0:
            trainer.save(state)

    trainer.train(after_step=save_now_and_then)
    trainer.save(state)
    model.to(torch.bfloat16).save_pretrained(out, overwrite=True)
    log = {
        "recipe": name,
        "steps": trainer.step,
        "tokens": trainer.step * recipe.batch_size * recipe.sequence_length,
        "seconds": round(sum(entry["seconds"] for entry in trainer.history)),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "resumed_at": trainer.resumed_at,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "history": trainer.history[::20],
    }
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def _tokenizer_in(out: Path, recipe: Recipe, wanted: str | None, cache: Path | None) -> MixtralTokenizer:
    """Return the tokenizer of a run: the one in its folder if there is one, else the one asked for, else a new one."""
    path = out / TOKENIZER_FILE
    asked_for = None if wanted is None else MixtralTokenizer.from_pretrained(wanted)
    if path.exists():
        tokenizer = MixtralTokenizer(path)
        if asked_for is not None and _content(asked_for) != _content(tokenizer):
            raise ValueError(
                f"tokenizer={wanted!r} is not the one that the run in {str(out)!r} began with: "
                "leave the option out to resume, or name a new folder"
            )
    else:
        tokenizer = asked_for or make_tokenizer(path, recipe.config.vocab_size, cache)
    if len(tokenizer) != recipe.config.vocab_size:
        raise ValueError(
            f"tokenizer={wanted or str(path)!r} has {len(tokenizer)} pieces; it must have {recipe.config.vocab_size}"
        )
    if not path.exists():
        tokenizer.save_pretrained(out)
    return tokenizer


def _content(tokenizer: MixtralTokenizer) -> bytes:
    return tokenizer.processor.serialized_model_proto()


def processor_name() -> str:
    """Return the processor's name as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
