"""Command-line options of the test suite; they have to be known before any test folder is read."""

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        default=os.environ.get("CI", "").lower() not in ("", "0", "false"),
        help="fail where a browser test would skip for want of a Chromium (the default where CI is set)",
    )
