"""What the package carries with it: trained checkpoints, probe texts and word lists."""

from pathlib import Path

BUNDLED = ("tiny", "tiny-instruct")
_HERE = Path(__file__).parent


def bundled_folder(name: str) -> Path | None:
    """Return the folder of the bundled checkpoint `name`, or None for any other name."""
    return _HERE / name if name in BUNDLED else None


def probe_text(domain: str) -> str:
    """Return the probe text of `domain`: ten kilobytes or more that no bundled model was trained on.

    All were written for this package; "python" is a part of its source as it stood in November 2026.

    Raises:
        ValueError: there is no such domain; the message lists those that are.
    """
    path = _HERE / "probes" / f"{domain}.txt"
    if not path.is_file():
        names = sorted(p.stem for p in (_HERE / "probes").glob("*.txt"))
        raise ValueError(f"domain={domain!r}: one of {names} is wanted")
    return path.read_text(encoding="utf-8")
