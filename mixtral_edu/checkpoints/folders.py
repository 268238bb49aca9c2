"""Folders on disk: find a checkpoint's folder, and replace a folder so that an interruption loses nothing."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mixtral_edu.data import BUNDLED, bundled_folder

# What the SentencePiece file beside a checkpoint may be called, most usual first, and what else belongs to a tokenizer.
TOKENIZER_FILE = "tokenizer.model"
TOKENIZER_PATTERNS = (TOKENIZER_FILE, "tokenizer.model.v1", "*.model*")
TOKENIZER_FILES = (*TOKENIZER_PATTERNS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

def find_folder(name_or_folder: str | Path) -> Path:
    """Return the folder that a bundled name ("tiny", "tiny-instruct") or a path stands for.

    Raises:
        FileNotFoundError: there is no such folder. The message says how to download a model of that name from the hub,
            and where an interrupted save left its files.
        NotADirectoryError: the path is a file.
    """
    if not isinstance(name_or_folder, str | os.PathLike):
        raise TypeError(f"name_or_folder is a {type(name_or_folder).__name__}: it must be a bundled name or a folder")
    name = os.fspath(name_or_folder)
    bundled = bundled_folder(name) if isinstance(name_or_folder, str) else None  # Path("tiny") always means a folder
    if bundled is not None:
        return bundled
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{name!r} is a file: give the folder that holds it")
    leftovers = [str(path) for path in _places_beside(folder.resolve()) if path.exists()]
    if leftovers:
        raise FileNotFoundError(
            f"{name!r} is missing, but an interrupted save left {' and '.join(leftovers)}; "
            "the next save to this folder finishes or removes that"
        )
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise FileNotFoundError(
            f"{name!r} is not a folder here, and nothing is fetched from the hub. Download it first:\n"
            f"    hf download {name} --exclude 'consolidated*' --local-dir {folder.name}\n"
            f"then load {folder.name!r}"
        )
    raise FileNotFoundError(f"{name!r} is neither a folder nor a bundled checkpoint ({', '.join(BUNDLED)})")


@contextmanager
def replace_folder(
    target: str | Path, overwrite: bool, written: Sequence[str], argument: str = "folder"
) -> Iterator[Path]:
    """Let the `with` block fill a new folder beside `target`, and swap it in when the block ends without an exception.

    The old folder is renamed away, the new one is renamed to `target`, and the old one is deleted. Whenever a run is
    interrupted, either the old or the new files are complete. The next call finds and cleans up what it left.

    Args:
        target: a folder that is missing or empty; or, with `overwrite`, one with content.
        overwrite: whether content may be replaced.
        written: patterns of the file names that belong to the writer. Other old files (a tokenizer, a README) are
            carried over, unless the block writes a file of that name.
        argument: the name of `target` in error messages.

    Yields:
        The new, empty folder.

    Raises:
        FileExistsError: the target has content, and `overwrite` is False.
        NotADirectoryError: the target is a file.
        ValueError: the target is or holds the current working folder.

    Warns:
        UserWarning: an interrupted run left its folders; the message says what was found and what became of it.
    """
    target = Path(target).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{argument}={str(target)!r} is a file: name a folder")
    if target == Path.cwd() or target in Path.cwd().parents:
        raise ValueError(f"{argument}={str(target)!r} holds the current working folder: name a folder inside it")
    new, old = _places_beside(target)
    _settle_interrupted(target, new, old)
    if _has_content(target) and not overwrite:
        raise FileExistsError(
            f"{argument}={str(target)!r} has content already: give overwrite=True to replace a checkpoint in it; "
            "other files are kept"
        )

    new.mkdir(parents=True)
    try:
        yield new
        if target.exists():
            _carry_over(target, new, written)
            shutil.copymode(target, new)
        _flush_to_disk(new)
        _swap(target, new, old)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: the file does not hold JSON, or holds something other than an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested too deeply
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}: it must hold a JSON object")
    return values


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Let the `with` block write a file beside `path`, then rename it to `path`, which never holds half a file."""
    path = Path(path)
    beside = path.with_name(path.name + ".partial")
    yield beside
    os.replace(beside, path)


def _places_beside(target: Path) -> tuple[Path, Path]:
    """Return where the new folder is written and where the old one waits during the swap, under names of our own."""
    return (target.with_name(f".{target.name}.mixtral-edu-new"), target.with_name(f".{target.name}.mixtral-edu-old"))


def _has_content(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _settle_interrupted(target: Path, new: Path, old: Path) -> None:
    """Finish or undo what an interrupted run left, and say so in a warning."""
    if old.exists() and new.exists() and _has_content(target):
        # The run stopped between the two renames, and the target was filled since then. Only the user can decide.
        raise FileExistsError(
            f"an interrupted save left {old} (the old files) and {new} (complete), and {target} has other content: "
            "move what you want to keep, and delete the rest of the first two"
        )
    if old.exists() and not _has_content(target):
        # The run stopped between the two renames. The new folder was complete, so it becomes the target.
        found = f"{new} (complete) and {old}" if new.exists() else str(old)
        kept = new if new.exists() else old
        if target.exists():
            target.rmdir()
        os.rename(kept, target)
        done = f"{kept} is now {target}"
    elif new.exists():
        # The run stopped while writing, or before the first rename. The target was not touched.
        found, done = str(new), "this unfinished copy was deleted"
    elif old.exists():
        found, done = str(old), f"these replaced files were deleted: {target} is complete"
    else:
        return
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    warnings.warn(f"an interrupted save left {found}; {done}", stacklevel=5)


def _carry_over(target: Path, new: Path, written: Sequence[str]) -> None:
    for entry in target.iterdir():
        copy = new / entry.name
        if copy.exists() or any(fnmatch(entry.name, pattern) for pattern in written):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, copy, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, copy)


def _link_or_copy(source: Path, copy: Path) -> None:
    """Make a hard link, which takes no space and survives the old folder; copy where the file system has no links."""
    try:
        os.link(source, copy, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, copy, follow_symlinks=False)


def _flush_to_disk(folder: Path) -> None:
    """Write the files through to the disk: otherwise a power cut soon after the swap could leave them empty."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _swap(target: Path, new: Path, old: Path) -> None:
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
