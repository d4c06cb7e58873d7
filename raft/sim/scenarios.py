"""The kinds of trouble: each is a bias, so that few seeds suffice to see what it is about."""

from __future__ import annotations

import msgspec

from raft.sim.network import Weather


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is made of. Times are in tenths of a tick.

    Attributes:
        name: for people.
        faults: how often each fault is chosen, in relation to the others.
        fault_time: the mean time between two.
        duration: of the troubled part.
        voters: how many at first, one of these.
        spares: hosts that may join later.
        weather: the network's.
        disk_time: the longest sync.
        snapshot_every: entries between two; 0 for never.
        entries_kept: after a snapshot.
        entries_max: in a message.
        under_way: messages to a follower.
        clients: how many.
        operations: of all of them together.
        think_time: between two operations of a client, at most.
        patience: how many ticks a client waits for an answer.
        election_ticks: the election time-out.
        fall: how likely a new leader is cut off soon after its election, the former ones joined.
        fall_time: at most this long after it.
        is_changing_first: a new leader asks for a change before anything else.
        doubts: how long after an election former leaders are asked for what they no longer know.
        leases: how likely the members read by leases; else they ask, and clocks do what they like.
        files: how likely disks are files, which lose unsynced writes in any order at a crash.
        kept: how likely a message to a host that is down is kept for its next life.
        late_hand_over: how likely a leader's `TimeoutNow` is late, by up to three time-outs.
        wild: how likely faults that this kind of trouble is not about are mixed in.
        rot: how likely stored bytes change when a machine loses power.
        is_disruption_checked: a member that comes back must not depose a good leader.
    """

    name: str
    faults: tuple[tuple[str, int], ...]
    fault_time: float = 60.0
    duration: float = 1200.0
    voters: tuple[int, ...] = (3,)
    spares: int = 0
    weather: Weather = Weather()
    disk_time: float = 0.0
    snapshot_every: int = 0
    entries_kept: int = 2
    entries_max: int = 8
    under_way: int = 4
    clients: int = 2
    operations: int = 50
    think_time: float = 30.0
    patience: float = 20.0
    election_ticks: int = 5
    fall: float = 0.0
    fall_time: float = 30.0
    is_changing_first: bool = False
    doubts: tuple[float, ...] = ()
    leases: float = 0.5
    files: float = 0.04
    kept: float = 0.2
    late_hand_over: float = 0.1
    wild: float = 0.4
    rot: float = 0.0
    is_disruption_checked: bool = False


_ROUGH = Weather(loss=0.05, double=0.05, late=0.02, delay_spread=8.0)
_CALM = Weather()

# What may happen in any run, whatever it is about.
WILD: tuple[tuple[str, int], ...] = (
    ("cut_one_way", 2),
    ("mute", 2),
    ("deafen", 2),
    ("pause_one", 2),
    ("pause_leader", 2),
    ("disturb_clock", 3),
    ("doom_installing", 1),
    ("heal", 4),
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="mixed",
        faults=(
            ("crash_one", 3),
            ("crash_leader", 2),
            ("doom_one", 3),
            ("split", 3),
            ("isolate_leader", 2),
            ("cut_one_way", 2),
            ("heal", 5),
            ("transfer", 2),
            ("stick_disk", 1),
            ("unstick_disks", 2),
            ("change", 2),
        ),
        voters=(3, 4, 5),
        spares=2,
        weather=_ROUGH,
        disk_time=3.0,
        snapshot_every=12,
    ),
    Scenario(
        name="succession",
        faults=(("isolate_leader_after_write", 2), ("crash_leader", 1)),
        fault_time=150.0,
        duration=1500.0,
        weather=Weather(delay_spread=4.0, delay_min=1.0),
        entries_max=1,
        under_way=1,
        operations=30,
        think_time=60.0,
        fall=0.8,
    ),
    Scenario(
        name="power",
        faults=(("doom_all", 4), ("doom_one", 4), ("crash_all", 2), ("crash_leader", 3)),
        fault_time=50.0,
        voters=(3, 5),
        weather=Weather(delay_spread=3.0),
        disk_time=15.0,
    ),
    Scenario(
        name="votes",
        faults=(("doom_follower_and_crash_leader", 3), ("heal", 1)),
        fault_time=100.0,
        duration=1600.0,
        weather=Weather(delay_spread=3.0),
        operations=30,
        fall=0.8,
        fall_time=8.0,
    ),
    Scenario(
        name="reads",
        faults=(("lag_leader", 1),),
        fault_time=300.0,
        duration=2000.0,
        leases=0.8,
        weather=Weather(late_time=250.0),
        think_time=60.0,
        patience=8.0,
        doubts=tuple(7.0 * number for number in range(1, 15)),
    ),
    Scenario(
        name="rejoin",
        faults=(),
        voters=(3, 5),
        operations=20,
        is_disruption_checked=True,
    ),
    Scenario(
        name="members",
        faults=(
            ("change", 8),
            ("change_burst", 4),
            ("isolate_leader_and_change", 4),
            ("heal", 6),
            ("crash_leader", 1),
            ("split", 1),
            ("transfer", 1),
        ),
        fault_time=40.0,
        voters=(3, 4),
        spares=3,
        weather=Weather(loss=0.02, delay_spread=4.0),
        snapshot_every=15,
        think_time=25.0,
    ),
    Scenario(
        name="factions",
        faults=(("change", 1), ("heal", 1)),
        fault_time=200.0,
        duration=1500.0,
        voters=(4,),
        spares=1,
        weather=Weather(delay_min=1.0, delay_spread=6.0),
        operations=30,
        think_time=60.0,
        fall=0.5,
        is_changing_first=True,
    ),
    Scenario(
        name="snapshots",
        faults=(
            ("isolate_leader_after_write", 5),
            ("isolate_one", 4),
            ("heal", 5),
            ("crash_one", 2),
        ),
        fault_time=55.0,
        voters=(3, 5),
        weather=Weather(loss=0.02, delay_spread=3.0),
        snapshot_every=4,
        entries_kept=0,
        clients=3,
        think_time=12.0,
        operations=100,
    ),
    Scenario(
        name="echoes",
        faults=(("seesaw", 1),),
        fault_time=270.0,
        duration=2000.0,
        voters=(5,),
        weather=Weather(double=0.1, late=0.25, late_time=300.0, delay_spread=6.0),
        think_time=80.0,
        operations=30,
    ),
    Scenario(
        name="promises",
        faults=(("betray", 1),),
        leases=0.8,
        fault_time=400.0,
        duration=2400.0,
        think_time=60.0,
        operations=40,
        patience=8.0,
        doubts=tuple(3.0 * number for number in range(1, 25)),
        election_ticks=10,
    ),
    Scenario(
        name="disks",
        faults=(
            ("stick_disk", 3),
            ("stick_leader_disk", 3),
            ("unstick_disks", 5),
            ("crash_one", 2),
            ("doom_one", 3),
        ),
        voters=(3, 5),
        weather=Weather(delay_spread=3.0),
        disk_time=8.0,
        snapshot_every=15,
    ),
    Scenario(
        name="transfers",
        faults=(("transfer", 8), ("isolate_leader", 2), ("transfer_and_isolate", 4), ("heal", 5)),
        fault_time=70.0,
        leases=0.8,
        weather=Weather(late=0.05, late_time=60.0, delay_spread=3.0),
        think_time=60.0,
        patience=8.0,
        doubts=(5.0, 12.0, 19.0, 26.0, 33.0),
        election_ticks=10,
    ),
    Scenario(
        name="handovers",
        faults=(("transfer", 6), ("crash_one", 1), ("isolate_leader", 1), ("heal", 3)),
        fault_time=90.0,
        voters=(3, 5),
        weather=Weather(delay_spread=4.0),
        disk_time=3.0,
        think_time=12.0,
        operations=80,
        clients=3,
        late_hand_over=0.7,
    ),
    Scenario(
        name="glimpses",
        faults=(("glimpse", 1),),
        fault_time=300.0,
        duration=2500.0,
        leases=0.8,
        weather=Weather(delay_spread=2.0, late_time=90.0),
        disk_time=12.0,
        think_time=60.0,
        patience=8.0,
        doubts=tuple(3.0 * number for number in range(1, 25)),
        election_ticks=10,
        operations=40,
    ),
    Scenario(
        name="blinks",
        faults=(("blink_one", 8), ("isolate_leader", 2), ("crash_leader", 2), ("heal", 1)),
        fault_time=20.0,
        voters=(3, 4, 5),
        weather=Weather(delay_spread=20.0, late=0.25, late_time=150.0),
        kept=0.6,
        operations=30,
        think_time=40.0,
    ),
    Scenario(
        name="clocks",
        faults=(
            ("disturb_clock", 6),
            ("pause_one", 2),
            ("pause_leader", 3),
            ("mute", 1),
            ("deafen", 1),
            ("isolate_leader", 1),
            ("pair_leader", 2),
            ("crash_one", 1),
            ("heal", 3),
        ),
        fault_time=50.0,
        voters=(3, 5),
        leases=0.3,
        weather=Weather(delay_spread=3.0, late=0.02),
        disk_time=2.0,
        think_time=40.0,
        patience=10.0,
        doubts=tuple(9.0 * number for number in range(1, 12)),
    ),
    Scenario(
        name="stale",
        faults=(("lag_slow_leader", 1), ("blink_reader", 1)),
        fault_time=300.0,
        duration=2500.0,
        voters=(3, 5),
        leases=0.0,
        weather=Weather(late_time=250.0),
        think_time=60.0,
        operations=40,
        patience=8.0,
        doubts=tuple(7.0 * number for number in range(1, 15)),
    ),
    Scenario(
        name="installations",
        faults=(
            ("doom_installing", 4),
            ("isolate_one", 4),
            ("crash_one", 3),
            ("pause_one", 1),
            ("heal", 6),
        ),
        fault_time=55.0,
        files=0.5,
        voters=(3,),
        weather=Weather(loss=0.01, delay_spread=3.0),
        disk_time=2.0,
        snapshot_every=4,
        entries_kept=0,
        clients=3,
        think_time=12.0,
        operations=80,
    ),
    Scenario(
        name="replaced",
        faults=(("isolate_leader_after_write", 2), ("doom_replacing", 3), ("heal", 1)),
        fault_time=70.0,
        weather=Weather(delay_spread=3.0),
        think_time=20.0,
    ),
    Scenario(
        name="rot",
        faults=(
            ("crash_one", 4),
            ("doom_one", 4),
            ("crash_leader", 1),
            ("isolate_one", 1),
            ("heal", 3),
        ),
        fault_time=50.0,
        voters=(3, 4, 5),
        spares=4,
        weather=Weather(loss=0.01, delay_spread=3.0),
        disk_time=2.0,
        snapshot_every=10,
        think_time=15.0,
        operations=100,
        wild=0.0,
        rot=0.5,
    ),
)


def scenario_of(seed: int) -> Scenario:
    """Return the scenario of a seed: they take turns."""
    return SCENARIOS[seed % len(SCENARIOS)]
