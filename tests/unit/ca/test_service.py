"""The authority's servicer: who asks, and how often."""

from __future__ import annotations

import grpc
import pytest

from manager.ca.issue import new_key_and_csr
from manager.ca.service import RENEWALS_RATE, CAService
from proto.objects import NodeAvailability
from proto.v1 import ca_pb2


class AbortedError(Exception):
    """The call was ended."""


class Context:
    """A call with this certificate."""

    def __init__(self, certificate):
        self._certificate = certificate
        self.code = None

    def auth_context(self):
        """Return what the handshake proved."""
        return {"x509_pem_cert": [self._certificate]}

    def peer(self):
        """Return where it comes from."""
        return "ipv4:10.0.0.7:1234"

    async def abort(self, code, _details, _metadata):
        """Note the code."""
        self.code = code
        raise AbortedError


async def test_a_node_that_renews_without_end_is_refused(authority, cluster, clock):
    """It is let in again later; another node is not held up by it."""
    joined = []
    for name in ("w1", "w2"):
        token = cluster.join_tokens.worker
        joined.append(
            await authority.issue_for_join(
                token,
                new_key_and_csr()[1],
                hostname=name,
                availability=NodeAvailability.ACTIVE,
                address="10.0.0.7",
            )
        )
    service = CAService(authority, clock)
    request = ca_pb2.RenewRequest(csr_pem=new_key_and_csr()[1])
    loud, quiet = (Context(node.certificate_pem) for node in joined)
    for _ in range(int(RENEWALS_RATE.burst)):
        await service.Renew(request, loud)
    with pytest.raises(AbortedError):
        await service.Renew(request, loud)

    assert loud.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await service.Renew(request, quiet)).certificate_pem
