"""Which addresses the node's bridge hands out.

Pure. `choose_pool` picks a network that nothing on the node uses yet; `AddressPool` hands out its
addresses one after the other. Invariants (`AddressPool.check`): an address has one owner, an owner
one address; network, gateway and broadcast addresses are never handed out; a freed address comes
last in turn, so that a peer that still sends to the old owner does not reach a new one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from proto.errors import InvalidError, ResourceExhaustedError

# Docker's default address pools without 172.17.0.0/16, which dockerd takes for docker0, at the end.
CANDIDATES: tuple[ipaddress.IPv4Network, ...] = (
    *(ipaddress.IPv4Network(f"172.{second}.0.0/16") for second in range(18, 32)),
    ipaddress.IPv4Network("172.17.0.0/16"),
    *(ipaddress.IPv4Network(f"192.168.{third}.0/20") for third in range(0, 256, 16)),
)

# A route shorter than this is a default route in disguise (VPNs set 0.0.0.0/1 and 128.0.0.0/1).
_ROUTE_PREFIX_MIN = 8
# Network, gateway, one container, broadcast.
_POOL_PREFIX_MAX = 29


def choose_pool(requested: str, occupied: Sequence[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """Pick the bridge's network.

    Args:
        requested: a network in CIDR notation, or "" for the first candidate that is free.
        occupied: networks of the node's addresses and routes, without those of the bridge.

    Raises:
        InvalidError: the requested network is malformed, too small or in use.
        ResourceExhaustedError: none of the candidates is free.
    """
    taken = [network for network in occupied if network.prefixlen >= _ROUTE_PREFIX_MIN]
    if requested:
        pool = _parse(requested)
        conflict = next((network for network in taken if network.overlaps(pool)), None)
        if conflict is not None:
            raise InvalidError(
                f"address pool {pool} overlaps with the node's route or address {conflict}; "
                "choose another pool"
            )
        return pool
    for candidate in CANDIDATES:
        if not any(network.overlaps(candidate) for network in taken):
            return candidate
    raise ResourceExhaustedError(
        "every default address pool for containers (172.17-31.0.0/16, 192.168.0.0/16) overlaps "
        "with a route or address of this node; set a pool for the gateway bridge"
    )


def _parse(requested: str) -> ipaddress.IPv4Network:
    try:
        pool = ipaddress.IPv4Network(requested)
    except ValueError as error:
        raise InvalidError(f"address pool {requested!r} is not an IPv4 network: {error}") from error
    if pool.prefixlen > _POOL_PREFIX_MAX:
        raise InvalidError(f"address pool {pool} is too small: /{_POOL_PREFIX_MAX} is the least")
    return pool


class AddressPool:
    """Hands out the addresses of one network, in turn."""

    def __init__(self, network: ipaddress.IPv4Network) -> None:
        self.network = network
        self.gateway = network.network_address + 1
        self._first = int(network.network_address) + 2
        self._last = int(network.broadcast_address) - 1
        self._next = self._first
        self._owner_of: dict[int, str] = {}
        self._address_of: dict[str, int] = {}

    def allocate(self, owner: str) -> ipaddress.IPv4Address:
        """Give `owner` the next free address; the one it has already, if any.

        Raises:
            ResourceExhaustedError: every address is in use.
        """
        known = self._address_of.get(owner)
        if known is not None:
            return ipaddress.IPv4Address(known)
        size = self._last - self._first + 1
        if len(self._owner_of) == size:
            raise ResourceExhaustedError(
                f"all {size} addresses of {self.network} are in use; remove containers from this "
                "node or set a larger pool for the gateway bridge"
            )
        address = self._next
        while address in self._owner_of:
            address = self._after(address)
        self._take(owner, address)
        return ipaddress.IPv4Address(address)

    def reserve(self, owner: str, address: ipaddress.IPv4Address) -> bool:
        """Record an address that `owner` has already.

        Returns:
            False, with nothing changed, when the address is outside the pool or another's, or
            when the owner has a different one.
        """
        number = int(address)
        if not self._first <= number <= self._last:
            return False
        if self._owner_of.get(number, owner) != owner:
            return False
        if self._address_of.get(owner, number) != number:
            return False
        self._take(owner, number)
        return True

    def release(self, owner: str) -> ipaddress.IPv4Address | None:
        """Free the owner's address; None when it had none."""
        address = self._address_of.pop(owner, None)
        if address is None:
            return None
        del self._owner_of[address]
        return ipaddress.IPv4Address(address)

    def owners(self) -> Iterable[str]:
        """List who has an address, in no particular order."""
        return self._address_of.keys()

    def check(self) -> None:
        """Assert every invariant of the module's first paragraph that can be seen from a state."""
        assert len(self._owner_of) == len(self._address_of)
        for owner, address in self._address_of.items():
            assert self._owner_of[address] == owner
            assert self._first <= address <= self._last
        assert self._first <= self._next <= self._last

    def _take(self, owner: str, address: int) -> None:
        self._owner_of[address] = owner
        self._address_of[owner] = address
        self._next = self._after(address)

    def _after(self, address: int) -> int:
        return self._first if address == self._last else address + 1
