"""A built wheel holds all that the package needs, and works where the repository is not."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
_ON_DEMAND = ("mixtral_edu.viz", "mixtral_edu.training", "mixtral_edu.bench")
NO_CACHES = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built without network from a copy, so that the repository gets no `build` folder and lends none."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(repository / "mixtral_edu", source / "mixtral_edu", ignore=NO_CACHES)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target, source)
    (path,) = target.glob("mixtral_edu-*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel."""
    target = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def pip(*arguments: str | Path) -> None:
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def run_installed(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in an empty folder, with the installed wheel before all else."""
    elsewhere = site / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_wheel_holds_every_file_of_the_package_and_no_others(wheel: Path, repository: Path):
    folder = repository / "mixtral_edu"
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {path.relative_to(repository).as_posix(): path.stat().st_size for path in files}
    with zipfile.ZipFile(wheel) as archive:
        inside = {entry.filename: entry.file_size for entry in archive.infolist()}
    assert {name: size for name, size in inside.items() if ".dist-info/" not in name} == wanted
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_the_installed_package_loads_its_models_and_texts_without_the_repository(site: Path):
    script = """
import json, mixtral_edu
from mixtral_edu.data import BUNDLED, probe_text
texts = {}
for name in BUNDLED:
    model = mixtral_edu.MixtralForCausalLM.from_pretrained(name)
    tokenizer = mixtral_edu.MixtralTokenizer.from_pretrained(name)
    inputs = tokenizer(["Once upon a time"], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, eos_token_id=None)
    texts[name] = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
print(json.dumps([mixtral_edu.__file__, mixtral_edu.__version__, texts, len(probe_text("python"))]))
"""
    file, version, texts, probe_length = json.loads(run_installed(site, "-c", script).stdout)
    assert Path(file).is_relative_to(site)
    (metadata,) = site.glob("mixtral_edu-*.dist-info/METADATA")
    assert f"\nVersion: {version}\n" in metadata.read_text(encoding="utf-8")
    assert all(text.startswith("Once upon a time") and len(text) > len("Once upon a time") for text in texts.values())
    assert probe_length > 10_000


def test_importing_the_package_takes_little_beyond_torch(site: Path):
    script = """
import json, sys, torch
before = set(sys.modules)
import mixtral_edu
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    modules = set(json.loads(run_installed(site, "-c", script).stdout))
    packages = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
    assert "mixtral_edu" in packages
    assert packages <= {"mixtral_edu", "numpy", "psutil", "safetensors", "sentencepiece", "tqdm"}
    assert not modules & {"torch._dynamo", "torch._inductor", "torch.onnx"}  # seconds each
    assert not {module for module in modules if module.startswith(_ON_DEMAND)}


def test_the_installed_command_line_answers(site: Path):
    assert "train" in run_installed(site, "-m", "mixtral_edu", "--help").stdout
