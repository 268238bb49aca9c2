"""Grades a submission in a process of its own, which is ended when it hangs, and reports the results.

What such a process cannot survive costs the exercise at hand and no other: a new process takes the rest.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from mixtral_edu.exercises import exercises
from mixtral_edu.exercises.result import Outcome, Result
from mixtral_edu.exercises.submission import exercises_in, read

START_LIMIT = 120.0  # seconds until the process has imported PyTorch
GRACE = 2.0  # seconds in which it may notice its own deadline, before it is ended
POLL = 0.02


def mark(path: Path, lesson: str | None = None, seconds: float = 10.0) -> list[Result]:
    """Grade a submission.

    Args:
        path: a script, or a notebook (`.ipynb`).
        lesson: two digits; None for each lesson of which the submission defines a function.
        seconds: limit for running the file, and for each exercise.

    Returns:
        One result for each exercise of these lessons.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text or no notebook, it defines no function of an exercise, or there is no such lesson.
    """
    lessons = sorted({each.lesson for each in exercises().values()})
    if lesson is not None and lesson not in lessons:
        raise ValueError(f"lesson {lesson!r} has no exercises; {', '.join(lessons)} have")
    defined = exercises_in(read(path))
    if lesson is None and not defined:
        raise ValueError(f"{path} defines no function of an exercise; --lesson says what is to be graded")
    chosen = {lesson} if lesson else {exercises()[name].lesson for name in defined}
    names = [name for name, each in exercises().items() if each.lesson in chosen]
    results: dict[str, Result] = {}
    while left := [name for name in names if name not in results]:
        results |= _mark_in_one_process(path, left, seconds)
    return list(results.values())


def _mark_in_one_process(path: Path, names: list[str], seconds: float) -> dict[str, Result]:
    """Grade the exercises `names` for as long as the process lives; at least one gets a result."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        report.touch()
        command = [sys.executable, "-m", "mixtral_edu.exercises.submission", path, report, str(seconds), *names]
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        try:
            with open(report, encoding="utf-8") as lines:
                return _follow(process, lines, names, seconds)
        finally:
            _end(process)


def _follow(process: subprocess.Popen, lines: TextIO, names: list[str], seconds: float) -> dict[str, Result]:
    for limit in (START_LIMIT, seconds + GRACE):  # lines "started" and "loaded"
        line = _next_line(process, lines, limit)
        problem = line if isinstance(line, str) else line[1:] and line[1]
        if problem:
            return {name: Result(name, f"{name}: the file could not be run\n  {problem}") for name in names}
    results = {}
    for name in names:
        line = _next_line(process, lines, seconds + GRACE)
        if isinstance(line, str):
            results[name] = Result(name, f"{name}: {line}")
            break
        fields = line[1]
        outcomes = tuple(Outcome(**outcome) for outcome in fields.pop("outcomes"))
        results[name] = Result(**fields, outcomes=outcomes)
    return results


def _next_line(process: subprocess.Popen, lines: TextIO, limit: float) -> list | str:
    """The next line of the report, or why there is none."""
    end = time.monotonic() + limit
    while True:
        status = process.poll()  # before reading, so that its last words are not missed
        place = lines.tell()
        line = lines.readline()
        if line.endswith("\n"):
            return json.loads(line)
        lines.seek(place)
        if status is not None:
            return f"the process ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}"
        if time.monotonic() > end:
            return "it did not come to an end in time, and was stopped. Does every loop end?"
        time.sleep(POLL)


def _end(process: subprocess.Popen) -> None:
    """End the process, where possible with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def as_table(results: Sequence[Result]) -> str:
    """The results in lines, then what is known of each failure, then the sum."""
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        passed = sum(outcome.passed for outcome in result.outcomes)
        checks = f"{passed} of {len(result.outcomes)}" if result.outcomes else "-"
        verdict = "passed" if result.passed else "failed" if result.attempted else "not attempted"
        lines.append(f"{exercises()[result.name].lesson}  {result.name:{width}}  {checks:>8}  {verdict}")
    failures: dict[str, list[str]] = {}  # what is common to several exercises is said once
    for result in results:
        if result.attempted and not result.passed:
            failures.setdefault(result.message.partition(": ")[2], []).append(result.name)
    lines += [f"\n{', '.join(names)}: {problem}" for problem, names in failures.items()]
    passed = sum(result.passed for result in results)
    return "\n".join([*lines, f"\n{passed} of {len(results)} exercises passed, score {_mean_score(results):.2f}"])


def as_dict(path: Path, results: Sequence[Result]) -> dict[str, Any]:
    """The results as JSON holds them."""
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
    }


def _mean_score(results: Sequence[Result]) -> float:
    return sum(result.score for result in results) / len(results)
