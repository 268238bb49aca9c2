"""Settings that pytest needs before it reads any test folder: options, threads, and how workers share the suite."""

import atexit
import os
import tempfile
from pathlib import Path

import pytest

# The tests and the notebooks' kernels, which inherit this, use one thread. The models are so small that several threads
# would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# If PyTorch's own kernels are limited to an older processor's, limit oneDNN's too, as on a real one. Otherwise
# PyTorch's attention in bfloat16 uses instructions of both and ends in an error ("pack_vnni2 …").
_ONEDNN_OF = {"default": "SSE41", "avx2": "AVX2"}
if (_level := os.environ.get("ATEN_CPU_CAPABILITY")) in _ONEDNN_OF:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", _ONEDNN_OF[_level])

# Exercises keep a reader's own parts here, and not in notebooks/exercises, where a developer may have some.
_OWN_PARTS = tempfile.TemporaryDirectory()
atexit.register(_OWN_PARTS.cleanup)
os.environ["MIXTRAL_EDU_OWN"] = _OWN_PARTS.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        default=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        help="fail a browser test, instead of skipping it, if there is no Chromium (the default if CI is set)",
    )


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many workers `-n auto` starts: one per core, at most four, since each takes gigabytes with its kernel.

    It starts none (0) if they could share nothing: on one core, and for one file, whose tests stay together. It also
    starts none with -s, because pytest does not show what workers print.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    files = {argument.partition("::")[0] for argument in config.args}
    one_file = len(files) == 1 and Path(*files).is_file()
    return 0 if cores == 1 or one_file or config.option.capture == "no" else min(cores, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give workers the longest files first, so that they do not all wait for one that starts last.

    A single process keeps the usual order, in which quick tests come before notebooks.
    """
    if hasattr(config, "workerinput"):  # set by pytest-xdist
        items.sort(key=lambda item: item.path.suffix != ".ipynb" and not item.get_closest_marker("browser"))
