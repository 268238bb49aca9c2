"""What a check reports of a function, whatever the function does; and that the caller's world stays as it was."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch import Tensor

import mixtral_edu.exercises as package
from mixtral_edu.exercises import Result, check, exercise
from mixtral_edu.exercises.comparison import compare, show
from mixtral_edu.exercises.deadline import DeadlinePassed, deadline
from mixtral_edu.exercises.grading import TOO_LATE
from refresh_notebooks import execute

LOOP_LIMIT = 0.5  # seconds that endless loops of these tests may take


@exercise("Half of each number")
def halve(x: Tensor, step: float = 2.0) -> Tensor:
    """Divide each number of x by `step`.

    Args:
        x: of any shape.
    """
    # the line that counts
    return x / step


@halve.check("Is it divided, and not multiplied?")
def divided(answer):
    x = torch.tensor([[2.0, 4.0, 6.0]])
    return answer(x), torch.tensor([[1.0, 2.0, 3.0]])


@halve.check("Is step used?")
def uses_step(answer):
    x = torch.arange(60.0).view(3, 20)
    return answer(x, step=4.0), x.numpy() / 4


@halve.check("Does the result have the dtype of x?")
def dtype(answer):
    return answer(torch.ones(2).bfloat16()), torch.tensor([0.5, 0.5]).bfloat16()


def endless(x: Tensor, step: float) -> Tensor:
    while True:
        step += 1


def test_a_right_answer():
    result = check_of(lambda numbers, divisor: numbers / divisor)
    assert (result.passed, result.score, result.attempted, bool(result)) == (True, 1.0, True, True)
    assert repr(result) == result.message == "halve: passed, all 4 checks"
    assert [outcome.passed for outcome in result.outcomes] == [True] * 4


def check_of(answer: Callable, seconds: float = 10.0) -> Result:
    return halve(answer, seconds=seconds)


def test_a_wrong_number_is_shown_with_the_call_and_what_was_expected():
    result = check_of(lambda x, step: x * step)
    assert (result.passed, result.score, bool(result)) == (False, 0.0, False)
    assert repr(result) == """\
halve: 0 of 4 checks passed
Is it divided, and not multiplied?
  called    halve(x=[[2, 4, 6]], step=2)
  expected  [[1, 2, 3]]
  found     [[4, 8, 12]]"""


def test_of_several_calls_the_first_that_went_wrong_is_shown():
    @exercise("Squares")
    def square(x: int) -> int:
        """Multiply x by itself."""
        return x * x

    @square.check("Is it the square?")
    def squares(answer):
        return [answer(x) for x in (2, 3, 4)], [4, 9, 16]

    @square.check("Is it the square of negative numbers, too?", compared="the sum of the two")
    def sums(answer):
        return [answer(-2) + answer(-3)], [13]

    assert square(square.reference).passed
    assert str(square(lambda x: x + x)) == """\
square: 0 of 3 checks passed
Is it the square?
  called    square(x=3)
  expected  9
  found     6"""
    assert str(square(lambda x: abs(x) * x)) == """\
square: 2 of 3 checks passed
Is it the square of negative numbers, too?
  called    square(x=-3)
  compared  the sum of the two
  item      [0]
  expected  13
  found     -13"""


def test_of_a_large_tensor_the_row_that_differs_most_is_shown():
    result = check_of(lambda x, step: x / step + (x == 35))
    assert repr(result) == """\
