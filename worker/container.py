"""Computes what a task's container shall be from its service's spec, its image and its node. Pure.

The rules are Docker's, so that a service behaves as it did there: how command and arguments meet
the image's entrypoint, whose variables win, what the labels and the name are. All that a spec may
get wrong on this node is an `InvalidError` with a sentence: the task is REJECTED with it.

Source: moby daemon/cluster/executor/container/container.go and daemon/commit.go (facts, not code).
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from proto import gotemplate
from proto.errors import InvalidError
from proto.ids import ContainerID, ImageID, NodeID, container_id_of
from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    Driver,
    GlobalJobMode,
    GlobalMode,
    Mount,
    Platform,
    ResourceRequirements,
)
from proto.text import quoted
from worker.api import Assignment
from worker.images.api import Image, ImageConfig
from worker.runtime.api import ContainerConfig, ContainerLimits, ContainerMount, LogConfig
from worker.task.events import Prepared
from worker.task.health import merged

GRACE_SECONDS_DEFAULT = 10.0
STOP_SIGNAL_DEFAULT = "SIGTERM"
# What `Prepared` is kept under; labels with this prefix are ours and not for users' eyes.
INTERNAL_LABEL_PREFIX = "swarm.worker."
PREPARED_LABEL = INTERNAL_LABEL_PREFIX + "prepared"
_SWARM_LABEL_PREFIX = "com.docker.swarm."

# Files of /proc that may be replaced, as tools do which show a container its own limits.
_PROC_TARGETS = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.IGNORECASE)
# json-file's options that change nothing in the lines which a reader gets.
_LOG_OPTIONS_WITHOUT_EFFECT = frozenset(
    {
        "compress",
        "env",
        "env-regex",
        "labels",
        "labels-regex",
        "max-buffer-size",
        "mode",
        "tag",
    }
)


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a template may say of the node."""

    id: NodeID
    hostname: str = ""
    platform: Platform = Platform()


class VolumeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that has to exist before the container; an anonymous one goes with it."""

    name: str
    is_anonymous: bool = False
    driver: str = ""
    options: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    subpath: str = ""
    is_copied_up: bool = True


class PlannedMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount with its templates expanded; `volume` tells where its source will come from."""

    mount: Mount
    volume: VolumeRequest | None = None


class VolumePath(msgspec.Struct, frozen=True, kw_only=True):
    """Where a requested volume is, and the directory that is kept beside it, out of sight."""

    path: str
    record: str


# --- names and templates --------------------------------------------------------------------


def slot_name(assignment: Assignment) -> str:
    """Return the slot number, or the node's ID where a service has one task per node."""
    task = assignment.task
    is_global = isinstance(assignment.spec.mode, GlobalMode | GlobalJobMode)
    return task.node_id if is_global else str(task.slot)


def task_name(assignment: Assignment) -> str:
    """Return `<service>.<slot>.<task id>`, the name of the task and of its container."""
    return f"{assignment.spec.name}.{slot_name(assignment)}.{assignment.task.id}"


class Templates:
    """Expands the Go templates that env values, hostname and mounts may contain.

    Source: swarmkit template/context.go (which fields there are).
    """

    def __init__(self, assignment: Assignment, node: NodeFacts) -> None:
        """Gather the values."""
        spec, task = assignment.spec, assignment.task
        # The manager expanded them with stand-ins, which may be shorter than what stands here.
        self._budget = gotemplate.Budget(2 * gotemplate.SERVICE_STEPS_MAX)
        self._data = gotemplate.Struct(
            Service=gotemplate.Struct(
                ID=str(task.service_id), Name=spec.name, Labels=dict(spec.labels)
            ),
            Node=gotemplate.Struct(
                ID=str(node.id),
                Hostname=node.hostname,
                Platform=gotemplate.Struct(
                    OS=node.platform.os, Architecture=node.platform.architecture
                ),
            ),
            Task=gotemplate.Struct(
                ID=str(task.id), Name=task_name(assignment), Slot=slot_name(assignment)
            ),
        )

    def expand(self, text: str) -> str:
        """Expand one value; a missing label prints `<no value>`, as in Go.

        Raises:
            InvalidError: it is no template, or names an unknown field.
        """
        return gotemplate.expand(text, self._data, self._budget)


