"""Runs seeds in a process of their own, and says as one line of JSON each how they ended.

    python simulate.py FIRST LAST [--step N] [--bug NAME | --bugs FIRST/STEP]

With a bug planted it stops at the first seed that finds it; `--bugs 0/2` plants every second one in turn. Tests start
it with PYTHONHASHSEED=0: the order of a set of names is a matter of chance like any other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "serving"))

from planted_bugs import PLANTED

from simulation import run, scene


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--bug", choices=sorted(PLANTED))
    parser.add_argument("--bugs")
    chosen = parser.parse_args()
    bugs = [chosen.bug]
    if chosen.bugs is not None:
        start, step = map(int, chosen.bugs.split("/"))
        bugs = sorted(PLANTED)[start::step]
    with scene() as made:
        for bug in bugs:
            for seed in range(chosen.first, chosen.last, chosen.step):
                plant, breaks = (nullcontext, None) if bug is None else PLANTED[bug]
                with plant():
                    outcome = run(made, seed)
                told = asdict(outcome) | {"bug": bug, "breaks": breaks, "digest": _digest(outcome.trace)}
                if outcome.violation is None and chosen.last - chosen.first > 1:
                    told["trace"] = []  # of a thousand good runs nobody reads them
                print(json.dumps(told), flush=True)
                if bug is not None and outcome.violation is not None:
                    break


def _digest(trace: list[str]) -> str:
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()


if __name__ == "__main__":
    main()
