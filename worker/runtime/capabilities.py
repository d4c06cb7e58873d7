"""Which capabilities a container gets: Docker's default set, with additions and removals. Pure.

Source: moby `daemon/pkg/oci/caps`; the order of the kernel's `include/uapi/linux/capability.h`.
"""

from __future__ import annotations

from collections.abc import Sequence

from proto.errors import InvalidError

KERNEL = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
    "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
    "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip

_ALL = "ALL"


def from_mask(mask: int) -> tuple[str, ...]:
    """Name the bits of a mask as /proc/PID/status shows it; unknown bits are left out."""
    return tuple(name for bit, name in enumerate(KERNEL) if mask >> bit & 1)


def normalized(names: Sequence[str]) -> tuple[str, ...]:
    """Write names as the kernel does (`net_admin` → `CAP_NET_ADMIN`); `ALL` stays.

    Raises:
        InvalidError: a name is unknown; the sentence is Docker's.
    """
    result = []
    for name in names:
        upper = name.upper()
        if upper != _ALL:
            upper = upper if upper.startswith("CAP_") else f"CAP_{upper}"
            if upper not in KERNEL:
                raise InvalidError(f"invalid capability: {name}")
        result.append(upper)
    return tuple(result)


def effective_set(
    add: Sequence[str], drop: Sequence[str], available: Sequence[str]
) -> tuple[str, ...]:
    """Work out the set, in the kernel's order.

    `ALL` means all that the daemon itself may hand on (`available`): a daemon in a sandbox cannot
    give what it lacks. A capability that is named must be given or the creation fails, so it is
    kept even if it is not available.
    """
    added = normalized(add)
    dropped = normalized(drop)
    if _ALL in dropped:
        chosen = {name for name in added if name != _ALL}
        if _ALL in added:
            chosen.update(available)
    elif _ALL in added:
        chosen = set(available) - set(dropped)
    else:
        chosen = set(DEFAULT) - set(dropped) | set(added)
    return tuple(name for name in KERNEL if name in chosen)