halve: 3 of 4 checks passed
Is step used?
  called    halve(x=float32 (3, 20), step=4)
  expected  [7.75, 8, 8.25, 8.5, 8.75, 9, 9.25, 9.5]
  found     [7.75, 8, 8.25, 8.5, 9.75, 9, 9.25, 9.5]
            1 of 60 numbers differ, most at [1, 11:19], shown here"""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, step: None, ["a tensor of shape (1, 3)", "None: is there a return?"]),
        (lambda x, step: (x / step).tolist(), ["a tensor of shape (1, 3)", "list [[1, 2, 3]]"]),
        (lambda x, step: (x / step).numpy(), ["a tensor of shape (1, 3)", "ndarray [[1, 2, 3]]"]),
        (lambda x, step: (x / step)[0], ["shape (1, 3)", "shape (3,)"]),
        (lambda x, step: (x / step).double(), ["dtype float32", "dtype float64"]),
        (lambda x, step: (x / step) * float("nan"), ["[[nan, nan, nan]]"]),
    ],
    ids=["None", "list", "array", "shape", "dtype", "NaN"],
)
def test_a_result_of_the_wrong_kind(answer: Callable, words: list[str]):
    result = check_of(answer)
    assert result.message.splitlines()[1] == "Is it divided, and not multiplied?"
    assert [word for word in words if word not in result.message] == []


def test_an_exception_is_told_with_its_line():
    def divides_by_zero(x, step):
        return x / (1 // 0)

    result = check_of(divides_by_zero)
    line = divides_by_zero.__code__.co_firstlineno + 1
    assert result.score == 0
    assert result.message.splitlines()[1:] == [
        "It raised ZeroDivisionError: integer division or modulo by zero",
        "  called    halve(x=[[2, 4, 6]], step=2)",
        f"  in        line {line}: return x / (1 // 0)",
        "  checking  Is it divided, and not multiplied?",
    ]


def exits(x, step):
    sys.exit("enough")


def recurses(x, step):
    return recurses(x, step)


def takes_one_argument(x):
    return x


class Unfriendly(Exception):
    def __str__(self) -> str:
        raise ValueError


def raises_what_cannot_be_shown(x, step):
    raise Unfriendly


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (exits, "It raised SystemExit: enough"),
        (recurses, "It raised RecursionError"),
        (takes_one_argument, "It raised TypeError: takes_one_argument() takes 1 positional argument but 2 were given"),
        (raises_what_cannot_be_shown, "Unfriendly: <exception str() failed>"),
        (torch.nn.functional.softmax, "It raised TypeError"),
    ],
)
def test_whatever_is_raised_is_reported(answer: Callable, words: str):
    assert words in check_of(answer).message


def test_a_message_with_half_of_a_surrogate_pair_can_be_shown():
    def raises(x, step):
        raise ValueError("\ud83d")

    assert b"It raised ValueError: \\ud83d" in repr(check_of(raises)).encode("utf-8")


def test_the_users_own_interrupt_goes_through():
    def interrupted(x, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_of(interrupted)


def test_a_result_that_the_check_cannot_use():
    @exercise("Two numbers")
    def pair():
        """Return two numbers."""

    @pair.check("Are there two?")
    def two(answer):
        first, second = answer()
        return first + second, 3

    message = pair(lambda: 3).message
    assert "Its result could not be used: TypeError: cannot unpack non-iterable int object" in message
    assert "checking  Are there two?" in message


def test_a_check_without_a_pair_is_its_authors_mistake():
    @exercise("One")
    def one():
        """Return 1."""

    @one.check("Is it 1?")
    def forgets_to_return(answer):
        answer()

    with pytest.raises(TypeError, match="forgets_to_return returned None.*found, expected"):
        one(lambda: 1)


def test_a_stub_is_not_attempted_but_an_unfinished_branch_is():
    def stub(x, step):
        raise NotImplementedError

    def torchs(x, step):
        raise NotImplementedError("no kernel for Half")

    def unfinished(x, step):
        if step != 2.0:
            raise NotImplementedError
        return x / 2

    result = check_of(stub)
    assert (result.attempted, result.passed, result.score) == (False, False, 0.0)
    assert repr(result) == "halve: not attempted yet"
    assert "It raised NotImplementedError: no kernel for Half" in check_of(torchs).message
    assert "It raised NotImplementedError" in check_of(unfinished).message and check_of(unfinished).score == 0.75


def test_something_that_is_no_function():
    result = check_of(torch.zeros(2))
    assert (result.passed, result.score) == (False, 0.0)
    assert "[0, 0]" in result.message and "check.halve(halve)" in result.message


def test_what_is_printed_goes_into_the_message_alone(capsys):
    def prints(x, step):
        print("x is", x.tolist())
        print("two\nthree\nfour", file=sys.stderr)
        return x * step

    lines = [line.strip() for line in check_of(prints).message.splitlines()]
    assert lines[-4:] == ["printed   x is [[2.0, 4.0, 6.0]]", "two", "three", "… 4 lines in all"]
    assert check_of(lambda x, step: print("fine") or x / step).passed
    assert capsys.readouterr() == ("", "")


def test_inputs_changed_in_place_cost_one_check_and_mislead_no_other():
    result = check_of(lambda x, step: x.div_(step))
    assert (result.score, [outcome.passed for outcome in result.outcomes]) == (0.75, [True, True, True, False])
    assert result.message.splitlines()[1].startswith("Is x changed in place?")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda box: box["a"].append(3),
        lambda box: box["a"].reverse(),
        lambda box: box["a"][0].add_(1),
        lambda box: box["a"][0].unsqueeze_(0),
        lambda box: box["b"][1].fill(1),
        lambda box: box.update(c=1),
        lambda box: box.pop("b"),
        lambda box: box["a"].__setitem__(1, 8),
        lambda box: box["a"].__setitem__(0, None),
    ],
)
def test_changes_inside_containers_are_seen(spoil: Callable):
    @exercise("Nothing")
    def nothing(box: dict) -> None:
        """Do nothing."""

    @nothing.check("Is it nothing?")
    def is_none(answer):
        return answer({"a": [torch.tensor([1.0, float("nan")]), 7], "b": (1, np.zeros(2))}), None

    assert nothing(nothing.reference).passed
    assert "Is box changed in place?" in nothing(lambda box: spoil(box) and None).message


def test_an_exercise_may_ask_for_changes_and_for_random_numbers():
    @exercise("Noise", changes=("target",), random=True)
    def noise(target: Tensor, scale: Tensor) -> None:
        """Fill target with random numbers times scale."""

    @noise.check("Is every number filled?")
    def filled(answer):
        target = torch.zeros(100)
        answer(target, torch.tensor(2.0))
        return bool((target != 0).all()), True

    assert not noise(noise.reference).passed
    assert noise(lambda target, scale: target.normal_().mul_(scale)).passed
    assert "Is scale changed" in noise(lambda target, scale: target.normal_().mul_(scale.add_(1))).message


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, lambda count: random.random(), torch.manual_seed])
def test_drawing_or_seeding_is_reported_and_the_callers_numbers_go_on_as_they_would_have(draw: Callable):
    def draws(x, step):
        draw(3)
        return x / step

    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    result = check_of(draws)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert (result.score, "Are random numbers drawn" in result.message) == (0.75, True)


def settings() -> dict[str, object]:
    """What a function may leave behind in the process."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "device of a new tensor": torch.zeros(1).device,
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "determinism": torch.get_deterministic_debug_mode(),
        "products": torch.get_float32_matmul_precision(),
        "anomalies": torch.is_anomaly_enabled(),
        "warnings": list(warnings.filters),
        "numpy's printing": np.get_printoptions(),
        "numpy's errors": np.geterr(),
        "recursion": sys.getrecursionlimit(),
    }


