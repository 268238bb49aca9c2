"""`bench.markdown`: a run as a table."""

from dataclasses import replace

import pytest

from benchmark_runs import RESULTS
from mixtral_edu.bench.markdown import as_markdown
from mixtral_edu.bench.results import StoredRun

MACHINE = {"processor": "Abacus 9", "kind": "AVX2", "capability": "AVX2", "torch": "2.13.0", "transformers": "5.24.0"}
SETTINGS = {"dtype": "float32", "threads": 1, "against": "transformers"}
DAY = [replace(result, date="2026-11-27 05:44") for result in RESULTS]


def test_a_run_is_a_table_with_a_column_for_each_form():
    compiled = replace(DAY[0], task="decode-1-64", variant="compiled float32", ours=(0.1,), theirs=(0.3,))
    text = as_markdown([StoredRun(MACHINE, SETTINGS, [compiled, *DAY])])
    expected = """\
**AVX2, float32**, 1 thread: 2026-11-27, Abacus 9, torch 2.13.0, transformers 5.24.0

| task | plain | compiled | int4 | our best | of the floor |
|---|---|---|---|---|---|
| `prefill-512` | 1.48 |  | 0.75 | 210 ms | 48% |
| `decode-1-64` |  | 3.00 |  | 100 ms | 100% |
| peak memory | 1.50 |  |  | 2 GB |  |"""
    assert text == expected


@pytest.mark.parametrize("form", ["plain float32", "int4 bfloat16"])
def test_the_best_is_the_fastest_that_is_not_quantized_if_there_is_one(form):
    faster = replace(DAY[1], ours=(0.1, 0.1, 0.1))
    rows = [faster] if form == faster.variant else [DAY[0], faster]
    assert ("| 100 ms | 100% |" in as_markdown([StoredRun(MACHINE, SETTINGS, rows)])) == (form == faster.variant)


def test_a_run_without_a_peer_has_no_ratios():
    alone = [replace(result, theirs=(), against="") for result in DAY]
    earlier = {name: value for name, value in MACHINE.items() if name != "kind"}
    two = SETTINGS | {"against": None, "threads": 2}
    first, second = as_markdown([StoredRun(earlier, two, alone), StoredRun(MACHINE, two, alone[2:])]).split("\n\n**")
    assert first.startswith("**AVX2, float32**, 2 threads: 2026-11-27, Abacus 9, torch 2.13.0\n\n")
    assert first.endswith("| `prefill-512` |  |  | 210 ms | 48% |\n| peak memory |  |  | 2 GB |  |")
    assert second.endswith("| task | our best | of the floor |\n|---|---|---|\n| peak memory | 2 GB |  |")
