"""Conversations with a small assistant: stories on request, small facts, and good manners."""

import random
from collections.abc import Iterator

from .facts import QUIZ_KINDS, draw_fact, sum_fact
from .storytelling import Request, draw_request, write_story
from .words import capitalise, with_article

Message = dict[str, str]

# {x} is "a red fox" and {y} is "a lamp"; the other fields hold the bare words.
OPEN_WORDINGS = [
    "Tell me a story about {x} and {y}.",
    "Write a story about {x} and {y}.",
    "Write a short story with {x} and {y}.",
    "Please tell me a story with {x} and {y}.",
    "Can you tell me a story about {x} and {y}?",
    "Could you write a story about {x} with {y}?",
    "I would like a story about {x} and {y}.",
    "Make up a story about {x} and {y}, please.",
    "A story about {x} and {y}, please.",
    "Do you know a story about {x} and {y}?",
    "Please write a story with {y} and {x}.",
    "Tell me about {x} that has {y}.",
    "Story: {colour} {animal}, {object}.",
    "Write a story. Animal: {animal}. Colour: {colour}. Object: {object}.",
    "Tell me a bedtime story with {x} in it, and {y} too.",
]
PLOT_WORDINGS = [
    "Write a short story with {x} who {verb} {y}.",
    "Tell me a story about {x} who {verb} {y}.",
    "Please write a story in which {x} {verb} {y}.",
    "Can you tell me how {x} {verb} {y}?",
]
MOST_QUESTIONS = 1000  # per quiz: capitals, its smallest kind, have only some 320 different questions
PLAIN_VERBS = ["finds", "loses", "breaks", "gets", "shares", "wins", "makes", "gives away"]

SMALL_TALK = {
    ("Hello!", "Hi!", "Hi there.", "Good morning!", "Hello, how are you?"): [
        "Hello! How can I help you?",
        "Hello! Ask me a question, or ask for a story.",
    ],
    ("Who are you?", "What are you?", "What is your name?", "Are you a person?", "Tell me about yourself."): [
        "I am a tiny Mixtral, a small language model.",
        "I am a tiny Mixtral. I have eight experts, and two of them read each word.",
    ],
    ("What can you do?", "How can you help me?", "What do you know?"): [
        "I can tell short stories and answer small questions.",
    ],
    ("Thank you!", "Thanks.", "Thank you very much!", "Thanks a lot!", "That was nice."): [
        "You are welcome!",
        "You are welcome! Would you like anything else?",
    ],
    ("Goodbye!", "Bye!", "Good night.", "See you soon."): ["Goodbye!", "Goodbye! Come back soon."],
}


def _turn(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def word_request(rng: random.Random, request: Request) -> tuple[str, str | None]:
    """Return the wording of a story request and the plot that it asks for, None if any plot will do."""
    fields = {
        "x": with_article(f"{request.colour} {request.animal}"),
        "y": with_article(request.object),
        "animal": request.animal,
        "colour": request.colour,
        "object": request.object,
    }
    if rng.random() < 0.3:
        verb = rng.choice(PLAIN_VERBS)
        return rng.choice(PLOT_WORDINGS).format(verb=verb, **fields), verb
    return capitalise(rng.choice(OPEN_WORDINGS).format(**fields)), None


def _story_turn(rng: random.Random, held_out: bool) -> list[Message]:
    request = draw_request(rng, held_out)
    prompt, plot = word_request(rng, request)
    return _turn(prompt, write_story(rng, request, plot, short=True))


def _fact_turn(rng: random.Random) -> list[Message]:
    fact = draw_fact(rng)
    return _turn(fact.prompt, fact.reply)


def _small_talk_turn(rng: random.Random) -> list[Message]:
    prompts, replies = rng.choice(list(SMALL_TALK.items()))
    return _turn(rng.choice(prompts), rng.choice(replies))


def chats(seed: int, story_share: float = 0.45) -> Iterator[list[Message]]:
    """Yield conversations without end, the same for the same seed, without held-out triples and sums.

    Args:
        seed: any whole number.
        story_share: share of conversations that are one story request and its story. Half of the others are a single
            question; half have two to four turns, most of them facts.

    Yields:
        A list of messages `{"role": "user" | "assistant", "content": ...}`. The roles alternate; the user comes first.
    """
    if not 0 <= story_share <= 1:
        raise ValueError(f"story_share={story_share}: it must be from 0 to 1")
    return _chats(random.Random(f"chats/{seed}"), story_share, held_out=False)


def held_out_chats() -> Iterator[list[Message]]:
    """Yield conversations without end whose stories use only held-out triples. Facts are few, so they do repeat."""
    return _chats(random.Random("chats/held out"), 0.45, held_out=True)


def _chats(rng: random.Random, story_share: float, held_out: bool) -> Iterator[list[Message]]:
    while True:
        if rng.random() < story_share:
            yield _story_turn(rng, held_out)
            continue
        messages: list[Message] = []
        for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
            kind = rng.random()
            if kind < 0.08 and not any(len(m["content"]) > 200 for m in messages):
                messages += _story_turn(rng, held_out)
            else:
                messages += _fact_turn(rng) if kind < 0.88 else _small_talk_turn(rng)
        yield messages


def story_requests(n: int, seed: int) -> list[dict[str, str]]:
    """Return `n` requests for evaluation, all about held-out triples: dicts with `prompt, animal, colour, object`."""
    rng = random.Random(f"story requests/{seed}")
    found = []
    for _ in range(n):
        request = draw_request(rng, held_out=True)
        prompt, _ = word_request(rng, request)
        found.append({"prompt": prompt, "animal": request.animal, "colour": request.colour, "object": request.object})
    return found


def quiz(n: int, seed: int, unseen_sums: bool = False) -> list[dict[str, str | bool]]:
    """Return `n` different questions: sums, capitals, opposites and number words in equal parts.

    The quiz measures memory, not transfer: training shows the same questions and wordings, since there are only 54
    capitals to know. With `unseen_sums=True` the sums are the 10 % of pairs that training never shows in either order,
    neither as a sum nor on an arithmetic page. Differences and longer sums with these numbers do occur.

    Returns:
        Dicts with `prompt`, `answer` (the reply must contain it as a whole word), `kind` and `seen`.

    Raises:
        ValueError: `n` is so large that questions would repeat.
    """
    if n > MOST_QUESTIONS:
        raise ValueError(f"n={n}: it must be at most {MOST_QUESTIONS}, or questions would repeat")
    rng = random.Random(f"quiz/{seed}")
    found: dict[str, dict[str, str | bool]] = {}
    makers = list(QUIZ_KINDS.values())
    while len(found) < n:
        make = makers[len(found) % len(makers)]
        fact = sum_fact(rng, seen=False) if unseen_sums and make is sum_fact else make(rng)
        found[fact.prompt] = {"prompt": fact.prompt, "answer": fact.answer, "kind": fact.kind, "seen": fact.seen}
    return list(found.values())
