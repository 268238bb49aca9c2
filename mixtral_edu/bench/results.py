"""The results of a benchmark: rows with times and floors, a table of them, and files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mixtral_edu.bench.timing import Quartiles, quartiles
from mixtral_edu.checkpoints.folders import read_json_object, whole_file

_STORED = Path(__file__).parents[1] / "data" / "results"
_COLUMNS = ("task", "ours", "takes", "per token", "theirs", "theirs / ours", "floor", "reached", "rounds",
            "their setting", "memory", "error")  # fmt: skip
_ALWAYS = 10  # the first columns, which are shown even if they are empty
_WORDS = ("task", "ours", "their setting")  # columns that hold words, not numbers


@dataclass(frozen=True)
class Result:
    """One row: a task in one of our variants, compared with a peer.

    Args:
        task: the task's name.
        variant: the form of our model, such as "plain float32" or "int4 bfloat16"; for loading, what is measured.
        ours: what each round took: seconds per pass or step, or bytes.
        theirs: the peer's, round by round; empty without a peer.
        unit: "s" or "bytes".
        tokens: tokens per pass; 0 where that has no meaning.
        against: the peer's name.
        setting: the peer's setting and dtype.
        floor: the least that the task can take, in the same unit; None if unknown.
        floor_from: how the floor is computed, in words.
        peak_bytes: for attention alone, the peak memory besides its inputs; None if not measured.
        error: for attention alone, the largest difference from float64.
        tried: the peer's settings with the seconds of their trials.
        left_out: settings that were not tried or did not run, and why.
        date: when the row was measured.
    """

    task: str
    variant: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    unit: str = "s"
    tokens: int = 0
    against: str = ""
    setting: str = ""
    floor: float | None = None
    floor_from: str = ""
    peak_bytes: float | None = None
    error: float | None = None
    tried: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now().isoformat(sep=" ", timespec="minutes"))

    @property
    def ratio(self) -> Quartiles | None:
        """Theirs divided by ours, paired by round: above 1, we are faster or take less. None without a peer."""
        ratios = [theirs / ours for theirs, ours in zip(self.theirs, self.ours, strict=True)] if self.theirs else []
        return quartiles(ratios) if ratios else None

    @property
    def share_of_floor(self) -> float | None:
        """The floor divided by our median: 1 if nothing could be faster. None without a floor."""
        return None if self.floor is None else self.floor / median(self.ours)


class ResultFile:
    """A JSON file of runs, each with its machine, settings and results. It is rewritten after each result.

    A run resumes if the file holds a run with the same machine and settings.

    Args:
        path: the file; None keeps nothing on disk.
        machine, settings: this run's machine and settings.
        again: measure rows that an equal run holds again. Each new row takes the place of the old one; the others stay.

    Raises:
        ValueError: the file holds something other than runs.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any], settings: dict[str, Any], again: bool = False):
        self.path = path
        self._content = _content_of(path) if path is not None and path.exists() else {"runs": []}
        own = json.loads(json.dumps({"machine": machine, "settings": settings}))  # turns tuples into lists, as files do
        equal = [run for run in self._content["runs"] if {key: run.get(key) for key in own} == own]
        self._run = equal[0] if equal else own | {"results": []}
        if not equal:
            self._content["runs"].append(self._run)
        self.done = set() if again else {(result.task, result.variant) for result in self.results} | self.left_out

    @property
    def results(self) -> list[Result]:
        """The results of this run so far."""
        return [as_result(row) for row in self._run["results"]]

    @property
    def left_out(self) -> set[tuple[str, str]]:
        """Tasks and variants that this run could not measure."""
        return {(row["task"], row["variant"]) for row in self._run.get("left_out", [])}

    def add(self, result: Result) -> None:
        """Add one row, in the place of an older one of the same task and variant, and write the file."""
        place = result.task, result.variant
        for name in ("results", "left_out"):
            rows = self._run.get(name, [])
            rows[:] = [row for row in rows if (row["task"], row["variant"]) != place]
        self._run["results"].append(asdict(result))
        self._write()

    def leave_out(self, task: str, variant: str, reason: str) -> None:
        """Record that a row cannot be measured, and why."""
        self._run.setdefault("left_out", []).append({"task": task, "variant": variant, "reason": reason})
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            with whole_file(self.path) as beside:
                beside.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


