"""/join/v1: how a machine becomes a node. The only paths that need no manager's certificate.

The root certificate is public: who asks checks it against the digest in its token, and trusts
nothing else before. The token travels to a server that has been proven by it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from typing_extensions import override

from manager.httpapi.backend import Joined, RemoteManager
from manager.httpapi.convert.node import availability_of
from manager.httpapi.convert.wire import Wire, decoded
from manager.httpapi.requests import PEERS, backend_of, json_body, json_response
from manager.nodeport.claims import node_address
from proto.errors import UnavailableError
from proto.ids import NodeID
from proto.objects import NodeRole

CSR_BYTES_MAX = 8 * 1024


class WireCertificateRequest(Wire, frozen=True):
    """What a machine asks."""

    token: str = ""
    csr: str = ""
    hostname: str = ""
    availability: str = ""
    address: str = ""

    @override
    def __repr__(self) -> str:
        """Hide the token."""
        return f"WireCertificateRequest(hostname={self.hostname!r})"


class WirePeer(msgspec.Struct, frozen=True, rename="pascal"):
    """A manager and one of its addresses."""

    node_id: str
    addr: str


class WireJoined(msgspec.Struct, frozen=True, rename="pascal"):
    """What it gets."""

    node_id: str
    cluster_id: str
    role: str
    certificate: str
    roots: str
    managers: tuple[WirePeer, ...] = ()
    api_managers: tuple[WirePeer, ...] = ()


async def root(request: web.Request) -> web.StreamResponse:
    """Show the root certificate that the tokens name."""
    cluster = backend_of(request).control().cluster()
    return web.Response(text=cluster.root_ca_certificate_pem, content_type="application/x-pem-file")


async def certificate(request: web.Request) -> web.StreamResponse:
    """Take a machine into the cluster and give it a certificate."""
    wire = decoded(await json_body(request), WireCertificateRequest)
    peers = request.app[PEERS]
    if peers is None:
        raise UnavailableError("this daemon takes no nodes in")
    joined = await peers.issue_for_join(
        wire.token,
        wire.csr.encode(),
        hostname=wire.hostname,
        availability=availability_of(wire.availability),
        address=node_address(wire.address, request.remote or ""),
    )
    return json_response(msgspec.to_builtins(_to_wire(joined)), 201)


async def withdraw(request: web.Request) -> web.StreamResponse:
    """Forget the node that calls, which could not begin what it joined for."""
    peers = request.app[PEERS]
    if peers is None:
        raise UnavailableError("this daemon takes no nodes in")
    await peers.withdraw(NodeID(request.query.get("id", "")))
    return web.Response()


def _to_wire(joined: Joined) -> WireJoined:
    return WireJoined(
        node_id=joined.node_id,
        cluster_id=joined.cluster_id,
        role="manager" if joined.role is NodeRole.MANAGER else "worker",
        certificate=joined.certificate_pem.decode("ascii"),
        roots=joined.roots_pem.decode("ascii"),
        managers=_peers(joined.managers),
        api_managers=_peers(joined.api_managers),
    )


def _peers(managers: Any) -> tuple[WirePeer, ...]:
    return tuple(
        WirePeer(manager.node_id, manager.addr)
        for manager in managers
        if isinstance(manager, RemoteManager)
    )


ROUTES = (
    ("GET", "/join/v1/root", root),
    ("POST", "/join/v1/certificate", certificate),
    ("DELETE", "/join/v1/node", withdraw),
)
