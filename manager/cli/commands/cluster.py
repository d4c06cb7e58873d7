"""`swarm init|join|leave|update|unlock|unlock-key|join-token`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from manager.cli.clusterspec import availability, external_ca, merged
from manager.cli.durations import parse_duration
from manager.cli.errors import CommandError, DaemonError
from manager.cli.flags import Flag, Flags, boolean, signed, unsigned
from manager.cli.parse_values import listen_address, subnet
from manager.cli.program import Console, Spec
from manager.cli.transport import quoted

LISTEN_DEFAULT = "0.0.0.0:2377"
SUBNET_SIZE_DEFAULT = 24
_NO_ADDRESS = ("could not choose an IP address to advertise", "could not find the system's IP")


def _init(console: Console, flags: Flags, _arguments: list[str]) -> None:
    spec = merged({"Labels": {}}, _with_certificates(flags))
    body: dict[str, Any] = {
        "ListenAddr": flags.get("listen-addr", LISTEN_DEFAULT),
        "AdvertiseAddr": flags.text("advertise-addr"),
        "DataPathAddr": flags.text("data-path-addr"),
        "DataPathPort": flags.get("data-path-port", 0),
        "ForceNewCluster": flags.is_on("force-new-cluster"),
        "Spec": spec,
        "AutoLockManagers": flags.is_on("autolock"),
        "Availability": availability(flags),
        "DefaultAddrPool": flags.many("default-addr-pool") or None,
        "SubnetSize": flags.get("default-addr-pool-mask-length", SUBNET_SIZE_DEFAULT),
    }
    try:
        node_id = console.engine.post("/swarm/init", body)
    except DaemonError as error:
        is_told = "--advertise-addr" in error.message
        if not is_told and any(text in error.reason for text in _NO_ADDRESS):
            raise CommandError(f"{error.message} - specify one with --advertise-addr") from error
        raise
    console.line(f"Swarm initialized: current node ({node_id}) is now a manager.\n")
    _print_join(console, "worker", node_id)
    console.line(
        "To add a manager to this swarm, run 'swarm join-token manager' and follow the "
        "instructions."
    )
    if flags.is_on("autolock"):
        _print_unlock(console, _unlock_key(console))


def _with_certificates(flags: Flags) -> Flags:
    """Read the files that --external-ca names."""
    if "external-ca" not in flags:
        return flags
    authorities = []
    for authority in flags.many("external-ca"):
        if "CACert" in authority:
            path = authority["CACert"]
            try:
                authority = {**authority, "CACert": Path(path).read_text()}  # noqa: PLW2901 -- read
            except OSError as error:
                message = f"unable to read CA cert for external CA: open {path}: {error.strerror}"
                raise CommandError(message) from error
        authorities.append(authority)
    return Flags({**flags, "external-ca": authorities})


def _print_join(console: Console, role: str, node_id: str) -> None:
    node = console.engine.get(f"/nodes/{quoted(node_id)}")
    token = console.engine.get("/swarm")["JoinTokens"][role.title()]
    manager = node.get("ManagerStatus")
    if manager is not None:
        console.line(
            f"To add a {role} to this swarm, run the following command:\n\n"
            f"    swarm join --token {token} {manager['Addr']}\n"
        )


def _unlock_key(console: Console) -> str:
    try:
        return str((console.engine.get("/swarm/unlockkey") or {}).get("UnlockKey", ""))
    except DaemonError as error:
        raise CommandError(f"could not fetch unlock key: {error.message}") from error


def _print_unlock(console: Console, key: str) -> None:
    if key:
        console.line(
            "To unlock a swarm manager after it restarts, run the `swarm unlock`\n"
            f"command and provide the following key:\n\n    {key}\n\n"
            "Remember to store this key in a password manager, since without it you\n"
            "will not be able to restart the manager."
        )


def _join(console: Console, flags: Flags, arguments: list[str]) -> None:
    body = {
        "ListenAddr": flags.get("listen-addr", LISTEN_DEFAULT),
        "AdvertiseAddr": flags.text("advertise-addr"),
        "DataPathAddr": flags.text("data-path-addr"),
        "RemoteAddrs": arguments,
        "JoinToken": flags.text("token"),
        "Availability": availability(flags),
    }
    console.engine.post("/swarm/join", body)
    is_manager = console.engine.get("/info")["Swarm"].get("ControlAvailable")
    console.line(f"This node joined a swarm as a {'manager' if is_manager else 'worker'}.")


def _leave(console: Console, flags: Flags, _arguments: list[str]) -> None:
    query = {"force": "1"} if flags.is_on("force") else {}
    console.engine.post("/swarm/leave", query=query)
    console.line("Node left the swarm.")


def _update(console: Console, flags: Flags, _arguments: list[str]) -> None:
    if not flags:
        raise CommandError(
            "nothing to update: name a setting, such as --autolock=true\n\n"
            "Usage:  swarm update [OPTIONS]\n\n"
            "Run 'swarm update --help' for more information"
        )
    cluster = console.engine.get("/swarm")
    before = _is_autolocked(cluster["Spec"])
    spec = merged(cluster["Spec"], _with_certificates(flags))
    put_cluster(console, cluster, spec)
    console.line("Swarm updated.")
    if _is_autolocked(spec) and not before:
        _print_unlock(console, _unlock_key(console))


def _is_autolocked(spec: Any) -> bool:
    return bool((spec.get("EncryptionConfig") or {}).get("AutoLockManagers"))


def put_cluster(console: Console, cluster: Any, spec: Any, rotate: str = "") -> None:
    """Write the cluster's spec back, and have a secret drawn anew where `rotate` names one."""
    query = {"version": str(cluster["Version"]["Index"])}
    for name in ("rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey"):
        query[name] = str(name == rotate).lower()
    console.engine.post("/swarm/update", spec, query=query)


