"""One member of the log as a process: obeys JSON lines on its input, answers on its output.

`member.py CONFIG` with a file of: node_id, cluster, certificate, key, roots, directory, port,
address, tick_seconds, how ("create", "open" or "join"), member_id, peers. Its state machine is a
list of all entries in their order; `digest` tells how many and a hash of them.
"""

import asyncio
import cProfile
import gc
import hashlib
import io
import json
import logging
import os
import pstats
import random
import statistics
import sys
import time
from pathlib import Path

import msgspec
import structlog

from proto.clock import SystemClock
from proto.errors import NotLeaderError, SwarmError
from raft.core import Member
from raft.keys import KeyRing
from raft.node import RaftNode, Settings
from raft.transport.identity import Credentials
from raft.transport.limits import Lane
from raft.transport.transport import Transport

CHUNK_ENTRIES = 1000


class Machine:
    """All entries in order, applied as the store does it: own proposals when their turn comes."""

    def __init__(self):
        self.entries = []
        self.line = []
        self.blobs = 0
        self.roles = []
        self.index = 0

    def propose(self, node, data):
        """Propose one entry."""
        future = node.propose(data)
        self.line.append((future, data))
        future.add_done_callback(lambda _future: self.settle())
        return future

    def settle(self):
        """Take own proposals that are done."""
        done = 0
        for future, data in self.line:
            if not future.done():
                break
            done += 1
            if future.exception() is None:
                assert future.result() > self.index
                self.index = future.result()
                self.entries.append(data)
        del self.line[:done]

    def apply(self, first, entries):
        """Take others' entries."""
        self.settle()
        assert first > self.index
        self.entries += [data for data in entries if data]
        self.index = first + len(entries) - 1

    async def install(self, index, chunks):
        """Take a whole state."""
        self.settle()

        def read():
            entries = []
            blobs = 0
            for chunk in chunks:
                if chunk.startswith(b"blob"):
                    blobs += 1
                else:
                    entries += msgspec.msgpack.decode(chunk)
            return entries, blobs

        self.entries, self.blobs = await asyncio.to_thread(read)
        self.index = index

    def lead(self, term):
        """Note it."""
        self.roles.append(term)

    def follow(self):
        """Note it; the futures are done."""
        self.settle()
        assert not self.line
        self.roles.append(0)

    def fail(self, error):
        """Say it."""
        print(f"failed: {error}", file=sys.stderr, flush=True)

    async def keep_small(self, node, bytes_max):
        """Snapshot as the store does, whenever the log has grown by so much."""
        log, saved = node._core.log, 0
        while True:
            await asyncio.sleep(0.05)
            size = log.size(log.start + 1, log.last) if log.last > log.start else 0
            if size > bytes_max + saved and node.applied_index > node.snapshot_index:
                await node.save_snapshot(node.applied_index, self.chunks(0))
                saved = log.size(log.start + 1, log.last) if log.last > log.start else 0
            log = node._core.log

    def chunks(self, padding):
        """Give the whole state as of now, and blocks of random bytes."""
        return self.write_chunks(list(self.entries), padding)

    @staticmethod
    async def write_chunks(entries, padding):
        """Encode them."""
        for start in range(0, len(entries), CHUNK_ENTRIES):
            yield msgspec.msgpack.encode(entries[start : start + CHUNK_ENTRIES])
        block = b"blob" + os.urandom(256 << 10)
        for _ in range(padding // len(block)):
            yield block
            await asyncio.sleep(0)


class Cutting(Transport):
    """A transport with links that can be cut, each way."""

    cut: frozenset = frozenset()

    def send(self, node_id, messages, *, lane=Lane.CONTROL):
        """Drop what the cut takes."""
        if node_id not in self.cut:
            super().send(node_id, messages, lane=lane)


async def measure_commits(propose, callers, seconds, entry):
    """Let callers propose one entry after the other: commits per second, and waits in ms.

    Args:
        propose: awaited with an entry; returns when it is committed. Any log will do.
        callers: how many at a time.
        seconds: how long.
        entry: what they propose.
    """
    waits = []
    errors = 0
    clock = time.perf_counter

    async def caller(until):
        nonlocal errors
        while (start := clock()) < until:
            try:
                await propose(entry)
            except SwarmError:
                errors += 1
                await asyncio.sleep(0.01)
            else:
                waits.append(clock() - start)

    began = clock()
    await asyncio.gather(*(caller(began + seconds) for _ in range(callers)))
    elapsed = clock() - began
    waits.sort()
    at = lambda share: round(waits[int(len(waits) * share)] * 1000, 2) if waits else None  # noqa: E731
    return {
        "rate": round(len(waits) / elapsed),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": round(waits[-1] * 1000, 2) if waits else None,
        "errors": errors,
    }


async def measure_paced(propose, rate, seconds, entry):
    """Propose at a steady rate, whatever the answers take; waits in ms from when each was due."""
    waits = []
    errors = 0
    clock = time.perf_counter

    async def one(due):
        nonlocal errors
        try:
            await propose(entry)
        except SwarmError:
            errors += 1
        else:
            waits.append(clock() - due)

    began = clock()
    tasks = set()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (wait := due - clock()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    waits.sort()
    return {
        "p50_ms": round(statistics.median(waits) * 1000, 2),
        "p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2),
        "max_ms": round(waits[-1] * 1000, 2),
        "errors": errors,
    }


class Program:
    """The process."""

    def __init__(self, config):
        self.config = config
        self.machine = Machine()

    async def start(self):
        """Open the member and listen."""
        config = self.config
        directory = Path(config["directory"])
        ring = directory / "keys.ring"
        keys = KeyRing.open(directory) if ring.exists() else KeyRing.create(directory)
        began = time.perf_counter()
        arguments = {
            "node_id": config["node_id"],
            "address": config["address"],
            "clock": SystemClock(),
            "rng": random.Random(config["node_id"] + str(time.time())),
            "settings": Settings(
                tick_seconds=config["tick_seconds"],
                has_lease_reads=config.get("has_lease_reads", False),
            ),
        }
        peers = [Member(*peer) for peer in config["peers"]]
        if config["how"] == "create":
            self.node = await RaftNode.create(directory, keys, **arguments)
        elif config["how"] == "join":
            self.node = await RaftNode.join(
                directory, keys, member_id=config["member_id"], peers=peers, **arguments
            )
        else:
            self.node = await RaftNode.open(directory, keys, peers=peers, **arguments)
        chunks, entries = self.node.restore()
        for chunk in chunks:
            if chunk.startswith(b"blob"):
                self.machine.blobs += 1
            else:
                self.machine.entries += msgspec.msgpack.decode(chunk)
        self.machine.index = self.node.snapshot_index
        for entry in entries:
            self.machine.index = entry.index
            if entry.data:
                self.machine.entries.append(entry.data)
        self.node.attach(self.machine)
        opened = time.perf_counter() - began
        credentials = Credentials(
            certificate_pem=config["certificate"].encode(),
            key_pem=config["key"].encode(),
            roots_pem=config["roots"].encode(),
        )
        self.transport = Cutting(
            config["node_id"],
            config["cluster"],
            lambda: credentials,
            on_messages=self._on_messages,
            on_snapshot=self.node.on_snapshot,
            on_unreachable=self.node.on_unreachable,
            is_allowed=self.node.is_allowed,
            clock=SystemClock(),
            rng=random.Random(config["port"]),
        )
        await self.transport.start(f"127.0.0.1:{config['port']}")
        self.node.connect(self.transport)
        if config["log_bytes_max"]:
            self.saver = asyncio.create_task(
                self.machine.keep_small(self.node, config["log_bytes_max"])
            )
        return {"opened_seconds": opened, "last_index": self.node.last_index}

    def _on_messages(self, node_id, messages):
        if node_id not in self.transport.cut:
            self.node.on_messages(node_id, messages)

    def propose(self, data):
        """Propose one entry."""
        return self.machine.propose(self.node, data)

    async def add(self, node_id, address):
        """Let a node join."""
        member_id = await self.node.add_learner(node_id, address)
        return {
            "member_id": member_id,
            "peers": [msgspec.to_builtins(member) for member in self.node.membership.members],
        }

    async def remove(self, node_id):
        """Remove a node."""
        await self.node.remove(node_id)

    async def demote(self, node_id):
        """Take a node's vote."""
        await self.node.demote(node_id)

    async def move(self, node_id, address):
        """Change an address."""
        await self.node.change_address(node_id, address)

    async def transfer(self, node_id=""):
        """Hand over."""
        await self.node.transfer_leadership(node_id)

    async def status(self):
        """Tell what is known."""
        return {
            "is_leader": self.node.is_leader,
            "term": self.node.term,
            "applied": self.node.applied_index,
            "snapshot_index": self.node.snapshot_index,
            "is_removed": self.node.is_removed,
            "roles": self.machine.roles,
            "members": [msgspec.to_builtins(status) for status in self.node.status()],
        }

    async def write(self, prefix, count):
        """Propose entries one after the other; tells which were acknowledged and which unknown."""
        acknowledged, unknown, refused = [], [], []
        for number in range(count):
            data = f"{prefix}-{number}"
            try:
                await self.propose(data.encode())
            except NotLeaderError:
                refused.append(data)
            except SwarmError:
                unknown.append(data)
            else:
                acknowledged.append(data)
        return {"acknowledged": acknowledged, "unknown": unknown, "refused": refused}

    async def entries(self):
        """Return all entries."""
        return {"entries": [data.decode() for data in self.machine.entries]}

    async def digest(self):
        """Return how many entries, and a hash of them."""
        digest = hashlib.sha256()
        for data in self.machine.entries:
            digest.update(len(data).to_bytes(4, "big") + data)
        return {
            "count": len(self.machine.entries),
            "sha256": digest.hexdigest(),
            "blobs": self.machine.blobs,
            "applied": self.node.applied_index,
        }

    async def barrier(self):
        """Make a linearizable read."""
        return {"index": await self.node.read_barrier(), "count": len(self.machine.entries)}

    async def snapshot(self, padding=0):
        """Save a snapshot of so many bytes."""
        began = time.perf_counter()
        await self.node.save_snapshot(self.node.applied_index, self.machine.chunks(padding))
        return {"seconds": time.perf_counter() - began}

    async def load(self, callers, seconds, size):
        """Measure callers that propose one entry after the other."""
        gc.collect()
        gc.freeze()
        # As the manager does; what is measured here is the log, so there is no state machine.
        return await measure_commits(self.node.propose, callers, seconds, os.urandom(size))

    async def reads(self, callers, seconds):
        """Measure callers that make one linearizable read after the other."""
        return await measure_commits(lambda _: self.node.read_barrier(), callers, seconds, None)

    async def paced(self, rate, seconds, size):
        """Measure proposals at a steady rate."""
        return await measure_paced(self.node.propose, rate, seconds, os.urandom(size))

    async def first_commit(self, seconds):
        """Wait until this member can commit; return when it did, by the machine's clock."""
        self.is_waiting = True
        deadline = time.monotonic() + seconds
        while self.is_waiting and time.monotonic() < deadline:
            if self.node.is_leader:
                try:
                    await self.propose(b"first")
                except SwarmError:
                    continue
                return {"at": time.monotonic()}
            await asyncio.sleep(0.001)
        return {"at": None}

    async def give_up(self):
        """End a `first_commit` that waits."""
        self.is_waiting = False

    async def fill(self, count, callers):
        """Commit so many entries of 200 bytes."""
        left = iter(range(count))

        async def call():
            for _ in left:
                await self.propose(os.urandom(200))

        await asyncio.gather(*(call() for _ in range(callers)))

    async def cut(self, nodes):
        """Send nothing to these nodes, hear nothing from them."""
        self.transport.cut = frozenset(nodes)

    async def stop(self):
        """End in an orderly way."""
        await self.node.close()

    async def counters(self):
        """Return the transport's counters."""
        return {
            node_id: {lane.value: msgspec.to_builtins(stats) for lane, stats in peer.lanes.items()}
            for node_id, peer in self.transport.status().items()
        }

    async def profile(self, callers, seconds, size):
        """Measure with a profiler."""
        profiler = cProfile.Profile()
        profiler.enable()
        result = await self.load(callers, seconds, size)
        profiler.disable()
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(35)
        return {**result, "profile": text.getvalue()}


async def obey(program, line):
    """Do one command."""
    request = json.loads(line)
    try:
        answer = await getattr(program, request["do"])(**request["with"]) or {}
    except SwarmError as error:
        answer = {"error": type(error).__name__, "message": error.message}
    print(json.dumps({"id": request["id"], **answer}), flush=True)


async def main():
    """Run until told to stop."""
    level = getattr(logging, os.environ.get("MEMBER_LOG", "ERROR"))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    program = Program(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps({"id": 0, **await program.start()}), flush=True)
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks = set()
    while line := await reader.readline():
        task = asyncio.ensure_future(obey(program, line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if b'"stop"' in line:
            await task
            return


if __name__ == "__main__":
    asyncio.run(main())
