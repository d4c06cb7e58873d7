"""Placement constraints: `node.labels.zone==east`, parsed and matched as Docker Swarm does.

Only `==` and `!=`, all must hold. Keys and values compare without case, names of labels with it;
an unknown key never matches. Source: swarmkit manager/constraint.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from proto.errors import InvalidError
from proto.objects import Node, NodeRole

_VALUE = re.compile(r"^[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+$", re.IGNORECASE)
_KEY = re.compile(r"^[a-z_][a-z0-9\-_.]+$", re.IGNORECASE)


class Constraint(msgspec.Struct, frozen=True):
    """One condition; `is_equal` False means `!=`."""

    key: str
    is_equal: bool
    value: str

    def matches(self, node: Node) -> bool:
        """Tell whether the node satisfies this constraint."""
        key = self.key.lower()
        if key == "node.ip":
            return self._matches_address(node.status.addr)
        actual = _attribute(node, self.key)
        if actual is None:
            return False
        return (actual.lower() == self.value.lower()) == self.is_equal

    def _matches_address(self, addr: str) -> bool:
        """Compare with one address or a CIDR block."""
        try:
            network = ipaddress.ip_network(self.value, strict=False)
            is_inside = ipaddress.ip_address(addr) in network
        except ValueError:
            return False
        return is_inside == self.is_equal


def _attribute(node: Node, key: str) -> str | None:
    """Look up what a key names; None for an unknown key, "" for a missing label."""
    lowered = key.lower()
    for prefix, labels in (
        ("node.labels.", node.spec.labels),
        ("engine.labels.", node.description.engine.labels),
    ):
        if lowered.startswith(prefix):
            return labels.get(key[len(prefix) :], "")
    return {
        "node.id": node.id,
        "node.hostname": node.description.hostname,
        "node.role": "manager" if node.role is NodeRole.MANAGER else "worker",
        "node.platform.os": node.description.platform.os,
        "node.platform.arch": node.description.platform.architecture,
    }.get(lowered)


def parse_constraint(text: str) -> Constraint:
    """Parse `key==value` or `key!=value`.

    Raises:
        InvalidError: the text is neither, or has characters that no key or value has.
    """
    for operator, is_equal in (("==", True), ("!=", False)):
        key, found, value = text.partition(operator)
        if not found:
            continue
        key, value = key.strip(), value.strip()
        if not _KEY.match(key):
            raise InvalidError(f"constraint {text!r}: key {key!r} is invalid")
        if not _VALUE.match(value):
            raise InvalidError(f"constraint {text!r}: value {value!r} is invalid")
        return Constraint(key, is_equal, value)
    raise InvalidError(f"constraint {text!r} has no operator: expected key==value or key!=value")
