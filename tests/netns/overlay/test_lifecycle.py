"""Start, adoption, leftovers, crashes and removal, on a real kernel."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from overlay import nft as nft_module
from overlay.api import PublishedPort
from overlay.nft import NftProgram
from overlay.node import BridgeNetwork
from proto.errors import (
    ConflictError,
    InvalidError,
    ResourceExhaustedError,
    RuntimeFailedError,
    UnavailableError,
)
from proto.ids import ContainerID

pytestmark = pytest.mark.netns

OnNode = Callable[[Any], None]
STEPS = ("namespace", "link", "inside", "finished")

# Attaches the container of the second argument and dies without a word after the named step.
CRASHING = """
import asyncio, os, sys
from pathlib import Path
from overlay.node import BridgeNetwork

async def main():
    die = lambda step: os._exit(9) if step == sys.argv[3] else None
    network = BridgeNetwork(Path(sys.argv[1]), after_step=die)
    await network.start(frozenset())
    await network.attach(sys.argv[2])

asyncio.run(main())
"""


def web_port(*backends: str, published: int = 8080) -> PublishedPort:
    """Make a published port."""
    return PublishedPort(
        published_port=published, protocol="tcp", target_port=80, backends=backends
    )


def test_attachment_is_as_described(on_node: OnNode) -> None:
    """Address, MAC, gateway and default route are those the attachment names; no IPv6."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        assert await network.start(frozenset()) == {}
        made = await network.attach(lab.container(0))
        again = await network.attach(lab.container(0))
        enter = f"nsenter --net={made.netns_path}"

        assert again == made
        assert (made.address, made.prefix_length, made.gateway) == ("172.18.0.2", 16, "172.18.0.1")
        link = lab.sh(f"{enter} ip addr show eth0")
        assert f"inet {made.address}/16 brd 172.18.255.255" in link
        assert f"link/ether {made.mac} " in link
        assert "inet6" not in link
        assert "inet 127.0.0.1/8" in lab.sh(f"{enter} ip addr show lo")
        assert "default via 172.18.0.1" in lab.sh(f"{enter} ip route")
        assert f"swarm container {lab.container(0)} 172.18.0.2/16" in lab.ip("link show")
        assert len(lab.links()[1]) <= 15

    on_node(scenario)


def test_restart_adopts_and_changes_nothing(on_node: OnNode) -> None:
    """A second start finds everything, changes nothing, and open connections go on."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        ids = [lab.container(number) for number in range(3)]
        made = {container_id: await network.attach(container_id) for container_id in ids}
        await network.publish((web_port(made[ids[0]].address), web_port(published=8081)))
        async with (
            lab.tcp_server(made[ids[0]], 80, "web"),
            lab.connection(lab.client_namespace, lab.node, 8080) as (reader, writer),
        ):
            await reader.readline()
            await network.close()
            rules = lab.sh("nft -a list ruleset")
            with capture_logs() as logs:
                second = lab.network()
                adopted = await second.start(frozenset(ids))
                await second.publish((web_port(made[ids[0]].address), web_port(published=8081)))
            writer.write(b"still here\n")

            assert adopted == made
            assert [entry for entry in logs if entry["event"] == "node_network_changed"] == []
            assert lab.sh("nft -a list ruleset") == rules
            assert await reader.readline() == b"still here\n"
            assert (await lab.ask(lab.client_namespace, lab.node, 8080)).server == "web"
        fourth = await second.attach(lab.container(3))
        assert fourth.address not in {attachment.address for attachment in made.values()}

    on_node(scenario)


def test_start_removes_the_network_of_dead_containers_only(on_node: OnNode) -> None:
    """Of three containers one still lives: it keeps its place, the others' places go."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        ids = [lab.container(number) for number in range(3)]
        made = [await network.attach(container_id) for container_id in ids]
        lab.ip("link add sw0123456789ab type veth peer name swpeer")  # named alike, but not ours
        await network.close()
        second = lab.network()

        assert await second.start(frozenset({ids[1]})) == {ids[1]: made[1]}
        assert lab.files() == [ids[1]]
        assert lab.mounts() == [made[1].netns_path]
        assert lab.links() == sorted(["gwbr", f"sw{ids[1][:12]}", "sw0123456789ab", "swpeer"])
        assert lab.sh(f"nsenter --net={made[1].netns_path} ip route").startswith("default")

    on_node(scenario)


