"""A profile in Docker's format → `linux.seccomp` of OCI's runtime-spec. Pure and memoised.

Docker's format has conditions (`includes`, `excludes`: capabilities, architectures, kernel) that
OCI's lacks; they are worked out here for one container on one machine. The default profile is
containers-common's `/usr/share/containers/seccomp.json`, whose format is Docker's. It is made for
containers within user namespaces and so lets them make more of these, with all capabilities within
and all the kernel's code behind them; `narrowed` takes from it what Docker's does not allow.

Source: moby `profiles/seccomp`, containers/common `pkg/seccomp`, runtime-spec `config-linux.md`.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Collection, Iterator, Mapping

import msgspec

from proto.errors import InvalidError
from proto.json_text import JsonError, decode_json

DEFAULT_PROFILE_PATH = "/usr/share/containers/seccomp.json"
DEFAULT_PROFILE_REMEDY = "apt-get install golang-github-containers-common"

# Go's name of the architecture → libseccomp's, for those that we are built for.
_NATIVE = {
    "amd64": "SCMP_ARCH_X86_64",
    "arm64": "SCMP_ARCH_AARCH64",
    "arm": "SCMP_ARCH_ARM",
    "386": "SCMP_ARCH_X86",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "riscv64": "SCMP_ARCH_RISCV64",
}

# What Docker allows with CAP_SYS_ADMIN only: namespaces and mounts. `clone` makes processes and
# threads as well; whether `clone3` makes a namespace cannot be seen, so that it does not exist.
_FOR_ADMINISTRATORS = (
    *("fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount"),
    *("open_tree", "setns", "umount", "umount2", "unshare"),
)
_CLONE_NAMESPACE_FLAGS = 0x7E020000
_S390 = ("s390", "s390x")
_FOR_NOBODY = ("add_key", "keyctl", "pivot_root", "request_key")
# What containers-common still allows though nothing needs it; Docker does not name it. `syscall` is
# a way round every other rule where it exists.
_OBSOLETE = (
    *("query_module", "readdir", "sigaction", "signal", "sigpending", "sigsuspend", "syscall"),
    "timerfd",
)
_FOR_CAPABILITY = {
    "CAP_SYS_BOOT": ("reboot",),
    "CAP_SYS_NICE": ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    "CAP_SYS_PTRACE": ("pidfd_getfd",),
}
# Either of them opens the kernel's log.
_FOR_KERNEL_LOG = ("CAP_SYSLOG", "CAP_SYS_ADMIN")
# Families of sockets. The kernel's own cryptography and the way to the hypervisor are no business
# of a container, and their code has had holes; audit is its owner's.
_AF_NETLINK, _AF_ALG, _AF_VSOCK, _AF_MAX = 16, 38, 40, 46
_NETLINK_AUDIT, _NETLINK_MAX = 9, 32
# Where the C library has no other call for sockets. Elsewhere only 32-bit programs know it.
_SOCKETCALL_ARCHES = ("386", "s390", "s390x")
_ALLOW, _REFUSE = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EQUAL = "SCMP_CMP_EQ"

# Distinct sets of capabilities on one node are few; each result is about 12 KiB of JSON.
_CACHE_MAX = 32


class _Argument(msgspec.Struct, frozen=True, omit_defaults=True):
    index: int
    value: int
    op: str
    valueTwo: int = 0  # noqa: N815 -- the name in the format


class _Condition(msgspec.Struct, frozen=True):
    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    minKernel: str = ""  # noqa: N815 -- the name in the format


class _Rule(msgspec.Struct, frozen=True):
    action: str
    names: tuple[str, ...] = ()
    name: str = ""
    args: tuple[_Argument, ...] | None = None
    includes: _Condition = _Condition()
    excludes: _Condition = _Condition()
    errnoRet: int | None = None  # noqa: N815 -- the name in the format


class _Architecture(msgspec.Struct, frozen=True):
    architecture: str
    subArchitectures: tuple[str, ...] | None = None  # noqa: N815 -- the name in the format


class _Profile(msgspec.Struct, frozen=True):
    defaultAction: str  # noqa: N815 -- the name in the format
    defaultErrnoRet: int | None = None  # noqa: N815 -- the name in the format
    architectures: tuple[str, ...] = ()
    archMap: tuple[_Architecture, ...] = ()  # noqa: N815 -- the name in the format
    syscalls: tuple[_Rule, ...] = ()
    flags: tuple[str, ...] = ()


@functools.lru_cache(maxsize=2)
def narrowed(profile: bytes, *, is_confined: bool = False) -> bytes:
    """Return containers-common's profile without what Docker's does not allow, in its format.

    Args:
        profile: containers-common's.
        is_confined: whether AppArmor keeps the container from the families of sockets, too. A
            filter cannot see which one `socketcall` asks for, so without that it is refused.

    Raises:
        InvalidError: the profile is not one.
    """
    parsed = _parsed(profile)
    moved = {*_FOR_ADMINISTRATORS, *_FOR_NOBODY, *_OBSOLETE, "clone", "clone3", "syslog"}
    if not is_confined:
        moved.add("socketcall")
    moved.update(name for names in _FOR_CAPABILITY.values() for name in names)
    rules = [
        _without(rule, moved) if _is_plain(rule) else _without(rule, _OBSOLETE)
        for rule in parsed.syscalls
        if "socket" not in rule.names
    ]
    rules += [
        _Rule(_REFUSE, _FOR_NOBODY, errnoRet=errno.EPERM),
        *_only_with("CAP_SYS_ADMIN", _FOR_ADMINISTRATORS),
        *(
            rule
            for name in sorted(_FOR_CAPABILITY)
            for rule in _only_with(name, _FOR_CAPABILITY[name])
        ),
        *_clone_rules(),
        *(
            _Rule(_ALLOW, ("syslog",), includes=_Condition(caps=(name,)))
            for name in _FOR_KERNEL_LOG
        ),
        *_socket_rules(),
    ]
    if not is_confined:
        rules[:0] = _socketcall_rules(parsed)
    return msgspec.json.encode(msgspec.structs.replace(parsed, syscalls=tuple(rules)))


def _is_plain(rule: _Rule) -> bool:
    nothing = _Condition()
    is_unconditional = rule.includes == nothing and rule.excludes == nothing and not rule.args
    return rule.action == _ALLOW and is_unconditional


def _without(rule: _Rule, names: Collection[str]) -> _Rule:
    left = tuple(name for name in rule.names if name not in names)
    return msgspec.structs.replace(rule, names=left)


def _only_with(capability: str, names: tuple[str, ...]) -> tuple[_Rule, _Rule]:
    condition = _Condition(caps=(capability,))
    return (
        _Rule(_ALLOW, names, includes=condition),
        _Rule(_REFUSE, names, excludes=condition, errnoRet=errno.EPERM),
    )


def _socket_rules() -> Iterator[_Rule]:
    """Yield what `socket` may ask for, family by family.

    The kernel looks at 32 bits of an argument that has 64, a filter at all of them. So only "equal"
    and "less" decide: 0x100000026 is greater than every family, and AF_ALG to the kernel.
    """

    def families(*allowed: int) -> Iterator[_Rule]:
        for family in allowed:
            yield _Rule(_ALLOW, ("socket",), args=(_Argument(0, family, _EQUAL),))

    yield _Rule(_ALLOW, ("socket",), args=(_Argument(0, _AF_NETLINK, "SCMP_CMP_LT"),))
    later = range(_AF_NETLINK + 1, _AF_MAX)
    yield from families(*(family for family in later if family not in {_AF_ALG, _AF_VSOCK}))
    for family in (_AF_ALG, _AF_VSOCK):
        refused = (_Argument(0, family, _EQUAL),)
        yield _Rule(_REFUSE, ("socket",), args=refused, errnoRet=errno.EAFNOSUPPORT)
    for protocol in range(_NETLINK_MAX):
        condition = _Condition()
        if protocol == _NETLINK_AUDIT:
            condition = _Condition(caps=("CAP_AUDIT_WRITE",))
        argument = (_Argument(0, _AF_NETLINK, _EQUAL), _Argument(2, protocol, _EQUAL))
        yield _Rule(_ALLOW, ("socket",), args=argument, includes=condition)


def _socketcall_rules(profile: _Profile) -> tuple[_Rule, ...]:
    """Refuse `socketcall`, which has to be said, and first.

    libseccomp allows `socketcall` beside each `socket` that is allowed, for whatever family, unless
    a rule for the whole call stands before. A rule that answers as the default does is dropped by
    the runtimes, so this one answers otherwise.
    """
    other = errno.ENOSYS if profile.defaultErrnoRet == errno.EPERM else errno.EPERM
    return (
        _Rule(
            _REFUSE,
            ("socketcall",),
            excludes=_Condition(arches=_SOCKETCALL_ARCHES),
            errnoRet=other,
        ),
        *(
            _Rule(_ALLOW, ("socketcall",), includes=_Condition(arches=(name,)))
            for name in _SOCKETCALL_ARCHES
        ),
    )


def _clone_rules() -> tuple[_Rule, ...]:
    admin = ("CAP_SYS_ADMIN",)

    def without_namespaces(index: int) -> tuple[_Argument]:
        return (_Argument(index, _CLONE_NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ"),)

    return (
        _Rule(_ALLOW, ("clone", "clone3"), includes=_Condition(caps=admin)),
        _Rule(
            _ALLOW,
            ("clone",),
            args=without_namespaces(0),
            excludes=_Condition(caps=admin, arches=_S390),
        ),
        _Rule(
            _ALLOW,
            ("clone",),
            args=without_namespaces(1),
            includes=_Condition(arches=_S390),
            excludes=_Condition(caps=admin),
        ),
        _Rule(_REFUSE, ("clone3",), excludes=_Condition(caps=admin), errnoRet=errno.ENOSYS),
    )


@functools.lru_cache(maxsize=_CACHE_MAX)
def resolve(
    profile: bytes, capabilities: tuple[str, ...], architecture: str, kernel: tuple[int, int]
) -> msgspec.Raw:
    """Return `linux.seccomp` as JSON.

    Args:
        profile: JSON in Docker's format, or already in OCI's (which has no conditions).
        capabilities: what the container has.
        architecture: Go's name (`amd64`).
        kernel: major and minor version.

    Raises:
        InvalidError: the profile is not one.
    """
    parsed = _parsed(profile)
    result: dict[str, object] = {"defaultAction": parsed.defaultAction}
    if parsed.defaultErrnoRet is not None:
        result["defaultErrnoRet"] = parsed.defaultErrnoRet
    architectures = parsed.architectures or _architectures(parsed.archMap, architecture)
    if architectures:
        result["architectures"] = architectures
    if parsed.flags:
        result["flags"] = parsed.flags
    owned = frozenset(capabilities)
    result["syscalls"] = [
        _rule(rule)
        for rule in parsed.syscalls
        if _applies(rule, owned, architecture, kernel) and (rule.names or rule.name)
    ]
    return msgspec.Raw(msgspec.json.encode(result))


def _parsed(profile: bytes) -> _Profile:
    try:
        return decode_json(profile, _Profile)
    except JsonError as error:
        raise InvalidError(f"the seccomp profile cannot be read: it {error}") from error


def _architectures(table: tuple[_Architecture, ...], architecture: str) -> tuple[str, ...]:
    native = _NATIVE.get(architecture, "")
    for entry in table:
        if entry.architecture == native:
            return (native, *(entry.subArchitectures or ()))
    return (native,) if native and table else ()


def _applies(
    rule: _Rule, owned: frozenset[str], architecture: str, kernel: tuple[int, int]
) -> bool:
    wanted, refused = rule.includes, rule.excludes
    if wanted.arches and architecture not in wanted.arches:
        return False
    if architecture in refused.arches:
        return False
    if not owned.issuperset(wanted.caps):
        return False
    if owned.intersection(refused.caps):
        return False
    if wanted.minKernel and kernel < _version(wanted.minKernel):
        return False
    return not (refused.minKernel and kernel >= _version(refused.minKernel))


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    if not major.isdecimal() or not minor.isdecimal():
        raise InvalidError(f"the seccomp profile has no kernel version in minKernel {text!r}")
    return int(major), int(minor)


def _rule(rule: _Rule) -> Mapping[str, object]:
    result: dict[str, object] = {"names": rule.names or (rule.name,), "action": rule.action}
    if rule.args:
        result["args"] = rule.args
    if rule.errnoRet is not None:
        result["errnoRet"] = rule.errnoRet
    return result
