"""Which managers there are, and which to try next. Pure.

Each has a weight: an average of what was observed of it, in which the newest observation counts
half (an exponentially weighted moving average). One that answers is chosen often, one that does not
seldom, and none never: a manager that was down for long is found again.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping

import msgspec

from proto.ids import NodeID

# Source: swarmkit remotes/remotes.go (default observation weight 10, smoothing 1/2).
WEIGHT_GOOD = 10.0
WEIGHT_BAD = 0.1
_SMOOTHING = 0.5
# More are not managers of one cluster.
REMOTES_MAX = 256


class ManagerPeer(msgspec.Struct, frozen=True):
    """A manager that can be asked.

    Attributes:
        node_id: "" if only the address is known.
        address: host:port of its node port.
        weight: what the one who told thinks of it.
    """

    node_id: NodeID
    address: str
    weight: int = 10


class Remotes:
    """The managers that a node knows; never empty once it had one."""

    def __init__(self, peers: Iterable[ManagerPeer] = ()) -> None:
        """Begin with these."""
        self._peers: dict[str, ManagerPeer] = {}
        self._weights: dict[str, float] = {}
        self.add(peers)

    def add(self, peers: Iterable[ManagerPeer]) -> None:
        """Learn of managers; a node that has a new address loses its old one."""
        for peer in peers:
            if not peer.address:
                continue
            if peer.node_id:
                for known in list(self._peers.values()):
                    if known.node_id == peer.node_id and known.address != peer.address:
                        self._forget(known.address)
            if peer.address not in self._peers and len(self._peers) >= REMOTES_MAX:
                self._forget(min(self._weights, key=lambda address: self._weights[address]))
            older = self._peers.get(peer.address)
            if older is None or peer.node_id or not older.node_id:
                self._peers[peer.address] = peer
            self._weights.setdefault(peer.address, float(max(peer.weight, 1)))

    def replace(self, peers: Collection[ManagerPeer]) -> None:
        """Know exactly these from now on; weights observed are kept. None at all changes nothing.

        Whoever sends a list of managers is one of them, so an empty list is a mistake.
        """
        addresses = {peer.address for peer in peers if peer.address}
        if not addresses:
            return
        for address in list(self._peers):
            if address not in addresses:
                self._forget(address)
        self.add(peers)

    def observe(self, address: str, *, is_good: bool) -> None:
        """Note how a manager behaved; an unknown one is not learnt of."""
        if address in self._weights:
            seen = WEIGHT_GOOD if is_good else WEIGHT_BAD
            old = self._weights[address]
            self._weights[address] = _SMOOTHING * seen + (1 - _SMOOTHING) * old

    def choose(self, rng: random.Random, *, tried: Collection[str] = ()) -> ManagerPeer | None:
        """Draw a manager by weight, none of the addresses in `tried`; None if none is left."""
        left = [peer for address, peer in self._peers.items() if address not in tried]
        if not left:
            return None
        weights = [self._weights[peer.address] for peer in left]
        return rng.choices(left, weights)[0]

    def find(self, address: str) -> ManagerPeer:
        """Return the manager at an address, known or not."""
        return self._peers.get(address) or ManagerPeer(NodeID(""), address)

    def peers(self) -> tuple[ManagerPeer, ...]:
        """Return all, in the order in which they were learnt of."""
        return tuple(self._peers.values())

    def weights(self) -> Mapping[str, float]:
        """Return each address's weight."""
        return dict(self._weights)

    def _forget(self, address: str) -> None:
        del self._peers[address]
        del self._weights[address]
