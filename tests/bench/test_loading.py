"""`bench.loading`: fresh processes in turn, and the memory of each alone."""

from pathlib import Path

import pytest
import torch

from mixtral_edu.bench.loading import _in_new_process, measure_loading


def test_loading_is_measured_in_fresh_processes_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    started = []

    def process(system, *_):
        started.append(system)
        return {"load_seconds": len(started)}

    monkeypatch.setattr("mixtral_edu.bench.loading._in_new_process", process)
    times = measure_loading(["mixtral_edu", "transformers"], tmp_path, "cpu", threads=1, rounds=2)
    assert started == ["mixtral_edu", "transformers", "transformers", "mixtral_edu", "mixtral_edu", "transformers"]
    assert times == {
        "mixtral_edu": [{"load_seconds": 4}, {"load_seconds": 5}],
        "transformers": [{"load_seconds": 3}, {"load_seconds": 6}],
    }


def test_memory_of_loading_is_that_of_the_process_alone(checkpoint: Path):
    held = torch.ones(2**28)  # 1 GiB here must not count there
    loading = _in_new_process("mixtral_edu", checkpoint, "cpu", threads=1)
    assert 0 < loading["extra_bytes"] < loading["peak_bytes"] < held.nbytes
    assert 0 < loading["torch_seconds"] < loading["import_seconds"]


def test_a_process_that_fails_says_why(tmp_path: Path):
    with pytest.raises(RuntimeError, match="loading with mixtral_edu failed: FileNotFoundError"):
        measure_loading(["mixtral_edu"], tmp_path / "nothing", "cpu", threads=1, rounds=1)
