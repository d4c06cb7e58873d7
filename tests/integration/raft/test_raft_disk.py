"""The log in real processes: killed in the middle of writing, and on a file system that is full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

QUIET = """
    import asyncio, json, logging, os, sys
    from pathlib import Path
    import structlog
    from proto.errors import ResourceExhaustedError
    from raft.keys import KeyRing
    from raft.single import SingleLog
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    directory = Path(sys.argv[1])
"""

WRITER = """
    async def snapshots(log, states):
        async def chunks(index):
            yield json.dumps(index).encode()
        while True:
            index = log.durable_index
            if index > log.snapshot_index:
                await log.save_snapshot(index, chunks(index))
            await asyncio.sleep(0.005)

    async def caller(log):
        while True:
            index = await log.propose(b"x" * 300)
            # To the pipe at once: it holds what was acknowledged when the kill came.
            os.write(1, f"{index}\\n".encode())

    async def main():
        keys = KeyRing.open(directory)
        log = SingleLog.open(directory, keys, segment_bytes=20_000)
        chunks, entries = log.restore()
        state = [json.loads(chunk) for chunk in chunks]
        known = (state or [0])[-1]
        for entry in entries:
            assert entry.index == known + 1, (entry.index, known)
            assert entry.data == b"x" * 300
            known = entry.index
        os.write(1, f"restored {known}\\n".encode())
        await asyncio.gather(snapshots(log, []), *(caller(log) for _ in range(8)))

    asyncio.run(main())
"""

FILLER = """
    async def chunks(size):
        for _ in range(size // 1000):
            yield bytes(1000)

    async def main():
        keys = KeyRing.create(directory)
        log = SingleLog.open(directory, keys, segment_bytes=100_000)
        kept, refused, number = [], 0, 0
        while refused < 20:
            number += 1
            try:
                index = await log.propose(os.urandom(5000))
                kept.append(index)
            except ResourceExhaustedError as error:
                assert f"cannot write to {directory}: No space left" in str(error), error
                refused += 1
                await asyncio.sleep(0)
        try:
            await log.save_snapshot(1, chunks(2_000_000))
            raise SystemExit("the snapshot found room")
        except ResourceExhaustedError as error:
            assert "No space left" in str(error), error
        # A manager whose disk is full can be restarted.
        await log.close()
        log = SingleLog.open(directory, keys, segment_bytes=100_000)
        count = sum(1 for entry in log.restore()[1] if len(entry.data) == 5000)
        (directory.parent / "ballast").unlink()
        after = await log.propose(b"room again")
        await log.save_snapshot(after, chunks(1000))
        await log.close()
        log = SingleLog.open(directory, keys)
        print(json.dumps([kept, count, after, log.snapshot_index, log.last_index]))
        await log.close()

    asyncio.run(main())
"""


def command(script: str, directory: Path) -> list[str]:
    """Return how to run a script on a directory."""
    program = textwrap.dedent(QUIET) + textwrap.dedent(script)
    return [sys.executable, "-c", program, str(directory)]


def create_ring(directory: Path) -> None:
    """Make a ring for the processes to open."""
    script = "KeyRing.create(directory).close()"
    subprocess.run(command(script, directory), check=True, timeout=20)


def test_kill_in_the_middle_loses_nothing_acknowledged(tmp_path):
    """Eight callers and snapshots under way, killed ten times: every printed index is there."""
    create_ring(tmp_path)
    acknowledged = 0
    for round_number in range(10):
        with subprocess.Popen(
            command(WRITER, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.readline().split()
            assert first[:1] == ["restored"], process.stderr.read()
            assert int(first[1]) >= acknowledged
            # Beyond the acknowledged: at most the eight that were under way.
            assert int(first[1]) <= acknowledged + 8
            time.sleep(0.05 + 0.013 * round_number)
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().splitlines()
            assert process.stderr.read() == ""
        acknowledged = max([int(first[1]), *(int(line) for line in lines)])
    assert acknowledged > 100


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_real_full_file_system(tmp_path):
    """A tmpfs of 1 MiB in a mount namespace of its own: said, nothing lost, goes on with room."""
    shell = (
        f"mount -t tmpfs -o size=1m none {tmp_path} && "
        f"dd if=/dev/zero of={tmp_path}/ballast bs=1k count=300 status=none && "
        'exec "$0" "$@"'
    )
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c", shell]
    output = subprocess.run(
        [*prefix, *command(FILLER, tmp_path / "node")],
        check=True,
        stdout=subprocess.PIPE,
        timeout=60,
    ).stdout
    kept, count, after, snapshot_index, last_index = json.loads(output)
    assert kept == list(range(1, len(kept) + 1))
    assert 100 < len(kept) < 200
    assert (count, after) == (len(kept), len(kept) + 1)
    assert snapshot_index == last_index == after