def spoil_settings() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.autocast("cpu").__enter__()
    warnings.simplefilter("ignore")
    np.set_printoptions(precision=1)
    np.seterr(all="raise")
    sys.setrecursionlimit(sys.getrecursionlimit() + 1)


def spoils_and_is_right(x, step):
    result = x / step
    spoil_settings()
    return result


@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_settings_that_a_function_leaves_reach_neither_the_next_check_nor_the_caller(mode, dtype, device):
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        with mode():
            before = settings()
            results = [check_of(answer) for answer in (spoils_and_is_right, halve.reference, lambda x, step: x)]
            assert settings() == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert [result.passed for result in results] == [True, True, False]


def test_an_autocast_that_a_function_never_leaves_keeps_no_weights():
    """Its copies of weights live until the outermost block is left; a training after it would go on with old ones."""
    check_of(spoils_and_is_right)
    weight, x, sums = torch.ones(2, 2, requires_grad=True), torch.ones(1, 2), []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            sums.append(torch.nn.functional.linear(x, weight).sum().item())
        with torch.no_grad():
            weight.mul_(3)
    assert sums == [4.0, 12.0]


def test_a_block_with_a_device_of_its_own_keeps_it():
    with torch.device("meta"):
        check_of(spoils_and_is_right)
        assert torch.zeros(1).device.type == "meta"
    assert torch.zeros(1).device.type == "cpu"