def _unlock(console: Console, _flags: Flags, _arguments: list[str]) -> None:
    state = (console.engine.get("/info").get("Swarm") or {}).get("LocalNodeState", "inactive")
    if state == "inactive":
        raise CommandError("Error: this node is not part of a swarm")
    if state != "locked":
        raise CommandError("Error: swarm is not locked")
    console.engine.post("/swarm/unlock", {"UnlockKey": _read_key()})


def _read_key() -> str:
    """Ask for the key without showing it, or read it from a pipe."""
    if sys.stdin.isatty():
        from getpass import getpass  # noqa: PLC0415 -- only here

        try:
            return getpass("Enter unlock key: ").strip()
        except EOFError:
            return ""
    return sys.stdin.readline().strip()


def _show_unlock_key(console: Console, flags: Flags, _arguments: list[str]) -> None:
    if flags.is_on("rotate"):
        cluster = console.engine.get("/swarm")
        if not _is_autolocked(cluster["Spec"]):
            raise CommandError("cannot rotate because autolock is not turned on")
        put_cluster(console, cluster, cluster["Spec"], "rotateManagerUnlockKey")
        if not flags.is_on("quiet"):
            console.line("Successfully rotated manager unlock key.\n")
    key = _unlock_key(console)
    if not key:
        raise CommandError("no unlock key is set")
    if flags.is_on("quiet"):
        console.line(key)
    else:
        _print_unlock(console, key)


def _join_token(console: Console, flags: Flags, arguments: list[str]) -> None:
    role = arguments[0]
    if role not in {"worker", "manager"}:
        raise CommandError(f"unknown role {role}")
    if flags.is_on("rotate"):
        cluster = console.engine.get("/swarm")
        put_cluster(console, cluster, cluster["Spec"], f"rotate{role.title()}Token")
        if not flags.is_on("quiet"):
            console.line(f"Successfully rotated {role} join token.\n")
    if flags.is_on("quiet"):
        console.line(console.engine.get("/swarm")["JoinTokens"][role.title()])
        return
    _print_join(console, role, console.engine.get("/info")["Swarm"]["NodeID"])


