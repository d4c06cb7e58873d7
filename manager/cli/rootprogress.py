"""Decides what `swarm ca --rotate` shows while nodes get certificates of another root. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from manager.cli.convergence import Line, Step

_BAR_WIDTH = 50


def is_rotated(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the old root is gone, and every node shows a certificate of the new one."""
    return not cluster.get("RootRotationInProgress") and _renewed(cluster, nodes) == len(nodes)


def _renewed(cluster: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> int:
    wanted = cluster.get("TLSInfo") or {}
    issuer = ("CertIssuerSubject", "CertIssuerPublicKey")
    return sum(all(one.get(key) == wanted.get(key) for key in issuer) for one in map(_tls, nodes))


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
    return Step(lines, is_done=is_over and trusting == len(nodes))


def _bar(done: int, total: int) -> str:
    filled = done * _BAR_WIDTH // total if total else 0
    return f"[{'=' * filled}>{' ' * (_BAR_WIDTH - filled)}] {done}/{total} nodes"
