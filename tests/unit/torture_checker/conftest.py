"""The torture's pure modules, which are a program's and no package's."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "torture" / "raft"


@pytest.fixture(scope="session")
def torture():
    """Give the way to a module of the torture by its name."""
    before = dict(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in list(sys.modules.items()):
            if (
                name not in before
                and Path(getattr(module, "__file__", None) or "/").parent == FOLDER
            ):
                del sys.modules[name]


@pytest.fixture(scope="session")
def checker(torture):
    """Give the checker."""
    return torture("checker")


@pytest.fixture(scope="session")
def digest(torture):
    """Give the digest of a whole list."""
    state = torture("state")

    def of(values):
        found = state.EMPTY_DIGEST
        for value in values:
            found = state.next_digest(found, value)
        return found

    return of
