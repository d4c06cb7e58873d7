"""The clients of the simulator and the history of what they saw.

Each client does one thing at a time: it writes or reads a register, or appends to or reads a list.
It asks a member that thinks it leads, mostly; waits; gives up after a while. What was surely
refused leaves no trace in the history; a write without an answer may have happened or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.sim.checks import Failure
from raft.sim.linear import FOREVER, Operation, State, UndecidedError, is_linearizable

if TYPE_CHECKING:
    from raft.sim.host import Host
    from raft.sim.world import World

REGISTER, LIST = 0, 1
KEYS = (REGISTER, LIST)
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
        self._unknown = [0 for _ in KEYS]
        self.history: dict[int, Operation] = {}
        self.acknowledged = 0

    def start(self, count: int) -> None:
        """Begin with so many clients."""
        for client in range(count):
            self._world.after(self._think_time * self._world.random(), self._act, client)

    def stop(self) -> None:
        """Ask for nothing new."""
        self._left = 0

    def write(self, host: Host) -> Operation:
        """Ask a host for one write, outside of any client's turn."""
        operation = self._begin("write", REGISTER)
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
        host = world.choose_host(leader=world.random() < _TO_LEADER)
        if host is None:
            world.after(self._think_time, self._act, client)
            return
        self._left -= 1
        key = KEYS[int(world.random() * len(KEYS))]
        is_read = world.random() < _READS or self._unknown[key] >= _UNKNOWN_MAX
        kind = "read" if is_read else ("write" if key == REGISTER else "append")
        operation = self._begin(kind, key)
        world.note("call", client, host.id, operation)
        self._waiting[operation.id] = client
        world.after(world.patience, self._give_up, operation)
        if not host.submit(operation):
            self.refused(operation)

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
        self._next(self._waiting.pop(operation.id, None))

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
        if client is not None:
            self._world.after(self._think_time * self._world.random(), self._act, client)

    def check(self) -> None:
        """Verify that each key's history is linearizable."""
        for key in KEYS:
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
                    f"{'?' if each.ended == FOREVER else each.ended} {each.result or ''}"
                    for each in history
                )
                raise Failure("not linearizable", f"key {key}: {story}")
