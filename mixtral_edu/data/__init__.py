"""What the package carries with it: trained checkpoints, probe texts and word lists."""

from pathlib import Path

BUNDLED = ("tiny", "tiny-instruct")
_HERE = Path(__file__).parent


def bundled_folder(name: str) -> Path | None:
    """Return the folder of the bundled checkpoint `name`, or None for any other name."""
    return _HERE / name if name in BUNDLED else None


def probe_text(domain: str) -> str:
    """Return the probe text of `domain`: some ten kilobytes that no bundled model was trained on.

    "python" is this package's own source; the others were written for this package.

    Raises:
        ValueError: there is no such domain; the message lists those that are.
    """
    if domain == "python":
        return "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(_HERE.parent.glob("*.py")))
    path = _HERE / "probes" / f"{domain}.txt"
    if not path.is_file():
        names = sorted(p.stem for p in (_HERE / "probes").glob("*.txt"))
        raise ValueError(f"domain={domain!r}: one of {sorted([*names, 'python'])} is wanted")
    return path.read_text(encoding="utf-8")
