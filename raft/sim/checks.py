"""What the simulator verifies while it runs: the safety of the whole group.

* one leader a term;
* a new leader has every entry that was committed in an older term;
* log matching: an index and a term name one entry with one predecessor, wherever it is stored;
* all state machines apply the same entries at the same indexes;
* what a member applies is durable on its own disk;
* what a leader takes for committed is durable on a majority of the voters that count for it, and
  nothing is applied that no leader has committed;
* the membership as of an index is the same wherever it is applied, or in a snapshot;
* no member ever says that it votes for two in a term, in whatever life, or starts without knowing
  a vote that it gave;
* a leader that does not hear from a majority for an election time-out leads no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core import Core, Entries, Membership, RaftID, Snapshot, decode_membership
from raft.core.messages import AppendReply, HeartbeatReply, Message, Vote, VoteReply
from raft.core.quorum import majority
from raft.core.values import Role
from raft.sim.disk import Disk


class Failure(AssertionError):  # noqa: N818 -- the outcome of a run, not an error of the simulator
    """A property that does not hold; `kind` names it."""

    def __init__(self, kind: str, story: str) -> None:
        """Keep both."""
        super().__init__(f"{kind}: {story}")
        self.kind = kind


class Truth:
    """What happened so far, as an all-knowing observer sees it.

    Attributes:
        data: of every entry that was applied somewhere, from index 1.
        terms: theirs.
        leaders: who led each term.
    """

    def __init__(self) -> None:
        """Nothing happened."""
        self.data: list[bytes] = []
        self.terms: list[int] = []
        self.leaders: dict[int, RaftID] = {}
        # The first members store the first entry as committed.
        self._committed = 1
        self._committed_in: dict[int, int] = {}
        self._memberships: list[tuple[int, Membership]] = [(0, Membership())]
        self._votes: dict[tuple[RaftID, int], RaftID] = {}
        self._voted: dict[RaftID, int] = {}
        self._stored: dict[tuple[int, int], tuple[int, bytes]] = {}

    def led(self, core: Core) -> None:
        """Somebody began to lead."""
        former = self.leaders.setdefault(core.term, core.id)
        if former != core.id:
            raise Failure("two leaders", f"{former} and {core.id} lead term {core.term}")
        # One whose election was won long ago, and who learns it now, need not have what is newer.
        older = [index for term, index in self._committed_in.items() if term < core.term]
        index = min(max(older, default=0), len(self.terms))
        if index and core.log.term(index) != self.terms[index - 1] and core.log.start < index:
            raise Failure(
                "committed entry lost",
                f"member {core.id} leads term {core.term} with term {core.log.term(index)} at "
                f"index {index}, where term {self.terms[index - 1]} is committed",
            )

    def started(self, core: Core) -> None:
        """Somebody begins a life."""
        voted = self._voted.get(core.id, 0)
        if core.term < voted:
            raise Failure(
                "term forgotten", f"member {core.id} starts in {core.term}, it voted in {voted}"
            )
        choice = self._votes.get((core.id, core.term), core.vote)
        if core.vote != choice:
            raise Failure(
                "vote forgotten",
                f"member {core.id} starts with vote {core.vote} in {core.term}, it was {choice}",
            )

    def voting(self, message: Vote | VoteReply) -> None:
        """Somebody says that it votes: a candidate for itself, another in its reply."""
        if isinstance(message, Vote):
            choice = message.sender
        elif message.is_granted:
            choice = message.to
        else:
            return
        voter, term = message.sender, message.term
        former = self._votes.setdefault((voter, term), choice)
        if former != choice:
            raise Failure(
                "two votes", f"member {voter} votes for {former} and {choice} in term {term}"
            )
        self._voted[voter] = max(self._voted.get(voter, 0), term)

    def committing(self, core: Core, disks: Sequence[Disk]) -> None:
        """A leader has just moved its commit index."""
        index = core.log.commit
        term = core.log.term(index)
        holders = {member for member, disk in enumerate(disks, 1) if disk.holds(index, term)}
        voters = core.membership.voters
        if sum(voter in holders for voter in voters) < majority(len(voters)):
            raise Failure(
                "committed entry is not durable",
                f"member {core.id} commits {index} of term {term}, durable on {sorted(holders)} "
                f"of the voters {voters}",
            )
        self._committed = max(self._committed, index)
        self._committed_in[core.term] = index

    def describing(self, snapshot: Snapshot) -> None:
        """Somebody took or installed a snapshot."""
        self._check_membership(snapshot.index, snapshot.membership, "a snapshot")

    def _check_membership(self, index: int, found: Membership, where: str) -> None:
        expected = next(each for at, each in reversed(self._memberships) if at <= index)
        if found != expected:
            raise Failure(
                "memberships differ",
                f"as of {index} {where} has {found}, others applied {expected}",
            )

    def storing(self, core: Core, entries: Entries) -> None:
        """Somebody stores entries."""
        stored = self._stored
        before = core.log.term(entries.first - 1)
        index = entries.first
        for data in entries.data:
            term = entries.term(index)
            what = (before, data)
            if stored.setdefault((index, term), what) != what:
                raise Failure(
                    "logs do not match",
                    f"member {core.id} stores another entry {index} of term {term}",
                )
            before = term
            index += 1

    def applying(self, core: Core, entries: Entries, disks: Sequence[Disk]) -> None:
        """Somebody applies entries."""
        first, last = entries.first, entries.last
        known = len(self.data)
        terms = [entries.term(index) for index in range(first, last + 1)]
        common = min(last, known)
        if (
            self.data[first - 1 : common] != entries.data[: common - first + 1]
            or self.terms[first - 1 : common] != terms[: common - first + 1]
        ):
            raise Failure(
                "state machines differ",
                f"member {core.id} applies {first} to {last} of terms {terms}, "
                f"others applied terms {self.terms[first - 1 : common]}",
            )
        if not disks[core.id - 1].holds(last, terms[-1]):
            raise Failure(
                "applied before it was durable", f"member {core.id} applies {last} too early"
            )
        if last > known:
            self._applying_first(core, entries, terms)
        self._check_membership(last, core.log.membership_at(last), f"member {core.id}")

    def _applying_first(self, core: Core, entries: Entries, terms: list[int]) -> None:
        """Somebody applies what nobody did before."""
        first, last, known = entries.first, entries.last, len(self.data)
        if first > known + 1:
            raise Failure("entries skipped", f"{first} is applied, {known} was the last")
        if last > self._committed:
            raise Failure(
                "applied before it was committed",
                f"member {core.id} applies {last}, leaders have committed {self._committed}",
            )
        self.data += entries.data[known + 1 - first :]
        self.terms += terms[known + 1 - first :]
        for index in entries.changes:
            if index > known:
                membership = decode_membership(entries.data[index - first])
                self._memberships.append((index, membership))


class QuorumWatch:
    """Sees whether one machine leads longer than its followers let it, by its own clock."""

    def __init__(self, election_ticks: int) -> None:
        """Nothing was heard."""
        self._ticks = election_ticks
        self._since = 0
        self._heard: dict[RaftID, int] = {}

    def led(self, core: Core) -> None:
        """It was elected just now: that is as good as an answer of everybody."""
        self._since = core.clock
        self._heard = {}

    def heard(self, core: Core, message: Message) -> None:
        """An answer arrives."""
        if isinstance(message, AppendReply | HeartbeatReply) and message.term == core.term:
            self._heard[message.sender] = core.clock

    def ticked(self, core: Core) -> None:
        """A tick has passed."""
        if core.role is not Role.LEADER:
            return
        horizon = core.clock - self._ticks
        voters = core.membership.voters
        # Whoever came to the group lately had no time to answer.
        heard = [self._heard.setdefault(voter, core.clock) for voter in voters if voter != core.id]
        near = sum(max(clock, self._since) > horizon for clock in heard) + (core.id in voters)
        if near < majority(len(voters)):
            raise Failure(
                "leads without a quorum",
                f"member {core.id} leads term {core.term} and has heard {near} of {voters}",
            )
