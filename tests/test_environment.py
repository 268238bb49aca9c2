"""The two ways to install, pip and conda, name the same packages."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from rattler import MatchSpec

import dev

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}


def test_conda_and_pip_name_the_same_packages_and_ranges(repository: Path):
    project = read_project(repository)
    wanted = {"python": project["requires-python"], "pip": None}
    for requirement in [*project["dependencies"], *extra(project, "notebooks"), *extra(project, "tests")]:
        parsed = Requirement(requirement)
        wanted[CONDA_NAMES.get(parsed.name, parsed.name)] = str(parsed.specifier)

    environment = read_environment(repository)
    specs = [MatchSpec(line) for line in environment["dependencies"] if isinstance(line, str)]
    assert {spec.name.normalized: spec.version for spec in specs} == wanted


def test_conda_installs_the_package_itself_with_pip_and_nothing_else(repository: Path):
    environment = read_environment(repository)
    assert environment["channels"] == ["conda-forge"]
    assert [entry for entry in environment["dependencies"] if not isinstance(entry, str)] == [{"pip": ["-e ."]}]


def test_the_extra_that_dev_installs_is_all_of_the_others_but_cuda(repository: Path):
    project = read_project(repository)
    (combined,) = [Requirement(line) for line in extra(project, "dev")]
    assert combined.name == project["name"]
    assert combined.extras == set(project["optional-dependencies"]) - {"dev", "cuda"}


def test_the_torch_that_dev_installs_is_in_the_range_of_the_package(repository: Path):
    (torch,) = [line for line in map(Requirement, read_project(repository)["dependencies"]) if line.name == "torch"]
    pinned = Requirement(dev.TORCH)
    (version,) = [part.version for part in pinned.specifier if part.operator == "=="]
    assert pinned.name == "torch"
    assert torch.specifier.contains(version)


def read_project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_environment(repository: Path) -> dict:
    return yaml.safe_load((repository / "environment.yml").read_text(encoding="utf-8"))


def extra(project: dict, name: str) -> list[str]:
    return project["optional-dependencies"][name]
