"""The clients of the simulator and the history of what they saw.

Each client does one thing at a time: it writes or reads a register, appends to or reads a list,
puts into a queue or takes out of it.
It asks a member that thinks it leads, mostly; waits; gives up after a while. What was surely
refused leaves no trace in the history; a change without an answer may have happened or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.sim.checks import Failure
from raft.sim.linear import FOREVER, Operation, State, UndecidedError, is_linearizable

if TYPE_CHECKING:
    from raft.sim.host import Host
    from raft.sim.world import World

REGISTER, LIST, QUEUE, DOUBTED, TRAFFIC = range(5)
# What clients choose from.
KEYS = (REGISTER, LIST, QUEUE)
_CHANGES = {REGISTER: "write", LIST: "append", QUEUE: "enqueue"}
# Asks once and does not come back.
_PASSER_BY = -1
_TO_LEADER = 0.75
_READS = 0.45
# More of these on one key make the search for an order long, and the history no sharper.
_UNKNOWN_MAX = 6


class Clients:
    """See the module.

    Attributes:
        history: every operation that was not surely refused, in the order of their beginnings.
        acknowledged: how many were answered.
    """

    def __init__(self, world: World, operations_max: int, think_time: float) -> None:
        """Nobody has asked for anything."""
        self._world = world
        self._left = operations_max
        self._think_time = think_time
        self._waiting: dict[int, int] = {}
        self._moment = 0
        self._unknown = [0 for _ in (*KEYS, DOUBTED)]
        self.history: dict[int, Operation] = {}
        self.acknowledged = 0

    def start(self, count: int) -> None:
        """Begin with so many clients."""
        for client in range(count):
            self._world.after(self._think_time * self._world.random(), self._act, client)

    def stop(self) -> None:
        """Ask for nothing new."""
        self._left = -len(self._waiting)

    def write(self, host: Host) -> Operation:
        """Ask a host for one write that no client waits for; nobody reads that key."""
        operation = self._begin("write", TRAFFIC)
        if not host.submit(operation):
            self.history.pop(operation.id, None)
        return operation

    def _begin(self, kind: str, key: int) -> Operation:
        self._moment += 1
        operation = Operation(len(self._world.operations), kind, key, self._moment)
        self._world.operations.append(operation)
        self.history[operation.id] = operation
        return operation

    def _act(self, client: int) -> None:
        if self._left <= 0:
            return
        world = self._world
        key = KEYS[int(world.random() * len(KEYS))]
        is_taking = world.random() < _READS
        is_read = (is_taking and key != QUEUE) or self._unknown[key] >= _UNKNOWN_MAX
        leaders = world.leaders() if world.random() < _TO_LEADER else []
        # Of several, writes try the newest, reads the oldest: there a lie would be found.
        host = leaders[-1 if is_read else 0] if leaders else world.choose_host()
        if host is None:
            world.after(self._think_time, self._act, client)
            return
        self._left -= 1
        kind = "dequeue" if is_taking and key == QUEUE else _CHANGES[key]
        self._ask(client, host, "read" if is_read else kind, key)

    def _ask(self, client: int, host: Host, kind: str, key: int) -> None:
        operation = self._begin(kind, key)
        self._world.note("call", client, host.id, operation)
        self._waiting[operation.id] = client
        self._world.after(self._world.patience, self._give_up, operation)
        if not host.submit(operation):
            self.refused(operation)

    def doubt(self, _: None) -> None:
        """While several think they lead: write to the newest, read from the oldest."""
        leaders = self._world.leaders()
        if len(leaders) > 1:
            self.compare(leaders[-1], leaders[0])

    def compare(self, doubted: Host, leader: Host) -> None:
        """Read from one that may know less, and write to the leader: for the next to read."""
        if self._unknown[DOUBTED] < _UNKNOWN_MAX:
            self.doubt_one(doubted)
            self._ask(_PASSER_BY, leader, "write", DOUBTED)

    def doubt_one(self, host: Host) -> None:
        """Read from one what is written when others are compared with it."""
        self._ask(_PASSER_BY, host, "read", DOUBTED)

    def ended(self, operation: Operation, result: State | None) -> None:
        """A member answers."""
        client = self._waiting.pop(operation.id, None)
        if operation.ended == FOREVER and (client is not None or operation.kind != "read"):
            self._moment += 1
            operation.ended = self._moment
            operation.result = result
            self.acknowledged += 1
            self._world.note("answer", operation)
        self._next(client)

    def refused(self, operation: Operation) -> None:
        """Surely nothing happened, and nothing will."""
        if operation.ended == FOREVER:
            self.history.pop(operation.id, None)
        client = self._waiting.pop(operation.id, None)
        if client is not None and client != _PASSER_BY:
            # Nobody leads, probably.
            self._left += 1
            self._world.after(self._world.election_time * self._world.random(), self._act, client)

    def _give_up(self, operation: Operation) -> None:
        client = self._waiting.pop(operation.id, None)
        if client is None:
            return
        if operation.kind == "read":
            self.history.pop(operation.id, None)
        else:
            self._unknown[operation.key] += 1
        self._next(client)

    def _next(self, client: int | None) -> None:
        if client is not None and client != _PASSER_BY:
            self._world.after(self._think_time * self._world.random(), self._act, client)

    def check(self) -> None:
        """Verify that each key's history is linearizable."""
        for key in (*KEYS, DOUBTED):
            history = [
                each
                for each in self.history.values()
                if each.key == key and (each.kind != "read" or each.ended != FOREVER)
            ]
            try:
                is_good = is_linearizable(history)
            except UndecidedError as error:
                raise Failure("undecided", f"key {key}: {error}") from None
            if not is_good:
                story = "; ".join(
                    f"{each.kind} {each.id} {each.begun}-"
                    f"{'?' if each.ended == FOREVER else each.ended} "
                    f"{'' if each.result is None else each.result}"
                    for each in history
                )
                raise Failure("not linearizable", f"key {key}: {story}")
