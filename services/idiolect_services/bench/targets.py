"""What each benchmark is meant to reach: targets.toml, by benchmark and metric."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal

FILE = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on the value of every metric that matches `pattern`, or on its ratio to the peer."""

    pattern: str
    bound: float
    side: Literal["at_least", "at_most"]
    of: Literal["value", "ratio"]

    def met_by(self, value: float | None, ratio: float | None) -> bool:
        reached = value if self.of == "value" else ratio
        if reached is None:
            return False
        return reached >= self.bound if self.side == "at_least" else reached <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.side == 'at_least' else '≤'} {self.bound:g}{' x peer' if self.of == 'ratio' else ''}"


@cache
def all_targets() -> dict[str, tuple[Target, ...]]:
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        benchmark: tuple(_target(pattern, row) for pattern, row in rows.items()) for benchmark, rows in tables.items()
    }


def target_of(benchmark: str, metric: str) -> Target | None:
    """At most one pattern matches a metric; tests hold the file to that."""
    matching = (target for target in all_targets().get(benchmark, ()) if fnmatchcase(metric, target.pattern))
    return next(matching, None)


def _target(pattern: str, row: dict[str, float | str]) -> Target:
    of: Literal["value", "ratio"] = "ratio" if row.get("of") == "ratio" else "value"
    side: Literal["at_least", "at_most"] = "at_least" if "at_least" in row else "at_most"
    return Target(pattern, float(row[side]), side, of)
