"""One member of ours: `RaftNode` with the lists and their clients' protocol.

gRPC with mutual TLS between members, the log encrypted and synced, as in a manager.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path

import config as member_config
import msgspec
import structlog
from authority import CLUSTER
from checker import ACKED, REFUSED, UNKNOWN
from state import Lists
from wire import Answer, Reply, Request, serve

from proto.clock import SystemClock
from proto.errors import NotLeaderError, ResourceExhaustedError, SwarmError
from proto.ids import ClusterID, NodeID
from raft.core import Member as Peer
from raft.core import RaftID
from raft.keys import KeyRing
from raft.node import RaftNode
from raft.transport.identity import Credentials
from raft.transport.transport import Transport

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

CHUNK_VALUES = 20_000
SNAPSHOT_LOOK_SECONDS = 0.05

Command = tuple[str, int, bytes]


class Machine:
    """The listener: own appends and others', in the order of the log."""

    def __init__(self) -> None:
        self.content = Lists()
        self.index = 0
        self._own: deque[tuple[asyncio.Future[int], str, int]] = deque()

    def proposed(self, future: asyncio.Future[int], key: str, value: int) -> None:
        """Remember an own append until it is committed or fails."""
        self._own.append((future, key, value))

    def settle(self) -> None:
        """Apply the own appends that are committed."""
        own = self._own
        while own and own[0][0].done():
            future, key, value = own.popleft()
            if not future.cancelled() and future.exception() is None:
                self._move_to(future.result())
                self.content.append(key, value)

    def _move_to(self, index: int) -> None:
        assert index == self.index + 1, f"entry {index} comes after {self.index}"
        self.index = index

    def take(self, index: int, data: bytes) -> None:
        """Apply somebody else's entry, or one that changes nothing."""
        self._move_to(index)
        if data:
            key, value, _ = msgspec.msgpack.decode(data, type=Command)
            self.content.append(key, value)

    def apply(self, first: int, entries: Sequence[bytes]) -> None:
        """Be told of committed entries."""
        self.settle()
        for index, data in enumerate(entries, first):
            self.take(index, data)

    def restore(self, index: int, chunks: Iterator[bytes]) -> None:
        """Take a snapshot's content."""
        lists: dict[str, list[int]] = {}
        for chunk in chunks:
            key, values = msgspec.msgpack.decode(chunk, type=tuple[str, list[int]])
            lists.setdefault(key, []).extend(values)
        self.content = Lists(lists)
        self.index = index

    async def install(self, index: int, chunks: Iterator[bytes]) -> None:
        """Be given a snapshot by the leader."""
        self.settle()
        await asyncio.to_thread(self.restore, index, chunks)

    def lead(self, term: int) -> None:
        """Lead; clients find out."""

    def follow(self) -> None:
        """Lead no more."""
        self.settle()

    def fail(self, error: SwarmError) -> None:
        """End: whoever supervises us starts us again."""
        print(f"the log failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)


async def snapshot_chunks(lists: dict[str, list[int]]) -> AsyncIterator[bytes]:
    """Yield the content of a snapshot."""
    for key, values in lists.items():
        for start in range(0, len(values), CHUNK_VALUES):
            yield msgspec.msgpack.encode((key, values[start : start + CHUNK_VALUES]))
            await asyncio.sleep(0)


class Member:
    """Translates between clients and the node."""

    def __init__(
        self, config: member_config.MemberConfig, node: RaftNode, machine: Machine
    ) -> None:
        self._config = config
        self._node = node
        self._machine = machine
        self._padding = config.padding()
        self._hosts = {member_config.node_name(host): host for host in range(len(config.addresses))}
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside the rest; an error in it that nobody expected ends the process."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task_failed", exc_info=error)
            os._exit(1)

    def handle(self, request: Request, answer: Answer) -> None:
        """Answer a request, now or when the log has decided."""
        match request.op:
            case "append":
                self._append(request, answer)
            case "read":
                self.spawn(self._read(request, answer))
            case "dump":
                self._machine.settle()
                answer(Reply(request.id, ACKED, lists=self._machine.content.lists))
            case "status":
                answer(self._status(request))
            case "change":
                self.spawn(self._change(request, answer))
            case _:
                answer(Reply(request.id, REFUSED, f"{request.op} is not known"))

    def _leader(self) -> int:
        for member in self._node.status():
            if member.is_leader:
                return self._hosts[member.node_id]
        return -1

    def _failed(self, request: Request, error: SwarmError) -> Reply:
        is_certain = isinstance(error, NotLeaderError | ResourceExhaustedError)
        outcome = REFUSED if is_certain else UNKNOWN
        return Reply(request.id, outcome, error.message, leader=self._leader())

    def _append(self, request: Request, answer: Answer) -> None:
        data = msgspec.msgpack.encode((request.key, request.value, self._padding))
        try:
            future = self._node.propose(data)
        except SwarmError as error:
            # Whatever it is, nothing was proposed.
            answer(Reply(request.id, REFUSED, error.message, leader=self._leader()))
            return
        self._machine.proposed(future, request.key, request.value)
        future.add_done_callback(self._decided(request, answer))

    def _decided(self, request: Request, answer: Answer) -> Callable[[asyncio.Future[int]], None]:
        def decided(future: asyncio.Future[int]) -> None:
            self._machine.settle()
            error = future.exception()
            if error is None:
                answer(Reply(request.id, ACKED))
            elif isinstance(error, SwarmError):
                answer(self._failed(request, error))
            else:
                raise error

        return decided

    async def _read(self, request: Request, answer: Answer) -> None:
        try:
            await self._node.read_barrier()
        except SwarmError as error:
            answer(self._failed(request, error))
            return
        self._machine.settle()
        length, digest = self._machine.content.read(request.key)
        answer(Reply(request.id, ACKED, length=length, digest=digest))

    def _members(self) -> list[tuple[int, bool, str, str]]:
        return [
            (member.id, member.is_voter, member.node_id, member.address)
            for member in self._node.membership.members
        ]

    def _status(self, request: Request) -> Reply:
        return Reply(
            request.id,
            ACKED,
            leader=self._leader(),
            is_leader=self._node.is_leader,
            applied=self._node.applied_index,
            term=self._node.term,
            members=self._members(),
        )

    async def _change(self, request: Request, answer: Answer) -> None:
        name = member_config.node_name(request.value)
        member_id = 0
        try:
            match request.change:
                case "add":
                    address = self._config.addresses[request.value]
                    member_id = await self._node.add_learner(name, address)
                case "promote":
                    await self._node.promote(name)
                case "demote":
                    await self._node.demote(name)
                case "remove":
                    await self._node.remove(name)
                case _:
                    raise AssertionError(request.change)
        except SwarmError as error:
            answer(self._failed(request, error))
        else:
            answer(Reply(request.id, ACKED, member_id=member_id, members=self._members()))

    async def keep_small(self) -> None:
        """Save a snapshot whenever the log has grown enough; a full disk only delays it."""
        node, machine = self._node, self._machine
        while True:
            await asyncio.sleep(SNAPSHOT_LOOK_SECONDS)
            machine.settle()
            if machine.index - node.snapshot_index < self._config.snapshot_entries:
                continue
            lists = {key: list(values) for key, values in machine.content.lists.items()}
            try:
                await node.save_snapshot(machine.index, snapshot_chunks(lists))
            except SwarmError as error:
                print(f"no snapshot: {error.message}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.5)


async def open_node(config: member_config.MemberConfig) -> RaftNode:
    """Begin, join or take up the log."""
    directory = Path(config.directory)
    arguments = {
        "node_id": config.node_id,
        "address": config.address,
        "clock": SystemClock(),
        # Salts come from it too: never the same twice.
        "rng": random.SystemRandom(),
    }
    ring = directory / "keys.ring"
    keys = KeyRing.open(directory) if ring.exists() else KeyRing.create(directory)
    peers = [
        Peer(RaftID(number), is_voter, node_id, address)
        for number, is_voter, node_id, address in config.peers
    ]
    if any((directory / "wal").glob("*.wal")):
        return await RaftNode.open(directory, keys, peers=peers, **arguments)
    if config.how == "create":
        return await RaftNode.create(directory, keys, **arguments)
    member_id = RaftID(config.member_id)
    return await RaftNode.join(directory, keys, member_id=member_id, peers=peers, **arguments)


async def main() -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    plain = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper("iso"),
            structlog.processors.add_log_level,
            plain,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    config = member_config.load()
    machine = Machine()
    try:
        node = await open_node(config)
    except ResourceExhaustedError as error:
        print(error.message, file=sys.stderr)
        sys.exit(member_config.DISK_FULL_EXIT)
    chunks, entries = node.restore()
    machine.restore(node.snapshot_index, chunks)
    for entry in entries:
        machine.take(entry.index, entry.data)
    credentials = Credentials(
        certificate_pem=config.certificate.encode(),
        key_pem=config.key.encode(),
        roots_pem=config.roots.encode(),
    )
    transport = Transport(
        NodeID(config.node_id),
        ClusterID(CLUSTER),
        lambda: credentials,
        on_messages=node.on_messages,
        on_snapshot=node.on_snapshot,
        on_unreachable=node.on_unreachable,
        is_allowed=node.is_allowed,
        clock=SystemClock(),
        rng=random.Random(f"{config.seed} {config.id}"),
    )
    await transport.start(config.address)
    node.attach(machine)
    node.connect(transport)
    member = Member(config, node, machine)
    member.spawn(member.keep_small())
    server = await serve(config.socket, member.handle)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
