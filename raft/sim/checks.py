"""What the simulator verifies while it runs: the safety of the whole group.

* one leader a term;
* a new leader has every entry that was applied anywhere (none that was committed is lost);
* log matching: an index and a term name one entry with one predecessor, wherever it is stored;
* all state machines apply the same entries at the same indexes;
* what a member applies is durable on its own disk;
* what is applied for the first time is durable on a majority at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raft.core import Core, Entries, RaftID
from raft.core.quorum import majority
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
        self._stored: dict[tuple[int, int], tuple[int, bytes]] = {}

    def led(self, core: Core) -> None:
        """Somebody began to lead."""
        former = self.leaders.setdefault(core.term, core.id)
        if former != core.id:
            raise Failure("two leaders", f"{former} and {core.id} lead term {core.term}")
        index = len(self.terms)
        if index and core.log.term(index) != self.terms[-1] and core.log.start < index:
            raise Failure(
                "committed entry lost",
                f"member {core.id} leads term {core.term} with term {core.log.term(index)} at "
                f"index {index}, where term {self.terms[-1]} is committed",
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
        if last <= known:
            return
        if first > known + 1:
            raise Failure("entries skipped", f"{first} is applied, {known} was the last")
        self.data += entries.data[known + 1 - first :]
        self.terms += terms[known + 1 - first :]
        self._check_majority(core, last, disks)

    def _check_majority(self, core: Core, index: int, disks: Iterable[Disk]) -> None:
        term = self.terms[index - 1]
        holders = {member for member, disk in enumerate(disks, 1) if disk.holds(index, term)}
        for _, membership in reversed(core.log._memberships):  # noqa: SLF001 -- an observer
            voters = membership.voters
            if sum(voter in holders for voter in voters) >= majority(len(voters)):
                return
        raise Failure(
            "committed entry is not durable",
            f"member {core.id} applies {index} of term {term}, durable only on {sorted(holders)}",
        )
