"""Measure the replicated log: `python tests/bench/raft.py [DIRECTORY]` prints one line of JSON.

Three processes on loopback, gRPC with mutual TLS, encrypted log, a commit is synced by two.
The callers are in the leader's process.

    c1, c64, c512     commits of 200-byte entries per second with so many callers
    p99_ms            of one commit, with 64 callers
    mib               commits of 1 MiB entries per second; `mib_elections` while that went on
    failover_ms       kill -9 of the leader to the next commit, median, at the default ticks
    failover_fast_ms  the same with ticks of 20 ms
    restart_s         opening and reading back `restart_entries`
    reads             linearizable ones per second and their p50 in ms, at the leader, at a follower
                      and at a lone member, with so many callers
    lease_reads       the same with the option of leases
    snapshot_p99_ms   of 1,000 writes a second while a lagging member gets 100 MiB
    pysyncobj         PySyncObj's commits per second in the same run, as it comes and tuned
    times_default, times_tuned   ours as a multiple of those

`measure_commits` of `tests/integration/raft_node/member.py` is what measures; it takes anything
that proposes, so another log can be measured beside this one.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Python puts this directory first, where `import raft` would find this file: by ourselves, and by
# every other program here. Both are sent on to the package.
_HERE = str(Path(__file__).parent)
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(_HERE)]
if __name__ == "raft":
    del sys.modules["raft"]
    sys.modules["raft"] = importlib.import_module("raft")
else:
    sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "raft_node"))
    from harness import Cluster


SECONDS = float(os.environ.get("SWARM_BENCH_SECONDS", "3"))
ROUNDS = 5
RESTART_ENTRIES = 100_000
MIB = 1 << 20


async def commits(root):
    figures = {}
    async with Cluster(root, log_bytes_max=64 * MIB) as cluster:
        leader = await cluster.leader()
        for callers in (1, 64, 512):
            await leader.ask("load", callers=callers, seconds=1, size=200)
            load = await leader.ask("load", callers=callers, seconds=SECONDS, size=200)
            figures[f"c{callers}"] = load["rate"]
            figures["p99_ms" if callers == 64 else f"c{callers}_p99_ms"] = load["p99_ms"]
        before = (await leader.ask("status"))["term"]
        load = await leader.ask("load", callers=4, seconds=2 * SECONDS, size=MIB, within=120)
        figures["mib"] = load["rate"]
        figures["mib_p99_ms"] = load["p99_ms"]
        figures["mib_elections"] = (await leader.ask("status"))["term"] - before
    return figures


async def failover(root, tick_seconds):
    waits = []
    async with Cluster(root, tick_seconds=tick_seconds) as cluster:
        for _ in range(ROUNDS):
            leader = await cluster.leader()
            await leader.ask("write", prefix="before", count=5)
            await cluster.agree()
            others = [node for node in cluster.running if node is not leader]
            asked = [asyncio.ensure_future(n.ask("first_commit", seconds=15)) for n in others]
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await leader.kill()
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            waits.append((next(iter(done)).result()["at"] - began) * 1000)
            for node in others:
                await node.ask("give_up")
            await asyncio.wait(asked)
            await leader.start()
    return round(statistics.median(waits)), round(max(waits))


async def restart(root):
    async with Cluster(root) as cluster:
        leader = await cluster.leader()
        await leader.ask("fill", count=RESTART_ENTRIES, callers=64, within=120)
        await leader.kill()
        opened = await leader.start()
        return round(opened["opened_seconds"], 2), opened["last_index"]


async def reads(root):
    """Measure reads by asking a majority, and by leases, on groups that are otherwise equal."""
    figures = {}
    for kind, has_leases in (("reads", False), ("lease_reads", True)):
        place = Path(root) / kind
        (place / "lone").mkdir(parents=True)
        async with Cluster(place, has_lease_reads=has_leases) as cluster:
            leader = await cluster.leader()
            follower = next(node for node in cluster.running if node is not leader)
            figures[kind] = {
                **await _reads_of(leader, "leader"),
                **await _reads_of(follower, "follower"),
            }
        async with Cluster(place / "lone", "a", has_lease_reads=has_leases) as cluster:
            figures[kind] |= await _reads_of(await cluster.leader(), "lone")
    return figures


async def _reads_of(node, where):
    figures = {}
    for callers in (1, 64, 512):
        await node.ask("reads", callers=callers, seconds=0.5)
        load = await node.ask("reads", callers=callers, seconds=SECONDS)
        figures[f"{where}_c{callers}"] = load["rate"]
        figures[f"{where}_c{callers}_ms"] = load["p50_ms"]
    return figures


async def snapshot(root):
    async with Cluster(root) as cluster:
        leader = await cluster.leader()
        others = [node for node in cluster.running if node is not leader]
        await others[0].kill()
        await leader.ask("fill", count=3000, callers=64)
        await leader.ask("snapshot", padding=100 * MIB)
        alone = await leader.ask("paced", rate=1000, seconds=2, size=200)
        asked = asyncio.ensure_future(leader.ask("paced", rate=1000, seconds=6, size=200))
        await others[0].start()
        await cluster.until(lambda: _is_installed(others[0]))
        busy = await asked
        return alone["p99_ms"], busy["p99_ms"], busy["errors"]


async def _is_installed(node):
    return (await node.ask("status"))["snapshot_index"] > 0


def peer():
    """Measure PySyncObj next to ours."""
    program = Path(__file__).with_name("pysyncobj_peer.py")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


async def measure(root):
    def place(name):
        path = Path(root) / name
        path.mkdir()
        return path

    figures = {"name": "raft", **await commits(place("commits")), **await reads(place("reads"))}
    figures["pysyncobj"] = peer()
    for name in ("default", "tuned"):
        figures[f"times_{name}"] = {
            callers: round(figures[callers] / figures["pysyncobj"][f"{name}_{callers}"], 2)
            for callers in ("c1", "c64", "c512")
        }
    figures["failover_ms"], figures["failover_max_ms"] = await failover(place("slow"), 0.1)
    figures["failover_fast_ms"], figures["failover_fast_max_ms"] = await failover(
        place("fast"), 0.02
    )
    figures["restart_s"], figures["restart_entries"] = await restart(place("restart"))
    (
        figures["paced_p99_ms"],
        figures["snapshot_p99_ms"],
        figures["snapshot_errors"],
    ) = await snapshot(place("snapshot"))
    return figures


def main():
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(prefix="swarm-bench-", dir=parent) as root:
        print(json.dumps(asyncio.run(measure(root))))


if __name__ == "__main__":
    main()
