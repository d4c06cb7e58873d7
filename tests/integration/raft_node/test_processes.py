"""Three managers' logs as real processes: gRPC with mutual TLS, real disks, `kill -9`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import pytest

from .harness import Failed, free_port

pytestmark = pytest.mark.integration


async def test_a_killed_leader_is_replaced_and_comes_back(cluster_of):
    """Writes go on within the election time-out; after its restart all have the same."""
    async with cluster_of() as cluster:
        written = await cluster["a"].ask("write", prefix="one", count=50)
        assert len(written["acknowledged"]) == 50
        await cluster["a"].kill()
        began = time.monotonic()
        second = await cluster.leader()
        assert (await second.ask("write", prefix="two", count=50))["acknowledged"]
        assert time.monotonic() - began < 4.0
        await cluster["a"].start()
        digest = await cluster.agree()
        assert digest["count"] == 100


async def test_all_are_killed_at_once_and_nothing_is_lost(cluster_of):
    """`kill -9` of the whole cluster under load: what was acknowledged is there, in order."""
    async with cluster_of() as cluster:
        a = cluster["a"]
        told = [asyncio.ensure_future(a.ask("write", prefix=f"p{n}", count=20)) for n in range(20)]
        acknowledged = [name for task in told for name in (await task)["acknowledged"]]
        under_way = asyncio.ensure_future(a.ask("write", prefix="late", count=10_000))
        await asyncio.sleep(0.3)
        for node in cluster.running:
            await node.kill()
        with contextlib.suppress(asyncio.CancelledError):
            await under_way
        for node in cluster.nodes.values():
            await node.start()
        await cluster.leader()
        await cluster.agree()
        entries = (await cluster["b"].ask("entries"))["entries"]
        assert set(acknowledged) <= set(entries)
        assert len(entries) == len(set(entries))
        late = [name for name in entries if name.startswith("late")]
        assert late == [f"late-{number}" for number in range(len(late))]
        assert len(late) > 10


async def test_a_lagging_member_gets_a_snapshot_while_writes_go_on(cluster_of):
    """Its entries are gone; it gets the state, and nobody waits for it."""
    async with cluster_of() as cluster:
        a = cluster["a"]
        await cluster["c"].kill()
        await asyncio.gather(*(a.ask("write", prefix=f"p{n}", count=40) for n in range(50)))
        for node in (a, cluster["b"]):
            await node.ask("snapshot", padding=20 << 20)
        await cluster["c"].start()
        written = await a.ask("write", prefix="meanwhile", count=100)
        assert len(written["acknowledged"]) == 100
        digest = await cluster.agree()
        assert digest["count"] == 2100
        assert (await cluster["c"].ask("digest"))["blobs"] > 50
        assert (await cluster["c"].ask("status"))["snapshot_index"] > 0
        await cluster["c"].kill()
        await cluster["c"].start()
        await cluster.agree()


async def test_a_partitioned_leader_steps_down(cluster_of):
    """The majority goes on, the other side answers neither writes nor reads; then all agree."""
    async with cluster_of() as cluster:
        a = cluster["a"]
        await a.ask("cut", nodes=["b", "c"])
        lost = await a.ask("write", prefix="lost", count=1)
        assert not lost["acknowledged"]
        others = [cluster["b"], cluster["c"]]
        second = await cluster.leader(among=others)
        await second.ask("write", prefix="kept", count=10)
        with pytest.raises(Failed):
            await a.ask("barrier")
        await a.ask("cut", nodes=[])
        await cluster.agree()
        entries = (await a.ask("entries"))["entries"]
        assert [name for name in entries if name.startswith("kept")] == [
            f"kept-{number}" for number in range(10)
        ]
        assert (await a.ask("barrier"))["count"] == len(entries)


async def test_a_stopped_leader_serves_no_stale_read(cluster_of):
    """SIGSTOP, another leads and commits, SIGCONT: a read sees that, or is refused."""
    async with cluster_of() as cluster:
        a = cluster["a"]
        await a.ask("write", prefix="one", count=1)
        a.pause()
        others = [cluster["b"], cluster["c"]]
        second = await cluster.leader(among=others)
        await second.ask("write", prefix="two", count=1)
        question = asyncio.ensure_future(a.ask("barrier"))
        await asyncio.sleep(0.05)
        a.resume()
        outcome = (await asyncio.gather(question, return_exceptions=True))[0]
        if isinstance(outcome, Failed):
            assert outcome.kind in {"NotLeaderError", "UnavailableError"}
        else:
            assert outcome["count"] == 2
        await cluster.agree()


async def test_members_change_while_writes_go_on(cluster_of):
    """Five members, then the first leader leaves, then one comes back under a new number."""
    async with cluster_of("abcde") as cluster:
        a = cluster["a"]
        assert len((await a.ask("status"))["members"]) == 5
        await a.ask("write", prefix="one", count=20)
        with pytest.raises(Failed) as refused:
            await a.ask("remove", node_id="a")
        assert refused.value.kind == "NotLeaderError"
        second = await cluster.leader(among=[cluster[name] for name in "bcde"])
        await second.ask("remove", node_id="a")
        await second.ask("write", prefix="two", count=20)
        await cluster.until(lambda: is_removed(a))
        await a.kill()
        for path in sorted(a.directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        await cluster.join(a)
        assert (await cluster.agree())["count"] == 40


async def is_removed(node):
    """Tell whether a node knows that it is no member."""
    return (await node.ask("status"))["is_removed"]


async def test_a_member_moves_to_another_port(cluster_of):
    """Its peers are told the new address and reach it there."""
    async with cluster_of() as cluster:
        c = cluster["c"]
        await c.kill()
        former = c.port
        while c.port == former:
            c.port = free_port()
        await cluster["a"].ask("move", node_id="c", address=c.address)
        await c.start()
        await cluster["a"].ask("write", prefix="one", count=5)
        assert (await cluster.agree())["count"] == 5


async def test_a_graceful_stop_hands_over(cluster_of):
    """No election time-out passes when the leader is told to stop."""
    async with cluster_of(tick_seconds=0.2) as cluster:
        await cluster["a"].ask("write", prefix="one", count=5)
        began = time.monotonic()
        await cluster["a"].stop()
        second = await cluster.leader()
        assert time.monotonic() - began < 1.5
        await second.ask("write", prefix="two", count=5)


async def test_nothing_readable_is_on_the_disk(cluster_of):
    """Entries and snapshots are sealed; a stopped daemon's files name nothing of them."""
    async with cluster_of("a") as cluster:
        a = cluster["a"]
        await a.ask("write", prefix="very-secret-name", count=50)
        await a.ask("snapshot")
        await a.ask("write", prefix="very-secret-name", count=50)
        await a.kill(signal.SIGTERM)
        content = b"".join(p.read_bytes() for p in a.directory.rglob("*") if p.is_file())
        assert b"very-secret" not in content
        await a.start()
        assert (await a.ask("digest"))["count"] == 100
