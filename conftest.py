"""What has to be known before any test folder is read: command-line options, and how many threads PyTorch takes."""

import os

import pytest

# For the tests and for the notebooks' kernels, which inherit it: the models are so small that threads wait for each
# other most of the time, and on a busy machine nearly always.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        default=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        help="fail where a browser test would skip for want of a Chromium (the default where CI is set)",
    )
