"""What a node says of itself and of its tasks, checked before it is believed.

A node's certificate proves who it is and nothing else: whoever has taken a worker says what he
likes. So everything that a node says passes through this module before it is stored, shown or
used: numbers are finite and of the range that the Engine API can carry, times are no later than
the manager hears of them, texts are printable and short, addresses are IP addresses. A text or a
time is put right; a number or a form that no honest node sends is refused with a sentence.

That a node speaks of its own tasks only, and moves them forward only, is `dispatcher/statuses`'
to say, because it takes the store to know. Pure.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Any

import msgspec

from proto.errors import InvalidError
from proto.logs import LogRecord
from proto.objects import NANOSECONDS, NodeDescription, TaskStatus
from proto.text import printable

INTEGER_MAX = 2**63 - 1
"""Clients of the Engine API keep numbers in 64 bits with a sign."""

MOMENT_NANOSECONDS_MAX = 253_402_300_799 * NANOSECONDS
"""The last second of the year 9999: RFC 3339 has no later one."""

HOSTNAME_CHARACTERS_MAX = 253
ADDRESS_CHARACTERS_MAX = 64
WORD_CHARACTERS_MAX = 1_024
"""A name or a value in a node's description."""

TEXT_CHARACTERS_MAX = 4_096
"""A message or an error of a task."""

INSTANCE_CHARACTERS_MAX = 128
PORTS_MAX = 1_024
PORT_MAX = 65_535
PROCESS_ID_MAX = 2**31 - 1
EXIT_CODE_MAX = 2**31 - 1

_COUNT = re.compile(r"[0-9]{1,19}")
# A scope (`%eth0`) may hold anything for Python.
_ADDRESS = re.compile(r"[][0-9A-Fa-f:.]+(%[0-9A-Za-z_.-]+\]?)?(:[0-9]+)?")
_CONTAINER_ID = re.compile(r"[0-9A-Za-z_.-]{0,128}")


def checked_description(description: NodeDescription) -> NodeDescription:
    """Return what a node says of itself with its texts made printable.

    Raises:
        InvalidError: a number is out of range.
    """
    for resource in (*description.resources.generic, *description.generic):
        if not resource.is_named and not _is_count(resource.value):
            raise InvalidError("the description of the node holds a count that is no number")
    cleaned: list[Any] = _cleaned(msgspec.to_builtins(description))
    checked = msgspec.convert(cleaned, NodeDescription)
    return msgspec.structs.replace(
        checked, hostname=printable(description.hostname, HOSTNAME_CHARACTERS_MAX)
    )


def _is_count(value: str) -> bool:
    return _COUNT.fullmatch(value) is not None and int(value) <= INTEGER_MAX


def _cleaned(value: Any) -> Any:
    """Clean a value of any depth: a description has three levels, and gets new fields."""
    match value:
        case str():
            return printable(value, WORD_CHARACTERS_MAX)
        case bool() | None:
            return value
        case int() if not 0 <= value <= INTEGER_MAX:
            raise InvalidError(
                f"the description of the node holds the number {value}, which is not one "
                f"of 0 to {INTEGER_MAX}"
            )
        case float() if not math.isfinite(value):
            raise InvalidError("the description of the node holds a number that is not finite")
        case dict():
            return {_cleaned(key): _cleaned(item) for key, item in value.items()}
        case list() | tuple():
            return [_cleaned(item) for item in value]
        case _:
            return value


