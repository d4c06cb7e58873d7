"""The leader's loop: wakes on events, runs a step for every service concerned, writes the plans.

The shell around `step`: it decides nothing about services. Events only say which services to look
at; the view decides. Plans are made on the store's head, hence on what they will be written upon:
on the committed state a change of somebody else on its way to the disk would refuse them, again
and again until it is there. A plan's transaction first compares every object with what the plan
was made from: where the store has moved on since, the plan is dropped and the service looked at
again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from functools import partial
from typing import Protocol

import msgspec
import structlog

from manager.orchestrator.nodes import Nodes
from manager.orchestrator.plan import ServicePlan, ServiceState
from manager.orchestrator.step import step
from manager.orchestrator.update import rollback_refused
from manager.store.store import Store
from manager.store.tables import View
from manager.store.transaction import Transaction
from manager.store.watch import Change, Event, Resync, Watch
from proto.clock import Clock
from proto.errors import InUseError, ResourceExhaustedError, SwarmError
from proto.ids import NodeID, ServiceID
from proto.objects import (
    Cluster,
    Endpoint,
    EndpointSpec,
    GlobalMode,
    Node,
    PortConfig,
    Service,
    ServiceSpecVersion,
    Task,
    spec_version_id,
)
from scheduler import Needs, Usage, needs_of

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# A step may write at most this many changes in one transaction, so that no entry is huge.
CHANGES_MAX = 200
HISTORY_LIMIT_DEFAULT = 5
# After a refused write (a full disk) the loop waits this long before it looks again.
RETRY_SECONDS = 1.0


class PortAllocation(Protocol):
    """Gives published ports their numbers, as the control API does."""

    def __call__(
        self,
        view: View,
        service_id: ServiceID,
        spec: EndpointSpec | None,
        old: tuple[PortConfig, ...] = ...,
    ) -> tuple[PortConfig, ...]:
        """Return the ports with their numbers.

        Raises:
            InUseError, ResourceExhaustedError: a port cannot be had.
        """


class Orchestrator:
    """Runs steps for as long as this manager leads."""

    def __init__(
        self, store: Store, *, clock: Clock, rng: random.Random, allocate_ports: PortAllocation
    ) -> None:
        """Keep what steps are given; `allocate_ports` serves services that are rolled back."""
        self._store = store
        self._allocate_ports = allocate_ports
        self._clock = clock
        self._rng = rng
        self._dirty: dict[ServiceID, None] = {}
        self._wakes: dict[ServiceID, float] = {}
        self._short: dict[ServiceID, None] = {}
        self._global: dict[ServiceID, None] = {}
        self._usage: Usage | None = None
        self._nodes: tuple[object, Nodes] | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        async with self._store.watch(Service, Task, Node, Cluster) as watch:
            self._start_over(watch.view)
            while True:
                try:
                    await self._work(watch)
                except SwarmError as error:
                    log.warning("orchestrator_write_failed", error=error.message)
                    self._mark_all(self._store.view())
                    await asyncio.sleep(RETRY_SECONDS)
                await self._wait(watch)

    async def _wait(self, watch: Watch) -> None:
        """Take the events that came, waiting for the first until a wake-up is due."""
        if not self._dirty:
            try:
                async with asyncio.timeout(self._seconds_to_wake()):
                    for event in await anext(watch):
                        self._take(event)
            except TimeoutError:
                return
        self._take_all(watch)

    def _take_all(self, watch: Watch) -> None:
        for event in watch.drain():
            self._take(event)

    def _seconds_to_wake(self) -> float | None:
        if not self._wakes:
            return None
        return max(min(self._wakes.values()) - self._clock.wall(), 0.0)

    def _start_over(self, view: View) -> None:
        """Forget what was derived and derive it from a view."""
        self._usage = Usage(view.tasks, lambda task: _needs(self._store.head(), task))
        self._global = {
            service.id: None
            for service in sorted(view.services, key=lambda service: service.id)
            if isinstance(service.spec.mode, GlobalMode)
        }
        self._mark_all(view)

    def _mark_all(self, view: View) -> None:
        marked = {service.id for service in view.services}
        marked |= {task.service_id for task in view.tasks}
        # A removed service without tasks may have left specs when the manager stopped.
        marked |= {row.service_id for row in view.spec_versions}
        # In an order that depends on nothing else, so that what was drawn can be drawn again.
        for service_id in sorted(marked):
            self._dirty[service_id] = None

    def _take(self, event: Event | Resync) -> None:
        if isinstance(event, Resync):
            self._start_over(event.view)
            return
        changed = event.new or event.old
        match changed:
            case Task():
                self._take_task(event)
            case Service():
                self._dirty[changed.id] = None
                # A service's mode never changes.
                if event.new is None:
                    self._global.pop(changed.id, None)
                elif isinstance(changed.spec.mode, GlobalMode):
                    self._global[changed.id] = None
            case Node():
                if _matters(event):
                    self._mark_concerned(changed.id)
            case Cluster():
                if _matters(event):
                    self._mark_all(self._store.view())
            case _:
                pass

    def _take_task(self, event: Change) -> None:
        """Count a task's change; what it frees is for those that wait."""
        assert self._usage is not None
        old, new = event.old, event.new
        assert old is None or isinstance(old, Task)
        assert new is None or isinstance(new, Task)
        changed = new or old
        assert changed is not None
        if self._usage.apply(old, new):
            self._dirty.update(self._short)
        self._dirty[changed.service_id] = None

    def _mark_concerned(self, node_id: NodeID) -> None:
        """Mark whom a change of a node concerns.

        Those with a task there, those with a task that waits, and those that are everywhere.
        """
        marked = {task.service_id for task in self._store.head().tasks.find("node_id", node_id)}
        for service_id in (*sorted(marked), *self._short, *self._global):
            self._dirty[service_id] = None

    async def _work(self, watch: Watch) -> None:
        """Step every service that is due."""
        now = self._clock.wall()
        for service_id, at in list(self._wakes.items()):
            if at <= now:
                self._dirty[service_id] = None
        while self._dirty:
            service_id = next(iter(self._dirty))
            del self._dirty[service_id]
            self._wakes.pop(service_id, None)
            # What the step before has placed must count in the usage of this one.
            self._take_all(watch)
            await self._step(service_id)
            # A step of a big service takes milliseconds; the API must get its turn between two.
            await asyncio.sleep(0)

    async def _step(self, service_id: ServiceID) -> None:
        assert self._usage is not None
        view = self._store.head()
        plan = step(
            state_of(view, service_id),
            nodes=self._nodes_of(view),
            usage=self._usage,
            history_limit=_history_limit(view),
            now=self._clock.wall(),
            rng=self._rng,
        )
        if plan.wake_at is not None:
            self._wakes[service_id] = plan.wake_at
        self._short.pop(service_id, None)
        if plan.is_short:
            self._short[service_id] = None
        for part in split(plan):
            apply = partial(write, plan=part, allocate_ports=self._allocate_ports)
            if not await self._store.update_without_barrier(apply):
                log.debug("plan_dropped", service_id=service_id)
                self._dirty[service_id] = None
                return
            _log_plan(service_id, part)
        if plan.is_partial:
            self._dirty[service_id] = None
        await self._prune_specs(service_id)

    def _nodes_of(self, view: View) -> Nodes:
        """Return the nodes of a view, sorted out; anew only when one has changed."""
        if self._nodes is None or self._nodes[0] is not view.nodes:
            self._nodes = (view.nodes, Nodes(view.nodes))
        return self._nodes[1]

    async def _prune_specs(self, service_id: ServiceID) -> None:
        """Drop the versions of a spec that neither the service nor a task names."""
        if unused_specs(self._store.head(), service_id):
            await self._store.update_without_barrier(lambda tx: _delete_specs(tx, service_id))


