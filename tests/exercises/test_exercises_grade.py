"""The command that grades a submission: a process of its own, a table, a report, an exit status."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from mixtral_edu.__main__ import main
from mixtral_edu.exercises import check, exercises, submission
from mixtral_edu.exercises.marking import mark
from mixtral_edu.exercises.result import Result
from refresh_notebooks import NOTEBOOKS, execute

ROTARY = check.apply_rotary.solution.replace("_solution", "")
LESSON_02 = [each for each in exercises().values() if each.lesson == "02"]
RIGHT = "\n\n\n".join(each.solution.replace("_solution", "") for each in LESSON_02)
IMPORTS = "import torch\nfrom torch import Tensor\n\n\n"


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """Forget where a submission that was run in this process was, and what it could import."""
    path, folder = sys.path.copy(), Path.cwd()
    yield
    sys.path[:] = path
    os.chdir(folder)
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
    lines = {
        "rms_norm": ["-", "failed"],
        "apply_rotary": ["7", "of", "7", "passed"],
        "qk_to_half_split": ["-", "failed"],
    }
    assert [line.split() for line in table.splitlines()] == [
        ["02", each.name, *lines.get(each.name, ["-", "not", "attempted"])] for each in LESSON_02
    ]
    stopped, *others = problems
    assert stopped.startswith("rms_norm: ") and stopped.endswith("Does every loop end?")
    assert others == [
        "qk_to_half_split: the process ended with exit status 7",
        f"1 of {len(LESSON_02)} exercises passed, score {1 / len(LESSON_02):.2f}\n",
    ]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["submission"], report["passed"], report["score"]) == (
        str(student), False, pytest.approx(1 / len(LESSON_02))
    )  # fmt: skip
    marks = {each["name"]: each for each in report["exercises"]}
    stuck, rotary, crashed = (marks[name] for name in lines)
    assert (stuck["name"], stuck["lesson"], stuck["score"], stuck["checks"]) == ("rms_norm", "02", 0.0, [])
    assert (rotary["passed"], rotary["attempted"], rotary["score"]) == (True, True, 1.0)
    assert [each["question"] for each in rotary["checks"]][:-1] == [each.question for each in check.apply_rotary.checks]
    assert crashed["message"] == problems[1]


def write_notebook(folder: Path, cells: list[str]) -> Path:
    path = folder / "student.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def solution(name: str, changes: dict[str, str] | None = None) -> str:
    """A right answer, as a student may have written it."""
    text = exercises()[name].solution.replace("_solution", "")
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    return text


def indented(text: str) -> str:
    return "    " + text.replace("\n", "\n    ")


def in_a_notebook(path: Path) -> dict[str, str]:
    """What the checks say when Jupyter runs the notebook, given solutions aside: the latest message by exercise."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata["tags"] = ["raises-exception"]  # go on after an error
    messages = {}
    for cell in execute(notebook, path.parent, timeout=60).cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/plain", "")
            name, colon, _ = text.partition(": ")
            if colon and name in exercises() and "_solution" not in cell.source:
                messages[name] = text
    return messages


