"""Capabilities, and the filter of system calls that follows from them."""

import json
from pathlib import Path

import msgspec
import pytest

from proto.errors import InvalidError
from worker.runtime import capabilities, seccomp

AVAILABLE = tuple(name for name in capabilities.KERNEL if name != "CAP_SYS_RESOURCE")
KERNEL = (6, 1)


def test_default_set():
    """Docker's fourteen, as the kernel's mask 0xa80425fb has them."""
    chosen = capabilities.effective_set((), (), AVAILABLE)
    assert set(chosen) == set(capabilities.DEFAULT)
    assert chosen == capabilities.from_mask(0xA80425FB)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (("net_admin",), (), {*capabilities.DEFAULT, "CAP_NET_ADMIN"}),
        (("CAP_NET_ADMIN", "NET_ADMIN"), ("ALL",), {"CAP_NET_ADMIN"}),
        ((), ("mknod",), set(capabilities.DEFAULT) - {"CAP_MKNOD"}),
        ((), ("all",), set()),
        (("ALL",), (), set(AVAILABLE)),
        (("ALL",), ("SYS_ADMIN",), set(AVAILABLE) - {"CAP_SYS_ADMIN"}),
        (("SYS_RESOURCE",), (), {*capabilities.DEFAULT, "CAP_SYS_RESOURCE"}),
        (("NET_RAW",), ("NET_RAW",), set(capabilities.DEFAULT)),
    ],
)
def test_changes(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]):
    """Additions and removals in all spellings; ALL is what the daemon has."""
    assert expected == set(capabilities.effective_set(add, drop, AVAILABLE))


def test_unknown_capability():
    """A name that the kernel does not know is refused."""
    with pytest.raises(InvalidError, match=r"^invalid capability: nope$"):
        capabilities.effective_set(("nope",), (), AVAILABLE)


def profile(**rule: object) -> bytes:
    """A profile with one rule for `mount`."""
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "defaultErrno": "ENOSYS",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
            ],
            "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "args": None, **rule}],
        }
    ).encode()


def resolved(data: bytes, caps: tuple[str, ...] = (), arch: str = "amd64") -> dict[str, object]:
    """The filter as OCI has it."""
    document: dict[str, object] = json.loads(bytes(seccomp.resolve(data, caps, arch, KERNEL)))
    return document


def test_whole_filter():
    """The parts that OCI knows are passed on, the others left out."""
    args = [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]
    document = resolved(profile(args=args, errnoRet=1, errno="EPERM", comment="why"))
    assert document == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {
                "names": ["mount"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
                "errnoRet": 1,
            }
        ],
    }
    assert resolved(profile(), arch="arm64")["architectures"] == ["SCMP_ARCH_AARCH64"]


@pytest.mark.parametrize(
    ("rule", "applies"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, True),
        ({"includes": {"arches": ["amd64", "x32"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "4.8"}}, True),
        ({"includes": {"minKernel": "6.1"}}, True),
        ({"includes": {"minKernel": "6.10"}}, False),
        ({"excludes": {"minKernel": "4.8"}}, False),
    ],
)
def test_conditions(rule: dict[str, object], applies: bool):  # noqa: FBT001 -- a table
    """A rule applies if all it includes holds and nothing that it excludes does."""
    document = resolved(profile(**rule), ("CAP_CHOWN", "CAP_SYS_ADMIN"))
    assert bool(document["syscalls"]) is applies


def test_oci_profile_as_it_is():
    """A profile in OCI's own format goes through unchanged, flags and single names too."""
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}],
    }
    assert resolved(json.dumps(document).encode()) == document
    old = {**document, "syscalls": [{"name": "chmod", "action": "SCMP_ACT_ERRNO"}]}
    assert resolved(json.dumps(old).encode()) == document


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", profile(includes={"minKernel": "x"})])
def test_no_profile(data: bytes):
    """What is not a profile is refused."""
    with pytest.raises(InvalidError, match="seccomp profile"):
        seccomp.resolve(data, (), "amd64", KERNEL)


def test_kept():
    """The same container on the same machine costs nothing the second time."""
    first = seccomp.resolve(profile(), ("CAP_CHOWN",), "amd64", KERNEL)
    assert seccomp.resolve(profile(), ("CAP_CHOWN",), "amd64", KERNEL) is first
    assert isinstance(first, msgspec.Raw)


def actions(document: dict[str, object], name: str) -> list[tuple[object, object, object]]:
    """What a resolved profile says of one system call."""
    rules = document["syscalls"]
    assert isinstance(rules, list)
    return [(r["action"], r.get("errnoRet"), r.get("args")) for r in rules if name in r["names"]]


