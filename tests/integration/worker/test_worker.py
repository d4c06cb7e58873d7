"""Runs the tests of `inside/`: the whole worker with real containers, network and images.

They run in a pytest of their own, in new mount, network and PID namespaces, so that the machine is
afterwards as it was; only the cgroups are shared, and the tests remove theirs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

pytestmark = pytest.mark.integration

INSIDE = Path(__file__).parent / "inside"
PROJECT = Path(__file__).parents[3]
PROGRAMS = ("crun", "conmon", "unshare", "busybox", "ip")
SECONDS_MAX = 240
# crun 1.8 refuses both versions of cgroups at once; this is seen in the new namespace only.
SCRIPT = '(umount /sys/fs/cgroup/unified 2>/dev/null || true) && ip link set lo up && exec "$@"'


def test_worker(tmp_path: Path):
    """Tasks become containers with network, volumes and ports, and nothing is left of them."""
    needs.root()
    for program in PROGRAMS:
        needs.program(program)
    finished = subprocess.run(
        [
            "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
            "--propagation", "private", "sh", "-c", SCRIPT, "sh",
            sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider",
            "--basetemp", str(tmp_path / "in"), str(INSIDE),
        ],
        cwd=PROJECT,
        env=os.environ | {"SWARM_TEST_WORKER": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS_MAX,
        check=False,
    )  # fmt: skip
    output = finished.stdout.decode(errors="replace")
    assert finished.returncode == 0, output
    assert " passed" in output, output
