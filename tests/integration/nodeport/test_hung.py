"""Managers that take connections and never say a word: each is given up, and the next is asked."""

import asyncio
import random

import pytest

from manager.dispatcher import client as clients
from manager.nodeport.leader import LeaderClient
from manager.nodeport.remotes import ManagerPeer, Remotes
from proto.errors import SwarmError, UnavailableError
from proto.ids import ClusterID
from proto.objects import NodeDescription
from proto.v1 import ca_pb2, ca_pb2_grpc

pytestmark = pytest.mark.integration

CLUSTER = ClusterID("cluster1")
SECONDS = 0.5


class Hung:
    """Takes connections, reads nothing and says nothing."""

    node_id = "m-hung"

    def __init__(self, server):
        self.address = "{}:{}".format(*server.sockets[0].getsockname()[:2])


@pytest.fixture
async def hung():
    """A port behind which nobody works."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield Hung(server)
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_a_node_finds_the_manager_that_works(hung, manager, client, monkeypatch):
    """Whichever is asked first, the session is opened with the one that answers."""
    monkeypatch.setattr(clients, "REGISTER_SECONDS", SECONDS)
    one = client("w1", hung, manager)
    one._register_seconds = SECONDS
    while True:
        try:
            node = await one.register("w1", NodeDescription(hostname="w1"))
            break
        except UnavailableError:
            await asyncio.sleep(0.05)  # a loaded machine needs more than half a second
    assert node.id == "w1"


async def test_a_node_without_another_is_told_why(hung, client):
    """The reason names the manager, and how long it was waited for."""
    one = client("w1", hung)
    one._register_seconds = SECONDS
    with pytest.raises(UnavailableError, match=r"did not answer within|cannot"):
        await one.register("w1", NodeDescription(hostname="w1"))


async def test_an_authority_that_does_not_answer_is_given_up(hung, authority):
    """A renewal is refused in time, with the manager that was asked."""
    leader = LeaderClient(
        lambda: authority.issue("w1"),
        Remotes([ManagerPeer(hung.node_id, hung.address)]),
        CLUSTER,
        rng=random.Random(1),
    )
    with pytest.raises(SwarmError, match=hung.address):
        async with asyncio.timeout(60):
            await leader.call(
                lambda channel: ca_pb2_grpc.CAStub(channel).Renew,
                ca_pb2.RenewRequest(csr_pem=b""),
                timeout=SECONDS,
            )
