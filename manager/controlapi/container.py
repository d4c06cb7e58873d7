"""The rules for what runs in a service's tasks: image, environment, mounts, health check. Pure.

Templates (`{{.Task.Slot}}`) are expanded with stand-in values first, so that a mistake in one is
told when the service is created and not on every node.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import signal

from manager.controlapi.names import check_image
from proto import gotemplate
from proto.errors import InvalidError
from proto.objects import (
    HEALTH_NS_MIN,
    ContainerSpec,
    DNSConfig,
    HealthConfig,
    Mount,
    ServiceSpec,
    Ulimit,
)

OOM_SCORE_MAX = 1_000
_HEALTH_TESTS = frozenset({"NONE", "CMD", "CMD-SHELL"})
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_PROPAGATIONS = frozenset({"", "private", "rprivate", "shared", "rshared", "slave", "rslave"})
_SIGNAL_MAX = 64
_REALTIME_SIGNAL = re.compile(r"RTM(?:IN(?:\+\d{1,2})?|AX(?:-\d{1,2})?)")


def check_container(spec: ServiceSpec) -> None:
    """Refuse a service whose container breaks a rule.

    Raises:
        InvalidError: with the value and the remedy.
    """
    container = spec.task.container
    check_image(container.image)
    templates = _Templates(spec)
    _check_environment(container, templates)
    _check_mounts(container.mounts, templates)
    _check_stop(container)
    if container.healthcheck is not None:
        _check_health(container.healthcheck)
    _check_dns(container.dns_config)
    for ulimit in container.ulimits:
        _check_ulimit(ulimit)
    if abs(container.oom_score_adj) > OOM_SCORE_MAX:
        raise InvalidError(
            f"OOM score adjustment is {container.oom_score_adj}: it must be -1000 to 1000"
        )
    _check_seccomp(container)
    if container.dir and not container.dir.startswith("/"):
        raise InvalidError(
            f"the working directory {container.dir!r} is invalid, it needs to be an absolute path"
        )


class _Templates:
    """Expands templates with stand-ins. Source of the fields: swarmkit template/context.go."""

    def __init__(self, spec: ServiceSpec) -> None:
        platform = gotemplate.Struct(OS="linux", Architecture="amd64")
        self._data = gotemplate.Struct(
            Service=gotemplate.Struct(ID="service", Name=spec.name, Labels=dict(spec.labels)),
            Node=gotemplate.Struct(ID="node", Hostname="hostname", Platform=platform),
            Task=gotemplate.Struct(ID="task", Name=f"{spec.name}.1.task", Slot="1"),
        )
        self._budget = gotemplate.Budget(gotemplate.SERVICE_STEPS_MAX)

    def expand(self, text: str, what: str) -> str:
        try:
            return gotemplate.expand(text, self._data, self._budget)
        except gotemplate.TemplateError as error:
            raise InvalidError(
                f"expanding the template of {what} failed: {error.message}"
            ) from error


def _check_environment(container: ContainerSpec, templates: _Templates) -> None:
    for entry in container.env:
        name = entry.partition("=")[0]
        # The value may be a secret of the user's: it is not repeated.
        if not name or "\0" in entry:
            raise InvalidError(
                f"invalid environment variable {name!r}: it needs a name, and no NUL in its value"
            )
        templates.expand(entry, f"environment variable {name!r}")
    templates.expand(container.hostname, "the hostname")


def _check_mounts(mounts: tuple[Mount, ...], templates: _Templates) -> None:
    targets: set[str] = set()
    for mount in mounts:
        target = templates.expand(mount.target, "a mount's target")
        if not target.startswith("/"):
            raise InvalidError(
                f"invalid mount target, must be an absolute path: {target!r}; begin it with /"
            )
        path = posixpath.normpath("/" + target.lstrip("/"))
        if path == "/":
            raise InvalidError(f"invalid mount target {target!r}: it cannot be the root directory")
        if path in targets:
            raise InvalidError(f"duplicate mount point: {path} is the target of two mounts")
        targets.add(path)
        _check_mount(mount, templates.expand(mount.source, "a mount's source"), templates)


def _check_mount(mount: Mount, source: str, templates: _Templates) -> None:
    match mount.type:
        case "bind":
            if not source.startswith("/"):
                raise InvalidError(
                    f"invalid mount source, must be an absolute path: {source!r}; "
                    "a bind mount takes a directory or file of the node"
                )
            if mount.bind_propagation not in _PROPAGATIONS:
                raise InvalidError(f"invalid bind propagation {mount.bind_propagation!r}")
        case "volume":
            if source and not _VOLUME_NAME.fullmatch(source):
                raise InvalidError(
                    f"invalid volume name {source!r}: use letters, digits, '_', '.' and '-', "
                    "at least two; for a directory of the node take type=bind"
                )
            _check_subpath(mount.volume_subpath)
            labels = (*mount.volume_labels.values(), *mount.volume_driver.options.values())
            for value in labels:
                templates.expand(value, f"volume {source!r}")
        case "tmpfs":
            if source:
                raise InvalidError(f"a tmpfs mount has no source, but {source!r} is given")
            if mount.tmpfs_size_bytes < 0 or mount.tmpfs_mode < 0:
                raise InvalidError(
                    f"size and mode of the tmpfs at {mount.target!r} cannot be negative"
                )


def _check_subpath(subpath: str) -> None:
    parts = subpath.split("/")
    if subpath.startswith("/") or ".." in parts:
        raise InvalidError(f"volume subpath {subpath!r} must stay inside of the volume")


def _check_stop(container: ContainerSpec) -> None:
    grace = container.stop_grace_period_ns
    if grace is not None and grace < 0:
        raise InvalidError(f"stop grace period is {grace} ns: it cannot be negative")
    text = container.stop_signal
    if not text:
        return
    name = text.upper().removeprefix("SIG")
    is_number = re.fullmatch(r"[0-9]{1,2}", text) and 1 <= int(text) <= _SIGNAL_MAX
    is_name = f"SIG{name}" in signal.Signals.__members__ or _REALTIME_SIGNAL.fullmatch(name)
    if not (is_number or is_name):
        raise InvalidError(f"invalid stop signal {text!r}: use for example SIGTERM or 15")


def _check_health(health: HealthConfig) -> None:
    for noun, value in (
        ("interval", health.interval_ns),
        ("timeout", health.timeout_ns),
        ("start period", health.start_period_ns),
        ("start interval", health.start_interval_ns),
    ):
        if value and value < HEALTH_NS_MIN:
            raise InvalidError(
                f"the health check's {noun} is {value} ns: it cannot be less than 1ms "
                "(0 means the default)"
            )
    if health.retries < 0:
        raise InvalidError(f"the health check's retries are {health.retries}: cannot be negative")
    if health.test and health.test[0] not in _HEALTH_TESTS:
        raise InvalidError(
            f"unknown kind of health check {health.test[0]!r}: it is NONE, CMD or CMD-SHELL"
        )
    if health.test and health.test[0] != "NONE" and len(health.test) == 1:
        raise InvalidError(f"the health check {health.test[0]} has no command")


def _check_dns(config: DNSConfig) -> None:
    for server in config.nameservers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise InvalidError(f"DNS server {server!r} is no IP address") from None


def _check_ulimit(ulimit: Ulimit) -> None:
    if not ulimit.name:
        raise InvalidError("a ulimit has no name: write for example nofile=1024:2048")
    if ulimit.soft < -1 or ulimit.hard < -1:
        raise InvalidError(f"ulimit {ulimit.name} cannot be negative (-1 means no limit)")
    if ulimit.hard != -1 and (ulimit.soft == -1 or ulimit.soft > ulimit.hard):
        raise InvalidError(
            f"ulimit {ulimit.name}: the soft limit {ulimit.soft} is above "
            f"the hard one {ulimit.hard}"
        )


def _check_seccomp(container: ContainerSpec) -> None:
    mode, profile = container.privileges.seccomp_mode, container.privileges.seccomp_profile
    if mode not in {"", "default", "unconfined", "custom"}:
        raise InvalidError(f"seccomp mode {mode!r} is not default, unconfined or custom")
    if (mode == "custom") != bool(profile):
        raise InvalidError("a seccomp profile and the seccomp mode custom go together; give both")
