"""Torture a replicated log: `run.py --system ours|pysyncobj --minutes N --seed S [--members 3]`.

Prints one line of JSON. The exit code is 0 if it kept its word, 1 if it lost acknowledged writes
or broke another promise of `checker`, 3 if a member died by itself or did not come back to life
after all was healed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
from checker import ACKED, History, Report, check
from cluster import Cluster
from config import PLAIN_TEXT
from lab import Lab, enter
from load import KEYS, Load
from nemesis import WEIGHTS, Nemesis

SETTLE_SECONDS_MAX = {"ours": 90.0, "pysyncobj": 20.0}
CHUNK_BYTES = 1 << 20


class Round(msgspec.Struct, kw_only=True):
    """One group's life: from empty disks to the verdict."""

    report: Report
    faults: dict[str, int]
    crashes: list[str]
    disk_full_exits: int
    starts: int
    plain_text_files: int
    stored_files: int
    settle_seconds: float


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=sorted(WEIGHTS), default="ours")
    parser.add_argument(
        "--machine", choices=("lists", "store"), default="store", help="the state machine of ours"
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--round-seconds", type=float, default=0.0, help="0: by the system")
    parser.add_argument("--writers", type=int, default=96)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="appends a second; 0: by the system"
    )
    parser.add_argument("--entry-bytes", type=int, default=200)
    parser.add_argument("--faults", default="", help="only these, separated by commas")
    parser.add_argument("--until-lost", action="store_true", help="end with the first loss")
    parser.add_argument("--keep", default="", help="a folder that keeps what was stored")
    parser.add_argument("--verbose", action="store_true", help="a line for each round")
    found = parser.parse_args()
    if unknown := set(filter(None, found.faults.split(","))) - set(WEIGHTS[found.system]):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    is_ours = found.system == "ours"
    found.round_seconds = found.round_seconds or (150.0 if is_ours else 40.0)
    found.rate = found.rate or (1_500.0 if is_ours else 100_000.0)
    return found


async def settle(cluster: Cluster, load: Load) -> dict[str, int]:
    """Append a barrier to each key, as often as it needs; return those acknowledged in time."""

    async def one(key: str) -> tuple[str, int] | None:
        deadline = time.monotonic() + SETTLE_SECONDS_MAX[cluster.system]
        while time.monotonic() < deadline:
            leader = await cluster.leader()
            if leader is not None:
                append = await load.append(leader, key, 10.0)
                if append.outcome == ACKED:
                    return key, append.value
            await asyncio.sleep(0.1)
        return None

    found = await asyncio.gather(*(one(key) for key in KEYS))
    return dict(each for each in found if each is not None)


async def dumps(cluster: Cluster, barriers: dict[str, int]) -> dict[str, dict[str, list[int]]]:
    """Return what all members hold, as soon as that is the same and complete, or in the end."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX[cluster.system]
    while True:
        replies = await asyncio.gather(
            *(client.ask("dump", timeout=30.0) for client in cluster.clients)
        )
        finals = {f"member{host}": reply.lists for host, reply in enumerate(replies)}
        first = replies[0].lists
        is_complete = all(barrier in first.get(key, ()) for key, barrier in barriers.items())
        if is_complete and all(reply.lists == first for reply in replies):
            return finals
        if time.monotonic() > deadline:
            return finals
        await asyncio.sleep(0.5)


def search_plain_text(cluster: Cluster) -> tuple[int, int]:
    """Return how many stored files hold an entry's content readably, and how many there are."""
    readable = count = 0
    for host in range(cluster.lab.hosts):
        for path in sorted(cluster.data(host).rglob("*")):
            if path.is_file():
                count += 1
                readable += _holds(path, PLAIN_TEXT)
    return readable, count


def _holds(path: Path, text: bytes) -> bool:
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if text in tail + chunk:
                return True
            tail = chunk[-len(text) :]
    return False


async def torture(cluster: Cluster, args: argparse.Namespace, seconds: float, seed: str) -> Round:
    """Let a group live, suffer and be judged."""
    try:
        return await _torture(cluster, args, seconds, seed)
    finally:
        cluster.end()


