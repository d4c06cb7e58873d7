"""ContainerSpec: Engine JSON to domain and back. Pure."""

from __future__ import annotations

import base64
from typing import Literal, get_args

import msgspec

from manager.httpapi.convert.common import Json, choices, compact
from manager.httpapi.convert.wire import (
    WireConfig,
    WireContainer,
    WireFile,
    WireHealth,
    WireMount,
    WirePrivileges,
    WireSecret,
    refuse,
)
from proto.errors import InvalidError
from proto.ids import ConfigID, SecretID
from proto.objects import (
    ConfigReference,
    ContainerSpec,
    DNSConfig,
    Driver,
    FileTarget,
    HealthConfig,
    Mount,
    Privileges,
    SecretReference,
    Ulimit,
)

MountType = Literal["bind", "volume", "tmpfs"]
_MOUNT_TYPES: tuple[MountType, ...] = get_args(MountType)


def container_of(wire: WireContainer) -> ContainerSpec:
    """Read what a service runs.

    Raises:
        InvalidError: a member cannot be honoured on Linux or in this version; it is named.
    """
    if wire.isolation not in {"", "default"}:
        raise InvalidError(
            f"isolation {wire.isolation!r} is not supported: it exists on Windows only, "
            'leave it out or use "default"'
        )
    return ContainerSpec(
        image=wire.image,
        labels=dict(wire.labels),
        command=wire.command,
        args=wire.args,
        hostname=wire.hostname,
        env=wire.env,
        dir=wire.dir,
        user=wire.user,
        groups=wire.groups,
        privileges=_privileges_of(wire.privileges),
        init=wire.init,
        tty=wire.tty,
        open_stdin=wire.open_stdin,
        read_only=wire.read_only,
        mounts=tuple(_mount_of(mount) for mount in wire.mounts),
        stop_signal=wire.stop_signal,
        stop_grace_period_ns=wire.stop_grace_period,
        healthcheck=None if wire.healthcheck is None else _health_of(wire.healthcheck),
        hosts=wire.hosts,
        dns_config=DNSConfig(
            nameservers=wire.dns_config.nameservers,
            search=wire.dns_config.search,
            options=wire.dns_config.options,
        ),
        secrets=tuple(_secret_of(secret) for secret in wire.secrets),
        configs=tuple(_config_of(config) for config in wire.configs),
        isolation=wire.isolation,
        sysctls=dict(wire.sysctls),
        capability_add=wire.capability_add,
        capability_drop=wire.capability_drop,
        ulimits=tuple(Ulimit(name=u.name, soft=u.soft, hard=u.hard) for u in wire.ulimits),
        oom_score_adj=wire.oom_score_adj,
    )


def container_to_json(spec: ContainerSpec) -> Json:
    """Write what a service runs, as the Engine does: empty members are left out."""
    members = compact(
        {
            "Image": spec.image,
            "Labels": dict(spec.labels),
            "Command": list(spec.command),
            "Args": list(spec.args),
            "Hostname": spec.hostname,
            "Env": list(spec.env),
            "Dir": spec.dir,
            "User": spec.user,
            "Groups": list(spec.groups),
            "Privileges": _privileges_to_json(spec.privileges),
            "StopSignal": spec.stop_signal,
            "TTY": spec.tty,
            "OpenStdin": spec.open_stdin,
            "ReadOnly": spec.read_only,
            "Mounts": [_mount_to_json(mount) for mount in spec.mounts],
            "Healthcheck": None if spec.healthcheck is None else health_to_json(spec.healthcheck),
            "Hosts": list(spec.hosts),
            "Secrets": [_secret_to_json(secret) for secret in spec.secrets],
            "Configs": [_config_to_json(config) for config in spec.configs],
            "Isolation": spec.isolation,
            "Sysctls": dict(spec.sysctls),
            "CapabilityAdd": list(spec.capability_add),
            "CapabilityDrop": list(spec.capability_drop),
            "Ulimits": [{"Name": u.name, "Hard": u.hard, "Soft": u.soft} for u in spec.ulimits],
            "OomScoreAdj": spec.oom_score_adj,
        }
    )
    if spec.init is not None:
        members["Init"] = spec.init
    if spec.stop_grace_period_ns is not None:
        members["StopGracePeriod"] = spec.stop_grace_period_ns
    members["DNSConfig"] = compact(
        {
            "Nameservers": list(spec.dns_config.nameservers),
            "Search": list(spec.dns_config.search),
            "Options": list(spec.dns_config.options),
        }
    )
    return members


