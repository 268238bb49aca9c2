"""Run notebooks in a fresh kernel and store their outputs, always in the same form.

    python tools/refresh_notebooks.py                    every notebook
    python tools/refresh_notebooks.py notebooks/05*.ipynb
    python tools/refresh_notebooks.py --check            change nothing; say which notebooks would change

No other tool writes stored outputs. Two runs write the same bytes, except in cells tagged `nbval-ignore-output`. A
notebook with a failing cell is left unchanged.
"""

import argparse
import base64
import copy
import os
import re
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import nbformat
import PIL.Image
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager
from nbval.plugin import get_sanitize_patterns

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SANITIZE_RULES = get_sanitize_patterns((NOTEBOOKS / "nbval_sanitize.cfg").read_text(encoding="utf-8"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
IGNORED = "nbval-ignore-output"
READING_TIME = re.compile(r"(?<=\*\*Time:\*\* )[^;.\n]+(?= to read)")  # in a lesson's first cell
WORDS_PER_MINUTE, CODE_LINES_PER_MINUTE = 200, 15
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # names a model that exists only in the kernel


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[NOTEBOOKS], help="notebooks, or folders of notebooks")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a notebook would change")
    parser.add_argument("--timeout", type=int, default=120, metavar="SECONDS", help="limit per cell (120)")
    options = parser.parse_args(argv)

    unwell = 0
    for path in find_notebooks(options.paths):
        start = time.monotonic()
        print(path, end="  ", flush=True)
        try:
            verdict, well = refresh(path, check=options.check, timeout=options.timeout)
        except (CellExecutionError, TimeoutError, ValueError) as error:
            verdict, well = f"failed, left unchanged\n{error}", False
        print(f"{time.monotonic() - start:.1f} s  {verdict}", flush=True)
        unwell += not well
    return 1 if unwell else 0


def find_notebooks(paths: list[Path]) -> list[Path]:
    """Return the notebooks in `paths`, and those inside its folders.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: it must be an existing notebook or folder")
        inside = sorted(p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
        found += inside if path.is_dir() else [path]
    return found


def refresh(path: Path, check: bool, timeout: int) -> tuple[str, bool]:
    """Run one notebook and store its outputs. Return a verdict in words, and whether all is well."""
    stored = read(path)
    fresh = normalised(execute(stored, path.parent, timeout))
    nbformat.validate(fresh)
    if check:
        same = as_text(without_ignored_outputs(fresh)) == as_text(without_ignored_outputs(stored))
        return ("up to date", True) if same else ("differs from a fresh run", False)
    if as_text(fresh) == path.read_text(encoding="utf-8"):
        return "unchanged", True
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(as_text(fresh), encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return "written", True


def read(path: Path) -> NotebookNode:
    """Read a notebook of format 4 as it is, valid or not."""
    notebook = nbformat.v4.reads(path.read_text(encoding="utf-8"))
    if notebook.get("nbformat") != 4:
        raise ValueError(f"{path} has notebook format {notebook.get('nbformat')}: it must have format 4")
    return notebook


def as_text(notebook: NotebookNode) -> str:
    return nbformat.v4.writes(notebook) + "\n"


def execute(notebook: NotebookNode, folder: Path, timeout: int) -> NotebookNode:
    """Run a copy of `notebook` in a fresh kernel of this Python, as nbval does, with `folder` as its working folder."""
    notebook = copy.deepcopy(notebook)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisPython,
        kernel_name=CURRENT_ENV_KERNEL_NAME,
        timeout=timeout,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory() as empty:  # not the parts that somebody keeps beside the exercises
        # The kernel's own log is dropped; the outputs keep what cells write.
        client.execute(stderr=subprocess.DEVNULL, env=os.environ | {"MIXTRAL_EDU_OWN": empty})
    return notebook


class ThisPython(AsyncKernelManager):
    """Start kernels of the Python that runs this tool, whatever kernels the user has installed."""

    def _kernel_spec_manager_default(self) -> NbvalKernelspecManager:
        return NbvalKernelspecManager()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of `notebook` in which nothing depends on the machine, the editor or the time."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat_minor = 5
    taken = {cell.get("id") for cell in notebook.cells}
    for index, cell in enumerate(notebook.cells):
        if not cell.get("id"):
            cell.id = next(name for name in (f"cell-{n}" for n in range(index, 10**6)) if name not in taken)
            taken.add(cell.id)
        cell.metadata = normalised_metadata(cell.metadata)
        if cell.cell_type == "markdown":
            cell.source = READING_TIME.sub(f"{reading_minutes(notebook)} minutes", cell.source)
        if cell.cell_type == "code":
            cell.outputs = normalised_outputs(cell.outputs)
    return notebook


def reading_minutes(notebook: NotebookNode) -> int:
    """How long a notebook takes to read, by one rule for all: its words and its lines of code, answers included."""
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    lines = sum(1 for cell in code_cells(notebook) for line in cell.source.splitlines() if line.strip())
    return round(words / WORDS_PER_MINUTE + lines / CODE_LINES_PER_MINUTE)


def normalised_metadata(metadata: NotebookNode) -> NotebookNode:
    kept = {key: metadata[key] for key in ("tags", "nbgrader") if metadata.get(key)}
    if metadata.get("jupyter", {}).get("source_hidden"):
        kept["jupyter"] = {"source_hidden": True}
    return nbformat.from_dict(kept)


def normalised_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join the pieces of a stream, drop views of widgets, cut tracebacks, and replace addresses and the like."""
    result: list[NotebookNode] = []
    for output in copy.deepcopy(outputs):
        if output.output_type == "stream":
            if result and result[-1].output_type == "stream" and result[-1].name == output.name:
                result[-1].text += output.text
                continue
        elif output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]
        else:
            output.data.pop(WIDGET_VIEW, None)
            if not output.data:
                continue
        result.append(output)
    for output in result:
        if output.output_type == "stream":
            output.text = sanitized(re.sub(r".*\r(?=[^\n])", "", output.text))  # drops what a carriage return overwrote
        elif output.output_type == "error":
            output.evalue, output.traceback = sanitized(output.evalue), [sanitized(line) for line in output.traceback]
        else:
            data = {kind: normalised_data(kind, value) for kind, value in output.data.items()}
            output.data = nbformat.from_dict(data)
    return result


def normalised_data(kind: str, value: object) -> object:
    if kind == "image/png":
        return with_palette(value)
    return sanitized(value) if kind.startswith("text/") else value


def with_palette(picture: str) -> str:
    """Return a PNG in base64 with at most 256 colours, if that is shorter. Flat figures then take half the bytes."""
    image = PIL.Image.open(BytesIO(base64.b64decode(picture)))
    if image.mode == "P":  # it has a palette already
        return picture
    if image.convert("RGBA").getextrema()[3][0] < 255:  # a palette would lose the transparency
        return picture
    file = BytesIO()
    image.convert("RGB").quantize(256).save(file, format="png", optimize=True)
    return min(picture, base64.b64encode(file.getvalue()).decode("ascii"), key=len)


def sanitized(text: str) -> str:
    for pattern, replacement in SANITIZE_RULES:
        text = re.sub(pattern, replacement, text)
    return text


def without_ignored_outputs(notebook: NotebookNode) -> NotebookNode:
    notebook = copy.deepcopy(notebook)
    for cell in code_cells(notebook):
        if IGNORED in tags(cell):
            cell.outputs = []
    return notebook


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
