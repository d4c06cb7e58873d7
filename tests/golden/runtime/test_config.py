"""The whole OCI config.json of some containers; SWARM_REWRITE=1 writes them anew."""

import os
from pathlib import Path

import msgspec
import pytest

from proto.ids import ContainerID
from worker.runtime import apparmor, spec
from worker.runtime.api import ContainerConfig, ContainerLimits, ContainerMount
from worker.runtime.users import Identity

HERE = Path(__file__).parent
ID = ContainerID("0123456789abcdef" * 4)
PATHS = spec.BundlePaths(
    rootfs="/containers/c/rootfs",
    hosts="/containers/c/hosts",
    hostname="/containers/c/hostname",
    resolv_conf="/containers/c/resolv.conf",
    cgroup=f"/swarm/{ID}",
)
FACTS = {
    "v1": spec.HostFacts(cgroup_version=1, hostname="machine", init_path="/usr/bin/tini-static"),
    "v2": spec.HostFacts(cgroup_version=2, hostname="machine", init_path="/usr/bin/tini-static"),
    "apparmor": spec.HostFacts(
        cgroup_version=2,
        throttle_paths=("/sys/devices/system/cpu/cpu0/thermal_throttle",),
        pids_default=0,
        apparmor_profile=apparmor.PROFILE,
    ),
}
PLAIN = ContainerConfig(id=ID, argv=("sleep", "1"), layers=("/layers/a",))
FULL = ContainerConfig(
    id=ID,
    argv=("/entry", "serve"),
    env=("A=1", "PATH=/bin", "HOSTNAME"),
    working_dir="/srv",
    hostname="web.example",
    netns_path="/run/netns/c",
    mounts=(
        ContainerMount(type="bind", target="/data/deep/", source="/volumes/v", read_only=True),
        ContainerMount(type="tmpfs", target="/data", tmpfs_size_bytes=1 << 20, tmpfs_mode=0o700),
        ContainerMount(type="bind", target="/dev/shm", source="/shm", propagation="rslave"),
        ContainerMount(type="bind", target="/etc/hosts", source="/h", is_recursive=False),
    ),
    limits=ContainerLimits(
        nano_cpus=1_500_000_000,
        memory_bytes=64 << 20,
        memory_reservation_bytes=32 << 20,
        swap_bytes=128 << 20,
        memory_swappiness=10,
        pids=100,
    ),
    tty=True,
    init=True,
    read_only=True,
    capability_add=("net_admin",),
    capability_drop=("CAP_MKNOD",),
    no_new_privileges=True,
    sysctls={"net.core.somaxconn": "1024"},
    ulimits=(("nofile", 1024, 2048),),
    oom_score_adj=100,
)
CASES = {
    "apparmor-v2": (PLAIN, FACTS["apparmor"], Identity(home="/root"), None),
    "plain-v1": (PLAIN, FACTS["v1"], Identity(additional_gids=(0,), home="/root"), None),
    "plain-v2": (PLAIN, FACTS["v2"], Identity(additional_gids=(0,), home="/root"), None),
    "full-v1": (FULL, FACTS["v1"], Identity(1000, 1000, (1000, 2000), "/home/web"), b"{}"),
    "full-v2": (FULL, FACTS["v2"], Identity(1000, 1000, (1000, 2000), "/home/web"), b"{}"),
}


@pytest.mark.parametrize("name", CASES)
def test_config(name: str):
    """The document is, to the letter, the one that was reviewed."""
    config, facts, identity, seccomp = CASES[name]
    raw = None if seccomp is None else msgspec.Raw(seccomp)
    document = spec.build(config, facts, PATHS, identity, raw)
    text = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    file = HERE / f"{name}.json"
    if os.environ.get("SWARM_REWRITE") == "1":
        file.write_bytes(text)
    assert file.read_bytes() == text


def test_apparmor_profile():
    """What the kernel is given where it has AppArmor, in the older language as well."""
    file = HERE / "apparmor.profile"
    if os.environ.get("SWARM_REWRITE") == "1":
        file.write_text(apparmor.profile_text())
    assert file.read_text() == apparmor.profile_text()
    assert apparmor.profile_text() == "abi <abi/3.0>,\n\n" + apparmor.profile_text(has_abi=False)


def test_a_container_may_be_unconfined():
    """By `apparmor=unconfined` of its service."""
    config = msgspec.structs.replace(PLAIN, apparmor="unconfined")
    process = spec.process(config, FACTS["apparmor"], Identity())
    assert "apparmorProfile" not in process
