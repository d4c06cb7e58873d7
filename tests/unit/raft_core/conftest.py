"""Builders of logs and groups of cores."""

import random

import pytest

from raft.core import Config, Core, Entries, Member, Membership, RaftID, Snapshot, bootstrap
from raft.core.log import Log


class Group:
    """Cores that are joined directly: stored at once, delivered in order, `cut` is honoured."""

    def __init__(self, voters, **settings):
        members = Membership(tuple(Member(RaftID(n), is_voter=True) for n in range(1, voters + 1)))
        hard_state, entries = bootstrap(members)
        self.cores = {
            n: Core(
                Config(id=RaftID(n), **settings),
                random.Random(n),
                hard_state=hard_state,
                entries=entries,
            )
            for n in range(1, voters + 1)
        }
        self.cut = set()
        self.applied = {n: [] for n in self.cores}
        self.under_way = []
        self.reads = {n: [] for n in self.cores}

    def work(self, number):
        """Carry out a core's duties."""
        core = self.cores[number]
        while (ready := core.ready()) is not None:
            self.under_way += ready.messages
            if ready.has_to_store:
                core.persisted(ready.number)
            self.under_way += ready.messages_after
            if ready.committed is not None:
                self.applied[number] += ready.committed.data
            self.reads[number] += ready.reads
            core.check()

    def settle(self):
        """Deliver until nothing is under way."""
        for number in self.cores:
            self.work(number)
        while self.under_way:
            messages, self.under_way = self.under_way, []
            for message in messages:
                if message.to in self.cores and (message.sender, message.to) not in self.cut:
                    self.cores[message.to].step(message)
                    self.work(message.to)

    def tick(self, count=1):
        """Let time pass for all, delivering after each tick."""
        for _ in range(count):
            for core in self.cores.values():
                core.tick()
            self.settle()

    def elect(self, number):
        """Make one lead."""
        self.cores[number].campaign()
        self.settle()
        assert self.cores[number].is_leader
        return self.cores[number]

    def isolate(self, number):
        """Cut one off, both ways."""
        for other in self.cores:
            if other != number:
                self.cut |= {(number, other), (other, number)}


@pytest.fixture
def group():
    """Return a builder of groups."""
    return Group


@pytest.fixture
def make_log():
    """Return a builder of logs from a list of terms, all of it committed up to an index."""

    def build(terms, commit=0, snapshot=None):
        snapshot = snapshot or Snapshot()
        log = Log(snapshot, None, 0)
        for term in terms:
            log.append(term, [b"%d" % term])
        log.take_unstored()
        log.stored_to(log.last)
        log.commit_to(commit)
        log.check()
        return log

    return build


@pytest.fixture
def run_of():
    """Return a builder of entries: a first index and their terms."""

    def build(first, terms):
        runs = [
            (first + place, term)
            for place, term in enumerate(terms)
            if place == 0 or terms[place - 1] != term
        ]
        return Entries(first, [b"%d" % term for term in terms], tuple(runs))

    return build
