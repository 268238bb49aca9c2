#!/usr/bin/env python3
"""Set this project up and run it. You need Python 3.11 or newer and nothing else.

    python3 dev.py lab     open the first notebook in JupyterLab
    python3 dev.py test    run every test and every notebook; further arguments go to pytest
    python3 dev.py test --processors    run the numerical tests once per kind of processor that this one can act as

All commands use the folder .venv beside this file. The first call creates it and installs the packages, which takes
some minutes. Later calls start at once, until pyproject.toml changes.
"""

from __future__ import annotations  # so that a Python too old for the annotations below can still report that

import argparse
import ast
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "dev-stamp.json"  # what was installed last; a .venv without a stamp was made by somebody else
FIRST_NOTEBOOK = "notebooks/00_quickstart.ipynb"

TORCH = "torch==2.13.0"  # pinned, because an open range would install the newest CUDA build, several gigabytes
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NETWORK_HINT = ("If the network failed, run the same command again; it resumes where this one ended.\n"
                "pip's own configuration sets where packages come from: python3 -m pip config list")


class SetupError(Exception):
    """The environment cannot be created; the message says what to do."""


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - any Python that a machine has may start this file
        print(f"Python 3.11 or newer is needed; this is {platform.python_version()} ({sys.executable}).\n"
              "Install a newer one and start this file with it, for example: python3.12 dev.py lab", file=sys.stderr)
        return 1
    options, rest = parse(argv)
    try:
        set_up(options.torch_index)
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to resume.", file=sys.stderr)
        return 130
    if options.command == "lab":
        return run(lab_command(rest, browser=not options.no_browser))
    test = [PYTHON, "-m", "pytest", "-n", "auto"]  # conftest.py decides how many workers that means
    if options.processors:
        return run_as_each_processor([*test, "-m", "numerics and not slow", *rest])
    return run([*test, *rest])


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into this file's options and the arguments for JupyterLab or pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    lab = commands.add_parser("lab", allow_abbrev=False, help="open the first notebook in JupyterLab",
                              epilog="Further arguments go to JupyterLab: dev.py lab -- --port=9000")
    lab.add_argument("--no-browser", action="store_true", help="print the address instead of opening a browser")
    test = commands.add_parser("test", allow_abbrev=False, help="run every test and every notebook",
                               epilog="Further arguments go to pytest: dev.py test -x tests/test_moe.py. Several "
                                      "files run in parallel processes, one per core and at most four; "
                                      "-n 0 runs all in one process.")
    test.add_argument("--processors", action="store_true", help=(
        "run only the tests marked as numerics, once per kind of processor that this one can act as: PyTorch and "
        "oneDNN limited to fewer instructions; and once without the engine"))
    for command in (lab, test):
        command.add_argument("--torch-index", metavar="URL", help=(
            "package index for torch only; 'default' means the one in pip's configuration. Later calls remember it. "
            "Without this option: PyTorch's CPU index on Linux without an NVIDIA driver, pip's own elsewhere"))
    options, rest = parser.parse_known_args(argv)
    if rest[:1] == ["--"]:
        del rest[0]
    return options, rest


def lab_command(arguments: list[str], browser: bool) -> list[str | Path]:
    """Return the command that opens the first notebook in JupyterLab, whose file list shows the whole repository."""
    first_page = f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}"
    command = [PYTHON, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}", first_page]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # root, as in a container: JupyterLab would refuse to start
        command.append("--allow-root")
    if not browser:
        command.append("--no-browser")
    return command + arguments


def run_as_each_processor(command: list[str | Path]) -> int:
    """Run pytest's `command` under each of `processor_settings`; return 0 if all tests passed under all of them."""
    capability = output("-c", "import torch; print(torch.backends.cpu.get_cpu_capability())").strip()
    failed = []
    for settings in processor_settings(capability):
        title = " ".join(f"{name}={value}" for name, value in settings.items())
        print(f"\n{title}", flush=True)
        status = run(command, settings)
        if status not in (0, 1):  # pytest was interrupted or could not start
            return status
        if status == 1:  # tests failed
            failed.append(title)
    print("\nFailed under " + ", ".join(failed) if failed else "\nPassed under each of these settings", flush=True)
    return int(bool(failed))


def processor_settings(capability: str) -> list[dict[str, str]]:
    """Return the environments that limit PyTorch, Intel's MKL and oneDNN on a processor with this PyTorch `capability`.

    Levels above the processor's own would end in illegal instructions, so they are skipped. conftest.py adds the limits
    of oneDNN. Each level multiplies in another way, and the last run is without the engine: results must not depend on
    either.
    """
    mkl = {"default": "SSE4_2", "avx2": "AVX2", "avx512": "AVX512"}
    own = list(mkl).index(capability.lower()) if capability.lower() in mkl else 0  # other processors have other names
    levels = list(mkl)[: own + 1]
    settings = [{"ATEN_CPU_CAPABILITY": level, "MKL_ENABLE_INSTRUCTIONS": mkl[level]} for level in levels]
    settings.append({"ONEDNN_MAX_CPU_ISA": "AVX2"})
    ways = itertools.cycle(("weight-first", "onednn", "linear"))  # to multiply in, where usually a trial decides
    return [*({**each, "MIXTRAL_EDU_PRODUCT": next(ways)} for each in settings), {"MIXTRAL_EDU_TEXTBOOK": "1"}]