async def _torture(cluster: Cluster, args: argparse.Namespace, seconds: float, seed: str) -> Round:
    await cluster.found()
    supervisor = asyncio.create_task(cluster.supervise())
    load = Load(cluster, random.Random(f"load {seed}"), rate=args.rate, writers=args.writers)
    weights = {
        kind: weight
        for kind, weight in WEIGHTS[args.system].items()
        if not args.faults or kind in args.faults.split(",")
    }
    nemesis = Nemesis(cluster, random.Random(f"nemesis {seed}"), weights)
    clients = asyncio.create_task(load.run(readers=8))
    await nemesis.run(seconds)
    await asyncio.sleep(1.0)
    load.is_stopping = True
    await clients
    began = time.monotonic()
    barriers = await settle(cluster, load)
    finals = await dumps(cluster, barriers)
    took = time.monotonic() - began
    supervisor.cancel()
    cluster.end()
    report = check(History(load.appends, load.reads, finals, barriers))
    # Without its barrier a key proves nothing but that the group did not come back.
    report.unsettled += (len(KEYS) - len(barriers)) * cluster.lab.hosts
    readable, files = search_plain_text(cluster)
    return Round(
        report=report,
        faults=dict(nemesis.done),
        crashes=cluster.crashes,
        disk_full_exits=cluster.disk_full_exits,
        starts=cluster.starts,
        plain_text_files=readable,
        stored_files=files,
        settle_seconds=round(took, 1),
    )


def rounds(args: argparse.Namespace, lab: Lab, show: Callable[[str], None]) -> list[Round]:
    """Run round after round for the time that is asked for."""
    deadline = time.monotonic() + args.minutes * 60
    done: list[Round] = []
    while True:
        left = deadline - time.monotonic()
        if done and left < args.round_seconds / 2:
            return done
        settings: dict[str, object] = {
            "entry_bytes": args.entry_bytes,
            "seed": args.seed,
            "machine": args.machine,
        }
        if args.system == "pysyncobj":
            settings["batching"] = True  # its default
            settings["snapshot_entries"] = 500
        cluster = Cluster(args.system, lab, settings)
        seconds = max(5.0, min(args.round_seconds, left))
        found = asyncio.run(torture(cluster, args, seconds, f"{args.seed} {len(done)}"))
        done.append(found)
        show(f"round {len(done)}: {msgspec.json.encode(found).decode()}")
        if args.until_lost and found.report.lost:
            return done


def summarise(args: argparse.Namespace, done: list[Round]) -> dict[str, object]:
    """Add up the rounds."""
    line: dict[str, object] = {"system": args.system, "seed": args.seed, "rounds": len(done)}
    if args.system == "ours":
        line["machine"] = args.machine
    names = [name for name in Report.__struct_fields__ if name != "examples"]
    line |= {name: sum(getattr(each.report, name) for each in done) for name in names}
    faults: Counter[str] = Counter()
    for each in done:
        faults.update(each.faults)
    return line | {
        "faults": dict(sorted(faults.items())),
        "crashes": sum(len(each.crashes) for each in done),
        "disk_full_exits": sum(each.disk_full_exits for each in done),
        "starts": sum(each.starts for each in done),
        "plain_text_files": sum(each.plain_text_files for each in done),
        "stored_files": sum(each.stored_files for each in done),
        "settle_seconds_max": max(each.settle_seconds for each in done),
        "examples": next((each.report.examples for each in done if each.report.examples), {}),
        "crash_examples": [text for each in done for text in each.crashes][:2],
    }


def exit_code(line: dict[str, object]) -> int:
    """Return the verdict as an exit code."""
    promises = [name for name in Report.__struct_fields__[4:-1] if name != "unsettled"]
    if any(line[name] for name in promises):
        return 1
    return 3 if line["unsettled"] or line["crashes"] else 0


def main() -> int:
    """Run all and print the line."""
    args = parse()
    enter()
    # Process 1 of its namespace, which this is, is deaf to signals that it does not ask for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def show(text: str) -> None:
        if args.verbose:
            print(text, file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        if args.keep:
            folder = Path(args.keep).resolve()
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        disk_mib = 256 if args.system == "ours" else 2_048
        lab = Lab(folder, args.members, disk_mib=disk_mib)
        if not args.keep:
            stack.callback(lab.close)
        done = rounds(args, lab, show)
    line = summarise(args, done)
    print(json.dumps(line))
    return exit_code(line)


if __name__ == "__main__":
    sys.exit(main())
