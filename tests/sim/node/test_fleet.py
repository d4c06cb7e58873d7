"""Several nodes, seeded: a real manager and real agents that crash and lose each other."""

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from proto.objects import (
    NANOSECONDS,
    ContainerSpec,
    GlobalMode,
    ReplicatedMode,
    ServiceSpec,
    TaskSpec,
)
from proto.states import TaskState

from .fleet import Fleet, run_fleet
from .machine import GOOD_IMAGES

FIRST = int(os.environ.get("SWARM_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "20"))
# Dead after three heartbeats of a second, then a task takes a moment to begin.
FAIL_OVER_SECONDS_MAX = 5.0
_DIGEST = (
    "from tests.sim.node.test_fleet import digest; import sys; print(digest({seed}, {root!r}))"
)


def digest(seed, root):
    """Return a digest of everything that happened."""
    lines = run_fleet(seed, Path(root)).lines()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_cluster_survives_its_story(seed, tmp_path):
    """Whatever happens, no rule is broken, everything settles, and then nothing moves."""
    run_fleet(seed, tmp_path)


@pytest.mark.parametrize("seed", [2, 7])
def test_a_seed_of_a_cluster_always_tells_the_same_story(seed, tmp_path):
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


async def begin(fleet, *, workers, mode):
    """Let a service run on some nodes, and nothing go wrong by itself."""
    await fleet.found(workers)
    await fleet.start_manager()
    for worker in fleet.workers:
        worker.machine.is_rough = False
        fleet.start_agent(worker)
    await asyncio.sleep(1)
    container = ContainerSpec(image=GOOD_IMAGES[0], stop_grace_period_ns=NANOSECONDS)
    spec = ServiceSpec(name="web", mode=mode, task=TaskSpec(container=container))
    assert await fleet.send("create web", lambda control: control.create_service(spec)) == "done"
    await asyncio.sleep(2)


def running(fleet):
    """Return the wanted tasks that run, by node."""
    found = {}
    for task in sorted(fleet.store.view().tasks, key=lambda t: t.id):
        if task.desired_state is TaskState.RUNNING and task.status.state is TaskState.RUNNING:
            found.setdefault(task.node_id, []).append(task.id)
    return found


def test_a_node_that_is_lost_for_a_second_keeps_everything(tmp_path):
    """Its session breaks, but it is not dead: not one task is made, stopped or moved."""

    async def story(fleet: Fleet) -> None:
        await begin(fleet, workers=3, mode=ReplicatedMode(replicas=6))
        before = running(fleet)
        rows = set(fleet.store.view().tasks)
        victim = fleet.workers[1]
        for _ in range(3):
            fleet.kill_agent(victim)
            await asyncio.sleep(1.0)
            fleet.start_agent(victim)
            await asyncio.sleep(5.0)
        victim.link.cut()
        await asyncio.sleep(1.5)
        victim.link.heal()
        await asyncio.sleep(30.0)
        assert {len(tasks) for tasks in before.values()} == {2}
        assert before == running(fleet)
        same = {msgspec.structs.replace(task, version=0, updated_at=0.0) for task in rows}
        assert same == {
            msgspec.structs.replace(task, version=0, updated_at=0.0)
            for task in fleet.store.view().tasks
        }

    run_fleet(1, tmp_path, story)


def test_tasks_of_a_dead_machine_run_elsewhere_within_seconds(tmp_path):
    """They start once the node is DOWN; back again it stops what it had, and nothing moves back."""

    async def story(fleet: Fleet) -> None:
        await begin(fleet, workers=3, mode=ReplicatedMode(replicas=6))
        victim = fleet.workers[2]
        fleet.kill_agent(victim)  # its containers go on
        await asyncio.sleep(FAIL_OVER_SECONDS_MAX)
        live = running(fleet)
        assert {node: len(tasks) for node, tasks in live.items()} == {"node1": 3, "node2": 3}
        old = list(fleet.store.view().tasks.find("node_id", victim.node_id))
        assert [(task.desired_state, task.status.state) for task in old] == [
            (TaskState.SHUTDOWN, TaskState.RUNNING)
        ] * 2
        assert len(victim.machine.runtime.running()) == 2

        fleet.start_agent(victim)
        await asyncio.sleep(30.0)
        assert victim.machine.runtime.running() == {}
        assert live == running(fleet)

    run_fleet(1, tmp_path, story)


def test_a_global_service_follows_the_nodes(tmp_path):
    """A dead node's task is not replaced; a new node and one that is back get theirs at once."""

    async def story(fleet: Fleet) -> None:
        await begin(fleet, workers=2, mode=GlobalMode())
        assert sorted(running(fleet)) == ["node1", "node2"]
        await fleet._add_node()
        fleet.workers[2].machine.is_rough = False
        await asyncio.sleep(2)
        assert sorted(running(fleet)) == ["node1", "node2", "node3"]

        fleet.kill_agent(fleet.workers[1])
        fleet.workers[1].machine.reboot()
        await asyncio.sleep(60)
        assert sorted(running(fleet)) == ["node1", "node3"]

        fleet.start_agent(fleet.workers[1])
        await asyncio.sleep(2)
        assert sorted(running(fleet)) == ["node1", "node2", "node3"]

    run_fleet(1, tmp_path, story)
