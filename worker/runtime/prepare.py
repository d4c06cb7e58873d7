"""What is laid on disk before the runtime is called: root, bundle, the files around it. Blocks.

Runs in a thread. The steps are in `STEPS`' order so that a crash after any of them leaves only
what `removal.destroy` undoes; nothing here cleans up after itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from proto.errors import RuntimeFailedError
from worker.runtime import binds, network_files, rootfs, seccomp, spec, users
from worker.runtime.api import ContainerConfig
from worker.runtime.directory import ContainerDirectory
from worker.runtime.filters import FilterCache
from worker.runtime.users import Identity

_HOST_HOSTS = Path("/etc/hosts")
_HOST_RESOLV_CONF = Path("/etc/resolv.conf")
# The servers behind systemd-resolved's local stub.
_STUB_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")


class Preparation:
    """Prepares one container; `after_step` is called with each step's name (tests crash there)."""

    def __init__(
        self,
        config: ContainerConfig,
        facts: spec.HostFacts,
        directory: ContainerDirectory,
        *,
        cgroup: str,
        filters: FilterCache,
        after_step: Callable[[str], None],
    ) -> None:
        self._config = config
        self._facts = facts
        self._directory = directory
        self._cgroup = cgroup
        self._filters = filters
        self._after_step = after_step
        self._seccomp: msgspec.Raw | None = None

    def run(self) -> None:
        """Do all steps.

        Raises:
            SwarmError: something the config names does not exist or is refused.
            OSError: the disk.
        """
        directory = self._directory.path
        check_sources(self._config, self._facts)
        making = self._directory.making
        making.mkdir(parents=True, exist_ok=True)
        self._after_step("directory")
        (making / "container.json").write_bytes(msgspec.json.encode(self._config))
        making.rename(directory)
        self._after_step("config")
        rootfs.mount(self._config.layers, directory)
        self._after_step("mount")
        with rootfs.opened(directory) as root_fd:
            identity = identify(self._config, root_fd)
            rootfs.ensure_directory(root_fd, self._config.working_dir)
            for mount in self._config.mounts:
                if mount.fill_record:
                    rootfs.fill_volume(root_fd, mount, self._after_step)
        self._after_step("content")
        mounts = binds.pin(self._config.mounts, directory)
        self._after_step("binds")
        self._write_files()
        self._after_step("files")
        self._seccomp = seccomp_of(self._config, self._facts)
        document = spec.build(
            msgspec.structs.replace(self._config, mounts=tuple(mounts)),
            self._facts,
            spec.BundlePaths(
                rootfs=str(directory / "rootfs"),
                hosts=str(directory / "hosts"),
                hostname=str(directory / "hostname"),
                resolv_conf=str(directory / "resolv.conf"),
                cgroup=self._cgroup,
            ),
            identity,
            self._seccomp,
        )
        annotations = self._filters.annotations(self._seccomp)
        if annotations:
            document["annotations"] = annotations
        self._directory.write("config.json", msgspec.json.encode(document))
        self._after_step("bundle")

    def learn(self) -> None:
        """Keep what the runtime found out in creating this container, for the next."""
        self._filters.learn(self._seccomp, self._directory.state_directory)

    def _write_files(self) -> None:
        hostname = spec.hostname_of(self._config, self._facts)
        hosts = network_files.hosts(self._config, hostname, _text(_HOST_HOSTS))
        resolv_conf = network_files.resolv_conf(self._config, host_resolv_conf())
        for name, text in (
            ("hosts", hosts),
            ("hostname", f"{hostname}\n"),
            ("resolv.conf", resolv_conf),
        ):
            # Readable for every user of the container, whatever our umask is.
            path = self._directory.path / name
            path.write_text(text)
            path.chmod(0o644)


def check_sources(config: ContainerConfig, facts: spec.HostFacts) -> None:
    """See that what the config takes from the host is there; make what it asks to make.

    Raises:
        RuntimeFailedError: a source is missing; the sentence is Docker's.
    """
    if config.init and not facts.init_path:
        raise RuntimeFailedError(
            "an init process is asked for, but neither tini-static nor catatonit is installed "
            "(apt-get install tini)"
        )
    for mount in config.mounts:
        # A part of a volume is looked for, and made, beneath the volume: when it is bound.
        if mount.type != "bind" or mount.subpath or os.path.lexists(mount.source):
            continue
        if not mount.create_source:
            raise RuntimeFailedError(
                'invalid mount config for type "bind": '
                f"bind source path does not exist: {mount.source}"
            )
        Path(mount.source).mkdir(parents=True, exist_ok=True)


def identify(config: ContainerConfig, root_fd: int) -> Identity:
    """Find the user in the container's own files; root needs none of its names looked up."""
    return users.resolve(
        config.user,
        config.groups,
        users.read_in_root(root_fd, "/etc/passwd"),
        users.read_in_root(root_fd, "/etc/group"),
    )


def host_resolv_conf() -> str:
    """Read the machine's resolver configuration, past a local stub."""
    text = _text(_HOST_RESOLV_CONF)
    return _text(_STUB_RESOLV_CONF) if network_files.has_only_loopback(text) else text


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def seccomp_of(config: ContainerConfig, facts: spec.HostFacts) -> msgspec.Raw | None:
    """Return the container's filter, or None for "unconfined".

    Raises:
        RuntimeFailedError: the default profile is not installed.
    """
    if config.seccomp == "unconfined":
        return None
    profile = config.seccomp_profile
    if config.seccomp == "default":
        try:
            profile = seccomp.narrowed(
                Path(seccomp.DEFAULT_PROFILE_PATH).read_bytes(),
                is_confined=config.apparmor == "default" and bool(facts.apparmor_profile),
            )
        except FileNotFoundError as error:
            raise RuntimeFailedError(
                f"the default seccomp profile {seccomp.DEFAULT_PROFILE_PATH} is missing "
                f"({seccomp.DEFAULT_PROFILE_REMEDY})"
            ) from error
    return seccomp.resolve(
        profile, spec.capabilities_of(config, facts), facts.architecture, facts.kernel
    )
