"""The two storeys of the house: what the textbook may import, how long it is, and who may use whom above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mixtral_edu

PUBLIC = {*mixtral_edu.__all__, "mixtral_edu"}
TEXTBOOK = "config norm rope masks attention cache moe model heads sampling generation".split()
# Each room may import the textbook, the rooms before it, and its own modules. `data` is the bundled files' places.
ROOMS = [["data", "fast"], ["quantization"], ["checkpoints"], ["text"], ["api"],
         ["training", "analysis", "bench", "viz", "exercises"]]  # fmt: skip


def imports_of(file: Path) -> set[str]:
    """The modules that a file imports anywhere, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:  # a relative one stays in its folder
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1, f"{file} imports from a folder above by a relative name"
    return {"mixtral_edu.api" if name.removeprefix("mixtral_edu.") in PUBLIC else name for name in found}


def test_the_textbook_is_short_and_imports_torch_the_standard_library_and_itself(repository: Path):
    package = repository / "mixtral_edu"
    modules = {file.stem for file in package.glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(TEXTBOOK)
    lengths = {name: len((package / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in TEXTBOOK}
    assert max(lengths.values()) <= 180 and sum(lengths.values()) <= 1300, lengths
    for name in TEXTBOOK:
        for module in imports_of(package / f"{name}.py"):
            top, *rest = *module.split("."), ""
            allowed = top == "torch" or top in sys.stdlib_module_names or top == "mixtral_edu" and rest[0] in TEXTBOOK
            assert allowed, f"{name} imports {module}"


def test_rooms_use_the_textbook_and_the_rooms_below_them(repository: Path):
    package = repository / "mixtral_edu"
    floors = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
    assert {folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()} == set(floors)
    for room, floor in floors.items():
        for file in (package / room).rglob("*.py"):
            for module in imports_of(file):
                top, _, rest = module.partition(".")
                used = rest.partition(".")[0]
                if top == "mixtral_edu" and used in floors and used != room:
                    assert floors[used] <= floor, f"{file.relative_to(package)} imports {module}"
                    assert floor == len(ROOMS) - 1 or floors[used] < floor, f"{file.name}: {module}"


@pytest.mark.parametrize("name", TEXTBOOK)
def test_a_part_of_the_textbook_is_imported_alone(name):
    code = f"import sys, torch; before = set(sys.modules); import mixtral_edu.{name}; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = {module for module in result.stdout.split() if module.partition(".")[0] not in sys.stdlib_module_names}
    allowed = {"mixtral_edu", *(f"mixtral_edu.{other}" for other in TEXTBOOK)}
    assert result.returncode == 0 and f"mixtral_edu.{name}" in loaded, result.stderr
    assert {module for module in loaded if not module.startswith("torch")} <= allowed


def test_the_textbook_alone_makes_a_model_that_learns_and_generates():
    """A whole model from its parts: nothing else of the package is needed."""
    code = """
import sys, torch
from mixtral_edu.cache import RollingCache
from mixtral_edu.config import Config
from mixtral_edu.generation import new_tokens
from mixtral_edu.heads import CausalLM
from mixtral_edu.sampling import Sampler

model, ids = CausalLM(Config.tiny()), torch.arange(3, 20)[None]
model(ids, labels=ids, output_router_logits=True).loss.backward()
cache = RollingCache(model.config, 1)
tokens = torch.cat(list(new_tokens(model, ids, None, cache, 200, Sampler())))
again = ids
for token in tokens[:10]:
    assert model(again, logits_to_keep=1).logits.argmax() == token
    again = torch.cat((again, token.view(1, 1)), 1)
assert cache.seen == 17 + 199 and len(tokens) == 200
print(*(name for name in sys.modules if name.startswith("mixtral_edu.")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {name.removeprefix("mixtral_edu.") for name in result.stdout.split()} == set(TEXTBOOK)