SET_UP = "import torch\nfrom torch import Tensor\n\nfrom mixtral_edu.exercises import check"
MY_NORM = {"rms_norm": "my_norm", "torch.rsqrt": "rsqrt", "x32 *": "half(2) * x32 *"}
TOP_LEVEL = [
    SET_UP,
    "HALF = 1 / 2\nrsqrt = torch.rsqrt\nhalf = lambda x: x * HALF\nD: int = 8",
    "try:\n    import no_such_module as fast\nexcept ImportError:\n    fast = None",
    "if fast is None:\n" + indented(solution("rms_norm", MY_NORM)),
    "rms_norm = my_norm",
    "check.rms_norm(rms_norm)",
    "def my_norm(x): return x\nrsqrt = None",  # another use of the names, after the check
    "def apply_rotary(x, cos, sin):\n    return x.no_such_attribute",
    "check.apply_rotary(apply_rotary)",
    "raise ValueError('an experiment')",
    "import sys; sys.exit()",
    "for _ in range(1):\n" + indented(solution("qk_to_half_split")),
    "check.qk_to_half_split(qk_to_half_split)",
    "def rms_norm_solution(x, weight, eps): return x\n\ncheck.rms_norm(rms_norm_solution)",
]
IPYTHON = [
    f"%matplotlib inline\n!echo one \\\n   two\nimport matplotlib.pyplot as plt\n{SET_UP}",
    "%%time\n" + solution("rms_norm"),
    "check.rms_norm(rms_norm)",
    "%%capture out\nprint('captured')\nSPLIT = 2\n" + solution("apply_rotary"),
    "assert out.stdout == 'captured\\n' and SPLIT == 2\nturn = %time apply_rotary",
    "check.apply_rotary(turn)",
    "%%bash\necho this is no Python: (",
    "%%html\n<b>",
    "plt.plot([1, 2])\nplt.show()",
    "input('Go on?')",
    "import asyncio\n\nheads = await asyncio.sleep(0, 'heads')",
    "files = !ls\nfiles.n\n!ls\ntorch.nn?",
    "display(get_ipython())\nfor _ in range(10_000): print('a lot')",
    "import warnings\nwarnings.simplefilter('error')",
    "def qk_to_half_split(q, k, num_heads, num_kv_heads):\n    return later(q, num_heads), later(k, num_kv_heads)",
    "check.qk_to_half_split(qk_to_half_split)",
    "assert __name__ == '__main__' and heads == 'heads' and Out[3]\n_ = 3",
    "def later(x, heads): return x",
]
NOT_DEFINED = [
    SET_UP,
    solution("rms_norm", {"rms_norm": "mine"}),
    "check.rms_norm(mine)",
    "def apply_rotary(x, cos, sin):\n    raise NotImplementedError",
    "check.apply_rotary(apply_rotary)",
    "def qk_to_half_split(q, k, num_heads, num_kv_heads):\n    return 1 +",
    "check.qk_to_half_split(qk_to_half_split)",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "passed", "errors"),
    [
        (TOP_LEVEL, ["rms_norm", "qk_to_half_split"], {10: "ValueError: an experiment", 11: "SystemExit"}),
        (IPYTHON, ["rms_norm", "apply_rotary"], {10: "EOFError"}),
        (NOT_DEFINED, ["rms_norm"], {6: "SyntaxError", 7: "NameError"}),
    ],
    ids=["top-level", "ipython", "not-defined"],
)
def test_the_mark_of_a_notebook_is_what_its_own_checks_say_in_jupyter(tmp_path: Path, cells, passed, errors):
    path = write_notebook(tmp_path, cells)
    marks = mark(path, "02")
    messages = {name: result.message for name, result in marks.results.items()}
    said = in_a_notebook(path)
    assert said == {name: messages[name] for name in said} and len(said) >= 2
    assert [name for name, result in marks.results.items() if result.passed] == passed
    for (cell, error), text in zip(errors.items(), marks.errors, strict=True):
        assert f"code cell {cell}, line" in text and error in text


@pytest.mark.slow
def test_each_error_is_placed_cut_where_it_is_long_and_the_last_definition_counts(tmp_path: Path):
    cells = [
        SET_UP,
        "1 / 0",
        solution("rms_norm") + "\n\ncheck.rms_norm(rms_norm)",
        "1 / 0",
        "raise ValueError('long' * 2_500_000)",
        "get_ipython().system('echo ' + 'long' * 2_500_000)",
        "def rms_norm(x, weight, eps): return x",
        solution("apply_rotary") + "\n\ncheck.apply_rotary(apply_rotary)",
        solution("apply_rotary") + "\n\ncheck.apply_rotary(apply_rotary)",
    ]
    path = write_notebook(tmp_path, cells)
    marks = mark(path, "02")
    first, second, long = marks.errors
    assert [error.count("code cell 2") for error in marks.errors] == [1, 0, 0]
    assert [error.count("code cell 4") for error in marks.errors] == [0, 1, 0]
    (command,) = marks.left_out
    assert all(len(text) < 1000 + len(str(path)) and "code cell" in text for text in (long, command))
    norm, rotary = marks.results["rms_norm"], marks.results["apply_rotary"]
    assert norm.attempted and not norm.passed and "defined again" in norm.message
    assert rotary.passed and "defined again" not in rotary.message, "checked again, too"


def test_a_long_exception_is_cut_in_the_result_of_a_check():
    def rms_norm(x, weight, eps):
        raise ValueError("long" * 2_500_000)

    result = check.rms_norm(rms_norm)
    assert "ValueError: longlong" in result.message and len(result.message) < 2000


@pytest.mark.slow
def test_what_a_notebook_asks_for_and_does_not_get_is_said(tmp_path: Path, capsys):
    path = write_notebook(tmp_path, [*IPYTHON, "%%writefile written\ntext", f"!touch {tmp_path}/touched"])
    assert grade(path, "--json", str(tmp_path / "report.json")) == 1
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    commands = [text.partition(": ")[2].split()[0] for text in report["left_out"]]
    assert commands == ["%matplotlib", "!echo", "%%bash", "%%html", "!ls", "!ls", "%pinfo", "%%writefile", "!touch"]
    assert report["left_out"][2] == f"{path}, code cell 7: %%bash"
    assert [text in capsys.readouterr().out for text in report["left_out"][:1]] == [True]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "student.ipynb"]


