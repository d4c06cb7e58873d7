"""Run one seed, and say what came of it."""

from __future__ import annotations

import msgspec

from raft.sim.bugs import BUGS, Bug
from raft.sim.checks import Failure
from raft.sim.scenarios import Scenario, scenario_of
from raft.sim.world import World

STEPS_MAX = 40_000


class Outcome(msgspec.Struct, frozen=True):
    """What came of a seed.

    Attributes:
        seed: which.
        scenario: its kind of trouble.
        failure: what does not hold, or "".
        steps: events until then.
        commits: entries applied.
        answers: operations that clients had answered.
        leaders: terms that had a leader.
        trace: lines, if it was asked for.
    """

    seed: int
    scenario: str
    failure: str
    steps: int
    commits: int
    answers: int
    leaders: int
    trace: tuple[str, ...] = ()


def run_seed(
    seed: int, *, bug: str = "", scenario: Scenario | None = None, is_traced: bool = False
) -> Outcome:
    """Run a seed to its end or its first failure; the same seed always runs the same.

    Args:
        seed: chooses the scenario, and everything that happens in it.
        bug: a name of `BUGS`, or "" for the real parts.
        scenario: instead of the seed's own.
        is_traced: keep a line of every event.
    """
    planted = BUGS[bug] if bug else Bug()
    chosen = scenario or scenario_of(seed)
    world = World(spread(seed), chosen, planted.core, planted.disk, is_traced=is_traced)
    failure = ""
    try:
        _live(world)
    except AssertionError as error:
        failure = f"{type(error).__name__} at {world.now:.1f}: {error}"
        world.note("FAILED", failure)
    return Outcome(
        seed=seed,
        scenario=chosen.name,
        failure=failure,
        steps=world.steps,
        commits=len(world.truth.data),
        answers=world.clients.acknowledged,
        leaders=len(world.truth.leaders),
        trace=tuple(world.trace or ()),
    )


def spread(seed: int) -> int:
    """Return a number for the generator: neighbouring seeds must not begin alike."""
    return seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1


def _live(world: World) -> None:
    scenario = world.scenario
    world.clients.start(scenario.clients)
    if scenario.is_disruption_checked:
        world.faults.check_disruption(STEPS_MAX)
    else:
        world.faults.start()
        world.run_until(scenario.duration, STEPS_MAX)
    world.settle(STEPS_MAX)
    world.clients.check()
    for host in world.up():
        assert host.core is not None
        host.core.check()
    if world.clients.acknowledged == 0:
        raise Failure("no progress", "no client was ever answered")
