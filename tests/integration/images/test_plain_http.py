"""A registry without TLS on another address than loopback, in namespaces of the test's own.

The machine's registries.conf decides about it, which the test replaces for itself only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).parents[3]
ADDRESS = "10.99.0.1"
SCRIPT = f"""
set -e
ip link set lo up
ip address add {ADDRESS}/32 dev lo
mkdir -p "$1/containers"
cp -a /etc/containers/. "$1/containers"
mount --bind "$1/containers" /etc/containers
exec "$2" -m pytest -q -x -p no:cacheprovider --basetemp "$1/inside" "$3"
"""


def test_plain_http_off_loopback(tmp_path: Path) -> None:
    """See `inside/test_plain_http_inside.py`."""
    needs.root()
    for program in ("unshare", "ip", "skopeo", "docker-registry"):
        needs.program(program)
    inside = Path(__file__).parent / "inside" / "test_plain_http_inside.py"
    done = subprocess.run(
        [
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("--propagation", "private", "sh", "-c", SCRIPT, "sh"),
            *(str(tmp_path), sys.executable, str(inside)),
        ],
        cwd=PROJECT,
        env=os.environ | {"SWARM_TEST_REGISTRY": ADDRESS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout
