"""``make chaos``: many kills of one run, what they hit, what they cost, and whether its end is the same."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.harness import INTERVAL, chaos
from tests.small_run import build_faces


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, nargs=3, default=[600, 100, 500], help="of the three phases")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        shards = build_faces(Path(folder), photos=96, samples=16)
        outcome = chaos(
            str(shards),
            Path(folder),
            kills=arguments.kills,
            steps=tuple(arguments.steps),
            seed=arguments.seed,
            tell=lambda line: print(line, flush=True),
            is_fresh=True,
        )
    hit = Counter(kill.where.split()[0] for kill in outcome.kills)
    print(f"kills            {len(outcome.kills)}: " + ", ".join(f"{name} {count}" for name, count in hit.items()))
    print(f"lost steps       at most {outcome.most_lost}, {sum(k.lost for k in outcome.kills)} in all")
    print(f"bound            {INTERVAL} + 1 in hand")
    print(f"differing files  {outcome.differing or 'none: bitwise equal'}")
    print(f"samples          {outcome.samples} used, {outcome.scheduled} scheduled")
    print(f"time             {(time.monotonic() - start) / 60:.1f} min")
    is_good = not outcome.differing and outcome.samples == outcome.scheduled and outcome.most_lost <= INTERVAL + 1
    print("PASSED" if is_good else "FAILED")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
