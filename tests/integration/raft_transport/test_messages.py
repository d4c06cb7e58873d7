"""Messages get through, in order, quickly, and again after a break."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from proto.errors import InvalidError
from raft.transport.limits import Limits
from raft.transport.link import Link

pytestmark = pytest.mark.integration


async def test_messages_arrive_in_order_in_both_directions(pair, lanes, eventually):
    """Each lane keeps the order of what was sent on it, in both directions."""
    a, b = pair
    for number in range(500):
        for lane in lanes:
            a.transport.send("b", [f"{lane.value} {number}".encode()], lane=lane)
            b.transport.send("a", [f"{lane.value} {number}".encode()] * 2, lane=lane)
    await eventually(lambda: len(b.received) == 1000)
    await eventually(lambda: len(a.received) == 2000)
    for lane in lanes:
        sent = [f"{lane.value} {number}".encode() for number in range(500)]
        assert sent == [m for m in b.from_peer("a") if m.startswith(lane.value.encode())]
        twice = [message for message in sent for _ in range(2)]
        assert twice == [m for m in a.from_peer("b") if m.startswith(lane.value.encode())]


async def test_messages_sent_before_the_connection_arrive(member, eventually):
    """What is queued while the first attempt is under way is sent when it succeeds."""
    a, b = await member("a"), await member("b")
    a.transport.set_peer("b", b.address)
    a.transport.send("b", [b"vote"])
    await eventually(lambda: b.received == [("a", b"vote")])
    assert a.unreachable == []


async def test_sizes_from_nothing_to_the_largest(pair, lanes, eventually):
    """Empty messages and those of the largest size arrive whole; a larger one is refused."""
    a, b = pair
    largest = Limits().message_bytes_max
    messages = [b"", b"x", b"y" * 300_000, b"z" * largest, b""]
    a.transport.send("b", messages, lane=lanes[1])
    await eventually(lambda: len(b.received) == 5)
    assert messages == b.from_peer("a")
    with pytest.raises(InvalidError, match="is more than"):
        a.transport.send("b", [b"z" * (largest + 1)])


async def test_a_restarted_peer_is_reached_at_once(member, eventually):
    """A peer that was away for long is reached within 100 ms of its start, both ways.

    Here the next retry would come after seconds, so it is the peer's sign of life that does it.
    """
    a = await member("a", limits=Limits(retry_seconds_first=8.0, retry_seconds_max=8.0))
    b = await member("b")
    a.transport.set_peer("b", b.address)
    times = []
    for _ in range(3):  # the machine may be busy, the best counts
        b.transport.set_peer("a", a.address)
        await eventually(lambda b=b: b.transport.reachable("a") and a.transport.reachable("b"))
        await b.transport.close()
        await eventually(lambda: not a.transport.reachable("b"))
        await eventually(lambda: "b" in a.unreachable)
        await asyncio.sleep(0.1)
        b = await member("b", port=b.port)
        began = time.monotonic()
        b.transport.set_peer("a", a.address)
        await eventually(lambda b=b: b.transport.reachable("a") and a.transport.reachable("b"))
        times.append(time.monotonic() - began)
    assert min(times) < 0.1
    a.transport.send("b", [b"welcome"])
    await eventually(lambda: b.received == [("a", b"welcome")])


async def test_a_peer_that_comes_back_soon_is_found_by_dialling(pair, member, eventually):
    """If only we dial, a restart of 50 ms is over for us within 100 ms."""
    a, b = pair
    times = []
    for _ in range(3):
        await b.transport.close()
        await asyncio.sleep(0.05)
        b = await member("b", port=b.port)
        times.append(await eventually(lambda: a.transport.reachable("b")))
        await asyncio.sleep(0.6)  # lives long enough for the retries to begin quickly again
    assert min(times) < 0.1


async def test_a_new_address_is_dialled(pair, member, eventually):
    """After `set_peer` with another address the messages go there."""
    a, b = pair
    await b.transport.close()
    b = await member("b")
    a.transport.set_peer("b", b.address)
    a.transport.send("b", [b"hello"])
    await eventually(lambda: b.received == [("a", b"hello")])
    assert a.transport.status()["b"].address == b.address


async def test_messages_for_a_peer_that_is_away_are_dropped_and_reported(member, eventually):
    """Entries are not kept, of control messages the newest are, and the caller is told."""
    a = await member("a")
    b = await member("b")
    await b.transport.close()
    a.transport.set_peer("b", b.address)
    await eventually(lambda: a.unreachable)
    await eventually(lambda: a.transport._links["b"]._streams, within=1)
    streams = a.transport._links["b"]._streams.values()
    await eventually(lambda: all(stream._is_away for stream in streams))
    a.unreachable.clear()
    for lane, stream in a.transport._links["b"]._streams.items():
        a.transport.send("b", [b"%d" % number for number in range(1000)], lane=lane)
        assert len(stream._outbox) == (64 if lane.value == "control" else 0)
        assert a.unreachable == []  # not from within the call
    await eventually(lambda: a.unreachable)


async def test_an_unknown_peer_is_no_error(member):
    """Sending to nobody does nothing; a removed member's messages may be under way."""
    a = await member("a")
    a.transport.send("zzz", [b"x"])
    a.transport.remove_peer("zzz")
    assert not a.transport.reachable("zzz")


