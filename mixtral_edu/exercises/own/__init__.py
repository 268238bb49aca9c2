"""The reader's own Mixtral: functions that pass their exercises go into the trained model, and it writes with them.

    from mixtral_edu.exercises.own import compare, forget, keep, my_mixtral, try_out

    keep(rms_norm)          # checks it; if it passes, writes it to my_mixtral/rms_norm.py
    try_out(rms_norm)       # puts it into the model for one comparison, right or wrong: what does it cost?
    compare()               # what each kept part changes, and a story written with all of them
    model = my_mixtral()    # the trained model with the kept parts in place of its own

`mixtral_edu.viz.own.draw_my_mixtral()` shows which parts are yours; `PARTS` lists the exercises that have a place in
the model. The files are plain Python, in the folder `my_mixtral` where the notebook runs, so they outlive its kernel
and serve other lessons' notebooks. Nothing runs them but the functions here.

While `python -m mixtral_edu grade` runs a notebook, `keep` only checks, and the others do nothing.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.exercises import Exercise, exercises
from mixtral_edu.exercises.framework import SECONDS
from mixtral_edu.exercises.grading import grade
from mixtral_edu.exercises.own.adapters import put_in
from mixtral_edu.exercises.own.files import NotKept, folder_of, load, replacing, text_of
from mixtral_edu.exercises.own.functions import PARTS, PartFailed
from mixtral_edu.exercises.own.measuring import ROUNDING, Measured, measure_own, package
from mixtral_edu.exercises.result import Result

__all__ = ["PARTS", "PartFailed", "Report", "compare", "forget", "keep", "kept", "my_mixtral", "names_kept", "try_out"]

LIMIT = 120.0  # seconds for a measurement of the model with the reader's parts; the package's takes a few
WIDTH = 100  # of a report, in characters


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What one of the functions here has to say. A notebook shows its `text`.

    Attributes:
        package: what the package's own model does with the probe; None if it was not asked.
        own: what the model with the reader's parts does; None if it was not asked, or could not finish.
    """

    text: str
    package: Measured | None = None
    own: Measured | None = None

    def __repr__(self) -> str:
        return self.text


def keep(function: Callable, folder: str | Path | None = None) -> Result:
    """Check a function of yours and, if it passes, keep it as a part of your Mixtral.

    It is written to `FOLDER/NAME.py` with the imports that it needs, in place of an earlier version. The file must pass
    the check by itself, without the notebook. If it does not, or is interrupted, an earlier version stays as it is.

    Args:
        function: the function of an exercise in `PARTS`, under its name.
        folder: where parts are kept; None for `my_mixtral` in the folder where the notebook runs.

    Returns:
        The result of the check. Its message says in short whether it passed, and where the part is kept, or why not.

    Raises:
        ValueError: it does not have the name of a part.
    """
    name = _part_name(function)
    result = exercises()[name](function)
    if _is_graded():
        return result
    if not result.attempted:
        return dataclasses.replace(result, message=f"{result.message}, so there is nothing to keep")
    path = folder_of(folder) / f"{name}.py"
    try:
        if not result.passed:
            raise NotKept(f"try_out({name}) shows what it does to the model.")
        with replacing(path, text_of(function, name)) as file:
            alone = grade(exercises()[name], load(file, name), SECONDS)
            if not alone.passed:
                raise NotKept(f"it does not pass in a file of its own, without this notebook\n{alone.message}")
    except (NotKept, ValueError) as error:
        ending = f"Not kept: {error}" + (f"\n{path}, which you kept earlier, stays." if path.exists() else "")
    else:
        ending = f"Kept in {path}. {_count(names_kept(folder))}."
    return dataclasses.replace(result, message=f"{result.message.partition(chr(10))[0]}\n{ending}")


def forget(part: str | Callable, folder: str | Path | None = None) -> Report:
    """Remove a kept part, given as its name or as the function; the package's takes its place again."""
    name = _part_name(part)
    path = folder_of(folder) / f"{name}.py"
    if not path.exists():
        return Report(f"{name} is not kept: there is no {path}.")
    path.unlink()
    return Report(f"{name}: {path} is removed. {_count(names_kept(folder))}.")


def names_kept(folder: str | Path | None = None) -> list[str]:
    """Return the names of your kept parts, in the order of the lessons."""
    return [name for name in PARTS if (folder_of(folder) / f"{name}.py").is_file()]


def kept(folder: str | Path | None = None) -> dict[str, Callable]:
    """Return your kept functions by name. This runs their files.

    Raises:
        ValueError: a file cannot be run; the message names it.
    """
    return {name: load(folder_of(folder) / f"{name}.py", name) for name in names_kept(folder)}


def my_mixtral(model: str | Path = "tiny", folder: str | Path | None = None) -> MixtralForCausalLM:
    """Return a trained model, in float32 and without the engine, with your kept parts in place of its own.

    `generate` and `stream` work as always. A part that raises, or returns something of another form than the model
    needs, ends them in a `PartFailed`, which says what was called and what is wrong.

    Args:
        model: "tiny", "tiny-instruct" or a folder, as for `from_pretrained`.
        folder: where parts are kept, as for `keep`.
    """
    functions = kept(folder)
    return put_in(MixtralForCausalLM.from_pretrained(model, dtype="float32", engine=False), functions)


