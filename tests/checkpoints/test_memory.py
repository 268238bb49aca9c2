"""Where a model's weights go: device, number type, and no more memory than the model and one tensor."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.checkpoints import memory as placement
from mixtral_edu.checkpoints.memory import choose_device, choose_dtype, free_memory, require_memory

CPU = torch.device("cpu")


def test_a_device_and_its_old_name():
    for arguments in ((), ("cpu",), (CPU,), (None, "cpu"), (None, CPU)):
        assert choose_device(*arguments) == CPU
    assert choose_device(device_map="auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "meta", "cuda:99", "auto", 1.5):
        with pytest.raises(ValueError, match="device="):
            choose_device(wrong)
    for wrong in ("balanced", "cuda:0", {"": 0}):
        with pytest.raises(ValueError, match="device_map=.*'auto', 'cpu' or 'cuda'"):
            choose_device(device_map=wrong)
    with pytest.raises(ValueError, match="device='cpu' and device_map='auto'"):
        choose_device("cpu", "auto")


def test_a_dtype_and_its_old_name():
    for value in (torch.bfloat16, "bfloat16", "torch.bfloat16"):
        assert choose_dtype(value) == choose_dtype(torch_dtype=value) == torch.bfloat16
    assert choose_dtype() is choose_dtype("auto") is choose_dtype(torch_dtype="auto") is None
    for wrong in ("int8", torch.int8, "float", "", 16):
        with pytest.raises(ValueError, match="dtype=.*bfloat16.*'auto'"):
            choose_dtype(wrong)
    with pytest.raises(ValueError, match="dtype='float32' and torch_dtype='float16'"):
        choose_dtype("float32", "float16")


def test_too_little_memory_names_both_figures(monkeypatch):
    memory = psutil.virtual_memory()._replace(available=22_900_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    require_memory(22_900_000_000, CPU, "a model")
    with pytest.raises(MemoryError, match="a model needs 93.4 GB on cpu.* 22.9 GB are free"):
        require_memory(93_405_000_000, CPU, "a model")


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "_CGROUP", tmp_path)
    assert free_memory(CPU) > 1_000_000  # no such files: the machine's
    (tmp_path / "memory.stat").write_text("anon 400000\nfile 9000000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert free_memory(CPU) == 600_000  # cached files give way
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) > 1_000_000


@pytest.mark.gpu
def test_a_gpus_free_memory_includes_what_torch_only_reserves():
    torch.cuda.empty_cache()
    before = free_memory(torch.device("cuda"))
    block = torch.empty(200_000_000, dtype=torch.uint8, device="cuda")
    assert before - free_memory(torch.device("cuda")) >= 200_000_000
    del block  # torch keeps it reserved
    assert abs(before - free_memory(torch.device("cuda"))) < 20_000_000


PEAK = """
import sys
import torch
from mixtral_edu import MixtralForCausalLM

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

folder, device, dtype = sys.argv[1:]
MixtralForCausalLM.from_pretrained(folder + "/small", device=device)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = kilobytes("VmRSS")
model = MixtralForCausalLM.from_pretrained(folder + "/large", device=device, dtype=dtype)
print((kilobytes("VmHWM") - before) * 1024)
print(sum(p.numel() * p.element_size() for p in model.parameters()))
"""
LARGEST = 4000 * 1024 * 4  # bytes of the large model's embedding, in float32
ALLOWANCE = 12_000_000


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    """A small one to warm up, and one of 150 MB in float32 in one file."""
    folder = tmp_path_factory.mktemp("memory")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 16, "num_local_experts": 3}
    for name, D, F, V in (("small", 64, 100, 50), ("large", 1024, 1500, 4000)):
        config = MixtralConfig(hidden_size=D, intermediate_size=F, vocab_size=V, **sizes)
        MixtralForCausalLM(config).save_pretrained(folder / name)
    return folder


def peak_while_loading(folder: Path, device: str, dtype: str) -> tuple[int, int]:
    """The bytes by which the host's memory grew at most, and the size of the model."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("reads the peak from Linux's /proc")
    command = [sys.executable, "-c", PEAK, str(folder), device, dtype]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    peak, model = map(int, done.stdout.split())
    return peak, model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_model_plus_one_tensor(two_checkpoints, dtype):
    peak, model = peak_while_loading(two_checkpoints, "cpu", dtype)
    assert model > 4 * LARGEST
    assert 0.9 * model < peak < model + LARGEST + ALLOWANCE


@pytest.mark.gpu
def test_on_a_gpu_the_host_holds_one_tensor_at_a_time(two_checkpoints):
    peak, model = peak_while_loading(two_checkpoints, "cuda", "bfloat16")
    assert peak < 1.5 * LARGEST + ALLOWANCE  # as stored, and as converted
    assert model > 2 * (1.5 * LARGEST + ALLOWANCE)
