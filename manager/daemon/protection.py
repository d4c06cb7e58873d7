"""Protects the manager's ports before anybody has proved who he is; see `overlay/firewall_rules`.

What is to be protected follows from what the node is and whom it knows: the ports of this manager,
the addresses of the cluster's nodes, and the ports of the other managers, which this node's
containers are kept from. It is looked at when the managers change, and every few seconds for
the nodes. Where the kernel has no such rules the node works without them and says so in `info`;
the API port's listener then still has its own bounds, the node port has none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import structlog

from manager.daemon.addresses import split_port
from manager.daemon.identity import Identity
from manager.nodeport.claims import node_address
from manager.nodeport.remotes import ManagerPeer
from manager.store.tables import View
from overlay.firewall import Firewall
from overlay.firewall_rules import Protected
from proto.errors import RuntimeFailedError

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

LOOK_SECONDS = 5.0


@lru_cache(1)
def protected_of(
    identity: Identity,
    peers: tuple[ManagerPeer, ...],
    nodes: frozenset[str],
    *,
    is_open_to_containers: bool,
) -> Protected:
    """Return what a node protects. Pure, and remembered: it is asked every few seconds.

    Args:
        identity: the node's.
        peers: the other managers that it knows.
        nodes: the addresses of the cluster's nodes, as far as it knows them.
        is_open_to_containers: whether containers may reach the ports.
    """
    host, port = split_port(identity.advertise_addr, "address")
    listening = split_port(identity.listen_addr, "address")[1]
    managers: set[tuple[str, int]] = set()
    members = {host, *nodes}
    for peer in peers:
        peer_host, node_port = split_port(peer.address, "address")
        managers |= {(peer_host, node_port), (peer_host, node_port - 1)}
        members.add(peer_host)
    ports: tuple[int, ...] = ()
    if identity.role == "manager":
        # The node port is that which follows.
        ports = (listening, listening + 1)
        managers |= {(host, port), (host, port + 1)}
    return Protected(
        ports=ports,
        members=tuple(sorted(_addresses(members))),
        managers=tuple(
            sorted((address, number) for name, number in managers for address in _addresses([name]))
        ),
        is_open_to_containers=is_open_to_containers,
    )


def _addresses(names: Iterable[str]) -> Iterable[str]:
    """Yield those that are addresses; a link-local one's scope means nothing to the rules."""
    for name in names:
        address = node_address(name, "").partition("%")[0]
        if address:
            yield address


class PortProtection:
    """See the module.

    Attributes:
        warning: why the ports are not protected; "" while they are.
    """

    def __init__(self) -> None:
        """Protect nothing: in the simulator nobody can reach the node."""
        self.warning = ""
        self._firewall: Firewall | None = None
        self._is_open_to_containers = False
        self._again = asyncio.Event()

    def use(self, firewall: Firewall, *, is_open_to_containers: bool) -> None:
        """Have a firewall from now on."""
        self._firewall = firewall
        self._is_open_to_containers = is_open_to_containers

    def look_again(self) -> None:
        """Note that the managers may be others now."""
        self._again.set()

    async def run(
        self, state: Callable[[], tuple[Identity | None, Sequence[ManagerPeer], View | None]]
    ) -> None:
        """Keep the rules as they have to be, until cancelled."""
        while self._firewall is not None:
            await self.protect(*state())
            self._again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._again.wait()

    async def protect(
        self, identity: Identity | None, peers: Sequence[ManagerPeer], view: View | None
    ) -> None:
        """Bring the rules about, before anybody listens on the ports; a failure raises nothing."""
        if self._firewall is None or identity is None:
            return
        wanted = protected_of(
            identity,
            tuple(peers),
            frozenset(node.status.addr for node in view.nodes) if view is not None else frozenset(),
            is_open_to_containers=self._is_open_to_containers,
        )
        try:
            await self._firewall.protect(wanted)
        except RuntimeFailedError as error:
            warning = (
                "WARNING: connections to this node's swarm ports are not limited before they have "
                f"proved who they are, and containers can reach them: {error.message}"
            )
            if warning != self.warning:
                log.warning("ports_not_protected", error=error.message)
            self.warning = warning
        else:
            if self.warning:
                log.info("ports_protected")
            self.warning = ""

    async def remove(self) -> None:
        """Leave no rules behind: the node is in no swarm."""
        if self._firewall is not None:
            try:
                await self._firewall.remove()
            except RuntimeFailedError as error:
                log.warning("port_rules_not_removed", error=error.message)
        self.warning = ""