@pytest.mark.slow
def test_cells_that_never_end_or_end_the_process_cost_themselves_alone(tmp_path: Path):
    cells = [
        "import itertools, os, torch\nfrom torch import Tensor",
        "SPLIT = 2\nwhile True:\n    pass",
        "sum(itertools.repeat(1))  # one call into C that never ends",
        "os._exit(7)",
        solution("apply_rotary") + "\nassert SPLIT == 2",
    ]
    marks = mark(write_notebook(tmp_path, cells), seconds=1.0)
    assert marks.results["apply_rotary"].passed
    assert ["code cell 2: " in marks.errors[0], "code cell 3: " in marks.errors[1]] == [True, True]
    assert "code cell 4: the process ended with exit status 7" in marks.errors[2] and len(marks.errors) == 3


def test_without_ipython_a_notebook_is_answered_in_a_sentence_and_a_script_is_graded(
    tmp_path: Path, monkeypatch, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "IPython" else find(name))
    assert grade(write_notebook(tmp_path, [solution("rms_norm")])) == 2
    assert "pip install ipython" in capsys.readouterr().err
    program = """
import sys
sys.modules["IPython"] = None
from mixtral_edu.exercises.submission import main
main(*sys.argv[1:])
"""
    student, report = write(tmp_path, IMPORTS + solution("rms_norm")), tmp_path / "report"
    subprocess.run([sys.executable, "-c", program, student, report, "5", "{}", "rms_norm"], check=True, timeout=60)
    assert "passed, all" in report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_error_at_the_top_of_a_script_costs_its_own_statement(tmp_path: Path, capsys):
    text = [
        "from __future__ import annotations",
        "import no_such_module",
        "import torch",
        "1 / 0",
        "HALF = 1 / 2",
        "if HALF:",
        indented(solution("rms_norm", {"rms_norm": "my_norm", "x: Tensor": "x: NoSuchName"})),
        "rms_norm = my_norm",
        "raise SystemExit",
    ]
    assert grade(write(tmp_path, "\n".join(text) + "\n"), "--json", str(tmp_path / "report.json")) == 1
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in report["exercises"] if each["passed"]] == ["rms_norm"]
    kinds = [re.match(r"\w+", text)[0] for text in report["errors"]]
    assert kinds == ["ModuleNotFoundError", "ZeroDivisionError", "SystemExit"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_report_comes_whatever_characters_it_holds(tmp_path: Path, encoding: str):
    text = "def rms_norm(x, weight, eps):\n    raise ValueError('é √ 混 \\ud83d')\n\nraise KeyError('é \\udcff')\n"
    student, report = write(tmp_path, text), tmp_path / "report.json"
    command = [sys.executable, "-m", "mixtral_edu", "grade", str(student), "--json", str(report)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"")
    shown = done.stdout.decode(encoding)
    assert "ValueError: " in shown and "\\ud83d" in shown and f"0 of {len(LESSON_02)} exercises passed" in shown
    message = json.loads(report.read_text(encoding="utf-8"))["exercises"][0]["message"]
    assert "é √ 混" in message


ACCENTED = f"{IMPORTS}WORD = 'café'\nassert len(WORD) == 4\n\n\n{solution('rms_norm')}\n"


@pytest.mark.parametrize(
    "content",
    [
        ACCENTED.encode("latin-1"),
        f"# -*- coding: latin-1 -*-\n{ACCENTED}".encode("latin-1"),
        ACCENTED.encode("utf-8-sig"),
        ACCENTED.replace("\n", "\r\n").encode(),
        ACCENTED.replace("\n", "\r").encode(),
        f"# é\n{ACCENTED}".encode("latin-1"),
    ],
    ids=["latin-1", "declared", "BOM", "CRLF", "CR", "latin-1 on top"],
)
def test_a_script_in_another_encoding_is_graded(tmp_path: Path, content: bytes):
    student = tmp_path / "student.py"
    student.write_bytes(content)
    lines = report_of(student, "rms_norm")
    assert [line[0] for line in lines if line[0] not in ("running", "checking")] == ["result", "end"]
    assert "passed, all" in lines[-2][1]["message"]


def test_a_notebook_with_a_byte_order_mark_and_carriage_returns_is_read(tmp_path: Path):
    path = write_notebook(tmp_path, ["a = 1\r\nb = 2", ""])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert submission.read(path) == {f"{path}, code cell 1": "a = 1\nb = 2", f"{path}, code cell 2": ""}


@pytest.mark.parametrize("place", ["missing/report.json", "."])
def test_where_no_report_can_be_written_nothing_is_graded(tmp_path: Path, capsys, monkeypatch, place: str):
    monkeypatch.setattr("mixtral_edu.exercises.marking.mark", lambda *_: pytest.fail("it was graded"))
    assert grade(write(tmp_path, RIGHT), "--json", str(tmp_path / place)) == 2
    assert str(tmp_path / place).removesuffix("/report.json") in capsys.readouterr().err


@pytest.mark.slow
def test_the_exercise_notebook_itself_can_be_handed_in(capsys):
    (path,) = NOTEBOOKS.glob("exercises/02_*.ipynb")
    assert grade(path) == 1
    lines = capsys.readouterr().out.splitlines()
    n = len(LESSON_02)
    assert [line.split()[2:] for line in lines[:n]] == [["-", "not", "attempted"]] * n
    assert lines[n:] == ["", f"0 of {n} exercises passed, score 0.00"]


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
    assert f"{student}: it was stopped after 0.2 seconds" in out
    size = beat.stat().st_size
    time.sleep(0.2)
    assert 0 < size == beat.stat().st_size


def report_of(student: Path, *names: str) -> list[list]:
    """What the process that grades writes, here in this one."""
    report = student.with_suffix(".report")
    submission.main(str(student), str(report), "5", "{}", *names)
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
    lines = report_of(student, "rms_norm")
    assert [line for line in lines if line[0] == "error"] == [["error", problem.format(student)]]
    (message,) = [line[1]["message"] for line in lines if line[0] == "result"]
    assert "rms_norm: there is no function of this name" in message
    assert (problem.format(student) in message) == ("def rms_norm" in text)


def test_a_script_is_no_main_program_and_may_import_its_neighbours(tmp_path: Path):
    (tmp_path / "neighbour_of_student.py").write_text("WEIGHT = 3\n")
    text = "import neighbour_of_student\nif __name__ == '__main__': exit()\n\ndef rms_norm(x, weight, eps): 1 / 0\n"
    lines = report_of(write(tmp_path, text), "rms_norm", "apply_rotary")
    found, missing = [line[1] for line in lines if line[0] == "result"]
    assert "error" not in [line[0] for line in lines] and lines[-1] == ["end"]
    assert found["message"].splitlines()[3] == "  in        line 4: def rms_norm(x, weight, eps): 1 / 0"
    assert missing["message"] == "apply_rotary: there is no function of this name"
    assert Result(**missing).attempted is False


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("missing.py", None, (), "missing.py"),
        ("binary.py", b"\xff\xfe\x00", (), "binary.py"),
        ("odd.py", b"# coding: no-such\n", (), "odd.py"),
        ("old.ipynb", b'{"nbformat": 3, "worksheets": []}', (), "format 3"),
        ("broken.ipynb", b"{", (), "notebook of format 4"),
        ("broken.ipynb", b"\xe9", (), "notebook of format 4"),
        ("broken.ipynb", b"[" * 100_000, (), "notebook of format 4"),
        ("broken.ipynb", b"[]", (), "notebook of format 4"),
        ("broken.ipynb", b'{"nbformat": 4}', (), "notebook of format 4"),
        ("broken.ipynb", b'{"cells": [{"cell_type": "code", "source": null}]}', (), "notebook of format 4"),
        ("broken.ipynb", b'{"cells": {"a": 1}}', (), "notebook of format 4"),
        ("empty.ipynb", b'{"nbformat": 4, "cells": []}', (), "defines no function of an exercise"),
        ("other.py", b"def something(): pass\n", (), "--lesson"),
        ("student.py", b"def rms_norm(): pass\n", ("--lesson", "2"), "lesson '2'"),
        ("student.py", b"def rms_norm(): pass\n", ("--timeout", "0"), "seconds above 0"),
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
        ("if True:\n    def rms_norm(x): pass\nelse:\n    apply_rotary, a = 1, 2", ["rms_norm", "apply_rotary"]),
        ("try:\n    from mine import norm as rms_norm\nexcept ImportError:\n    pass", ["rms_norm"]),
        ("%%time\nasync def rms_norm(x): pass", ["rms_norm"]),
        ("!pip install a \\\n    b\nwith x:\n    rms_norm = 3", ["rms_norm"]),
        ("def f(x):\n    rms_norm = x\nx[rms_norm] = 1\n[apply_rotary for apply_rotary in x]", []),
    ],
)
def test_which_exercises_a_text_answers(text: str, names: list[str]):
    assert submission.exercises_in({"student.py": text}) == names