class StoredRun(NamedTuple):
    """A run in a file: its machine, settings and rows."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result]

    @property
    def origin(self) -> str:
        """The run's date, processor or GPU, and versions, in words."""
        machine, day = self.machine, min(result.date for result in self.results)[:10]
        place = machine["processor"]
        if "gpu" in machine:
            place = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}"
        peer = f", transformers {machine['transformers']}" if self.settings["against"] else ""
        return f"{day}, {place}, torch {machine['torch']}{peer}"


def runs_in(path: Path) -> list[StoredRun]:
    """Return the runs in a file.

    Raises:
        ValueError: the file holds something other than runs.
    """
    return [
        StoredRun(run["machine"], run["settings"], [as_result(row) for row in run["results"]])
        for run in _content_of(path)["runs"]
    ]


def stored_runs(device: str) -> list[StoredRun]:
    """Return the runs on "cpu" or "cuda" that are stored with the package, from one file per kind of processor."""
    return [run for path in sorted(_STORED.glob(f"benchmark-{device}*.json")) for run in runs_in(path)]


def _content_of(path: Path) -> dict[str, Any]:
    content = read_json_object(path)
    if not isinstance(content.get("runs"), list):
        raise ValueError(f"{str(path)!r} holds no runs of a benchmark: name another file")
    return content


def as_result(row: dict[str, Any]) -> Result:
    """Return the row that a file holds as a dictionary."""
    return Result(**row | {"ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])})


def amount(value: float, unit: str = "s") -> str:
    """Format seconds or bytes with three digits and a fitting prefix.

    >>> amount(0.0123), amount(2.5), amount(46.7e9, "bytes")
    ('12.3 ms', '2.5 s', '46.7 GB')
    """
    prefixes = [(1, "s"), (1e-3, "ms"), (1e-6, "µs")] if unit == "s" else [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]
    size, prefix = next((step for step in prefixes if value >= 0.9995 * step[0]), prefixes[-1])
    return f"{float(f'{value / size:.3g}'):g} {prefix}"


def ratio_text(ratio: Quartiles | None) -> str:
    """Format a median with its quartiles.

    >>> ratio_text(Quartiles(1.42, 1.5, 1.618))
    '1.50 (1.42–1.62)'
    """
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def floor_by_operations(count: float, rate: float) -> tuple[float, str]:
    """Return the seconds that `count` operations take at `rate` per second, and the calculation in words."""
    return count / rate, f"{count / 1e9:.4g} GFLOP at {rate / 1e9:.4g} GFLOP/s"


def floor_by_bytes(count: float, bandwidth: float, note: str = "") -> tuple[float, str]:
    """Return the seconds that it takes to move `count` bytes at a bandwidth, and the calculation in words."""
    return count / bandwidth, f"{amount(count, 'bytes')}{note} at {amount(bandwidth, 'bytes')}/s"


def as_table(results: Sequence[Result]) -> str:
    """Return the rows as aligned text."""
    rows = [_COLUMNS]
    for result in results:
        ours = median(result.ours)
        rows.append(
            (
                result.task,
                result.variant,
                amount(ours, result.unit),
                amount(ours / result.tokens) if result.tokens else "",
                amount(median(result.theirs), result.unit) if result.theirs else "",
                ratio_text(result.ratio),
                "" if result.floor is None else amount(result.floor, result.unit),
                "" if result.share_of_floor is None else f"{result.share_of_floor:.0%}",
                str(len(result.ours)),
                result.setting,
                "" if result.peak_bytes is None else amount(result.peak_bytes, "bytes"),
                "" if result.error is None else f"{result.error:.1e}",
            )
        )
    used = [column for column in range(len(_COLUMNS)) if column < _ALWAYS or any(row[column] for row in rows[1:])]
    rows = [tuple(row[column] for column in used) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if column in _WORDS else str.rjust for column in rows[0]]
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    )
