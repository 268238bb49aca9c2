"""Write the README.md of each bundled checkpoint from its stored measurements.

python -m mixtral_edu evaluate tiny --json mixtral_edu/data/tiny/evaluation.json
python -m mixtral_edu evaluate tiny --quantization int4 --json mixtral_edu/data/tiny/evaluation-int4.json
python tools/write_model_cards.py              write all cards
python tools/write_model_cards.py --check      change nothing; exit 1 if a card is out of date
"""

import argparse
import json
import sys
from pathlib import Path

from safetensors import safe_open

from mixtral_edu import MixtralConfig
from mixtral_edu.data import BUNDLED, bundled_folder
from mixtral_edu.quantization.model import checkpoint_bytes
from mixtral_edu.training.corpus import DOMAINS, PROBES, SOURCES
from mixtral_edu.training.recipes import RECIPES

PURPOSE = {
    "tiny": "continues plain text in several domains. It was also trained on conversations, but answers badly.",
    "tiny-instruct": "answers in the instruct format: a story on request, or a small fact.",
}
GENERATED = {
    "arithmetic": "pages of small sums, written by a seeded generator of this package",
    "stories": "children's stories, written by a seeded generator of this package",
    "chat": "conversations, written by a seeded generator of this package",
}
HELD_OUT = {
    "shakespeare": "four works: *Twelfth Night*, *Macbeth*, *Richard II*, *A Lover's Complaint*",
    "python": "files chosen by a hash of their path",
    "spanish": "three books: Ruth, 1 Samuel, Mark",
    "jargon": "entries chosen by a hash of the headword; `tiny` is trained on the other entries",
    "arithmetic": "pages of a seed that training never uses",
    "stories": "stories about combinations of animal, colour and object that training never uses",
    "chat": "conversations about such combinations; questions count too, though tiny-instruct never learned them",
    "english_bible": "another work, the Bible in Basic English: plain English prose that training never saw",
    "python_docs": "another work, Python's help topics: English about code",
}
LIMITS = {
    "tiny": """\
* It was trained on {tokens:.0f} million tokens; large models are trained on trillions. Its stories are fluent and
  simple. Its verse, code, Spanish and prose have the right texture but make no sense.
* What it says about the world is not knowledge, and it does not follow requests. Use it to learn how such models work.
* The texts are of their time: the Bible, Shakespeare, and the humour of programmers of the 1980s and 1990s.""",
    "tiny-instruct": """\
* It knows the words, plots and facts of its generators and nothing else, as the bits per byte on other text show. It
  answers other requests with something that sounds similar and is wrong.
* It has memorised capitals, opposites and number words. Sums up to 20 + 20 are also right for most pairs that training
  left out ({unseen_sums_right} of {unseen_sums} above). It has never seen larger sums.
* Its stories are built from a limited set of sentences.""",
}


def card(name: str) -> str:
    """Return the text of one card."""
    folder = bundled_folder(name)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    measured = evaluation(folder, "evaluation.json")
    rounded = {form: evaluation(folder, f"evaluation-{form}.json") for form in ("int8", "int4")}
    counts = MixtralConfig.from_pretrained(folder).parameter_counts()
    sections = [
        f"# {name}",
        f"A Mixtral of {counts.total:,} parameters ({counts.active:,} per token) that {PURPOSE[name]}",
        sizes(folder),
        "## What it does",
        bits(name, measured["held_out_bits_per_byte"]),
        answers(measured["behaviour"]),
        in_fewer_bits(folder, measured, rounded),
        load(measured["expert_load"]),
        "## Data",
        data(name, training["python"]),
        "## Training",
        how(name, training),
        "## Limits",
        LIMITS[name].format(tokens=training["tokens"] / 1e6, **measured["behaviour"]),
        "The weights are under the package's licence, Apache-2.0.",
    ]
    return "\n\n".join(sections) + "\n"


def evaluation(folder: Path, file: str) -> dict:
    return json.loads((folder / file).read_text(encoding="utf-8"))


