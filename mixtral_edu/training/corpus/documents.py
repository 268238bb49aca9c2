"""Load any domain: the documents to train on, and the documents that training never sees."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from .arithmetic_pages import arithmetic
from .chat import Message, chats, held_out_chats
from .sources import SOURCES, is_held_out_work, read_source
from .storytelling import held_out_stories, stories

DOMAINS = ("shakespeare", "python", "spanish", "jargon", "arithmetic", "stories", "chat")
PROBES = ("english_bible", "python_docs")
SPLITS = ("train", "heldout")
GENERATED_DOCUMENTS = {"train": 2000, "heldout": 200}


def _check(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: it must be one of {SPLITS}")


def load_chats(split: str = "train") -> list[list[Message]]:
    """Return a fixed list of conversations: 2000 from training (`chats(0)`), or 200 with held-out stories."""
    _check(split)
    endless = chats(0) if split == "train" else held_out_chats()
    return list(islice(endless, GENERATED_DOCUMENTS[split]))


def _generated(domain: str, split: str) -> Iterator[str]:
    if domain == "stories":
        return stories(0) if split == "train" else held_out_stories()
    if domain == "arithmetic":
        return arithmetic(0 if split == "train" else "held out")
    return ("\n".join(message["content"] for message in chat) + "\n" for chat in load_chats(split))


def load_documents(domain: str, split: str = "train", cache: str | Path | None = None) -> list[str]:
    """Return the documents of a domain and split.

    Args:
        domain: one of `DOMAINS`, or of `PROBES`, which have only held-out documents.
        split: "train" or "heldout".
        cache: the folder of downloaded packages; None for `mixtral_edu` in the user's cache folder.

    Returns:
        Whole works, files, books or entries. A generated domain has 2000 documents of seed 0, or 200 held-out ones;
        training itself draws from `stories`, `arithmetic` and `chats` without end. The documents of "chat" are the bare
        words of its turns, one turn per line, to train a tokenizer on. `load_chats` returns the messages.

    Raises:
        ValueError: the domain or split is unknown, a probe is asked for training text, or a file is not the pinned one.
        FileNotFoundError: a source is missing; the message says how to get it.
    """
    _check(split)
    if domain not in DOMAINS + PROBES:
        raise ValueError(f"domain={domain!r}: it must be one of {DOMAINS + PROBES}")
    if domain not in SOURCES:
        return list(islice(_generated(domain, split), GENERATED_DOCUMENTS[split]))
    if domain in PROBES:
        if split == "train":
            raise ValueError(f"split={split!r}: {domain!r} is never trained on; ask for split='heldout'")
        return list(read_source(domain, cache).values())
    held_out = split == "heldout"
    return [text for name, text in read_source(domain, cache).items() if is_held_out_work(domain, name) == held_out]