def _log_plan(service_id: ServiceID, plan: ServicePlan) -> None:
    for task in plan.created:
        log.info(
            "task_created",
            task_id=task.id,
            service_id=service_id,
            slot=task.slot,
            node_id=task.node_id,
            reason=task.status.err,
        )
    for old, new in plan.updated:
        if old.desired_state is not new.desired_state:
            log.info(
                "task_desired_state_raised",
                task_id=new.id,
                service_id=service_id,
                desired_state=new.desired_state.name,
            )


def state_of(view: View, service_id: ServiceID) -> ServiceState:
    """Collect what a step needs of one service."""
    return ServiceState(
        service_id=service_id,
        service=view.services.get(service_id),
        tasks=tuple(view.tasks.find("service_id", service_id)),
        specs={
            row.spec_version: row.spec for row in view.spec_versions.find("service_id", service_id)
        },
    )


def split(plan: ServicePlan) -> Iterable[ServicePlan]:
    """Cut a plan into parts of at most `CHANGES_MAX` changes; the service's own change goes last.

    Deletions come first: they need nothing. A part may be written though a later one is dropped:
    every part leaves a state that the next pass continues from.
    """
    changes: list[tuple[str, object]] = [
        *(("deleted", task) for task in plan.deleted),
        *(("updated", pair) for pair in plan.updated),
        *(("created", task) for task in plan.created),
    ]
    if plan.service is not None:
        changes.append(("service", plan.service))
    for start in range(0, len(changes), CHANGES_MAX):
        part: dict[str, list[object]] = {"deleted": [], "updated": [], "created": [], "service": []}
        for kind, change in changes[start : start + CHANGES_MAX]:
            part[kind].append(change)
        yield ServicePlan(
            created=tuple(part["created"]),  # type: ignore[arg-type]
            updated=tuple(part["updated"]),  # type: ignore[arg-type]
            deleted=tuple(part["deleted"]),  # type: ignore[arg-type]
            service=part["service"][0] if part["service"] else None,  # type: ignore[arg-type]
        )


