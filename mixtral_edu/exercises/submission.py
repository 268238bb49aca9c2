"""Read a student's file, a script or a notebook; as a program, run it and grade it.

    python -m mixtral_edu.exercises.submission STUDENT.py REPORT SECONDS SKIPPED NAME…

`marking` starts this in a process that may hang, crash or be killed at any moment, so each line of REPORT is complete
as soon as it is written. SKIPPED is a JSON object: it maps the number of each part that ended an earlier process to how
it did so. A line of REPORT is a JSON list:

    ["running", part, seconds]    a part of the submission runs, for at most this many seconds
    ["checking", name, seconds]   an exercise is checked, for at most this many seconds
    ["error", text]               a part raised this; the others still run
    ["left out", text]            a part asked for this, but it was not run
    ["result", fields]            the result of one exercise
    ["end"]

The function that has an exercise's name at the end counts. If the notebook's own `check.NAME(function)` saw this very
function, the mark is what it found, as the names that the function uses may mean something else later. One that is
defined again after its check, or never checked, as in a script, is checked at the end.
"""

import ast
import dataclasses
import io
import json
import os
import re
import sys
import time
import tokenize
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from mixtral_edu.checkpoints.config_checks import shortened
from mixtral_edu.exercises import Exercise, exercises
from mixtral_edu.exercises.deadline import DeadlinePassed, deadline
from mixtral_edu.exercises.grading import LONGEST, grade
from mixtral_edu.exercises.parts import Notebook, Script
from mixtral_edu.exercises.result import Result

FULL_PARTS = 6  # all parts together may take this many times a part's limit; after that, each gets a tenth of it
MAGIC = re.compile(r"^([ \t]*)(?:(?:\w+ *= *)?[%!](?:.*\\\n)*.*|\??\w[\w.]*\?+[ \t]*)$", re.MULTILINE)


