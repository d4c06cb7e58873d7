"""Runs the tests of `inside/` once for each runtime and cgroup layout that this machine can have.

Real containers need mounts, so those tests run in a pytest of their own, in new mount, network
and PID namespaces: their mounts vanish with it, all their processes are killed with its first
one, and what they change of the cgroup mounts (crun 1.8 refuses versions 1 and 2 together) is
seen by nobody else. What stays shared are the cgroups themselves, which the tests remove.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

INSIDE = Path(__file__).parent / "inside"
PROJECT = Path(__file__).parents[3]
SECONDS_MAX = 240

# What to do with the machine's cgroup mounts, in the new mount namespace only.
LAYOUTS = {
    "as-it-is": ":",
    "version-1": "umount /sys/fs/cgroup/unified",
    "version-2": "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup",
}


def is_hybrid() -> bool:
    """Whether this machine has both versions mounted."""
    return Path("/sys/fs/cgroup/unified").is_dir()


def reason_to_skip(runtime: str, layout: str) -> str:
    """Why this combination cannot be tried here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    for program in (runtime, "conmon", "unshare", "busybox"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if layout != "as-it-is" and not is_hybrid():
        return "the machine has one layout only, which is tried as it is"
    if layout == "as-it-is" and is_hybrid() and runtime == "crun":
        return "crun refuses a hybrid layout (the probe's tests see to that)"
    if layout == "version-2" and runtime == "crun":
        return "crun loads a device filter, for which it raises a limit that a sandbox may forbid"
    return ""


@pytest.mark.parametrize(
    ("runtime", "layout"),
    [
        ("crun", "as-it-is"),
        ("crun", "version-1"),
        ("runc", "as-it-is"),
        ("runc", "version-2"),
    ],
)
def test_containers(runtime: str, layout: str, tmp_path: Path):
    """Every promise of the runtime holds, with this program and on this layout of cgroups."""
    reason = reason_to_skip(runtime, layout)
    if reason:
        pytest.skip(reason)
    # Version 2 is tried for what differs: limits, paths and mounts.
    names = ["test_content.py", "test_life.py"] if layout == "version-2" else [""]
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
        "--basetemp", str(tmp_path / "inside"), *(str(INSIDE / name) for name in names),
    ]  # fmt: skip
    script = f'{LAYOUTS[layout]} && exec "$@"'
    finished = subprocess.run(
        [
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            *command,
        ],
        cwd=PROJECT,
        env=os.environ | {"SWARM_TEST_RUNTIME": runtime},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS_MAX,
        check=False,
    )
    output = finished.stdout.decode(errors="replace")
    assert finished.returncode == 0, output
    assert " passed" in output, output
