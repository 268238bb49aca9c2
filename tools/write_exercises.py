"""Write the code cells of a lesson's exercises into its notebook, as `mixtral_edu/exercises/` defines them.

    python tools/write_exercises.py notebooks/exercises/02_rmsnorm_and_rope.ipynb

Each exercise has five cells with fixed ids. You write NAME-task and NAME-hints. This tool keeps NAME-stub, NAME-check
and NAME-solution as the package has them; NAME-keep too, for an exercise whose function can work in the model, and then
my-mixtral-drawing at the end. It adds missing cells, with texts to fill in, and a missing notebook. Run
tools/refresh_notebooks.py afterwards.
"""

import sys
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mixtral_edu.exercises import Exercise, exercises
from mixtral_edu.exercises.own import PARTS
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

WITH_PARTS = """\

from mixtral_edu.exercises.own import compare, keep, try_out"""
MY_MIXTRAL = """\
## Your Mixtral so far

`keep` has written each function that passed to a file in the folder `my_mixtral`, which it makes where this notebook
is. The notebooks of the other lessons keep theirs there too. The drawing shows in blue which parts of the model are
yours.

`compare()` puts them into the trained model. If they are right, its logits change by no more than rounding, and it
tells the same story. `my_mixtral()`, from the same module as `keep`, returns this model: its `generate` and `stream`
work as in lesson [00](../00_quickstart.ipynb). `forget("NAME")` gives a part back to the package."""
DRAWING = """\
import matplotlib.pyplot as plt

from mixtral_edu.viz.own import draw_my_mixtral

draw_my_mixtral()
plt.show()
print(compare())"""


def main(argv: list[str]) -> int:
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        return 2
    for path in map(Path, argv):
        notebook = read(path) if path.exists() else empty_notebook(path.stem)
        lesson = [each for each in exercises().values() if each.lesson == path.stem[:2]]
        for number, exercise in enumerate(lesson, start=1):
            write_cells(notebook, cells_of(exercise, number))
        if any(exercise.name in PARTS for exercise in lesson):
            write_cells(notebook, closing_cells())
        path.write_text(as_text(normalised(notebook)), encoding="utf-8", newline="\n")
        print(f"{path}: {', '.join(exercise.name for exercise in lesson) or 'no exercises'}")
    return 0


def empty_notebook(name: str) -> NotebookNode:
    title = new_markdown_cell(f"# {name[:2]} · Exercises: …", id="title")
    has_parts = any(exercises()[part].lesson == name[:2] for part in PARTS)
    return new_notebook(cells=[title, new_code_cell(SET_UP + WITH_PARTS * has_parts, id="set-up")])


def write_cells(notebook: NotebookNode, cells: list[NotebookNode]) -> None:
    """Update the code among `cells`. A missing cell is added after the one before it, or else at the end."""
    place = len(notebook.cells)
    for cell in cells:
        stored = next((each for each in notebook.cells if each.id == cell.id), None)
        if stored is None:
            notebook.cells.insert(place, cell)
            stored = cell
        elif cell.cell_type == "code":
            stored.source = cell.source
            stored.metadata.update(cell.metadata)
        place = notebook.cells.index(stored) + 1


def cells_of(exercise: Exercise, number: int) -> list[NotebookNode]:
    """Return the cells of one exercise, in order."""
    name = exercise.name
    solution = f"{exercise.solution}\n\n\ncheck.{name}({name}_solution)"
    keep = [new_code_cell(f"keep({name})", id=f"{name}-keep")] if name in PARTS else []
    return [
        new_markdown_cell(f"## {number} · {exercise.title}\n\n…", id=f"{name}-task"),
        new_code_cell(exercise.stub, id=f"{name}-stub"),
        new_code_cell(f"check.{name}({name})", id=f"{name}-check"),
        *keep,
        new_markdown_cell(HINTS, id=f"{name}-hints"),
        new_code_cell(solution, id=f"{name}-solution", metadata=FOLDED),
    ]


def closing_cells() -> list[NotebookNode]:
    """Return the cells that end a notebook whose functions can work in the model."""
    return [new_markdown_cell(MY_MIXTRAL, id="my-mixtral"), new_code_cell(DRAWING, id="my-mixtral-drawing")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