def test_the_default_profile_is_no_wider_than_docker_s() -> None:
    """Without CAP_SYS_ADMIN there are no new namespaces, mounts or keys; with it, all but keys."""
    path = Path(seccomp.DEFAULT_PROFILE_PATH)
    narrowed = seccomp.narrowed(path.read_bytes())
    plain = json.loads(bytes(seccomp.resolve(narrowed, ("CAP_CHOWN",), "amd64", KERNEL)))
    admin = json.loads(bytes(seccomp.resolve(narrowed, ("CAP_SYS_ADMIN",), "amd64", KERNEL)))

    for name in ("unshare", "mount", "setns", "fsopen", "umount2", "keyctl", "pivot_root"):
        assert {action[:2] for action in actions(plain, name)} == {("SCMP_ACT_ERRNO", 1)}, name
    for name in ("unshare", "mount", "setns", "clone", "clone3"):
        assert {action[0] for action in actions(admin, name)} == {"SCMP_ACT_ALLOW"}, name
    assert actions(plain, "clone3") == [("SCMP_ACT_ERRNO", 38, None)]
    ((action, _, (argument,)),) = actions(plain, "clone")
    assert (action, argument["op"]) == ("SCMP_ACT_ALLOW", "SCMP_CMP_MASKED_EQ")
    assert argument["value"] & 0x10000000, "CLONE_NEWUSER"
    assert argument.get("valueTwo", 0) == 0
    for name in ("read", "execve", "ptrace"):
        assert actions(plain, name) == [("SCMP_ACT_ALLOW", None, None)]


OPERATORS = {
    "SCMP_CMP_EQ": lambda value, rule: value == rule["value"],
    "SCMP_CMP_LT": lambda value, rule: value < rule["value"],
    "SCMP_CMP_MASKED_EQ": lambda value, rule: value & rule["value"] == rule.get("valueTwo", 0),
}


def is_allowed(document: dict[str, object], name: str, *arguments: int) -> bool:
    """Tell what a filter answers to a call; a rule fits if all its arguments do."""
    return any(
        action == "SCMP_ACT_ALLOW"
        and all(OPERATORS[arg["op"]](arguments[arg["index"]], arg) for arg in rules or ())
        for action, _, rules in actions(document, name)
    )


def default_filter(*caps: str, arch: str = "amd64", **more: bool) -> dict[str, object]:
    """The filter of the default profile."""
    narrowed = seccomp.narrowed(Path(seccomp.DEFAULT_PROFILE_PATH).read_bytes(), **more)
    return resolved(narrowed, caps, arch)


@pytest.mark.parametrize("caps", [(), capabilities.DEFAULT, capabilities.KERNEL])
def test_sockets_of_two_families_are_nobody_s(caps: tuple[str, ...]) -> None:
    """AF_ALG and AF_VSOCK, also with bits that the kernel does not look at; all others are free."""
    document = default_filter(*caps)
    alg, vsock = 38, 40
    for family in range(46):
        for high in (0, 1 << 32, 1 << 63):
            found = is_allowed(document, "socket", high | family, 2, 0)
            assert found is (family not in {alg, vsock} and not high), (family, high)
    for family in (alg, vsock):
        refused = [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}]
        assert ("SCMP_ACT_ERRNO", 97, refused) in actions(document, "socket")


def test_the_audit_of_the_kernel_is_written_to_with_its_capability_only() -> None:
    """Whatever bits of the protocol the kernel does not look at."""
    netlink, audit = 16, 9
    for protocol in (audit, 1 << 32 | audit):
        assert not is_allowed(default_filter(), "socket", netlink, 3, protocol)
    assert is_allowed(default_filter("CAP_AUDIT_WRITE"), "socket", netlink, 3, audit)
    assert is_allowed(default_filter(), "socket", netlink, 3, 0)


def test_socketcall_is_no_way_round() -> None:
    """A filter does not see what it asks for: only where AppArmor does, or nothing else exists."""
    assert not is_allowed(default_filter(), "socketcall", 1, 0)
    assert is_allowed(default_filter(is_confined=True), "socketcall", 1, 0)
    assert is_allowed(default_filter(arch="s390x"), "socketcall", 1, 0)


@pytest.mark.parametrize(
    ("name", "capability"),
    [("pidfd_getfd", "CAP_SYS_PTRACE"), ("syslog", "CAP_SYSLOG"), ("syslog", "CAP_SYS_ADMIN")],
)
def test_calls_that_need_a_capability(name: str, capability: str) -> None:
    """As with Docker."""
    assert not is_allowed(default_filter(*capabilities.DEFAULT), name)
    assert is_allowed(default_filter(capability), name)


def test_calls_of_old_are_nobody_s() -> None:
    """Docker does not name them."""
    for name in ("syscall", "timerfd", "query_module", "readdir", "signal", "sigsuspend"):
        assert not is_allowed(default_filter(*capabilities.KERNEL), name), name
