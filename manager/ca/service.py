"""The authority on the node port: the gRPC servicer, which only says who asks.

The interceptor of the node port has checked the caller's certificate and role before.
"""

from __future__ import annotations

from typing import Any, Protocol

from typing_extensions import override

from manager.ca.authority import CertificateAuthority
from manager.nodeport.errors import Aborts, abort
from manager.nodeport.peer import Calls, identity_of
from proto.errors import SwarmError
from proto.v1 import ca_pb2, ca_pb2_grpc


class Context(Calls, Aborts, Protocol):
    """The part of a servicer's context that is used here."""


class CAService(ca_pb2_grpc.CAServicer):
    """Serves `swarm.v1.CA`."""

    def __init__(self, authority: CertificateAuthority) -> None:
        """Serve this authority."""
        self._authority = authority

    @override
    async def Renew(self, request: ca_pb2.RenewRequest, context: Any) -> ca_pb2.RenewReply:
        """Issue the caller's next certificate, or note the one that it shows."""
        # The generated type is that of the library's two kinds of servers at once.
        call: Context = context
        try:
            node_id = identity_of(call).node_id
            certificate_pem, roots_pem = await self._authority.renew(node_id, request.csr_pem)
        except SwarmError as error:
            await abort(call, error)
            raise  # not reached: to end a call is to raise
        return ca_pb2.RenewReply(certificate_pem=certificate_pem, roots_pem=roots_pem)
