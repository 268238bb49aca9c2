"""Each lesson's exercises: right answers pass, planted mistakes get the question that names them, notebooks agree."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat import NotebookNode

import exercise_answers
import write_exercises
from exercise_answers import RIGHT, WRONG
from mixtral_edu.exercises import Exercise, exercise, exercises
from mixtral_edu.exercises.framework import SECONDS
from mixtral_edu.exercises.own import PARTS
from refresh_notebooks import NOTEBOOKS, as_text, read
from write_exercises import FOLDED, cells_of, closing_cells

ANSWER_FILES = list(Path(exercise_answers.__file__).parent.glob("exercises_*.py"))
for path in ANSWER_FILES:
    importlib.import_module(path.stem)

EXERCISES = list(exercises().values())
LESSONS = sorted({exercise.lesson for exercise in EXERCISES})
RIGHT_ANSWERS = [(exercises()[name], answer) for name, answers in RIGHT.items() for answer in answers]
WRONG_ANSWERS = [(exercises()[name], answer, hint) for name, answers in WRONG.items() for answer, hint in answers]


def name_of(value: object) -> str | None:
    if isinstance(value, Exercise):
        return value.name
    return value.__name__ if callable(value) else ""


def first_failure(exercise: Exercise, answer: Callable) -> str | None:
    return next((outcome.question for outcome in exercise(answer).outcomes if not outcome.passed), None)


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_the_reference_passes_well_within_the_limit(exercise: Exercise):
    result = exercise(exercise.reference, seconds=SECONDS / 4)
    assert (result.passed, result.score) == (True, 1.0), result


@pytest.mark.parametrize(("exercise", "answer"), RIGHT_ANSWERS, ids=name_of)
def test_another_right_answer_passes(exercise: Exercise, answer: Callable):
    result = exercise(answer)
    assert result.passed, result


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_a_right_answer_passes_whatever_the_process_is_set_to(exercise: Exercise):
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"), torch.no_grad():
            first = exercise(exercise.reference)
        torch.set_default_dtype(torch.bfloat16)
        with torch.inference_mode(), torch.autocast("cpu"):
            second = exercise(exercise.reference)
    finally:
        torch.set_default_dtype(torch.float32)
    assert first.passed and second.passed, f"{first}\n{second}"


@pytest.mark.parametrize(("exercise", "answer", "hint"), WRONG_ANSWERS, ids=name_of)
def test_a_planted_mistake_is_named(exercise: Exercise, answer: Callable, hint: str):
    result = exercise(answer)
    assert result.attempted and not result.passed and 0 <= result.score < 1
    assert hint in result.message
    assert hint in first_failure(exercise, answer)


SEVERAL_CALLS = ("first_out_of_reach", "scores_in_blocks", "layers_needed", "published_name")


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [(each, answer) for each, answer, hint in WRONG_ANSWERS if each.name in SEVERAL_CALLS and "int?" not in hint],
    ids=name_of,
)
def test_of_several_calls_the_one_that_failed_is_shown(exercise: Exercise, answer: Callable):
    rows = dict(re.findall(r"^  (\w+) +(.+)", exercise(answer).message, re.MULTILINE))
    found, expected = (eval(rows["called"], {exercise.name: each}) for each in (answer, exercise.reference))
    assert (rows["found"], rows["expected"]) == (repr(found), repr(expected)) and found != expected


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_an_exercise_is_proven_by_answers(exercise: Exercise):
    assert RIGHT[exercise.name], "hand in a right answer that is written differently"
    assert len(WRONG[exercise.name]) >= 3, "plant at least three mistakes"
    caught = {first_failure(exercise, answer) for answer, _ in WRONG[exercise.name]}
    idle = [check.question for check in exercise.checks if check.question not in caught]
    assert not idle, "no planted mistake is caught by these checks"


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_the_stub_is_not_attempted_and_the_solution_passes(exercise: Exercise):
    names = dict(exercise.reference.__globals__)
    exec(exercise.stub, names)
    result = exercise(names[exercise.name])
    assert (result.attempted, result.passed, result.message) == (False, False, f"{exercise.name}: not attempted yet")
    exec(exercise.solution, names)
    assert exercise(names[f"{exercise.name}_solution"]).passed


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_what_a_student_reads(exercise: Exercise):
    assert exercise.title and len(exercise.reference.__doc__.splitlines()) > 3, "the docstring is the task"
    assert max(map(len, f"{exercise.stub}\n{exercise.solution}".splitlines())) <= 95, "wider than a notebook's cell"
    questions = [check.question for check in exercise.checks]
    assert len(set(questions)) == len(questions)
    assert all("?" in question for question in questions)


def test_there_is_an_answer_file_for_each_lesson():
    handed_in = {path.stem.removeprefix("exercises_") for path in ANSWER_FILES}
    assert handed_in == set(LESSONS)


def test_the_rules_above_can_fail(monkeypatch):
    @exercise("Not proven")
    def identity(x):
        """Return x."""
        return x

    @identity.check("Is it x?")
    def same(answer):
        return answer(3), 3

    @identity.check("Is it x, whatever x is?")
    def same_text(answer):
        return answer("x"), "x"

    right, zero, one, text = identity.reference, lambda x: 0, lambda x: 1, lambda x: 3
    for given, planted, complaint in [
        ([], [zero, one, text], "a right answer"),
        ([right], [zero, text], "at least three mistakes"),
        ([right], [zero, one, zero], "no planted mistake is caught"),
    ]:
        monkeypatch.setitem(RIGHT, "identity", given)
        monkeypatch.setitem(WRONG, "identity", [(answer, "") for answer in planted])
        with pytest.raises(AssertionError, match=complaint):
            test_an_exercise_is_proven_by_answers(identity)
    monkeypatch.setitem(WRONG, "identity", [(answer, "") for answer in (zero, one, text)])
    test_an_exercise_is_proven_by_answers(identity)
    test_a_planted_mistake_is_named(identity, text, "whatever x is")
    with pytest.raises(AssertionError):
        test_a_planted_mistake_is_named(identity, right, "")
    with pytest.raises(AssertionError):
        test_a_planted_mistake_is_named(identity, zero, "whatever x is")


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_notebook_has_the_cells_of_each_exercise(lesson: str):
    (path,) = NOTEBOOKS.glob(f"exercises/{lesson}_*.ipynb")
    stored = {cell.id: cell for cell in read(path).cells}
    ids = []
    for number, each in enumerate((each for each in EXERCISES if each.lesson == lesson), start=1):
        task, stub, attempt, *keep, hints, solution = cells = cells_of(each, number)
        ids += [cell.id for cell in cells]
        assert set(ids) <= set(stored), f"run: python tools/write_exercises.py {path}"
        for cell in (stub, attempt, *keep, solution):
            assert stored[cell.id].source == cell.source, f"run: python tools/write_exercises.py {path}"
        assert stored[solution.id].metadata == FOLDED
        assert shown(stored[attempt.id]) == f"{each.name}: not attempted yet"
        assert [shown(stored[cell.id]) for cell in keep] == [NOTHING_KEPT.format(each.name)] * (each.name in PARTS)
        assert shown(stored[solution.id]) == f"{each.name}: passed, all {len(each.checks) + 1} checks"
        assert stored[task.id].source.startswith(f"## {number} · ") and "| result |" in stored[task.id].source
        assert "<details>" in stored[hints.id].source
        assert "…\n" not in stored[task.id].source + stored[hints.id].source, "texts are still to be written"
    if any(each.name in PARTS for each in EXERCISES if each.lesson == lesson):
        ids += [cell.id for cell in closing_cells()]
        assert [stored[cell.id].source for cell in closing_cells()] == [cell.source for cell in closing_cells()]
    assert [id for id in stored if id in ids] == ids, "the cells are not in the order of the exercises"


NOTHING_KEPT = "{}: not attempted yet, so there is nothing to keep"


def shown(cell: NotebookNode) -> str:
    return "".join(output.data["text/plain"] for output in cell.outputs if output.output_type == "execute_result")


def test_a_new_notebook_is_filled_and_texts_that_were_written_stay(tmp_path: Path, capsys):
    path = tmp_path / "02_trial.ipynb"
    assert write_exercises.main([str(path)]) == 0
    notebook = read(path)
    nbformat.validate(notebook)
    names = [exercise.name for exercise in EXERCISES if exercise.lesson == "02"]
    parts = ("task", "stub", "check", "keep", "hints", "solution")
    ids = [f"{name}-{part}" for name in names for part in parts if part != "keep" or name in PARTS]
    assert [cell.id for cell in notebook.cells] == ["title", "set-up", *ids, *(cell.id for cell in closing_cells())]
    before = path.read_bytes()
    write_exercises.main([str(path)])
    assert path.read_bytes() == before

    cells = {cell.id: cell for cell in notebook.cells}
    cells["rms_norm-task"].source = "A task."
    cells["rms_norm-stub"].source = "def rms_norm(x): ..."
    cells["title"].source = "# A title"
    notebook.cells.remove(cells["rms_norm-hints"])
    notebook.cells.remove(cells["rms_norm-keep"])
    path.write_text(as_text(notebook), encoding="utf-8")
    write_exercises.main([str(path)])
    after = {cell.id: cell for cell in read(path).cells}
    assert (after["title"].source, after["rms_norm-task"].source) == ("# A title", "A task.")
    assert after["rms_norm-stub"].source == exercises()["rms_norm"].stub
    assert list(after) == list(cells), "each missing cell is back in its place"
    assert capsys.readouterr().out.count(f"{path}: rms_norm, ") == 3
