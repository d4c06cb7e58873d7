"""A snapshot has a stream of its own: whole or not at all, and in nobody's way."""

import asyncio
import time

import pytest

from proto.errors import ConflictError, DeniedError, InvalidError, NotFoundError, UnavailableError
from raft.transport.limits import Limits

pytestmark = pytest.mark.integration

MIB = 1024 * 1024


async def chunks_of(total, size=MIB):
    """Yield chunks up to a total."""
    piece = bytes(size)
    while total > 0:
        yield piece[:total]
        total -= size


async def test_small_messages_flow_while_a_snapshot_does(member, process, eventually):
    """100 MiB go to another process while round trips of small messages stay short."""
    a = await member("a")
    echo = process("b", a)
    a.transport.set_peer("b", f"127.0.0.1:{echo.port}")
    await eventually(lambda: a.transport.reachable("b"))
    a.transport.send("b", [b"12345678"])
    await eventually(lambda: a.received)
    loop = asyncio.get_running_loop()
    answered = loop.create_future()
    a.on_message = lambda _node_id, _messages: answered.set_result(None)
    began = time.monotonic()
    sending = asyncio.create_task(a.transport.send_snapshot("b", b"head", chunks_of(100 * MIB)))
    trips = []
    while not sending.done():
        answered = loop.create_future()
        sent = time.monotonic()
        a.transport.send("b", [b"12345678"])
        await answered
        trips.append(time.monotonic() - sent)
    await sending
    assert time.monotonic() - began < 5
    trips.sort()
    assert len(trips) > 20
    assert trips[len(trips) * 99 // 100] < 0.05


async def test_a_snapshot_arrives_whole(pair):
    """Header and content are what was sent; large chunks are cut, small ones go as they are."""
    a, b = pair
    await a.transport.send_snapshot("b", b"head", chunks_of(3 * MIB + 5))
    await a.transport.send_snapshot("b", b"", chunks_of(0))
    assert b.snapshots == [("a", b"head", 3 * MIB + 5), ("a", b"", 0)]


async def test_a_snapshot_that_is_cut_is_never_taken(pair, eventually):
    """When the sender fails in the middle, the receiver's iterator raises; another may follow."""
    a, b = pair

    async def breaking():
        yield bytes(MIB)
        await asyncio.sleep(0.05)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await a.transport.send_snapshot("b", b"head", breaking())
    await eventually(
        lambda: b.transport._inbound._cuts.keys() == {("a", "control"), ("a", "entries")}
    )
    assert b.snapshots == []
    await a.transport.send_snapshot("b", b"again", chunks_of(10))
    assert b.snapshots == [("a", b"again", 10)]


async def test_a_cancelled_sender_leaves_nothing_behind(pair, eventually):
    """Cancelling `send_snapshot` ends the receiver, and lets another begin."""
    a, b = pair

    async def endless():
        while True:
            yield bytes(1000)
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(a.transport.send_snapshot("b", b"head", endless()))
    await eventually(lambda: ("a", "snapshot") in b.transport._inbound._cuts)
    with pytest.raises(ConflictError, match="on its way already"):
        await a.transport.send_snapshot("b", b"head", chunks_of(1))
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await eventually(lambda: ("a", "snapshot") not in b.transport._inbound._cuts)
    assert b.snapshots == []
    await a.transport.send_snapshot("b", b"next", chunks_of(1))


async def test_the_receivers_refusal_reaches_the_sender(pair):
    """A full disk at the receiver is the sender's error, with the reason."""
    a, b = pair

    async def refuse(_node_id, _header, chunks):
        async for _chunk in chunks:
            raise UnavailableError("no space left for the snapshot")

    b.transport._inbound._on_snapshot = refuse
    with pytest.raises(UnavailableError, match=r"node b did not take .* no space left"):
        await a.transport.send_snapshot("b", b"head", chunks_of(20 * MIB))


async def test_a_receiver_that_stalls_is_given_up(member):
    """A receiver that reads nothing makes the sender give up in time, not grow."""
    limits = Limits(snapshot_stall_seconds_max=0.3, snapshot_finish_seconds_max=0.3)
    a, b = await member("a", limits=limits), await member("b")
    a.transport.set_peer("b", b.address)

    async def stall(_node_id, _header, _chunks):
        await asyncio.sleep(60)

    b.transport._inbound._on_snapshot = stall
    read = 0

    async def counted():
        nonlocal read
        async for chunk in chunks_of(100 * MIB):
            read += len(chunk)
            yield chunk

    with pytest.raises(UnavailableError, match="stopped taking the snapshot"):
        await a.transport.send_snapshot("b", b"head", counted())
    assert read < 20 * MIB


async def test_who_may_not_speak_may_not_send_a_snapshot(pair):
    """The rules of messages hold for snapshots, also in the middle of one."""
    a, b = pair

    async def until_removed():
        yield bytes(1000)
        await asyncio.sleep(0.05)
        b.members.discard("a")
        while True:
            yield bytes(1000)
            await asyncio.sleep(0.01)

    with pytest.raises(DeniedError, match="no longer one"):
        await a.transport.send_snapshot("b", b"head", until_removed())
    with pytest.raises(DeniedError, match="no longer one"):
        await a.transport.send_snapshot("b", b"head", chunks_of(10))
    assert b.snapshots == []


async def test_what_cannot_be_sent_is_said(pair):
    """An unknown peer, a header too large, a peer that is away."""
    a, b = pair
    with pytest.raises(NotFoundError, match="peer zzz not found"):
        await a.transport.send_snapshot("zzz", b"", chunks_of(1))
    with pytest.raises(InvalidError, match="header"):
        await a.transport.send_snapshot("b", bytes(MIB), chunks_of(1))
    await b.transport.close()
    with pytest.raises(UnavailableError, match="node b did not take the snapshot"):
        await a.transport.send_snapshot("b", b"", chunks_of(1))
