"""What the node's network ought to be, apart from published ports (`rules` has those).

Pure values. The desired state is small: one bridge with one address, settings of its network
namespace, the base chains, and a link for each container that lives. Everything else of ours that
the kernel holds is a leftover.
"""

from __future__ import annotations

import ipaddress

import msgspec

from overlay import rules
from overlay.names import BRIDGE, mac_of
from proto.ids import ContainerID


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of one node.

    Attributes:
        gateway: the bridge's address and network.
        live: containers whose attachments are to be kept.
    """

    gateway: ipaddress.IPv4Interface
    live: frozenset[ContainerID]

    @property
    def mac(self) -> str:
        """The bridge's link address."""
        return mac_of(self.gateway.ip)

    @property
    def base(self) -> rules.Base:
        """The base chains."""
        return rules.base(BRIDGE, self.gateway.network)


# Path below /proc/sys, value. Those that the kernel does not have are left out.
SETTINGS: tuple[tuple[str, str], ...] = (
    # Containers reach the outside, and the outside published ports.
    ("net/ipv4/ip_forward", "1"),
    # A container cannot send with an address that is not behind the bridge.
    (f"net/ipv4/conf/{BRIDGE}/rp_filter", "1"),
    # 127.0.0.1 of the node reaches published ports; chain `raw` keeps everybody else out of it.
    (f"net/ipv4/conf/{BRIDGE}/route_localnet", "1"),
    # The containers have IPv4 only; without this the bridge would take part in their link's IPv6.
    (f"net/ipv6/conf/{BRIDGE}/disable_ipv6", "1"),
    # With it, bridged frames pass the NAT chains before the bridge has routed them, and a
    # published port reached from another container is translated into a frame that isolation drops.
    ("net/bridge/bridge-nf-call-iptables", "0"),
)
