"""`bench.results`: ratios, tables and files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mixtral_edu
from benchmark_runs import CPU, RESULTS
from mixtral_edu.bench.machine import describe_machine, file_name
from mixtral_edu.bench.results import Result, ResultFile, as_table, runs_in, stored_runs


def test_ratios_are_taken_round_by_round():
    result = Result("prefill-8", "plain", ours=(1.0, 2.0, 10.0), theirs=(2.0, 6.0, 10.0), floor=0.5)
    assert result.ratio == (1.5, 2.0, 2.5)  # of 2, 3 and 1; the medians' ratio would be 3
    assert result.share_of_floor == 0.25
    alone = replace(result, theirs=(), floor=None)
    assert alone.ratio is None and alone.share_of_floor is None


def test_a_file_of_results_goes_on_where_machine_and_settings_are_the_same(tmp_path: Path):
    path, machine = tmp_path / "results.json", describe_machine(CPU)
    row = Result("prefill-8", "plain float32", ours=(1.0, 2.0), theirs=(2.0, 5.0), tried={"sdpa, eager": 2.0})
    ResultFile(path, machine, {"threads": 1}).add(row)
    assert ResultFile(path, machine, {"threads": 1}).results == [row]
    assert ResultFile(path, machine, {"threads": 2}).results == []
    assert ResultFile(path, machine | {"torch": "1.0"}, {"threads": 1}).results == []
    ResultFile(path, machine, {"threads": 2}).add(row)
    assert len(json.loads(path.read_text())["runs"]) == 2


def test_measuring_rows_again_replaces_them_and_keeps_the_others(tmp_path: Path):
    path, machine = tmp_path / "results.json", describe_machine(CPU)
    rows = [Result(task, "plain float32", ours=(1.0,)) for task in ("prefill-8", "train-1-8")]
    file = ResultFile(path, machine, {})
    for row in rows:
        file.add(row)
    file.leave_out("decode-1-8", "plain float32", "no memory")
    assert ResultFile(path, machine, {}).done == {
        (task, "plain float32") for task in ("prefill-8", "train-1-8", "decode-1-8")
    }
    again = ResultFile(path, machine, {}, again=True)
    assert again.done == set() and again.results == rows
    measured = [replace(rows[1], ours=(2.0,)), Result("decode-1-8", "plain float32", ours=(3.0,))]
    for row in measured:
        again.add(row)
    left = ResultFile(path, machine, {})
    assert left.results == [rows[0], *measured] and left.left_out == set()


def test_stored_runs_come_with_where_and_when():
    run = stored_runs("cpu")[0]
    assert run.settings["device"] == "cpu" and isinstance(run.results[0], Result)
    day = min(result.date for result in run.results)[:10]
    assert run.origin.startswith(f"{day}, {run.machine['processor']}, torch {run.machine['torch']}")
    on_card = run._replace(machine=run.machine | {"gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"})
    assert on_card.origin.startswith(f"{day}, NVIDIA H200, driver 580.1, CUDA 13.0, torch ")
    assert stored_runs("abacus") == []


def test_runs_are_stored_in_one_file_for_each_kind_of_processor():
    files = sorted((Path(mixtral_edu.__file__).parent / "data" / "results").glob("benchmark-*.json"))
    assert [run for file in files for run in runs_in(file)] == stored_runs("cpu") + stored_runs("cuda")
    for file in files:
        kinds = {(run.machine["kind"], run.settings["device"]) for run in runs_in(file)}
        assert [file_name(*kind) for kind in kinds] == [file.name]


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "mixtral"}')
    with pytest.raises(ValueError, match="config.json.*no runs"):
        ResultFile(path, {}, {})
    with pytest.raises(ValueError, match="config.json.*no runs"):
        runs_in(path)


def test_the_table_has_a_line_for_each_row():
    header, *lines = as_table(RESULTS).splitlines()
    assert header.split()[:5] == ["task", "ours", "takes", "per", "token"]
    numbers = "210 ms 410 µs 300 ms 1.48 (1.42–1.49) 100 ms 48% 3"
    assert lines[0].split() == f"prefill-512 plain float32 {numbers} sdpa, eager, float32".split()
    assert lines[2].split() == "loading peak memory 2 GB 3 GB 1.50 (1.50–1.50) 1 float32".split()


def test_a_table_without_rows_is_its_head():
    assert as_table([]).split() == as_table([Result("prefill-9", "plain", (1.0,))]).splitlines()[0].split()
