"""Traffic through published ports, between containers, and to the outside, on a real kernel."""

from __future__ import annotations

import asyncio
import collections
import errno
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from overlay.api import Attachment, PublishedPort
from overlay.node import BridgeNetwork

pytestmark = pytest.mark.netns

# Refused at once, and no lost packet that was sent again: TCP's first repetition is after 1 s.
INSTANT_SECONDS = 0.5
OnNode = Callable[[Any], None]


def port(published: int, protocol: Any, target: int, *backends: Attachment) -> PublishedPort:
    """Make a published port."""
    return PublishedPort(
        published_port=published,
        protocol=protocol,
        target_port=target,
        backends=tuple(backend.address for backend in backends),
    )


async def started(lab: Any, containers: int) -> tuple[BridgeNetwork, list[Attachment]]:
    """Start a network with some containers."""
    network = lab.network()
    await network.start(frozenset())
    attachments = await asyncio.gather(
        *(network.attach(lab.container(number)) for number in range(containers))
    )
    return network, list(attachments)


def test_published_tcp_port_keeps_the_client_address(on_node: OnNode) -> None:
    """An outside client reaches the container at once, which sees the client's own address."""

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        await network.publish((port(8080, "tcp", 80, web),))
        async with lab.tcp_server(web, 80, "web"):
            answer = await lab.ask(lab.client_namespace, lab.node, 8080)

        assert (answer.server, answer.client) == ("web", lab.client)
        assert answer.seconds < INSTANT_SECONDS

    on_node(scenario)


def test_published_udp_port_keeps_the_client_address(on_node: OnNode) -> None:
    """The same over UDP."""

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        await network.publish((port(5353, "udp", 53, web),))
        async with lab.udp_server(web, 53, "dns"):
            answer = await lab.ask_udp(lab.client_namespace, lab.node, 5353)

        assert (answer.server, answer.client) == ("dns", lab.client)

    on_node(scenario)