async def test_a_slow_receiver_slows_the_sender(pair, lanes, eventually):
    """While the receiver works on a frame, the sender's queue fills to its bound, no further."""
    a, b = pair
    gate = asyncio.Event()
    b.on_message = lambda _node_id, _messages: gate.wait()
    limits = Limits()
    for _ in range(80):
        a.transport.send("b", [b"x" * 1_000_000], lane=lanes[1])
        await asyncio.sleep(0.001)
    assert a.transport.status()["b"].queued_bytes <= limits.entries_bytes_max
    assert len(b.received) == 1
    assert a.unreachable
    assert a.transport.reachable("b")
    a.transport.send("b", [b"beat"])
    await eventually(lambda: (("a", b"beat")) in b.received)  # the other lane goes on
    gate.set()
    await eventually(lambda: a.transport.status()["b"].queued_bytes == 0)
    got = len(b.received)
    assert got >= limits.entries_bytes_max // 1_000_000


async def test_contact_tells_when_a_peer_was_heard(pair, eventually):
    """`contact` moves with what the peer sends, not with what we send."""
    a, b = pair
    before = a.transport.status()["b"].contact
    a.transport.send("b", [b"x"])
    await eventually(lambda: b.received)
    assert before == a.transport.status()["b"].contact
    b.transport.send("a", [b"y"])
    await eventually(lambda: a.received)
    assert a.transport.status()["b"].contact > before


def memory_of_this_process():
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_stopped_peer_is_noticed_and_costs_no_memory(member, process, lanes, eventually):
    """A peer that is stopped is unreachable within 1.5 s, its messages do not pile up."""
    a = await member("a")
    echo = process("b", a)
    a.transport.set_peer("b", f"127.0.0.1:{echo.port}")
    await eventually(lambda: a.transport.reachable("b"))
    echo.signal(signal.SIGSTOP)
    before = memory_of_this_process()
    began = time.monotonic()
    payload = b"x" * 100_000
    lost_after = 0.0
    while time.monotonic() - began < 2.5:
        for lane in lanes:
            a.transport.send("b", [payload] * 4, lane=lane)
        if not lost_after and not a.transport.reachable("b"):
            lost_after = time.monotonic() - began
        await asyncio.sleep(0.005)
    assert 0 < lost_after < 1.5
    assert memory_of_this_process() - before < 96 * 1024 * 1024
    echo.signal(signal.SIGCONT)
    await eventually(lambda: a.transport.reachable("b"), within=3)
    a.received.clear()
    a.transport.send("b", [b"12345678"])
    await eventually(lambda: ("b", b"12345678") in a.received)


async def test_a_busy_member_is_not_lost(pair):
    """Signs of life are answered by the library's threads, also while Python does not yield."""
    a, b = pair
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        sum(range(1000))
    await asyncio.sleep(0.1)
    assert a.unreachable == []
    assert b.unreachable == []
    assert a.transport.status()["b"].is_reachable


async def test_a_newer_stream_ends_the_older(pair, eventually):
    """What is left over of a broken connection cannot mix with the new one."""
    a, b = pair
    newer = Link(a.transport._links["b"].target, a.transport._around, lambda _node_id: None)
    await eventually(lambda: newer.is_up)
    await eventually(lambda: a.unreachable)
    await newer.close()
    await eventually(lambda: a.transport.reachable("b"))
    assert set(b.transport._inbound._cuts) == {("a", "control"), ("a", "entries")}
