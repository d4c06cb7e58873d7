"""A `ContainerConfig` and facts about the machine → the OCI `config.json`. Pure.

What Docker gives a container by default is given here: namespaces, mounts, devices, capabilities,
masked paths, environment. Nothing is looked up; what the config cannot tell comes as a fact.

Source: moby `daemon/pkg/oci/defaults.go`, `daemon/oci_linux.go`, `daemon/oci_opts.go`;
runtime-spec 1.0.2 `config.md`, `config-linux.md`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Literal

import msgspec

from worker.runtime import capabilities
from worker.runtime.api import ContainerConfig, ContainerLimits, ContainerMount
from worker.runtime.users import Identity

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_TARGET = "/sbin/docker-init"
CPU_PERIOD_MICROSECONDS = 100_000
# The kernel refuses smaller quotas (Documentation/scheduler/sched-bwc.rst).
CPU_QUOTA_MICROSECONDS_MIN = 1000
SHM_BYTES = 64 << 20
HOSTNAME_LENGTH = 12
PIDS_DEFAULT = 4_096

_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

# What systemd gives services, and Docker with it: programs that want more than the first raise it
# themselves, those that close or count all descriptors are spared a million, `select` stays right.
_FILES_SOFT, _FILES_HARD = 1_024, 524_288

# null, zero, full, random, urandom, tty, console, ptmx and the pseudo-terminals. Any
# device may be made (mknod) but not opened, as Docker has it.
_DEVICE_RULES: tuple[dict[str, object], ...] = (
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 8, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 9, "access": "rwm"},
    {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
    {"allow": True, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
    {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)

# Target, type, source, options.
_DEFAULT_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    (
        "/dev/shm",  # noqa: S108 -- the container's, made for it
        "tmpfs",
        "shm",
        ("nosuid", "noexec", "nodev", "mode=1777", f"size={SHM_BYTES}"),
    ),
)

# Both belong to the network namespace and make privileged ports and ping work without
# capabilities (moby#41030).
_NETWORK_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


class HostFacts(msgspec.Struct, frozen=True):
    """What the spec needs to know of the machine.

    Attributes:
        cgroup_version: 2 where /sys/fs/cgroup is the unified hierarchy, else 1.
        has_swap_limit: the memory controller can limit swap.
        capabilities: those that the daemon may hand on.
        architecture: Go's name of it.
        kernel: major and minor version.
        hostname: the machine's, for containers in the host's network.
        init_path: a static init program, "" if there is none.
        throttle_paths: where the machine's processors tell how hot they are: who may read that
            learns of what others compute.
        pids_default: processes of a container that asks for no limit; 0 gives it none.
        files_max: open files that the daemon may allow; None is any number.
        apparmor_profile: what confines containers, "" where the kernel has no AppArmor.
    """

    cgroup_version: Literal[1, 2]
    has_swap_limit: bool = True
    capabilities: tuple[str, ...] = capabilities.KERNEL
    architecture: str = "amd64"
    kernel: tuple[int, int] = (6, 1)
    hostname: str = "localhost"
    init_path: str = ""
    throttle_paths: tuple[str, ...] = ()
    pids_default: int = PIDS_DEFAULT
    files_max: int | None = None
    apparmor_profile: str = ""


class BundlePaths(msgspec.Struct, frozen=True):
    """Where the parts of the container are on the host."""

    rootfs: str
    hosts: str
    hostname: str
    resolv_conf: str
    cgroup: str


def hostname_of(config: ContainerConfig, facts: HostFacts) -> str:
    """Return the host name that the container sees."""
    if config.hostname:
        return config.hostname
    return config.id[:HOSTNAME_LENGTH] if config.netns_path else facts.hostname


def capabilities_of(config: ContainerConfig, facts: HostFacts) -> tuple[str, ...]:
    """Return the capabilities that the container has."""
    return capabilities.effective_set(
        config.capability_add, config.capability_drop, facts.capabilities
    )


def build(
    config: ContainerConfig,
    facts: HostFacts,
    paths: BundlePaths,
    identity: Identity,
    seccomp: msgspec.Raw | None,
) -> dict[str, object]:
    """Return the whole `config.json`."""
    result: dict[str, object] = {
        "ociVersion": "1.0.2",
        "process": process(config, facts, identity),
        "root": {"path": paths.rootfs, "readonly": config.read_only},
        "hostname": hostname_of(config, facts),
        "mounts": _mounts(config, facts, paths),
        "linux": _linux(config, facts, paths, seccomp),
    }
    return result


def process(config: ContainerConfig, facts: HostFacts, identity: Identity) -> dict[str, object]:
    """Return `process`; also used for commands run beside the main one."""
    owned = capabilities_of(config, facts)
    held: dict[str, object] = {"bounding": owned}
    if identity.uid == 0:
        # Others get none until they execute a set-user-ID program, as execve itself would do.
        held |= {"effective": owned, "permitted": owned}
    argv = config.argv
    if config.init:
        argv = (INIT_TARGET, "--", *argv)
    result: dict[str, object] = {
        "terminal": config.tty,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "additionalGids": identity.additional_gids,
            "umask": 0o022,
        },
        "args": argv,
        "env": environment(config, facts, identity),
        "cwd": config.working_dir or "/",
        "capabilities": held,
        "noNewPrivileges": config.no_new_privileges,
        "oomScoreAdj": config.oom_score_adj,
    }
    # Never the daemon's own: what a container may do must not depend on how that was started.
    hard = _FILES_HARD if facts.files_max is None else min(_FILES_HARD, facts.files_max)
    ulimits = {"nofile": (min(_FILES_SOFT, hard), hard)}
    ulimits |= {name.lower(): (soft, hard) for name, soft, hard in config.ulimits}
    result["rlimits"] = [
        {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard}
        for name, (soft, hard) in ulimits.items()
    ]
    if config.apparmor == "default" and facts.apparmor_profile:
        result["apparmorProfile"] = facts.apparmor_profile
    return result


def environment(config: ContainerConfig, facts: HostFacts, identity: Identity) -> tuple[str, ...]:
    """Merge Docker's defaults with the config's; an entry without `=` removes a default."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname_of(config, facts)}
    if config.tty:
        values["TERM"] = "xterm"
    for entry in config.env:
        name, equals, value = entry.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    values.setdefault("HOME", identity.home)
    return tuple(f"{name}={value}" for name, value in values.items())