def health_to_json(health: HealthConfig) -> Json:
    """Write a health check."""
    return compact(
        {
            "Test": list(health.test),
            "Interval": health.interval_ns,
            "Timeout": health.timeout_ns,
            "Retries": health.retries,
            "StartPeriod": health.start_period_ns,
            "StartInterval": health.start_interval_ns,
        }
    )


def _health_of(wire: WireHealth) -> HealthConfig:
    return HealthConfig(
        test=wire.test,
        interval_ns=wire.interval,
        timeout_ns=wire.timeout,
        retries=wire.retries,
        start_period_ns=wire.start_period,
        start_interval_ns=wire.start_interval,
    )


def _privileges_of(wire: WirePrivileges) -> Privileges:
    refuse(wire.credential_spec, "a credential spec", "it exists on Windows only")
    context = wire.selinux_context
    return Privileges(
        no_new_privileges=wire.no_new_privileges,
        seccomp_mode=wire.seccomp.mode,
        seccomp_profile=wire.seccomp.profile,
        apparmor_mode=wire.apparmor.mode,
        selinux_disable=context.disable,
        selinux_user=context.user,
        selinux_role=context.role,
        selinux_type=context.type,
        selinux_level=context.level,
    )


def _privileges_to_json(privileges: Privileges) -> Json | None:
    if privileges == Privileges():
        return None
    context = compact(
        {
            "Disable": privileges.selinux_disable,
            "User": privileges.selinux_user,
            "Role": privileges.selinux_role,
            "Type": privileges.selinux_type,
            "Level": privileges.selinux_level,
        }
    )
    profile = base64.b64encode(privileges.seccomp_profile).decode()
    seccomp = compact({"Mode": privileges.seccomp_mode, "Profile": profile})
    apparmor = compact({"Mode": privileges.apparmor_mode})
    return {
        "CredentialSpec": None,
        "SELinuxContext": context or None,
        "Seccomp": seccomp or None,
        "AppArmor": apparmor or None,
        "NoNewPrivileges": privileges.no_new_privileges,
    }


def _mount_of(wire: WireMount) -> Mount:
    kind: MountType | None = next((t for t in _MOUNT_TYPES if t == wire.type), None)
    if kind is None:
        raise InvalidError(
            f"mount type {wire.type!r} at {wire.target} is not supported: "
            f"use {choices(_MOUNT_TYPES)}"
        )
    where = f"of the {kind} mount at {wire.target}"
    refuse(wire.image_options, f"ImageOptions {where}", "image mounts are not served")
    refuse(wire.cluster_options, f"ClusterOptions {where}", "cluster volumes are not served")
    given = {"bind": wire.bind_options, "volume": wire.volume_options, "tmpfs": wire.tmpfs_options}
    for other, options in given.items():
        if options is not None and other != kind:
            raise InvalidError(f"{other.capitalize()}Options must not be given {where}")
    mount = Mount(
        type=kind,
        source=wire.source,
        target=wire.target,
        read_only=wire.read_only,
        consistency=wire.consistency,
    )
    return _with_options(mount, wire, where)


