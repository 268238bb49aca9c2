"""Runs on a processor as tables in Markdown, as the README shows them."""

from collections.abc import Sequence
from statistics import median

from mixtral_edu.bench.results import Result, StoredRun, amount
from mixtral_edu.bench.tasks import TASKS

_FLOATS = ("plain", "packed", "compiled")  # "packed" is in runs of an earlier version of this package
_QUANTIZED = ("int8", "int4")


def as_markdown(runs: Sequence[StoredRun]) -> str:
    """Return each run's table, under a line that says where it was measured."""
    return "\n\n".join(f"{heading(run)}\n\n{table(run)}" for run in runs)


def heading(run: StoredRun) -> str:
    """Return a run's kind of processor and dtype in bold, and what else its times depend on."""
    kind = run.machine.get("kind") or run.machine["capability"]  # earlier runs have no kind
    dtype, threads = run.settings["dtype"], run.settings["threads"]
    return f"**{kind}, {dtype}**, {threads} thread{'s' if threads > 1 else ''}: {run.origin}"


def table(run: StoredRun) -> str:
    """Return a run's ratios, one line per task, then our least time or memory and how much of the floor it reaches.

    That is the best of the forms that are not quantized. Quantized forms are those in bfloat16. A line of loading,
    which has one form, has its ratio in the first column of ratios.
    """
    dtype, rows = run.settings["dtype"], {(result.task, result.variant): result for result in run.results}
    names = {form: f"{form} {dtype}" for form in _FLOATS} | {form: f"{form} bfloat16" for form in _QUANTIZED}
    names = {form: name for form, name in names.items() if any(variant == name for _, variant in rows)}
    lines = [["task", *names, "our best", "of the floor"]]
    place = {task.name: number for number, task in enumerate(TASKS)}
    for task in sorted({task for task, _ in rows}, key=lambda task: (place.get(task, len(place)), task)):
        if task == "loading":
            for result in run.results:
                if result.task == task:
                    ratios = [_ratio(result), *[""] * len(names)][: len(names)]
                    lines.append([result.variant, *ratios, *_best(result)])
            continue
        found = {form: rows.get((task, name)) for form, name in names.items()}
        floats = [result for form, result in found.items() if result and form in _FLOATS]
        if any(found.values()):
            best = min(floats or filter(None, found.values()), key=lambda result: median(result.ours))
            lines.append([f"`{task}`", *map(_ratio, found.values()), *_best(best)])
    lines = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([lines[0], "|---" * (len(names) + 3) + "|", *lines[1:]])


def _ratio(result: Result | None) -> str:
    return f"{result.ratio.median:.2f}" if result and result.ratio else ""


def _best(result: Result) -> tuple[str, str]:
    share = result.share_of_floor
    return amount(median(result.ours), result.unit), "" if share is None else f"{share:.0%}"
