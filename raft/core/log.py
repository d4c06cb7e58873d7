"""The log of one member in memory: entries, terms by runs, memberships, and four marks.

    start <= delivered <= min(commit, durable),  commit <= last,  durable <= emitted <= last

`start` is the last index before the first entry kept; `emitted` were handed out to be stored,
`durable` are known to be; `delivered` were handed out to be applied. Entries at or below `commit`
are never cut: that is asserted here, whoever asks. The work is done by slices and bisection, so a
batch of entries costs about as much as one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise

from proto.errors import ForgottenEntriesError, InvariantViolationError
from raft.core.membership import decode_membership
from raft.core.values import Entries, Membership, Snapshot


class Log:
    """See the module; indexes count from 1, the core is the only writer."""

    __slots__ = (
        "_data",
        "_memberships",
        "_run_starts",
        "_run_terms",
        "_sizes",
        "commit",
        "delivered",
        "durable",
        "emitted",
        "last",
        "start",
    )

    def __init__(self, snapshot: Snapshot, entries: Entries | None, commit: int) -> None:
        """Start from what was stored; entries may begin before the snapshot ends."""
        self._begin(snapshot)
        if entries is not None and entries.last > snapshot.index:
            self._load(snapshot, entries)
        self.emitted = self.durable = self.last
        self.commit = max(snapshot.index, min(commit, self.last))
        self.delivered = snapshot.index

    def _begin(self, snapshot: Snapshot) -> None:
        self.start = self.last = snapshot.index
        self._data: list[bytes] = []
        self._run_starts = [snapshot.index]
        self._run_terms = [snapshot.term]
        # Sums of bytes: `_sizes[i]` are those of all entries up to `start + i`.
        self._sizes = [0]
        self._memberships: list[tuple[int, Membership]] = [(snapshot.index, snapshot.membership)]

    def _load(self, snapshot: Snapshot, entries: Entries) -> None:
        if entries.first > snapshot.index + 1:
            raise InvariantViolationError(
                f"stored entries begin at {entries.first}, the snapshot ends at {snapshot.index}"
            )
        kept = entries
        if entries.first <= snapshot.index:
            # The first entry serves as the boundary: its term is known, its data not needed.
            self.start = self.last = entries.first
            self._run_starts, self._run_terms = [entries.first], [entries.terms[0][1]]
            kept = _from(entries, entries.first + 1)
        # As of the boundary the membership is not known; nobody asks for it before the snapshot.
        self._memberships = [(self.start, snapshot.membership)]
        self._extend(kept)

    @property
    def membership(self) -> Membership:
        """The newest membership in the log, committed or not: the one that counts."""
        return self._memberships[-1][1]

    @property
    def membership_index(self) -> int:
        """The entry that brought it."""
        return self._memberships[-1][0]

    @property
    def membership_before(self) -> Membership:
        """The one before the newest: what counts again if the newest is cut."""
        return self._memberships[-2 if len(self._memberships) > 1 else -1][1]

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._run_terms[-1]

    def membership_at(self, index: int) -> Membership:
        """Return the membership as of an entry; not before the oldest snapshot."""
        return next(each for at, each in reversed(self._memberships) if at <= index)

    def term(self, index: int) -> int:
        """Return an entry's term, or -1 where nothing is known (too old, or not there yet)."""
        if index > self.last or index < self.start:
            return -1
        starts = self._run_starts
        if index >= starts[-1]:
            return self._run_terms[-1]
        return self._run_terms[bisect_right(starts, index) - 1]

    def size(self, first: int, last: int) -> int:
        """Return the bytes of data in a range of entries."""
        return self._sizes[last - self.start] - self._sizes[first - 1 - self.start]

    def limit(self, first: int, bytes_max: int, entries_max: int) -> int:
        """Return the last entry of a batch from `first` that fits; one always does."""
        sizes, start = self._sizes, self.start
        if sizes[-1] - sizes[first - 1 - start] <= bytes_max:
            last = self.last
        else:
            wanted = sizes[first - 1 - start] + bytes_max
            last = max(first, bisect_right(sizes, wanted) - 1 + start)
        return min(last, first + entries_max - 1)

    def entries(self, first: int, last: int) -> Entries:
        """Return a range, `first` <= `last`, all of it kept."""
        start = self.start
        if not start < first <= last <= self.last:
            raise InvariantViolationError(
                f"entries {first} to {last} asked for, {start + 1} to {self.last} are kept"
            )
        data = self._data[first - start - 1 : last - start]
        starts = self._run_starts
        if first >= starts[-1]:
            runs: tuple[tuple[int, int], ...] = ((first, self._run_terms[-1]),)
        else:
            low = bisect_right(starts, first)
            high = bisect_right(starts, last)
            later = zip(starts[low:high], self._run_terms[low:high], strict=True)
            runs = ((first, self._run_terms[low - 1]), *later)
        if self._memberships[-1][0] < first:
            return Entries(first, data, runs)
        changes = tuple(at for at, _ in self._memberships[1:] if first <= at <= last)
        return Entries(first, data, runs, changes)

    def append(self, term: int, data: list[bytes]) -> None:
        """Add entries of the leader's own term at the end."""
        if term != self._run_terms[-1]:
            self._start_run(self.last + 1, term)
        self._push(data)

    def append_change(self, term: int, data: bytes, membership: Membership) -> None:
        """Add an entry that changes the membership."""
        self.append(term, [data])
        self._memberships.append((self.last, membership))

    def merge(self, previous_index: int, previous_term: int, entries: Entries) -> int:
        """Take a leader's entries after a place that must match.

        What is there already stays; only from the first entry with another term on is anything
        cut.

        Returns:
            -1 if `previous_index` does not match; the index from which entries were cut; or 0.
        """
        if self.term(previous_index) != previous_term:
            return -1
        if previous_index == self.last:
            if entries.data:
                self._extend(entries)
            return 0
        last = entries.first + len(entries.data) - 1
        differing = self._first_difference(entries, last)
        if differing > last:
            return 0
        cut = 0
        if differing <= self.last:
            self.cut(differing)
            cut = differing
        self._extend(_from(entries, differing))
        return cut

    def _first_difference(self, entries: Entries, last: int) -> int:
        """Return the first index where this log has another term or nothing."""
        for number, (run_first, term) in enumerate(entries.terms):
            following = number + 1
            run_last = entries.terms[following][0] - 1 if following < len(entries.terms) else last
            index = run_first
            while index <= run_last:
                if self.term(index) != term:
                    return index
                # Everything to the end of our own run has the same term: skip it whole.
                place = bisect_right(self._run_starts, index)
                is_last = place == len(self._run_starts)
                index = (self.last if is_last else self._run_starts[place] - 1) + 1
        return last + 1

    def cut(self, index: int) -> None:
        """Drop the entries from `index` on."""
        if index <= self.commit:
            raise InvariantViolationError(
                f"entry {index} conflicts, but everything up to {self.commit} is committed "
                f"(last {self.last}, durable {self.durable})"
            )
        keep = index - self.start
        del self._data[keep - 1 :]
        del self._sizes[keep:]
        while self._run_starts[-1] >= index:
            self._run_starts.pop()
            self._run_terms.pop()
        while self._memberships[-1][0] >= index:
            self._memberships.pop()
        self.last = index - 1
        self.emitted = min(self.emitted, self.last)
        self.durable = min(self.durable, self.last)

    def agreement(self, index: int, term: int) -> int:
        """Return the last index <= `index` whose term is <= `term`: the logs may agree there."""
        index = min(index, self.last)
        if index < self.start:
            return index
        place = bisect_right(self._run_starts, index) - 1
        while place > 0 and self._run_terms[place] > term:
            index = self._run_starts[place] - 1
            place -= 1
        if self._run_terms[place] > term:
            index = self.start - 1
        return index

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log with that end has everything that this one may have promised."""
        own = self._run_terms[-1]
        return last_term > own or (last_term == own and last_index >= self.last)

    def commit_to(self, index: int) -> None:
        """Move the commit mark forward."""
        if index > self.last:
            # Whoever leads counts on what this member said that it has.
            raise ForgottenEntriesError(
                f"commit of {index} asked for, the log ends at {self.last}; was it lost or cut?"
            )
        self.commit = max(self.commit, index)

    def take_unstored(self) -> Entries | None:
        """Return the entries to store that were not handed out before."""
        if self.emitted == self.last:
            return None
        taken = self.entries(self.emitted + 1, self.last)
        self.emitted = self.last
        return taken

    def stored_to(self, index: int) -> None:
        """Everything up to here is durable."""
        if index > self.emitted:
            raise InvariantViolationError(
                f"entry {index} is said to be stored, {self.emitted} was the last handed out"
            )
        self.durable = max(self.durable, index)

    def take_committed(self, bytes_max: int) -> Entries | None:
        """Return entries to apply, in order and each once: those committed and durable here."""
        until = min(self.commit, self.durable)
        first = self.delivered + 1
        if until < first:
            return None
        until = min(until, self.limit(first, bytes_max, until - first + 1))
        self.delivered = until
        return self.entries(first, until)

    def compact(self, snapshot: Snapshot, entries_kept: int) -> None:
        """Drop old entries: a durable snapshot has them; some are kept for slow followers."""
        if snapshot.index > self.delivered:
            raise InvariantViolationError(
                f"a snapshot of {snapshot.index}, but {self.delivered} was the last to apply"
            )
        start = max(self.start, snapshot.index - entries_kept)
        if start == self.start:
            return
        while len(self._memberships) > 1 and self._memberships[1][0] <= start:
            self._memberships.pop(0)
        term = self.term(start)
        dropped = start - self.start
        del self._data[:dropped]
        del self._sizes[:dropped]
        place = bisect_left(self._run_starts, start + 1)
        self._run_starts[:place] = [start]
        self._run_terms[:place] = [term]
        self.start = start

    def reset(self, snapshot: Snapshot) -> None:
        """Replace everything by a snapshot from the leader."""
        if snapshot.index <= self.commit:
            raise InvariantViolationError(
                f"a snapshot of {snapshot.index} would undo what is committed up to {self.commit}"
            )
        self._begin(snapshot)
        self.commit = self.delivered = self.emitted = snapshot.index
        # Until the installation is reported as durable, nothing new may count as stored.
        self.durable = 0

    def check(self) -> None:
        """Verify every mark and index; for tests and the simulator."""
        count = self.last - self.start
        assert count == len(self._data) == len(self._sizes) - 1
        assert self.delivered <= self.commit <= self.last
        assert self.durable <= self.emitted <= self.last
        assert self.start <= self.delivered
        assert self._run_starts[0] == self.start
        assert all(a < b for a, b in pairwise(self._run_starts))
        assert all(a < b for a, b in pairwise(self._run_terms))
        assert all(a[0] < b[0] for a, b in pairwise(self._memberships))
        assert self._memberships[-1][0] <= self.last
        assert self._sizes[-1] - self._sizes[0] == sum(map(len, self._data))

    def _push(self, data: list[bytes]) -> None:
        self._data += data
        self.last += len(data)
        sizes = self._sizes
        if len(data) == 1:
            sizes.append(sizes[-1] + len(data[0]))
        else:
            sizes.extend(accumulate(map(len, data), initial=sizes.pop()))

    def _start_run(self, index: int, term: int) -> None:
        if term < self._run_terms[-1]:
            raise InvariantViolationError(
                f"entry {index} of term {term} after one of term {self._run_terms[-1]}"
            )
        self._run_starts.append(index)
        self._run_terms.append(term)

    def _extend(self, entries: Entries) -> None:
        if entries.first != self.last + 1:
            raise InvariantViolationError(
                f"entries from {entries.first} cannot follow entry {self.last}"
            )
        for first, term in entries.terms:
            if term != self._run_terms[-1]:
                self._start_run(first, term)
        self._push(entries.data)
        for index in entries.changes:
            membership = decode_membership(entries.data[index - entries.first])
            self._memberships.append((index, membership))


def _from(entries: Entries, first: int) -> Entries:
    """Return the part of a run from an index on."""
    if first == entries.first:
        return entries
    later = tuple(run for run in entries.terms if run[0] > first)
    changes = tuple(index for index in entries.changes if index >= first)
    data = entries.data[first - entries.first :]
    return Entries(first, data, ((first, entries.term(first)), *later), changes)
