"""Every RPC of the node port, called by everybody who may and may not."""

import asyncio
import contextlib
import random
import socket
import ssl
import time

import grpc
import msgspec
import pytest
from grpc import aio

from manager.nodeport.authorize import AUTHORIZED
from manager.nodeport.errors import error_of_call
from manager.nodeport.leader import LeaderClient
from manager.nodeport.remotes import ManagerPeer, Remotes
from proto.errors import (
    DeniedError,
    InvariantViolationError,
    NotFoundError,
    NotImplementedYetError,
    UnavailableError,
)
from proto.objects import NodeDescription, NodeRole, RemovedNode
from proto.v1 import ca_pb2, ca_pb2_grpc, dispatcher_pb2, logs_pb2, managers_pb2, raft_pb2
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Credentials

pytestmark = pytest.mark.integration

SERIALIZED = {
    "/swarm.v1.Raft/Messages": raft_pb2.Frame(),
    "/swarm.v1.Raft/Snapshot": raft_pb2.SnapshotChunk(),
    "/swarm.v1.Dispatcher/Session": dispatcher_pb2.FromAgent(
        hello=dispatcher_pb2.Hello(description=b"\x90")
    ),
    "/swarm.v1.CA/Renew": ca_pb2.RenewRequest(),
    "/swarm.v1.Logs/Ask": logs_pb2.LogAsk(
        wish=logs_pb2.LogRequest(id="wish", options=b"\x80", manager_id="peer")
    ),
    "/swarm.v1.Logs/Publish": logs_pb2.LogLines(is_last=True),
    "/swarm.v1.Managers/Join": managers_pb2.ManagerJoinRequest(),
    "/swarm.v1.Managers/Leave": managers_pb2.ManagerLeaveRequest(),
}
METHODS = sorted(AUTHORIZED)
BOTH_WAYS = {"/swarm.v1.Dispatcher/Session", "/swarm.v1.Logs/Ask"}
STREAMS = {"/swarm.v1.Raft/Messages", "/swarm.v1.Raft/Snapshot", "/swarm.v1.Logs/Publish"}
METADATA = (
    ("swarm-to", "manager"),
    ("swarm-lane", "control"),
    ("swarm-log-request", "nobody's"),
)
SUITES = 2  # seconds that a refusal may take


async def converse(channel, method, data):
    """Say one thing and return the first answer."""
    stream = channel.stream_stream(method)()
    if list(await stream.initial_metadata()):
        await stream.write(data)
    answer = await stream.read()
    assert answer is not aio.EOF
    stream.cancel()
    return answer


async def call(channel, method):
    """Call an RPC with one message; return its answer's bytes, or raise its error as ours."""
    data = SERIALIZED[method].SerializeToString()
    try:
        async with asyncio.timeout(5):
            if method in BOTH_WAYS:
                return await converse(channel, method, data)
            if method in STREAMS:
                stream = channel.stream_unary(method)(metadata=METADATA)
                if list(await stream.initial_metadata()):
                    await stream.write(data)
                    await stream.done_writing()
                return await stream
            return await channel.unary_unary(method)(data, metadata=METADATA)
    except aio.AioRpcError as error:
        ours = error_of_call(error)
        if isinstance(ours, NotFoundError):
            return ours.message.encode()  # of the service behind the gate
        raise ours from error


async def still_serves(manager, client):
    """Check that a worker can still open a session."""
    one = client("w2", manager)
    node = await one.register("w2", NodeDescription())
    assert node.id == "w2"
    await one.close()


@pytest.fixture
async def served(manager, client):
    """Give a manager that must serve workers after the test, whatever happened."""
    yield manager
    await still_serves(manager, client)


@pytest.fixture(scope="session")
def strangers(authority, new_authority):
    """Give credentials that do not pass a handshake."""
    ours = authority.root.certificate_pem.encode()
    nothing = Credentials(certificate_pem=None, key_pem=None, roots_pem=ours)
    return {
        "none": nothing,
        "expired": authority.issue("peer", role=MANAGER_ROLE, seconds=-60.0),
        "other authority": new_authority().issue("peer", role=MANAGER_ROLE, roots=ours),
    }


def test_there_is_a_message_for_every_rpc():
    """The walk leaves none out."""
    assert set(SERIALIZED) == set(AUTHORIZED)


@pytest.mark.parametrize("method", METHODS)
async def test_a_manager_may_call_everything(manager, authority, dial, method):
    """A member's certificate opens every RPC."""
    answer = await call(dial(manager, authority.issue("peer", role=MANAGER_ROLE)), method)

    assert isinstance(answer, bytes)
    assert b"only a" not in answer


