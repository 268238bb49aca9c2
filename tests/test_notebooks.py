"""Every stored notebook is what a fresh run of it gives, in a form in which that can be checked.

nbval runs the cells and compares texts. The rules here close its holes: cells that it would not compare, figures, which
it never does, and whatever a machine or an editor leaves in a file.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from refresh_notebooks import (
    IGNORED,
    METADATA,
    as_text,
    code_cells,
    find_notebooks,
    normalised,
    read,
    reading_minutes,
    tags,
)

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = find_notebooks([REPOSITORY / "notebooks"])
RAISES = "raises-exception"
UNWANTED_TAGS = ("nbval-skip", "nbval-raises-exception")
PIXEL = (  # a PNG of one pixel with a palette
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABAQMAAAAl21bKAAAAA1BMVEUAAACnej3aAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def was_run_from_top_to_bottom(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]  # a cell without code has none
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def stores_its_outputs(notebook: NotebookNode) -> list[str]:
    return [] if any(cell.outputs for cell in code_cells(notebook)) else ["no cell has an output"]


def tags_the_cells_that_raise(notebook: NotebookNode) -> list[str]:
    problems = []
    for number, cell in enumerate(code_cells(notebook)):
        raised = any(output.output_type == "error" for output in cell.outputs)
        if raised and RAISES not in tags(cell):
            problems.append(f"code cell {number} raised and is not tagged {RAISES}")
        if RAISES in tags(cell) and not raised:
            problems.append(f"code cell {number} is tagged {RAISES} and did not raise")
    return problems


def compares_most_cells(notebook: NotebookNode) -> list[str]:
    cells = code_cells(notebook)
    ignored = sum(IGNORED in tags(cell) for cell in cells)
    problems = [f"{ignored} of {len(cells)} code cells are not compared"] if 5 * ignored > len(cells) else []
    for number, cell in enumerate(cells):
        problems += [f"code cell {number} is tagged {tag}" for tag in tags(cell) if tag in UNWANTED_TAGS]
        if re.search(r"^\s*#+\s*(NBVAL|PYTEST_VALIDATE)_", cell.source, re.MULTILINE):
            problems.append(f"code cell {number} speaks to nbval in a comment; it must be a tag")
    return problems


def says_figures_in_numbers(notebook: NotebookNode) -> list[str]:
    problems = []
    cells = code_cells(notebook)
    for number, cell in enumerate(cells):
        if not any(is_figure(output) for output in cell.outputs):
            continue
        if "plt.show()" not in map(str.strip, cell.source.splitlines()):
            problems.append(f"code cell {number} draws a figure without plt.show()")
        if any(output.output_type == "execute_result" for output in cell.outputs):
            problems.append(f"code cell {number} draws a figure and shows its last value too; end it in plt.show()")
        nearby = [output for near in cells[number : number + 2] if IGNORED not in tags(near) for output in near.outputs]
        if not any(output.output_type == "stream" and re.search(r"\d", output.text) for output in nearby):
            problems.append(f"code cell {number} draws a figure, and no numbers are printed there or in the next cell")
    return problems


def is_figure(output: NotebookNode) -> bool:
    data = output.get("data", {})
    return "image/png" in data and data.get("text/plain", "").startswith("<Figure size")


def is_in_the_refresh_tools_form(notebook: NotebookNode) -> list[str]:
    return [] if notebook == normalised(notebook) else ["metadata, ids or outputs differ from what the tool stores"]


def describes_its_figures(notebook: NotebookNode) -> list[str]:
    problems, texts = [], []
    for number, cell in enumerate(code_cells(notebook)):
        for output in (each for each in cell.outputs if "image/png" in each.get("data", {})):  # widgets' pictures too
            texts.append(output.metadata.get("image/png", {}).get("alt", ""))
            if not texts[-1]:
                problems.append(f"code cell {number} draws a figure without alternative text; see viz.alt.describe")
    if len(set(texts)) < len(texts):
        problems.append("two figures have the same alternative text")
    return problems


def prints_numbers_for_truths(notebook: NotebookNode) -> list[str]:
    problems = []
    for number, cell in enumerate(code_cells(notebook)):
        texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
        if any(re.search(r"(^|[:=] *)(True|False)$", text, re.MULTILINE) for text in texts):
            problems.append(f"code cell {number} shows a truth value as its result; print the number, assert the bound")
    return problems


def asks_before_it_shows(notebook: NotebookNode) -> list[str]:
    asked = [cell for cell in notebook.cells if cell.cell_type == "markdown" and "**Predict" in cell.source]
    folded = [cell for cell in asked if re.search(r"<details>\s*<summary>", cell.source)]
    problems = [] if len(folded) == len(asked) else ["a question marked **Predict** has no folded answer"]
    return problems if len(folded) >= 5 else [*problems, f"{len(folded)} predictions; a lesson has five or more"]


RULES = [
    was_run_from_top_to_bottom,
    stores_its_outputs,
    tags_the_cells_that_raise,
    compares_most_cells,
    says_figures_in_numbers,
    describes_its_figures,
    prints_numbers_for_truths,
    asks_before_it_shows,
    is_in_the_refresh_tools_form,
]


# Notebooks that follow these rules; the others are to come.
FOLLOWING: tuple[str, ...] = (
    "00_quickstart",
    "exercises/00_quickstart",
    "02_rmsnorm_and_rope",
    "exercises/02_rmsnorm_and_rope",
    "03_grouped_query_attention",
    "exercises/03_grouped_query_attention",
    "04_sliding_window_attention",
    "exercises/04_sliding_window_attention",
    "05_rolling_cache",
    "exercises/05_rolling_cache",
    "06_sparse_mixture_of_experts",
    "exercises/06_sparse_mixture_of_experts",
    "08_checkpoints",
    "exercises/08_checkpoints",
    "09_generation",
    "exercises/09_generation",
    "10_training",
    "exercises/10_training",
    "11_what_the_router_learns",
    "exercises/11_what_the_router_learns",
    "12_sequence_classification",
    "exercises/12_sequence_classification",
    "13_quantization",
    "exercises/13_quantization",
    "14_flash_attention_2",
    "exercises/14_flash_attention_2",
    "15_build_your_own",
)
NOT_YET = {
    path for path in NOTEBOOKS if path.relative_to(REPOSITORY / "notebooks").with_suffix("").as_posix() not in FOLLOWING
}
NEW_RULES = (asks_before_it_shows,)  # the others hold everywhere


PREDICTION = "**Predict, then run.** How many?\n\n<details><summary>Answer</summary>\n\nTwo.\n\n</details>"


def name_of(thing: Path | Callable) -> str:
    return thing.stem if isinstance(thing, Path) else thing.__name__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_a_notebook(rule: Callable, path: Path):
    if rule in NEW_RULES and path in NOT_YET:
        pytest.skip("not yet")
    if rule is asks_before_it_shows and path.parent.name == "exercises":
        pytest.skip("exercises ask anyway")
    problems = rule(read(path))
    assert not problems, "\n".join([*problems, f"mend that, then run: python tools/refresh_notebooks.py {path}"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebooks_file(path: Path):
    text = path.read_text(encoding="utf-8")
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert text == as_text(read(path)), f"another program wrote it; run: python tools/refresh_notebooks.py {path}"
    assert len(text.encode()) < 1_000_000, "smaller figures, or fewer; 300 KB is a good size"


def broken_links(notebook: NotebookNode, folder: Path) -> list[str]:
    """Links and images of the texts that name a file which is not there; addresses in the web are left alone."""
    texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", texts)
    return [target for target in targets if not (folder / target).exists()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_links_lead_somewhere_in(path: Path):
    assert broken_links(read(path), path.parent) == []


def test_a_broken_link_is_found(tmp_path: Path):
    (tmp_path / "there.md").touch()
    links = "[a](there.md), [b](there.md#part), [c](https://a.org/x), [d](#part), ![e](gone.png), [f](../g.md#part)"
    notebook = new_notebook(cells=[new_markdown_cell(links), new_code_cell("[0](code.md)")])
    assert broken_links(notebook, tmp_path) == ["gone.png", "../g.md"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_the_readme_lists(path: Path):
    assert path.relative_to(REPOSITORY).as_posix() in (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.parent.name == "notebooks"], ids=name_of)
def test_the_readme_tells_how_long_a_lesson_takes(path: Path):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"\(notebooks/{path.name}\) \| .*? \| (\d+) \|", text)
    assert row is not None and int(row.group(1)) == reading_minutes(read(path))


def good_notebook() -> NotebookNode:
    data = {"image/png": PIXEL, "text/plain": "<Figure size 600x400 with 1 Axes>"}
    figure = new_output("display_data", data, metadata={"image/png": {"alt": "One line rises from 1 to 2."}})
    cells = [
        new_markdown_cell("# A title", id="title"),
        new_code_cell("print(1)", execution_count=1, outputs=[new_output("stream", text="1\n")], id="one"),
        new_code_cell("ax.plot(x)\nplt.show()", execution_count=2, outputs=[figure], id="two"),
        new_code_cell("print(0.5)", execution_count=3, outputs=[new_output("stream", text="0.5\n")], id="three"),
        new_code_cell("x = 4", execution_count=4, id="four"),
        new_code_cell("import time", execution_count=5, metadata={"tags": [IGNORED]}, id="five"),
        *(new_markdown_cell(PREDICTION, id=f"question-{n}") for n in range(5)),
    ]
    return new_notebook(cells=cells, metadata=METADATA)


def never_run(cells: list[NotebookNode]) -> None:
    cells[3].execution_count = None


def run_twice(cells: list[NotebookNode]) -> None:
    cells[3].execution_count = 6


def stripped(cells: list[NotebookNode]) -> None:
    for cell in cells[1:]:
        cell.outputs = []


def raised(cells: list[NotebookNode]) -> None:
    cells[4].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])]


def raises_no_more(cells: list[NotebookNode]) -> None:
    cells[4].metadata.tags = [RAISES]


def ignored_too_often(cells: list[NotebookNode]) -> None:
    cells[4].metadata.tags = [IGNORED]


def skipped(cells: list[NotebookNode]) -> None:
    cells[4].metadata.tags = ["nbval-skip"]


def ignored_by_a_comment(cells: list[NotebookNode]) -> None:
    cells[4].source = "# NBVAL_IGNORE_OUTPUT\nx = 4"


def never_shown(cells: list[NotebookNode]) -> None:
    cells[2].source = "line = ax.plot(x)"


def shows_its_lines_too(cells: list[NotebookNode]) -> None:
    lines = {"text/plain": "[<matplotlib.lines.Line2D at <address>>]"}
    cells[2].outputs.append(new_output("execute_result", lines, execution_count=2))


def figure_without_numbers(cells: list[NotebookNode]) -> None:
    cells[3].outputs[0].text = "done\n"


def figure_with_ignored_numbers(cells: list[NotebookNode]) -> None:
    cells[3].metadata.tags = cells[5].metadata.pop("tags")


def collapsed_by_an_editor(cells: list[NotebookNode]) -> None:
    cells[1].metadata.collapsed = True


def live_widget(cells: list[NotebookNode]) -> None:
    cells[4].outputs = [new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "8a"}})]


def long_traceback(cells: list[NotebookNode]) -> None:
    cells[4].metadata.tags = [RAISES]
    cells[4].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=["line 1", "ValueError: no"])]


def without_words(cells: list[NotebookNode]) -> None:
    cells[2].outputs[0].metadata = {}


def with_the_same_words(cells: list[NotebookNode]) -> None:
    cells[2].outputs.append(copy.deepcopy(cells[2].outputs[0]))


def answers_with_a_truth(cells: list[NotebookNode]) -> None:
    cells[3].outputs[0].text = "0.5\nequal: True\n"


def returns_a_truth(cells: list[NotebookNode]) -> None:
    cells[3].outputs.append(new_output("execute_result", {"text/plain": "False"}, execution_count=3))


def asks_too_little(cells: list[NotebookNode]) -> None:
    del cells[-1]


def answers_at_once(cells: list[NotebookNode]) -> None:
    cells.append(new_markdown_cell("**Predict.** How many? Two.", id="open"))


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_a_good_notebook_passes(rule: Callable):
    assert rule(good_notebook()) == []


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (was_run_from_top_to_bottom, never_run),
        (was_run_from_top_to_bottom, run_twice),
        (stores_its_outputs, stripped),
        (tags_the_cells_that_raise, raised),
        (tags_the_cells_that_raise, raises_no_more),
        (compares_most_cells, ignored_too_often),
        (compares_most_cells, skipped),
        (compares_most_cells, ignored_by_a_comment),
        (says_figures_in_numbers, never_shown),
        (says_figures_in_numbers, shows_its_lines_too),
        (says_figures_in_numbers, figure_without_numbers),
        (says_figures_in_numbers, figure_with_ignored_numbers),
        (describes_its_figures, without_words),
        (describes_its_figures, with_the_same_words),
        (prints_numbers_for_truths, answers_with_a_truth),
        (prints_numbers_for_truths, returns_a_truth),
        (asks_before_it_shows, asks_too_little),
        (asks_before_it_shows, answers_at_once),
        (is_in_the_refresh_tools_form, collapsed_by_an_editor),
        (is_in_the_refresh_tools_form, live_widget),
        (is_in_the_refresh_tools_form, long_traceback),
    ],
    ids=name_of,
)
def test_a_rule_finds_its_fault_and_no_other_rule_does(rule: Callable, fault: Callable):
    notebook = good_notebook()
    fault(notebook.cells)
    assert [other.__name__ for other in RULES if other(notebook)] == [rule.__name__]


@pytest.mark.parametrize("key", ["widgets", "celltoolbar", "vscode"])
def test_metadata_of_a_notebook_may_not_hold(key: str):
    notebook = good_notebook()
    notebook.metadata[key] = {}
    assert is_in_the_refresh_tools_form(notebook)
