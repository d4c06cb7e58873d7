"""The seam between the worker and the node's network: attachments and published ports.

Values only. `overlay` knows nothing of tasks or services: who calls it says which container is
attached and, as one whole desired state, which ports lead to which addresses.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from proto.ids import ContainerID


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on the node's NAT bridge.

    Attributes:
        netns_path: the bind-mounted network namespace.
        address: IPv4 address without prefix length; `prefix_length` beside it.
        gateway: the bridge's address.
        mac: derived from the address.
    """

    container_id: ContainerID
    netns_path: str
    address: str
    prefix_length: int
    gateway: str
    mac: str


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A port of this node and the container addresses behind it, in slot order; sorted by port.

    With no backend the node refuses the connection at once instead of letting it hang.
    """

    published_port: int
    protocol: Literal["tcp", "udp", "sctp"]
    target_port: int
    backends: tuple[str, ...] = ()


class NodeNetwork(Protocol):
    """Owns the bridge `gwbr`, the containers' veth pairs and namespaces, and our nft tables."""

    async def start(self, live: frozenset[ContainerID]) -> dict[ContainerID, Attachment]:
        """Make bridge and rules, adopt the attachments in `live`, remove all other leftovers."""

    async def attach(self, container_id: ContainerID) -> Attachment:
        """Make the namespace with `lo`, `eth0`, an address and a default route; idempotent."""

    async def detach(self, container_id: ContainerID) -> None:
        """Remove the namespace and the veth pair, free the address; idempotent."""

    async def publish(self, ports: tuple[PublishedPort, ...]) -> None:
        """Make exactly these ports lead to these backends: only the difference is applied."""

    async def close(self) -> None:
        """Close sockets. Links, namespaces and rules stay: containers keep their network."""

    async def destroy(self) -> None:
        """Remove everything of ours from the kernel (the node leaves, or the demo ends)."""
