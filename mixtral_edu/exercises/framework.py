"""Exercises: each has a task, a reference solution, and checks that each look for one mistake."""

import ast
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from mixtral_edu.exercises.grading import grade
from mixtral_edu.exercises.result import Result

SECONDS = 10.0  # limit for all checks of one exercise; a right answer takes less than a second


@dataclass(frozen=True)
class Check:
    """One check: `function` calls the student's function and returns (found, expected)."""

    function: Callable
    question: str
    rtol: float | None
    compared: str | None


class Exercise:
    """One exercise. `check.NAME` is one; call it with the student's function.

    Attributes:
        name: the name of the exercise and of the function that the student writes.
        title: the title, in a few words.
        lesson: the number of the lesson, in two digits.
        reference: a right answer. Its docstring is the task.
        changes: parameters that the function must change in place.
        random: whether the function may draw from the shared random generators.
        faulty: a function with a planted mistake, whose code the student gets to mend; None for an empty stub.
        checks: the checks in order, from fundamental to subtle.
        grader: what a call runs. While a submission runs, the `grade` command sets one that also keeps the results.
    """

    grader = staticmethod(grade)

    def __init__(
        self,
        reference: Callable,
        title: str,
        changes: tuple[str, ...] = (),
        random: bool = False,
        faulty: Callable | None = None,
    ):
        self.reference = reference
        self.name = reference.__name__
        self.title = title
        self.lesson = reference.__module__.rpartition("lesson_")[2]
        self.signature = inspect.signature(reference)
        self.changes = changes
        if not set(changes) <= set(self.signature.parameters):
            raise ValueError(
                f"changes={changes}: it must name parameters of {self.name}, {list(self.signature.parameters)}"
            )
        self.random = random
        self.faulty = faulty
        self.checks: list[Check] = []
        self.__doc__ = f"{title}.\n\n{inspect.getdoc(reference)}"  # what `check.NAME?` shows in a notebook

    def check(
        self, question: str, rtol: float | None = None, compared: str | None = None
    ) -> Callable[[Callable], Callable]:
        """Decorator that adds a check to the exercise.

        Args:
            question: a question that names the likely cause if the check fails.
            rtol: the relative tolerance; None for the usual one of the dtype.
            compared: what the check returns, if that is not the result of the call that the message shows.
        """

        def add(function: Callable) -> Callable:
            self.checks.append(Check(function, question, rtol, compared))
            return function

        return add

    def __call__(self, answer: Callable, seconds: float = SECONDS) -> Result:
        """Run the checks on `answer`, the student's function, for at most `seconds`."""
        return self.grader(self, answer, seconds)

    def __repr__(self) -> str:
        return f"check.{self.name}(your_function)\n\n{self.__doc__}"

    @property
    def stub(self) -> str:
        """The text of the cell in which the student writes: signature and task."""
        signature, task, _ = self._source()
        stub = f"{signature}{task}    raise NotImplementedError"
        if self.faulty is None:
            return stub
        source = inspect.getsource(self.faulty)
        body = source.splitlines()[ast.parse(source).body[0].body[0].lineno - 1 :]
        return "\n".join([f"{stub}  # delete this line, then mend the code below", *body])

    @property
    def solution(self) -> str:
        """The text of the reference solution as a function `NAME_solution`, without the task."""
        signature, _, body = self._source()
        return signature.replace(f"def {self.name}(", f"def {self.name}_solution(") + body.strip("\n")

    def _source(self) -> tuple[str, str, str]:
        """Return the signature, docstring and body of the reference as they are written."""
        source = inspect.getsource(self.reference)
        function = ast.parse(source).body[0]
        docstring = function.body[0]
        lines = source.splitlines(keepends=True)
        cuts = function.lineno - 1, docstring.lineno - 1, docstring.end_lineno, len(lines)  # without the decorator
        return tuple("".join(lines[start:end]) for start, end in itertools.pairwise(cuts))


def exercise(
    title: str, *, changes: tuple[str, ...] = (), random: bool = False, faulty: Callable | None = None
) -> Callable[[Callable], Exercise]:
    """Decorator that turns a reference solution into an exercise; see the guide in `mixtral_edu.exercises`."""
    return lambda reference: Exercise(reference, title, changes, random, faulty)