_ADDRESSES = (
    Flag("advertise-addr", "string", 'Advertised address (format: "<ip|interface>[:port]")'),
    Flag(
        "availability",
        "string",
        'Availability of the node ("active", "pause", "drain") (default "active")',
    ),
    Flag(
        "data-path-addr",
        "string",
        'Address or interface to use for data path traffic (format: "<ip|interface>")',
    ),
    Flag(
        "listen-addr",
        "node-addr",
        f'Listen address (format: "<ip|interface>[:port]") (default {LISTEN_DEFAULT})',
        "",
        listen_address,
    ),
)
CERT_EXPIRY = Flag(
    "cert-expiry",
    "duration",
    "Validity period for node certificates (ns|us|ms|s|m|h) (default 2160h0m0s)",
    "",
    parse_duration,
)
EXTERNAL_CA = Flag(
    "external-ca",
    "external-ca",
    "Specifications of one or more certificate signing endpoints",
    "",
    external_ca,
    many=True,
)
_SETTINGS = (
    CERT_EXPIRY,
    Flag(
        "dispatcher-heartbeat",
        "duration",
        "Dispatcher heartbeat period (ns|us|ms|s|m|h) (default 1s)",
        "",
        parse_duration,
    ),
    EXTERNAL_CA,
    Flag("max-snapshots", "uint", "Number of additional Raft snapshots to retain", "", unsigned),
    Flag(
        "snapshot-interval",
        "uint",
        "Number of log entries between Raft snapshots (default 10000)",
        "",
        unsigned,
    ),
    Flag("task-history-limit", "int", "Task history retention limit (default 5)", "", signed),
)
INIT = Spec(
    _init,
    (
        *_ADDRESSES,
        *_SETTINGS,
        Flag(
            "autolock",
            "",
            "Enable manager autolocking (requiring an unlock key to start a stopped manager)",
        ),
        Flag(
            "data-path-port",
            "uint32",
            "Port number to use for data path traffic (1024 - 49151). If no value is set or is "
            "set to 0, the default port (4789) is used.",
            "",
            unsigned,
        ),
        Flag(
            "default-addr-pool",
            "ipNetSlice",
            "default address pool in CIDR format",
            "",
            subnet,
            many=True,
        ),
        Flag(
            "default-addr-pool-mask-length",
            "uint32",
            "default address pool subnet mask length (default 24)",
            "",
            unsigned,
        ),
        Flag("force-new-cluster", "", "Force create a new cluster from current state"),
    ),
    "[OPTIONS]",
)
JOIN = Spec(
    _join,
    (*_ADDRESSES, Flag("token", "string", "Token for entry into the swarm")),
    "[OPTIONS] HOST:PORT",
    least=1,
    most=1,
)
LEAVE = Spec(
    _leave,
    (Flag("force", "", "Force this node to leave the swarm, ignoring warnings", "f"),),
    "[OPTIONS]",
)
UPDATE = Spec(
    _update,
    (
        *_SETTINGS,
        Flag("autolock", "", "Change manager autolocking setting (true|false)", "", boolean),
    ),
    "[OPTIONS]",
)
UNLOCK = Spec(_unlock)
UNLOCK_KEY = Spec(
    _show_unlock_key,
    (
        Flag("quiet", "", "Only display token", "q"),
        Flag("rotate", "", "Rotate unlock key"),
    ),
    "[OPTIONS]",
)
JOIN_TOKEN = Spec(
    _join_token,
    (
        Flag("quiet", "", "Only display token", "q"),
        Flag("rotate", "", "Rotate join token"),
    ),
    "[OPTIONS] (worker|manager)",
    least=1,
    most=1,
)