def loops_over_exceptions(x, step):
    while True:
        with suppress(Exception):
            step += 1


def loops_over_all_exceptions(x, step):
    while True:
        try:
            step += int("not a number")
        except:  # noqa: E722
            pass


def prints_for_ever(x, step):
    while True:
        print("again and again")


def sleeps(x, step):
    time.sleep(1000)


def never_gives_a_number(x, step):
    while True:
        yield x


LOOPS = [endless, loops_over_exceptions, loops_over_all_exceptions, prints_for_ever]


@pytest.mark.parametrize("answer", [*LOOPS, sleeps])
def test_what_never_ends_is_stopped(answer: Callable):
    if answer is sleeps and not hasattr(signal, "setitimer"):
        pytest.skip("only a signal ends a sleep")
    start = time.monotonic()
    result = check_of(answer, seconds=LOOP_LIMIT)
    assert time.monotonic() - start < 5
    assert result.score == 0 and len(result.outcomes) == 4
    assert result.message.splitlines()[1] == TOO_LATE
    assert f"line {answer.__code__.co_firstlineno + 1}" in result.message or answer is not sleeps


@pytest.mark.parametrize("answer", LOOPS)
def test_what_never_ends_is_stopped_in_another_thread_too(answer: Callable):
    results = []
    thread = threading.Thread(target=lambda: results.append(check_of(answer, seconds=LOOP_LIMIT)), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert [result.score for result in results] == [0]
    assert "Does every loop end?" in results[0].message


def test_where_there_are_no_timer_signals_a_thread_keeps_the_time(monkeypatch):
    monkeypatch.delattr(signal, "setitimer", raising=False)
    assert "Does every loop end?" in check_of(endless, seconds=LOOP_LIMIT).message
    assert check_of(halve.reference).passed
    time.sleep(0.5)  # nothing may arrive later


def test_checks_that_passed_before_the_time_was_up_count():
    def endless_for_steps(x, step):
        while step != 2.0:
            pass
        return x / step

    result = check_of(endless_for_steps, seconds=LOOP_LIMIT)
    assert [outcome.passed for outcome in result.outcomes] == [True, False, False, True]


def test_an_answer_that_outlasts_the_time_and_returns_is_not_taken_for_passed():
    def swallows(x, step):
        with suppress(DeadlinePassed):
            while True:
                pass
        return x / step

    result = check_of(swallows, seconds=LOOP_LIMIT)
    assert [outcome.passed for outcome in result.outcomes] == [True, False, False, True]
    assert result.message == f"halve: 2 of 4 checks passed\n{TOO_LATE}"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals")
def test_a_timer_of_the_caller_is_given_back():
    rang = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        check_of(halve.reference)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1.0
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.1)
        assert rang == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_a_deadline_is_quiet_when_the_block_ends_in_time():
    for on_main_thread in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not on_main_thread:
                patch.delattr(signal, "setitimer", raising=False)
            with deadline(0.05):
                pass
            time.sleep(0.1)
            with pytest.raises(DeadlinePassed), deadline(0.05):
                while True:
                    pass


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_only_the_parent_of_a_fork_goes_on():
    program = """
import os, torch
from mixtral_edu.exercises import check
def rms_norm(x, weight, eps):
    os.fork()
    return torch.nn.functional.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype) * weight
print(check.rms_norm(rms_norm), flush=True)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "rms_norm: passed, all 8 checks\n", result.stderr


@pytest.mark.slow
def test_in_a_notebook_an_endless_loop_costs_its_cell_a_moment(tmp_path: Path):
    cells = [
        "from mixtral_edu.exercises import check",
        "def rms_norm(x, weight, eps):\n    while True:\n        print('again')",
        "check.rms_norm(rms_norm, seconds=0.5)",
        "'the notebook goes on'",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    *_, stopped, after = execute(notebook, tmp_path, timeout=30).cells
    message = stopped.outputs[0].data["text/plain"].splitlines()
    assert message[:2] == ["rms_norm: 0 of 8 checks passed", TOO_LATE]
    assert message[3] in ("  in        line 2: while True:", "  in        line 3: print('again')")
    assert "again" in message[5] and len(stopped.outputs) == 1
    assert after.outputs[0].data["text/plain"] == "'the notebook goes on'"


def test_all_exercises_can_be_found():
    assert "rms_norm" in dir(check)
    assert "02  check.rms_norm" in repr(check)
    assert check.rms_norm.lesson == "02"
    assert "x: (..., D)" in check.rms_norm.__doc__ and check.rms_norm.__doc__ in repr(check.rms_norm)
    assert not hasattr(check, "_repr_html_") and not hasattr(check, "__len__")


def test_an_unknown_name_is_answered_with_what_there_is():
    with pytest.raises(AttributeError, match="there is no exercise 'rmsnorm'; did you mean check.rms_norm?"):
        check.rmsnorm  # noqa: B018
    with pytest.raises(AttributeError, match="there is no exercise 'xyz'; there are .*rms_norm, "):
        check.xyz  # noqa: B018


def test_a_parameter_that_may_change_has_to_exist():
    with pytest.raises(ValueError, match=r"changes=\('y',\).*\['x', 'step'\]"):
        exercise("Half", changes=("y",))(halve.reference)


def test_two_exercises_of_one_name_are_refused(tmp_path: Path, monkeypatch):
    lesson = "from mixtral_edu.exercises import exercise\n\n\n@exercise('Again')\ndef rms_norm():\n    'Again.'\n"
    (tmp_path / "lesson_99.py").write_text(lesson)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    package.exercises.cache_clear()
    try:
        with pytest.raises(ValueError, match="rms_norm is an exercise of lessons 02 and 99"):
            package.exercises()
    finally:
        sys.modules.pop("mixtral_edu.exercises.lesson_99", None)
        package.exercises.cache_clear()


@pytest.mark.slow
def test_lessons_are_loaded_when_check_is_first_used():
    program = """
