"""`python -m raft.sim --seeds N [--start S] [--bug NAME] [--trace LINES]`."""

from __future__ import annotations

import argparse
import gc
import sys
import time

from raft.sim.bugs import BUGS
from raft.sim.run import run_seed


def main() -> int:
    """Run seeds, print the failures with their traces, and a line of totals."""
    parser = argparse.ArgumentParser(prog="python -m raft.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--bug", choices=sorted(BUGS), default="", help="plant this one")
    parser.add_argument("--trace", type=int, default=60, help="lines of a failure's trace")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    options = parser.parse_args()
    gc.freeze()
    began = time.process_time()
    steps = failures = done = 0
    for seed in range(options.start, options.start + options.seeds):
        try:
            outcome = run_seed(seed, bug=options.bug)
        except Exception:
            _print(f"seed {seed}: the simulator itself failed")
            raise
        steps += outcome.steps
        done += 1
        if outcome.failure:
            failures += 1
            again = run_seed(seed, bug=options.bug, is_traced=True)
            _print(f"seed {seed} ({outcome.scenario}): {outcome.failure}")
            if again.failure != outcome.failure:
                _print(f"  NOT REPEATED: {again.failure or 'passed'}")
            for line in again.trace[-options.trace :] if options.trace else ():
                _print(f"  {line}")
            if failures >= options.failures:
                break
    spent = time.process_time() - began
    _print(
        f"{done} seeds, {failures} failed, {steps} steps, {steps / max(spent, 1e-9):.0f} steps/s"
    )
    return 1 if failures else 0


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
