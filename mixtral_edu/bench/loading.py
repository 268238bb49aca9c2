"""Measure what it takes to load a checkpoint: seconds to import, seconds to load, and memory, in fresh processes.

This file is both sides. `measure_loading` starts a process for each system in turn. The process runs this file by its
path, imports one system, loads the checkpoint with it, and prints what that took. So the top of this file imports
nothing but the standard library.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

OURS = "mixtral_edu"


class Loading(TypedDict):
    """Seconds and bytes of one process.

    `torch_seconds` is the time to import torch, `import_seconds` the time to import torch and the model's class. Parts
    that a system imports only when it loads count in `load_seconds`. `peak_bytes` is the most memory that the process
    held at once, and `extra_bytes` is how much more that is than before loading.
    """

    torch_seconds: float
    import_seconds: float
    load_seconds: float
    peak_bytes: int
    extra_bytes: int


def measure_loading(
    systems: Sequence[str], folder: Path, device: str, threads: int, rounds: int
) -> dict[str, list[Loading]]:
    """Load `folder` with each system in each round. A first round fills the file cache and does not count.

    Args:
        systems: "mixtral_edu" and "transformers", or one of them.
        folder: a checkpoint.
        device: the device to load to. The memory reported is always the host's.
        threads: PyTorch's threads.
        rounds: the number of rounds that count.

    Raises:
        RuntimeError: a process failed; the message holds its last line.
    """
    times: dict[str, list[Loading]] = {system: [] for system in systems}
    for round_idx in range(rounds + 1):
        for system in list(systems)[:: -1 if round_idx % 2 else 1]:
            loading = _in_new_process(system, folder, device, threads)
            if round_idx:
                times[system].append(loading)
    return times


def _in_new_process(system: str, folder: Path, device: str, threads: int) -> Loading:
    packages = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": str(threads)}
    # -P keeps this file's folder off the search path, where its neighbours would be found as `timing` or `tasks`.
    command = [sys.executable, "-P", __file__, system, str(folder), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"loading with {system} failed: " + done.stderr.strip().rpartition("\n")[2])
    return json.loads(done.stdout)


def _load(system: str, folder: str, device: str) -> Loading:
    """Import, load and measure in this process: the other side."""
    started = time.perf_counter()
    import torch  # noqa: F401

    torch_imported = time.perf_counter()
    if system == OURS:
        from mixtral_edu import MixtralForCausalLM
    else:
        from transformers import MixtralForCausalLM
    imported = time.perf_counter()
    before, _ = _memory()
    begun = time.perf_counter()
    MixtralForCausalLM.from_pretrained(folder).to(device)
    loaded = time.perf_counter()
    _, peak = _memory()
    return Loading(
        torch_seconds=torch_imported - started,
        import_seconds=imported - started,
        load_seconds=loaded - begun,
        peak_bytes=peak,
        extra_bytes=peak - before,
    )


def _memory() -> tuple[int, int]:
    """Return the bytes that this process holds now, and the most that it ever held."""
    if sys.platform == "linux":  # `getrusage` may report the peak of the process that started this one
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(lines["VmRSS"].split()[0]), 1024 * int(lines["VmHWM"].split()[0])
    import psutil

    now = psutil.Process().memory_info()
    if sys.platform == "win32":
        return now.rss, now.peak_wset
    import resource

    return now.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(_load(*sys.argv[1:])))