def read(path: Path) -> dict[str, str]:
    """Return the Python code of a submission, by the names of its parts in error messages.

    A script is one part; a notebook has one part per code cell. A script that is not UTF-8 and declares no encoding is
    read as Latin-1, because Python itself would run none of it.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not text, or not a notebook.
    """
    content = path.read_bytes()
    if not is_notebook(path):
        return {str(path): _script(path, content)}
    try:
        notebook = json.loads(content)
        if "worksheets" in notebook:
            raise ValueError(f"{path} is a notebook of format {notebook.get('nbformat', 3)}: it must have format 4; "
                             "open it in Jupyter and save it")
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]).replace("\r\n", "\n") for cell in cells]
    except (TypeError, KeyError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a notebook of format 4: {error!r}") from error
    return {f"{path}, code cell {number}": source for number, source in enumerate(sources, start=1)}


def is_notebook(path: Path) -> bool:
    """Return whether a submission is read as a notebook."""
    return path.suffix.lower() == ".ipynb"


def _script(path: Path, content: bytes) -> str:
    if b"\0" in content:
        raise ValueError(f"{path} holds null bytes, so it is not Python source: save it as UTF-8 text")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    except SyntaxError as error:  # not even its first lines are UTF-8, or the declared encoding does not exist
        if "unknown encoding" in str(error) or "encoding problem" in str(error):
            raise ValueError(f"{path}: {error}: declare an encoding that Python knows, or save it as UTF-8") from error
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n")


def exercises_in(parts: dict[str, str]) -> list[str]:
    """Return the names of the exercises whose function a submission defines, whether or not it is valid Python."""
    found: set[str] = set()
    for source in parts.values():
        try:
            found.update(_names_bound(ast.parse(MAGIC.sub(r"\1pass", source))))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            found.update(re.findall(r"^(?:async +)?def +(\w+)", source, re.MULTILINE))
            found.update(re.findall(r"^(\w+) *[=:]", source, re.MULTILINE))
    return [name for name in exercises() if name in found]


def _names_bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that definitions, assignments and imports bind, except inside functions and classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.alias):
            yield child.asname or child.name
        elif isinstance(child, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            yield from (name.id for name in names if isinstance(name.ctx, ast.Store))
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _names_bound(child)


class _Marking:
    """Run a submission and mark the exercises `names`. `write` adds a line to the report."""

    def __init__(self, path: Path, names: list[str], seconds: float, write: Callable[..., None]):
        self._names, self._seconds, self._write = names, seconds, write
        self._sources = read(path)
        self._submission = Notebook(self._sources) if is_notebook(path) else Script(path, self._sources[str(path)])
        self._part = 0
        self._problems: list[tuple[str, str]] = []  # name of a part, its error
        self._found: dict[str, list[tuple[Callable, Result]]] = defaultdict(list)  # by the submission's own checks
        self._spent: dict[str, float] = defaultdict(float)  # seconds that these took
        self._own_checked: set[str] = set()  # names whose function, at that time, these checked

    def run(self, skipped: dict[int, str]) -> None:
        """Run all parts except those in `skipped`, which ended an earlier process."""
        left = FULL_PARTS * self._seconds
        for part, where in enumerate(self._submission.parts):
            limit = max(min(self._seconds, left), self._seconds / 10)
            if part in skipped:
                problem = skipped[part]
            else:
                self._part = part
                self._write("running", part, limit)
                start = time.monotonic()
                problem = self._run_part(limit)
                left -= time.monotonic() - start
                for text in self._submission.left_out:
                    self._write("left out", f"{where}: {shortened(text, LONGEST)}")
            if problem:
                self._problems.append((where, problem))
                self._write("error", problem if where in problem else f"{where}: {problem}")

    def _run_part(self, limit: float) -> str | None:
        """Run the current part, and return what it raised, in words."""
        try:
            with deadline(limit):
                self._submission.run(self._part)
        except DeadlinePassed:
            return f"it was stopped after {limit:g} seconds"
        except BaseException as error:  # including SystemExit
            return _in_words(error, self._sources)
        return None

    def check(self, exercise: Exercise, answer: Callable, _: float) -> Result:
        """Do what `check.NAME(answer)` does in a submission: grade it, and keep the result for `mark`."""
        name = exercise.name
        if name not in self._names:
            return Result(name, f"{name}: not checked in this run", attempted=False)
        if self._spent[name] > self._seconds:  # in a loop
            return self._found[name][-1][1]
        if answer is self._submission.names.get(name):
            self._own_checked.add(name)
            self._write("checking", name, self._seconds)
        start = time.monotonic()
        result = grade(exercise, answer, self._seconds)
        self._spent[name] += time.monotonic() - start
        self._found[name].append((answer, result))
        self._write("running", self._part, self._seconds)
        return result

    def mark(self, name: str) -> Result:
        """The mark of an exercise: what the submission's own check found last of the function of this name.

        One that it did not check, or that was defined again since, is checked now. Where there is none, or it is still
        the stub, another function that was handed to the check stands for it, unless it is a given solution.
        """
        own = self._submission.names.get(name)
        found = [result for answer, result in self._found[name] if answer is own]
        if found:
            result = found[-1]
        elif name in self._submission.names:
            self._write("checking", name, self._seconds)
            result = grade(exercises()[name], own, self._seconds)
            if name in self._own_checked:
                again = f"{result.message}\n  It was defined again after its check; the last definition counts."
                result = dataclasses.replace(result, message=again)
        else:
            result = self._missing(name)
        others = [result for answer, result in self._found[name] if not _is_given(answer, exercises()[name])]
        return others[-1] if others and not result.attempted else result

    def _missing(self, name: str) -> Result:
        """Return the mark if no function has the name. If an error kept it from being defined, the message says so."""
        for where, problem in self._problems:
            if name in exercises_in({where: self._sources[where]}):
                text = f"{name}: there is no function of this name, because its definition did not run\n  {problem}"
                return Result(name, text)
        return Result(name, f"{name}: there is no function of this name", attempted=False)


def _is_given(answer: Callable, exercise: Exercise) -> bool:
    """Return whether a function is the solution that comes with the exercise, in the notebook or the package."""
    return answer is exercise.reference or getattr(answer, "__name__", "") == f"{exercise.name}_solution"


def _in_words(error: BaseException, parts: dict[str, str]) -> str:
    what = shortened(traceback.format_exception_only(error)[-1].strip(), LONGEST)
    if isinstance(error, SyntaxError) and error.filename in parts:
        return f"{what} ({error.filename}, line {error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in parts]
    return f"{what} ({own[-1].filename}, line {own[-1].lineno})" if own else what


def main(file: str, report: str, seconds: str, skipped: str, *names: str) -> None:
    """Run the submission and grade each exercise in `names`; the module's docstring describes the arguments."""
    process, path = os.getpid(), Path(file)

    def write(*line: object) -> None:
        if os.getpid() != process:  # the submission forked; only the parent continues
            os._exit(1)
        with open(report, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    marking = _Marking(path, list(names), float(seconds), write)
    os.chdir(path.parent)  # where a notebook runs
    sys.path.insert(0, os.getcwd())
    Exercise.grader = staticmethod(marking.check)
    try:
        marking.run({int(part): how for part, how in json.loads(skipped).items()})
    finally:
        Exercise.grader = staticmethod(grade)
    for name in names:
        write("result", dataclasses.asdict(marking.mark(name)))
    write("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
