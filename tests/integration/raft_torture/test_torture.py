"""The torture, short: ours keeps its word, PySyncObj does not, and the checker tells them apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

FOLDER = Path(__file__).parents[2] / "torture" / "raft"

pytestmark = pytest.mark.integration


def run(program, *arguments, seconds):
    """Run a program of the torture; return its exit code and its line."""
    command = [sys.executable, FOLDER / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_pysyncobj_loses_acknowledged_writes():
    """One crash of the leader is enough, and the checker that ours passes says so."""
    code, line = run("control.py", seconds=60)
    assert code == 1
    assert line["acked"] > line["lost"] > 0


def test_ours_loses_nothing():
    """Twenty seconds of kills, pauses, cut links, full disks and changes of the membership."""
    needs.root()
    arguments = ("--system", "ours", "--minutes", "0.33", "--seed", "5", "--members", "3")
    code, line = run("run.py", *arguments, seconds=240)
    assert code == 0, line
    assert line["lost"] == 0, line
    assert line["crash_examples"] == []
    assert line["acked"] > 500, line
    assert sum(line["faults"].values()) >= 4, line
    assert line["plain_text_files"] == 0
    assert line["stored_files"] >= 9