def test_published_sctp_port(on_node: OnNode) -> None:
    """The same over SCTP, where the kernel has it."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP: {error}")

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        await network.publish((port(9000, "sctp", 90, web),))
        async with lab.tcp_server(web, 90, "sig", socket.IPPROTO_SCTP):
            answer = await lab.ask(lab.client_namespace, lab.node, 9000, socket.IPPROTO_SCTP)

        assert (answer.server, answer.client) == ("sig", lab.client)

    on_node(scenario)


def test_connections_spread_evenly_over_three_backends(on_node: OnNode) -> None:
    """Thirty connections are ten for each, even when another port is used in between."""

    async def scenario(lab: Any) -> None:
        network, webs = await started(lab, 3)
        await network.publish((port(8080, "tcp", 80, *webs), port(8081, "tcp", 80, *webs)))
        seen: collections.Counter[str] = collections.Counter()
        async with (
            lab.tcp_server(webs[0], 80, "a"),
            lab.tcp_server(webs[1], 80, "b"),
            lab.tcp_server(webs[2], 80, "c"),
        ):
            for _ in range(30):
                seen[(await lab.ask(lab.client_namespace, lab.node, 8080)).server] += 1
                await lab.ask(lab.client_namespace, lab.node, 8081)

        assert seen == {"a": 10, "b": 10, "c": 10}

    on_node(scenario)


def test_backends_change_under_load_without_a_failed_connection(on_node: OnNode) -> None:
    """Backends come and go 60 times while clients connect: none fails, none has to repeat."""

    async def scenario(lab: Any) -> None:
        network, webs = await started(lab, 3)
        await network.publish((port(8080, "tcp", 80, *webs),))
        durations: list[float] = []
        is_over = asyncio.Event()

        async def client() -> None:
            while not is_over.is_set():
                answer = await lab.ask(lab.client_namespace, lab.node, 8080)
                durations.append(answer.seconds)

        async with (
            lab.tcp_server(webs[0], 80, "a"),
            lab.tcp_server(webs[1], 80, "b"),
            lab.tcp_server(webs[2], 80, "c"),
            asyncio.TaskGroup() as group,
        ):
            for _ in range(4):
                group.create_task(client())
            for _ in range(20):
                for count in (1, 2, 3):
                    await network.publish((port(8080, "tcp", 80, *webs[:count]),))
                    await asyncio.sleep(0.005)
            is_over.set()

        assert len(durations) > 60
        assert max(durations) < INSTANT_SECONDS

    on_node(scenario)


def test_established_connection_outlives_its_backend_in_the_rules(on_node: OnNode) -> None:
    """A removed backend drains: the open connection goes on, new ones go elsewhere."""

    async def scenario(lab: Any) -> None:
        network, (old, new) = await started(lab, 2)
        await network.publish((port(8080, "tcp", 80, old),))
        async with (
            lab.tcp_server(old, 80, "old"),
            lab.tcp_server(new, 80, "new"),
            lab.connection(lab.client_namespace, lab.node, 8080) as (reader, writer),
        ):
            assert (await reader.readline()).startswith(b"old")
            await network.publish((port(8080, "tcp", 80, new),))
            writer.write(b"still here\n")

            assert await reader.readline() == b"still here\n"
            assert (await lab.ask(lab.client_namespace, lab.node, 8080)).server == "new"
            await network.publish(())
            writer.write(b"and here\n")
            assert await reader.readline() == b"and here\n"

    on_node(scenario)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1", "172.18.0.1"])
def test_node_reaches_its_published_port(on_node: OnNode, address: str) -> None:
    """A process of the node reaches the container by any address of the node, over TCP and UDP."""

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        await network.publish((port(8080, "tcp", 80, web), port(8080, "udp", 80, web)))
        async with lab.tcp_server(web, 80, "web"), lab.udp_server(web, 80, "web"):
            assert (await lab.ask(None, address, 8080)).server == "web"
            assert (await lab.ask_udp(None, address, 8080)).server == "web"

    on_node(scenario)


def test_container_reaches_published_ports_through_the_node(on_node: OnNode) -> None:
    """Another container's port, and its own, by the node's address."""

    async def scenario(lab: Any) -> None:
        network, (web, other) = await started(lab, 2)
        await network.publish((port(8080, "tcp", 80, web),))
        async with lab.tcp_server(web, 80, "web"):
            for client in (other, web):
                for address in (lab.node, web.gateway):
                    assert (await lab.ask(client, address, 8080)).server == "web"

    on_node(scenario)


@pytest.mark.parametrize("is_known", [True, False])
def test_port_without_backend_refuses_at_once(on_node: OnNode, *, is_known: bool) -> None:
    """Published without backend, or no longer published: refused instantly, from everywhere."""

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        both = (port(8080, "tcp", 80, web), port(8080, "udp", 80, web))
        await network.publish(both)
        await network.publish((port(8080, "tcp", 80), port(8080, "udp", 80)) if is_known else ())
        for client, address in (
            (lab.client_namespace, lab.node),
            (web, lab.node),
            (None, "127.0.0.1"),
            (None, lab.node),
        ):
            begun = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                await lab.ask(client, address, 8080)
            with pytest.raises(ConnectionRefusedError):
                await lab.ask_udp(client, address, 8080)
            assert time.monotonic() - begun < INSTANT_SECONDS

    on_node(scenario)


def test_port_without_backend_hides_a_process_of_the_node(on_node: OnNode) -> None:
    """A published port is the cluster's, even while a process of the node listens on it."""

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        async with lab.tcp_server(None, 8080, "process"), lab.tcp_server(web, 80, "web"):
            assert (await lab.ask(lab.client_namespace, lab.node, 8080)).server == "process"
            await network.publish((port(8080, "tcp", 80, web),))
            assert (await lab.ask(lab.client_namespace, lab.node, 8080)).server == "web"
            await network.publish((port(8080, "tcp", 80),))
            with pytest.raises(ConnectionRefusedError):
                await lab.ask(lab.client_namespace, lab.node, 8080)
            await network.publish(())
            assert (await lab.ask(lab.client_namespace, lab.node, 8080)).server == "process"

    on_node(scenario)


def test_containers_do_not_reach_each_other_directly(on_node: OnNode) -> None:
    """Neither by the neighbour's address nor by sending it to the gateway."""

    async def scenario(lab: Any) -> None:
        _, (web, other) = await started(lab, 2)
        async with lab.tcp_server(web, 80, "web"):
            with pytest.raises((TimeoutError, OSError)) as direct:
                async with asyncio.timeout(0.5):
                    await lab.ask(other, web.address, 80)
            lab.sh(
                f"nsenter --net={other.netns_path} ip route add {web.address}/32 via {web.gateway}"
            )
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await lab.ask(other, web.address, 80)
            # The server is there: the node itself reaches it.
            assert (await lab.ask(None, web.address, 80)).server == "web"

        assert isinstance(direct.value, TimeoutError) or direct.value.errno == errno.EHOSTUNREACH

    on_node(scenario)