def _mounts(
    config: ContainerConfig, facts: HostFacts, paths: BundlePaths
) -> list[dict[str, object]]:
    targets = {_clean(mount.target) for mount in config.mounts}
    result = [entry for entry in _default_mounts() if entry["destination"] not in targets]
    for target, source in (
        ("/etc/resolv.conf", paths.resolv_conf),
        ("/etc/hostname", paths.hostname),
        ("/etc/hosts", paths.hosts),
    ):
        if target not in targets:
            options = ["rbind", "rprivate"] + (["ro"] if config.read_only else [])
            result.append(_bind(target, source, options))
    if config.init:
        result.append(_bind(INIT_TARGET, facts.init_path, ["bind", "ro"]))
    # A mount below another must come after it.
    ordered = sorted(config.mounts, key=lambda mount: _clean(mount.target).count("/"))
    result.extend(_user_mount(mount) for mount in ordered)
    return result


def _clean(target: str) -> str:
    return posixpath.normpath("/" + target.lstrip("/"))


def _bind(target: str, source: str, options: Sequence[str]) -> dict[str, object]:
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _user_mount(mount: ContainerMount) -> dict[str, object]:
    if mount.type == "tmpfs":
        options = ["noexec", "nosuid", "nodev", mount.propagation, f"mode={mount.tmpfs_mode:o}"]
        if mount.tmpfs_size_bytes:
            options.append(f"size={mount.tmpfs_size_bytes}")
        if mount.read_only:
            options.append("ro")
        return {
            "destination": _clean(mount.target),
            "type": "tmpfs",
            "source": "tmpfs",
            "options": options,
        }
    options = ["rbind" if mount.is_recursive else "bind", mount.propagation]
    options.append("ro" if mount.read_only else "rw")
    return _bind(_clean(mount.target), mount.source, options)


def _default_mounts() -> list[dict[str, object]]:
    return [
        {"destination": target, "type": kind, "source": source, "options": options}
        for target, kind, source, options in _DEFAULT_MOUNTS
    ]


def _linux(
    config: ContainerConfig, facts: HostFacts, paths: BundlePaths, seccomp: msgspec.Raw | None
) -> dict[str, object]:
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    if config.netns_path:
        namespaces.append({"type": "network", "path": config.netns_path})
    if facts.cgroup_version == 2:  # noqa: PLR2004 -- the name of the version
        namespaces.append({"type": "cgroup"})
    sysctls = dict(_NETWORK_SYSCTLS) if config.netns_path else {}
    sysctls.update(config.sysctls)
    result: dict[str, object] = {
        "namespaces": namespaces,
        "cgroupsPath": paths.cgroup,
        "resources": resources(config.limits, facts),
        "maskedPaths": (*_MASKED_PATHS, *facts.throttle_paths),
        "readonlyPaths": _READ_ONLY_PATHS,
    }
    if sysctls:
        result["sysctl"] = sysctls
    if seccomp is not None:
        result["seccomp"] = seccomp
    return result


def resources(limits: ContainerLimits, facts: HostFacts) -> dict[str, object]:
    """Return `linux.resources`; the runtime writes them to either version's files.

    Swap limits that the machine cannot set are left out, and so is swappiness on version 2, which
    has none: Docker warns and goes on.
    """
    result: dict[str, object] = {"devices": _DEVICE_RULES}
    if limits.nano_cpus:
        quota = limits.nano_cpus * CPU_PERIOD_MICROSECONDS // 1_000_000_000
        result["cpu"] = {
            "period": CPU_PERIOD_MICROSECONDS,
            "quota": max(quota, CPU_QUOTA_MICROSECONDS_MIN),
        }
    memory: dict[str, int] = {}
    if limits.memory_bytes:
        memory["limit"] = limits.memory_bytes
    if limits.memory_reservation_bytes:
        memory["reservation"] = limits.memory_reservation_bytes
    if limits.swap_bytes is not None and facts.has_swap_limit:
        memory["swap"] = limits.swap_bytes
    if limits.memory_swappiness is not None and facts.cgroup_version == 1:
        memory["swappiness"] = limits.memory_swappiness
    if memory:
        result["memory"] = memory
    pids = limits.pids or facts.pids_default
    if pids > 0:
        result["pids"] = {"limit": pids}
    return result