@pytest.mark.parametrize("step", STEPS)
def test_crash_after_each_step_of_an_attach(on_node: OnNode, step: str) -> None:
    """Whatever a killed daemon left, the next start removes it and the attach succeeds."""

    async def scenario(lab: Any) -> None:
        container = lab.container(0)
        command = [sys.executable, "-c", CRASHING, str(lab.run), container, step]
        assert lab.status(command) == 9
        assert lab.files() == [container]
        network = lab.network()

        assert await network.start(frozenset()) == {}
        assert (lab.files(), lab.mounts(), lab.links()) == ([], [], ["gwbr"])
        assert (await network.attach(container)).address == "172.18.0.2"

    on_node(scenario)


@pytest.mark.parametrize("step", STEPS)
def test_failure_after_each_step_of_an_attach_leaves_nothing(on_node: OnNode, step: str) -> None:
    """The error names the container; link, namespace and address are free again."""

    async def scenario(lab: Any) -> None:
        is_broken = True

        def fail(done: str) -> None:
            if is_broken and done == step:
                raise OSError(28, "no space left")

        network = lab.network(pool="10.9.0.0/29", after_step=fail)
        await network.start(frozenset())
        for _ in range(10):  # more often than there are addresses
            with pytest.raises(RuntimeFailedError, match="attach container 5feceb66ffc8"):
                await network.attach(lab.container(0))
            assert (lab.files(), lab.mounts(), lab.links()) == ([], [], ["gwbr"])
        is_broken = False
        await network.attach(lab.container(0))

    on_node(scenario)


@pytest.mark.parametrize("step", STEPS)
def test_cancelled_attach_leaves_nothing(on_node: OnNode, step: str) -> None:
    """Cancelled between any two steps: when the caller has its cancellation, all is gone."""

    async def scenario(lab: Any) -> None:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Any]] = []

        def cancel(done: str) -> None:
            if done == step:
                loop.call_soon_threadsafe(tasks[0].cancel)

        network = lab.network(after_step=cancel)
        await network.start(frozenset())
        tasks.append(asyncio.create_task(network.attach(lab.container(0))))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

        assert (lab.files(), lab.mounts(), lab.links()) == ([], [], ["gwbr"])
        assert (await network.attach(lab.container(1))).address == "172.18.0.3"

    on_node(scenario)


def test_attach_and_detach_fifty_times_leaves_nothing(on_node: OnNode) -> None:
    """No link, namespace, mount, file, thread or descriptor remains."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        await network.attach(lab.container(0))
        await network.detach(lab.container(0))
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- counts, no paths
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 -- counts, no paths
        for begin in range(0, 50, 10):
            ids = [lab.container(begin + number) for number in range(10)]
            made = await asyncio.gather(*(network.attach(container_id) for container_id in ids))
            assert len({attachment.address for attachment in made}) == 10
            assert len(lab.mounts()) == 10
            await asyncio.gather(*(network.detach(container_id) for container_id in ids))

        assert (lab.files(), lab.mounts(), lab.links()) == ([], [], ["gwbr"])
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208 -- counts, no paths
        assert len(os.listdir("/proc/self/task")) <= threads + 1  # noqa: PTH208 -- counts, no paths
        assert "link-netnsid" not in lab.ip("-d link show gwbr")

    on_node(scenario)


def test_detach_is_idempotent_and_works_while_a_process_is_inside(on_node: OnNode) -> None:
    """The link goes although a process keeps the namespace; a second detach finds nothing."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        made = await network.attach(lab.container(0))
        with lab.program(["nsenter", f"--net={made.netns_path}", "sleep", "30"]):
            await network.detach(lab.container(0))
            assert (lab.files(), lab.mounts(), lab.links()) == ([], [], ["gwbr"])
            await network.detach(lab.container(0))
            await network.detach(lab.container(1))

    on_node(scenario)


def test_copies_of_the_mount_elsewhere_do_not_keep_the_namespace(on_node: OnNode) -> None:
    """Another mount namespace that copied ours loses the mount with the file."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        made = await network.attach(lab.container(0))
        command = ["unshare", "-m", "--propagation", "private", "sleep", "30"]
        with lab.program(command) as other:
            mounts = Path(f"/proc/{other.pid}/mountinfo")
            own = os.readlink("/proc/thread-self/ns/mnt")  # noqa: PTH115 -- no path
            deadline = time.monotonic() + 5
            while os.readlink(f"/proc/{other.pid}/ns/mnt") == own:  # noqa: PTH115 -- no path
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert made.netns_path in mounts.read_text()
            await network.detach(lab.container(0))

            assert made.netns_path not in mounts.read_text()

    on_node(scenario)


def test_freed_address_is_not_the_next_one(on_node: OnNode) -> None:
    """The pool goes round before it hands an address out again."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        first = await network.attach(lab.container(0))
        await network.detach(lab.container(0))

        assert (await network.attach(lab.container(1))).address != first.address

    on_node(scenario)


