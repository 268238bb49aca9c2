"""Run a submission part by part: a script's statements, or a notebook's code cells as IPython runs them.

An error ends only the part that raises it. What other parts define stays, as in a notebook.
"""

import ast
import linecache
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

PYTHON_MAGICS = {"time", "capture", "prun", "run"}  # these run Python that defines names in the notebook


class Script:
    """Run the statements of a script as the module `submission`, which is not `__main__`.

    Attributes:
        parts: for each statement, its name in messages, which is the file's.
        names: the top-level names.
        left_out: what the latest `run` did not run; always empty for a script.
    """

    def __init__(self, path: Path, source: str):
        module = types.ModuleType("submission")
        module.__file__ = str(path.resolve())
        sys.modules[module.__name__] = module
        self.names = vars(module)
        self.left_out: list[str] = []
        linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))  # for messages
        try:
            body = ast.parse(source, str(path)).body
        except Exception:  # raised again, and reported, when it runs
            self._statements = [source]
        else:
            futures = [each for each in body if isinstance(each, ast.ImportFrom) and each.module == "__future__"]
            self._statements = [ast.Module([*futures, statement], []) for statement in body]
        self.parts = [str(path)] * len(self._statements)

    def run(self, index: int) -> None:
        """Run one statement, and raise whatever it raises."""
        exec(compile(self._statements[index], self.parts[index], "exec", dont_inherit=True), self.names)


class Notebook:
    """Run code cells in an IPython shell, as a kernel does, except for shell commands and most magic commands.

    `%%bash` and `!pip` do not run. `%%time` and `%%capture` run the Python that they time or capture.

    Attributes:
        parts: the name of each cell in messages.
        names: the top-level names.
        left_out: what the latest `run` did not run.
    """

    def __init__(self, cells: dict[str, str]):
        self.parts = list(cells)
        self._sources = list(cells.values())
        self._file_names: dict[str, str] = {}  # by source, for the cell that runs: two may have the same
        self._shell = _shell(self._file_names)
        self.names = self._shell.user_ns
        self.left_out: list[str] = self._shell.left_out

    def run(self, index: int) -> None:
        """Run one cell, and raise the first error that a notebook would show below it."""
        self.left_out.clear()
        self._shell.errors.clear()
        self._file_names[self._sources[index]] = self.parts[index]
        self._shell.run_cell(self._sources[index], store_history=True)
        if self._shell.errors:
            raise self._shell.errors[0]


def _shell(file_names: dict[str, str]) -> "InteractiveShell":
    """An IPython shell that runs Python and nothing else; messages call code by what is in `file_names`."""
    from IPython.core.compilerop import CachingCompiler  # a script can be graded without IPython
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.text import SList
    from traitlets.config import Config

    class Compiler(CachingCompiler):
        def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
            return file_names.get(raw_code) or super().get_code_name(raw_code, transformed_code, number)

    class Shell(InteractiveShell):
        compiler_class = Compiler
        errors: list[BaseException] = []
        left_out: list[str] = []

        def run_line_magic(self, magic_name, line, _stack_depth=1):
            if magic_name in PYTHON_MAGICS:
                return super().run_line_magic(magic_name, line, _stack_depth + 1)
            self.left_out.append(f"%{magic_name} {line}".strip())

        def run_cell_magic(self, magic_name, line, cell):
            if magic_name in PYTHON_MAGICS:
                return super().run_cell_magic(magic_name, line, cell)
            self.left_out.append(f"%%{magic_name} {line}".strip())

        def system(self, cmd):
            self.left_out.append(f"!{cmd}".strip())

        system_raw = system_piped = system

        def getoutput(self, cmd, split=True, depth=0):
            self.system(cmd)
            return SList([]) if split else ""

        def showtraceback(self, exc_tuple=None, *args, **kwargs):  # what a notebook would show as an error
            error = (exc_tuple or sys.exc_info())[1]
            if error is not None:
                self.errors.append(error)

        showsyntaxerror = showtraceback

        def ask_exit(self):  # exit() and quit() would end a kernel
            raise SystemExit("the cell ends the notebook")

        def init_virtualenv(self):  # the submission runs in the environment that grades it
            pass

    return Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
