"""The command that grades a submission: a process of its own, a table, a report, an exit status."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from mixtral_edu.__main__ import main
from mixtral_edu.exercises import check, exercises, submission
from mixtral_edu.exercises.result import Result
from refresh_notebooks import NOTEBOOKS

ROTARY = check.apply_rotary.solution.replace("_solution", "")
RIGHT = "\n\n\n".join(each.solution.replace("_solution", "") for each in exercises().values() if each.lesson == "02")
IMPORTS = "import torch\nfrom torch import Tensor\n\n\n"


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """Forget what a submission that was run in this process could import."""
    path = sys.path.copy()
    yield
    sys.path[:] = path
    for name in ("submission", "neighbour_of_student"):
        sys.modules.pop(name, None)


def grade(path: Path, *options: str) -> int:
    """Run the command and return its exit status."""
    try:
        main(["grade", str(path), *options])
    except SystemExit as stop:
        return stop.code
    return 0


def write(folder: Path, text: str) -> Path:
    path = folder / "student.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.slow
def test_one_exercise_that_hangs_or_crashes_costs_no_other(tmp_path: Path, capsys):
    student = write(
        tmp_path,
        f"""
import itertools, os, time
{IMPORTS}

def rms_norm(x, weight, eps):
    print("stuck")
    sum(itertools.repeat(1))  # one call into C that never ends

{ROTARY}

def qk_to_half_split(q, k, num_heads, num_kv_heads):
    os._exit(7)
""",
    )
    assert grade(student, "--timeout", "1.5", "--json", str(tmp_path / "report.json")) == 1
    table, *problems = capsys.readouterr().out.split("\n\n")
    assert [line.split() for line in table.splitlines()] == [
        ["02", "rms_norm", "-", "failed"],
        ["02", "apply_rotary", "7", "of", "7", "passed"],
        ["02", "qk_to_half_split", "-", "failed"],
    ]
    assert problems == [
        "rms_norm: it did not come to an end in time, and was stopped. Does every loop end?",
        "qk_to_half_split: the process ended with exit status 7",
        "1 of 3 exercises passed, score 0.33\n",
    ]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["submission"], report["passed"], report["score"]) == (str(student), False, pytest.approx(1 / 3))
    stuck, rotary, crashed = report["exercises"]
    assert (stuck["name"], stuck["lesson"], stuck["score"], stuck["checks"]) == ("rms_norm", "02", 0.0, [])
    assert (rotary["passed"], rotary["attempted"], rotary["score"]) == (True, True, 1.0)
    assert [each["question"] for each in rotary["checks"]][:-1] == [each.question for each in check.apply_rotary.checks]
    assert crashed["message"] == problems[1]


@pytest.mark.slow
def test_of_a_notebook_the_definitions_run_and_nothing_else(tmp_path: Path, capsys):
    cells = [
        "%matplotlib inline\nimport torch\nfrom torch import Tensor",
        "%%bash\necho this is no Python: (",
        "raise SystemExit('an experiment')",
        "D: int = 8\nSCALE = -1.0\nhalf = lambda x: x / 2\nwhile False: pass\nfiles = !ls\ntorch.nn?\n!ls",
        RIGHT,
        "while True:\n    pass",
        "def unfinished(x):\n    raise NotImplementedError\n\nunfinished(D)",
    ]
    path = tmp_path / "student.ipynb"
    markdown = nbformat.v4.new_markdown_cell("def rms_norm(")
    notebook = nbformat.v4.new_notebook(cells=[markdown, *map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(notebook, path)
    module = submission.load(path, submission.read(path))
    assert (module.D, module.SCALE, module.half(4), hasattr(module, "files")) == (8, -1.0, 2, False)
    assert grade(path) == 0
    assert capsys.readouterr().out.endswith("\n\n3 of 3 exercises passed, score 1.00\n")


@pytest.mark.slow
def test_the_exercise_notebook_itself_can_be_handed_in(capsys):
    (path,) = NOTEBOOKS.glob("exercises/02_*.ipynb")
    assert grade(path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in lines[:3]] == [["-", "not", "attempted"]] * 3
    assert lines[3:] == ["", "0 of 3 exercises passed, score 0.00"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_file_that_hangs_is_ended_with_the_processes_it_started(tmp_path: Path, capsys):
    beat = tmp_path / "beat"
    student = write(
        tmp_path,
        f"""
