"""What the README says of the package holds."""

import ast
import json
import re
from pathlib import Path

import pytest

from mixtral_edu import MixtralConfig
from mixtral_edu.bench.machine import file_name
from mixtral_edu.bench.markdown import as_markdown
from mixtral_edu.bench.results import stored_runs
from mixtral_edu.data import bundled_folder
from mixtral_edu.quantization.model import checkpoint_bytes, quantization_of


def order_of(repository: Path) -> list[str]:
    """The modules of the README's table, in its order."""
    table = (
        (repository / "README.md").read_text(encoding="utf-8").partition("## Modules")[2].partition("Shape letters")[0]
    )
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]


def files_of(package: Path, name: str) -> list[Path]:
    """A module's file, or all files of a folder."""
    return [package / f"{name}.py"] if (package / f"{name}.py").exists() else sorted((package / name).rglob("*.py"))


def test_the_table_of_modules_is_complete(repository: Path):
    package = repository / "mixtral_edu"
    listed = [file for name in order_of(repository) for file in files_of(package, name)]
    apart = {file for file in package.rglob("*.py") if file.stem.startswith("__") or package / "data" in file.parents}
    assert sorted(set(listed) - apart) == sorted(set(package.rglob("*.py")) - apart)
    assert len(listed) == len(set(listed)), "each once"


def test_modules_import_only_earlier_ones(repository: Path):
    order, package = order_of(repository), repository / "mixtral_edu"
    listed = {file: place for place, name in enumerate(order) for file in files_of(package, name)}
    for file, place in listed.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mixtral_edu"):
                continue
            for module in {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}:
                used = listed.get(repository / f"{module.replace('.', '/')}.py", -1)
                assert used <= place, f"{file.relative_to(package)} imports {module}, which the README lists after it"


def test_every_link_of_the_readme_leads_somewhere(repository: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", (repository / "README.md").read_text(encoding="utf-8"))
    assert "notebooks/images/quickstart.png" in links
    assert [link for link in links if not (repository / link).is_file()] == []


@pytest.mark.filterwarnings("ignore:.*initialised at random")
def test_the_python_snippets_run(repository: Path, capsys: pytest.CaptureFixture):
    snippets = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("Once upon a time")
    assert names["logits"].shape == (2, 3) and quantization_of(names["model"]).bits == 4


def test_the_figures_of_rounded_weights_are_the_measured_ones(repository: Path):
    rows = []
    for form, name in ((None, "bfloat16"), ("int8", "`int8`"), ("int4", "`int4`")):
        file = "evaluation.json" if form is None else f"evaluation-{form}.json"
        measured = json.loads((bundled_folder("tiny") / file).read_text(encoding="utf-8"))["held_out_bits_per_byte"]
        large, tiny = (checkpoint_bytes(c, form) for c in (MixtralConfig.mixtral_8x7b(), MixtralConfig.tiny()))
        bits = " | ".join(f"{measured[domain]:.3f}" for domain in ("shakespeare", "python", "stories"))
        rows.append(f"| {name} | {large / 1e9:.1f} GB | {tiny / 1e6:.1f} MB | {bits} |")
    assert "\n".join(rows) in (repository / "README.md").read_text(encoding="utf-8")


def section_on_speed(repository: Path) -> str:
    text = (repository / "README.md").read_text(encoding="utf-8").partition("### How fast is it?")[2]
    return text.partition("\n### ")[0]


def test_each_kind_of_processor_has_the_tables_of_its_stored_runs(repository: Path):
    """One for each run that compares one thread with transformers, in the order of the files, and no other."""
    section, folder = section_on_speed(repository), "mixtral_edu/data/results"
    runs = [run for run in stored_runs("cpu") if run.settings["threads"] == 1 and run.settings["against"]]
    shown = [section.find(as_markdown([run])) for run in runs]
    assert -1 not in shown, "print them with: python -m mixtral_edu benchmark --markdown " + ", ".join(
        f"{folder}/{file_name(run.machine['kind'])}" for run, place in zip(runs, shown, strict=True) if place < 0
    )
    assert shown == sorted(shown) and section.count("\n|---") == len(runs) > 0
    for run in runs:
        assert f"({folder}/{file_name(run.machine['kind'])})" in section


def test_the_words_about_speed_are_those_of_the_stored_runs(repository: Path):
    words = " ".join(section_on_speed(repository).split())
    runs = [run for run in stored_runs("cpu") if run.machine["kind"] == "AVX2"]
    results = [r for run in runs if run.settings["threads"] == 1 and run.settings["dtype"] == "float32"
               for r in run.results]  # fmt: skip
    float_rows = {
        bits: [r.ratio.median for r in results if "decode" in r.task and r.variant == f"int{bits} float32"]
        for bits in (8, 4)
    }
    eight, four = (f"from {min(found):.2f} to {max(found):.2f} in {bits}" for bits, found in float_rows.items())
    assert f"{eight} bits, {four}" in words
    in_table = {"plain float32", "packed float32", "compiled float32", "int8 bfloat16", "int4 bfloat16"}
    slower = {(r.task, r.variant) for r in results if r.variant in in_table and r.ratio.median < 1}
    assert slower == {("prefill-512", "int8 bfloat16"), ("prefill-512", "int4 bfloat16")}
