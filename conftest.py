"""What has to be known before any test folder is read: options, threads, and how the suite is shared among workers."""

import os
from pathlib import Path

import pytest

# For the tests and for the notebooks' kernels, which inherit it: the models are so small that threads wait for each
# other most of the time, and on a busy machine nearly always.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where PyTorch's own kernels are limited to those of an older processor, oneDNN's are too, as they would be on one.
# Else PyTorch's attention in bfloat16 takes instructions from both and ends in an error ("pack_vnni2 …").
_ONEDNN_OF = {"default": "SSE41", "avx2": "AVX2"}
if (_level := os.environ.get("ATEN_CPU_CAPABILITY")) in _ONEDNN_OF:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", _ONEDNN_OF[_level])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        default=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        help="fail where a browser test would skip for want of a Chromium (the default where CI is set)",
    )


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many workers `-n auto` starts: one for each core, at most four, as each takes some gigabytes with its kernel.

    None (0) where nothing could be shared, so that no time goes into starting them: for one core, and for one file,
    whose tests stay together. Nor with -s, since what workers print is not shown.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    files = {argument.partition("::")[0] for argument in config.args}
    one_file = len(files) == 1 and Path(*files).is_file()
    return 0 if cores == 1 or one_file or config.option.capture == "no" else min(cores, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give workers the files that take longest first; else one of them would be left to the last, and all wait for it.

    A process that is alone keeps the usual order, in which quick tests come before notebooks.
    """
    if hasattr(config, "workerinput"):  # set by pytest-xdist
        items.sort(key=lambda item: item.path.suffix != ".ipynb" and not item.get_closest_marker("browser"))
