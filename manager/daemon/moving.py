"""Whether a node's machine has another address now, or its state directory was copied to another.

Both look alike at first: the address that the node was known by is not one of this machine's. What
tells them apart is whether the node still answers there. A worker need not ask: the dispatcher
takes one program for each node.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import msgspec

from manager.daemon.addresses import InterfaceAddress, join_port, split_port
from manager.daemon.identity import Identity
from manager.httpapi.contexts import client_context
from raft.transport.identity import MANAGER_ROLE, Credentials, full_name

ANSWER_SECONDS_MAX = 2.0


def is_own(advertise_addr: str, machine: Sequence[InterfaceAddress]) -> bool:
    """Tell whether an advertised address is one of this machine's; behind a NAT it is not."""
    host = split_port(advertise_addr, "address")[0]
    return any(address.address == host for address in machine)


def has_moved(identity: Identity, machine: Sequence[InterfaceAddress]) -> bool:
    """Tell whether the node was known by an address of its machine, and this one has others.

    A machine without any has no network yet.
    """
    return (
        identity.is_own_address and bool(machine) and not is_own(identity.advertise_addr, machine)
    )


def moved(identity: Identity, host: str) -> Identity:
    """Return the identity with another address; one that it listened on alone changes too."""
    old, port = split_port(identity.advertise_addr, "address")
    listen, listen_port = split_port(identity.listen_addr, "address")
    return msgspec.structs.replace(
        identity,
        advertise_addr=join_port(host, port),
        listen_addr=join_port(host if listen == old else listen, listen_port),
    )


async def is_answering(identity: Identity, credentials: Credentials) -> bool:
    """Tell whether a manager with this very identity answers at the address it was known by."""
    host, port = split_port(identity.advertise_addr, "address")
    context = client_context(credentials.roots_pem.decode("ascii"), credentials)
    name = full_name(identity.node_id, MANAGER_ROLE, identity.cluster_id)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    except (OSError, ssl.SSLError, TimeoutError):
        return False
    writer.close()
    return True
