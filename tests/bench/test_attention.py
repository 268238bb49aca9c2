"""`bench.attention`: each way computes attention, and its error is seen."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmark_runs import CPU
from mixtral_edu import MixtralConfig
from mixtral_edu.bench.attention import Attention, bytes_of_attention, operations_of_attention
from mixtral_edu.bench.command import benchmark
from mixtral_edu.bench.results import as_table
from mixtral_edu.bench.tasks import (
    Task,
)
from mixtral_edu.masks import Visibility
from mixtral_edu.viz.benchmark import attention_by_length


@pytest.mark.numerics
@pytest.mark.parametrize("way", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["attention-200-200", "attention-200-37", "attention-9-64"])
def test_attention_alone_is_exact(config, way, name):
    task = Task.parse(name)
    work = Attention(way, config, task, torch.float64, CPU)
    W = min(task.window, task.tokens)
    positions = torch.arange(task.tokens)
    distance = positions[:, None] - positions
    mask = (distance >= 0) & (distance < W)
    k, v = (x.repeat_interleave(work.q.shape[1] // x.shape[1], 1) for x in (work.k, work.v))
    exact = F.scaled_dot_product_attention(work.q, k, v, mask)
    assert (work.run() - exact).abs().max() < 1e-6 and work.error() < 1e-6  # "eager" has a softmax in float32
    assert operations_of_attention(config, task) == 4 * mask.sum() * work.q.shape[1] * work.q.shape[3]
    assert bytes_of_attention(config, task, torch.float64) == sum(x.nbytes for x in (work.q, work.k, work.v, exact))


def test_the_error_of_attention_is_seen(config):
    work = Attention("sdpa", config, Task.parse("attention-200-37"), torch.float32, CPU)
    right, work.attend = work.attend, lambda *inputs: 1.01 * right(*inputs)
    exact = right(work.q, work.k, work.v, work.visibility)
    assert 0.001 < work.error() <= 0.011 * exact.abs().max()
    work.attend = lambda q, k, v, visibility: right(q, k, v, Visibility(*(visibility.query_positions,) * 2, 36))
    assert work.error() > 0.01


def test_attention_alone_needs_room_for_scores_and_a_card_for_its_kernel(config, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        Attention("flash_attention_2", config, Task.parse("attention-8-8"), torch.bfloat16, CPU)
    monkeypatch.setattr("mixtral_edu.checkpoints.memory.free_memory", lambda device: 1_000_000)
    with pytest.raises(MemoryError, match="the scores of 4,096 tokens in 4 heads"):
        Attention("eager", config, Task.parse("attention-4096-64"), torch.float32, CPU)


@pytest.mark.usefixtures("small_rates")
def test_a_run_of_attention_sets_each_way_beside_eager_and_goes_on(config, tmp_path, monkeypatch):
    ways = ("eager", "sdpa", "flash_attention_2")
    monkeypatch.setattr("mixtral_edu.bench.attention.ways_of", lambda device: ways)
    run = {"seconds": 0.01, "json_file": tmp_path / "results.json", "threads": 1}
    lines: list[str] = []
    results = benchmark(config, tasks=["attention-40-40"], report=lines.append, **run)
    assert [(r.task, r.variant) for r in results] == [("attention-40-40", f"{w} float32") for w in ("eager", "sdpa")]
    eager, sdpa = results
    assert eager.ratio is None and sdpa.theirs == eager.ours and sdpa.against == "eager"
    assert all(r.error < 1e-5 and r.peak_bytes is None and r.floor > 0 for r in results)
    assert any("flash_attention_2 float32 is skipped" in line and "CUDA" in line for line in lines)
    more = benchmark(config, tasks=["attention-40-40", "attention-40-8"], **run)
    assert more[:2] == results and len(more) == 4
    head, *rows = as_table(more).splitlines()
    assert head.split()[-1] == "error" and "memory" not in head and len(rows) == 4
    with pytest.raises(ValueError, match="no attention in bfloat16"):
        attention_by_length(more, "bfloat16")


@pytest.mark.gpu
def test_attention_on_a_gpu_is_measured_in_all_ways_with_its_memory(tmp_path: Path):
    config = MixtralConfig(hidden_size=1024, num_attention_heads=8, num_key_value_heads=2, head_dim=128)
    results = benchmark(config, tasks=["attention-4096-4096", "attention-4096-512"], device="cuda", seconds=0.1)
    assert len(results) == 2 * 2 * 3
    by_name = {(r.task, r.variant): r for r in results}
    for task in ("attention-4096-4096", "attention-4096-512"):
        for dtype in ("bfloat16", "float16"):
            eager, flash = (by_name[task, f"{way} {dtype}"] for way in ("eager", "flash_attention_2"))
            assert flash.peak_bytes < eager.peak_bytes / 10 and max(flash.error, eager.error) < 0.02
            assert 0 < flash.share_of_floor < 1
