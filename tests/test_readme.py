"""What the README says of the package holds."""

import ast
import json
import re
from pathlib import Path
from statistics import median

import pytest

from mixtral_edu import MixtralConfig
from mixtral_edu.bench.results import amount, stored_runs
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


def test_the_table_of_speeds_is_the_stored_run(repository: Path):
    run = stored_runs("cpu")[0]
    assert run.settings["threads"] == 1 and run.settings["dtype"] == "float32"
    results = {(result.task, result.variant): result for result in run.results}
    section = (repository / "README.md").read_text(encoding="utf-8").partition("### How fast is it?")[2]
    section = section.partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| `" in line]
    assert [row[0].strip("`") for row in rows] == [
        task for task in dict.fromkeys(task for task, _ in results) if task != "loading"
    ]
    forms = ("plain float32", "packed float32", "compiled float32", "int8 bfloat16", "int4 bfloat16")
    for name, *cells, least, share in rows:
        task = name.strip("`")
        found = [results.get((task, form)) for form in forms]
        assert cells == ["" if result is None else f"{result.ratio.median:.2f}" for result in found], task
        best = min((result for result in found[:3] if result), key=lambda result: median(result.ours))
        assert (least, share) == (amount(median(best.ours)), f"{best.share_of_floor:.0%}"), task
    words, memory = " ".join(section.split()), results["loading", "memory to load"]
    decoding = [r for r in results.values() if "decode" in r.task]
    float_rows = {bits: [r.ratio.median for r in decoding if r.variant == f"int{bits} float32"] for bits in (8, 4)}
    eight, four = (f"from {min(found):.2f} to {max(found):.2f} in {bits}" for bits, found in float_rows.items())
    assert f"{eight} bits, {four}" in words
    (half,) = (run for run in stored_runs("cpu") if run.settings["dtype"] == "bfloat16" and run.settings["against"])
    ratios = {result.task: result.ratio.median for result in half.results if result.variant == "plain bfloat16"}
    prefills = {result.variant: result.ratio.median for result in half.results if result.task == "prefill-512"}
    eight, four = (prefills[f"int{bits} bfloat16"] / prefills["packed bfloat16"] for bits in (8, 4))
    assert f"8 bits come to {eight:.2f} and 4 bits to {four:.2f}" in words
    assert f"prefill of 512 tokens takes transformers {ratios['prefill-512']:.2f} times as long" in words
    single = f"one of a single row {ratios['decode-1-64']:.2f} times"
    assert f"a step of 8 rows {ratios['decode-8-64']:.2f} times, {single}" in words
    assert f"Loading is {results['loading', 'load'].ratio.median:.2f} times as fast" in words
    assert f"transformers takes {memory.ratio.median:.2f} times the memory" in words
    assert f"the weights and {amount(median(memory.ours) - memory.floor, 'bytes')}" in words