@pytest.mark.parametrize("method", METHODS)
async def test_a_worker_may_call_what_workers_need(manager, authority, client, dial, method):
    """Sessions, renewals and lines of logs, nothing else."""
    channel = dial(manager, authority.issue("w1"))
    if WORKER_ROLE in AUTHORIZED[method]:
        await call(channel, method)
    else:
        with pytest.raises(DeniedError, match="node w1 has the role swarm-worker"):
            await call(channel, method)
    await still_serves(manager, client)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "case",
    [
        ("peer", {"cluster": "cluster2"}, "belongs to cluster cluster2, this is cluster1"),
        ("removed", {}, "removed was removed from this cluster"),
        ("n1", {"role": "swarm-ca"}, "has the role swarm-ca"),
    ],
    ids=["other-cluster", "removed", "no-role"],
)
async def test_who_is_not_of_this_cluster_is_refused(served, authority, dial, method, case):
    """Though the authority is the right one: another cluster, a removed node, no role at all."""
    who, options, reason = case
    channel = dial(served, authority.issue(who, **{"role": MANAGER_ROLE, **options}))
    with pytest.raises(DeniedError, match=reason):
        await call(channel, method)


@pytest.mark.parametrize("method", [m for m in METHODS if WORKER_ROLE not in AUTHORIZED[m]])
async def test_a_demoted_manager_is_refused(served, authority, dial, method):
    """Its certificate still says manager, and is still valid; its row says worker."""
    channel = dial(served, authority.issue("demoted", role=MANAGER_ROLE))
    with pytest.raises(DeniedError, match="demoted is no manager of this cluster"):
        await call(channel, method)


@pytest.mark.parametrize("method", ["/swarm.v1.Raft/Messages", "/swarm.v1.Logs/Ask"])
async def test_a_manager_that_is_demoted_is_cut_off(served, authority, dial, method):
    """What it had opened before ends, with the reason."""
    channel = dial(served, authority.issue("peer", role=MANAGER_ROLE))
    data = SERIALIZED[method].SerializeToString()
    kind = channel.stream_stream if method in BOTH_WAYS else channel.stream_unary
    stream = kind(method)(metadata=METADATA)
    assert list(await stream.initial_metadata())
    await stream.write(data)

    def demote(tx):
        tx.update(msgspec.structs.replace(tx.nodes.get("peer"), role=NodeRole.WORKER))

    await served.store.update(demote)
    async with asyncio.timeout(10):
        if method in BOTH_WAYS:
            with contextlib.suppress(aio.AioRpcError):
                await read_to_the_end(stream)
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "peer is no manager of this cluster" in await stream.details()


@pytest.mark.parametrize("method", METHODS)
async def test_a_node_that_the_leader_never_heard_of_is_refused(manager, authority, dial, method):
    """A certificate is not enough: the node has to be in the cluster."""
    channel = dial(manager, authority.issue("stranger", role=MANAGER_ROLE))
    with pytest.raises(DeniedError, match="stranger is not in this cluster"):
        await call(channel, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["none", "expired", "other authority"])
async def test_the_handshake_refuses(served, strangers, dial, method, kind):
    """No certificate, one that has expired, and one of another authority get no byte through."""
    channel = dial(served, strangers[kind])
    with pytest.raises(UnavailableError):
        await call(channel, method)


async def test_a_certificate_that_expires_ends_the_session(manager, authority, client):
    """What the handshake checked is checked again, and the node is told."""
    one = client("w1", manager, credentials=authority.issue("w1", seconds=2.5))
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")
    await anext(messages)
    with pytest.raises(DeniedError, match="the certificate of node w1 has expired"):
        await anext(messages)


async def test_a_node_that_is_removed_is_cut_off(manager, client):
    """Its session ends with the reason, and the next one is refused with it."""
    one = client("w1", manager)
    await one.register("w1", NodeDescription())
    messages = one.assignments("w1")
    await anext(messages)

    def remove(tx):
        tx.delete("nodes", "w1")
        cluster = next(iter(tx.clusters))
        removed = (*cluster.removed_nodes, RemovedNode(id="w1"))
        tx.update(msgspec.structs.replace(cluster, removed_nodes=removed))

    await manager.store.update(remove)
    with pytest.raises(DeniedError, match="w1 was removed from this cluster"):
        await anext(messages)
    with pytest.raises(DeniedError, match="w1 was removed from this cluster"):
        await one.register("w1", NodeDescription())


async def test_an_unknown_rpc_is_not_served(manager, authority, dial):
    """Not even to a manager."""
    channel = dial(manager, authority.issue("peer", role=MANAGER_ROLE))
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/swarm.v1.CA/Other")(b"")
    assert isinstance(error_of_call(caught.value), NotImplementedYetError)


async def test_a_server_with_an_unknown_rpc_does_not_start(start_manager, monkeypatch):
    """It would otherwise be open to everybody with a certificate."""
    monkeypatch.delitem(AUTHORIZED, "/swarm.v1.CA/Renew")
    with pytest.raises(InvariantViolationError, match=r"/swarm\.v1\.CA/Renew"):
        await start_manager()


# --- strangers ---


