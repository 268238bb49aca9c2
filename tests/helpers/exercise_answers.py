"""Where `exercises_NN.py` hand in answers to the exercises; `test_exercises.py` grades them."""

from collections import defaultdict
from collections.abc import Callable

RIGHT: dict[str, list[Callable]] = defaultdict(list)
WRONG: dict[str, list[tuple[Callable, str]]] = defaultdict(list)


def right(exercise: str) -> Callable[[Callable], Callable]:
    """Decorator for a right answer, written in another way than the reference."""

    def add(answer: Callable) -> Callable:
        RIGHT[exercise].append(answer)
        return answer

    return add


def wrong(exercise: str, hint: str) -> Callable[[Callable], Callable]:
    """Decorator for an answer with one mistake; `hint` is part of the question that has to come up."""

    def add(answer: Callable) -> Callable:
        WRONG[exercise].append((answer, hint))
        return answer

    return add
