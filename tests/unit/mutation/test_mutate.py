"""The mutants are what a person could write by error, each under a name of its own."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SOURCE = '''
class Counter:
    """Counts."""

    limit: int = 3

    def add(self, number: int) -> bool:
        """Add, up to the limit."""
        assert number >= 0
        if self.total + number <= self.limit and self.is_open:
            self.total += number
            return True
        if not self.is_open:
            raise ValueError("closed after 7")
        return False
'''

_SUM = "self.total + number <= self.limit and self.is_open"
KEYS = [
    "m Counter: limit: int = 3 -> limit: int = 4",
    "m Counter: limit: int = 3 -> limit: int = 2",
    f"m Counter.add: {_SUM} -> True",
    f"m Counter.add: {_SUM} -> False",
    f"m Counter.add: {_SUM} -> self.total + number <= self.limit or self.is_open",
    f"m Counter.add: {_SUM} -> self.total + number < self.limit and self.is_open",
    f"m Counter.add: {_SUM} -> self.total - number <= self.limit and self.is_open",
    "m Counter.add: self.total += number -> pass",
    "m Counter.add: self.total += number -> self.total -= number",
    "m Counter.add: return True -> pass",
    "m Counter.add: return True -> return False",
    "m Counter.add: not self.is_open -> True",
    "m Counter.add: not self.is_open -> False",
    "m Counter.add: not self.is_open -> self.is_open",
    "m Counter.add: raise ValueError('closed after 7') -> pass",
    "m Counter.add: return False -> pass",
    "m Counter.add: return False -> return True",
]


def test_every_small_mistake(mutate):
    """Comparisons, numbers, conditions and statements; neither assertions nor text."""
    assert [mutant.key for mutant in mutate.mutants_of(SOURCE, "m")] == KEYS


def test_one_mistake_each(mutate):
    """The change that the key tells is in the source, and nothing else is changed."""
    original = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutate.mutants_of(SOURCE, "m"):
        lines = mutate.source_of(SOURCE, mutant.number).splitlines()
        assert len(lines) == len(original)
        differing = [pair for pair in zip(original, lines, strict=True) if pair[0] != pair[1]]
        assert len(differing) == 1, mutant.key
        assert mutant.key.split(": ", 1)[1].rsplit(" -> ", 1)[1] in differing[0][1]


def test_the_same_mistake_twice_has_two_names(mutate):
    """A reason for one says nothing about the other."""
    source = "def f(a):\n    g(a)\n    g(a)\n"
    keys = [mutant.key for mutant in mutate.mutants_of(source, "m")]
    assert keys == ["m f: g(a) -> pass", "m f: g(a) -> pass #2"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "raft" / "core").glob("*.py")), ids=lambda p: p.stem
)
def test_mutants_of_the_core_compile(mutate, path):
    """And no two have one name."""
    source = path.read_text()
    mutants = mutate.mutants_of(source, path.stem)
    for mutant in mutants[:: 1 + len(mutants) // 10]:
        compile(mutate.source_of(source, mutant.number), "mutant", "exec")
    assert len({mutant.key for mutant in mutants}) == len(mutants)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("quorum majority: return voters // 2 + 1 -> pass", "1 mutants, 1 found"),
        ("no such", "0 mutants"),
    ],
)
def test_the_program_tells_what_was_found(tmp_path, only, expected):
    """A mutant of the quorum fails the unit tests, in a process of its own."""
    program = [sys.executable, "tests/mutation/run.py", "--jobs", "1", "--seeds", "1"]
    arguments = ["--only", only, "--results", str(tmp_path / "results")]
    done = subprocess.run(
        [*program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
