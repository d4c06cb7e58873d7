"""A whole node, seeded: real store, log, control API, orchestrator, dispatcher and agent."""

import os

import pytest

from .simulation import simulate

FIRST = int(os.environ.get("SWARM_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("SWARM_SIM_SEEDS", "20"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_node_survives_its_story(seed, tmp_path):
    """Whatever happens, no rule is broken, everything settles, and then nothing moves."""
    simulate(seed, tmp_path)
