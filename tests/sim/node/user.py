"""A user who does what users do, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import msgspec

from manager.controlapi import Control
from proto.errors import NotFoundError
from proto.ids import ServiceID
from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    EndpointSpec,
    HealthConfig,
    NodeAvailability,
    PortConfig,
    PortMode,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartCondition,
    RestartPolicy,
    Service,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)

from .machine import BAD_IMAGE, CRASHING_IMAGE, ENDING_IMAGE, FAR_IMAGE, GOOD_IMAGES

NAMES = ("api", "db", "queue", "web")
REPLICAS_MAX = 4

Operation = Callable[[Control], Awaitable[ServiceID | None]]


class User:
    """Draws operations. What is sent depends on what is there when it is sent."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._last = NAMES[0]

    def draw(self) -> tuple[str, Operation]:  # noqa: PLR0911 -- a table
        """Return the next operation and what it is called."""
        rng = self._rng
        # Users come back to what they have just changed.
        name = self._last = rng.choice(NAMES) if rng.random() < 0.5 else self._last
        kind = rng.choices(
            (
                "create",
                "scale",
                "image",
                "bad image",
                "other",
                "rollback",
                "remove",
                "cluster",
                "node",
            ),
            (6, 5, 4, 2, 5, 2, 2, 1, 1),
        )[0]
        match kind:
            case "create":
                spec = self._spec(name)
                return f"create {name}", lambda control: _created(control, spec)
            case "scale":
                mode = ReplicatedMode(replicas=rng.randint(0, REPLICAS_MAX))
                text = f"scale {name} to {mode.replicas}"
                return text, lambda control: changed(control, name, lambda s: _with(s, mode=mode))
            case "image" | "bad image":
                bad = (BAD_IMAGE, CRASHING_IMAGE, ENDING_IMAGE)
                image = rng.choice((*GOOD_IMAGES, FAR_IMAGE) if kind == "image" else bad)
                text = f"update {name} to {image}"
                return text, lambda control: changed(control, name, lambda s: with_image(s, image))
            case "other":
                spec = self._spec(name)
                parts = rng.sample(("env", "restart", "update", "endpoint", "resources"), 2)
                text = f"update {name}: {' and '.join(sorted(parts))}"
                return text, lambda control: changed(
                    control, name, lambda s: _merged(s, spec, parts)
                )
            case "rollback":
                return f"roll {name} back", lambda control: _rolled_back(control, name)
            case "remove":
                return f"remove {name}", lambda control: control.remove_service(name)
            case "node":
                wish = rng.choice(tuple(NodeAvailability))
                return f"node {wish.name}", lambda control: made(control, wish)
            case _:
                limit, interval = rng.randint(0, 5), rng.choice((10, 50, 10_000))
                text = f"history limit {limit}, snapshot each {interval}"
                return text, lambda control: _limited(control, limit, interval)

    def _spec(self, name: str) -> ServiceSpec:
        rng = self._rng
        health = HealthConfig(
            test=("CMD", "true"), interval_ns=5 * NANOSECONDS, timeout_ns=NANOSECONDS, retries=2
        )
        return ServiceSpec(
            name=name,
            mode=ReplicatedMode(replicas=rng.randint(0, REPLICAS_MAX)),
            task=TaskSpec(
                container=ContainerSpec(
                    image=rng.choice(GOOD_IMAGES),
                    env=(f"A={rng.randint(0, 3)}",),
                    stop_grace_period_ns=rng.choice((None, NANOSECONDS, 5 * NANOSECONDS)),
                    healthcheck=health if rng.random() < 0.15 else None,
                ),
                restart=RestartPolicy(
                    condition=rng.choices(tuple(RestartCondition), (1, 2, 4))[0],
                    delay_ns=rng.choice((0, NANOSECONDS, 5 * NANOSECONDS)),
                    max_attempts=rng.choice((0, 0, 1, 3)),
                    window_ns=rng.choice((0, 0, 20 * NANOSECONDS)),
                ),
                resources=ResourceRequirements(
                    reservations=Resources(
                        nano_cpus=rng.choice((0, 0, NANOSECONDS // 2, NANOSECONDS))
                    )
                ),
            ),
            update=self._update("pause", "continue", "rollback"),
            rollback=self._update("pause", "continue") if rng.random() < 0.5 else None,
            endpoint=EndpointSpec(ports=self._ports(name)),
        )

    def _update(self, *actions: str) -> UpdateConfig:
        rng = self._rng
        return UpdateConfig(
            parallelism=rng.choice((0, 1, 1, 2)),
            delay_ns=rng.choice((0, 0, 2 * NANOSECONDS)),
            failure_action=rng.choice(actions),
            monitor_ns=rng.choice((0, NANOSECONDS, 5 * NANOSECONDS)),
            max_failure_ratio=rng.choice((0.0, 0.0, 0.5)),
            order=rng.choice(("stop-first", "stop-first", "start-first")),
        )

    def _ports(self, name: str) -> tuple[PortConfig, ...]:
        rng = self._rng
        draw = rng.random()
        if draw < 0.4:
            return ()
        if draw < 0.55:
            return (PortConfig(target_port=80, publish_mode=PortMode.HOST),)
        fixed = 8080 + NAMES.index(name)
        return (
            PortConfig(
                target_port=rng.choice((80, 8080)), published_port=rng.choice((0, fixed, fixed))
            ),
        )


def _with(spec: ServiceSpec, **changes: object) -> ServiceSpec:
    return msgspec.structs.replace(spec, **changes)


def with_image(spec: ServiceSpec, image: str) -> ServiceSpec:
    """Change the image."""
    container = msgspec.structs.replace(spec.task.container, image=image)
    return _with(spec, task=msgspec.structs.replace(spec.task, container=container))


def _merged(spec: ServiceSpec, other: ServiceSpec, parts: list[str]) -> ServiceSpec:
    """Take some parts of another spec."""
    task = spec.task
    if "env" in parts:
        container = msgspec.structs.replace(task.container, env=other.task.container.env)
        task = msgspec.structs.replace(task, container=container)
    if "restart" in parts:
        task = msgspec.structs.replace(task, restart=other.task.restart)
    if "resources" in parts:
        task = msgspec.structs.replace(task, resources=other.task.resources)
    return _with(
        spec,
        task=task,
        update=other.update if "update" in parts else spec.update,
        rollback=other.rollback if "update" in parts else spec.rollback,
        endpoint=other.endpoint if "endpoint" in parts else spec.endpoint,
    )


async def _created(control: Control, spec: ServiceSpec) -> ServiceID:
    return await control.create_service(spec)


async def changed(
    control: Control, name: str, change: Callable[[ServiceSpec], ServiceSpec]
) -> None:
    """Change a service's spec; see that what was acknowledged is there."""
    service = control.service(name)
    spec = change(service.spec)
    await control.update_service(name, service.version, spec)
    assert _is_kept(control, service, spec), "the new spec"


def _is_kept(control: Control, before: Service, spec: ServiceSpec) -> bool:
    """Tell whether an acknowledged spec is there, unless somebody changed the service since."""
    try:
        after = control.service(before.id)
    except NotFoundError:
        return True
    is_rolled_back = after.update_status is not None and "rollback" in after.update_status.state
    return after.spec == spec or is_rolled_back or after.version > before.version + 1


async def _rolled_back(control: Control, name: str) -> None:
    service = control.service(name)
    await control.update_service(name, service.version, service.spec, rollback="previous")


async def _limited(control: Control, limit: int, interval: int) -> None:
    cluster = control.cluster()
    spec = msgspec.structs.replace(
        cluster.spec, task_history_retention_limit=limit, raft_snapshot_interval=interval
    )
    await control.update_cluster(cluster.version, spec)


async def made(control: Control, availability: NodeAvailability) -> None:
    """Make the node available, or not."""
    (node,) = control.nodes()
    spec = msgspec.structs.replace(node.spec, availability=availability)
    await control.update_node(node.id, node.version, spec)


def is_troubled(service: Service) -> bool:
    """Tell whether a service may be unable to run as it is, now or after a roll-back."""
    specs = [service.spec] + ([service.previous_spec] if service.previous_spec else [])
    images = {spec.task.container.image for spec in specs}
    return bool(images & {BAD_IMAGE, CRASHING_IMAGE, ENDING_IMAGE})


async def repaired(control: Control, service: Service) -> None:
    """Give a service an image that works and force an update."""
    spec = with_image(service.spec, GOOD_IMAGES[0])
    task = msgspec.structs.replace(spec.task, force_update=spec.task.force_update + 1)
    update = UpdateConfig(failure_action="continue", parallelism=0)
    await control.update_service(
        service.id, control.service(service.id).version, _with(spec, task=task, update=update)
    )