def test_full_pool_is_a_sentence_and_a_free_address_ends_it(on_node: OnNode) -> None:
    """A /29 has five places."""

    async def scenario(lab: Any) -> None:
        network = lab.network(pool="10.9.0.0/29")
        await network.start(frozenset())
        for number in range(5):
            await network.attach(lab.container(number))
        with pytest.raises(ResourceExhaustedError, match=r"10\.9\.0\.0/29"):
            await network.attach(lab.container(5))
        await network.detach(lab.container(2))
        await network.attach(lab.container(5))

    on_node(scenario)


def test_pool_avoids_the_nodes_routes_and_stays_afterwards(on_node: OnNode) -> None:
    """Another route takes 172.18/16 first; one that comes later moves live containers never."""

    async def scenario(lab: Any) -> None:
        lab.ip("route add 172.18.5.0/24 via 192.0.2.100")
        network = lab.network()
        await network.start(frozenset())
        made = await network.attach(lab.container(0))
        assert made.address == "172.19.0.2"
        await network.close()
        lab.ip("route add 172.19.7.0/24 via 192.0.2.100")
        second = lab.network(pool="10.9.0.0/24")
        assert await second.start(frozenset({lab.container(0)})) == {lab.container(0): made}
        await second.close()
        third = lab.network(pool="10.9.0.0/24")
        assert await third.start(frozenset()) == {}

        assert (await third.attach(lab.container(0))).address == "10.9.0.2"
        assert "172.19" not in lab.ip("addr show gwbr")
        assert "172.19.0.0/16" not in lab.sh("nft list table ip swarm")
        wrong = lab.network(pool="192.0.2.0/24")
        await third.detach(lab.container(0))
        with pytest.raises(InvalidError, match=r"192\.0\.2\.0/24 overlaps"):
            await wrong.start(frozenset())

    on_node(scenario)


def test_bridge_of_somebody_else_is_refused(on_node: OnNode) -> None:
    """A link named gwbr that is not ours is neither taken nor deleted."""

    async def scenario(lab: Any) -> None:
        lab.ip("link add gwbr type bridge")
        with pytest.raises(ConflictError, match="ip link delete gwbr"):
            await lab.network().start(frozenset())
        await BridgeNetwork(lab.run).destroy()

        assert lab.links() == ["gwbr"]

    on_node(scenario)


def test_deleted_bridge_is_made_again_around_live_containers(on_node: OnNode) -> None:
    """A start after `ip link delete gwbr` puts the live containers' links back on it."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        made = await network.attach(lab.container(0))
        await network.close()
        lab.ip("link delete gwbr")
        second = lab.network()

        assert await second.start(frozenset({lab.container(0)})) == {lab.container(0): made}
        async with lab.tcp_server(lab.client_namespace, 7000, "world"):
            assert (await lab.ask(made, lab.client, 7000)).server == "world"
        assert "isolated on" in lab.ip(f"-d link show sw{lab.container(0)[:12]}")

    on_node(scenario)


def test_rules_flushed_from_outside_come_back(on_node: OnNode) -> None:
    """After `nft flush ruleset` a change of ports, or a start, makes all rules again."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        made = await network.attach(lab.container(0))
        await network.publish((web_port(made.address),))
        before = lab.sh("nft list ruleset")
        lab.sh("nft flush ruleset")
        async with lab.tcp_server(made, 80, "web"):
            with capture_logs() as logs:
                await network.publish((web_port(made.address), web_port(published=8081)))
            assert (await lab.ask(lab.client_namespace, lab.node, 8080)).server == "web"
        assert "port_rules_differed" in [entry["event"] for entry in logs]
        lab.sh("nft flush ruleset")
        await network.close()
        second = lab.network()
        await second.start(frozenset({lab.container(0)}))
        await second.publish((web_port(made.address),))

        assert lab.sh("nft list ruleset") == before

    on_node(scenario)


