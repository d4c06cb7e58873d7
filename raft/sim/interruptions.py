"""Faults of processes and clocks: a process stops and goes on, a clock runs as it likes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raft.sim.host import Host

if TYPE_CHECKING:
    from raft.sim.world import World

# How often it is the leader's clock that is disturbed, and by which factor it may go at most.
_LEADER_CLOCK = 0.4
_CLOCK_SPEED_MAX = 4.0


class Interruptions:
    """The layer of faults that leave disks and links alone; see the module."""

    def __init__(self, world: World) -> None:
        """Act on this world."""
        self._world = world

    def _one(self) -> Host | None:
        return self._world.choose_host()

    def _leader(self) -> Host | None:
        leaders = self._world.leaders()
        return leaders[0] if leaders else None

    def pause_one(self) -> None:
        """Somebody's process stops for a while, then goes on where it was."""
        self._pause_host(self._one())

    def pause_leader(self) -> None:
        """The leader's does; the others may elect another meanwhile."""
        self._pause_host(self._leader())

    def _pause_host(self, host: Host | None) -> None:
        if host is not None:
            host.pause()
            time = 3.0 * self._world.election_time * self._world.random()
            self._world.after(time, self._go_on, host)

    def _go_on(self, host: Host) -> None:
        host.go_on()

    def disturb_clock(self) -> None:
        """A clock gets another speed; where nothing rests on it, any, or it stops or jumps."""
        world = self._world
        host = self._leader() if world.random() < _LEADER_CLOCK else self._one()
        if host is None:
            return
        if world.has_leases:
            host.tick_time = world.draw_tick_time()
            return
        kind = int(world.random() * 3)
        if kind == 0:
            host.tick_time = world.draw_tick_time() * _CLOCK_SPEED_MAX ** (2 * world.random() - 1)
        elif kind == 1:
            host.is_clock_stopped = True
            world.after(4.0 * world.election_time * world.random(), self._set_clock_right, host)
        elif not host.is_paused:
            host.tick(1 + int(world.random() * 3 * world.election_ticks))

    def _set_clock_right(self, host: Host) -> None:
        host.is_clock_stopped = False
        host.tick_time = self._world.draw_tick_time()
