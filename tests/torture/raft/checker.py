"""Whether a replicated log kept its word, judged from what clients saw and members hold. Pure.

Clients append numbers, each of them once in its life, to lists under keys. After all faults are
healed an append of its own, the *barrier*, is acknowledged for each key: a member whose list has
the barrier has applied everything that was acknowledged before, or has lost it. So nothing is
called lost on a member that merely lags, and a member that never catches up is counted apart.

What must hold for each key, over the members that are settled (have the barrier):

* each acknowledged value is there exactly once, on every member, in one common order;
* no value is there that nobody asked for, or that was refused;
* an append acknowledged before another was asked for comes before it;
* a read sees a beginning of that order: all that was acknowledged before it was asked for, nothing
  that was asked for after it ended, and no less than a read that ended before it began.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from state import EMPTY_DIGEST, next_digest

EXAMPLES_MAX = 5

ACKED, REFUSED, UNKNOWN = "acked", "refused", "unknown"


class Append(msgspec.Struct):
    """An append as its client saw it.

    Attributes:
        key: the list.
        value: the number; no two appends have the same.
        begun: when it was asked for.
        ended: when the answer came; for ever if none did, or one that promises nothing.
        outcome: ACKED, REFUSED (it surely did not and will not happen) or UNKNOWN.
    """

    key: str
    value: int
    begun: float
    ended: float = math.inf
    outcome: str = UNKNOWN


class Read(msgspec.Struct):
    """An answered linearizable read as its client saw it: the list's length and digest."""

    key: str
    begun: float
    ended: float
    length: int
    digest: int


class History(msgspec.Struct):
    """One run.

    Attributes:
        appends: all that were ever asked for, barriers too.
        reads: those that were answered.
        finals: by member, what it holds in the end.
        barriers: by key, the acknowledged barrier; a key without one is judged on all members.
    """

    appends: list[Append]
    reads: list[Read]
    finals: Mapping[str, Mapping[str, Sequence[int]]]
    barriers: Mapping[str, int] = {}


class Report(msgspec.Struct, kw_only=True):
    """Counts; all from `lost` on must be 0.

    Attributes:
        lost: acknowledged and on no settled member.
        missing: acknowledged and on some, not all settled members.
        duplicated: values that are somewhere more than once.
        reordered: values behind one that was asked for only after they were acknowledged.
        invented: values that nobody asked for.
        refused_present: refused, and there.
        diverged: keys whose list differs between settled members.
        unsettled: pairs of member and key without the barrier.
        wrong_reads: reads of something that is no beginning of the common list.
        stale_reads: reads that miss what was acknowledged or read before they began.
        early_reads: reads of what was asked for only after they ended.
        examples: by the name of the count, a few values or keys.
    """

    acked: int = 0
    refused: int = 0
    unknown: int = 0
    reads: int = 0
    lost: int = 0
    missing: int = 0
    duplicated: int = 0
    reordered: int = 0
    invented: int = 0
    refused_present: int = 0
    diverged: int = 0
    unsettled: int = 0
    wrong_reads: int = 0
    stale_reads: int = 0
    early_reads: int = 0
    examples: dict[str, list[str]] = {}

    def faults(self) -> dict[str, int]:
        """Return the counts that should be 0 and are not."""
        names = self.__struct_fields__[4:-1]
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def _count(self, name: str, found: Sequence[object]) -> None:
        setattr(self, name, getattr(self, name) + len(found))
        if found:
            shown = self.examples.setdefault(name, [])
            shown += [str(item) for item in found[: EXAMPLES_MAX - len(shown)]]


def check(history: History) -> Report:
    """Judge a run."""
    outcomes = Counter(append.outcome for append in history.appends)
    report = Report(
        acked=outcomes[ACKED],
        refused=outcomes[REFUSED],
        unknown=outcomes[UNKNOWN],
        reads=len(history.reads),
        examples={},
    )
    appends: dict[str, dict[int, Append]] = {}
    for append in history.appends:
        known = appends.setdefault(append.key, {})
        assert append.value not in known, f"{append.value} was used twice"
        known[append.value] = append
    reads: dict[str, list[Read]] = {}
    for read in history.reads:
        reads.setdefault(read.key, []).append(read)
    held = {key for lists in history.finals.values() for key in lists}
    for key in sorted(held | appends.keys() | reads.keys()):
        lists = _settled(history, key, report)
        if not lists:
            continue
        known = appends.get(key, {})
        _check_contents(report, known, lists)
        common = _common(lists)
        if any(values != common for values in lists):
            report._count("diverged", [key])
        _check_order(report, known, common)
        _check_reads(report, known, common, reads.get(key, []))
    return report