def checked_status(status: TaskStatus, *, since: float, now: float) -> TaskStatus:
    """Return the status of a task with its texts and its times put right.

    Args:
        status: as the node reported it.
        since: when the task was made; nothing of it happened before, whatever the node's clock
            says. Seconds since the epoch.
        now: nothing of it happens later either: a restart's delay counts from it.

    Raises:
        InvalidError: a number or a form is none that an honest node sends.
    """
    if not 0 <= status.pid <= PROCESS_ID_MAX:
        raise InvalidError("its process ID is out of range")
    if status.exit_code is not None and not -EXIT_CODE_MAX <= status.exit_code <= EXIT_CODE_MAX:
        raise InvalidError("its exit code is out of range")
    if not _CONTAINER_ID.fullmatch(status.container_id):
        raise InvalidError("the ID of its container is not one")
    if len(status.host_ports) > PORTS_MAX:
        raise InvalidError(f"it has more than {PORTS_MAX} ports")
    for port in status.host_ports:
        if not (0 <= port.target_port <= PORT_MAX and 0 <= port.published_port <= PORT_MAX):
            raise InvalidError("one of its ports is out of range")
        if len(port.name) > HOSTNAME_CHARACTERS_MAX or not port.name.isprintable():
            raise InvalidError("the name of one of its ports is not one")
    return msgspec.structs.replace(
        status,
        timestamp=moment_between(since, status.timestamp, now),
        running_at=status.running_at and moment_between(since, status.running_at, now),
        message=printable(status.message, TEXT_CHARACTERS_MAX),
        err=printable(status.err, TEXT_CHARACTERS_MAX),
    )


def checked_record(record: LogRecord) -> LogRecord:
    """Return a line of output with its time put into the years that can be written.

    Its text is the program's own, for whoever asked for it.
    """
    if 0 <= record.time_ns <= MOMENT_NANOSECONDS_MAX:
        return record
    time_ns = min(max(record.time_ns, 0), MOMENT_NANOSECONDS_MAX)
    return msgspec.structs.replace(record, time_ns=time_ns)


def moment_between(since: float, moment: float, now: float) -> float:
    """Return a moment that a node told, not before `since` and not after `now`.

    One that is no number is `now`. All are seconds since the epoch.
    """
    if not moment < now:  # that which is not a number is not less, either
        return now
    return max(moment, min(since, now))


def checked_instance(instance: str) -> str:
    """Return what a program drew at its start.

    Raises:
        InvalidError: it is longer than any that is drawn.
    """
    if len(instance) > INSTANCE_CHARACTERS_MAX:
        raise InvalidError(f"a program's mark has at most {INSTANCE_CHARACTERS_MAX} characters")
    return instance


def checked_hostname(hostname: str) -> str:
    """Return the hostname of a machine that joins.

    Raises:
        InvalidError: it is too long or not printable.
    """
    if len(hostname) > HOSTNAME_CHARACTERS_MAX or not hostname.isprintable():
        raise InvalidError(
            f"the hostname of a node has at most {HOSTNAME_CHARACTERS_MAX} characters, all of "
            "them printable"
        )
    return hostname


def node_address(claimed: str, peer: str) -> str:
    """Return the IP address of a node: the one that it names, else that of its connection.

    Args:
        claimed: what the node says, with or without a port; "" or an unspecified address says
            nothing. What is no IP address is not believed.
        peer: the address that its connection comes from, "" if there is none.
    """
    for text in (claimed, peer):
        address = _ip_address(text)
        if address is not None and not address.is_unspecified and not address.is_multicast:
            return str(address)
    return ""


def session_address(claimed: str, peer: str) -> str:
    """Return the IP address of a node that has a session: its connection's, as far as that tells.

    A node could name any address, and what is known as a member's has more room at the managers'
    ports. A connection that never left the machine tells nothing, so there the node is believed.

    Args:
        claimed: see `node_address`.
        peer: the address that the session's connection comes from, "" if there is none.

    Source: SwarmKit's dispatcher takes the address of the connection, too.
    """
    seen = _ip_address(peer)
    if seen is not None and not seen.is_loopback and not seen.is_unspecified:
        return str(seen)
    return node_address(claimed, peer)


def checked_port_address(text: str, what: str) -> str:
    """Return `IP:port` (IPv6 in brackets), where a manager says that it is reached.

    Raises:
        InvalidError: it is something else.
    """
    host, _, port = text.rpartition(":")
    address = _ip_address(host) if ":" not in host or host.startswith("[") else None
    is_port = port.isascii() and port.isdigit() and len(port) <= len(str(PORT_MAX))
    if address is None or not is_port or not 0 < int(port) <= PORT_MAX:
        raise InvalidError(f"{what} {printable(text, ADDRESS_CHARACTERS_MAX)!r} is not IP:port")
    return text


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if len(text) > ADDRESS_CHARACTERS_MAX or not _ADDRESS.fullmatch(text):
        return None
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
