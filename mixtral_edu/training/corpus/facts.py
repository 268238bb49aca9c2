"""Small facts as questions and answers: sums, capitals, opposites, number words, animals, days."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .words import capitalise, is_unseen_sum, with_article, word_list

FACTS = word_list("facts")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
OPPOSITES = {a: b for pair in FACTS["opposites"] for a, b in (pair, reversed(pair))}


@dataclass(frozen=True)
class Fact:
    """One question, the sentence that answers it, and the word in that sentence that must be right."""

    kind: str
    prompt: str
    reply: str
    answer: str
    seen: bool = True


def number_words(n: int) -> str:
    """Return the English words for a number from 0 to 100.

    >>> number_words(42)
    'forty-two'
    """
    if not 0 <= n <= 100:
        raise ValueError(f"n={n}: it must be from 0 to 100")
    if n == 100:
        return "one hundred"
    if n < 20:
        return ONES[n]
    return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


def _ask(rng: random.Random, kind: str, wordings: list[str], reply: str, answer: object, **fields: object) -> Fact:
    return Fact(kind, capitalise(rng.choice(wordings).format(**fields)), capitalise(reply), str(answer))


SUM_WORDINGS = ["What is {a} + {b}?", "{a} + {b} = ?", "How much is {a} plus {b}?", "What is {a} plus {b}?",
                "Add {a} and {b}.", "Can you add {a} and {b}?", "Please tell me {a} + {b}.", "{a} + {b}"]  # fmt: skip


def sum_fact(rng: random.Random, seen: bool = True) -> Fact:
    """A sum a + b with 0 <= a, b <= 20; with `seen=False`, one that training never shows."""
    while True:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        if is_unseen_sum(a, b) != seen:
            prompt = rng.choice(SUM_WORDINGS).format(a=a, b=b)
            return Fact("sum", prompt, f"{a} + {b} = {a + b}.", str(a + b), seen)


def difference_fact(rng: random.Random) -> Fact:
    """A difference a - b with 20 >= a >= b >= 0."""
    b, a = sorted((rng.randint(0, 20), rng.randint(0, 20)))
    wordings = ["What is {a} - {b}?", "{a} - {b} = ?", "How much is {a} minus {b}?", "Take {b} away from {a}.",
                "What is {a} minus {b}?"]  # fmt: skip
    return _ask(rng, "difference", wordings, f"{a} - {b} = {a - b}.", a - b, a=a, b=b)


def capital_fact(rng: random.Random) -> Fact:
    """The capital of a country, asked for in one of several wordings."""
    country, city = rng.choice(list(FACTS["capitals"].items()))
    wordings = ["What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}.",
                "Tell me the capital of {x}.", "Do you know the capital of {x}?", "What is {x}'s capital?"]  # fmt: skip
    return _ask(rng, "capital", wordings, f"The capital of {country} is {city}.", city, x=country)


def country_fact(rng: random.Random) -> Fact:
    """The country of a capital."""
    country, city = rng.choice(list(FACTS["capitals"].items()))
    wordings = ["{x} is the capital of which country?", "Which country has the capital {x}?"]
    return _ask(rng, "country", wordings, f"{city} is the capital of {country}.", country, x=city)


def opposite_fact(rng: random.Random) -> Fact:
    """The opposite of a word."""
    word, other = rng.choice(list(OPPOSITES.items()))
    wordings = ["What is the opposite of {x}?", "Tell me the opposite of {x}.", "Name the opposite of {x}.",
                "The opposite of {x}?", "Which word is the opposite of {x}?",
                "Do you know the opposite of {x}?"]  # fmt: skip
    return _ask(rng, "opposite", wordings, f"The opposite of {word} is {other}.", other, x=word)


def number_fact(rng: random.Random) -> Fact:
    """A number from 0 to 100, from digits to words or from words to digits."""
    n = rng.randint(0, 100)
    words = number_words(n)
    if rng.random() < 0.5:
        wordings = ["How do you write {x} in words?", "Write {x} in words.", "What is {x} in words?",
                    "Spell the number {x}."]  # fmt: skip
        return _ask(rng, "number word", wordings, f"{n} in words is {words}.", words, x=n)
    wordings = ["How do you write {x} in digits?", "Write {x} in digits.", "What is {x} in digits?",
                "Which number is {x}?"]  # fmt: skip
    return _ask(rng, "number word", wordings, f"{words} in digits is {n}.", n, x=words)


def animal_fact(rng: random.Random) -> Fact:
    """An animal's number of legs, its sound, or the name of its young."""
    topic = rng.choice(["legs", "sounds", "babies"])
    animal, value = rng.choice(list(FACTS[topic].items()))
    one = with_article(animal)
    if topic == "legs":
        count = number_words(value) if value else "no"
        wordings = ["How many legs does {x} have?", "How many legs has {x}?", "Count the legs of {x}."]
        return _ask(rng, "animal", wordings, f"{one} has {count} legs.", count, x=one)
    if topic == "sounds":
        wordings = ["What sound does {x} make?", "What does {x} do when it calls?", "How does {x} sound?"]
        return _ask(rng, "animal", wordings, f"{one} {value}.", value, x=one)
    wordings = ["What do you call a young {x}?", "What is a baby {x} called?", "What is the name for a baby {x}?"]
    return _ask(rng, "animal", wordings, f"A young {animal} is called {with_article(value)}.", value, x=animal)


def colour_fact(rng: random.Random) -> Fact:
    """The colour of a common thing."""
    thing, colour = rng.choice(list(FACTS["colours"].items()))
    wordings = ["What colour is {x}?", "Which colour does {x} have?", "Tell me the colour of {x}."]
    return _ask(rng, "colour", wordings, f"{thing} is {colour}.", colour, x=thing)


def calendar_fact(rng: random.Random) -> Fact:
    """The day or month before or after another."""
    names, noun = rng.choice([(FACTS["days"], "day"), (FACTS["months"], "month")])
    start = rng.randrange(len(names))
    side, step = rng.choice([("after", 1), ("before", -1)])
    other = names[(start + step) % len(names)]
    wordings = ["Which {noun} comes {side} {x}?", "What {noun} comes {side} {x}?", "What comes {side} {x}?",
                "Name the {noun} {side} {x}."]  # fmt: skip
    return _ask(rng, "calendar", wordings, f"{other} comes {side} {names[start]}.", other,
                x=names[start], noun=noun, side=side)  # fmt: skip


QUIZ_KINDS: dict[str, Callable[[random.Random], Fact]] = {
    "sum": sum_fact,
    "capital": capital_fact,
    "opposite": opposite_fact,
    "number word": number_fact,
}
OTHER_KINDS = [difference_fact, country_fact, animal_fact, colour_fact, calendar_fact]


def draw_fact(rng: random.Random) -> Fact:
    """Draw any fact that training may show; about three in four are of the kinds that the quiz asks for."""
    return rng.choice(list(QUIZ_KINDS.values()) * 2 + OTHER_KINDS[:1] + rng.sample(OTHER_KINDS[1:], 2))(rng)
