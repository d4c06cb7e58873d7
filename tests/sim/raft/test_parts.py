"""The simulated disk and network do what the checks rely on."""

import random

import pytest

from proto.errors import CorruptError
from raft.core import Entries, HardState, RaftID, Ready, Snapshot
from raft.sim.checks import Failure
from raft.sim.disk import Disk
from raft.sim.filedisk import FileDisk
from raft.sim.network import Network, Weather
from raft.sim.scenarios import SCENARIOS
from raft.sim.stale import StaleReads


def ready(first, terms, snapshot=None):
    """Build a Ready with entries of these terms."""
    runs = tuple((first + place, term) for place, term in enumerate(terms))
    entries = Entries(first, [b"%d" % term for term in terms], runs)
    return Ready(1, HardState(terms[-1]), entries, snapshot, [], [], None, [], [])


def test_a_torn_write_leaves_a_beginning():
    """Never entries without the hard state, never a later part without an earlier one."""
    seen = set()
    for seed in range(200):
        disk = Disk()
        disk.tear(ready(1, [3, 3, 3]), random.Random(seed))
        assert disk.hard_state.term == 3 or not disk.log
        seen.add((disk.hard_state.term, len(disk.log)))
    assert seen == {(0, 0), (3, 0), (3, 1), (3, 2), (3, 3)}


def test_storing_cuts_what_follows():
    """Entries replace whatever was stored at their place and after it."""
    disk = Disk()
    disk.store(ready(1, [1, 1, 1]))
    disk.store(ready(2, [2]))
    assert [term for term, _, _ in disk.log] == [1, 2]
    assert disk.entries().terms == ((1, 1), (2, 2))
    assert disk.holds(2, 2)
    assert not disk.holds(2, 1)
    assert not disk.holds(3, 1)


def test_a_snapshot_replaces_the_log():
    """And entries go on behind it."""
    disk = Disk()
    disk.store(ready(1, [1]))
    disk.store(ready(6, [2], snapshot=Snapshot(5, 2)))
    assert (disk.first, disk.last, disk.snapshot.index) == (6, 6, 5)


def filedisk(seed):
    """Make a disk with files on which three entries are stored."""
    disk = FileDisk(RaftID(1), random.Random(seed), lambda _: {0: (1, 2)})
    assert disk.open() == {}
    disk.store(ready(1, [1, 1, 1]))
    return disk


def test_files_hold_what_was_stored():
    """A crash takes nothing of it, and the snapshot's content is read from its file."""
    disk = filedisk(1)
    disk.keep_snapshot(Snapshot(2, 1), 2)
    disk.store(ready(4, [2]))
    disk.lose_power()
    assert disk.open() == {0: (1, 2)}
    assert (disk.snapshot.index, disk.last, disk.hard_state.term) == (2, 4, 2)


def test_a_torn_write_to_files_is_there_or_not():
    """Half of a record is cut at the start; nothing that was synced goes with it."""
    seen = set()
    for seed in range(60):
        disk = filedisk(seed)
        disk.tear(ready(4, [2, 2]), random.Random(seed))
        disk.lose_power()
        disk.open()
        seen.add((disk.hard_state.term, disk.last))
    assert seen == {(1, 3), (2, 5)}


def test_rot_in_files_is_found():
    """Whichever byte it is, of the log or of the snapshot."""
    kinds = set()
    for seed in range(60):
        disk = filedisk(seed)
        disk.keep_snapshot(Snapshot(2, 1), 0)
        disk.lose_power()
        kinds.add(disk.rot().split(" ")[0].rpartition(".")[2])
        with pytest.raises(CorruptError):
            disk.open()
    assert kinds == {"wal", "snap"}


def test_files_that_lost_something_fail_the_run():
    """The check behind it: what is read must be what was stored."""
    disk = filedisk(1)
    disk.log.append((1, b"never written", False))
    disk.lose_power()
    with pytest.raises(Failure, match="damage applied: member 1 reads"):
        disk.open()


def test_a_cut_has_a_direction():
    """One way is not the other; healing joins all."""
    network = Network(random.Random(1), Weather())
    network.cut(RaftID(1), RaftID(2))
    assert network.delays(1, 2) == ()
    assert len(network.delays(2, 1)) == 1
    network.split([1], [2, 3])
    assert network.delays(2, 1) == ()
    assert len(network.delays(2, 3)) == 1
    network.heal()
    assert len(network.delays(1, 2)) == 1


def test_weather_loses_doubles_and_delays():
    """In about the proportions asked for."""
    weather = Weather(loss=0.2, double=0.2, late=0.2, late_time=1000.0)
    network = Network(random.Random(1), weather)
    arrivals = [network.delays(1, 2) for _ in range(2000)]
    counts = [sum(len(each) == count for each in arrivals) for count in range(3)]
    assert all(250 < counts[place] < 550 for place in (0, 2)), counts
    assert 250 < sum(each[0] > 10 for each in arrivals if each) < 550


def test_every_fault_that_a_scenario_names_exists():
    """A misspelt one would fail only when its seed comes."""
    for scenario in SCENARIOS:
        for name, weight in scenario.faults:
            assert callable(getattr(StaleReads, name)), name
            assert weight > 0
