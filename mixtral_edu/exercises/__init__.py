"""Exercises that check themselves, in a notebook, in a script and in a class.

For students:

    from mixtral_edu.exercises import check

    check.rms_norm(rms_norm)     # checks your function; the result has .passed, .score (0 to 1) and .message
    check.rms_norm               # shows the task
    check                        # lists all exercises

A function that has a place in the trained model can become a part of your own Mixtral: `mixtral_edu.exercises.own`.

For marks: `python -m mixtral_edu grade STUDENT.py` takes a script or a notebook. It runs a notebook's cells in order,
as "Restart and run all" does, and each exercise gets what the notebook's own check says of the function that has its
name at the end: one that is defined again after its check is checked once more. An error costs its own cell (of a
script, its own statement); shell commands do not run, nor do magic commands but those that time or capture
Python; each cell and each exercise may take 10 seconds (`--timeout`). The report names the cells that failed and what
was left out.

In an nbgrader test cell, `assert check.rms_norm(rms_norm)` gives all points or none. As the last line of a cell worth 4
points, `4 * check.rms_norm(rms_norm).score` gives a share of them. A cell that only shows the result earns all points,
whatever the result says. Checks guard against accidents, not against malice: run code that you do not trust in a
container.

For authors, with lesson 02 as the example:

1. `lesson_02.py`: an exercise is a reference solution, whose docstring is the task, and a list of checks.

       @exercise("RMSNorm")
       def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
           "Divide each vector of x (..., D) by its root mean square."
           return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

       @rms_norm.check("Is eps added to the mean square, inside the root?")
       def eps_inside_the_root(answer):
           x = torch.tensor([[3.0, 4.0]])                   # mean square 12.5
           return answer(x, torch.ones(2), 12.5), x / 5     # found, expected

   * Checks run in the order of the file. Put the fundamental ones first. Each looks for one mistake, which its question
     names, on inputs where that mistake shows (sizes that differ, a large eps, a pad row, an expert without a token).
   * A check returns (found, expected): tensors, numbers, or lists, tuples and dicts of them. The expected side is a
     closed form, loops in numpy, or a function of PyTorch, never the reference. A tensor fixes the dtype; an array does
     not.
   * A first check may test only types and shapes: `return form(answer(x)), "float32 (2, 3)"`, with `comparison.form`.
   * The message shows the latest call. If found and expected are lists with one item per call, it shows the first call
     that went wrong: `return [answer(3), answer(5)], [9, 25]`. If found is not the result of the call shown, say what
     it is: `@….check(…, compared="the difference to …")`.
   * Every answer is also checked for exceptions, endless loops, inputs changed in place and random numbers. If the task
     asks for one of these, say so: `@exercise(…, changes=("cache",))`, `@exercise(…, random=True)`.
   * `torch.randn` and other generators give a check the same numbers each time it runs.
   * For code that the student is to mend, `@exercise(…, faulty=function)`: the stub holds that function's code. Let the
     first checks find its mistakes, so that deleting the first line earns nothing.
   * The reference uses only its arguments and what the notebook's first cell imports. Its name must be unique among all
     lessons. Its lines have at most 95 characters, because a notebook shows it. The module imports nothing heavy.

2. `tests/helpers/exercises_02.py`: other right answers, and planted mistakes, at least one per check.
3. If the model computes what the exercise asks for: an entry in `own.functions.PARTS`, an adapter in `own` that calls
   the reader's function there, and a place in the drawing, `viz/own.py`.
4. `python tools/write_exercises.py notebooks/exercises/02_….ipynb` writes stubs, checks and folded solutions. Write the
   tasks (idea, formula, table of shapes, numbers by hand) and hints, then run `tools/refresh_notebooks.py`.
"""

import difflib
import importlib
import pkgutil
from functools import cache

from mixtral_edu.exercises.framework import Exercise, exercise
from mixtral_edu.exercises.result import Outcome, Result

__all__ = ["Exercise", "Outcome", "Result", "check", "exercise", "exercises"]


@cache
def exercises() -> dict[str, Exercise]:
    """Return all exercises by name, in the order of the lessons.

    Raises:
        ValueError: two exercises have the same name.
    """
    found: dict[str, Exercise] = {}
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("lesson_"))
    for name in names:
        module = importlib.import_module(f"{__name__}.{name}")
        for each in [thing for thing in vars(module).values() if isinstance(thing, Exercise)]:
            if each.name in found:
                raise ValueError(
                    f"{each.name} is an exercise of lessons {found[each.name].lesson} and {each.lesson}: rename one"
                )
            found[each.name] = each
    return found


class _Checks:
    """`check.NAME(function)` runs the checks of an exercise; `check.NAME` shows its task."""

    def __getattr__(self, name: str) -> Exercise:
        if name.startswith("_"):  # Python and IPython look up many of these
            raise AttributeError(name)
        if name not in exercises():
            close = difflib.get_close_matches(name, exercises(), n=1)
            hint = f"did you mean check.{close[0]}?" if close else f"there are {', '.join(exercises())}"
            raise AttributeError(f"there is no exercise {name!r}; {hint}")
        return exercises()[name]

    def __dir__(self) -> list[str]:
        return list(exercises())

    def __repr__(self) -> str:
        width = max(map(len, exercises()))
        lines = [f"{each.lesson}  check.{each.name:{width}}  {each.title}" for each in exercises().values()]
        return "\n".join(lines)


check = _Checks()
