"""One member of ours: `RaftNode` with a state machine and its clients' protocol.

gRPC with mutual TLS between members, the log encrypted and synced, as in a manager.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol

import config as member_config
import structlog
from authority import CLUSTER
from checker import ACKED, REFUSED, UNKNOWN
from hanging import HangingFiles
from machine_lists import ListsMachine
from machine_store import StoreMachine
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


class Machine(Protocol):
    """A state machine that keeps lists of numbers under keys."""

    def attach(self) -> None:
        """Take what the log holds, and be told of everything from now on."""

    async def append(self, key: str, value: int) -> None:
        """Append, durably on return."""

    async def read(self, key: str) -> tuple[int, int]:
        """Return how many values a key has, and the digest of them all; linearizable."""

    def lists(self) -> dict[str, list[int]]:
        """Return all that was applied here."""

    async def work(self) -> None:
        """Do what is to be done beside, until the process ends."""


MACHINES: dict[str, Callable[[member_config.MemberConfig, RaftNode], Machine]] = {
    "lists": ListsMachine,
    "store": StoreMachine,
}


class Member:
    """Translates between clients and the node."""

    def __init__(
        self, config: member_config.MemberConfig, node: RaftNode, machine: Machine
    ) -> None:
        self._config = config
        self._node = node
        self._machine = machine
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
                self.spawn(self._append(request, answer))
            case "read":
                self.spawn(self._read(request, answer))
            case "dump":
                answer(Reply(request.id, ACKED, lists=self._machine.lists()))
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

    async def _append(self, request: Request, answer: Answer) -> None:
        try:
            await self._machine.append(request.key, request.value)
        except SwarmError as error:
            answer(self._failed(request, error))
        else:
            answer(Reply(request.id, ACKED))

    async def _read(self, request: Request, answer: Answer) -> None:
        try:
            length, digest = await self._machine.read(request.key)
        except SwarmError as error:
            answer(self._failed(request, error))
        else:
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


async def open_node(config: member_config.MemberConfig) -> RaftNode:
    """Begin, join or take up the log."""
    directory = Path(config.directory)
    arguments = {
        "node_id": config.node_id,
        "address": config.address,
        "clock": SystemClock(),
        # Salts come from it too: never the same twice.
        "rng": random.SystemRandom(),
        "files": HangingFiles(Path(config.hang)),
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
    try:
        node = await open_node(config)
    except ResourceExhaustedError as error:
        print(error.message, file=sys.stderr)
        sys.exit(member_config.DISK_FULL_EXIT)
    machine: Machine = MACHINES[config.machine](config, node)
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
    machine.attach()
    node.connect(transport)
    member = Member(config, node, machine)
    member.spawn(machine.work())
    server = await serve(config.socket, member.handle)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
