"""Grade a submission in a separate process, kill that process if it hangs, and report the results.

If the process dies, only the exercise at hand fails. A new process grades the others.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mixtral_edu.exercises import exercises
from mixtral_edu.exercises.result import Outcome, Result
from mixtral_edu.exercises.submission import exercises_in, is_notebook, read

START_LIMIT = 120.0  # seconds until the process has imported PyTorch
GRACE = 2.0  # seconds that it gets to notice its own deadline before it is killed
POLL = 0.02


@dataclass
class Marks:
    """What is known about a submission.

    Attributes:
        results: one result per exercise.
        errors: what parts of the submission raised when they ran, outside the exercises' checks, each with its place.
        left_out: what was not run, such as a notebook's shell commands, each with its place.
    """

    results: dict[str, Result] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def mark(path: Path, lesson: str | None = None, seconds: float = 10.0) -> Marks:
    """Grade a submission.

    Args:
        path: a script, or a notebook (`.ipynb`).
        lesson: two digits; None for all lessons of which the submission defines a function.
        seconds: limit per statement of a script or cell of a notebook, and per exercise.

    Returns:
        Marks with one result per exercise of these lessons, in order.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not text or not a notebook, it defines no function of an exercise, there is no such
            lesson, or it is a notebook and IPython is not installed.
    """
    lessons = sorted({each.lesson for each in exercises().values()})
    if lesson is not None and lesson not in lessons:
        raise ValueError(f"lesson {lesson!r} has no exercises: it must be one of {', '.join(lessons)}")
    defined = exercises_in(read(path))
    if is_notebook(path) and importlib.util.find_spec("IPython") is None:
        raise ValueError(f"{path} is a notebook, and running its cells needs IPython: pip install ipython")
    if lesson is None and not defined:
        raise ValueError(f"{path} defines no function of an exercise: choose what to grade with --lesson")
    chosen = {lesson} if lesson else {exercises()[name].lesson for name in defined}
    names = [name for name, each in exercises().items() if each.lesson in chosen]
    results: dict[str, Result] = {}
    skipped: dict[int, str] = {}
    while left := [name for name in names if name not in results]:
        marks = _mark_in_one_process(path, left, skipped, seconds)
        results |= marks.results
    return Marks({name: results[name] for name in names}, marks.errors, marks.left_out)


def _mark_in_one_process(path: Path, names: list[str], skipped: dict[int, str], seconds: float) -> Marks:
    """Grade the exercises `names` for as long as the process lives.

    At least one gets a result, or one part of the submission is added to `skipped`, whose parts are not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        report.touch()
        arguments = [path, report, str(seconds), json.dumps(skipped), *names]
        process = subprocess.Popen(
            [sys.executable, "-m", "mixtral_edu.exercises.submission", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | _environment(folder),
            start_new_session=True,
        )
        try:
            with open(report, encoding="utf-8") as lines:
                return _follow(process, lines, names, skipped)
        finally:
            _end(process)


def _environment(folder: str) -> dict[str, str]:
    """Return variables that make the process behave like a notebook's: it opens no window and prints any character."""
    return {"MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8:backslashreplace", "IPYTHONDIR": folder}


def _follow(process: subprocess.Popen, lines: TextIO, names: list[str], skipped: dict[int, str]) -> Marks:
    """Collect what the process reports; where it hangs or dies, blame the part or the exercise that it was at."""
    marks = Marks()
    doing, limit = None, START_LIMIT  # nothing, a part (a number), or an exercise (its name)
    while True:
        line = _next_line(process, lines, limit + GRACE)
        if isinstance(line, str):  # the reason why there is no line
            if isinstance(doing, int):
                skipped[doing] = line
            else:
                lost = names if doing is None else [doing]
                marks.results |= {name: Result(name, f"{name}: {line}") for name in lost}
            return marks
        kind, *values = line
        if kind in ("running", "checking"):
            doing, limit = values
        elif kind == "error":
            marks.errors += values
        elif kind == "left out":
            marks.left_out += values
        elif kind == "result":
            (fields,) = values
            outcomes = tuple(Outcome(**outcome) for outcome in fields.pop("outcomes"))
            marks.results[fields["name"]] = Result(**fields, outcomes=outcomes)
        else:  # the end
            return marks


def _next_line(process: subprocess.Popen, lines: TextIO, limit: float) -> list | str:
    """Return the next line of the report, or the reason why there is none."""
    end = time.monotonic() + limit
    while True:
        status = process.poll()  # before reading, so that the last line is not missed
        place = lines.tell()
        line = lines.readline()
        if line.endswith("\n"):
            return json.loads(line)
        lines.seek(place)
        if status is not None:
            return f"the process ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}"
        if time.monotonic() > end:
            return "it did not finish in time and was stopped. Does every loop end?"
        time.sleep(POLL)


def _end(process: subprocess.Popen) -> None:
    """Kill the process and, where possible, all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def as_table(marks: Marks) -> str:
    """Return the results as text: a table, then each failure and what did not run, then the total."""
    results = list(marks.results.values())
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        passed = sum(outcome.passed for outcome in result.outcomes)
        checks = f"{passed} of {len(result.outcomes)}" if result.outcomes else "-"
        verdict = "passed" if result.passed else "failed" if result.attempted else "not attempted"
        lines.append(f"{exercises()[result.name].lesson}  {result.name:{width}}  {checks:>8}  {verdict}")
    failures: dict[str, list[str]] = {}  # a message that several exercises share appears once
    for result in results:
        if result.attempted and not result.passed:
            failures.setdefault(result.message.partition(": ")[2], []).append(result.name)
    lines += [f"\n{', '.join(names)}: {problem}" for problem, names in failures.items()]
    for title, texts in (("Errors outside the checks:", marks.errors), ("Not run:", marks.left_out)):
        if texts:
            lines.append("\n".join(["", title, *(f"  {text}" for text in texts)]))
    passed = sum(result.passed for result in results)
    return "\n".join([*lines, f"\n{passed} of {len(results)} exercises passed, score {_mean_score(results):.2f}"])


def as_dict(path: Path, marks: Marks) -> dict[str, Any]:
    """Return the results as a dictionary for a JSON file."""
    results = list(marks.results.values())
    return {
        "submission": str(path),
        "passed": all(result.passed for result in results),
        "score": _mean_score(results),
        "exercises": [
            {
                "name": result.name,
                "lesson": exercises()[result.name].lesson,
                "attempted": result.attempted,
                "passed": result.passed,
                "score": result.score,
                "message": result.message,
                "checks": [{"question": each.question, "passed": each.passed} for each in result.outcomes],
            }
            for result in results
        ],
        "errors": marks.errors,
        "left_out": marks.left_out,
    }


def _mean_score(results: Sequence[Result]) -> float:
    return sum(result.score for result in results) / len(results)
