"""Run a student's function through the checks of an exercise. Whatever it does, a result comes back."""

import io
import random
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import numpy as np
import torch

from mixtral_edu.checkpoints.config_checks import shortened
from mixtral_edu.exercises.comparison import Rows, compare, show
from mixtral_edu.exercises.deadline import DeadlinePassed, deadline
from mixtral_edu.exercises.probe import Probe, random_state, set_random_state
from mixtral_edu.exercises.result import Outcome, Result
from mixtral_edu.exercises.settings import usual_settings

if TYPE_CHECKING:
    from mixtral_edu.exercises.framework import Check, Exercise

TIDY = "Does it leave its inputs and the shared random numbers as they were?"  # the last check of every exercise
TOO_LATE = "It did not finish in time. Does every loop end?"
LONGEST = 500  # characters of an exception's text, or of what was printed
PRINTED_LINES = 3  # lines of the function's output that a message shows


def grade(exercise: "Exercise", answer: Callable, seconds: float) -> Result:
    """Run the checks of `exercise` on `answer`, for at most `seconds` in all.

    Raises:
        TypeError: a check does not return a pair.
        KeyboardInterrupt: the user interrupted it.
    """
    name = exercise.name
    if not callable(answer):
        return Result(name, f"{name}: you gave {show(answer)}; give the function itself: check.{name}({name})")
    probe = Probe(exercise, answer)
    reports: list[str | None] = []  # one per check that ran; None if it passed
    state, end = random_state(), time.monotonic() + seconds
    try:
        for check in exercise.checks:
            reports.append(_run(check, probe, end - time.monotonic()))
            if len(reports) == 1 and isinstance(probe.error, NotImplementedError) and not probe.error.args:
                return Result(name, f"{name}: not attempted yet", attempted=False)
            if time.monotonic() > end:
                break
    finally:
        set_random_state(state)
    passed = [report is None for report in reports] + [False] * (len(exercise.checks) - len(reports))
    outcomes = [Outcome(check.question, ok) for check, ok in zip(exercise.checks, passed, strict=True)]
    outcomes.append(Outcome(TIDY, any(passed) and not probe.side_effects))
    problems = [report for report in reports if report] + probe.side_effects
    if len(reports) < len(exercise.checks):
        problems.append(TOO_LATE)
    count = sum(outcome.passed for outcome in outcomes)
    if problems:
        message = f"{name}: {count} of {len(outcomes)} checks passed\n{problems[0]}"
    else:
        message = f"{name}: passed, all {count} checks"
    return Result(name, message, tuple(outcomes))


@usual_settings()
def _run(check: "Check", probe: Probe, seconds: float) -> str | None:
    """Run one check. Return what is wrong, in words, or None."""
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    probe.last_call = probe.error = None
    probe.returned = []
    printed = _Printed()
    try:
        with redirect_stdout(printed), redirect_stderr(printed), deadline(max(seconds, 0.01)):
            pair = check.function(probe)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise _NoPair
            called, rows = _compared(*pair, probe, check.rtol)
    except KeyboardInterrupt:
        raise
    except _NoPair:
        raise TypeError(f"{check.function.__name__} returned {show(pair)}: it must return (found, expected)") from None
    except BaseException as error:
        called = probe.last_call
        headline, rows = _what_was_raised(error, probe)
        rows = [*rows, ("checking", check.question)]
    else:
        if not rows:
            return None
        headline = check.question
        rows = [("compared", check.compared), *rows] if check.compared else rows
    if called:
        rows = [("called", called), *rows]
    return "\n".join([headline, *_aligned([*rows, *printed.rows()])])


def _compared(found: object, expected: object, probe: Probe, rtol: float | None) -> tuple[str | None, Rows]:
    """Return the call to show and what differs.

    It is the latest call. If both are lists, and `found` holds what each call returned, it is the first call whose
    result differs.
    """
    results = [result for _, result in probe.returned]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(results) == len(expected):
        if all(item is result for item, result in zip(found, results, strict=True)):
            for (call, result), right in zip(probe.returned, expected, strict=True):
                if rows := compare(result, right, rtol):
                    return call, rows
    return probe.last_call, compare(found, expected, rtol)


class _NoPair(Exception):
    """A mistake of the exercise's author, which the student should not see."""


def _what_was_raised(error: BaseException, probe: Probe) -> tuple[str, Rows]:
    line = probe.line_of(error)
    rows = [("in", line)] if line else []
    if isinstance(error, DeadlinePassed):
        return TOO_LATE, rows
    what = shortened(traceback.format_exception_only(error)[-1].strip().partition("\n")[0], LONGEST)
    if error is probe.error:
        return f"It raised {what}", rows
    return f"Its result could not be used: {what}", rows


def _aligned(rows: Rows) -> list[str]:
    width = max((len(label) for label, _ in rows), default=0)
    return [f"  {label:{width}}  {text}".rstrip() for label, text in rows]


class _Printed(io.TextIOBase):
    """Replace a stream: count lines and keep only the first few, because an endless loop may print."""

    def __init__(self):
        self.kept, self.lines = "", 0

    def write(self, text: str) -> int:
        self.kept += text[: LONGEST - len(self.kept)]
        self.lines += text.count("\n")
        return len(text)

    def rows(self) -> Rows:
        lines = self.kept.splitlines()[:PRINTED_LINES]
        rows = [("" if index else "printed", line) for index, line in enumerate(lines)]
        return [*rows, ("", f"… {self.lines} lines in all")] if self.lines > len(lines) else rows
