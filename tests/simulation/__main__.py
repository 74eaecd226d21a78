"""Runs schedules, one for each of some seeds, and tells those in which a promise was broken."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.plan import draw
from tests.simulation.world import simulate


def main() -> int:
    """How many of the schedules broke a promise, as an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--log", action="store_true", help="tell everything that happens")
    asked = parser.parse_args()
    began, answered, broken = time.perf_counter(), 0, 0
    for seed in range(asked.first, asked.first + asked.seeds):
        outcome = simulate(draw(seed), log=asked.log)
        answered += outcome.answered
        broken += bool(outcome.violations)
        for line in outcome.log:
            print(line)
        for violation in outcome.violations:
            print(f"seed {seed}: {violation}", flush=True)
    took = time.perf_counter() - began
    print(f"{asked.seeds} schedules in {took:.1f} s, {answered} steps answered, a promise broken in {broken}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
