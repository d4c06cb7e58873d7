"""Only a member of this cluster, with a manager's valid certificate, is heard or spoken to."""

import asyncio
import ssl

import pytest

from proto.errors import DeniedError, UnavailableError
from raft.transport.identity import MANAGER_ROLE, WORKER_ROLE, Credentials
from raft.transport.limits import Limits
from raft.transport.link import Link, Target

pytestmark = pytest.mark.integration


async def dial(stranger, target, eventually):
    """Let a member dial another; return once it was refused several times."""
    stranger.transport.set_peer("b", target.address)
    stranger.transport.send("b", [b"let me in"])
    await eventually(lambda: len(stranger.unreachable) >= 3)
    assert not stranger.transport.reachable("b")
    assert target.received == []


def reasons(records, event):
    """Return the reasons of the log's lines of this kind."""
    return [record["reason"] for record in records if record["event"] == event]


async def test_another_authority_is_refused_by_the_server(
    member, new_authority, authority, records, eventually
):
    """A certificate that another root signed does not pass the handshake."""
    b = await member("b")
    ours = authority.root.certificate_pem.encode()
    a = await member("a", new_authority().issue("a", roots=ours))
    await dial(a, b, eventually)
    assert reasons(records, "raft_peer_unreachable")


async def test_another_authority_is_refused_by_the_client(
    member, new_authority, authority, records, eventually
):
    """A server whose certificate another root signed gets nothing."""
    other = new_authority()
    b = await member("b", other.issue("b", roots=authority.root.certificate_pem.encode()))
    a = await member("a")
    await dial(a, b, eventually)
    assert "handshake failed" in "".join(reasons(records, "raft_peer_unreachable"))


async def test_another_cluster_of_the_same_authority_is_refused(
    member, authority, records, eventually
):
    """An authority that serves two clusters does not join them."""
    b = await member("b")
    names = (MANAGER_ROLE,)
    a = await member("a", authority.issue("a", cluster="cluster2", names=names), cluster="cluster2")
    a.transport._cluster_id = "cluster1"  # so that it asks for the right server
    await dial(a, b, eventually)
    reason = "node a belongs to cluster cluster2, this is cluster1"
    assert reason in reasons(records, "raft_peer_refused")
    assert reason in reasons(records, "raft_peer_unreachable")


async def test_a_server_of_another_cluster_gets_nothing(member, authority, records, eventually):
    """The client asks for the cluster in the handshake."""
    b = await member("b", authority.issue("b", cluster="cluster2"), cluster="cluster2")
    a = await member("a")
    await dial(a, b, eventually)
    assert "Hostname Verification" in "".join(reasons(records, "raft_peer_unreachable"))
    assert reasons(records, "raft_peer_refused") == []


async def test_a_worker_is_refused(member, authority, records, eventually):
    """A worker's certificate does not open the log, though it is of the cluster."""
    a, b = await member("a"), await member("b")
    a.credentials = authority.issue("a", role=WORKER_ROLE)
    await dial(a, b, eventually)
    reason = "node a has the role swarm-worker, only a swarm-manager may do this"
    assert reasons(records, "raft_peer_refused") == [reason]  # once a minute, not each time


async def test_a_worker_as_server_gets_nothing(member, authority, eventually):
    """A member does not speak to a node that was demoted."""
    a, b = await member("a"), await member("b")
    await b.show(authority.issue("b", role=WORKER_ROLE))
    await dial(a, b, eventually)


async def test_another_node_at_the_address_gets_nothing(member, records, eventually):
    """If node c lives where b was, a does not take it for b."""
    a, c = await member("a"), await member("c")
    await dial(a, c, eventually)
    assert "Hostname Verification" in "".join(reasons(records, "raft_peer_unreachable"))


async def test_a_stream_for_another_node_is_refused(member, eventually, records):
    """The server, too, checks that it is the one who is meant."""
    a, c = await member("a"), await member("c")

    class Wrong(Target):
        @property
        def server_name(self):
            return "c.swarm-manager.cluster1"

    link = Link(Wrong("b", c.address, "cluster1"), a.transport._around, a.unreachable.append)
    await eventually(lambda: len(a.unreachable) >= 2)
    await link.close()
    assert "this is node c, not b" in reasons(records, "raft_peer_refused")


async def test_somebody_who_is_no_member_is_refused(member, records, eventually):
    """A manager's certificate does not make a member of Raft."""
    a, b = await member("a"), await member("b")
    b.members.discard("a")
    await dial(a, b, eventually)
    assert "node a is no member, or no longer one" in reasons(records, "raft_peer_refused")


