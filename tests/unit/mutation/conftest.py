"""The mutation tester's module, which is a program's and no package's."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "mutation"


@pytest.fixture(scope="session")
def mutate():
    """Give the module that makes mutants."""
    spec = importlib.util.spec_from_file_location("mutate", FOLDER / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
