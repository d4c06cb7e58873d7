"""One node from a seed: a daemon that crashes, users, and a machine where things go wrong.

story     users, crashes and trouble, drawn from the seed; checks after every step
recovery  trouble ends, what cannot work is repaired; everything must settle in time
idleness  an hour in which nothing may be written and hardly anything may happen
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from manager.controlapi import Control
from proto.assignments import StatusUpdate
from proto.errors import SequenceConflictError, SwarmError
from proto.objects import NodeAvailability

from . import checks
from .host import NODE, Host, KilledError, installed
from .loop import VirtualLoop
from .machine import TRAPS
from .trace import SimulationError
from .user import is_troubled, made, repaired

STEPS_MIN, STEPS_MAX = 10, 25
RECOVERY_SECONDS_MAX = 900.0
CALM_SECONDS = 120.0
TRAP_SECONDS_MAX = 15.0
IDLE_SECONDS = 3600.0
# Turns of the loop in an idle hour; each health check of a task takes a few more.
IDLE_TURNS_MAX = 40
TURNS_PER_CHECK = 12
CHECKS_PER_HOUR = IDLE_SECONDS / 5.0
TRACE_LINES = 30


class Simulation(Host):
    """A host with a story."""

    # --- the story ---

    async def play(self) -> None:
        """Run the whole."""
        await self.found()
        await self.start()
        for _ in range(self.rng.randint(STEPS_MIN, STEPS_MAX)):
            await self._step()
            self.check()
        await self._recover()
        self.check()
        await self._idle()
        self.check()

    async def _step(self) -> None:
        kinds = {
            self._ask: 55,
            self._rest: 12,
            self._crash: 8,
            self._restart: 3,
            self._reboot: 2,
            self._lock_out: 2,
            self._fill_disk: 3,
            self._fail_disk: 2,
            self._slow_disk: 2,
            self._end_one: 8,
            self._report_late: 4,
        }
        step = self.rng.choices(tuple(kinds), tuple(kinds.values()))[0]
        await step()
        if self.rng.random() < 0.6:
            await asyncio.sleep(self.rng.choice((0.01, 1.0, 1.0, 10.0)) * self.rng.random())

    def _send(self) -> asyncio.Future[str]:
        name, operation = self.user.draw()
        request = asyncio.ensure_future(self.ask(name, operation))
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)
        return request

    async def _ask(self) -> None:
        request = self._send()
        if self.rng.random() < 0.7:
            await request

    async def _rest(self) -> None:
        await asyncio.sleep(self.rng.uniform(1.0, 40.0))

    async def _crash(self) -> None:
        if self.rng.random() < 0.5:
            await self._wait_for_trap()
        if self.rng.random() < 0.5:
            self._send()
        # Small steps, so that a crash often meets a transaction or an instruction half done.
        for _ in range(self.rng.randint(0, 60)):
            await asyncio.sleep(self.rng.choice((0.0, 0.0001, 0.001, 0.01)))
        self.kill(is_power_lost=self.rng.random() < 0.4)
        while self.rng.random() < 0.2:
            await self._start_and_die()
        if self.rng.random() < 0.3:
            self.note("the worker's database is lost")
            for path in sorted(self.config.worker_dir.glob("worker.db*")):
                path.unlink()
        await self._come_back()

    async def _wait_for_trap(self) -> None:
        """Wait until the daemon begins something with a container or the ports."""
        machine = self.machine
        machine.trapped.clear()
        machine.trap = self.rng.choice(TRAPS)
        try:
            async with asyncio.timeout(TRAP_SECONDS_MAX):
                await machine.trapped.wait()
        except TimeoutError:
            self.note("nothing is trapped", trap=machine.trap)
        else:
            await asyncio.sleep(self.rng.choice((0.0, 0.05, 0.2)) * self.rng.random())
        machine.trap = ""

    async def _start_and_die(self) -> None:
        """Let the daemon die while it starts, or a moment later."""
        starting = asyncio.ensure_future(self.start())
        for _ in range(self.rng.randint(0, 12)):
            await asyncio.sleep(self.rng.choice((0.0, 0.0001, 0.001)))
        self.kill(is_power_lost=self.rng.random() < 0.4)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    async def _reboot(self) -> None:
        self.kill(is_power_lost=True)
        self.note("reboot")
        self.machine.reboot()
        await self._come_back()

    async def _come_back(self) -> None:
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0.0, 30.0))
        await self.start()
        await self._unlock()

    async def _restart(self) -> None:
        await self.stop()
        await self._come_back()

    async def _lock_out(self) -> None:
        """Turn autolock on, restart, and let nobody unlock the manager for a while."""

        async def lock(control: Control) -> None:
            cluster = control.cluster()
            spec = msgspec.structs.replace(cluster.spec, auto_lock_managers=True)
            await control.update_cluster(cluster.version, spec)

        await self.ask("autolock on", lock)
        self.kill()
        await asyncio.sleep(self.rng.uniform(0.0, 5.0))
        await self.start()
        await asyncio.sleep(self.rng.uniform(0.0, 60.0))
        self._check_adopted()
        await self._unlock()

        async def unlock(control: Control) -> None:
            cluster = control.cluster()
            spec = msgspec.structs.replace(cluster.spec, auto_lock_managers=False)
            await control.update_cluster(cluster.version, spec)

        if self.rng.random() < 0.7:
            await self.ask("autolock off", unlock)

    async def _unlock(self) -> None:
        """Give the newest key that opens the manager."""
        node = self.node
        assert node is not None
        if node.state != "locked":
            return
        for key in reversed(self.unlock_keys):

            async def unlock(key: str = key) -> None:
                await node.swarm_unlock(key)

            try:
                await self.call(unlock)
            except SwarmError as error:
                self.note("unlock failed", error=error.message)
            else:
                self.note("unlocked")
                return
        self.violate("no key that was ever in force unlocks the manager")

    async def _fill_disk(self) -> None:
        room_bytes = self.rng.randint(0, 3000)
        self.note("disk full", room_bytes=room_bytes)
        self.disk.limit(room_bytes)
        for _ in range(self.rng.randint(1, 4)):
            await self._ask()
            await asyncio.sleep(self.rng.uniform(0.0, 5.0))
        if self.rng.random() < 0.3:
            self.kill(is_power_lost=self.rng.random() < 0.5)
            await self._come_back()
        self.note("disk has room")
        self.disk.limit(None)

    async def _fail_disk(self) -> None:
        """Let syncs fail: what was written may be there or not, the daemon has to look again."""
        self.note("disk fails")
        self.disk.fail(is_failing=True)
        for _ in range(self.rng.randint(1, 3)):
            await self._ask()
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
        self.note("disk works")
        self.disk.fail(is_failing=False)

    async def _slow_disk(self) -> None:
        self.disk.slow_seconds = self.rng.uniform(0.01, 2.0)
        for _ in range(self.rng.randint(1, 4)):
            await self._ask()
        self.disk.slow_seconds = 0.0

    async def _end_one(self) -> None:
        running = sorted(self.machine.runtime.running())
        if running:
            container_id = self.rng.choice(running)
            self.note("process ends", container=container_id[:12])
            self.machine.runtime.end(container_id, self.rng.choice((0, 1)))

    async def _report_late(self) -> None:
        """Let an old report of a task arrive once more."""
        if self.node is None or self.store is None:
            return
        tasks = [task for task in self.store.view().tasks if task.node_id]
        if not tasks:
            return
        task = self.rng.choice(sorted(tasks, key=lambda one: one.id))
        status = self.rng.choice(self.statuses.get(task.id, [task.status]))
        self.note("late report", task=task.id, state=status.state.name)
        node = self.node

        async def report() -> None:
            await node._dispatcher.update_statuses(NODE, [StatusUpdate(task.id, status)])

        try:
            await self.call(report)
        except (SwarmError, KilledError):
            self.note("late report is lost", task=task.id)

    # --- the end ---

    async def _recover(self) -> None:
        """End all trouble; everything has to settle."""
        self.note("recovery")
        self.disk.limit(None)
        self.machine.is_rough = False
        if self._requests:
            await asyncio.wait(self._requests)
        await self._unlock()
        await asyncio.sleep(30.0)  # old statuses and retries may still be under way
        assert self.store is not None
        await self._insist("make the node active", lambda c: made(c, NodeAvailability.ACTIVE))
        for service in sorted(self.store.view().services, key=lambda s: s.spec.name):
            if is_troubled(service) or self.rng.random() < 0.3:
                await self._insist(
                    f"repair {service.spec.name}", lambda c, s=service: repaired(c, s)
                )
        deadline = self.loop.time() + RECOVERY_SECONDS_MAX
        while wrong := self._unsettled():
            self.check()
            if self.loop.time() > deadline:
                self._show_state()
                raise SimulationError("it never settled: " + "; ".join(wrong))
            await asyncio.sleep(5.0)
        self.note("settled")
        await asyncio.sleep(CALM_SECONDS)
        wrong = self._unsettled()
        if wrong:
            self._show_state()
            raise SimulationError("it did not stay settled: " + "; ".join(wrong))

    async def _insist(self, name: str, operation: Callable[[Control], Awaitable[Any]]) -> None:
        """Repeat an operation that meets another change; everything else is a violation."""
        outcome = SequenceConflictError.__name__
        while outcome == SequenceConflictError.__name__:
            outcome = await self.ask(name, operation)
        if outcome != "done":
            self.violate(f"{name}: {outcome}")

    def _unsettled(self) -> list[str]:
        assert self.store is not None
        view = self.store.view()
        return checks.unsettled(view, self.ended) + checks.leftovers(view, self.machine)

    def _show_state(self) -> None:
        """Put the services and tasks into the trace, for whoever has to find out why."""
        assert self.store is not None
        view = self.store.view()
        for service in view.services:
            spec = service.spec
            self.note(
                "service",
                id=service.id,
                name=spec.name,
                mode=spec.mode,
                version=service.spec_version,
                status=service.update_status,
                asked=spec.endpoint.ports if spec.endpoint else (),
                ports=service.endpoint.ports,
                update=spec.update,
                rollback=spec.rollback,
                restart=spec.task.restart,
            )
        for task in sorted(view.tasks, key=lambda t: (t.service_id, t.slot, t.created_at)):
            self.note(
                "task",
                id=task.id,
                service=task.service_id,
                slot=task.slot,
                version=task.spec_version,
                desired=task.desired_state.name,
                state=task.status.state.name,
                err=task.status.err,
                running_at=task.status.running_at,
                created_at=task.created_at,
                not_before=task.not_before,
            )

    async def _idle(self) -> None:
        """Let an hour pass; nobody has anything to do."""
        assert self.store is not None
        before, operations = self.store.applied_index, self.disk.files.operations
        turns = self.loop.turns
        await asyncio.sleep(IDLE_SECONDS)
        view = self.store.view()
        if self.store.applied_index != before or self.disk.files.operations != operations:
            raise SimulationError("something was written in an idle hour")
        checked = sum(
            view.spec_versions.get(
                f"{t.service_id}.{t.spec_version}"
            ).spec.task.container.healthcheck
            is not None
            for t in view.tasks
        )
        allowed = IDLE_TURNS_MAX + checked * CHECKS_PER_HOUR * TURNS_PER_CHECK
        if self.loop.turns - turns > allowed:
            raise SimulationError(
                f"the loop turned {self.loop.turns - turns} times in an idle hour, "
                f"allowed are {allowed:.0f}"
            )
        stored = {t.id for t in view.tasks if t.node_id}
        held = {assignment.task.id for assignment, _ in self._database().load()}
        if stored != held:
            raise SimulationError(f"the worker's database differs by {stored ^ held}")


def simulate(
    seed: int, root: Path, play: Callable[[Simulation], Awaitable[None]] = Simulation.play
) -> Simulation:
    """Play a seed's story, or another, to its end.

    Raises:
        SimulationError: with the seed and the last lines of the trace.
    """
    loop = VirtualLoop()
    simulation = Simulation(seed, root, loop)

    async def main() -> None:
        try:
            await play(simulation)
        finally:
            if simulation.node is not None:
                simulation.kill()
            loop.bury()

    with installed(simulation):
        try:
            loop.run_until_complete(main())
        except Exception as error:
            message = simulation.story_of(seed, error, TRACE_LINES)
            raise SimulationError(message) from error
        finally:
            loop.close()
    return simulation