async def test_a_removed_member_is_cut_off(pair, eventually):
    """`remove_peer` ends streams in both directions, and it cannot come back."""
    a, b = pair
    b.members.discard("a")
    b.transport.remove_peer("a")
    await eventually(lambda: not a.transport.reachable("b"))
    assert not b.transport.reachable("a")
    await dial(a, b, eventually)
    assert b.transport._inbound._cuts == {}


async def test_a_member_that_is_no_longer_allowed_is_cut_at_its_next_frame(pair, eventually):
    """`is_allowed` is asked with each frame; no cut by hand is needed."""
    a, b = pair
    b.members.discard("a")
    a.transport.send("b", [b"x"])
    await eventually(lambda: not a.transport.reachable("b"))
    assert b.received == []


async def test_messages_in_somebody_elses_name_end_the_stream(pair, records, eventually):
    """What the receiver denies is told to the sender, and logged."""
    a, b = pair

    def deny(node_id, _messages):
        raise DeniedError(f"node {node_id} speaks for another")

    b.on_message = deny
    a.transport.send("b", [b"x"])
    await eventually(lambda: not a.transport.reachable("b"))
    await eventually(lambda: "node a speaks for another" in reasons(records, "raft_peer_lost"))
    assert "node a speaks for another" in reasons(records, "raft_peer_refused")


async def test_an_expired_certificate_is_refused(member, authority, eventually):
    """Neither a server nor a client that has expired is spoken to."""
    a, b = await member("a"), await member("b")
    a.credentials = authority.issue("a", valid_seconds=-1)
    await dial(a, b, eventually)
    a.credentials = authority.issue("a")
    await b.show(authority.issue("b", valid_seconds=-1))
    a.unreachable.clear()
    await dial(a, b, eventually)


async def test_a_certificate_that_expires_ends_its_stream(member, authority, records, eventually):
    """A stream does not outlive its certificate; with a new one it comes back by itself."""
    a = await member("a", authority.issue("a", valid_seconds=2.5))
    b = await member("b")
    a.transport.set_peer("b", b.address)
    await eventually(lambda: a.transport.reachable("b"))
    expired = "the certificate of node a has expired; it must renew it"

    def is_refused():
        a.transport.send("b", [b"x"])
        return expired in reasons(records, "raft_peer_refused")

    await eventually(is_refused)
    a.credentials = authority.issue("a")
    await eventually(lambda: a.transport.reachable("b"))


async def test_streams_live_on_when_the_certificate_changes(pair, authority):
    """A new certificate is shown to whoever dials from then on, and cuts nobody off."""
    a, b = pair
    before = {lane: stats.connects for lane, stats in a.transport.status()["b"].lanes.items()}
    for _ in range(3):
        await b.show(authority.issue("b"))
    a.transport.send("b", [b"x"])
    await asyncio.sleep(0.1)
    assert b.from_peer("a") == [b"x"]
    after = {lane: stats.connects for lane, stats in a.transport.status()["b"].lanes.items()}
    assert before == after


async def test_own_certificate_must_be_for_this_node(member, authority):
    """A transport does not start with a certificate that no peer would accept."""
    with pytest.raises(DeniedError, match="of node c, this is a"):
        await member("a", authority.issue("c"))
    with pytest.raises(DeniedError, match="role swarm-worker"):
        await member("a", authority.issue("a", role=WORKER_ROLE))


async def test_a_port_in_use_is_said(member):
    """Two daemons do not share a port silently."""
    a = await member("a")
    with pytest.raises(UnavailableError, match="cannot listen on"):
        await member("b", port=a.port)


async def test_certificates_and_roots_change_without_a_restart(
    pair, member, new_authority, authority, eventually
):
    """The root is changed in three steps, messages go on, and the old root counts no more."""
    a, b = pair
    new = new_authority()
    old_root = authority.root.certificate_pem.encode()
    new_root = new.root.certificate_pem.encode()
    sent = []

    async def step(issuer, roots):
        for one in (a, b):
            one.credentials = issuer.issue(one.node_id, roots=roots)
        for one in (a, b):
            one.transport.refresh_credentials()
        for _ in range(20):
            sent.append(b"%d" % len(sent))
            a.transport.send("b", [sent[-1]])
            await asyncio.sleep(0.005)
        await eventually(lambda: b.from_peer("a") == sent)
        await eventually(lambda: a.transport.reachable("b") and b.transport.reachable("a"))

    await step(authority, old_root + new_root)
    await step(new, old_root + new_root)
    await step(new, new_root)
    assert a.transport.status()["b"].lanes[next(iter(a.transport.status()["b"].lanes))].connects > 3
    late = await member("c", authority.issue("c", roots=new_root))
    late.transport.set_peer("b", b.address)
    await eventually(lambda: len(late.unreachable) >= 2)
    assert not late.transport.reachable("b")


