"""What a member keeps on disk: whole steps, later ones replace, damage is found."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from proto.errors import CorruptError
from raft.core import Entries, HardState, Member, Membership, RaftID, Snapshot, encode_membership
from raft.files import Files
from raft.keys import KeyRing
from raft.simdisk import SimFiles
from raft.storage import RECORD_PART_BYTES, Storage, Write

ME = RaftID(7)


class Home:
    """A directory on a simulated disk."""

    def __init__(self, home, seed=1):
        self.path = home
        self.files = SimFiles(random.Random(seed))
        self.rng = random.Random(2)
        self.keys = KeyRing.create(home, self.rng.randbytes, files=self.files)

    def open(self, files: Files | None = None, segment_bytes=64 << 20):
        """Open the storage."""
        storage = Storage.open(
            self.path,
            self.keys,
            files=files or self.files,
            rng_bytes=self.rng.randbytes,
            segment_bytes=segment_bytes,
        )
        storage.member_id = ME
        return storage

    def reopen(self, **more):
        """Lose power, and open."""
        self.files.lose_power()
        self.keys = KeyRing.open(self.path, rng_bytes=self.rng.randbytes, files=self.files)
        return self.open(**more)


@pytest.fixture
def home(tmp_path):
    """A new directory."""
    return Home(tmp_path)


def run(first, count, term, tag=b""):
    """Make entries."""
    return Entries(first, [tag + b"%d" % n for n in range(first, first + count)], ((first, term),))


def test_steps_come_back(home):
    """Hard state, entries and their terms are what was written last."""
    storage = home.open()
    storage.write([Write(HardState(1, ME, 0), run(1, 3, 1))])
    storage.write([Write(HardState(2, RaftID(0), 2), None), Write(None, run(4, 2, 2))])
    stored = home.reopen().stored
    assert stored.member_id == ME
    assert stored.hard_state == HardState(2, RaftID(0), 2)
    assert stored.entries == Entries(1, [b"1", b"2", b"3", b"4", b"5"], ((1, 1), (4, 2)))


def test_later_entries_replace_earlier_ones(home):
    """A conflict is cut by what comes later, across segments, terms and memberships too."""
    storage = home.open(segment_bytes=300)
    group = encode_membership(Membership((Member(ME, True),)))
    for index in range(1, 20):
        storage.write([Write(HardState(1, ME, 0), run(index, 1, 1))])
    change = Entries(20, [group], ((20, 1),), (20,))
    storage.write([Write(HardState(1, ME, 0), change)])
    storage.write([Write(HardState(3, ME, 5), run(8, 2, 3, b"new"))])
    storage.write([Write(HardState(3, ME, 5), run(10, 1, 3, b"new"))])
    stored = home.reopen(segment_bytes=300).stored
    data = [b"%d" % n for n in range(1, 8)] + [b"new8", b"new9", b"new10"]
    assert stored.entries == Entries(1, data, ((1, 1), (8, 3)))
    assert stored.last_index == 10


def test_large_steps_are_spread_over_records(home):
    """A step that is larger than a record comes back whole."""
    data = [bytes([n]) * (1 << 20) for n in range(20)]
    assert sum(map(len, data)) > 2 * RECORD_PART_BYTES
    entries = Entries(1, data, ((1, 1), (12, 2)))
    storage = home.open()
    storage.write([Write(HardState(2, ME, 0), entries)])
    assert home.reopen().stored.entries == entries


def save(storage, index, term, chunks, *, is_installed):
    """Write a snapshot as the shell does."""
    writer = storage.snapshot_writer(Snapshot(index, term), is_installed=is_installed)
    writer.start()
    writer.write(chunks)
    writer.complete()
    return writer


def test_a_snapshot_leaves_some_entries_and_the_hard_state(home):
    """Segments that only hold older entries go; what is left begins with a hard state."""
    storage = home.open(segment_bytes=2000)
    for index in range(1, 200):
        storage.write([Write(HardState(4, ME, index - 1), run(index, 1, 4))])
    storage.roll()
    writer = save(storage, 150, 4, [b"state", b""], is_installed=False)
    writer.publish()
    storage.snapshot = writer.snapshot
    storage.remove_older(storage.take_droppable(20))
    storage = home.reopen(segment_bytes=2000)
    stored = storage.stored
    assert stored.hard_state.term == 4
    assert stored.snapshot.index == 150
    assert list(storage.read_snapshot()) == [b"state", b""]
    assert 100 < stored.entries.first <= 131
    assert stored.last_index == 199


@pytest.mark.parametrize("last", [3, 30])
def test_an_installed_snapshot_replaces_the_log(home, last):
    """Whether the log was shorter or went on otherwise, it begins anew behind the snapshot."""
    storage = home.open()
    storage.write([Write(HardState(1, ME, 0), run(1, last, 1))])
    writer = save(storage, 10, 5, [b"state"], is_installed=True)
    storage.write([Write(HardState(5, RaftID(0), 10), run(11, 2, 5), writer)])
    stored = home.reopen().stored
    assert stored.snapshot == Snapshot(10, 5)
    assert stored.entries == run(11, 2, 5)
    assert stored.hard_state == HardState(5, RaftID(0), 10)


@pytest.mark.parametrize("last", [3, 10, 30])
def test_installing_may_be_interrupted_anywhere(tmp_path, last):
    """After each operation power is lost: the member has the old log or the snapshot, whole."""
    outcomes = set()
    for operation in range(30):
        home = Home(tmp_path / str(operation))
        storage = home.open()
        storage.write([Write(HardState(1, ME, 0), run(1, last, 1))])
        writer = save(storage, 10, 5, [b"state"], is_installed=True)
        with home.files.stopping_at(operation):
            storage.write([Write(HardState(5, RaftID(0), 10), run(11, 2, 5), writer)])
        stored = home.reopen().stored
        if stored.snapshot.index == 0:
            assert stored.entries == run(1, last, 1)
            assert stored.hard_state == HardState(1, ME, 0)
            outcomes.add("old")
        else:
            assert stored.snapshot == Snapshot(10, 5)
            assert stored.hard_state.term == 5
            assert stored.entries in (None, run(11, 2, 5))
            outcomes.add("new" if stored.entries else "begun")
    assert outcomes == {"old", "new", "begun"}


def install(home, storage, index, term, operation):
    """Install a snapshot and go on behind it; the machine stops at an operation of the step."""
    writer = save(storage, index, term, [b"%d" % index], is_installed=True)
    with home.files.stopping_at(operation):
        write = Write(HardState(term, RaftID(0), index), run(index + 1, 2, term), writer)
        storage.write([write])
    return home.files.is_stopped


def stop_twice(home, last, first, restart, second, *, is_power_lost):
    """Stop in an installation, in the start after it, and in the next installation.

    Returns what the last start found, and which of the three were reached.
    """
    lose = home.files.lose_power if is_power_lost else home.files.kill_process

    def start():
        lose()
        home.keys = KeyRing.open(home.path, rng_bytes=home.rng.randbytes, files=home.files)
        return home.open()

    storage = home.open()
    storage.write([Write(HardState(1, ME, 0), run(1, last, 1))])
    is_first_reached = install(home, storage, 10, 5, first)
    lose()
    with home.files.stopping_at(restart):
        home.open()
    is_restart_reached = home.files.is_stopped
    is_second_reached = install(home, start(), 40, 6, second)
    stored = start().stored
    # What was found must come back the same at one more start.
    assert start().stored == stored
    return stored, (is_first_reached, is_restart_reached, is_second_reached)


@pytest.mark.parametrize("is_power_lost", [False, True])
@pytest.mark.parametrize("last", [3, 10, 30, 60])
def test_two_installations_may_be_interrupted_anywhere(last, is_power_lost):
    """Also if each of them is, and the start between: the member starts, with one whole state."""
    reached = set()
    rng = random.Random(last)
    for first, second in itertools.product(range(14), range(14)):
        restart = rng.choice((-1, rng.randrange(14)))
        home = Home(Path("/m"), seed=first * 100 + second)
        stored, stops = stop_twice(home, last, first, restart, second, is_power_lost=is_power_lost)
        reached.add(stops)
        at = stored.snapshot.index
        if at == 0:
            assert stored.entries == run(1, last, 1)
        else:
            term = {10: 5, 40: 6}[at]
            assert stored.entries in (None, run(at + 1, 2, term))
            assert stored.hard_state.term >= term
    assert (True, True, True) in reached


def test_every_damaged_byte_is_found(home):
    """Whichever byte changes, the start refuses, or cuts a tail that was never confirmed."""
    storage = home.open()
    storage.write([Write(HardState(1, ME, 0), run(1, 3, 1))])
    storage.roll()
    writer = save(storage, 2, 1, [b"state"], is_installed=False)
    writer.publish()
    storage.snapshot = writer.snapshot
    storage.write([Write(HardState(1, ME, 3), run(4, 3, 1))])
    storage.close()
    good = home.open()
    expected = good.stored
    good.close()
    paths = [path for path in home.files.paths() if path.suffix in {".wal", ".snap"}]
    assert len(paths) == 3
    for path in paths:
        content = home.files.content(path)
        for place in range(len(content)):
            bad = bytearray(content)
            bad[place] ^= 0x40
            home.files.put(path, bytes(bad))
            with pytest.raises(CorruptError):
                home.open()
        home.files.put(path, content)
    assert home.open().stored == expected
