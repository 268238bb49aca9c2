"""The examples in docstrings say what really comes out."""

import doctest
import importlib
import pkgutil

import pytest

import mixtral_edu

MODULES = ["mixtral_edu", *(module.name for module in pkgutil.walk_packages(mixtral_edu.__path__, "mixtral_edu."))]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_of(name: str):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0, "the report is in the captured output"
