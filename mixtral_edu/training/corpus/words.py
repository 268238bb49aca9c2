"""Word lists of the generators, small helpers for English, and the rules for what training never sees."""

import hashlib
import json
import re
from functools import cache
from importlib import resources


@cache
def word_list(name: str) -> dict:
    """Return the JSON word list `name` ("story" or "facts") that ships with the package."""
    path = resources.files("mixtral_edu") / "data" / "words" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


STORY = word_list("story")
ANIMALS: list[str] = STORY["animals"]
COLOURS: list[str] = STORY["colours"]
OBJECTS: list[str] = STORY["hard_objects"] + STORY["soft_objects"]
HERO_NAMES: list[str] = STORY["hero_names"]["she"] + STORY["hero_names"]["he"]


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase.

    >>> with_article("orange owl"), with_article("lamp")
    ('an orange owl', 'a lamp')
    """
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def capitalise(text: str) -> str:
    """Return `text` with its first letter in upper case and the others unchanged."""
    return text[:1].upper() + text[1:]


def has_word(text: str, word: str) -> bool:
    """Return whether `text` contains `word` as a whole word, in any case. "forty-two" does not contain "two"."""
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE) is not None


def stable_share(*parts: object) -> float:
    """Return a number in [0, 1) that depends only on `parts`: the same in every process and on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_held_out(animal: str, colour: str, obj: str) -> bool:
    """Return whether this triple is one of the 10 % that no training story and no training chat ever uses."""
    return stable_share("story", animal, colour, obj) < 0.1


def is_unseen_sum(a: int, b: int) -> bool:
    """Return whether a + b, in either order, is one of the 10 % of sums of terms in 0..20 that training never shows."""
    return max(a, b) <= 20 and stable_share("sum", *sorted((a, b))) < 0.1
