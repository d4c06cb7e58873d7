"""A whole node, seeded: real store, log, control API, orchestrator, dispatcher and agent."""

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proto.errors import UnavailableError

from .simulation import Simulation, simulate
from .trace import SimulationError

FIRST = int(os.environ.get("SWARM_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "20"))
# Prints a digest of a seed's whole trace.
_DIGEST = "from tests.sim.node.test_node import digest; import sys; print(digest({seed}, {root!r}))"


def digest(seed, root):
    """Return a digest of everything that happened."""
    lines = simulate(seed, Path(root)).lines()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_node_survives_its_story(seed, tmp_path):
    """Whatever happens, no rule is broken, everything settles, and then nothing moves."""
    simulate(seed, tmp_path)


@pytest.mark.parametrize("seed", [3, 8])
def test_a_seed_always_tells_the_same_story(seed, tmp_path):
    """The trace depends on nothing but the seed, not even on Python's random hashes."""
    digests = set()
    for hash_seed in ("0", "1"):
        root = tmp_path / hash_seed
        root.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST.format(seed=seed, root=str(root))],
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        digests.add(done.stdout.strip())

    assert len(digests) == 1


def test_a_failure_names_the_seed_and_shows_the_end_of_the_trace(tmp_path):
    """Whoever sees it can play it again, and has something to begin with."""

    async def story(simulation: Simulation) -> None:
        await simulation.found()
        await simulation.start()
        simulation.violate("the sky fell")
        simulation.check()

    with pytest.raises(SimulationError) as caught:
        simulate(77, tmp_path, story)

    assert "seed 77: the sky fell" in str(caught.value)
    assert "agent_started" in str(caught.value)
    assert "VIOLATION what=the sky fell" in str(caught.value)


def test_a_killed_daemon_does_nothing_any_more(tmp_path):
    """No callback, timer, `except` or `finally` of it runs; a call under way is never answered."""
    done = []

    async def program():
        try:
            await asyncio.sleep(1)
        finally:
            done.append("finally")

    async def story(simulation: Simulation) -> None:
        await simulation.found()
        await simulation.start()
        simulation.loop.start(simulation._program, program)
        simulation.loop.call_in(
            simulation._program, lambda: simulation.loop.call_later(1, done.append, "timer")
        )
        await asyncio.sleep(0.5)
        simulation.kill()
        await asyncio.sleep(5)
        assert done == []

    simulate(1, tmp_path, story)


def test_a_broken_log_is_opened_anew_and_the_daemon_can_be_stopped_meanwhile(tmp_path):
    """While the disk fails the manager is tried again and again, with the lock free between."""

    async def story(simulation: Simulation) -> None:
        await simulation.found()
        await simulation.start()
        broken = simulation.store
        await asyncio.sleep(1)
        simulation.loop.call_in(simulation._program, lambda: broken.fail(UnavailableError("gone")))
        await asyncio.sleep(30)
        assert simulation.store is not broken
        assert simulation.node.state == "active"

        again = simulation.store
        simulation.disk.fail(is_failing=True)
        simulation.loop.call_in(simulation._program, lambda: again.fail(UnavailableError("gone")))
        await asyncio.sleep(30)
        async with asyncio.timeout(60):
            await simulation.stop()

    simulate(1, tmp_path, story)
