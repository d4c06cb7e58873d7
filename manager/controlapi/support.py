"""What a specification may ask for that this version cannot do yet. Pure.

Such a wish is refused when a service is created or updated, with a sentence that names it; it is
never accepted and then ignored. As a part is built, its line here goes.
"""

from __future__ import annotations

from collections.abc import Iterator

from proto.errors import NotImplementedYetError
from proto.objects import (
    ClusterSpec,
    ContainerSpec,
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)

LOG_DRIVERS = ("json-file", "none")


def refuse_unsupported(spec: ServiceSpec) -> None:
    """Refuse a service that asks for what this version cannot do.

    Raises:
        NotImplementedYetError: with all of it in one sentence.
    """
    wishes = [*_mode(spec.mode), *_task(spec.task), *_container(spec.task.container)]
    if wishes:
        raise NotImplementedYetError(
            f"service {spec.name or '(unnamed)'} asks for what this version of swarmd cannot do "
            f"yet: {', '.join(wishes)}; leave it out"
        )


def refuse_unsupported_cluster(spec: ClusterSpec) -> None:
    """Refuse settings of a cluster that this version would ignore.

    Raises:
        NotImplementedYetError: with all of them in one sentence.
    """
    wishes = []
    if spec.task_log_driver is not None and spec.task_log_driver.name:
        wishes.append("a log driver for all tasks (set it for each service)")
    if wishes:
        raise NotImplementedYetError(
            f"the cluster's settings ask for what this version of swarmd cannot do yet: "
            f"{', '.join(wishes)}; leave it out"
        )


def _mode(mode: ServiceMode) -> Iterator[str]:
    match mode:
        case ReplicatedMode() | GlobalMode():
            return
        case ReplicatedJobMode():
            yield "mode replicated-job"
        case GlobalJobMode():
            yield "mode global-job"


def _task(task: TaskSpec) -> Iterator[str]:
    if task.runtime != "container":
        yield f"runtime {task.runtime}"
    if task.networks:
        yield f"networks ({', '.join(network.target for network in task.networks)})"
    if task.resources.limits.generic or task.resources.reservations.generic:
        yield "generic resources"
    driver = task.log_driver
    if driver is not None and driver.name and driver.name not in LOG_DRIVERS:
        yield f"log driver {driver.name} (there are {' and '.join(LOG_DRIVERS)})"


def _container(container: ContainerSpec) -> Iterator[str]:
    if container.secrets:
        yield f"secrets ({', '.join(secret.secret_name for secret in container.secrets)})"
    if container.configs:
        yield f"configs ({', '.join(config.config_name for config in container.configs)})"
    if container.isolation not in {"", "default"}:
        yield f"isolation {container.isolation} (it is for Windows)"
    privileges = container.privileges
    # Without a label or a profile of our own, "disable" and "default" are what happens anyway.
    if any(
        (
            privileges.selinux_user,
            privileges.selinux_role,
            privileges.selinux_type,
            privileges.selinux_level,
        )
    ):
        yield "an SELinux context"
    if privileges.apparmor_mode not in {"", "default", "disabled"}:
        yield f"AppArmor mode {privileges.apparmor_mode}"
    for mount in container.mounts:
        if mount.volume_driver.name not in {"", "local"}:
            yield f"volume driver {mount.volume_driver.name}"