import sys, mixtral_edu.exercises as package
lessons = lambda: [name for name in sys.modules if ".lesson_" in name]
print(lessons())
package.check.rms_norm
print("mixtral_edu.exercises.lesson_02" in lessons())
slow = "matplotlib", "IPython", "transformers", "mixtral_edu.training.trainer"
print(sorted(name for name in slow if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.split("\n") == ["[]", "True", "[]", ""], result.stderr


def test_stub_and_solution_are_the_reference_cut_in_two():
    head = 'def halve(x: Tensor, step: float = 2.0) -> Tensor:\n'
    task = '    """Divide each number of x by `step`.\n\n    Args:\n        x: of any shape.\n    """\n'
    assert halve.stub == f"{head}{task}    raise NotImplementedError"
    assert halve.solution == f"{head.replace('halve', 'halve_solution')}    # the line that counts\n    return x / step"


def double_with_a_mistake(x):
    # twice
    return x + 2


@exercise("Mend it", faulty=double_with_a_mistake)
def double(x):
    """Return twice x."""
    return 2 * x


@double.check("Is it twice x?")
def twice(answer):
    return answer(5), 10


def test_a_faulty_function_is_in_the_stub_below_the_line_that_raises():
    stub = double.stub.splitlines()
    assert stub[:2] == ["def double(x):", '    """Return twice x."""']
    assert stub[2].startswith("    raise NotImplementedError  # delete") and stub[-1] == "    return x + 2"
    names: dict = {}
    exec(double.stub, names)
    assert not double(names["double"]).attempted
    exec("\n".join(line for line in stub if "NotImplementedError" not in line), names)
    result = double(names["double"])
    assert result.attempted and not result.passed
    assert double.solution == "def double_solution(x):\n    return 2 * x"


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        (ONES, ONES + 1e-6, True),
        (ONES, ONES + 1e-3, False),
        (ONES.double(), ONES.double() + 1e-6, False),
        (ONES.bfloat16(), ONES.bfloat16() * 1.0078125, True),
        (ONES, np.ones((2, 3)), True),
        (ONES.bool(), np.ones((2, 3)), False),
        (ONES.long(), np.ones((2, 3), dtype=np.int32), True),
        (ONES.long(), ONES.int(), False),
        (ONES.bool(), ONES.bool(), True),
        (torch.tensor([2**60]), torch.tensor([2**60 + 1]), False),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")]), True),
        (torch.tensor([1.0]), torch.tensor([float("nan")]), False),
        (torch.tensor([float("-inf")]), torch.tensor([float("inf")]), False),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 1.00001j]), True),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), False),
        (torch.empty(0, 3), torch.empty(0, 3), True),
        (torch.nn.Parameter(ONES), ONES, True),
        ((ONES, 1), [ONES, 1], True),
        ((ONES, 1), (ONES, 2), False),
        ((ONES,), (ONES, ONES), False),
        (ONES, [ONES[0], ONES[1]], False),
        ({"a": ONES}, {"a": ONES}, True),
        ({"a": ONES}, {"b": ONES}, False),
        (0.5, 0.5 + 1e-6, True),
        (0.5, 0.51, False),
        (torch.tensor(3), 3, True),
        (np.float64(0.5), 0.5, True),
        (torch.tensor([3]), 3, False),
        (True, 1, False),
        (torch.tensor(True), True, True),
        (3.0, 3, True),
        (float("nan"), float("nan"), True),
        (1j, 1j, True),
        (None, None, True),
        (None, 0, False),
        ("text", "text", True),
        ("text", "test", False),
        (torch.float32, torch.float32, True),
        (torch.float32, torch.float64, False),
    ],
)
def test_what_counts_as_equal(found: object, expected: object, equal: bool):
    rows = compare(found, expected)
    assert (rows == []) == equal
    assert len({text for _, text in rows}) == len(rows)  # found and expected read differently