def write(tx: Transaction, plan: ServicePlan, *, allocate_ports: PortAllocation) -> bool:
    """Write a plan unless something of it changed meanwhile; tell whether it was written."""
    if not _is_current(tx, plan):
        return False
    for task in plan.deleted:
        tx.delete(Task, task.id)
    for _, new in plan.updated:
        tx.update(new)
    for task in plan.created:
        tx.create(task)
    if plan.service is not None:
        _write_service(tx, _with_ports(tx, plan.service, allocate_ports))
    return True


def _is_current(tx: Transaction, plan: ServicePlan) -> bool:
    """Tell whether everything that the plan was made from is still as it was."""
    for old in (*plan.deleted, *(old for old, _ in plan.updated)):
        stored = tx.tasks.get(old.id)
        if stored is None or stored.version != old.version:
            return False
    for task in plan.created:
        service = tx.services.get(task.service_id)
        if service is None or service.spec_version != task.spec_version:
            return False
    if plan.service is None:
        return True
    stored_service = tx.services.get(plan.service.id)
    return stored_service is not None and stored_service.version == plan.service.version


def _with_ports(tx: Transaction, service: Service, allocate_ports: PortAllocation) -> Service:
    """Give a service that goes back to its former spec the ports of that spec.

    Another service may have taken one meanwhile: then the update stays paused and says so.
    """
    stored = tx.services.get(service.id)
    assert stored is not None
    if service.spec.endpoint == stored.spec.endpoint:
        return service
    try:
        ports = allocate_ports(tx, service.id, service.spec.endpoint, stored.endpoint.ports)
    except (InUseError, ResourceExhaustedError) as error:
        return rollback_refused(stored, error.message)
    return msgspec.structs.replace(service, endpoint=Endpoint(ports=ports))


def _write_service(tx: Transaction, service: Service) -> None:
    """Write a service; the row of a spec it went back to is made again if it was pruned."""
    tx.update(service)
    row_id = spec_version_id(service.id, service.spec_version)
    if tx.spec_versions.get(row_id) is None:
        tx.create(
            ServiceSpecVersion(
                id=row_id,
                service_id=service.id,
                spec_version=service.spec_version,
                spec=service.spec,
            )
        )


def unused_specs(view: View | Transaction, service_id: ServiceID) -> list[ServiceSpecVersion]:
    """List the spec versions of a service that nothing names any more."""
    rows = list(view.spec_versions.find("service_id", service_id))
    service = view.services.get(service_id)
    named = {service.spec_version} if service is not None else set()
    candidates = [row for row in rows if row.spec_version not in named]
    return [
        row
        for row in candidates
        if not view.tasks.count("spec_version", spec_version_id(service_id, row.spec_version))
    ]


def _delete_specs(tx: Transaction, service_id: ServiceID) -> None:
    for row in unused_specs(tx, service_id):
        tx.delete(ServiceSpecVersion, row.id)


def _needs(view: View, task: Task) -> Needs:
    row = view.spec_versions.get(spec_version_id(task.service_id, task.spec_version))
    return needs_of(row.spec) if row is not None else Needs()


def _history_limit(view: View) -> int:
    for cluster in view.clusters:
        return cluster.spec.task_history_retention_limit
    return HISTORY_LIMIT_DEFAULT


def _matters(event: Change) -> bool:
    """Tell whether a change of a node or of the cluster may change a plan."""
    old, new = event.old, event.new
    if isinstance(old, Node) and isinstance(new, Node):
        return _traits(old) != _traits(new)
    if isinstance(old, Cluster) and isinstance(new, Cluster):
        limits = [cluster.spec.task_history_retention_limit for cluster in (old, new)]
        return limits[0] != limits[1]
    return True


def _traits(node: Node) -> tuple[object, ...]:
    """Return what of a node decides whether tasks go or stay there."""
    return (node.spec, node.status.state, node.status.addr, node.description, node.role)
