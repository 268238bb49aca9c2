"""Reads a student's file, a script or a notebook; as a program of its own, runs it and grades it.

    python -m mixtral_edu.exercises.submission STUDENT.py REPORT SECONDS NAME…

`marking` starts this in a process that may hang, crash or be ended at any moment, so each line of REPORT is whole as
soon as it is written. A line is a JSON list: `["started"]` when the clock may begin to run, `["loaded", error]` after
the file was run, with null for no error, and `["result", fields]` for each exercise.
"""

import ast
import dataclasses
import json
import linecache
import os
import re
import sys
import traceback
import types
from pathlib import Path

from mixtral_edu.exercises import exercises
from mixtral_edu.exercises.result import Result

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
MAGIC = re.compile(r"^([ \t]*)(?:(?:\w+ *= *)?[%!].*|\??\w[\w.]*\?+[ \t]*)$", re.MULTILINE)


def read(path: Path) -> dict[str, str]:
    """Return the Python that a submission consists of, by the names that its parts have in error messages.

    A script is one part; a notebook has one for each code cell.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no text, or no notebook.
    """
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".ipynb":
        return {str(path): text}
    try:
        sources = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no notebook of format 4: {error!r}") from error
    return {f"{path}, code cell {number}": source for number, source in enumerate(sources, start=1)}


def exercises_in(parts: dict[str, str]) -> list[str]:
    """Names of the exercises whose function a submission defines, whether or not it is valid Python."""
    text = "\n".join(parts.values())
    return [name for name in exercises() if re.search(rf"^(def +{name}\b|{name} *[=:])", text, re.MULTILINE)]


def load(path: Path, parts: dict[str, str]) -> types.ModuleType:
    """Run a submission, read before, as a module that is not `__main__`.

    Of a notebook these statements run: imports, functions, classes, and constants such as `W = 4`; no checks, no
    experiments, no magic commands. Raises whatever the submission raises.
    """
    module = types.ModuleType("submission")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent.resolve()))
    for name, source in parts.items():
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for lines in messages
        tree = _definitions(source, name) if path.suffix == ".ipynb" else ast.parse(source, name)
        exec(compile(tree, name, "exec"), vars(module))
    return module


def _definitions(cell: str, name: str) -> ast.Module:
    if cell.startswith("%%"):  # another language, as a rule
        cell = ""
    try:
        tree = ast.parse(cell, name)
    except SyntaxError:
        tree = ast.parse(MAGIC.sub(r"\1pass", cell), name)
    tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS) or _is_constant(node)]
    return tree


def _is_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return isinstance(node.value, ast.Lambda)
    return True


def _in_words(error: BaseException, parts: dict[str, str]) -> str:
    what = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename in parts:
        return f"{what} ({error.filename}, line {error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in parts]
    return f"{what} ({own[-1].filename}, line {own[-1].lineno})" if own else what


def main(file: str, report: str, seconds: str, *names: str) -> None:
    """Load the submission and grade each exercise in `names`; see the text at the top of this module."""
    process = os.getpid()

    def write(*line: object) -> None:
        if os.getpid() != process:  # the submission forked; only the parent goes on
            os._exit(1)
        with open(report, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    write("started")
    parts = read(Path(file))
    try:
        module = load(Path(file), parts)
    except BaseException as error:  # SystemExit among them
        write("loaded", _in_words(error, parts))
        return
    write("loaded", None)
    for name in names:
        if hasattr(module, name):
            result = exercises()[name](getattr(module, name), seconds=float(seconds))
        else:
            result = Result(name, f"{name}: there is no function of this name", attempted=False)
        write("result", dataclasses.asdict(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