async def test_old_tls_is_refused(manager, client):
    """TLS 1.1 gets no handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", manager.port, ssl=context)
    await still_serves(manager, client)


async def test_garbage_and_silence_harm_nobody(manager, client):
    """Bytes that are no TLS, a TLS that is no HTTP/2, and connections that say nothing."""
    open_ones = []
    for garbage in (b"\0" * 100_000, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 500):
        reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
        writer.write(garbage)
        open_ones.append(writer)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                await reader.read(100)
    for _ in range(2_000):
        connection = socket.create_connection(("127.0.0.1", manager.port))
        connection.send(b"\x16")
        open_ones.append(connection)
    began = time.monotonic()
    await still_serves(manager, client)
    assert time.monotonic() - began < SUITES
    for one in open_ones:
        one.close()


async def test_a_slow_agent_is_given_up(manager, authority, dial, monkeypatch):
    """Who opens a session and does not say hello does not hold it."""
    from manager.dispatcher import service  # noqa: PLC0415 -- only here

    monkeypatch.setattr(service, "HELLO_SECONDS_MAX", 0.3)
    stream = dial(manager, authority.issue("w1")).stream_stream("/swarm.v1.Dispatcher/Session")()
    with pytest.raises(aio.AioRpcError, match="did not say hello in time"):
        await stream.read()


@pytest.mark.parametrize(
    "first",
    [
        dispatcher_pb2.FromAgent(),
        dispatcher_pb2.FromAgent(heartbeat=dispatcher_pb2.Heartbeat()),
        dispatcher_pb2.FromAgent(hello=dispatcher_pb2.Hello(description=b"\xc1")),
    ],
    ids=["nothing", "heartbeat", "garbage"],
)
async def test_a_session_begins_with_a_hello(manager, authority, client, dial, first):
    """Anything else ends the stream with a reason."""
    stream = dial(manager, authority.issue("w1")).stream_stream("/swarm.v1.Dispatcher/Session")()
    await stream.write(first.SerializeToString())
    with pytest.raises(aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await still_serves(manager, client)


async def read_to_the_end(stream):
    """Read until a stream ends."""
    async with asyncio.timeout(5):
        while await stream.read() is not aio.EOF:
            pass


async def test_bytes_that_are_no_message_end_their_stream_only(manager, authority, client, dial):
    """Not protobuf at all, at the start and later."""
    channel = dial(manager, authority.issue("w1"))
    hello = SERIALIZED["/swarm.v1.Dispatcher/Session"].SerializeToString()
    for messages in ([b"\xff\xff\xff"], [hello, b"\xff\xff\xff"]):
        stream = channel.stream_stream("/swarm.v1.Dispatcher/Session")()
        for message in messages:
            await stream.write(message)
        with pytest.raises(aio.AioRpcError):
            await read_to_the_end(stream)
    await still_serves(manager, client)


# --- the leader's callers ---


async def test_the_leader_is_found_from_a_follower(start_manager, follower, authority):
    """A follower names the leader in what it refuses with; the caller goes there."""
    leader = await start_manager("a")
    other = await start_manager("b", kind=follower)
    credentials = authority.issue("w1")

    remotes = Remotes([ManagerPeer("", other.address)])
    caller = LeaderClient(lambda: credentials, remotes, "cluster1", rng=random.Random(1))
    other.leader = leader.address
    reply = await caller.call(
        lambda channel: ca_pb2_grpc.CAStub(channel).Renew, ca_pb2.RenewRequest()
    )
    assert reply.certificate_pem == b"issued"


async def test_a_refusal_of_the_leader_is_not_asked_elsewhere(manager, authority):
    """Only who cannot answer is passed over."""
    credentials = authority.issue("stranger")
    remotes = Remotes([ManagerPeer("manager", manager.address), ManagerPeer("x", "127.0.0.1:1")])
    remotes.observe("127.0.0.1:1", is_good=False)
    caller = LeaderClient(lambda: credentials, remotes, "cluster1", rng=random.Random(1))
    with pytest.raises(DeniedError, match="stranger is not in this cluster"):
        await caller.call(lambda channel: ca_pb2_grpc.CAStub(channel).Renew, ca_pb2.RenewRequest())


async def test_nobody_there_is_said(authority):
    """When no manager answers the sentence says what was tried."""
    credentials = authority.issue("w1")
    remotes = Remotes([ManagerPeer("manager", "127.0.0.1:1")])
    caller = LeaderClient(lambda: credentials, remotes, "cluster1", rng=random.Random(1))
    with pytest.raises(UnavailableError, match="no manager answered as leader"):
        await caller.call(lambda channel: ca_pb2_grpc.CAStub(channel).Renew, ca_pb2.RenewRequest())
    empty = LeaderClient(lambda: credentials, Remotes(), "cluster1", rng=random.Random(1))
    with pytest.raises(UnavailableError, match="knows no manager"):
        await empty.call(lambda channel: ca_pb2_grpc.CAStub(channel).Renew, ca_pb2.RenewRequest())
