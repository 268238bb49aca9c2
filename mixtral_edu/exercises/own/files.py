"""Kept functions as files: one readable Python file per function, which runs without the notebook it comes from."""

import builtins
import contextlib
import inspect
import os
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = "my_mixtral"  # in the folder that a notebook runs in
VARIABLE = "MIXTRAL_EDU_OWN"  # an environment variable: another folder, for tests
IMPORTED = {"torch", "numpy", *sys.stdlib_module_names}  # packages that a kept function may use


class NotKept(Exception):
    """A function that cannot stand in a file of its own; the message says why and what to do."""


def folder_of(folder: str | Path | None) -> Path:
    """Return the folder of kept functions; None for the usual one."""
    return Path(folder or os.environ.get(VARIABLE) or FOLDER)


def text_of(function: Callable, name: str) -> str:
    """Return the text of a file that defines `function`, with the imports that it needs.

    Raises:
        NotKept: its source is not there, or uses names that only the notebook knows.
    """
    try:
        source = textwrap.dedent(inspect.getsource(function))
        needed = _names_needed(source)
    except (OSError, TypeError, SyntaxError):
        raise NotKept(f"its source cannot be found: write it as def {name}(…) in a cell or a file.") from None
    known = inspect.unwrap(function).__globals__
    imports = {needs: _import_of(needs, known[needs]) if needs in known else None for needs in needed}
    if missing := [needs for needs, line in imports.items() if line is None]:
        raise NotKept(f"it uses {' and '.join(missing)}, which only this notebook knows.\n"
                      f"Define what it needs inside {name}, or import it there, then keep it again.")  # fmt: skip
    lines = sorted(imports.values(), key=lambda line: (line.startswith("from"), line))
    head = f'"""My {name}, written by `keep`, which replaces this file; `forget("{name}")` removes it."""\n\n'
    return head + "\n".join([*lines, *["", ""] * bool(lines), source])


def _names_needed(source: str) -> list[str]:
    """The names that a function's source takes from outside, builtins left out."""

    def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
        yield table
        for child in table.get_children():
            yield from tables(child)

    top = symtable.symtable(source, FOLDER, "exec")
    defined = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    used = {
        symbol.get_name()
        for table in tables(top)
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (table is top or symbol.is_global())
    }
    return sorted(name for name in used - defined if not hasattr(builtins, name))


def _import_of(name: str, value: object) -> str | None:
    """The statement that imports `value` as `name`, or None if it is nothing to be imported from a known package."""
    if isinstance(value, ModuleType):
        package, _, last = value.__name__.rpartition(".")
        if value.__name__.partition(".")[0] not in IMPORTED:
            return None
        if package and last == name:
            return f"from {package} import {name}"
        return f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else "")
    module, original = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or module.partition(".")[0] not in IMPORTED:
        return None
    if getattr(sys.modules.get(module), str(original), None) is not value:
        return None
    return f"from {module} import {original}" + (f" as {name}" if original != name else "")


def load(path: Path, name: str) -> Callable:
    """Run a kept file and return its function.

    Raises:
        ValueError: it cannot be run, or does not define the function; the message names it.
    """
    module = ModuleType(f"{FOLDER}.{name}")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), vars(module))
        return vars(module)[name]
    except Exception as error:
        raise ValueError(f"{path} cannot be used ({type(error).__name__}: {error}): keep {name} again, or "
                         f'forget("{name}")') from error  # fmt: skip


@contextmanager
def replacing(path: Path, text: str) -> Iterator[Path]:
    """Write `text` to a file beside `path`; after the `with` block it takes the place of `path`, all at once.

    If the block raises, or is interrupted, nothing is left behind, and `path` stays as it was.
    """
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):  # it holds the file
                path.parent.rmdir()
