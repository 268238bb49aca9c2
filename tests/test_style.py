"""The linter's rules hold for modules, tests, tools and the notebooks' code cells."""

import subprocess
import sys
from pathlib import Path


def test_ruff_finds_nothing(repository: Path):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