import os, time
os.fork()
while True:
    time.sleep(0.01)
    open({str(beat)!r}, "a").write(".")
def rms_norm(x, weight, eps): pass
""",
    )
    assert grade(student, "--timeout", "0.2") == 1
    out = capsys.readouterr().out
    assert "rms_norm, apply_rotary, qk_to_half_split: the file could not be run\n  it did not come to an end" in out
    size = beat.stat().st_size
    time.sleep(0.2)
    assert 0 < size == beat.stat().st_size


def report_of(student: Path, *names: str) -> list[list]:
    """What the process that grades writes, here in this one."""
    report = student.with_suffix(".report")
    submission.main(str(student), str(report), "5", *names)
    return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import sys\nsys.exit('no')\n", "SystemExit: no ({}, line 2)"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' ({}, line 1)"),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError: division by zero ({}, line 2)"),
        ("def rms_norm(x,\n", "SyntaxError: '(' was never closed ({}, line 1)"),
    ],
)
def test_a_file_that_cannot_be_run_says_why_and_where(tmp_path: Path, text: str, problem: str):
    student = write(tmp_path, text)
    assert report_of(student, "rms_norm") == [["started"], ["loaded", problem.format(student)]]


def test_a_cell_that_cannot_be_run_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "student.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", "def rms_norm(x, weight, eps):\n    x =")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    problem = f"SyntaxError: invalid syntax ({path}, code cell 2, line 2)"
    assert report_of(path, "rms_norm") == [["started"], ["loaded", problem]]


def test_a_script_is_no_main_program_and_may_import_its_neighbours(tmp_path: Path):
    (tmp_path / "neighbour_of_student.py").write_text("WEIGHT = 3\n")
    text = "import neighbour_of_student\nif __name__ == '__main__': exit()\n\ndef rms_norm(x, weight, eps): 1 / 0\n"
    started, loaded, (kind, fields), missing = report_of(write(tmp_path, text), "rms_norm", "apply_rotary")
    assert (started, loaded, kind) == (["started"], ["loaded", None], "result")
    assert fields["message"].splitlines()[3] == "  in        line 4: def rms_norm(x, weight, eps): 1 / 0"
    assert missing[1]["message"] == "apply_rotary: there is no function of this name"
    assert Result(**missing[1]).attempted is False


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("missing.py", None, (), "missing.py"),
        ("binary.py", b"\xff\xfe\x00", (), "can't decode"),
        ("old.ipynb", b'{"worksheets": []}', (), "no notebook of format 4: KeyError('cells')"),
        ("broken.ipynb", b"{", (), "no notebook of format 4"),
        ("other.py", b"def something(): pass\n", (), "defines no function of an exercise; --lesson says"),
        ("student.py", b"def rms_norm(): pass\n", ("--lesson", "2"), "lesson '2' has no exercises; 01, 02"),
        ("student.py", b"def rms_norm(): pass\n", ("--timeout", "0"), "0 is not a number of seconds above 0"),
        ("student.py", b"def rms_norm(): pass\n", ("--timeout", "soon"), "soon"),
    ],
)
def test_what_cannot_be_graded_gives_status_2(tmp_path: Path, capsys, name, content, options, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert grade(tmp_path / name, *options) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def rms_norm(x): pass", ["rms_norm"]),
        ("rms_norm = 3\n\ndef apply_rotary (x): pass", ["rms_norm", "apply_rotary"]),
        ("rms_norm: object = 3", ["rms_norm"]),
        ("def rms_norm_solution(x): pass\nprint(rms_norm)\ncheck.rms_norm(rms_norm)", []),
        ("class A:\n    def rms_norm(x): pass", []),
        ("def rms_norm(x: this is no Python", ["rms_norm"]),
    ],
)
def test_which_exercises_a_text_answers(text: str, names: list[str]):
    assert submission.exercises_in({"student.py": text}) == names