def run(command: list[str | Path], settings: dict[str, str] | None = None) -> int:
    """Run `command` in the repository until it ends, with `settings` in its environment; return its exit status.

    Ctrl-C reaches the command from the terminal, and the command decides what it means (JupyterLab asks, pytest
    reports). A request to terminate, such as a container gets, is passed on.
    """
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | (settings or {}))
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    signal.signal(signal.SIGINT, interrupt)  # otherwise the next command would ignore Ctrl-C too
    signal.signal(signal.SIGTERM, terminate)
    return status


def set_up(torch_index: str | None) -> None:
    """Create `.venv` and install into it, unless the stamp says that exactly this was installed before."""
    stamp = read_stamp()
    other_torch = torch_index is not None and torch_index != stamp.get("torch_index")
    if stamp.get("installed") == fingerprint() and not other_torch and starts(PYTHON):
        return
    torch_index = torch_index or stamp.get("torch_index")

    print(f"Setting up {VENV} (some minutes the first time)")
    step("1/3  Python environment", make_venv)
    # The stamp is not "installed" from here on: after an interruption, the next call finishes with the same torch.
    write_stamp({} if other_torch else {"torch_index": torch_index})
    index, reason = torch_source(
        torch_index, linux=sys.platform == "linux", nvidia=has_nvidia_driver(), wheel=local_torch_wheel()
    )
    arguments = [TORCH, *(["--index-url", index] if index else []), *(["--force-reinstall"] if other_torch else [])]
    step(f"2/3  {TORCH}, {reason}", lambda: pip_install(arguments, hint=torch_hint()))
    step("3/3  the package, JupyterLab and the test tools", lambda: pip_install(["-e", ".[dev]"], hint=NETWORK_HINT))
    write_stamp({"installed": fingerprint(), "torch_index": torch_index})
    print("Ready; later starts skip this.\n", flush=True)


def step(title: str, action: Callable[[], None]) -> None:
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    action()
    print(f"     done in {time.monotonic() - start:.0f} s", flush=True)


def read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none yet, or a set-up was interrupted
        return {}


def write_stamp(content: dict) -> None:
    STAMP.write_text(json.dumps(content), encoding="utf-8")


def fingerprint() -> str:
    """Hash what the set-up depends on: the dependencies, and this folder, which the editable install points to."""
    parts = (ROOT / "pyproject.toml").read_bytes(), TORCH.encode(), str(ROOT).encode()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def starts(python: Path) -> bool:
    """Return whether `python` runs, is new enough and has pip."""
    probe = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", probe], capture_output=True).returncode == 0
    except OSError:
        return False


def make_venv() -> None:
    if starts(PYTHON):
        return
    if VENV.exists():
        if not STAMP.exists():
            raise SetupError(f"{VENV} has no working Python 3.11 or newer with pip, and this file did not make it.\n"
                             "Move or delete it, then run the same command again.")
        print("     the old one does not start (was its Python removed?): creating a new one", flush=True)
        shutil.rmtree(VENV)
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise SetupError(no_venv_message())
    VENV.mkdir()
    STAMP.touch()
    if subprocess.run([sys.executable, "-m", "venv", VENV]).returncode != 0 or not starts(PYTHON):
        raise SetupError(no_venv_message())


def no_venv_message() -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (f"This Python {version} ({sys.executable}) cannot create virtual environments.\n"
            f"On Debian or Ubuntu, install the missing part and run this again: sudo apt install python{version}-venv\n"
            "Elsewhere, use a complete Python, for example from python.org or conda.")


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def torch_source(option: str | None, *, linux: bool, nvidia: bool, wheel: Path | None) -> tuple[str | None, str]:
    """Return the index to install torch from (None for pip's own configuration) and the reason, in words."""
    if option == "default":
        return None, "as pip is configured"
    if option:
        return option, f"from {option}"
    if wheel:
        return None, f"from {wheel}"
    if linux and not nvidia:
        return TORCH_CPU_INDEX, "for the CPU (no NVIDIA driver found)"
    return None, "as pip is configured"


def local_torch_wheel() -> Path | None:
    """Return the wheel of TORCH for `.venv` in a folder of pip's find-links, or None."""
    tag = output("-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
    name = f"{TORCH.replace('==', '-')}[-+]*-{tag}-*.whl"
    for folder in find_links_folders(output("-m", "pip", "config", "list")):
        if wheels := sorted(folder.glob(name)):
            return wheels[0]
    return None


def output(*arguments: str) -> str:
    return subprocess.run([PYTHON, *arguments], capture_output=True, text=True).stdout


def find_links_folders(pip_config: str) -> list[Path]:
    """Return the folders of find-links in the output of `pip config list`, such as `global.find-links='/a /b'`."""
    folders = []
    for line in pip_config.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".find-links"):
            folders += [Path(place.removeprefix("file://")).expanduser() for place in ast.literal_eval(value).split()]
    return [folder for folder in folders if folder.is_dir()]


def torch_hint() -> str:
    return (f"{TORCH} is published for 64-bit Python on Linux, Windows and Macs with Apple silicon; "
            f"this is Python {platform.python_version()} on {platform.system()} {platform.machine()}.\n"
            "Give another source with --torch-index URL, or pip's own with --torch-index default.\n" + NETWORK_HINT)


def pip_install(arguments: list[str], hint: str) -> None:
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise SetupError(f"pip could not install {' '.join(arguments)} (its messages are above).\n{hint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
