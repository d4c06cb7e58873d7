"""Clients: many at once, each with one request under way, that remember what they saw."""

from __future__ import annotations

import asyncio
import random
import time

from checker import ACKED, REFUSED, UNKNOWN, Append, Read
from cluster import Cluster

KEYS = tuple(f"key{number}" for number in range(8))
ANSWER_SECONDS_MAX = 8.0
REFUSED_PAUSE_SECONDS = 0.02


class Load:
    """The clients of one run.

    Attributes:
        appends: all that were asked for.
        reads: those that were answered.
        is_stopping: clients end with their present request.
    """

    def __init__(self, cluster: Cluster, rng: random.Random, *, rate: float, writers: int) -> None:
        """Prepare; `rate` is the appends a second of all writers together, at most."""
        self.appends: list[Append] = []
        self.reads: list[Read] = []
        self.is_stopping = False
        self._cluster = cluster
        self._rng = rng
        self._interval = writers / rate
        self._writers = writers
        self._last = 0
        self._leader = 0

    async def run(self, readers: int) -> None:
        """Work until `is_stopping`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._writers):
                group.create_task(self._write())
            for _ in range(readers):
                group.create_task(self._read())

    def _member(self) -> int:
        """Choose a member: mostly who led last, often anybody, as clients with old news do."""
        if self._rng.random() < 0.6:
            return self._leader
        return self._rng.randrange(self._cluster.lab.hosts)

    async def append(self, member: int, key: str, seconds: float) -> Append:
        """Append once and remember it."""
        self._last += 1
        append = Append(key, self._last, time.monotonic())
        self.appends.append(append)
        reply = await self._cluster.clients[member].ask(
            "append", key=key, value=append.value, timeout=seconds
        )
        append.outcome = reply.outcome
        if reply.outcome == ACKED:
            append.ended = time.monotonic()
        if reply.leader >= 0:
            self._leader = reply.leader
        return append

    async def _write(self) -> None:
        while not self.is_stopping:
            began = time.monotonic()
            member = self._member()
            append = await self.append(member, self._rng.choice(KEYS), ANSWER_SECONDS_MAX)
            if append.outcome == ACKED and self._rng.random() < 0.1:
                self._leader = member
            if append.outcome == REFUSED and self._leader == member:
                self._leader = self._rng.randrange(self._cluster.lab.hosts)
            took = time.monotonic() - began
            pause = 0 if append.outcome == ACKED else REFUSED_PAUSE_SECONDS
            await asyncio.sleep(max(pause, self._interval - took))

    async def _read(self) -> None:
        while not self.is_stopping:
            key = self._rng.choice(KEYS)
            began = time.monotonic()
            reply = await self._cluster.clients[self._member()].ask(
                "read", key=key, timeout=ANSWER_SECONDS_MAX
            )
            if reply.outcome == ACKED:
                self.reads.append(Read(key, began, time.monotonic(), reply.length, reply.digest))
            await asyncio.sleep(self._rng.uniform(0.01, 0.1))

    def unanswered(self) -> int:
        """Return how many appends have no certain outcome."""
        return sum(append.outcome == UNKNOWN for append in self.appends)
