"""Checks of words in what a model wrote: plain ones, by which evaluation grades it. No model judges another."""

import re
from collections.abc import Mapping

from .words import HERO_NAMES, has_word


def names_all(request: Mapping[str, str], reply: str) -> bool:
    """Return whether the reply names the requested `animal`, `colour` and `object`, each as a whole word."""
    return all(has_word(reply, request[key]) for key in ("animal", "colour", "object"))


def is_right(question: Mapping, reply: str) -> bool:
    """Return whether the reply holds the question's `answer` as a whole word; a number must be the reply's last number.

    >>> is_right({"answer": "19"}, "12 + 7 = 19."), is_right({"answer": "19"}, "12 + 7 = 19 or 20.")
    (True, False)
    """
    answer = str(question["answer"])
    if answer.isdigit():
        numbers = re.findall(r"\d+", reply)
        return bool(numbers) and numbers[-1] == answer
    return has_word(reply, answer)


def hero_of(story: str) -> str | None:
    """Return the hero's name that the first sentence introduces, or None if it names no hero."""
    first = re.split(r"[.!?]", story, maxsplit=1)[0]
    names = [word for word in re.findall(r"\w+", first) if word in HERO_NAMES]
    return names[0] if names else None


def keeps_hero(story: str) -> bool:
    """Return whether the hero of the first sentence appears again and no other hero does. Friends have other names."""
    hero = hero_of(story)
    words = re.findall(r"\w+", story)
    return hero is not None and words.count(hero) > 1 and not any(w in HERO_NAMES and w != hero for w in words)
