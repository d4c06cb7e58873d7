"""What `swarm lab ls` shows of a lab."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from manager.lab.engine import Engine
from manager.lab.host import Host
from manager.lab.lab import Lab
from proto.errors import SwarmError

_ANSWER_SECONDS_MAX = 2.0


def rows(lab: Lab) -> list[list[str]]:
    """Describe each host: lab, name, address, role, state, place in the swarm, cuts."""
    state = lab.state
    switch = lab.switch(state)
    cuts = switch.cuts() if switch.holder is not None and switch.holder.is_alive else set()
    hosts = [(host, lab.host(host.name, state)) for host in state.hosts]
    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        places = list(pool.map(lambda pair: _place(pair[1]), hosts))
    return [
        [
            *(lab.name, kept.name, kept.address, kept.role),
            *(machine, swarm),
            ",".join(sorted(other for one, other in cuts if one == kept.name)),
        ]
        for (kept, _), (machine, swarm) in zip(hosts, places, strict=True)
    ]


def _place(host: Host) -> tuple[str, str]:
    if not host.is_up:
        return "off", ""
    if host.daemon is None:
        return "daemon stopped", ""
    try:
        swarm = Engine(host.socket, seconds=_ANSWER_SECONDS_MAX)("GET", "/info")["Swarm"]
    except SwarmError:
        return "daemon silent", ""
    place = str(swarm.get("LocalNodeState", ""))
    if place == "active":
        place = _standing(host) if swarm.get("ControlAvailable") else "worker"
    return "up", place


def _standing(host: Host) -> str:
    """Say what a manager is, as `node ls` does."""
    engine = Engine(host.socket, seconds=_ANSWER_SECONDS_MAX)
    try:
        node = engine("GET", "/nodes/" + engine("GET", "/info")["Swarm"]["NodeID"])
    except SwarmError:
        return "manager, no quorum"
    status = node.get("ManagerStatus") or {}
    return "leader" if status.get("Leader") else f"manager, {status.get('Reachability', 'unknown')}"
