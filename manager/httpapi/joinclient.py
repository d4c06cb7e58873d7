"""How a machine asks a manager to take it in; the other end is `routes.join`.

    1. get the root certificate, from whoever answers, and check it against the token's digest
    2. connect anew: the server must prove by that root that it is a manager of the cluster
    3. only then show the token

Every failure is a sentence, and nothing was written by then.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from ipaddress import ip_address

import aiohttp
import msgspec

from manager.ca.clocks import check_clock
from manager.ca.tokens import JoinToken, parse_join_token
from manager.httpapi.backend import Joined, RemoteManager
from manager.httpapi.contexts import client_context, unverified_context
from manager.httpapi.routes.join import WireJoined
from proto.errors import DeniedError, InvalidError, SwarmError, UnavailableError
from proto.ids import ClusterID, NodeID
from proto.json_text import JsonError, decode_json
from proto.objects import NodeAvailability, NodeRole
from proto.text import printable
from raft.transport.identity import MANAGER_ROLE, Credentials

REACH_SECONDS_MAX = 3.0
ANSWER_SECONDS_MAX = 5.0
ROOT_BYTES_MAX = 64 * 1024
_REFUSED = frozenset({400, 403})


async def fetch_certificate(
    remote_addr: str,
    token: str,
    csr_pem: bytes,
    *,
    hostname: str,
    availability: NodeAvailability,
    address: str,
    now: float,
) -> Joined:
    """Ask one manager for a certificate.

    Args:
        remote_addr: host:port of its API port.
        token: as the user gave it.
        csr_pem: for which key.
        hostname: of this machine.
        availability: with which the node begins.
        address: where others reach this machine.
        now: seconds since the epoch.

    Raises:
        InvalidError: the token is none, or this machine's clock is wrong.
        DeniedError: the cluster is another than the token's, or does not take it.
        UnavailableError: nobody who may take nodes in was reached; another address may do.
    """
    parsed = parse_join_token(token)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            roots_pem = await _fetch_root(remote_addr, parsed, now)
            context = client_context(roots_pem)
            async with aiohttp.ClientSession() as session:
                return await _ask(
                    session,
                    remote_addr,
                    context,
                    {
                        "Token": token.strip(),
                        "Csr": csr_pem.decode("ascii"),
                        "Hostname": hostname,
                        "Availability": availability.name.lower(),
                        "Address": address,
                    },
                    now,
                )
    except TimeoutError as error:
        raise UnavailableError(
            f"{remote_addr} did not answer within {ANSWER_SECONDS_MAX:.0f} s: is a manager "
            "of the swarm there, and can it be reached from here?"
        ) from error
    except aiohttp.ClientSSLError as error:
        raise UnavailableError(
            f"{remote_addr} could not prove that it is a manager of the token's swarm: {error}"
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise UnavailableError(_not_reached(remote_addr, error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise UnavailableError(f"{remote_addr} broke the connection: {error}") from error


def _not_reached(remote_addr: str, error: aiohttp.ClientConnectorError) -> str:
    """Say why nobody was reached, and what to give instead."""
    number = error.os_error.errno
    # A failed look-up of a name has numbers of its own, and a sentence.
    reason = os.strerror(number) if number and number > 0 else str(error.os_error.strerror)
    host = remote_addr.rpartition(":")[0].strip("[]")
    if number == errno.ECONNREFUSED and _is_own(host):
        return (
            f"{remote_addr} is this node itself, which is no manager of a swarm: give the "
            "address of one; to begin a swarm here, use: swarm init"
        )
    return (
        f"{remote_addr} cannot be reached ({reason}): give the address of a manager; "
        "a worker takes no nodes in"
    )


def _is_own(host: str) -> bool:
    """Tell whether an address is one of this machine: only such a one can be bound to."""
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET  # noqa: PLR2004 -- IP's
    except ValueError:
        return False  # a name
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


async def _fetch_root(remote_addr: str, token: JoinToken, now: float) -> str:
    """Return the root certificate, which is the one that the token names."""
    timeout = aiohttp.ClientTimeout(total=REACH_SECONDS_MAX)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(
            f"https://{remote_addr}/join/v1/root", ssl=unverified_context(), allow_redirects=False
        ) as answer,
    ):
        body = await answer.content.read(ROOT_BYTES_MAX)
        if answer.status != HTTPStatus.OK:
            raise _refusal(remote_addr, answer.status, body)
        roots_pem = body.decode("ascii", errors="replace")
        if not token.is_of(roots_pem):
            raise DeniedError(
                "remote CA does not match fingerprint: the token is of another swarm than that "
                f"of {remote_addr}, or its root certificate was rotated since; ask for a new "
                "token with: swarm join-token worker"
            )
        # By now nobody but the cluster can have given that root; its time may be believed too.
        check_clock(b"", b"", now, date_header=answer.headers.get("Date", ""), peer=remote_addr)
        return roots_pem


MESSAGE_CHARACTERS_MAX = 2_000
"""What is shown of the refusal of a server that nothing has proved yet."""


async def _ask(
    session: aiohttp.ClientSession,
    remote_addr: str,
    context: ssl.SSLContext,
    body: dict[str, str],
    now: float,
) -> Joined:
    async with session.post(
        f"https://{remote_addr}/join/v1/certificate",
        data=msgspec.json.encode(body),
        headers={"Content-Type": "application/json"},
        ssl=context,
        server_hostname=MANAGER_ROLE,
        allow_redirects=False,
    ) as answer:
        data = await answer.read()
        if answer.status != HTTPStatus.CREATED:
            raise _refusal(remote_addr, answer.status, data)
    try:
        wire = decode_json(data, WireJoined)
    except JsonError as error:
        raise UnavailableError(f"{remote_addr} gave an answer that {error}") from error
    joined = Joined(
        node_id=NodeID(wire.node_id),
        cluster_id=ClusterID(wire.cluster_id),
        role=NodeRole.MANAGER if wire.role == "manager" else NodeRole.WORKER,
        certificate_pem=wire.certificate.encode(),
        roots_pem=wire.roots.encode(),
        managers=tuple(RemoteManager(NodeID(p.node_id), p.addr) for p in wire.managers),
        api_managers=tuple(RemoteManager(NodeID(p.node_id), p.addr) for p in wire.api_managers),
    )
    check_clock(joined.certificate_pem, joined.roots_pem, now, peer=remote_addr, is_fresh=True)
    return joined


def _refusal(remote_addr: str, status: int, body: bytes) -> SwarmError:
    """Return the error that a manager answered with."""
    try:
        message = printable(decode_json(body, dict[str, str])["message"], MESSAGE_CHARACTERS_MAX)
    except (JsonError, KeyError):
        message = f"{remote_addr} answered with status {status}"
    if status == HTTPStatus.FORBIDDEN:
        return DeniedError(message)
    if status in _REFUSED:
        return InvalidError(message)
    return UnavailableError(f"{remote_addr}: {message}")


async def withdraw(remote_addr: str, node_id: NodeID, credentials: Credentials) -> None:
    """Have the swarm forget this node again, which it had let in a moment ago.

    Raises:
        UnavailableError: it was not reached, or refused.
    """
    context = client_context(credentials.roots_pem.decode("ascii"), credentials)
    timeout = aiohttp.ClientTimeout(total=REACH_SECONDS_MAX)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.delete(
                f"https://{remote_addr}/join/v1/node",
                params={"id": node_id},
                ssl=context,
                server_hostname=MANAGER_ROLE,
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status != HTTPStatus.OK:
                raise _refusal(remote_addr, answer.status, await answer.read())
    except (aiohttp.ClientError, OSError) as error:  # a time-out is an OSError
        raise UnavailableError(f"{remote_addr} was not reached: {error}") from error


async def reach_any(addresses: Sequence[str]) -> None:
    """Return when one of these takes a connection.

    Raises:
        UnavailableError: none does, and why.
    """
    reasons: dict[str, str] = {}

    async def reach(address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(REACH_SECONDS_MAX):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except TimeoutError:
            reasons[address] = "no answer"
        except OSError as error:
            reasons[address] = os.strerror(error.errno) if error.errno else str(error)
        else:
            writer.close()
            return True
        return False

    attempts = [asyncio.create_task(reach(address)) for address in addresses]
    try:
        for attempt in asyncio.as_completed(attempts):
            if await attempt:
                return
    finally:
        for task in attempts:
            task.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
    told = ", ".join(f"{address}: {reason}" for address, reason in sorted(reasons.items()))
    raise UnavailableError(
        "the swarm let this node in, but the port that its nodes talk on, the one after the "
        f"managers' own, cannot be reached from here ({told or 'no address is known'}): open it "
        "for TCP, and join again"
    )
