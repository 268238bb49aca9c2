"""What the benchmark's tests share: a small model in a checkpoint, transformers with it, and rates without waiting."""

from pathlib import Path

import pytest
import torch

from benchmark_runs import CPU, SIZES
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.bench.peers import Transformers
from mixtral_edu.bench.timing import product_rate, read_bandwidth


@pytest.fixture(scope="module")
def config(make_config) -> MixtralConfig:
    return make_config(**SIZES)


@pytest.fixture(scope="module")
def checkpoint(config: MixtralConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "checkpoint"
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> Transformers:
    return Transformers(checkpoint, CPU)


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure bandwidth and product rate on small tensors: quick, and of no meaning."""
    monkeypatch.setattr("mixtral_edu.bench.run.read_bandwidth", lambda device, size, _: read_bandwidth(device, 2**16))
    monkeypatch.setattr("mixtral_edu.bench.run.product_rate", lambda *kind: product_rate(*kind, size=64))
