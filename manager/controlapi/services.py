"""What a service becomes when it is created, updated or rolled back, and how its tasks count. Pure.

A service's `spec_version` names the version of its spec that its tasks shall have. It moves only
when the tasks must be replaced: when the task template or a published port changed. A change of
replicas, labels or the update's own settings leaves it, hence leaves the tasks alone.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from manager.controlapi.ports import allocate_ports
from manager.store import View
from proto.errors import ConflictError, NotImplementedYetError
from proto.ids import ServiceID
from proto.objects import (
    Endpoint,
    GlobalJobMode,
    GlobalMode,
    NodeState,
    ReplicatedJobMode,
    ReplicatedMode,
    Service,
    ServiceSpec,
    ServiceSpecVersion,
    Task,
    UpdateStatus,
    spec_version_id,
)
from proto.states import TaskState


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks a service has, wants, and has completed (of a job)."""

    running_tasks: int = 0
    desired_tasks: int = 0
    completed_tasks: int = 0


def created(view: View, service_id: ServiceID, spec: ServiceSpec, *, version: int) -> Service:
    """Return a new service; raises as `allocate_ports` does."""
    ports = allocate_ports(view, service_id, spec.endpoint)
    return Service(id=service_id, spec=spec, spec_version=version, endpoint=Endpoint(ports=ports))


def refuse_identity_change(old: ServiceSpec, new: ServiceSpec) -> None:
    """Refuse what makes another service: a new name or mode.

    Raises:
        NotImplementedYetError: because Docker answers 501 to both.
    """
    if new.name != old.name:
        raise NotImplementedYetError(
            f"renaming services is not supported: service {old.name} cannot become {new.name!r}"
        )
    if type(new.mode) is not type(old.mode):
        raise NotImplementedYetError(
            f"service mode change is not allowed: remove service {old.name} and create it again"
        )


def updated(view: View, service: Service, spec: ServiceSpec, *, version: int) -> Service:
    """Return the service with a new spec; raises as `allocate_ports` does.

    Args:
        view: the state, for the ports.
        service: as it is now.
        spec: the new one.
        version: the spec version to give if tasks have to be replaced.
    """
    ports = allocate_ports(view, service.id, spec.endpoint, service.endpoint.ports)
    is_same = spec.task == service.spec.task and set(ports) == set(service.endpoint.ports)
    return msgspec.structs.replace(
        service,
        spec=spec,
        spec_version=service.spec_version if is_same else version,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        endpoint=Endpoint(ports=ports),
        update_status=None,
    )


def rolled_back(view: View, service: Service, *, now: float) -> Service:
    """Return the service with its previous spec; the present one becomes the previous.

    Raises:
        ConflictError: there is none.
        InUseError: another service took a port meanwhile.
    """
    previous = service.previous_spec
    if previous is None:
        raise ConflictError(f"service {service.spec.name} does not have a previous spec")
    ports = allocate_ports(view, service.id, previous.endpoint, service.endpoint.ports)
    status = UpdateStatus(
        state="rollback_started", started_at=now, message="manually requested rollback"
    )
    return msgspec.structs.replace(
        service,
        spec=previous,
        spec_version=service.previous_spec_version,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        endpoint=Endpoint(ports=ports),
        update_status=status,
    )


def spec_version_of(service: Service) -> ServiceSpecVersion:
    """Return the row that tasks of the service's present spec name."""
    return ServiceSpecVersion(
        id=spec_version_id(service.id, service.spec_version),
        service_id=service.id,
        spec_version=service.spec_version,
        spec=service.spec,
    )


def status_of(view: View, service: Service) -> ServiceStatus:
    """Count a service's tasks; what runs on a node that is down, or is to stop, does not count."""
    tasks = list(view.tasks.find("service_id", service.id))
    running = sum(1 for task in tasks if _is_running(view, task))
    match service.spec.mode:
        case ReplicatedMode(replicas=replicas):
            return ServiceStatus(running_tasks=running, desired_tasks=replicas)
        case GlobalMode():
            desired = sum(1 for task in tasks if task.desired_state is TaskState.RUNNING)
            return ServiceStatus(running_tasks=running, desired_tasks=desired)
        case ReplicatedJobMode(max_concurrent=concurrent, total_completions=total):
            completed = _completed(tasks)
            desired = min(concurrent, max(total - completed, 0))
            return ServiceStatus(
                running_tasks=running, desired_tasks=desired, completed_tasks=completed
            )
        case GlobalJobMode():
            desired = sum(1 for task in tasks if task.desired_state is TaskState.COMPLETE)
            return ServiceStatus(
                running_tasks=running, desired_tasks=desired, completed_tasks=_completed(tasks)
            )
        case mode:
            assert_never(mode)


def _is_running(view: View, task: Task) -> bool:
    if task.status.state is not TaskState.RUNNING or task.desired_state > TaskState.COMPLETE:
        return False
    node = view.nodes.get(task.node_id)
    return node is not None and node.status.state is not NodeState.DOWN


def _completed(tasks: list[Task]) -> int:
    return sum(1 for task in tasks if task.status.state is TaskState.COMPLETE)
