"""Who may call what, and that every kind of handler is guarded."""

import contextlib
from types import SimpleNamespace

import grpc
import pytest

from manager.nodeport.authorize import (
    AUTHORIZED,
    _check_membership,
    _guarded,
    authorizing_interceptor,
    check_member,
    check_role,
)
from manager.nodeport.peer import host_of
from manager.store.tables import View
from manager.store.transaction import Transaction
from proto.errors import (
    DeniedError,
    InvariantViolationError,
    NotImplementedYetError,
    NotLeaderError,
    RemovedError,
)
from proto.objects import Cluster, Node, RemovedNode
from proto.v1 import ca_pb2, dispatcher_pb2, logs_pb2, managers_pb2, raft_pb2
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Identity

OF_WORKERS = {
    "/swarm.v1.Dispatcher/Session",
    "/swarm.v1.CA/Renew",
    "/swarm.v1.Logs/Publish",
}
BOTH = {MANAGER_ROLE, WORKER_ROLE}


def test_every_rpc_of_the_contract_is_in_the_table():
    """No service of the node port is forgotten, and the table has no other."""
    found = {
        f"/{service.full_name}/{method.name}"
        for module in (raft_pb2, dispatcher_pb2, ca_pb2, logs_pb2, managers_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert found == set(AUTHORIZED)


@pytest.mark.parametrize("method", sorted(AUTHORIZED))
@pytest.mark.parametrize("role", [MANAGER_ROLE, WORKER_ROLE, "swarm-ca", ""])
def test_roles(method, role):
    """Workers reach what they need; everything else is between managers."""
    is_allowed = role == MANAGER_ROLE or (role == WORKER_ROLE and method in OF_WORKERS)
    identity = Identity("n1", role, "c1", 100.0)
    if is_allowed:
        check_role(identity, method, "c1", 50.0)
    else:
        with pytest.raises(DeniedError, match="node n1 has the role"):
            check_role(identity, method, "c1", 50.0)
    with pytest.raises(DeniedError, match="belongs to cluster c1, this is c2"):
        check_role(identity, method, "c2", 50.0)
    with pytest.raises(DeniedError, match=r"expired|has the role"):
        check_role(identity, method, "c1", 100.0)


def test_an_unknown_rpc_is_not_served():
    """Not even to a manager."""
    with pytest.raises(NotImplementedYetError):
        check_role(Identity("n1", MANAGER_ROLE, "c1", 100.0), "/swarm.v1.CA/Other", "c1", 50.0)


@pytest.fixture
def view():
    """Give a cluster with one node, and one that was removed."""
    tx = Transaction(View.empty(), 1.0)
    tx.create(Cluster(id="c1", removed_nodes=(RemovedNode(id="removed"),)))
    tx.create(Node(id="n1"))
    return tx.to_view()


@pytest.mark.parametrize("is_leader", [True, False])
@pytest.mark.parametrize("is_raft", [True, False])
def test_membership(view, is_leader, is_raft):
    """A removed node is refused everywhere; one never heard of only by who must know it."""
    check_member(view, "n1", is_leader=is_leader, is_raft=is_raft)
    with pytest.raises(DeniedError, match="removed was removed from this cluster"):
        check_member(view, "removed", is_leader=is_leader, is_raft=is_raft)
    if is_leader and not is_raft:
        with pytest.raises(DeniedError, match="stranger is not in this cluster"):
            check_member(view, "stranger", is_leader=is_leader, is_raft=is_raft)
    else:
        check_member(view, "stranger", is_leader=is_leader, is_raft=is_raft)


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        ("joined", None),
        ("same", RemovedError),
        ("unknown", NotLeaderError),
    ],
)
async def test_a_node_is_told_that_it_is_removed_only_by_who_is_proven_to_lead(
    view, newest, expected
):
    """A leader that was cut off has not been told of a node that joined with the next one."""
    joined = Transaction(view, 2.0)
    joined.create(Node(id="new"))

    async def read():
        if newest == "unknown":
            raise NotLeaderError("b:1")
        return joined.to_view() if newest == "joined" else view

    store = SimpleNamespace(view=lambda: view, term=3, newest=read)
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        await _check_membership(store, "new", "/swarm.v1.Dispatcher/Session")
    await _check_membership(store, "new", "/swarm.v1.Raft/Messages")
    store.term = 0
    await _check_membership(store, "new", "/swarm.v1.Dispatcher/Session")
    with pytest.raises(RemovedError, match="removed was removed from"):
        await _check_membership(store, "removed", "/swarm.v1.Dispatcher/Session")


def test_a_server_with_an_rpc_that_is_not_in_the_table_does_not_start():
    """Whoever adds an RPC has to say who may call it."""
    guard = authorizing_interceptor("c1", lambda: None, None)
    guard.check_methods(AUTHORIZED)
    with pytest.raises(InvariantViolationError, match=r"nobody said who may call /swarm\.v1\.X/Y"):
        guard.check_methods([*AUTHORIZED, "/swarm.v1.X/Y"])


class RefusedError(Exception):
    """What ends a call."""


async def refuse(_context):
    """Let nobody in."""
    raise RefusedError


async def admit(context):
    """Let everybody in."""
    context.append("admitted")


async def unary(_request, context):
    """Answer once."""
    context.append("served")
    return "answer"


async def streaming(_request, context):
    """Answer in a stream, as a generator."""
    context.append("served")
    yield "answer"


async def writing(_request, context):
    """Answer in a stream, with `write`."""
    context.append("served")


@pytest.mark.parametrize(
    ("make", "kind", "behaviour"),
    [
        (grpc.unary_unary_rpc_method_handler, "unary_unary", unary),
        (grpc.stream_unary_rpc_method_handler, "stream_unary", unary),
        (grpc.unary_stream_rpc_method_handler, "unary_stream", streaming),
        (grpc.unary_stream_rpc_method_handler, "unary_stream", writing),
        (grpc.stream_stream_rpc_method_handler, "stream_stream", streaming),
        (grpc.stream_stream_rpc_method_handler, "stream_stream", writing),
    ],
)
async def test_every_kind_of_handler_is_guarded(make, kind, behaviour):
    """Nothing of a service runs before the caller was admitted; the kind stays what it was."""
    handler = make(behaviour, request_deserializer=bytes, response_serializer=str)

    async def call(check):
        seen = []
        guarded = _guarded(handler, check)
        assert (guarded.request_streaming, guarded.response_streaming) == (
            handler.request_streaming,
            handler.response_streaming,
        )
        assert (guarded.request_deserializer, guarded.response_serializer) == (bytes, str)
        result = getattr(guarded, kind)("request", seen)
        try:
            if hasattr(result, "__aiter__"):
                assert [response async for response in result] == ["answer"]
            else:
                await result
        except RefusedError:
            seen.append("refused")
        return seen

    assert await call(admit) == ["admitted", "served"]
    assert await call(refuse) == ["refused"]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:1234", "10.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:1234", "2001:db8::1"),
        ("ipv6:[::ffff:10.0.0.1]:1234", "10.0.0.1"),
        ("unix:/run/x.sock", ""),
        ("", ""),
    ],
)
def test_the_callers_address(peer, host):
    """A node's address is the one that it called from, without port and brackets."""
    assert host_of(peer) == host
