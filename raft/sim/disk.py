"""A member's disk in the simulator: what is durable, and what a crash leaves of the rest.

A Ready is written in the order that its docstring gives. A sync under way when the power goes may
have stored any beginning of what it was given; nothing that was not given to it yet survives.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from raft.core import Entries, HardState, Ready, Snapshot
from raft.sim.linear import State

Content = dict[int, State]


class Disk:
    """Durable state; entries are kept one by one, the slow and obvious way.

    Attributes:
        hard_state: as last stored.
        snapshot: the newest.
        first: the index of the first entry.
        log: (term, data, whether it changes the membership) of each.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.hard_state = HardState()
        self.snapshot = Snapshot()
        self.first = 1
        self.log: list[tuple[int, bytes, bool]] = []

    def boot(self, hard_state: HardState, entries: Entries) -> None:
        """Put the beginning of one of the first members here."""
        self.hard_state = hard_state
        self.append(entries, len(entries.data))

    def open(self) -> Content | None:
        """Read everything at the start of the machine.

        Returns:
            What the snapshot contains; None if it is what such a snapshot contains anywhere.

        Raises:
            CorruptError: what is stored is damaged.
        """
        return None

    def take(self, other: Disk) -> None:
        """Hold what another holds."""
        self.hard_state = other.hard_state
        self.snapshot = other.snapshot
        self.first = other.first
        self.log = list(other.log)

    def lose_power(self) -> None:
        """Forget what is not durable; here `tear` and `store` did that already."""

    def rot(self) -> str:
        """Change bytes of the log or a snapshot; return where, or "" if none are stored."""
        return ""

    @property
    def last(self) -> int:
        """The index of the last entry."""
        return self.first + len(self.log) - 1

    def holds(self, index: int, term: int) -> bool:
        """Whether an entry is durable, itself or in a snapshot."""
        if index <= self.snapshot.index:
            return True
        return self.first <= index <= self.last and self.log[index - self.first][0] == term

    def store(self, ready: Ready) -> None:
        """Store a whole Ready."""
        if ready.snapshot is not None:
            self._install(ready.snapshot)
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.entries is not None:
            self.append(ready.entries, len(ready.entries.data))

    def tear(self, ready: Ready, rng: random.Random) -> None:
        """Store some beginning of a Ready: up to, and without, a drawn one of its steps."""
        steps: list[Callable[[], None]] = []
        snapshot, hard_state, entries = ready.snapshot, ready.hard_state, ready.entries
        if snapshot is not None:
            steps.append(lambda: self._install(snapshot))
        if hard_state is not None:
            steps.append(lambda: setattr(self, "hard_state", hard_state))
        if entries is not None:
            count = int(rng.random() * (len(entries.data) + 1))
            steps.append(lambda: self.append(entries, count))
        for step in steps[: int(rng.random() * (len(steps) + 1))]:
            step()

    def keep_snapshot(self, snapshot: Snapshot, start: int) -> None:
        """A snapshot was taken here; entries up to `start` go."""
        self.snapshot = snapshot
        dropped = start + 1 - self.first
        if dropped > 0:
            del self.log[:dropped]
            self.first += dropped

    def entries(self) -> Entries | None:
        """Return the stored entries, as a restart reads them."""
        if not self.log:
            return None
        runs: list[tuple[int, int]] = []
        changes: list[int] = []
        for index, (term, _, is_change) in enumerate(self.log, self.first):
            if not runs or runs[-1][1] != term:
                runs.append((index, term))
            if is_change:
                changes.append(index)
        return Entries(self.first, [each[1] for each in self.log], tuple(runs), tuple(changes))

    def _install(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.first = snapshot.index + 1
        self.log = []

    def append(self, entries: Entries, count: int) -> None:
        """Store the first so many of these; they replace what is at their places and after."""
        assert self.first <= entries.first <= self.last + 1, "a gap in what is to be stored"
        del self.log[entries.first - self.first :]
        for index, data in enumerate(entries.data[:count], entries.first):
            self.log.append((entries.term(index), data, index in entries.changes))
