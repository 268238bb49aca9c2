"""`bench.machine`: which kind of processor this is, and the file of its results."""

import pytest
import torch

from benchmark_runs import CPU
from mixtral_edu.bench import machine
from mixtral_edu.bench.machine import describe_machine, file_name, processor_kind


@pytest.mark.parametrize(
    ("capability", "has_bfloat16", "has_amx", "kind", "file"),
    [
        ("AVX2", False, False, "AVX2", "benchmark-cpu-avx2.json"),
        ("AVX512", False, False, "AVX-512", "benchmark-cpu-avx512.json"),
        ("AVX512", True, False, "AVX-512 with bfloat16", "benchmark-cpu-avx512-bf16.json"),
        ("AVX512", True, True, "AVX-512 with bfloat16 and AMX", "benchmark-cpu-avx512-bf16-amx.json"),
        ("SVE256", True, False, "SVE256 with bfloat16", "benchmark-cpu-sve256-bf16.json"),
        ("NO AVX", False, False, "no AVX", "benchmark-cpu-no-avx.json"),
    ],
)
def test_a_kind_is_named_by_its_instructions(monkeypatch, capability, has_bfloat16, has_amx, kind, file):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(machine, "_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(machine, "_has_amx", lambda: has_amx)
    assert processor_kind() == kind and file_name(kind) == file
    assert describe_machine(CPU)["kind"] == kind


def test_what_this_processor_has_is_asked_of_pytorch(monkeypatch: pytest.MonkeyPatch):
    assert {type(machine._has_bfloat16()), type(machine._has_amx())} == {bool}
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert machine._has_amx() is False
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert machine._has_bfloat16() is False
