"""The teaching corpus: texts that anyone can get again, seeded generators, and graders of what a model learned.

Two kinds of domain. Sources are Python's standard library, as the running Python has it, and three pinned packages
(Shakespeare, a Spanish Bible, the Jargon File) that are downloaded into a cache folder; no text of theirs is stored in
the repository. Generators (stories, arithmetic, chat) write text without end from a seed and the word lists in
`mixtral_edu/data/words`.

What training never sees is decided by name or by a stable hash, so that it is the same everywhere: whole works, files
and books of the sources; 10 % of the triples (animal, colour, object) of stories; 10 % of the pairs of small sums.

>>> from mixtral_edu.training.corpus import stories, quiz
>>> next(stories(seed=0)) == next(stories(seed=0))
True
"""

from .arithmetic_pages import arithmetic
from .chat import chats, held_out_chats, quiz, story_requests
from .documents import DOMAINS, PROBES, SPLITS, load_chats, load_documents
from .download import Source, default_cache, fetch
from .grading import hero_of, is_right, keeps_hero, names_all
from .sources import SOURCES, read_source
from .storytelling import held_out_stories, stories, write_story
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
