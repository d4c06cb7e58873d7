"""Whatever happens in whatever order while the root changes, nodes can talk, and it ends.

Real certificates, the real authority on a store in memory. Nodes join, ask, get answers late or
never, show what they have, are told of roots, and are removed, while rotations begin, are replaced
and are given up, and leaders change.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.ca.authority import CertificateAuthority
from manager.ca.chain import leads_to_root, load_certificates
from manager.ca.credentials import check_fit
from manager.ca.issue import is_issuer_named, issuer_names, new_key_and_csr, tls_info_of
from manager.ca.root import create_root
from manager.ca.rootchange import (
    BATCH_NODES_MAX,
    Batches,
    NewRoot,
    begin_rotation,
    finish_rotation,
    is_finished,
    pending_nodes,
    progress,
)
from manager.ca.tokens import new_join_token
from manager.store import Entry, Store
from proto.errors import ConflictError, DeniedError
from proto.ids import ClusterID
from proto.objects import (
    Cluster,
    JoinTokens,
    Node,
    NodeAvailability,
    NodeRole,
    root_certificates_pem,
)
from raft.transport.identity import Credentials

replace = msgspec.structs.replace
NOW = 1_800_000_000.0
ROOTS = [create_root(NOW) for _ in range(4)]


class Clock:
    """A clock that moves a minute with each look, as certificates have whole seconds."""

    def __init__(self):
        self.now = NOW

    def wall(self):
        """Read the time."""
        self.now += 60.0
        return self.now

    def monotonic(self):
        """Read the time."""
        return self.now


class MemoryLog:
    """A log that commits in the next turn of the loop."""

    def __init__(self):
        self.last_index = 0
        self.snapshot_index = 0

    def propose(self, _data):
        """Commit soon."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.last_index += 1
        loop.call_soon(future.set_result, self.last_index)
        return future

    def restore(self) -> tuple[Iterator[bytes], Iterator[Entry]]:
        """Give nothing."""
        return iter(()), iter(())

    def attach(self, listener):
        """Lead."""
        listener.lead(1)

    async def read_barrier(self) -> int:
        """Answer at once: there is nobody else."""
        return 0


class Member:
    """A node that obeys: what it holds, and what is on its way to it."""

    def __init__(self, node_id, credentials):
        self.node_id = node_id
        self.credentials = credentials
        self.answer = None
        self.is_untold = False


