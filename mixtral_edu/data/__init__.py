"""Files that ship with the package: trained checkpoints, probe texts, word lists and measured results."""

from pathlib import Path

BUNDLED = ("tiny", "tiny-instruct")
_HERE = Path(__file__).parent


def bundled_folder(name: str) -> Path | None:
    """Return the folder of the bundled checkpoint `name`, or None for any other name."""
    return _HERE / name if name in BUNDLED else None


def probe_text(domain: str) -> str:
    """Return the probe text of `domain`: at least ten kilobytes that no bundled model was trained on.

    Every text was written for this package; "python" is part of its source as of November 2026.

    Raises:
        ValueError: `domain` is unknown; the message lists the valid names.
    """
    path = _HERE / "probes" / f"{domain}.txt"
    if not path.is_file():
        names = sorted(p.stem for p in (_HERE / "probes").glob("*.txt"))
        raise ValueError(f"domain={domain!r} is unknown; it must be one of {names}")
    return path.read_text(encoding="utf-8")