def _settled(history: History, key: str, report: Report) -> list[list[int]]:
    """Return the lists of the members that are settled; count the others."""
    barrier = history.barriers.get(key)
    found = []
    for member, lists in sorted(history.finals.items()):
        values = list(lists.get(key, ()))
        if barrier is None or barrier in values:
            found.append(values)
        else:
            report._count("unsettled", [f"{member} {key}"])
    return found


def _common(lists: list[list[int]]) -> list[int]:
    """Return the list that most members hold, the longest of those."""
    counts = Counter(tuple(values) for values in lists)
    best = max(counts, key=lambda values: (counts[values], len(values), values))
    return list(best)


def _check_contents(report: Report, appends: dict[int, Append], lists: list[list[int]]) -> None:
    sets = [set(values) for values in lists]
    anywhere = set().union(*sets)
    everywhere = sets[0].intersection(*sets)
    acked = {value for value, append in appends.items() if append.outcome == ACKED}
    refused = {value for value, append in appends.items() if append.outcome == REFUSED}
    repeated: set[int] = set()
    for values, distinct in zip(lists, sets, strict=True):
        if len(values) != len(distinct):
            repeated |= {value for value, count in Counter(values).items() if count > 1}
    for name, found in (
        ("lost", acked - anywhere),
        ("missing", (acked & anywhere) - everywhere),
        ("duplicated", repeated),
        ("invented", anywhere - appends.keys()),
        ("refused_present", refused & anywhere),
    ):
        report._count(name, sorted(found))


def _check_order(report: Report, appends: dict[int, Append], values: list[int]) -> None:
    latest_begun = -math.inf
    late: list[int] = []
    seen: set[int] = set()
    for value in values:
        append = appends.get(value)
        if append is None or value in seen:
            continue
        seen.add(value)
        if append.outcome == ACKED and append.ended < latest_begun:
            late.append(value)
        latest_begun = max(latest_begun, append.begun)
    report._count("reordered", late)


def _check_reads(
    report: Report, appends: dict[int, Append], values: list[int], reads: list[Read]
) -> None:
    count = len(values)
    known = [appends.get(value) for value in values]
    digests = list(itertools.accumulate(values, next_digest, initial=EMPTY_DIGEST))
    begun = [append.begun if append else -math.inf for append in known]
    # latest_begun[n]: of the first n values.  first_acked[n]: of those after the first n.
    latest_begun = list(itertools.accumulate(begun, max, initial=-math.inf))
    ended = [append.ended if append and append.outcome == ACKED else math.inf for append in known]
    first_acked = list(itertools.accumulate(reversed(ended), min, initial=math.inf))[::-1]
    wrong, stale, early = [], [], []
    fitting: list[Read] = []
    for read in sorted(reads, key=lambda each: each.begun):
        if read.length > count or digests[read.length] != read.digest:
            wrong.append(read)
            continue
        fitting.append(read)
        if first_acked[read.length] < read.begun:
            stale.append(read)
        elif latest_begun[read.length] > read.ended:
            early.append(read)
    stale += _going_back(fitting, stale)
    for name, found in (("wrong_reads", wrong), ("stale_reads", stale), ("early_reads", early)):
        report._count(name, found)


def _going_back(reads: list[Read], known: list[Read]) -> list[Read]:
    """Return reads, of those sorted by their beginning, that saw less than one before them."""
    ended = sorted(reads, key=lambda each: each.ended)
    longest = 0
    place = 0
    found = []
    for read in reads:
        while ended[place].ended < read.begun:
            longest = max(longest, ended[place].length)
            place += 1
        if read.length < longest and not any(read is other for other in known):
            found.append(read)
    return found
