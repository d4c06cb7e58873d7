"""Decides what `swarm ca --rotate` shows while nodes get certificates of another root. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from manager.cli.convergence import Line, Step

_BAR_WIDTH = 50
# So many nodes are named, of those that are missing.
NAMES_MAX = 8


def is_rotated(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the old root is gone, and every node shows a certificate of the new one."""
    return not cluster.get("RootRotationInProgress") and _renewed(cluster, nodes) == len(nodes)


def _renewed(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> int:
    return sum(_has_renewed(cluster, node) for node in nodes)


def _has_renewed(cluster: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    wanted, own = cluster.get("TLSInfo") or {}, _tls(node)
    issuer = ("CertIssuerSubject", "CertIssuerPublicKey")
    return all(own.get(key) == wanted.get(key) for key in issuer)


def missing(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Name the nodes that the end of a rotation waits for, those that are down as such."""
    found = []
    for node in nodes:
        if _has_renewed(cluster, node):
            continue
        name = (node.get("Description") or {}).get("Hostname") or node.get("ID", "")
        state = (node.get("Status") or {}).get("State", "")
        found.append(str(name) if state == "ready" else f"{name} ({state or 'unknown'})")
    more = len(found) - NAMES_MAX
    return ", ".join(sorted(found)[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def _tls(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return (node.get("Description") or {}).get("TLSInfo") or {}


def observe(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> Step:
    """Take one look, in Engine JSON; it is over when every node shows and trusts the new root.

    Until the old root is dropped nodes trust both, so none counts as trusting the new one.
    """
    wanted = cluster.get("TLSInfo") or {}
    is_over = is_rotated(cluster, nodes)
    renewed, trusting = _renewed(cluster, nodes), 0
    if is_over:
        trusting = sum(_tls(node).get("TrustRoot") == wanted.get("TrustRoot") for node in nodes)
    digest = hashlib.sha256(wanted.get("TrustRoot", "").encode()).hexdigest()
    lines = [
        Line("desired root digest", f"sha256:{digest}"),
        Line("  rotated TLS certificates", f" {_bar(renewed, len(nodes))}", is_bar=True),
        Line("  rotated CA certificates", f"  {_bar(trusting, len(nodes))}", is_bar=True),
    ]
    names = missing(cluster, nodes) or "no node"
    lines.append(Line("  waiting for", f"               {names}", is_bar=True))
    return Step(lines, is_done=is_over and trusting == len(nodes))


def _bar(done: int, total: int) -> str:
    filled = done * _BAR_WIDTH // total if total else 0
    return f"[{'=' * filled}>{' ' * (_BAR_WIDTH - filled)}] {done}/{total} nodes"
