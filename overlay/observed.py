"""What the kernel and the run directory hold, read before anything is decided.

Pure values and questions about them; `links.observe` fills them in.
"""

from __future__ import annotations

import ipaddress

import msgspec

from overlay import names
from overlay.rtnetlink import DOOMED_GROUP, LINK_GROUP, Address, Link, Route
from overlay.rules import TableState


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One reading.

    Attributes:
        namespaces: names of files in the run directory that look like ours; True when a namespace
            is mounted there.
        settings: the values of `desired.SETTINGS` that exist now, by path.
    """

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    namespaces: dict[str, bool] = {}
    settings: dict[str, str] = {}
    table: TableState = TableState()

    @property
    def bridge(self) -> Link | None:
        """The link that has the bridge's name, whoever made it."""
        return next((link for link in self.links if link.name == names.BRIDGE), None)

    @property
    def bridge_interfaces(self) -> tuple[ipaddress.IPv4Interface, ...]:
        """The addresses of that link."""
        bridge = self.bridge
        if bridge is None:
            return ()
        return tuple(item.interface for item in self.addresses if item.index == bridge.index)

    @property
    def occupied(self) -> tuple[ipaddress.IPv4Network, ...]:
        """Networks that the node uses without us."""
        bridge = self.bridge
        own = None if bridge is None else bridge.index
        networks = [item.interface.network for item in self.addresses if item.index != own]
        networks += [route.network for route in self.routes if route.index != own]
        return tuple(networks)


def is_our_bridge(link: Link) -> bool:
    """Tell whether a link is the bridge that we made, half-made or finished."""
    return link.kind == "bridge" and (
        link.alias == names.BRIDGE_ALIAS or (not link.alias and link.group == LINK_GROUP)
    )


def is_our_container_link(link: Link) -> bool:
    """Tell whether a link is the host side of a container's pair, half-made or finished."""
    if link.kind != "veth" or not names.is_link_name(link.name):
        return False
    if names.parse_link_alias(link.alias) is not None:
        return True
    return not link.alias and link.group in {LINK_GROUP, DOOMED_GROUP}
