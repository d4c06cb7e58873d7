"""Connections to the manager's ports, counted by a real kernel before anybody accepts them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay import firewall_rules
from overlay.firewall import HostFirewall
from overlay.firewall_rules import (
    CONTAINERS_CONNECTIONS_MAX,
    MEMBER_CONNECTIONS_MAX,
    SOURCE_CONNECTIONS_MAX,
    Protected,
)

pytestmark = pytest.mark.netns

OnNode = Callable[[Any], None]
PORT = 2378
MORE = 40


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Close what the test opened."""
    with contextlib.ExitStack() as closing:
        yield closing


Stack = contextlib.ExitStack


async def opened(
    stack: Stack, lab: Any, where: Any, address: str, count: int, *, source: str = ""
) -> list[Any]:
    """Try so many connections, and return those that came about; they stay open."""
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(count):
        one = stack.enter_context(lab.open_socket(where, socket.SOCK_STREAM))
        if source:
            one.bind((source, 0))
        try:
            async with asyncio.timeout(5):
                await loop.sock_connect(one, (address, PORT))
        except ConnectionRefusedError:
            one.close()
        else:
            found.append(one)
    return found


def listening(lab: Any, where: Any = None) -> socket.socket:
    """Listen, and accept nothing: the kernel makes the connections."""
    listener: socket.socket = lab.open_socket(where, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", PORT))
    listener.listen(4096)
    return listener


def test_one_address_has_so_many_connections(on_node: OnNode, stack: Stack) -> None:
    """What is more is refused at once; when some end there is room again; members have theirs."""

    async def scenario(lab: Any) -> None:
        firewall = HostFirewall()
        lab.on_client("ip addr add 192.0.2.101/24 dev eth0")
        await firewall.protect(Protected(ports=(PORT,), members=("192.0.2.101",)))
        with contextlib.closing(listening(lab)):
            wanted = SOURCE_CONNECTIONS_MAX + MORE
            strangers = await opened(stack, lab, lab.client_namespace, lab.node, wanted)
            members = await opened(
                stack, lab, lab.client_namespace, lab.node, wanted, source="192.0.2.101"
            )
            assert len(strangers) == SOURCE_CONNECTIONS_MAX
            assert len(members) == wanted < MEMBER_CONNECTIONS_MAX

            await firewall.protect(Protected(ports=(PORT,), members=(lab.client, "192.0.2.102")))
            assert len(await opened(stack, lab, lab.client_namespace, lab.node, 2)) == 2
            await firewall.protect(Protected(ports=(PORT,)))
            assert await opened(stack, lab, lab.client_namespace, lab.node, 2) == []
            for one in strangers[:5]:
                one.close()

        await firewall.remove()
        assert firewall_rules.TABLE not in lab.sh("nft list tables")

    on_node(scenario)


def test_a_container_reaches_no_managers_port(on_node: OnNode, stack: Stack) -> None:
    """Neither this node's nor, from this node's address, another's; with the option it does."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        container = await network.attach(lab.container(0))
        firewall = HostFirewall()
        protected = Protected(
            ports=(PORT,), members=(lab.node,), managers=((lab.node, PORT), (lab.client, PORT))
        )
        await firewall.protect(protected)
        with (
            contextlib.closing(listening(lab)),
            contextlib.closing(listening(lab, lab.client_namespace)),
        ):
            for address in (lab.node, container.gateway, lab.client):
                assert await opened(stack, lab, container, address, 2) == [], address
            assert len(await opened(stack, lab, None, lab.client, 2)) == 2
            await firewall.protect(
                Protected(ports=(PORT,), managers=protected.managers, is_open_to_containers=True)
            )
            for address in (lab.node, lab.client):
                assert len(await opened(stack, lab, container, address, 2)) == 2, address
        await firewall.remove()

    on_node(scenario)


def test_a_container_cannot_use_up_its_nodes_connections(on_node: OnNode, stack: Stack) -> None:
    """A manager's other address is not known as one: what goes there is few, and the node's own."""

    async def scenario(lab: Any) -> None:
        network = lab.network()
        await network.start(frozenset())
        container = await network.attach(lab.container(0))
        firewall = HostFirewall()
        await firewall.protect(Protected(managers=(("192.0.2.1", PORT),)))
        count = CONTAINERS_CONNECTIONS_MAX + 8
        with contextlib.closing(listening(lab, lab.client_namespace)):
            there = await opened(stack, lab, container, lab.client, count)
            assert len(there) == CONTAINERS_CONNECTIONS_MAX
            assert len(await opened(stack, lab, None, lab.client, count)) == count
        await firewall.remove()

    on_node(scenario)


def test_a_table_that_was_removed_or_is_another_ones_is_made_again(on_node: OnNode) -> None:
    """By an administrator's `flush ruleset`, or left by a version that had other sets."""

    async def scenario(lab: Any) -> None:
        lab.sh(f"nft add table inet {firewall_rules.TABLE}")
        lab.sh(f"nft 'add set inet {firewall_rules.TABLE} ports {{ type ipv4_addr; }}'")
        firewall, protected = HostFirewall(), Protected(ports=(PORT,))
        await firewall.protect(protected)
        before = lab.sh(f"nft list table inet {firewall_rules.TABLE}")
        assert str(PORT) in before
        lab.sh("nft flush ruleset")
        await firewall.protect(protected)
        assert lab.sh(f"nft list table inet {firewall_rules.TABLE}") == before
        await firewall.remove()

    on_node(scenario)
