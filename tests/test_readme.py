"""What the README says of the package holds."""

import ast
import re
from pathlib import Path


def order_of(repository: Path) -> list[str]:
    """The modules of the README's table, in its order."""
    table = (
        (repository / "README.md").read_text(encoding="utf-8").partition("## Modules")[2].partition("Shape letters")[0]
    )
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_the_table_of_modules_is_complete(repository: Path):
    package = repository / "mixtral_edu"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert sorted(order_of(repository)) == sorted(modules - {"__init__", "__main__", "data"})


def test_modules_import_only_earlier_ones(repository: Path):
    order, package = order_of(repository), repository / "mixtral_edu"
    for place, name in enumerate(order):
        files = [package / f"{name}.py"] if (package / f"{name}.py").exists() else sorted((package / name).glob("*.py"))
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        used = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixtral_edu"):
                used |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        later = used & set(order[place + 1 :])
        assert not later, f"{name} imports {later}, which the README lists after it"


def test_every_link_of_the_readme_leads_somewhere(repository: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", (repository / "README.md").read_text(encoding="utf-8"))
    assert "notebooks/images/quickstart.png" in links
    assert [link for link in links if not (repository / link).is_file()] == []
