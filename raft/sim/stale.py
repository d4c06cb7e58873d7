"""Faults after which a careless member would show an old state to a reader.

In each, somebody waits for answers while others go on without it, and answers to what it asked
earlier arrive when there is something newer to read.
"""

from __future__ import annotations

from raft.core import NOBODY
from raft.sim.faults import Faults
from raft.sim.host import Host

# The part of the answers to the leader that is late: few enough are not for it to lead on.
_ANSWERS_LATE = 0.8
# How often a leader that is cut off keeps a companion, and how often its clock stops altogether.
_COMPANIONS = 0.5
_CLOCK_STOPS = 0.75
# Else the clock is so much too slow.
_SLOWNESS = 4.0
# What a follower asks before it restarts, and how often it is asked for reads afterwards.
_READS_BEFORE = 4
_READS_AFTER = 8


class StaleReads(Faults):
    """The layer of faults that are about reads; see the module."""

    def lag_slow_leader(self) -> None:
        """Answers to the leader are late; then it is cut off, and its clock hardly goes.

        It goes on to lead, perhaps with one companion, while the others elect somebody else.
        """
        self.heal()
        leader = self._leader()
        if leader is not None:
            world = self._world
            world.network.laggard = leader.id
            world.network.laggard_late = _ANSWERS_LATE
            time = (0.2 + 0.6 * world.random()) * world.election_time
            world.after(time, self._slow_down, leader)

    def _slow_down(self, leader: Host) -> None:
        if self._is_over:
            return
        world = self._world
        if world.random() < _COMPANIONS:
            self._pair_off(leader)
        else:
            self.heal()
            self._isolate(leader)
        if world.random() < _CLOCK_STOPS:
            leader.is_clock_stopped = True
        else:
            leader.tick_time = _SLOWNESS * world.draw_tick_time()
        world.after(
            (3.0 + 2.0 * world.random()) * world.election_time, self._set_clock_right, leader
        )

    def blink_reader(self) -> None:
        """A follower asks for reads and restarts; cut off, it asks anew while old answers come."""
        self.heal()
        leader = self._leader()
        host = self._one()
        if leader is None or host is None or host is leader:
            return
        world = self._world
        world.network.laggard = host.id
        for _ in range(_READS_BEFORE):
            world.clients.doubt_one(host)
        world.after(2.0 + 3.0 * world.random(), self._blink, host)

    def _blink(self, host: Host) -> None:
        if self._is_over:
            return
        world = self._world
        host.crash()
        world.after(world.random(), world.revive, host)
        world.after((0.2 + 0.4 * world.random()) * world.election_time, self._cut_reader, host)

    def _cut_reader(self, host: Host) -> None:
        if self._is_over:
            return
        self.heal()
        self._isolate(host)
        for turn in range(_READS_AFTER):
            self._world.after(5.0 * turn, self._ask_reader, host)

    def _ask_reader(self, host: Host) -> None:
        """Write at the leader, and read at one that still follows it as far as it knows."""
        leader = self._leader()
        core = host.core
        if leader is not None and core is not None and core.leader not in (NOBODY, host.id):
            self._world.clients.compare(host, leader)
