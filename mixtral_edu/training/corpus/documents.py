"""One door to every domain: documents to train on, and documents that training never sees."""

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
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")


def load_chats(split: str = "train") -> list[list[Message]]:
    """A fixed list of conversations: 2000 of training (`chats(0)`), or 200 whose stories training never tells."""
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
    """The documents of a domain and split.

    Args:
        domain: one of `DOMAINS`, or of `PROBES`, which have only held-out documents.
        split: "train" or "heldout".
        cache: folder of downloaded packages; None is `mixtral_edu` in the user's cache folder.

    Returns:
        Whole works, files, books or entries. The generated domains give 2000 documents of seed 0, or 200 held-out ones;
        training itself draws from `stories`, `arithmetic` and `chats` without end. "chat" is here the bare words of its
        turns, line by line, for a tokenizer to train on: `load_chats` gives the messages.

    Raises:
        ValueError: unknown domain or split, a probe asked for training, or a file that is not the pinned one.
        FileNotFoundError: a source is missing; the message says how to get it.
    """
    _check(split)
    if domain not in DOMAINS + PROBES:
        raise ValueError(f"domain must be one of {DOMAINS + PROBES}, got {domain!r}")
    if domain not in SOURCES:
        return list(islice(_generated(domain, split), GENERATED_DOCUMENTS[split]))
    if domain in PROBES:
        if split == "train":
            raise ValueError(f"{domain!r} is never trained on: only split='heldout' exists")
        return list(read_source(domain, cache).values())
    held_out = split == "heldout"
    return [text for name, text in read_source(domain, cache).items() if is_held_out_work(domain, name) == held_out]