def test_rules_changed_by_hand_are_put_right(on_node: OnNode) -> None:
    """A start finds a rule that is not ours in a port's chain and elements without a chain."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        await network.publish((web_port("172.18.0.2"), web_port("172.18.0.2", published=8081)))
        wanted = (web_port("172.18.0.2"), web_port(published=8082))
        lab.sh("nft add rule ip swarm tcp-8080 counter")
        lab.sh("nft add rule ip swarm tcp-8081 counter")
        lab.sh("nft add element ip swarm refused { tcp . 8080, udp . 99 }")
        lab.sh("nft add chain ip swarm sctp-7")
        lab.sh("nft add rule ip swarm forward counter")
        await network.close()
        second = lab.network()
        await second.start(frozenset())
        await second.publish(wanted)
        repaired = lab.sh("nft list ruleset")
        await second.destroy()
        third = lab.network()
        await third.start(frozenset())
        await third.publish(wanted)

        assert lab.sh("nft list ruleset") == repaired

    on_node(scenario)


def test_without_the_library_the_program_does_the_same(
    on_node: OnNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without libnftables the `nft` program is used; without both, the sentence says what to do."""

    async def scenario(lab: Any) -> None:
        first = lab.network()
        await first.start(frozenset())
        await first.publish((web_port("172.18.0.2", "172.18.0.3"), web_port(published=8081)))
        wanted = lab.sh("nft list ruleset")
        await first.destroy()
        monkeypatch.setattr(nft_module, "_LIBRARY", "libnone.so.1")
        second = lab.network()
        await second.start(frozenset())
        assert isinstance(second._nft, NftProgram)
        await second.publish((web_port("172.18.0.2", "172.18.0.3"), web_port(published=8081)))
        assert lab.sh("nft list ruleset") == wanted
        await second.destroy()
        monkeypatch.setenv("PATH", "")
        with pytest.raises(RuntimeFailedError, match="install the package nftables"):
            await lab.network().start(frozenset())
        monkeypatch.undo()

    on_node(scenario)


def test_forward_chain_that_drops_is_reported(on_node: OnNode) -> None:
    """Where another program's chain drops forwarded packets, a warning names it and the remedy."""

    async def scenario(lab: Any) -> None:
        lab.sh("nft add table ip filter")
        hook = "type filter hook forward priority 0; policy drop;"
        lab.sh(f"nft 'add chain ip filter FORWARD {{ {hook} }}'")
        with capture_logs() as logs:
            await lab.network().start(frozenset())
        (warning,) = [entry for entry in logs if entry["event"] == "forward_chain_drops"]

        assert warning["chain"] == "ip filter FORWARD"
        assert "gwbr" in warning["remedy"]

    on_node(scenario)


def test_destroy_leaves_nothing_and_does_not_need_a_start(on_node: OnNode) -> None:
    """Table, bridge, links, namespaces and directory are gone; a second time is fine."""

    async def scenario(lab: Any) -> None:
        links = lab.ip("-o link")
        network = lab.network()
        await network.start(frozenset())
        for number in range(3):
            await network.attach(lab.container(number))
        await network.publish((web_port("172.18.0.2"),))
        await network.close()
        await BridgeNetwork(lab.run).destroy()
        await BridgeNetwork(lab.run).destroy()

        assert not lab.run.exists()
        assert lab.mounts() == []
        assert lab.ip("-o link") == links
        assert lab.sh("nft list ruleset") == ""

    on_node(scenario)


def test_calls_before_start_and_bad_ids_are_refused(on_node: OnNode) -> None:
    """The errors are ours, not the kernel's."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        for call in (network.attach(lab.container(0)), network.publish(())):
            with pytest.raises(UnavailableError):
                await call
        await network.start(frozenset())
        for name in ("short", "../../../etc/passwd", "A" * 64):
            with pytest.raises(InvalidError):
                await network.attach(ContainerID(name))
            with pytest.raises(InvalidError):
                await network.detach(ContainerID(name))

    on_node(scenario)


def test_namesake_neither_takes_nor_deletes_the_others_link(on_node: OnNode) -> None:
    """Two IDs that begin alike would share a link's name: the second is refused."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        first, second = (
            ContainerID("0123456789ab" + "c" * 52),
            ContainerID("0123456789ab" + "d" * 52),
        )
        made = await network.attach(first)
        with pytest.raises(ConflictError, match="0123456789ab too"):
            await network.attach(second)
        await network.detach(second)

        async with lab.tcp_server(lab.client_namespace, 7000, "world"):
            assert (await lab.ask(made, lab.client, 7000)).server == "world"
        assert lab.files() == [first]

    on_node(scenario)
