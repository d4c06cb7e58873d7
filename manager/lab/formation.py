"""Makes a cluster of a lab's daemons: the first begins it, the others join at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from manager.lab.engine import Engine
from manager.lab.host import Host
from manager.lab.processes import wait_for
from proto.errors import RuntimeFailedError, SwarmError

PORT = 2377
FORM_SECONDS_MAX = 60.0


class Member(msgspec.Struct, frozen=True):
    """A host and what it shall be: "manager" or "worker"."""

    host: Host
    role: str

    @property
    def engine(self) -> Engine:
        """Its daemon."""
        return Engine(self.host.socket, seconds=FORM_SECONDS_MAX)


def begin(first: Host, spec: Mapping[str, object] | None = None) -> dict[str, str]:
    """Begin a cluster on a host; returns the tokens for joining by role."""
    engine = Engine(first.socket, seconds=FORM_SECONDS_MAX)
    request = {
        "ListenAddr": f"0.0.0.0:{PORT}",
        "AdvertiseAddr": first.address,
        "Spec": dict(spec or {}),
    }
    engine("POST", "/swarm/init", request)
    tokens = engine("GET", "/swarm")["JoinTokens"]
    return {"manager": tokens["Manager"], "worker": tokens["Worker"]}


def join(member: Member, first: Host, tokens: Mapping[str, str]) -> None:
    """Let one host join by another."""
    request = {
        "ListenAddr": f"0.0.0.0:{PORT}",
        "AdvertiseAddr": member.host.address,
        "RemoteAddrs": [f"{first.address}:{PORT}"],
        "JoinToken": tokens[member.role],
    }
    try:
        member.engine("POST", "/swarm/join", request)
    except SwarmError as error:
        raise RuntimeFailedError(f"{member.host.name} could not join: {error.message}") from error


def form(members: Sequence[Member], spec: Mapping[str, object] | None = None) -> None:
    """Make a cluster of all; returns when every node is ready and every manager reachable.

    Raises:
        RuntimeFailedError: it did not become one in time; the sentence says who is missing.
    """
    first, *others = members
    tokens = begin(first.host, spec)
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        for joining in [pool.submit(join, member, first.host, tokens) for member in others]:
            joining.result()
    waiting: list[str] = []

    def is_formed() -> bool:
        waiting[:] = missing(members, first.engine("GET", "/nodes"))
        return not waiting

    try:
        wait_for(is_formed, "", seconds=FORM_SECONDS_MAX, poll_seconds=0.05)
    except RuntimeFailedError as error:
        raise RuntimeFailedError(f"the cluster is not complete: {'; '.join(waiting)}") from error


def missing(members: Sequence[Member], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which members are not what they shall be yet."""
    by_name = {node["Description"].get("Hostname"): node for node in nodes}
    said: list[str] = []
    for member in members:
        node = by_name.get(member.host.name)
        if node is None:
            said.append(f"{member.host.name} is no node")
        elif node["Status"]["State"] != "ready":
            said.append(f"{member.host.name} is {node['Status']['State']}")
        elif member.role == "manager":
            reachability = (node.get("ManagerStatus") or {}).get("Reachability", "no manager")
            if reachability != "reachable":
                said.append(f"{member.host.name} is {reachability}")
    return said
