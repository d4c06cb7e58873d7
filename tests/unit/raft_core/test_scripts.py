"""The golden scripts of `tests/golden/raft`; `SWARM_REWRITE=1` writes them anew."""

import os
from pathlib import Path

import pytest

from raft.sim.script import Script

FOLDER = Path(__file__).parents[2] / "golden" / "raft"
SEPARATOR = "----"


def blocks(text):
    """Split a file into (comment and command lines, traced lines)."""
    for block in text.strip().split("\n\n"):
        head, _, trace = block.partition(f"{SEPARATOR}")
        yield head.splitlines(), trace.strip().splitlines()


def rendered(path):
    """Run a script; return the file as it should be."""
    script = Script()
    out = []
    for head, _ in blocks(path.read_text()):
        traced = []
        for line in head:
            if line and not line.startswith("#"):
                lines = script.run(line)
                traced += [f"> {line}", *lines] if len(head) > 1 else lines
        out.append("\n".join([*head, SEPARATOR, *traced]))
    return "\n\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_script(path):
    """A script does exactly what its file says."""
    actual = rendered(path)
    if os.environ.get("SWARM_REWRITE"):
        path.write_text(actual)
    assert path.read_text() == actual


def test_there_are_scripts():
    """A pattern that matches nothing would make the test above empty."""
    assert len(list(FOLDER.glob("*.txt"))) >= 10


def test_every_script_states_expectations():
    """Each file has lines that a careless rewrite would not hide, or prints states."""
    for path in FOLDER.glob("*.txt"):
        text = path.read_text()
        assert "\nexpect " in text or "\nstatus" in text, path
