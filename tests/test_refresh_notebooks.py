"""The refresh tool stores the same bytes each time, and nbval, as this project sets it up, agrees with them."""

import base64
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import nbformat
import PIL.Image
import PIL.ImageChops
import pytest
from matplotlib import pyplot as plt
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

import refresh_notebooks

CELLS = {
    "print('one', end=' ')\nprint('line')": {},
    "class Thing: pass\n\nThing()": {},
    "import warnings\nwarnings.warn('names a temporary file')": {},
    "import ipywidgets\nipywidgets.IntSlider(value=3)": {},
    "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()": {},
    "raise ValueError('on purpose')": {"tags": ["raises-exception"]},
    "import time\ntime.time()": {"tags": ["nbval-ignore-output"], "collapsed": True},
}


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with one cell of each awkward kind, run and stored by the tool."""
    path = tmp_path_factory.mktemp("notebooks") / "all_kinds.ipynb"
    cells = [new_code_cell(source, metadata=metadata) for source, metadata in CELLS.items()]
    nbformat.write(new_notebook(cells=cells, metadata={"vscode": {"made": "by hand"}}), path)
    result = run_tool(path)
    assert result.returncode == 0, result.stdout + result.stderr
    return path


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, refresh_notebooks.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def run_nbval(path: Path) -> subprocess.CompletedProcess:
    root = refresh_notebooks.NOTEBOOKS.parent
    command = [sys.executable, "-m", "pytest", "-c", root / "pyproject.toml", "-p", "no:cacheprovider", path]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def outputs(notebook: NotebookNode) -> list[list]:
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.slow
def test_stored_outputs_depend_on_nothing_but_the_code(refreshed: Path):
    notebook = refresh_notebooks.read(refreshed)
    stream, thing, warning, widget, figure, error, _ = outputs(notebook)
    assert [output.text for output in stream] == ["one line\n"]
    assert [output.data for output in thing] == [{"text/plain": "<__main__.Thing at <address>>"}]
    assert [output.text.splitlines()[0] for output in warning] == ["<cell>:2: UserWarning: names a temporary file"]
    assert [output.data for output in widget] == [{"text/plain": "IntSlider(value=3)"}]
    assert [list(output.data) for output in figure] == [["image/png", "text/plain"]]
    assert [output.traceback for output in error] == [["ValueError: on purpose"]]
    assert notebook.metadata == refresh_notebooks.METADATA
    assert notebook.cells[-1].metadata == {"tags": ["nbval-ignore-output"]}


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes_but_for_ignored_cells(refreshed: Path, tmp_path: Path):
    before = refreshed.read_bytes()
    result = run_tool("--check", refreshed)
    assert (result.returncode, "up to date" in result.stdout) == (0, True), result.stdout
    assert refreshed.read_bytes() == before

    other = store_another_number(refreshed, tmp_path)
    result = run_tool("--check", other)
    assert (result.returncode, "differs" in result.stdout) == (1, True), result.stdout


@pytest.mark.slow
def test_nbval_agrees_with_what_was_stored_and_with_no_other_number(refreshed: Path, tmp_path: Path):
    result = run_nbval(refreshed)
    assert (result.returncode, f"{len(CELLS)} passed" in result.stdout) == (0, True), result.stdout
    result = run_nbval(store_another_number(refreshed, tmp_path))
    assert (result.returncode, f"1 failed, {len(CELLS) - 1} passed" in result.stdout) == (1, True), result.stdout


def store_another_number(path: Path, folder: Path) -> Path:
    notebook = refresh_notebooks.read(path)
    notebook.cells[0].outputs[0].text = "one other line\n"
    (folder / path.name).write_text(refresh_notebooks.as_text(notebook), encoding="utf-8")
    return folder / path.name


@pytest.mark.slow
def test_a_notebook_with_a_failing_cell_is_left_as_it_was(tmp_path: Path):
    path = tmp_path / "broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1"), new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    result = run_tool(path)
    assert result.returncode == 1 and "ZeroDivisionError" in result.stdout
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_normalising_twice_changes_no_more():
    cell = new_code_cell("x", metadata={"jupyter": {"source_hidden": True, "outputs_hidden": True}, "tags": []})
    cell.outputs = [new_output("stream", text="10%\r20%\rdone\n"), new_output("stream", text="at 0x7f00beef\n")]
    del cell["id"]
    notebook = new_notebook(cells=[cell], metadata={"widgets": {}}, nbformat_minor=4)
    once = refresh_notebooks.normalised(notebook)
    assert once == refresh_notebooks.normalised(once)
    assert [output.text for output in once.cells[0].outputs] == ["done\nat <address>\n"]
    assert once.cells[0].metadata == {"jupyter": {"source_hidden": True}}
    nbformat.validate(once)


def test_paths_may_be_notebooks_and_folders(tmp_path: Path):
    for name in ("b.ipynb", "deep/a.ipynb", "deep/.ipynb_checkpoints/a-checkpoint.ipynb", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    single = tmp_path / "b.ipynb"
    assert refresh_notebooks.find_notebooks([tmp_path]) == [single, tmp_path / "deep" / "a.ipynb"]
    assert refresh_notebooks.find_notebooks([single]) == [single]
    with pytest.raises(FileNotFoundError, match="missing"):
        refresh_notebooks.find_notebooks([tmp_path / "missing"])


def test_figures_are_stored_with_a_palette_where_that_is_shorter():
    figure = plt.figure(figsize=(6, 4), dpi=96)
    figure.text(0.1, 0.5, "a figure with text and a line", size=20)
    figure.add_axes((0.1, 0.1, 0.8, 0.3)).plot([1, 3, 2], color="#D55E00")
    for save, is_shorter in (
        (figure.savefig, True),
        (PIL.Image.new("RGB", (3, 2)).save, False),
        (PIL.Image.new("RGBA", (200, 100)).save, False),
    ):
        file = BytesIO()
        save(file, format="png")
        before = base64.b64encode(file.getvalue()).decode("ascii")
        after = refresh_notebooks.with_palette(before)
        assert len(after) < 0.7 * len(before) if is_shorter else after == before
        pictures = [PIL.Image.open(BytesIO(base64.b64decode(text))).convert("RGB") for text in (before, after)]
        assert all(most <= 32 for _, most in PIL.ImageChops.difference(*pictures).getextrema())
    plt.close(figure)
