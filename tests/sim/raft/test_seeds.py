"""Seeds of the Raft simulator: the real core passes all, each planted bug is caught.

`SWARM_SIM_SEEDS` asks for more seeds than a usual run's.
"""

import os
import subprocess
import sys

import pytest

from raft.core import membership
from raft.sim.bugs import BUGS
from raft.sim.run import run_seed
from raft.sim.scenarios import SCENARIOS, scenario_of

SEEDS_USUAL = 2000
SEEDS = max(SEEDS_USUAL, int(os.environ.get("SWARM_SIM_SEEDS", "0")))
PORTIONS = 20
SEEDS_PER_BUG_MAX = 2000


@pytest.mark.parametrize("portion", range(PORTIONS))
def test_the_core_passes(portion):
    """Safety in all trouble, and progress after it."""
    for seed in range(portion, SEEDS, PORTIONS):
        outcome = run_seed(seed)
        assert outcome.failure == "", f"python -m raft.sim --start {seed} --seeds 1"


def test_safety_does_not_rest_on_knowing_who_left(monkeypatch):
    """A group that forgets at once which numbers were removed passes as well."""
    monkeypatch.setattr(membership, "REMOVED_MAX", 0)
    changing = {"mixed", "members", "factions", "rejoin"}
    for seed in range(SEEDS // 2):
        if scenario_of(seed).name in changing:
            assert run_seed(seed).failure == "", f"seed {seed}"


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug):
    """A simulator that misses a known mistake would miss an unknown one."""
    for seed in range(SEEDS_PER_BUG_MAX):
        outcome = run_seed(seed, bug=bug)
        if outcome.failure:
            break
    else:
        pytest.fail(f"{bug} survived {SEEDS_PER_BUG_MAX} seeds")
    assert run_seed(seed, bug=bug) == outcome, "the failure repeats"
    assert run_seed(seed).failure == "", "it is the bug that fails, not the seed"


def test_all_bugs_of_the_specification_are_planted():
    """The list of the design, by name."""
    assert set(BUGS) >= {
        "unconditional-truncation",
        "no-up-to-date-check",
        "double-vote",
        "commit-old-term-by-counting",
        "acknowledge-before-persist",
        "vote-before-persist",
        "no-pre-vote",
        "stale-reply-counted",
        "snapshot-without-match",
        "concurrent-changes",
        "lease-after-partition",
        "checksum-not-verified",
        "follower-commits-its-end",
        "vote-not-stored-alone",
    }
    assert len(BUGS) >= 40


@pytest.mark.parametrize("seed", range(len(SCENARIOS)))
def test_a_seed_repeats(seed):
    """Traced or not, the same seed is the same run."""
    first = run_seed(seed, is_traced=True)
    assert run_seed(seed, is_traced=True) == first
    plain = run_seed(seed)
    assert (plain.steps, plain.commits, plain.answers) == (
        first.steps,
        first.commits,
        first.answers,
    )


def test_a_seed_does_not_depend_on_hashes():
    """Another order of sets and dictionaries of strings makes the same trace."""
    program = (
        "import hashlib\n"
        "from raft.sim.run import run_seed\n"
        "for seed in range(24):\n"
        "    trace = '\\n'.join(run_seed(seed, is_traced=True).trace)\n"
        "    print(seed, hashlib.sha256(trace.encode()).hexdigest())\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(seen) == 1
    assert len(seen.pop().splitlines()) == 24


def test_the_trouble_really_happens():
    """Over all scenarios: everything that they are about, and clients that are answered."""
    marks = {
        "Install(": 0, "TimeoutNow(": 0, " crash ": 0, " start ": 0, " leads ": 0, " change ": 0,
        "is_rejected=True": 0, "ReadReply(": 0, "is_granted=False": 0, " answer ": 0,
        "kind='enqueue'": 0, "kind='dequeue'": 0, " goes on ": 0, " fault disturb_clock": 0,
        " fault mute": 0, " fault deafen": 0, " fault doom_installing": 0, "is_forced=True": 0,
    }  # fmt: skip
    leaders = 0
    for seed in range(5 * len(SCENARIOS)):
        outcome = run_seed(seed, is_traced=True)
        leaders += outcome.leaders
        for line in outcome.trace:
            for mark in marks:
                marks[mark] += mark in line
    assert min(marks.values()) > 20, marks
    assert leaders > 5 * 5 * len(SCENARIOS) / 2


def test_disks_rot_and_members_are_replaced():
    """Changed bytes of log and snapshots stop a member; a new one takes its place."""
    rot = next(scenario for scenario in SCENARIOS if scenario.name == "rot")
    marks = {
        " rot ": 0, ".wal at": 0, ".snap at": 0, " damaged ": 0, " replaced ": 0, " was lost": 0,
    }  # fmt: skip
    for seed in range(40):
        outcome = run_seed(seed, scenario=rot, is_traced=True)
        assert outcome.failure == ""
        for line in outcome.trace:
            for mark in marks:
                marks[mark] += mark in line
    assert marks.pop(" was lost") > 2
    assert min(marks.values()) > 5, marks
    assert marks[" damaged "] > 0.9 * marks[" rot "], marks


def test_scenarios_take_turns():
    """Each has the same share of any range of seeds."""
    names = [scenario_of(seed).name for seed in range(len(SCENARIOS))]
    assert len(set(names)) == len(SCENARIOS)
