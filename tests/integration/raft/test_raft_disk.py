"""A lone member in real processes: killed while it writes, and on a file system that is full."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests import needs

pytestmark = pytest.mark.integration

COMMON = """
    import asyncio, json, logging, os, random, sys
    from pathlib import Path
    import structlog
    from proto.clock import SystemClock
    from proto.errors import ResourceExhaustedError
    from raft import shell
    from raft.keys import KeyRing
    from raft.listener import Deaf
    from raft.node import RaftNode, Settings
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    shell.RECOVERY_SECONDS_FIRST = shell.RECOVERY_SECONDS_MAX = 0.005
    directory = Path(sys.argv[1])
    options = {
        "node_id": "n",
        "address": "n:1",
        "clock": SystemClock(),
        "rng": random.SystemRandom(),
        "settings": Settings(entries_kept=0),
    }
"""

CREATE = """
    async def main():
        keys = KeyRing.create(directory)
        await (await RaftNode.create(directory, keys, **options)).close()
        keys.close()

    asyncio.run(main())
"""

WRITER = """
    known, line = [], []

    def settle():
        while line and line[0].done():
            known.append(line.pop(0).result())

    async def snapshots(node):
        async def chunks(indexes):
            yield json.dumps(indexes).encode()
        while True:
            settle()
            index = node.applied_index
            if index > node.snapshot_index:
                await node.save_snapshot(index, chunks(list(known)))
            await asyncio.sleep(0.005)

    async def caller(node):
        while True:
            line.append(node.propose(b"x" * 300))
            index = await line[-1]
            settle()
            # To the pipe at once: it holds what was acknowledged when the kill came.
            os.write(1, f"{index}\\n".encode())

    async def main():
        keys = KeyRing.open(directory)
        node = await RaftNode.open(directory, keys, segment_bytes=20_000, **options)
        chunks, entries = node.restore()
        for chunk in chunks:
            known.extend(json.loads(chunk))
        for expected, entry in enumerate(entries, node.snapshot_index + 1):
            assert entry.index == expected, (entry.index, expected)
            # Empty ones are the log's own: one for each start.
            if entry.data:
                assert entry.data == b"x" * 300
                known.append(entry.index)
        assert known == sorted(set(known)), known
        print("restored", json.dumps(known, separators=(",", ":")), flush=True)
        node.attach(Deaf())
        await asyncio.gather(snapshots(node), *(caller(node) for _ in range(8)))

    asyncio.run(main())
"""

FILLER = """
    class Listener(Deaf):
        def __init__(self):
            self.leads = asyncio.Event()

        def lead(self, term):
            self.leads.set()

        def follow(self):
            self.leads.clear()

    async def chunks(size):
        for _ in range(size // 1000):
            yield bytes(1000)

    async def main():
        keys = KeyRing.create(directory)
        node = await RaftNode.create(directory, keys, segment_bytes=100_000, **options)
        list(node.restore()[1])
        node.attach(Listener())
        kept, refused, faults = [], 0, 0
        while refused < 20:
            try:
                future = node.propose(os.urandom(5000))
            except ResourceExhaustedError as error:
                assert f"cannot write to {directory}: No space left" in str(error), error
                refused += 1
                await asyncio.sleep(0.01)
                continue
            try:
                kept.append(await future)
            except ResourceExhaustedError as error:
                assert f"cannot write to {directory}: No space left" in str(error), error
                faults += 1
        try:
            await node.save_snapshot(kept[0], chunks(2_000_000))
            raise SystemExit("the snapshot found room")
        except ResourceExhaustedError as error:
            assert "No space left" in str(error), error
        # A manager whose disk is full can be restarted.
        await node.close()
        node = await RaftNode.open(directory, keys, segment_bytes=100_000, **options)
        found = [entry.index for entry in node.restore()[1] if len(entry.data) == 5000]
        listener = Listener()
        node.attach(listener)
        (directory.parent / "ballast").unlink()
        await asyncio.wait_for(listener.leads.wait(), 10)
        after = await node.propose(b"room again")
        await node.save_snapshot(after, chunks(1000))
        await node.close()
        node = await RaftNode.open(directory, keys, **options)
        state, entries = node.restore()
        size, rest = sum(map(len, state)), [entry.index for entry in entries if entry.data]
        print(json.dumps([kept, faults, found, after, node.snapshot_index, size, rest]))
        await node.close()

    asyncio.run(main())
"""


def command(script: str, directory: Path) -> list[str]:
    """Return how to run a script on a directory."""
    program = textwrap.dedent(COMMON) + textwrap.dedent(script)
    return [sys.executable, "-c", program, str(directory)]


def test_kill_in_the_middle_loses_nothing_acknowledged(tmp_path):
    """Eight callers and snapshots under way, killed ten times: every printed index is there."""
    subprocess.run(command(CREATE, tmp_path), check=True, timeout=20)
    acknowledged: set[int] = set()
    for round_number in range(10):
        with subprocess.Popen(
            command(WRITER, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.readline().split()
            assert first[:1] == ["restored"], process.stderr.read()
            restored = set(json.loads(first[1]))
            assert acknowledged <= restored
            # Beyond the acknowledged: at most the eight that were under way.
            assert len(restored - acknowledged) <= 8
            time.sleep(0.05 + 0.013 * round_number)
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().splitlines()
            assert process.stderr.read() == ""
        acknowledged = restored | {int(line) for line in lines}
    assert len(acknowledged) > 100


def test_a_real_full_file_system(tmp_path):
    """A tmpfs of 1 MiB in a mount namespace of its own: said, nothing lost, goes on with room."""
    needs.root()
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
    kept, faults, found, after, snapshot_index, size, rest = json.loads(output)
    assert 100 < len(kept) < 200
    assert kept == sorted(set(kept))
    assert faults > 0
    assert found == kept
    assert after > kept[-1]
    assert (snapshot_index, size, rest) == (after, 1000, [])
