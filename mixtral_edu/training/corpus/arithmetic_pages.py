"""Pages of small arithmetic. Every line is a true statement on its own."""

import random
from collections.abc import Callable, Iterator

from .words import STORY, is_unseen_sum


def _sum(rng: random.Random) -> str:
    top = rng.choice([10, 20, 20, 100, 1000])
    while True:
        a, b = rng.randint(0, top), rng.randint(0, top)
        if not is_unseen_sum(a, b):
            return f"{a} + {b} = {a + b}"


def _difference(rng: random.Random) -> str:
    top = rng.choice([10, 20, 20, 100, 1000])
    a, b = sorted((rng.randint(0, top), rng.randint(0, top)), reverse=True)
    return f"{a} - {b} = {a - b}"


def _product(rng: random.Random) -> str:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return f"{a} * {b} = {a * b}"


def _quotient(rng: random.Random) -> str:
    a, b = rng.randint(0, 12), rng.randint(1, 12)
    return f"{a * b} / {b} = {a}"


def _chain(rng: random.Random) -> str:
    a, b, c = (rng.randint(1, 20) for _ in range(3))
    return f"{a} + {b} + {c} = {a + b + c}"


def _comparison(rng: random.Random) -> str:
    a, b = rng.randint(0, 100), rng.randint(0, 100)
    return f"{a} {'<' if a < b else '>' if a > b else '='} {b}"


def _sequence(rng: random.Random) -> str:
    start, step = rng.randint(0, 50), rng.randint(1, 10)
    return ", ".join(str(start + step * i) for i in range(6))


def _word_problem(rng: random.Random) -> str:
    name, friend = rng.choice(STORY["hero_names"]["she"]), rng.choice(STORY["friend_names"]["he"])
    thing = rng.choice(["apples", "books", "shells", "cards", "stones", "flowers"])
    while True:
        a, b = rng.randint(2, 20), rng.randint(2, 20)
        if a > b and rng.random() < 0.5:
            return f"{name} has {a} {thing}. She gives {b} to {friend}. Now she has {a - b} {thing}."
        if not is_unseen_sum(a, b):
            return f"{name} has {a} {thing}. {friend} gives her {b} more. Now she has {a + b} {thing}."


PROBLEMS: dict[str, Callable[[random.Random], str]] = {
    "Sums": _sum,
    "Differences": _difference,
    "Products": _product,
    "Quotients": _quotient,
    "Long sums": _chain,
    "Larger or smaller": _comparison,
    "Sequences": _sequence,
    "Word problems": _word_problem,
}


def arithmetic(seed: int | str) -> Iterator[str]:
    """Yield pages of arithmetic without end, the same for the same seed.

    A page has a title and 20 to 30 lines of one kind or of all kinds. No page holds a sum that `is_unseen_sum` marks,
    so a quiz on those sums tests computing, not memory.
    """
    rng = random.Random(f"arithmetic/{seed}")
    while True:
        title = rng.choice(["Mixed problems", "Mixed problems", *PROBLEMS])
        kinds = [PROBLEMS[title]] if title in PROBLEMS else list(PROBLEMS.values())
        lines = [rng.choice(kinds)(rng) for _ in range(rng.randint(20, 30))]
        yield "\n".join([title, *lines])