def test_a_tolerance_of_its_own():
    assert compare(ONES, ONES + 0.01, rtol=0.1) == [] and compare(ONES, ONES + 1e-6, rtol=0) != []
    assert compare(1.0, 1.01, rtol=0.1) == [] and compare(1.0, 1.01) != []


def test_the_place_of_a_difference_inside_a_structure():
    rows = compare({"q": [1, (2, ONES)]}, {"q": [1, (2, ONES * 2)]})
    whole = [("expected", "[[2, 2, 2], [2, 2, 2]]"), ("found", "[[1, 1, 1], [1, 1, 1]]")]
    assert rows == [("item", "['q'][1][1]"), *whole]


def test_numbers_that_first_differ_far_behind_the_point_are_shown_in_full():
    assert compare(1.0, 1.0002) == [("expected", "1.0002"), ("found", "1")]
    assert compare(1.0, 1.0 + 1e-9, rtol=0) == [("expected", "1.0000000010000001"), ("found", "1")]


def test_values_are_shown_in_short():
    assert show(torch.tensor([0.1, -0.0, 1e-7])) == "[0.1, 0, 1e-07]"
    assert show(torch.zeros(4, 4).bfloat16()) == "bfloat16 (4, 4)"
    assert show(torch.tensor([1 / 3 + 2j])) == "[0.3333+2j]"
    assert show(np.arange(3)) == "[0, 1, 2]"
    assert show((1, [2.00001], {"a": None})) == "(1, [2], {'a': None})"
    assert show(list(range(9))) == "[0, 1, 2, 3, 4, 5, 6, 7, …]"
    assert show("x" * 100) == "'" + "x" * 78 + "…"
    assert show(object()) == "object object"
