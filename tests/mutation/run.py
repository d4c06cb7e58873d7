"""Tests the tests of `raft.core`: `run.py [--sample N] [--jobs N] [--only TEXT] [--survivors]`.

Each mutant (`mutate`) meets a few seeds of the simulator, the unit tests of the core, and then more
seeds. One that passes all is a survivor: printed, and a fault of the tests unless `equivalent.toml`
says why it means the same as the original. What was found is kept in `--results`, so that a run
that was interrupted goes on where it was; a mutant whose module or whose tests changed is tried
again.

The exit code is 1 if a survivor without a reason is left, or a reason without a mutant.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

import msgspec
import pytest
from mutate import Mutant, mutants_of, source_of

ROOT = Path(__file__).parents[2]
CORE = ROOT / "raft" / "core"
TESTS = (
    "tests/unit/raft_core",
    "tests/property/test_raft_core_log.py",
    "tests/property/test_raft_core_quorum.py",
    "tests/golden/raft",
)
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
# A mutant may run for ever, or ask for all memory.
CPU_SECONDS_MAX = 60
WALL_SECONDS_MAX = 600.0
MEMORY_BYTES_MAX = 4 << 30
# So many seeds come before the unit tests.
SEEDS_FIRST = 20
SURVIVED = "survived"


class Verdict(msgspec.Struct, frozen=True):
    """What became of a mutant.

    Attributes:
        key: the mutant's.
        basis: a hash of the module and of all that tested it.
        fate: `SURVIVED`, or what found it.
    """

    key: str
    basis: str
    fate: str


class _Loader(InspectLoader):
    def __init__(self, path: Path, source: str) -> None:
        self._path, self._source = path, source

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 -- the protocol's
        return self._source

    def get_code(self, fullname: str):  # noqa: ARG002 -- the protocol's
        return compile(self._source, str(self._path), "exec")


class _Finder(MetaPathFinder):
    """Gives the mutant for the module that it is a mutant of."""

    def __init__(self, path: Path, source: str) -> None:
        self._name = f"raft.core.{path.stem}"
        self._loader = _Loader(path, source)

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self._loader)


def fate_of(path: Path, source: str, seeds: int) -> str:
    """Run the tests against a mutant in this process, which is lost to anything else after it."""
    sys.meta_path.insert(0, _Finder(path, source))
    from raft.sim.run import run_seed  # noqa: PLC0415 -- with the mutant in place

    # Most mutants do not live long there: less time than the tests take to be loaded.
    for seed in range(min(SEEDS_FIRST, seeds)):
        outcome = run_seed(seed)
        if outcome.failure:
            return f"seed {seed}: {outcome.failure[:80]}"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # Each mutant meets the same examples, and none learns from what another failed on.
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.gettempdir() + f"/mutant-{os.getpid()}"
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *TESTS])
    if code != pytest.ExitCode.OK:
        return f"unit tests: {code!s}"
    for seed in range(min(SEEDS_FIRST, seeds), seeds):
        outcome = run_seed(seed)
        if outcome.failure:
            return f"seed {seed}: {outcome.failure[:80]}"
    return SURVIVED


def _child(path: Path, source: str, seeds: int, answer) -> None:
    os.setpgid(0, 0)
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    try:
        fate = fate_of(path, source, seeds)
    except BaseException as error:  # noqa: BLE001 -- whatever a mutant raises has found it
        fate = f"simulator: {type(error).__name__}"
    answer.send(fate)
    answer.close()


class Trial:
    """One mutant in a process of its own."""

    def __init__(self, path: Path, mutant: Mutant, seeds: int) -> None:
        self.mutant, self.path = mutant, path
        self.receiver, sender = multiprocessing.Pipe(duplex=False)
        source = source_of(path.read_text(), mutant.number)
        self.process = multiprocessing.Process(target=_child, args=(path, source, seeds, sender))
        self.process.start()
        sender.close()
        self.until = time.monotonic() + WALL_SECONDS_MAX

    def fate(self) -> str | None:
        """Return what became of it, or None as long as it runs."""
        if self.receiver.poll():
            try:
                fate = self.receiver.recv()
            except EOFError:
                fate = "ended without an answer, or ran for too long"
        elif time.monotonic() > self.until:
            fate = "ran for too long"
        else:
            return None
        self.end()
        return fate

    def end(self) -> None:
        """End the process and whatever it started."""
        if self.process.is_alive() and self.process.pid is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()
        self.process.join()
        self.receiver.close()


def basis_of(path: Path, seeds: int) -> str:
    """Hash a module, and what tests it."""
    digest = hashlib.sha256(path.read_bytes())
    for pattern in TESTS:
        place = ROOT / pattern
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    for file in sorted((ROOT / "raft" / "sim").glob("*.py")):
        digest.update(file.read_bytes())
    digest.update(str(seeds).encode())
    return digest.hexdigest()[:16]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=0, help="so many, drawn by --seed; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", type=int, default=200, help="of the simulator, for each mutant")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--survivors", action="store_true", help="only those that once survived")
    parser.add_argument("--results", type=Path, default=ROOT / ".mutants.jsonl")
    return parser.parse_args()


def remembered(path: Path) -> dict[str, Verdict]:
    """Read the newest verdict on each mutant."""
    if not path.exists():
        return {}
    lines = path.read_bytes().splitlines()
    verdicts = [msgspec.json.decode(line, type=Verdict) for line in lines]
    return {verdict.key: verdict for verdict in verdicts}


def chosen(options: argparse.Namespace, known: dict[str, Verdict]) -> list[tuple[Path, Mutant]]:
    """Return the mutants that are asked for, with the module of each."""
    every = [
        (path, mutant)
        for path in sorted(CORE.glob("*.py"))
        for mutant in mutants_of(path.read_text(), path.stem)
        if options.only in mutant.key
    ]
    if options.survivors:
        every = [
            each for each in every if each[1].key in known and known[each[1].key].fate == SURVIVED
        ]
    if options.sample and options.sample < len(every):
        every = random.Random(options.seed).sample(every, options.sample)
    return every


def tried(
    waiting: list[tuple[Path, Mutant]], options: argparse.Namespace
) -> Iterator[tuple[Path, Mutant, str]]:
    """Try mutants, a few at once, and yield the fate of each when it is known."""
    queue = list(reversed(waiting))
    running: list[Trial] = []
    try:
        while queue or running:
            while queue and len(running) < options.jobs:
                running.append(Trial(*queue.pop(), options.seeds))
            time.sleep(0.02)
            for trial in list(running):
                fate = trial.fate()
                if fate is not None:
                    running.remove(trial)
                    yield trial.path, trial.mutant, fate
    finally:
        for trial in running:
            trial.end()


def main() -> int:
    """Try the mutants, and print what survived without a reason."""
    options = parse()
    os.chdir(ROOT)
    multiprocessing.set_start_method("fork")
    known = remembered(options.results)
    mutants = chosen(options, known)
    bases = {path: basis_of(path, options.seeds) for path in {path for path, _ in mutants}}
    fates: dict[str, str] = {}
    waiting = []
    for path, mutant in mutants:
        verdict = known.get(mutant.key)
        if verdict is not None and verdict.basis == bases[path]:
            fates[mutant.key] = verdict.fate
        else:
            waiting.append((path, mutant))
    with options.results.open("ab") as results:
        for path, mutant, fate in tried(waiting, options):
            fates[mutant.key] = fate
            verdict = Verdict(mutant.key, bases[path], fate)
            results.write(msgspec.json.encode(verdict) + b"\n")
            results.flush()
            if fate == SURVIVED:
                print(f"survived: {path.stem}.py:{mutant.line}: {mutant.key}", flush=True)
    return report(
        mutants, fates, is_whole=not (options.sample or options.only or options.survivors)
    )


def report(mutants: list[tuple[Path, Mutant]], fates: dict[str, str], *, is_whole: bool) -> int:
    """Print the survivors without a reason and a line of totals; return the exit code."""
    reasons = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    survivors = [mutant for _, mutant in mutants if fates[mutant.key] == SURVIVED]
    unexplained = [mutant for mutant in survivors if mutant.key not in reasons]
    keys = {mutant.key for _, mutant in mutants}
    stale = [key for key in reasons if is_whole and (key not in keys or fates[key] != SURVIVED)]
    for mutant in unexplained:
        print(f"line {mutant.line}: {mutant.key}")
    for key in stale:
        print(f"no such survivor any more, remove its reason: {key}")
    print(
        f"{len(mutants)} mutants, {len(mutants) - len(survivors)} found, "
        f"{len(survivors) - len(unexplained)} equivalent, {len(unexplained)} unexplained"
    )
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