def table(*rows: tuple) -> str:
    """Return rows as a Markdown table, with the first row as its header."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def sizes(folder: Path) -> str:
    config, weights = MixtralConfig.from_pretrained(folder), folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        dtype = file.get_slice("lm_head.weight").get_dtype()
    return table(
        ("size", ""),
        ("layers", config.num_hidden_layers),
        ("hidden size", f"{config.hidden_size}; {config.intermediate_size} in each expert"),
        ("heads", f"{config.num_attention_heads} for queries, {config.num_key_value_heads} for keys and values"),
        ("experts", f"{config.num_local_experts}, of which {config.num_experts_per_tok} work on each token"),
        ("window", f"{config.sliding_window} tokens"),
        ("vocabulary", f"{config.vocab_size:,} pieces, byte fallback"),
        ("weights", f"{dtype}, {weights.stat().st_size / 1e6:.1f} MB"),
    )


def bits(name: str, measured: dict[str, float]) -> str:
    trained = RECIPES[name].domains
    rows = [("domain", "bits per byte", "held-out documents")]
    for domain in sorted(measured, key=lambda domain: domain not in trained):
        note = "" if domain in trained else " (never trained on)"
        rows.append((domain + note, f"{measured[domain]:.2f}", HELD_OUT[domain]))
    return (
        "Bits per byte on documents that training never saw: the storage that a byte of text needs with the model's\n"
        "help. Lower is better; without any prediction, a byte needs 8.\n\n" + table(*rows)
    )


def answers(measured: dict[str, int]) -> str:
    stories, facts, sums = measured["stories"], measured["facts"], measured["unseen_sums"]
    naming, keeping = measured["stories_naming_all"], measured["stories_keeping_hero"]
    return (
        "Asked in the instruct format, with greedy decoding:\n\n"
        f"* Of {stories} stories on request, about combinations that training never uses, {naming}\n"
        f"  name the requested animal, colour and object, and {keeping} keep their hero's name.\n"
        f"* Of {facts} small facts (sums, capitals, opposites, number words; all were in training),\n"
        f"  {measured['facts_right']} are right.\n"
        f"* Of {sums} sums that training left out, {measured['unseen_sums_right']} are right."
    )


def in_fewer_bits(folder: Path, measured: dict, rounded: dict[str, dict]) -> str:
    config = MixtralConfig.from_pretrained(folder)
    forms = {"16 bits": (None, measured), **{f"`{form}`": (form, figures) for form, figures in rounded.items()}}
    rows = [("bits per byte", *forms)]
    for domain in measured["held_out_bits_per_byte"]:
        rows.append((domain, *(f"{figures['held_out_bits_per_byte'][domain]:.3f}" for _, figures in forms.values())))
    for key, name in (("stories_keeping_hero", "stories that keep their hero"), ("facts_right", "facts right")):
        rows.append((name, *(figures["behaviour"][key] for _, figures in forms.values())))
    rows.append(("weights", *(f"{checkpoint_bytes(config, form) / 1e6:.1f} MB" for form, _ in forms.values())))
    return (
        'With `from_pretrained(..., quantization="int8")` or `"int4"`, the weights of attention and experts are\n'
        "rounded to 8 bits, or to 4 bits in groups of 64, with scales in bfloat16. Measured in float32:\n\n"
        + table(*rows)
    )


def load(measured: dict) -> str:
    return (
        f"Over all layers, the least used expert gets {measured['least']:.1%} of the choices and the most used one\n"
        f"{measured['most']:.1%}. With eight experts, perfect balance is 12.5%."
    )


def data(name: str, python_version: str) -> str:
    recipe = RECIPES[name]
    rows = [("domain", "share of rows", "text", "licence", "sha256")]
    for domain in recipe.domains:
        share = ", then ".join(f"{shares[domain]:.0%}" for shares in recipe.stages.values())
        text, licence, sha256 = origin(domain, python_version)
        rows.append((domain, share, text, licence, sha256))
    probes = ((probe, *origin(probe, python_version)) for probe in PROBES)
    read = "; ".join(f"{probe}: {text} ({licence}, sha256 {sha256})" for probe, text, licence, sha256 in probes)
    return (
        table(*rows) + f"\n\nUsed for evaluation, never for training: {read}.\n\nThe tokenizer was trained on a sample "
        f"of all {len(DOMAINS)} domains of the corpus.\nThis package stores no source text."
    )


def origin(domain: str, python_version: str) -> tuple[str, str, str]:
    """Return a domain's source, licence and sha256."""
    if domain not in SOURCES:
        return GENERATED[domain], "Apache-2.0", "generated"
    source = SOURCES[domain]
    if source.file is None:
        return f"{source.package} of Python {python_version}", source.licence, "part of Python"
    return f"`{source.how}`", source.licence, f"`{source.sha256}`"


def how(name: str, training: dict) -> str:
    recipe, threads = RECIPES[name], training["threads"]
    settings, rows, tokens = (
        recipe.training,
        f"{recipe.batch_size} rows of {recipe.sequence_length}",
        training["tokens"],
    )
    rate, decay, norm = settings.learning_rate, settings.weight_decay, settings.clip_norm
    downloads = any(domain in SOURCES for domain in recipe.domains)
    train = f"python -m mixtral_edu train --recipe {name} --out FOLDER --threads {threads}"
    evaluate = "python -m mixtral_edu evaluate FOLDER"
    if not downloads:
        train, evaluate = f"{train} --tokenizer tiny", f"{evaluate} --domains {' '.join(recipe.domains)}"
    facts = [
        f"{training['steps']:,} steps of {rows} tokens, {tokens / 1e6:.1f} million tokens in all",
        *(f"new shares of the domains from step {first:,}" for first in recipe.stages if first),
        f"AdamW, betas {settings.betas}, weight decay {decay}, gradient norm clipped to {norm:g}",
        f"warm-up to a learning rate of {rate:g} in {settings.warmup_steps} steps, then a cosine down to a tenth of it",
        *(f"warm-up and cosine restart at step {first:,}" for first in settings.restarts),
        f"load-balancing loss of each layer, times {settings.aux_loss_coef:g}",
        "matrix products in bfloat16" + ("; loss only on the answers" if recipe.answers_only else ""),
        f"seed {recipe.seed}; {training['seconds'] / 60:.0f} minutes on {threads} thread of {training['processor']}",
        *(f"interrupted and resumed at step {step:,}" for step in training["resumed_at"]),
        f"finished on {training['date']} with torch {training['torch']} and Python {training['python']}",
    ]
    note = "" if downloads else "This needs no network: it uses the tokenizer that was trained for `tiny`.\n\n"
    return f"```\n{train}\n{evaluate}\n```\n\n{note}" + "\n".join(f"* {fact}" for fact in facts)


def main(argv: list[str]) -> int:
    """Write or check all cards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a card is out of date")
    check = parser.parse_args(argv).check
    stale = 0
    for name in BUNDLED:
        path: Path = bundled_folder(name) / "README.md"
        text = card(name)
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            print(f"{path} is out of date")
            stale += 1
        elif not check:
            path.write_text(text, encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
