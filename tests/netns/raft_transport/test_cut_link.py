"""A link that is cut without a word is noticed, and found again when it heals."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

pytestmark = pytest.mark.netns


def test_a_cut_link_is_noticed_and_healed():
    """In a namespace of its own whose loopback drops everything for a while."""
    needs.root()
    done = subprocess.run(
        ["unshare", "--net", sys.executable, Path(__file__).with_name("cut.py")],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    noticed, healed = map(float, done.stdout.split()[-2:])
    assert noticed < 1.5
    assert healed < 1.5