def compare(model: str | Path = "tiny", folder: str | Path | None = None, seconds: float = LIMIT) -> Report:
    """Say what your kept parts change, each alone and all together, and let the model write with all of them.

    A right part changes nothing but rounding, which moves a logit by less than 0.001.

    Args:
        model, folder: as for `my_mixtral`.
        seconds: limit for each measurement.
    """
    names = names_kept(folder)
    rest = [name for name in PARTS if name not in names]
    lines = [f"{_count(names)}: {_by_lesson(names)}" if names else _count(names)]
    lines += [f"Still the package's: {_by_lesson(rest)}"] if rest else []
    lines = [textwrap.fill(line, WIDTH) for line in lines]
    if not names or _is_graded():
        return Report("\n".join(lines))
    functions, (_, _, theirs) = kept(folder), package(model)
    measured = {name: measure_own({name: functions[name]}, model, seconds, story=False) for name in names}
    measured["all together"] = own = measure_own(functions, model, seconds, story=True)
    width = max(map(len, measured))
    lines += ["", f"{'':{width}}  largest change  loss in nats per token (the package's: {theirs.loss:.4f})"]
    for name, found in measured.items():
        if isinstance(found, str):
            lines.append(f"{name:{width}}  {found.partition(chr(10))[0]}")
        else:
            lines.append(f"{name:{width}}  {max(found.changes(theirs).values()):14.2g}  {found.loss:.4f}")
    if isinstance(own, str):
        return Report("\n".join([*lines, "", own]), theirs)
    return Report("\n".join([*lines, "", *_stories(own, theirs)]), theirs, own)


def try_out(function: Callable, part: str | None = None, model: str | Path = "tiny", seconds: float = LIMIT) -> Report:
    """Put one function into the trained model for a comparison, right or wrong, and keep nothing.

    All other parts are the package's, so whatever changes, this function has changed it.

    Args:
        function: what takes the place of a part.
        part: the part's name, for a function that has another name.
        model: as for `my_mixtral`.
        seconds: limit for the model with this function.
    """
    name = _part_name(part or function)
    if _is_graded():
        return Report(f"{name}: not tried out while the notebook is graded")
    _, _, theirs = package(model)
    own = measure_own({name: function}, model, seconds, story=True)
    if isinstance(own, str):
        return Report(f"{name} does not work in the model.\n{own}", theirs)
    changes = {what: change for what, change in own.changes(theirs).items() if change > ROUNDING}
    lines = [f"{name} in the trained model, all other parts the package's", ""]
    if changes:
        before, after = (f"{each.loss:.4f}" if each.loss < 100 else f"{each.loss:.3g}" for each in (theirs, own))
        lines.append(f"loss: {before} -> {after} nats per token")
        if changes.get("a logit") and changes.get("the loss", 0) > 0.01:
            before, after = (f"{math.exp(-each.loss):.1%}" for each in (theirs, own))
            lines.append(f"the right token's probability, geometric mean: {before} -> {after}")
        lines.append(f"largest changes: {', '.join(f'{what} {change:.2g}' for what, change in changes.items())}")
    else:
        lines.append("Nothing changes but rounding. This does not make it right: the stories that the model reads here "
                     f"may not\nhold the case that check.{name} looks for.")  # fmt: skip
    return Report("\n".join([*lines, "", *_stories(own, theirs)]), theirs, own)


def _part_name(given: str | Callable) -> str:
    """Return the name of a part.

    Raises:
        ValueError: there is no part of this name; the message says what to give.
    """
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    if name in PARTS:
        return name
    if name in exercises():
        why = f"{name} has no place in the model; check.{name}({name}) is all that it needs"
    elif name.removesuffix("_solution") in PARTS:
        why = f"{name} is a given solution; what counts is a function of your own, {name.removesuffix('_solution')}"
    else:
        why = f"there is no part {name!r}; write your function as def NAME(…) with the name of an exercise"
    raise ValueError(f"{why}. Parts are {', '.join(PARTS)}")


def _is_graded() -> bool:
    """Whether `python -m mixtral_edu grade` is running a submission."""
    return Exercise.grader is not grade


def _count(names: list[str]) -> str:
    return f"{len(names)} of {len(PARTS)} parts are yours"


def _by_lesson(names: list[str]) -> str:
    lessons: dict[str, list[str]] = {}
    for name in names:
        lessons.setdefault(exercises()[name].lesson, []).append(name)
    return "; ".join(f"lesson {lesson} {', '.join(of_a_lesson)}" for lesson, of_a_lesson in lessons.items())


def _stories(own: Measured, theirs: Measured) -> list[str]:
    """Both stories, or one if they are the same."""
    if own.story == theirs.story:
        return [_told("The model writes what it wrote before", own.story)]
    return [_told("The package writes", theirs.story), _told("With yours it writes", own.story)]


def _told(who: str, story: str) -> str:
    return textwrap.fill(f"{who}: {story}", WIDTH)
