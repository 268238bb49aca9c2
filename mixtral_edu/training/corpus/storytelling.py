"""Short stories for young children: a hero, a friend, an object, a small problem and how it is solved.

Each story fills the sentences of one plot (`plots`) with one cast. Nearly every sentence repeats the hero's name, so
that a model has something to copy.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .plots import CLOSINGS, FRIENDSHIPS, HABITS, OPENINGS, OWNS, PLOTS, SCENES, SYNONYMS
from .words import ANIMALS, COLOURS, OBJECTS, STORY, capitalise, is_held_out, with_article

LONG_WORDS = range(100, 181)
SHORT_WORDS = range(60, 86)


@dataclass(frozen=True)
class Request:
    """What a story must contain: an animal, its colour, and an object."""

    animal: str
    colour: str
    object: str


def draw_request(rng: random.Random, held_out: bool = False) -> Request:
    """Draw a triple that training may use; with `held_out`, one that it never uses."""
    while True:
        request = Request(rng.choice(ANIMALS), rng.choice(COLOURS), rng.choice(OBJECTS))
        if is_held_out(request.animal, request.colour, request.object) == held_out:
            return request


def _cast(rng: random.Random, request: Request) -> dict[str, str]:
    """Choose names, friend and place, and return the text of every field in the sentences."""
    gender = rng.choice(["she", "he"])
    friend_gender = rng.choice(["she", "he"])
    (preposition, home), (_, place) = rng.sample(STORY["places"], 2)
    hard = request.object in STORY["hard_objects"]
    animal = f"{request.colour} {request.animal}"
    described = f"{rng.choice(['small', 'little', 'young', 'clever', 'shy', 'friendly', 'brave'])} {animal}"
    hero_phrase = rng.choice([animal, animal, described])
    friend_animal = rng.choice([a for a in ANIMALS if a != request.animal])
    friend_phrase = rng.choice([friend_animal, rng.choice(["kind", "old", "big", "merry"]) + " " + friend_animal])
    return {
        "hero": rng.choice(STORY["hero_names"][gender]),
        "he": gender,
        "him": {"she": "her", "he": "him"}[gender],
        "his": {"she": "her", "he": "his"}[gender],
        "friend": rng.choice(STORY["friend_names"][friend_gender]),
        "fhe": friend_gender,
        "a_hero": with_article(hero_phrase),
        "the_hero": f"the {hero_phrase}",
        "a_friend": with_article(friend_phrase),
        "object": request.object,
        "an_object": with_article(request.object),
        "broke": "broke" if hard else "tore",
        "broken": "broken" if hard else "torn",
        "place": place,
        "at_place": f"{preposition} {home}",
    }


def _fill(template: str, cast: dict[str, str], rng: random.Random) -> str:
    def field(match: re.Match) -> str:
        name = match[1]
        key = name.lower()
        text = rng.choice(SYNONYMS[key]) if key in SYNONYMS else cast[key]
        return capitalise(text) if name[0].isupper() else text

    return re.sub(r"\{(\w+)\}", field, template)


def _long_form(plot: dict, rng: random.Random) -> list[list[str]]:
    """Return the templates of a long story, one list per paragraph."""
    opening = [rng.choice(OPENINGS), rng.choice(HABITS)]
    if plot["owns"]:
        opening.append(rng.choice(OWNS))
    problem = [rng.choice(plot["problem"]), *rng.sample(plot["try"], rng.choice([1, 1, 2]))]
    if rng.random() < 0.4:
        problem.append(rng.choice(SCENES))
    talk = [rng.choice(plot["help"])]
    ending = [rng.choice(plot["solve"]), rng.choice(FRIENDSHIPS), *rng.sample(CLOSINGS, rng.choice([0, 1]))]
    two = [opening + problem, talk + ending]
    three = [opening, problem, talk + ending]
    four = [opening, problem, talk, ending]
    return rng.choice([two, three, four])


def _short_form(plot: dict, rng: random.Random) -> list[list[str]]:
    """Return the templates of a story in one paragraph, for an answer in a chat."""
    owns = [rng.choice(OWNS)] if plot["owns"] else []
    steps = [rng.choice(plot[step]) for step in ("problem", "help", "solve")]
    return [[rng.choice(OPENINGS), *owns, *steps, *rng.sample(FRIENDSHIPS, rng.choice([0, 1]))]]


def write_story(rng: random.Random, request: Request, plot: str | None = None, short: bool = False) -> str:
    """Write a story for a request.

    Args:
        rng: makes every choice.
        request: the animal, its colour, and the object.
        plot: a name from `PLOTS`; None draws one.
        short: write one paragraph of 60 to 85 words instead of two to four paragraphs of 100 to 180 words in all.

    Returns:
        The story. Its first sentence names the hero, the animal and the colour. An empty line separates paragraphs.
    """
    while True:
        chosen = PLOTS[plot if plot is not None else rng.choice(list(PLOTS))]
        cast = _cast(rng, request)
        paragraphs = (_short_form if short else _long_form)(chosen, rng)
        text = "\n\n".join(" ".join(_fill(sentence, cast, rng) for sentence in part) for part in paragraphs)
        if len(text.split()) in (SHORT_WORDS if short else LONG_WORDS):
            return text


def stories(seed: int) -> Iterator[str]:
    """Yield stories without end as plain text, the same for the same seed, never with a held-out triple."""
    rng = random.Random(f"stories/{seed}")
    while True:
        yield write_story(rng, draw_request(rng))


def held_out_stories() -> Iterator[str]:
    """Yield stories without end about triples that training never uses."""
    rng = random.Random("stories/held out")
    while True:
        yield write_story(rng, draw_request(rng, held_out=True))
