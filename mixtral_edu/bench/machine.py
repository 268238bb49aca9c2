"""The machine that results hold for: its processor and the instructions it has, versions, and a GPU."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import mixtral_edu
from mixtral_edu.training.recipes import processor_name

_SPELLED = {"AVX512": "AVX-512", "NO AVX": "no AVX", "DEFAULT": "baseline"}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what times depend on besides settings: processor, versions, and a GPU's name, driver and CUDA version."""
    machine = {
        "processor": processor_name(),
        "kind": processor_kind(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _installed_version("transformers"),
        "mixtral_edu": mixtral_edu.__version__,
    }
    if device.type == "cuda":
        machine |= {
            "gpu": torch.cuda.get_device_name(device),
            "driver": _driver_version(),
            "cuda": torch.version.cuda,
        }
    return machine


def processor_kind() -> str:
    """Return the instructions that decide how fast this processor multiplies, such as "AVX-512 with bfloat16".

    Results of two kinds are not compared: what is fastest on one is not on the other.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    parts = [name for name, has in (("bfloat16", _has_bfloat16()), ("AMX", _has_amx())) if has]
    return _SPELLED.get(capability, capability) + (" with " + " and ".join(parts) if parts else "")


def file_name(kind: str, device: str = "cpu") -> str:
    """Return the name of the file in which the package stores results of a kind of processor.

    >>> file_name("AVX-512 with bfloat16 and AMX")
    'benchmark-cpu-avx512-bf16-amx.json'
    """
    words = kind.lower().replace("bfloat16", "bf16").replace("avx-512", "avx512").split()
    return "-".join(("benchmark", device, *(word for word in words if word not in ("with", "and")))) + ".json"


def _has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_amx() -> bool:
    """Whether there are tile instructions, which multiply blocks of bfloat16 numbers."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()  # a private function of PyTorch


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None
