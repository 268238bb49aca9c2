"""The teaching corpus: texts that anyone can download, seeded generators, and graders of what a model learned.

There are two kinds of domain. Sources are the standard library of the running Python, and three pinned packages
(Shakespeare, a Spanish Bible, the Jargon File) that are downloaded into a cache folder. The repository stores none of
their text. Generators (stories, arithmetic, chat) write endless text from a seed and the word lists in
`mixtral_edu/data/words`.

A name or a stable hash decides what training never sees, so the split is the same everywhere. Held out are whole works,
files and books of the sources, 10 % of the triples (animal, colour, object) of stories, and 10 % of the pairs of small
sums.

>>> from mixtral_edu.training.corpus import stories, quiz
>>> next(stories(seed=0)) == next(stories(seed=0))
True
"""

from .arithmetic_pages import arithmetic
from .chat import chats, held_out_chats, quiz, story_requests
from .documents import DOMAINS, PROBES, SPLITS, load_chats, load_documents
from .download import Source, default_cache, fetch
from .sources import SOURCES, read_source
from .storytelling import held_out_stories, stories, write_story
from .word_checks import hero_of, is_right, keeps_hero, names_all
from .words import is_held_out, is_unseen_sum

__all__ = [
    "DOMAINS",
    "PROBES",
    "SOURCES",
    "SPLITS",
    "Source",
    "arithmetic",
    "chats",
    "default_cache",
    "fetch",
    "held_out_chats",
    "held_out_stories",
    "hero_of",
    "is_held_out",
    "is_right",
    "is_unseen_sum",
    "keeps_hero",
    "load_chats",
    "load_documents",
    "names_all",
    "quiz",
    "read_source",
    "stories",
    "story_requests",
    "write_story",
]
