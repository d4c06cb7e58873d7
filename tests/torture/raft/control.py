"""The negative control without processes, faults by chance or waiting: PySyncObj loses writes here.

Three members of the library in this process, over a network and a clock of our own: what the
library is told, it is told by this script alone. The scenario is one that any replicated log must
bear: two members acknowledge, the third is slow, and the leader crashes while it sends what the
other has already. A follower of PySyncObj cuts off entries that it acknowledged when they are sent
to it again, so the crash makes it forget them for good. The checker has to say so.

Prints one line of JSON; the exit code is 1 if acknowledged writes were lost, as `run.py`'s.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

from checker import ACKED, Append, History, check
from state import Lists

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports modules that Python is about to drop
    import pysyncobj.syncobj
    from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
    from pysyncobj.node import Node
    from pysyncobj.transport import Transport

KEY = "key"
ENTRY_BYTES = 10_240
WRITES = 20
NAMES = ("first", "second", "third")
STEP_SECONDS = 0.2
ELECTION_SECONDS = 5.0


class World:
    """The clock, and for each pair of members what is under way between them, in order."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.wires: dict[tuple[str, str], deque[dict[str, object]]] = defaultdict(deque)
        self.ends: dict[str, Wire] = {}
        self.joined: set[frozenset[str]] = set()

    def join(self, one: str, other: str) -> None:
        """Let two members hear each other."""
        self.joined.add(frozenset((one, other)))
        for me, peer in ((one, other), (other, one)):
            self.ends[me]._onNodeConnected(self.ends[me].nodes[peer])

    def crash(self, name: str) -> None:
        """Take a member and everything that it had under way from the others."""
        for other in NAMES:
            if other != name:
                self.joined.discard(frozenset((name, other)))
                self.wires[name, other].clear()
                self.wires[other, name].clear()
                self.ends[other]._onNodeDisconnected(self.ends[other].nodes[name])

    def deliver(self, sender: str, to: str, at_most: int = 1_000_000) -> None:
        """Hand over what is under way, oldest first."""
        wire = self.wires[sender, to]
        for _ in range(min(at_most, len(wire))):
            end = self.ends[to]
            end._onMessageReceived(end.nodes[sender], wire.popleft())


class Wire(Transport):
    """What the library sends with."""

    world: World

    def __init__(self, sync_obj: SyncObj, me: Node, others: list[Node]) -> None:
        super().__init__(sync_obj, me, others)
        self.name = me.id
        self.nodes = {node.id: node for node in others}
        self.world.ends[me.id] = self

    ready = True

    def send(self, node: Node, message: dict[str, object]) -> bool:
        """Put a message on its way."""
        if frozenset((self.name, node.id)) not in self.world.joined:
            return False
        self.world.wires[self.name, node.id].append(dict(message))
        return True


class Store(SyncObj):
    """A member."""

    def __init__(self, name: str, folder: Path) -> None:
        settings = SyncObjConf(autoTick=False, journalFile=str(folder / name))
        others = [Node(other) for other in NAMES if other != name]
        super().__init__(Node(name), others, settings, nodeClass=Node, transportClass=Wire)
        self.name = name
        self.content = Lists()

    @replicated
    def append(self, key: str, value: int, _padding: bytes) -> None:
        """Append everywhere."""
        self.content.append(key, value)

    def campaign(self, world: World, voter: str) -> None:
        """Let its patience end, and one other answer."""
        self._SyncObj__raftElectionDeadline = 0
        self.doTick()
        world.deliver(self.name, voter)
        world.deliver(voter, self.name)
        assert self._isLeader(), f"{self.name} did not become leader"


def scenario(world: World, folder: Path) -> History:
    """Play it and return what the clients and an observer saw."""
    first, second, third = (Store(name, folder) for name in NAMES)
    moments: Iterator[int] = iter(range(1_000_000))
    appends: list[Append] = []

    def append(store: Store, value: int) -> None:
        noted = Append(KEY, value, next(moments))
        appends.append(noted)

        def called_back(_result: None, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                noted.outcome, noted.ended = ACKED, next(moments)

        store.append(KEY, value, bytes(ENTRY_BYTES), callback=called_back)

    def pass_time(leader: Store, *followers: Store) -> None:
        world.now += STEP_SECONDS
        leader.doTick()
        for follower in followers:
            world.deliver(leader.name, follower.name)
            world.deliver(follower.name, leader.name)
            follower.doTick()

    for one, other in (("first", "second"), ("first", "third"), ("second", "third")):
        world.join(one, other)
    first.campaign(world, "second")
    for _ in range(3):
        pass_time(first, second, third)
    # From here on nothing reaches the third.
    for value in range(1, WRITES + 1):
        append(first, value)
    first.doTick()
    pass_time(first)
    world.deliver("first", "second")
    # The first answer of several arrives; the leader sends again what the others are about.
    world.deliver("second", "first", 1)
    pass_time(first)
    world.deliver("second", "first")
    first.doTick()
    assert any(each.outcome == ACKED for each in appends), "nothing was acknowledged"
    # One message more reaches the second, then the leader is gone.
    world.deliver("first", "second", 1)
    world.crash("first")
    world.now += ELECTION_SECONDS
    second.campaign(world, "third")
    append(second, WRITES + 1)
    for _ in range(8):
        pass_time(second, third)
    barrier = appends[-1]
    assert barrier.outcome == ACKED, "the two that are left do not go on"
    finals = {store.name: store.content.lists for store in (second, third)}
    return History(appends, [], finals, {KEY: barrier.value})


def main() -> int:
    """Play, judge, print."""
    logging.disable(logging.CRITICAL)
    world = Wire.world = World()
    pysyncobj.syncobj.monotonicTime = lambda: world.now
    folder = Path(tempfile.mkdtemp(prefix="torture-control-"))
    try:
        report = check(scenario(world, folder))
    finally:
        shutil.rmtree(folder)
    line = {"system": "pysyncobj", "scenario": "sent again, then a crash"}
    line |= {"acked": report.acked, "lost": report.lost, "examples": report.examples}
    print(json.dumps(line))
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