class World:
    """The cluster, its nodes, and the actions that the test draws."""

    def __init__(self, rng):
        self.rng = rng
        self.clock = Clock()
        self.store = Store.open(MemoryLog(), self.clock)
        self.authority = CertificateAuthority(self.store, self.clock, rng)
        self.members = []
        self.batches = Batches()
        self.can_talk = {}

    @property
    def cluster(self):
        """The row."""
        (row,) = self.store.view().clusters
        return row

    async def start(self):
        """Begin the cluster."""
        root = ROOTS[0]
        tokens = JoinTokens(
            worker=new_join_token(root.certificate_pem, self.rng),
            manager=new_join_token(root.certificate_pem, self.rng),
        )
        row = Cluster(
            id=ClusterID("c"),
            root_ca_certificate_pem=root.certificate_pem,
            root_ca_key_pem=root.key_pem,
            join_tokens=tokens,
        )
        await self.store.update(lambda tx: tx.create(row))

    def pick(self):
        """Choose a member."""
        return self.rng.choice(self.members) if self.members else None

    async def join(self):
        """Let a node in; now and then it never learns of it."""
        key_pem, csr_pem = new_key_and_csr()
        role = self.rng.choice(("worker", "manager"))
        joined = await self.authority.issue_for_join(
            getattr(self.cluster.join_tokens, role),
            csr_pem,
            hostname="h",
            availability=NodeAvailability.ACTIVE,
            address="",
        )
        if self.rng.random() < 0.9:
            credentials = Credentials(
                certificate_pem=joined.certificate_pem,
                key_pem=key_pem,
                roots_pem=joined.roots_pem,
            )
            self.members.append(Member(joined.node_id, credentials))

    async def remove(self):
        """Remove a node, one that never came included."""
        rows = sorted(self.store.view().nodes, key=lambda node: node.id)
        if rows:
            await self.drop(self.rng.choice(rows).id)

    async def drop(self, node_id):
        """Remove this node."""
        await self.store.update(lambda tx: tx.delete(Node, node_id))
        self.members = [member for member in self.members if member.node_id != node_id]

    async def ask(self, member=None, *, is_lost=None):
        """Ask for a certificate: the answer is on its way, or lost."""
        member = member or self.pick()
        if member is None or member.answer is not None:
            return
        key_pem, csr_pem = new_key_and_csr()
        chain, roots = await self.authority.renew(member.node_id, csr_pem)
        if not (self.rng.random() < 0.3 if is_lost is None else is_lost):
            member.answer = Credentials(certificate_pem=chain, key_pem=key_pem, roots_pem=roots)

    async def take(self, member=None):
        """Let an answer arrive."""
        member = member or self.pick()
        if member is not None and member.answer is not None:
            check_fit(member.answer)
            member.credentials, member.answer = member.answer, None
            member.is_untold = True

    async def show(self, member=None, *, is_lost=None):
        """Show the certificate; the reply may be lost."""
        member = member or self.pick()
        if member is None or member.answer is not None:
            return
        text = member.credentials.certificate_pem
        try:
            await self.authority.renew(member.node_id, text)
        except ConflictError:
            return
        if not (self.rng.random() < 0.3 if is_lost is None else is_lost):
            member.is_untold = False

    async def tell_roots(self, member=None):
        """Let a session tell the present roots."""
        member = member or self.pick()
        if member is not None:
            self.trust(member, root_certificates_pem(self.cluster).encode())

    @staticmethod
    def trust(member, roots):
        """Trust these, unless they do not vouch for the own certificate."""
        changed = replace(member.credentials, roots_pem=roots)
        check_fit(changed)
        member.credentials = changed

    async def promote(self):
        """Change a node's role."""
        member = self.pick()
        if member is not None:
            row = self.store.view().nodes.get(member.node_id)
            role = NodeRole(1 - row.role)
            await self.store.update(lambda tx: tx.update(replace(row, role=role)))

    async def rotate(self):
        """Begin a rotation, to a root that is made or one of a few that come again."""
        root = self.rng.choice([None, *ROOTS])
        new = NewRoot()
        if root is not None:
            new = NewRoot(certificate_pem=root.certificate_pem, key_pem=root.key_pem)

        def begin(tx):
            (row,) = tx.clusters
            tx.update(begin_rotation(row, self.clock.now, new))

        await self.store.update(begin)

    async def reconcile(self):
        """Do what the leader's loop does; return who is told to renew."""

        def finish(tx):
            (row,) = tx.clusters
            if is_finished(row, tx.nodes):
                tx.update(finish_rotation(row, self.rng))

        await self.store.update(finish)
        pending = pending_nodes(self.cluster, self.store.view().nodes)
        told = self.batches.choose(pending, self.clock.monotonic())
        self.batches.check()
        assert len(told) == min(len(pending), BATCH_NODES_MAX)
        return told

    async def change_leader(self):
        """Forget what only a leader remembers."""
        self.batches = Batches()

    def check(self):
        """Every two nodes can talk, in both directions."""
        for first, second in itertools.permutations(self.members, 2):
            key = (first.credentials.certificate_pem, second.credentials.roots_pem)
            if key not in self.can_talk:
                chain, roots = (load_certificates(pem, "it") for pem in key)
                self.can_talk[key] = leads_to_root(chain, roots)
            assert self.can_talk[key], f"{second.node_id} refuses {first.node_id}"
        done, total = progress(self.store.view())
        assert 0 <= done <= total == len(self.store.view().nodes)

    async def settle(self):
        """Be fair from now on: everything arrives, everybody obeys, ghosts are removed."""
        known = {member.node_id for member in self.members}
        for node in list(self.store.view().nodes):
            if node.id not in known:
                await self.drop(node.id)
        for _ in range(4):
            told = await self.reconcile()
            for member in list(self.members):
                await self.take(member)
                await self.tell_roots(member)
                if member.is_untold:
                    await self.show(member, is_lost=False)
                    member.is_untold = False
                if member.node_id in told:
                    await self.ask(member, is_lost=False)
                    await self.take(member)
                    self.check()
                    await self.show(member, is_lost=False)
                self.check()


ACTIONS = (
    "join",
    "remove",
    "ask",
    "take",
    "show",
    "tell_roots",
    "promote",
    "rotate",
    "reconcile",
    "change_leader",
)


async def _play(actions, seed):
    world = World(random.Random(seed))
    await world.start()
    for _ in range(3):
        await world.join()
    for action in actions:
        await getattr(world, action)()
        world.check()
    was_rotating = world.cluster.root_rotation
    await world.settle()
    row = world.cluster
    assert row.root_rotation is None
    if was_rotating is not None:
        assert row.root_ca_certificate_pem == was_rotating.certificate_pem
        names = issuer_names(row.root_ca_certificate_pem)
        for member in world.members:
            held = member.credentials
            assert held.roots_pem.decode() == row.root_ca_certificate_pem
            assert is_issuer_named(tls_info_of(held.certificate_pem, held.roots_pem), names)
    assert all(member.credentials.roots_pem.count(b"BEGIN") == 1 for member in world.members)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=80),
    seed=st.integers(0, 2**16),
)
def test_nodes_can_always_talk_and_a_rotation_ends(actions, seed):
    """After every step any two nodes accept each other; at the end all are on the new root."""
    asyncio.run(_play(actions, seed))


def test_an_answer_that_was_lost_does_not_end_a_rotation():
    """The authority issued by the new root, the node never got it: it must not be cut off."""

    async def play():
        world = World(random.Random(1))
        await world.start()
        while len(world.members) < 2:
            await world.join()
        await world.rotate()
        while world.cluster.root_rotation is None:
            await world.rotate()
        for member in world.members:
            await world.ask(member, is_lost=member is world.members[0])
            await world.take(member)
            await world.show(member, is_lost=False)
        await world.reconcile()
        world.check()
        assert world.cluster.root_rotation is not None

    asyncio.run(play())


def test_a_removed_node_gets_no_certificate():
    """Not even while the root changes."""

    async def play():
        world = World(random.Random(1))
        await world.start()
        while not world.members:
            await world.join()
        member = world.members[0]
        await world.rotate()
        await world.drop(member.node_id)
        try:
            await world.ask(member)
        except DeniedError as error:
            return error.message
        return ""

    assert "not, or no longer, in this cluster" in asyncio.run(play())
