"""Labs by the command that makes them, each with a name of this process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manager.lab.lab import Lab
from tests import needs

SWARM = str(Path(sys.executable).parent / "swarm")
WITHIN_SECONDS = 30.0


def pytest_collection_modifyitems(items):
    """Everything here makes namespaces and runs daemons."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


def eventually(condition, *, within=WITHIN_SECONDS, what=""):
    """Wait until a condition holds and return what it returned; fail at the deadline."""
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.05)


class Command:
    """`swarm lab …` for one lab."""

    def __init__(self, name):
        self.name = name

    def run(self, verb, *arguments, check=True, **more):
        """Run `swarm lab VERB --name NAME …`."""
        done = subprocess.run(
            [SWARM, "lab", verb, "--name", self.name, *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            **more,
        )
        if check:
            assert done.returncode == 0, f"lab {verb} {arguments}: {done.stderr}{done.stdout}"
        return done

    def __call__(self, verb, *arguments, **more):
        """Run it and return what it printed."""
        return self.run(verb, *arguments, **more).stdout

    def refused(self, verb, *arguments):
        """Run what must fail, and return the sentence."""
        done = self.run(verb, *arguments, check=False)
        assert done.returncode not in {0, -9}, done
        assert "Traceback" not in done.stderr
        return done.stderr

    @property
    def lab(self):
        """The lab as it is now."""
        return Lab(self.name)

    def rows(self):
        """Return what `ls` shows: host names to the cells that follow."""
        lines = self("ls").splitlines()[1:]
        columns = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
        return {cells[1]: cells[2:] for cells in columns}


@pytest.fixture(scope="session", autouse=True)
def _root():
    needs.root()


def _maker():
    made = []

    def make(name):
        command = Command(f"{name}{os.getpid()}")
        made.append(command)
        return command

    yield make
    for command in made:
        command.run("down", check=False)


@pytest.fixture
def make_command():
    """Make commands for labs that end with the test."""
    yield from _maker()


@pytest.fixture(scope="module")
def make_module_command():
    """Make commands for labs that end with the module."""
    yield from _maker()


@pytest.fixture(name="eventually")
def _eventually():
    return eventually
