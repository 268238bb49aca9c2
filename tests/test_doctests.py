"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import mixtral_edu

FOUND = (module.name for module in pkgutil.walk_packages(mixtral_edu.__path__, "mixtral_edu."))
MODULES = ["mixtral_edu", *(name for name in FOUND if not name.endswith("__main__"))]
NAMES = (
    "config rope masks cache heads fast.products fast.flash checkpoints.layouts quantization.rounding "
    "quantization.model analysis.routing exercises.comparison viz.cache viz.masks"
)
WITH_EXAMPLES = {f"mixtral_edu.{name}" for name in NAMES.split()}


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted or name not in WITH_EXAMPLES, "its examples have gone, or are not found"


def test_the_modules_with_examples_are_found():
    assert set(MODULES) >= WITH_EXAMPLES