# --- the parts ------------------------------------------------------------------------------


def argv_of(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """Combine command and arguments as Docker does.

    A command replaces the image's ENTRYPOINT and drops its CMD; arguments replace CMD alone. A
    command of one empty word means: no entrypoint, also not the image's.

    Raises:
        InvalidError: nothing is left to run.
    """
    if spec.command:
        command = () if spec.command == ("",) else spec.command
        argv = command + spec.args
    else:
        argv = image.entrypoint + (spec.args or image.cmd)
    if not argv:
        message = (
            f"no command specified: image {spec.image} names neither ENTRYPOINT nor CMD; "
            "give the service a command"
        )
        raise InvalidError(message)
    return argv


def env_of(spec: ContainerSpec, image: ImageConfig, templates: Templates) -> tuple[str, ...]:
    """Lay the spec's variables over the image's, each in its first place.

    A variable named without a value removes the image's and the runtime's own.
    """
    values: dict[str, str | None] = {}
    for entry in image.env:
        name, _, value = entry.partition("=")
        values[name] = value
    for entry in spec.env:
        name, separator, value = entry.partition("=")
        values[name] = templates.expand(value) if separator else None
    return tuple(name if value is None else f"{name}={value}" for name, value in values.items())


def labels_of(
    assignment: Assignment, image: ImageConfig, node: NodeFacts, prepared: Prepared
) -> dict[str, str]:
    """Return the image's labels, the spec's, then ours: later ones win."""
    task = assignment.task
    swarm = {
        "task": "",
        "task.id": task.id,
        "task.name": task_name(assignment),
        "node.id": node.id,
        "service.id": task.service_id,
        "service.name": assignment.spec.name,
    }
    return {
        **image.labels,
        **assignment.spec.task.container.labels,
        **{_SWARM_LABEL_PREFIX + key: value for key, value in swarm.items()},
        PREPARED_LABEL: prepared_label(prepared),
    }


def prepared_of(
    spec: ContainerSpec, image: ImageConfig, *, image_id: ImageID, address: str = ""
) -> Prepared:
    """Decide how the container will be stopped and checked."""
    grace_ns = spec.stop_grace_period_ns
    grace = GRACE_SECONDS_DEFAULT if grace_ns is None else grace_ns / NANOSECONDS
    return Prepared(
        image_id=image_id,
        stop_signal=spec.stop_signal or image.stop_signal or STOP_SIGNAL_DEFAULT,
        grace_seconds=grace,
        healthcheck=merged(spec.healthcheck, image.healthcheck),
        address=address,
    )


def prepared_label(prepared: Prepared) -> str:
    """Write `prepared` into a label, without the address."""
    return msgspec.json.encode(msgspec.structs.replace(prepared, address="")).decode()


def prepared_from(labels: Mapping[str, str], address: str) -> Prepared | None:
    """Read it back; None when the label is missing or not ours."""
    try:
        prepared = msgspec.json.decode(labels.get(PREPARED_LABEL, ""), type=Prepared)
    except msgspec.MsgspecError:
        return None
    return msgspec.structs.replace(prepared, address=address)


def limits_of(resources: ResourceRequirements) -> ContainerLimits:
    """Translate the limits; swap is asked beside memory and enforced together with it."""
    limits, swap = resources.limits, resources.swap_bytes
    if swap is not None and swap >= 0:
        swap += limits.memory_bytes
    return ContainerLimits(
        nano_cpus=limits.nano_cpus,
        memory_bytes=limits.memory_bytes,
        memory_reservation_bytes=resources.reservations.memory_bytes,
        swap_bytes=swap,
        memory_swappiness=resources.memory_swappiness,
        pids=limits.pids,
    )


def log_of(driver: Driver | None) -> LogConfig:
    """Translate the log driver and its options.

    Source: moby daemon/logger/jsonfilelog (sizes are decimal: 10m is 10,000,000 bytes).

    Raises:
        InvalidError: a driver or option that this node does not have.
    """
    if driver is None:
        return LogConfig()
    match driver.name:
        case "none":
            return LogConfig(driver="none")
        case "" | "json-file":
            return _json_file_of(driver.options)
        case unknown:
            message = (
                f'logging driver "{unknown}" is not available on this node; use json-file or none'
            )
            raise InvalidError(message)


def _json_file_of(options: Mapping[str, str]) -> LogConfig:
    for name in sorted(options.keys() - _LOG_OPTIONS_WITHOUT_EFFECT - {"max-size", "max-file"}):
        raise InvalidError(f"unknown log opt '{name}' for json-file log driver")
    max_size, max_file = options.get("max-size", ""), options.get("max-file", "")
    max_bytes = 0 if max_size in {"", "-1"} else size_bytes_of(max_size, "max-size")
    try:
        files_max = int(max_file or "1")
    except ValueError:
        files_max = 0
    if files_max < 1:
        raise InvalidError(f"log opt max-file: {max_file!r} is not a number from 1 on")
    if max_file and not max_bytes:
        raise InvalidError("log opt max-file has no meaning without max-size; give both")
    return LogConfig(max_bytes=max_bytes, files_max=files_max)


def size_bytes_of(text: str, option: str) -> int:
    """Read a size such as `10m` or `1.5g`, in powers of 1000.

    Raises:
        InvalidError: it is none, or not positive.
    """
    match = _SIZE.fullmatch(text)
    size = 0
    if match is not None:
        power = " kmgtp".index(match[2].lower() or " ")
        size = int(float(match[1]) * 1000**power)
    if size <= 0:
        raise InvalidError(f"log opt {option}: {text!r} is not a size; write for example 10m")
    return size


# --- mounts ---------------------------------------------------------------------------------


def anonymous_volume_name(container_id: ContainerID, target: str) -> str:
    """Derive 64 hex digits, so that a preparation which is repeated finds its volume again."""
    return hashlib.sha256(f"volume {container_id} {target}".encode()).hexdigest()


def planned_mounts(
    assignment: Assignment, image: ImageConfig, templates: Templates
) -> tuple[PlannedMount, ...]:
    """List the spec's mounts, then an anonymous volume for each VOLUME of the image left over.

    Raises:
        InvalidError: a relative path, a template that cannot be expanded, a target given twice.
    """
    container_id = container_id_of(assignment.task.id)
    planned: dict[str, PlannedMount] = {}
    for mount in assignment.spec.task.container.mounts:
        one = _planned(_expanded(mount, templates), container_id)
        if one.mount.target in planned:
            raise InvalidError(f"duplicate mount point: {one.mount.target}")
        planned[one.mount.target] = one
    for target in image.volumes:
        if target not in planned:
            planned[target] = _planned(Mount(type="volume", target=target), container_id)
    return tuple(planned.values())


def named_volumes(assignment: Assignment, templates: Templates) -> frozenset[str]:
    """Return the names of the volumes that the spec's mounts name."""
    names = set()
    for mount in assignment.spec.task.container.mounts:
        if mount.type == "volume" and mount.source:
            # A template that cannot be expanded makes no container, hence no volume.
            with contextlib.suppress(gotemplate.TemplateError):
                names.add(templates.expand(mount.source))
    return frozenset(names)


def _expanded(mount: Mount, templates: Templates) -> Mount:
    expand = templates.expand
    driver = mount.volume_driver
    return msgspec.structs.replace(
        mount,
        source=expand(mount.source),
        target=expand(mount.target),
        volume_labels={key: expand(value) for key, value in mount.volume_labels.items()},
        volume_driver=Driver(
            name=driver.name,
            options={key: expand(value) for key, value in driver.options.items()},
        ),
    )


def _planned(mount: Mount, container_id: ContainerID) -> PlannedMount:
    _check_target(mount)
    match mount.type:
        case "volume":
            request = VolumeRequest(
                name=mount.source or anonymous_volume_name(container_id, mount.target),
                is_anonymous=not mount.source,
                driver=mount.volume_driver.name,
                options=mount.volume_driver.options,
                labels=mount.volume_labels,
                subpath=mount.volume_subpath,
                is_copied_up=not mount.volume_no_copy,
            )
            return PlannedMount(mount=mount, volume=request)
        case "bind" if not mount.source.startswith("/"):
            message = f"invalid mount source, must be an absolute path: {mount.source!r}"
            raise InvalidError(message)
        case "bind" | "tmpfs":
            return PlannedMount(mount=mount)


def _check_target(mount: Mount) -> None:
    """Refuse a target that would hide the container's root or what the kernel says of it.

    Source: runc libcontainer/rootfs_linux.go (checkProcMount); an image's VOLUME is no exception.
    """
    if not mount.target.startswith("/"):
        shown = quoted(mount.target)
        raise InvalidError(f"invalid mount target, must be an absolute path: {shown}")
    path = posixpath.normpath("/" + mount.target.lstrip("/"))
    if path == "/":
        message = f"invalid mount target {quoted(mount.target)}: it cannot be the root directory"
        raise InvalidError(message)
    if path != "/proc" and not path.startswith("/proc/"):
        return
    is_kernels = path == posixpath.normpath(mount.source) or path in _PROC_TARGETS
    if mount.type != "bind" or not is_kernels:
        raise InvalidError(
            f"invalid mount target {quoted(mount.target)}: it is inside of /proc, where the kernel "
            "tells of the container's processes; mount it elsewhere"
        )


def container_mount(planned: PlannedMount, volume: VolumePath | None) -> ContainerMount:
    """Put the volume's path in, where there is one."""
    mount = planned.mount
    if planned.volume is not None:
        assert volume is not None
        is_copied = planned.volume.is_copied_up and not planned.volume.subpath
        return ContainerMount(
            type="bind",
            target=mount.target,
            source=volume.path,
            subpath=planned.volume.subpath,
            read_only=mount.read_only,
            fill_record=volume.record if is_copied else "",
        )
    if mount.type == "tmpfs":
        return ContainerMount(
            type="tmpfs",
            target=mount.target,
            read_only=mount.read_only,
            tmpfs_size_bytes=mount.tmpfs_size_bytes,
            tmpfs_mode=mount.tmpfs_mode or 0o1777,
        )
    return ContainerMount(
        type="bind",
        target=mount.target,
        source=mount.source,
        read_only=mount.read_only,
        propagation=mount.bind_propagation or "rprivate",
        is_recursive=not mount.bind_non_recursive,
        create_source=mount.bind_create_mountpoint,
    )


# --- the whole ------------------------------------------------------------------------------


def container_config(
    assignment: Assignment,
    image: Image,
    node: NodeFacts,
    prepared: Prepared,
    *,
    netns_path: str,
    mounts: tuple[ContainerMount, ...],
) -> ContainerConfig:
    """Put it all together.

    Raises:
        InvalidError: the spec asks for something that this node cannot give.
    """
    task, container = assignment.spec.task, assignment.spec.task.container
    templates = Templates(assignment, node)
    privileges, dns = container.privileges, container.dns_config
    return ContainerConfig(
        id=container_id_of(assignment.task.id),
        name=task_name(assignment),
        layers=image.layer_dirs,
        argv=argv_of(container, image.config),
        env=env_of(container, image.config, templates),
        working_dir=container.dir or image.config.working_dir,
        user=container.user or image.config.user,
        groups=container.groups,
        hostname=templates.expand(container.hostname),
        address=prepared.address,
        hosts=container.hosts,
        nameservers=dns.nameservers,
        search_domains=dns.search,
        dns_options=dns.options,
        netns_path=netns_path,
        mounts=mounts,
        limits=limits_of(task.resources),
        log=log_of(task.log_driver),
        tty=container.tty,
        open_stdin=container.open_stdin,
        read_only=container.read_only,
        init=bool(container.init),
        capability_add=container.capability_add,
        capability_drop=container.capability_drop,
        no_new_privileges=privileges.no_new_privileges,
        seccomp=_seccomp_mode(privileges.seccomp_mode),
        seccomp_profile=privileges.seccomp_profile,
        apparmor="unconfined" if privileges.apparmor_mode == "disabled" else "default",
        sysctls=container.sysctls,
        ulimits=tuple((u.name, u.soft, u.hard) for u in container.ulimits),
        oom_score_adj=container.oom_score_adj,
        labels=labels_of(assignment, image.config, node, prepared),
    )


def _seccomp_mode(mode: str) -> Literal["default", "unconfined", "custom"]:
    match mode:
        case "" | "default":
            return "default"
        case "unconfined":
            return "unconfined"
        case "custom":
            return "custom"
        case _:
            raise InvalidError(f"unknown seccomp mode {mode!r}: use default, unconfined or custom")
