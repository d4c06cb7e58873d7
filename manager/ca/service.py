"""The authority on the node port: the gRPC servicer, which only says who asks.

The interceptor of the node port has checked the caller's certificate and role before.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from typing_extensions import override

from manager.ca.authority import CertificateAuthority
from manager.nodeport.allowance import Allowance, Rate
from manager.nodeport.errors import Aborts, abort
from manager.nodeport.peer import Calls, identity_of
from proto.clock import Clock
from proto.errors import ResourceExhaustedError, SwarmError
from proto.ids import NodeID
from proto.v1 import ca_pb2, ca_pb2_grpc

RENEWALS_RATE = Rate(burst=20, per_second=0.2)
"""How often a node may ask. A renewal takes two calls; a change of the root or of the node's role,
one renewal each. Each call is signed and written to the log."""


class Context(Calls, Aborts, Protocol):
    """The part of a servicer's context that is used here."""


class CAService(ca_pb2_grpc.CAServicer):
    """Serves `swarm.v1.CA`."""

    def __init__(self, authority: CertificateAuthority, clock: Clock) -> None:
        """Serve this authority; the clock says how fast a node asks."""
        self._authority = authority
        self._clock = clock
        self._renewals = Allowance(RENEWALS_RATE)

    def _check_rate(self, node_id: NodeID) -> None:
        """Raise `ResourceExhaustedError` if the node asks more often than any has to."""
        seconds = self._renewals.take(node_id, self._clock.monotonic())
        if seconds:
            raise ResourceExhaustedError(
                f"node {node_id} asks for certificates too often; it may ask again in "
                f"{math.ceil(seconds)} s"
            )

    @override
    async def Renew(self, request: ca_pb2.RenewRequest, context: Any) -> ca_pb2.RenewReply:
        """Issue the caller's next certificate, or note the one that it shows."""
        # The generated type is that of the library's two kinds of servers at once.
        call: Context = context
        try:
            node_id = identity_of(call).node_id
            self._check_rate(node_id)
            certificate_pem, roots_pem = await self._authority.renew(node_id, request.csr_pem)
        except SwarmError as error:
            await abort(call, error)
            raise  # not reached: to end a call is to raise
        return ca_pb2.RenewReply(certificate_pem=certificate_pem, roots_pem=roots_pem)
