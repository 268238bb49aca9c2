"""Write the code cells of a lesson's exercises into its notebook, as `mixtral_edu/exercises/` defines them.

    python tools/write_exercises.py notebooks/exercises/02_rmsnorm_and_rope.ipynb

Each exercise has five cells with fixed ids. You write NAME-task and NAME-hints. This tool keeps NAME-stub, NAME-check
and NAME-solution as the package has them. It adds missing cells, with texts to fill in, and a missing notebook. Run
tools/refresh_notebooks.py afterwards.
"""

import sys
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mixtral_edu.exercises import Exercise, exercises
from refresh_notebooks import as_text, normalised, read

FOLDED = {"jupyter": {"source_hidden": True}}
SET_UP = """\
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mixtral_edu") is None:  # run from notebooks/exercises/ in a clone, such as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "../..[notebooks]"], check=True)
    importlib.invalidate_caches()

import torch
from torch import Tensor

from mixtral_edu.exercises import check"""
HINTS = """\
<details>
<summary>Hint 1</summary>

…

</details>"""


def main(argv: list[str]) -> int:
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        return 2
    for path in map(Path, argv):
        notebook = read(path) if path.exists() else empty_notebook(path.stem)
        lesson = [each for each in exercises().values() if each.lesson == path.stem[:2]]
        for number, exercise in enumerate(lesson, start=1):
            write_cells(notebook, exercise, number)
        path.write_text(as_text(normalised(notebook)), encoding="utf-8", newline="\n")
        print(f"{path}: {', '.join(exercise.name for exercise in lesson) or 'no exercises'}")
    return 0


def empty_notebook(name: str) -> NotebookNode:
    title = new_markdown_cell(f"# {name[:2]} · Exercises: …", id="title")
    return new_notebook(cells=[title, new_code_cell(SET_UP, id="set-up")])


def write_cells(notebook: NotebookNode, exercise: Exercise, number: int) -> None:
    """Update the code cells of one exercise, and add missing cells."""
    for cell in cells_of(exercise, number):
        stored = next((each for each in notebook.cells if each.id == cell.id), None)
        if stored is None:
            notebook.cells.append(cell)
        elif cell.cell_type == "code":
            stored.source = cell.source
            stored.metadata.update(cell.metadata)


def cells_of(exercise: Exercise, number: int) -> list[NotebookNode]:
    """Return the cells of one exercise, in order."""
    name = exercise.name
    solution = f"{exercise.solution}\n\n\ncheck.{name}({name}_solution)"
    return [
        new_markdown_cell(f"## {number} · {exercise.title}\n\n…", id=f"{name}-task"),
        new_code_cell(exercise.stub, id=f"{name}-stub"),
        new_code_cell(f"check.{name}({name})", id=f"{name}-check"),
        new_markdown_cell(HINTS, id=f"{name}-hints"),
        new_code_cell(solution, id=f"{name}-solution", metadata=FOLDED),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