def test_container_reaches_the_outside_with_the_nodes_address(on_node: OnNode) -> None:
    """The outside sees the node, and knows no route to containers."""

    async def scenario(lab: Any) -> None:
        _, (web,) = await started(lab, 1)
        async with lab.tcp_server(lab.client_namespace, 7000, "world"):
            answer = await lab.ask(web, lab.client, 7000)

        assert (answer.server, answer.client) == ("world", lab.node)

    on_node(scenario)


def test_outside_does_not_reach_container_addresses(on_node: OnNode) -> None:
    """A neighbour that sets a route to the bridge's network through the node gets nothing."""

    async def scenario(lab: Any) -> None:
        _, (web,) = await started(lab, 1)
        lab.on_client(f"ip route add 172.18.0.0/16 via {lab.node}")
        async with lab.tcp_server(web, 80, "web"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await lab.ask(lab.client_namespace, web.address, 80)
            assert (await lab.ask(None, web.address, 80)).server == "web"

    on_node(scenario)


def test_loopback_of_the_node_is_closed_to_containers_and_neighbours(on_node: OnNode) -> None:
    """Packets for 127.0.0.1 from another link are dropped, though the bridge routes them."""

    async def scenario(lab: Any) -> None:
        _, (web,) = await started(lab, 1)
        enter = f"nsenter --net={web.netns_path}"
        # Make the container willing to send to 127.0.0.1 through its gateway.
        lab.sh(
            f"{enter} sh -c 'sysctl -qw net.ipv4.conf.all.route_localnet=1; "
            "ip addr del 127.0.0.1/8 dev lo; ip route flush table local 127.0.0.0/8; "
            f"ip route add 127.0.0.1/32 via {web.gateway} src {web.address}'"
        )
        async with lab.tcp_server(None, 9999, "secret"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await lab.ask(web, "127.0.0.1", 9999)
            chain = lab.sh("nft list chain ip swarm raw")
            lab.sh("nft flush chain ip swarm raw")
            # Without the rule it would be open: the test above can fail.
            assert (await lab.ask(web, "127.0.0.1", 9999)).server == "secret"

        assert re.search(r"ip daddr 127.0.0.0/8 drop", chain)

    on_node(scenario)


def test_udp_client_moves_on_when_its_backend_is_detached(on_node: OnNode) -> None:
    """A client that keeps its port reaches the new backend, not the tracked, dead one."""

    async def scenario(lab: Any) -> None:
        network, (old, new) = await started(lab, 2)

        async def ask() -> str:
            where = lab.client_namespace
            answer = await lab.ask_udp(where, lab.node, 5353, source_port=40000)
            return str(answer.server)

        await network.publish((port(5353, "udp", 53, old),))
        async with lab.udp_server(new, 53, "new"):
            async with lab.udp_server(old, 53, "old"):
                assert await ask() == "old"
                await network.publish((port(5353, "udp", 53, new),))
                assert await ask() == "old"
            await network.detach(lab.container(0))
            assert await ask() == "new"

    on_node(scenario)


def test_udp_client_is_translated_once_its_port_is_published(on_node: OnNode) -> None:
    """A flow that began before the port was published does not stay on the node for ever."""

    async def scenario(lab: Any) -> None:
        network, (web,) = await started(lab, 1)
        where = lab.client_namespace
        async with lab.udp_server(web, 53, "web"):
            async with lab.udp_server(None, 5353, "process"):
                before = await lab.ask_udp(where, lab.node, 5353, source_port=40000)
                await network.publish((port(5353, "udp", 53, web),))
            after = await lab.ask_udp(where, lab.node, 5353, source_port=40000)

        assert (before.server, after.server) == ("process", "web")

    on_node(scenario)


def test_first_connection_after_attach_is_not_delayed(on_node: OnNode) -> None:
    """An attached container can be reached, and reach out, the moment `attach` returns.

    Detaching the only container in between takes the bridge's carrier away.
    """

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        async with lab.tcp_server(lab.client_namespace, 7000, "world"):
            for number in range(20):
                web = await network.attach(lab.container(number))
                await network.publish((port(8080, "tcp", 80, web),))
                async with lab.tcp_server(web, 80, "web"):
                    inward = await lab.ask(lab.client_namespace, lab.node, 8080)
                outward = await lab.ask(web, lab.client, 7000)
                assert max(inward.seconds, outward.seconds) < INSTANT_SECONDS
                await network.detach(lab.container(number))

    on_node(scenario)
