"""A member whose disk was put back to an older state: it finds out, says so, and stays out."""

from __future__ import annotations

import asyncio
import copy

import pytest

from proto.errors import UnavailableError
from raft.keys import KeyRing
from raft.node import force_cluster_of_one

from .conftest import HOME


def put_back(peer, files):
    """End a member and give it an older disk."""
    peer.kill(is_power_lost=False)
    peer.files = files
    files.kill_process()
    peer.keys = KeyRing.open(HOME, rng_bytes=peer.rng.randbytes, files=files)


async def forget(group):
    """Put the third member's disk back, and start it."""
    leader = await group.form("abc")
    third = group["c"]
    for number in range(10):
        await leader.propose(b"%d" % number)
    await group.agree()
    older = copy.deepcopy(third.files)
    for number in range(10, 30):
        await leader.propose(b"%d" % number)
    await group.agree()
    put_back(third, older)
    await third.restart()
    await group.until(lambda: third.machine.failed)
    return leader, third


def test_it_is_found_out_and_told_what_to_do(play):
    """The others go on; it says nothing any more, and the leader sends it little."""

    async def story(group):
        leader, third = await forget(group)
        node_id = third.name
        assert f"swarm node demote {node_id} && swarm node promote {node_id}" in (
            third.machine.failed.message
        )
        assert third.node.has_forgotten
        assert third.node.failure == third.machine.failed.message
        with pytest.raises(UnavailableError, match="put back"):
            await third.node.read_barrier()
        sent = []
        third.wire.send = lambda *what, **_: sent.append(what)
        for number in range(20):
            await leader.propose(b"on %d" % number)
        await asyncio.sleep(3.0)
        assert sent == []

    play(story)


def test_it_stays_out_in_its_next_lives(play):
    """Also when another leads, who does not know what it had confirmed."""

    async def story(group):
        leader, third = await forget(group)
        await asyncio.sleep(0.1)
        third.kill()
        await leader.node.transfer_leadership("b")
        await group.leader("b")
        await third.restart()
        assert third.node.has_forgotten
        assert "demote" in third.machine.failed.message
        group["a"].kill()
        await asyncio.sleep(10.0)
        assert third.node.term <= group["b"].node.term
        assert not third.node.is_leader
        assert third.node._timer is None

    play(story)


def test_it_comes_back_under_a_new_number(play):
    """As demoting and promoting it does: with an empty directory."""

    async def story(group):
        leader, third = await forget(group)
        third.kill()
        await leader.node.remove("c")
        group.peers["c"] = group.new_peer("c")
        await group.join("c")
        await group.agree()
        assert not group["c"].node.has_forgotten

    play(story)


def test_it_may_be_made_a_group_of_its_own(play):
    """If all others are lost, what it has is all there is."""

    async def story(group):
        _, third = await forget(group)
        await asyncio.sleep(0.1)
        for name in "abc":
            group[name].kill()
        force_cluster_of_one(
            HOME,
            third.keys,
            node_id="c",
            address="c:1",
            rng=third.rng,
            files=third.files,
            rng_bytes=third.rng.randbytes,
        )
        await third.restart()
        assert not third.node.has_forgotten
        await group.until(lambda: third.node.is_leader)
        await third.propose(b"on")

    play(story)
