"""What tests need of the machine.

Programs come with `make setup`: one that is not there is a failure, for a test that is skipped
would prove nothing and look well. Only root cannot be had by everybody; without it the rest of the
tests is still worth running.
"""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """Return the path of a program; the test fails if it is not on PATH."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not on PATH: `make test` installs and finds it", pytrace=False)
    return path


def root() -> None:
    """Skip a test that makes namespaces, mounts or owners, where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may do this")  # the kernel's rule, which no set-up changes