def client_context(credentials, tmp_path):
    """Make a context of the ssl module that shows these credentials."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(credentials.certificate_pem)
    key.write_bytes(credentials.key_pem)
    context = ssl.create_default_context(cadata=credentials.roots_pem.decode())
    context.check_hostname = False
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_versions_of_tls_are_refused(member, authority, tmp_path):
    """TLS 1.1 gets no handshake, 1.2 and 1.3 do."""
    b = await member("b")
    for version, is_fine in (
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ):
        context = client_context(authority.issue("a"), tmp_path)
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        try:
            _reader, writer = await asyncio.open_connection("127.0.0.1", b.port, ssl=context)
        except (ssl.SSLError, ConnectionError):
            assert not is_fine, version
        else:
            assert is_fine, version
            writer.transport.abort()


async def test_a_client_without_certificate_is_refused(member, authority):
    """The handshake demands a certificate."""
    b = await member("b")
    context = ssl.create_default_context(cadata=authority.root.certificate_pem)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 would notice only with the first read
    context.set_alpn_protocols(["h2"])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", b.port, ssl=context)


async def test_strangers_on_the_port_disturb_nobody(member, authority, tmp_path, eventually):
    """Garbage, silence and bytes one by one are cut off; members go on meanwhile."""
    limits = Limits(handshake_seconds_max=0.5)
    b = await member("b", limits=limits)
    a = await member("a")
    silent = [await asyncio.open_connection("127.0.0.1", b.port) for _ in range(50)]
    garbage_reader, garbage = await asyncio.open_connection("127.0.0.1", b.port)
    garbage.write(bytes(range(256)) * 64)
    slow_reader, slow = await asyncio.open_connection("127.0.0.1", b.port)
    context = client_context(authority.issue("a"), tmp_path)
    inner_reader, inner = await asyncio.open_connection("127.0.0.1", b.port, ssl=context)
    inner.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096)
    a.transport.set_peer("b", b.address)
    assert await eventually(lambda: a.transport.reachable("b")) < 0.5

    async def ended(reader):
        try:
            while await reader.read(65536):
                pass
        except (ConnectionError, ssl.SSLError):
            pass

    async def drip():
        try:
            for byte in b"\x16\x03\x01\x02\x00" + bytes(500):
                slow.write(bytes([byte]))
                await slow.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass

    async with asyncio.timeout(4):
        await asyncio.gather(
            drip(),
            *(ended(reader) for reader in (garbage_reader, slow_reader, inner_reader)),
            *(ended(reader) for reader, _writer in silent),
        )
    for writer in (garbage, slow, inner, *(writer for _reader, writer in silent)):
        writer.transport.abort()
    a.transport.send("b", [b"still here"])
    await eventually(lambda: b.received == [("a", b"still here")])


async def test_a_frame_above_the_limit_ends_the_stream(member, lanes, eventually):
    """A member with larger limits cannot make us take more than ours."""
    a = await member("a", limits=Limits(message_bytes_max=16 << 20, control_bytes_max=16 << 20))
    b = await member("b")
    a.transport.set_peer("b", b.address)
    await eventually(lambda: a.transport.reachable("b"))
    a.transport.send("b", [b"x" * (6 << 20)], lane=lanes[1])
    await eventually(lambda: not a.transport.reachable("b"))
    await eventually(lambda: a.transport.reachable("b"))
    assert b.received == []


async def test_a_frame_that_is_no_frame_ends_the_stream(member, authority):
    """A member that sends something else than protobuf is not understood, and nothing breaks."""
    import grpc  # noqa: PLC0415 -- the raw library, only here

    b = await member("b")
    credentials = authority.issue("a")
    async with grpc.aio.secure_channel(
        b.address,
        grpc.ssl_channel_credentials(
            credentials.roots_pem, credentials.key_pem, credentials.certificate_pem
        ),
        options=[("grpc.ssl_target_name_override", "swarm-manager")],
    ) as channel:
        call = channel.stream_unary("/swarm.v1.Raft/Messages")(
            metadata=(("swarm-to", "b"), ("swarm-lane", "control"))
        )
        await call.write(b"\xff\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        call = channel.stream_unary("/swarm.v1.Raft/Messages")(
            metadata=(("swarm-to", "b"), ("swarm-lane", "third"))
        )
        assert b"does not say its lane" in await call
    assert b.received == []


def test_credentials_hide_their_key():
    """The key does not get into a log by accident."""
    assert "secret" not in repr(
        Credentials(certificate_pem=b"public", key_pem=b"secret", roots_pem=b"public")
    )
