"""What dev.py decides, without network and without installing anything."""

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dev
from mixtral_edu.fast.products import WAYS

PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without an environment that dev.py takes for the repository."""
    root = tmp_path / "a project"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    for name in ("PYTHON", "STAMP", "VENV"):
        monkeypatch.setattr(dev, name, root / getattr(dev, name).relative_to(dev.ROOT))
    monkeypatch.setattr(dev, "ROOT", root)
    return root


@pytest.fixture
def installs(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each `pip install` that dev.py would have run, on Linux without an NVIDIA driver."""
    done: list[list[str]] = []
    monkeypatch.setattr(dev, "make_venv", lambda: dev.VENV.mkdir(exist_ok=True))
    monkeypatch.setattr(dev, "starts", lambda python: True)
    monkeypatch.setattr(dev, "local_torch_wheel", lambda: None)
    monkeypatch.setattr(dev, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(dev.sys, "platform", "linux")
    monkeypatch.setattr(dev, "pip_install", lambda arguments, hint: done.append(arguments))
    return done


CPU_TORCH = [dev.TORCH, "--index-url", dev.TORCH_CPU_INDEX]
PACKAGE = ["-e", ".[dev]"]  # never with an index of its own


def test_torch_comes_first_and_a_second_start_installs_nothing(installs: list):
    dev.set_up(None)
    assert installs == [CPU_TORCH, PACKAGE]
    dev.set_up(None)
    assert installs == [CPU_TORCH, PACKAGE]


def test_changed_dependencies_are_installed(installs: list, project: Path):
    dev.set_up(None)
    (project / "pyproject.toml").write_text("[project]\nname = 'other'\n", encoding="utf-8")
    dev.set_up(None)
    assert installs == [CPU_TORCH, PACKAGE] * 2


def test_another_torch_index_replaces_torch_once_and_is_remembered(installs: list, project: Path):
    dev.set_up(None)
    for _ in range(2):
        dev.set_up("https://mirror.invalid/cu128")
    replaced = [dev.TORCH, "--index-url", "https://mirror.invalid/cu128", "--force-reinstall"]
    assert installs[2:] == [replaced, PACKAGE]
    (project / "pyproject.toml").write_text("[project]\nname = 'other'\n", encoding="utf-8")
    dev.set_up(None)
    assert installs[4:] == [[dev.TORCH, "--index-url", "https://mirror.invalid/cu128"], PACKAGE]


def test_what_an_interruption_left_is_finished_by_the_next_start(installs: list, monkeypatch: pytest.MonkeyPatch):
    dev.set_up(None)
    record = dev.pip_install

    def fail(arguments, hint):
        raise dev.SetupError("no network")

    monkeypatch.setattr(dev, "pip_install", fail)
    with pytest.raises(dev.SetupError):
        dev.set_up("default")
    monkeypatch.setattr(dev, "pip_install", record)
    dev.set_up("default")
    assert installs[2:] == [[dev.TORCH, "--force-reinstall"], PACKAGE]


def test_a_moved_folder_is_set_up_again(installs: list, project: Path, monkeypatch: pytest.MonkeyPatch):
    before = dev.fingerprint()
    moved = project.with_name("moved")
    shutil.copytree(project, moved)
    monkeypatch.setattr(dev, "ROOT", moved)
    assert dev.fingerprint() != before


@pytest.mark.parametrize(
    ("option", "linux", "nvidia", "wheel", "index"),
    [
        (None, True, False, None, dev.TORCH_CPU_INDEX),
        (None, True, True, None, None),
        (None, False, False, None, None),
        (None, True, False, Path("folder/torch.whl"), None),
        ("default", True, False, None, None),
        ("https://mirror.invalid", True, True, Path("folder/torch.whl"), "https://mirror.invalid"),
    ],
)
def test_where_torch_comes_from(option, linux, nvidia, wheel, index):
    assert dev.torch_source(option, linux=linux, nvidia=nvidia, wheel=wheel)[0] == index


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (f"torch-2.13.0-{PYTHON_TAG}-{PYTHON_TAG}-any.whl", True),
        (f"torch-2.13.0+cpu-{PYTHON_TAG}-{PYTHON_TAG}-any.whl", True),
        ("torch-2.13.0+cpu-cp27-cp27m-any.whl", False),
        (f"torch-2.13.1-{PYTHON_TAG}-{PYTHON_TAG}-any.whl", False),
        (f"torchvision-2.13.0-{PYTHON_TAG}-{PYTHON_TAG}-any.whl", False),
    ],
)
def test_a_torch_wheel_in_a_folder_that_pip_is_configured_with_is_found(tmp_path, monkeypatch, name, found):
    (tmp_path / name).touch()
    monkeypatch.setattr(dev, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://mirror.invalid/wheels {tmp_path}")
    assert dev.local_torch_wheel() == (tmp_path / name if found else None)


def test_find_links_may_be_lists_urls_and_missing_folders(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    values = {
        "global.find-links": f"\n{tmp_path}/a\n{tmp_path}/missing",
        ":env:.find-links": f"file://{tmp_path}/b https://mirror.invalid",
        "global.index-url": f"{tmp_path}/c",
    }
    printed = "\n".join(f"{key}={value!r}" for key, value in values.items())  # as `pip config list` prints
    assert dev.find_links_folders(printed) == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize(
    ("line", "torch_index", "rest"),
    [
        ("test", None, []),
        ("test -x -k router tests/test_moe.py", None, ["-x", "-k", "router", "tests/test_moe.py"]),
        ("test --torch-index default --lf", "default", ["--lf"]),
        ("test --tor", None, ["--tor"]),
        ("test --processors -x", None, ["-x"]),
        ("lab -- --port=9000", None, ["--port=9000"]),
        ("lab --no-browser --ip=0.0.0.0", None, ["--ip=0.0.0.0"]),
    ],
)
def test_further_arguments_are_passed_on_in_their_order(line: str, torch_index: str | None, rest: list[str]):
    options, passed_on = dev.parse(line.split())
    assert (options.torch_index, passed_on) == (torch_index, rest)


@pytest.mark.parametrize(
    ("named", "capture", "cores", "workers"),
    [
        (["tests", "notebooks"], "fd", 2, 2),
        (["tests", "notebooks"], "fd", 64, 4),
        (["tests", "notebooks"], "fd", 1, 0),
        (["tests", "notebooks"], "no", 2, 0),
        (["tests/test_dev.py", "tests/test_moe.py::test_a"], "fd", 2, 2),
        (["tests/test_dev.py::test_a", "tests/test_dev.py::test_b"], "fd", 2, 0),
    ],
)
def test_what_n_auto_means(monkeypatch, request, named: list[str], capture: str, cores: int, workers: int):
    monkeypatch.chdir(dev.ROOT)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    config = SimpleNamespace(args=named, option=SimpleNamespace(capture=capture))
    assert request.config.hook.pytest_xdist_auto_num_workers(config=config) == workers


@pytest.mark.parametrize(
    ("capability", "levels"),
    [("DEFAULT", 1), ("AVX2", 2), ("AVX512", 3), ("SVE256", 1), ("", 1)],  # the last two: other processors, no torch
)
def test_only_levels_that_this_processor_has_are_tried(capability: str, levels: int):
    *settings, onednn, textbook = dev.processor_settings(capability)
    assert [each["ATEN_CPU_CAPABILITY"] for each in settings] == ["default", "avx2", "avx512"][:levels]
    assert onednn["ONEDNN_MAX_CPU_ISA"] == "AVX2" and textbook == {"MIXTRAL_EDU_TEXTBOOK": "1"}
    assert all(each["MIXTRAL_EDU_PRODUCT"] in WAYS for each in (*settings, onednn))


@pytest.mark.parametrize(
    ("statuses", "status", "named"),
    [
        ([0, 0, 0, 0], 0, []),
        ([1, 0, 1, 0], 1, ["ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=AVX2"]),
        ([0, 2], 2, ["ATEN_CPU_CAPABILITY=avx2"]),  # interrupted: the rest is left out
        ([-15], -15, ["ATEN_CPU_CAPABILITY=default"]),
    ],
)
def test_numerical_tests_run_once_for_each_setting(monkeypatch, capsys, statuses, status, named):
    runs, left = [], list(statuses)
    monkeypatch.setattr(dev, "set_up", lambda torch_index: None)
    monkeypatch.setattr(dev, "output", lambda *arguments: "AVX2\n")
    monkeypatch.setattr(dev, "run", lambda command, settings: runs.append((command, settings)) or left.pop(0))
    assert dev.main(["test", "--processors", "-x"]) == status and not left
    assert [settings for _, settings in runs] == dev.processor_settings("AVX2")[: len(statuses)]
    assert {tuple(command[1:]) for command, _ in runs} == {
        ("-m", "pytest", "-n", "auto", "-m", "numerics and not slow", "-x")
    }
    *_, last_line = capsys.readouterr().out.splitlines()
    assert re.findall(r"(?:ATEN|ONEDNN)\w+=\w+", last_line) == named


def test_a_command_gets_its_settings_and_the_next_one_can_be_interrupted(monkeypatch, capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process is started without one
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    show = "import os, signal as s; print(os.environ.get('A'), s.getsignal(s.SIGINT) is s.default_int_handler)"
    monkeypatch.delenv("A", raising=False)
    try:
        for settings in ({"A": "1"}, {}):
            assert dev.run([sys.executable, "-c", show], settings) == 0
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().out.splitlines() == ["1 True", "None True"]


def test_modules_that_compare_numbers_run_under_each_setting(repository: Path):
    """A new module that compares floating-point results must say that it does; figures show numbers, rounded."""
    for path in sorted(repository.glob("tests/**/test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "assert_close" in text and path.parent.name != "viz" and path.name != "test_dev.py":
            assert "pytest.mark.numerics" in text, path.name


def test_jupyterlab_serves_the_repository_and_opens_the_first_notebook(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dev.os, "geteuid", lambda: 1000, raising=False)
    command = dev.lab_command(["--port=9000"], browser=True)
    assert command == [
        dev.PYTHON, "-m", "jupyterlab", f"--ServerApp.root_dir={dev.ROOT}",
        "--LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb", "--port=9000",
    ]
    assert (dev.ROOT / dev.FIRST_NOTEBOOK).is_file()


def test_jupyterlab_may_run_as_root_and_without_a_browser(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dev.os, "geteuid", lambda: 0, raising=False)
    assert {"--allow-root", "--no-browser"} <= set(dev.lab_command([], browser=False))
    monkeypatch.delattr(dev.os, "geteuid")  # Windows
    assert "--allow-root" not in dev.lab_command([], browser=True)


def test_a_python_too_old_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(dev.sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(dev, "set_up", lambda torch_index: pytest.fail("went on"))
    assert dev.main(["lab"]) == 1
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err
    ast.parse(Path(dev.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))  # it can be read that far


def test_a_python_without_venv_is_told_what_to_install(project: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find_spec(name))
    assert dev.main(["test"]) == 1
    assert f"apt install python{sys.version_info.major}.{sys.version_info.minor}-venv" in capsys.readouterr().err
    assert not dev.VENV.exists()


@pytest.mark.slow
def test_an_environment_is_made_kept_and_made_anew_when_its_python_is_gone(project: Path):
    dev.make_venv()
    assert dev.starts(dev.PYTHON)
    (dev.VENV / "kept").touch()
    dev.make_venv()
    assert (dev.VENV / "kept").exists()
    dev.PYTHON.unlink()
    dev.make_venv()
    assert dev.starts(dev.PYTHON)
    assert not (dev.VENV / "kept").exists()


def test_a_broken_environment_of_somebody_else_is_left_alone(project: Path):
    dev.VENV.mkdir()
    (dev.VENV / "work").touch()
    with pytest.raises(dev.SetupError, match="delete it"):
        dev.make_venv()
    assert (dev.VENV / "work").exists()


def test_a_failing_pip_is_explained(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setattr(dev, "PYTHON", Path(sys.executable))
    with pytest.raises(dev.SetupError, match=r"could not install --no-index nothing-of-this-name .*\nA hint\."):
        dev.pip_install(["--no-index", "nothing-of-this-name"], hint="A hint.")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to hand on")
def test_exit_status_and_termination_pass_through(tmp_path: Path):
    child = "import sys, time; print('started', flush=True); time.sleep({seconds}); sys.exit(3)"
    script = "import sys, dev; sys.exit(dev.run([sys.executable, '-c', sys.argv[1]]))"

    def start(seconds: int) -> subprocess.Popen:
        command = [sys.executable, "-c", script, child.format(seconds=seconds)]
        return subprocess.Popen(command, cwd=dev.ROOT, stdout=subprocess.PIPE)

    with start(0) as process:
        assert process.wait(timeout=20) == 3
    with start(60) as process:
        assert process.stdout.readline() == b"started\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 256 - signal.SIGTERM  # the child's -15, as an exit status
        assert process.stdout.read() == b""  # nobody holds the other end any more