def _with_options(mount: Mount, wire: WireMount, where: str) -> Mount:
    replace = msgspec.structs.replace
    if wire.bind_options is not None:
        bind = wire.bind_options
        remedy = "read-only bind mounts are read-only through and through where the kernel can"
        refuse(bind.read_only_non_recursive, f"ReadOnlyNonRecursive {where}", remedy)
        refuse(bind.read_only_force_recursive, f"ReadOnlyForceRecursive {where}", remedy)
        return replace(
            mount,
            bind_propagation=bind.propagation,
            bind_non_recursive=bind.non_recursive,
            bind_create_mountpoint=bind.create_mountpoint,
        )
    if wire.volume_options is not None:
        volume = wire.volume_options
        driver = Driver(name=volume.driver_config.name, options=dict(volume.driver_config.options))
        return replace(
            mount,
            volume_no_copy=volume.no_copy,
            volume_labels=dict(volume.labels),
            volume_driver=driver,
            volume_subpath=volume.subpath,
        )
    if wire.tmpfs_options is not None:
        tmpfs = wire.tmpfs_options
        return replace(
            mount,
            tmpfs_size_bytes=tmpfs.size_bytes,
            tmpfs_mode=tmpfs.mode,
            tmpfs_options=tmpfs.options,
        )
    return mount


def _mount_to_json(mount: Mount) -> Json:
    driver = compact(
        {"Name": mount.volume_driver.name, "Options": dict(mount.volume_driver.options)}
    )
    return compact(
        {
            "Type": mount.type,
            "Source": mount.source,
            "Target": mount.target,
            "ReadOnly": mount.read_only,
            "Consistency": mount.consistency,
            "BindOptions": compact(
                {
                    "Propagation": mount.bind_propagation,
                    "NonRecursive": mount.bind_non_recursive,
                    "CreateMountpoint": mount.bind_create_mountpoint,
                }
            ),
            "VolumeOptions": compact(
                {
                    "NoCopy": mount.volume_no_copy,
                    "Labels": dict(mount.volume_labels),
                    "Subpath": mount.volume_subpath,
                    "DriverConfig": driver,
                }
            ),
            "TmpfsOptions": compact(
                {
                    "SizeBytes": mount.tmpfs_size_bytes,
                    "Mode": mount.tmpfs_mode,
                    "Options": [list(option) for option in mount.tmpfs_options],
                }
            ),
        }
    )


def _file_of(wire: WireFile | None, what: str) -> FileTarget:
    if wire is None:
        raise InvalidError(f"{what} has no File: say where it appears in the container")
    return FileTarget(name=wire.name, uid=wire.uid, gid=wire.gid, mode=wire.mode)


def _secret_of(wire: WireSecret) -> SecretReference:
    return SecretReference(
        secret_id=SecretID(wire.secret_id),
        secret_name=wire.secret_name,
        file=_file_of(wire.file, f"secret {wire.secret_name or wire.secret_id}"),
    )


def _config_of(wire: WireConfig) -> ConfigReference:
    name = wire.config_name or wire.config_id
    # `Runtime` may be the empty object, which Go writes for a pointer that was set.
    if wire.runtime is not None:
        raise InvalidError(
            f"config {name} with a Runtime target is not supported: "
            "it is for credential specs, which exist on Windows only"
        )
    return ConfigReference(
        config_id=ConfigID(wire.config_id),
        config_name=wire.config_name,
        file=_file_of(wire.file, f"config {name}"),
    )


def _file_to_json(file: FileTarget) -> Json:
    return {"Name": file.name, "UID": file.uid, "GID": file.gid, "Mode": file.mode}


def _secret_to_json(secret: SecretReference) -> Json:
    return {
        "File": _file_to_json(secret.file),
        "SecretID": secret.secret_id,
        "SecretName": secret.secret_name,
    }


def _config_to_json(config: ConfigReference) -> Json:
    return {
        "File": _file_to_json(config.file),
        "ConfigID": config.config_id,
        "ConfigName": config.config_name,
    }
