"""Measure the Raft core and its simulator: `python tests/bench/raft_core.py` prints one JSON line.

Three members in this process, stored at once and joined directly: what is left is the core. Entries
of 200 bytes. `c1 c64 c512`: commits per second with so many callers whose proposals the shell
gathers into one batch; `c512_calls`: each caller proposes by itself; `c512_encoded`: every message
is encoded and decoded too. `sim_steps`: simulator steps per second, over one round of scenarios.
Seconds of processor time are counted, since the machine may be shared.
"""

from __future__ import annotations

import gc
import json
import random
import time

from raft.core import Config, Core, Member, Membership, RaftID, bootstrap, decode, encode
from raft.sim.run import run_seed
from raft.sim.scenarios import SCENARIOS

ENTRY = bytes(range(200))
SECONDS = 1.5
COMPACT_ENTRIES = 10_000
SIM_SEEDS = 10 * len(SCENARIOS)


def group() -> dict[int, Core]:
    members = Membership(tuple(Member(RaftID(n), is_voter=True) for n in (1, 2, 3)))
    hard_state, entries = bootstrap(members)
    return {
        n: Core(Config(id=RaftID(n)), random.Random(n), hard_state=hard_state, entries=entries)
        for n in (1, 2, 3)
    }


def drive(cores: dict[int, Core], *, is_encoded: bool = False) -> int:
    """Do all duties until nothing is left; return how many entries the leader applied."""
    applied = 0
    is_busy = True
    while is_busy:
        is_busy = False
        for core in cores.values():
            while (ready := core.ready()) is not None:
                is_busy = True
                if ready.has_to_store:
                    core.persisted(ready.number)
                messages = ready.messages + ready.messages_after
                if is_encoded and messages:
                    messages = decode(encode(messages))
                for message in messages:
                    cores[message.to].step(message)
                if core.id == 1 and ready.committed is not None:
                    applied += len(ready.committed.data)
    return applied


def commits(callers: int, *, is_encoded: bool = False, is_gathered: bool = True) -> int:
    """Return commits per second."""
    cores = group()
    cores[1].campaign()
    drive(cores)
    assert cores[1].is_leader
    applied = 0
    began = time.process_time()
    while (spent := time.process_time() - began) < SECONDS:
        if is_gathered:
            cores[1].propose([ENTRY] * callers)
        else:
            for _ in range(callers):
                cores[1].propose([ENTRY])
        applied += drive(cores, is_encoded=is_encoded)
        for core in cores.values():
            if core.log.delivered - core.snapshot.index >= COMPACT_ENTRIES:
                core.compact(core.log.delivered, 500)
    return round(applied / spent)


def main() -> None:
    gc.freeze()
    figures: dict[str, float] = {
        "c1": commits(1),
        "c64": commits(64),
        "c512": commits(512),
        "c512_calls": commits(512, is_gathered=False),
        "c512_encoded": commits(512, is_encoded=True),
    }
    began = time.process_time()
    outcomes = [run_seed(seed) for seed in range(SIM_SEEDS)]
    spent = time.process_time() - began
    assert not any(outcome.failure for outcome in outcomes)
    figures["sim_steps"] = round(sum(outcome.steps for outcome in outcomes) / spent)
    figures["sim_seed_ms"] = round(1000 * spent / SIM_SEEDS, 2)
    print(json.dumps({"bench": "raft_core", **figures}))


if __name__ == "__main__":
    main()
