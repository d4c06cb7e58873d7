"""The members of the group: who they are, and how the leader changes that.

A change is proposed, waits for its turn if another is under way, and is done when it is committed.
A leader that is to lose its vote hands over first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import msgspec
import structlog

from proto.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    NotLeaderError,
    SwarmError,
    UnavailableError,
    reason_of,
)
from raft.core import (
    NOBODY,
    Accepted,
    AddLearner,
    Change,
    Demote,
    InFavour,
    Member,
    Membership,
    NotLeader,
    Promote,
    RaftID,
    Readdress,
    RefusalCode,
    Refused,
    Remove,
    Role,
)
from raft.core.messages import Append
from raft.settings import NodeName
from raft.shipping import Shipping

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

# How long a change of the membership waits for its turn.
CHANGE_SECONDS_MAX = 5.0
_ID_BITS = 48
_REPEATED = frozenset(
    (RefusalCode.CHANGE_PENDING, RefusalCode.NOT_READY, RefusalCode.HANDING_OVER, RefusalCode.BUSY)
)


class MemberStatus(msgspec.Struct, frozen=True):
    """What `node ls` shows of a member.

    Attributes:
        member_id: its number in the log's group.
        node_id: the node's.
        address: where its peers reach it.
        is_voter: counts for quorums; a learner otherwise.
        is_leader: leads, as far as this member knows.
        is_reachable: answered this member lately; only the leader hears from all.
    """

    member_id: RaftID
    node_id: NodeName
    address: str
    is_voter: bool
    is_leader: bool
    is_reachable: bool


class Members(Shipping):
    """The layer of members; see the module."""

    @property
    def member_id(self) -> RaftID:
        """This member's number."""
        return self._me.id

    @property
    def membership(self) -> Membership:
        """The newest membership in the log."""
        return self._core.membership

    @property
    def membership_index(self) -> int:
        """The entry that brought `membership`; 0 while nothing but its peers was told to it."""
        return self._core.membership_index

    @property
    def is_removed(self) -> bool:
        """Whether this member was removed from the group, as far as it knows."""
        return self._me.id in self._core.membership.removed

    @property
    def leader_address(self) -> str:
        """Where the leader is reached; "" if it is not known, or is this member."""
        return self._leader_address()

    def status(self) -> list[MemberStatus]:
        """Return what is known about all members."""
        core = self._core
        horizon = (
            self._clock.monotonic() - self._settings.election_ticks * self._settings.tick_seconds
        )
        return [
            MemberStatus(
                member_id=member.id,
                node_id=member.node_id,
                address=member.address,
                is_voter=member.is_voter,
                is_leader=member.id == core.leader,
                is_reachable=member.id == self._me.id
                or self._heard.get(member.id, horizon) > horizon,
            )
            for member in core.membership.members
        ]

    @property
    def has_lost_majority(self) -> bool:
        """Whether this member knows that no majority of the voters can be reached from here.

        A leader knows it when too few answered for as long as an election takes. Another knows it
        when it has asked for votes, or has stepped down for the same reason, and too few were heard
        since. As long as enough are heard an election may succeed, however often it has failed.
        """
        core = self._core
        now = self._clock.monotonic()
        election_seconds = self._settings.election_ticks * self._settings.tick_seconds
        if core.role is Role.LEADER:
            since = now - election_seconds
        elif self._leaderless_since is None or now < self._leaderless_since + self._answer_seconds:
            return False
        else:
            # Votes are asked for anew after two elections' time at the latest.
            since = max(self._leaderless_since, now - 2 * election_seconds)
        voters = [member.id for member in core.membership.members if member.is_voter]
        heard = sum(one == self._me.id or self._heard.get(one, since) > since for one in voters)
        return heard <= len(voters) // 2

    async def add_learner(
        self, node_id: NodeName, address: str, *, check: Callable[[], None] = lambda: None
    ) -> RaftID:
        """Let a node join: it gets the log, and is promoted when it has caught up.

        Asked again for the same node and address, it returns the same number, so whoever lost the
        answer asks again. The promotion is this leader's affair: if it is lost meanwhile, the
        next one is to be asked again too.

        Args:
            node_id: the node's.
            address: where peers reach it.
            check: called at the moment when the change gets its place in the log; raises a
                `SwarmError` if the node may not join (any more), which is raised from here.

        Returns:
            The number with which the node has to `join`.

        Raises:
            NotLeaderError: another member leads.
            ConflictError: the node is a member under another address; `change_address` it.
            UnavailableError: the membership cannot be changed now, or that is not known.
        """
        found = self._member_of(node_id)
        if found is None:
            member_id = new_id(self._rng)

            def change() -> Change:
                check()
                return AddLearner(member_id, node_id, address)

            await self._change(change, f"add {node_id}")
            log.info("raft_member_added", member_id=member_id, peer_id=node_id, address=address)
        elif found.address != address:
            raise ConflictError(f"node {node_id} is a manager already, at {found.address}")
        else:
            member_id = found.id
        member = self._core.membership.find(member_id)
        if member is not None and not member.is_voter:
            self._spawn_soon(self._promote_soon(member_id, self._leading))
        return member_id

    async def promote(self, node_id: NodeName) -> None:
        """Make a learner a voter, now.

        Raises:
            NotFoundError: it is no member.
            ConflictError: it has not caught up, or quorum would be lost; the sentence says so.
            NotLeaderError, UnavailableError: as `add_learner`.
        """
        member = self._required(node_id)
        if not member.is_voter:
            await self._change(lambda: Promote(member.id), f"promote {node_id}")

    async def demote(self, node_id: NodeName) -> None:
        """Take a member's vote; the leader hands over first if it is the one.

        Raises:
            NotFoundError: it is no member.
            ConflictError: the others would have no quorum; the sentence says why.
            NotLeaderError, UnavailableError: as `add_learner`.
        """
        member = self._required(node_id)
        if member.is_voter:
            await self._leave_to_successor(member)
            await self._change(lambda: Demote(member.id), f"demote {node_id}")

    async def remove(self, node_id: NodeName) -> None:
        """Remove a member for ever; the node may join again under a new number.

        Raises:
            ConflictError: the others would have no quorum; the sentence says why.
            NotLeaderError: another member leads; so too when this one is to be removed and has
                just handed over.
            UnavailableError: as `add_learner`.
        """
        member = self._member_of(node_id)
        if member is None:
            return
        await self._leave_to_successor(member)
        matched = dict(self._core.matched()).get(member.id, 0)
        await self._change(lambda: Remove(member.id), f"remove {node_id}")
        self._say_farewell(member.id, matched)
        log.info("raft_member_removed", member_id=member.id, peer_id=node_id)

    def _say_farewell(self, member_id: RaftID, matched: int) -> None:
        """Let a member know that it is none any more.

        The core forgets whom it removed, so this is a last append beside it; if it is lost, the
        member finds out when nobody talks to it.
        """
        raft_log = self._core.log
        previous_term = raft_log.term(matched)
        if not self._core.is_leader or previous_term < 0 or matched >= raft_log.last:
            return
        last = raft_log.limit(matched + 1, self._config.entries_bytes_max, raft_log.last)
        if last < self._core.membership_index:
            return
        entries = raft_log.entries(matched + 1, last)
        self._post(
            [
                Append(
                    self._me.id,
                    member_id,
                    self._core.term,
                    matched,
                    previous_term,
                    raft_log.commit,
                    entries,
                )
            ]
        )

    async def change_address(self, node_id: NodeName, address: str) -> None:
        """Tell everybody that a member is reached elsewhere now.

        Raises:
            NotFoundError: it is no member.
            NotLeaderError, UnavailableError: as `add_learner`.
        """
        member = self._required(node_id)
        if member.address != address:
            await self._change(lambda: Readdress(member.id, address), f"move {node_id}")

    # Leadership.

    async def transfer_leadership(self, node_id: NodeName = "") -> None:
        """Hand over to a voter, the one that has most of the log if none is named.

        Raises:
            NotLeaderError: this member does not lead.
            NotFoundError: it is no member.
            ConflictError: there is nobody to hand over to, or it cannot take over.
            UnavailableError: it did not take over in time; this member goes on.
        """
        if not self._core.is_leader:
            raise self._refusal()
        to = self._required(node_id).id if node_id else self._successor()
        self._catch_up()
        outcome = self._core.transfer_leader(to)
        if isinstance(outcome, Refused):
            raise ConflictError(f"leadership cannot be handed over: {outcome.reason}")
        assert isinstance(outcome, InFavour)
        self._guarded(self._pump)
        seconds = (self._settings.election_ticks + 1) * self._settings.tick_seconds
        try:
            async with asyncio.timeout(seconds):
                while self._core.is_handing_over or self._core.leader == NOBODY:
                    await self._next_change()
        except TimeoutError:
            if not self._core.is_leader:
                return
        if self._core.is_leader:
            raise UnavailableError("the successor did not take over in time")

    def _successor(self) -> RaftID:
        """Choose who has most of the log among the voters that answered lately."""
        matched = dict(self._core.matched())
        able = [
            status
            for status in self.status()
            if status.is_voter and status.is_reachable and status.member_id != self._me.id
        ]
        if not able:
            raise ConflictError("no other voter can be reached")
        return max(able, key=lambda status: matched.get(status.member_id, 0)).member_id

    async def _leave_to_successor(self, member: Member) -> None:
        """If it is us who are to lose our vote, let another lead first and do it."""
        if member.id == self._me.id and len(self._core.membership.voters) > 1:
            await self.transfer_leadership()
            raise NotLeaderError(self._leader_address())

    # How a change is made.

    async def _promote_soon(self, member_id: RaftID, term: int) -> None:
        """Promote a learner as soon as it has caught up, while we lead."""
        while self._leading == term and not self._is_closed:
            member = self._core.membership.find(member_id)
            if member is None or member.is_voter:
                return
            try:
                await self._change(lambda: Promote(member_id), f"promote {member.node_id}")
            except ConflictError:
                await self._next_change()
            except SwarmError as error:
                log.warning(
                    "raft_member_not_promoted", peer_id=member.node_id, error=reason_of(error)
                )
                await asyncio.sleep(self._settings.tick_seconds)
            else:
                log.info("raft_member_promoted", member_id=member_id, peer_id=member.node_id)

    def _member_of(self, node_id: NodeName) -> Member | None:
        members = self._core.membership.members
        return next((member for member in members if member.node_id == node_id), None)

    def _required(self, node_id: NodeName) -> Member:
        if self._core.role is not Role.LEADER:
            raise self._refusal()
        member = self._member_of(node_id)
        if member is None:
            raise NotFoundError("manager", node_id)
        return member

    async def _change(self, change: Callable[[], Change], what: str) -> int:
        """Propose a change of the membership and wait for its commitment."""
        deadline = self._clock.monotonic() + CHANGE_SECONDS_MAX
        while True:
            if not self._leading or self._is_closed or self._failure is not None:
                raise self._refusal()
            if self._catch_up():
                # Only then: this wakes all others that wait, which would else wake us in turn.
                self._guarded(self._pump)
                continue
            outcome = self._core.propose_change(change())
            if isinstance(outcome, Accepted):
                future: asyncio.Future[int] = self._loop.create_future()
                self._changes[outcome.last] = future
                self._guarded(self._pump)
                return await future
            if isinstance(outcome, NotLeader):
                raise NotLeaderError(self._leader_address())
            if outcome.code not in _REPEATED:
                raise _refused(outcome, what)
            if self._clock.monotonic() >= deadline:
                raise UnavailableError(f"cannot {what}: {outcome.reason}")
            await self._next_change()


def _refused(outcome: Refused, what: str) -> SwarmError:
    sentence = f"cannot {what}: {outcome.reason}"
    if outcome.code is RefusalCode.INVALID:
        return InvalidError(sentence)
    return ConflictError(sentence)


def new_id(rng: random.Random) -> RaftID:
    """Draw a member's number; it is never given twice, for there are enough of them."""
    return RaftID(rng.getrandbits(_ID_BITS) + 1)
