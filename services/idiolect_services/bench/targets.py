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

    def matches(self, metric: str) -> bool:
        return fnmatchcase(metric, self.pattern)

    def met_by(self, value: float | None, ratio: float | None) -> bool:
        reached = value if self.of == "value" else ratio
        if reached is None:
            return False
        return reached >= self.bound if self.side == "at_least" else reached <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.side == 'at_least' else '≤'} {self.bound:g}{' x peer' if self.of == 'ratio' else ''}"


def read_tables() -> dict[str, dict[str, dict[str, float | str]]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


@cache
def all_targets() -> dict[str, tuple[Target, ...]]:
    return {
        benchmark: tuple(_target(pattern, row) for pattern, row in rows.items())
        for benchmark, rows in read_tables().items()
    }


def target_of(benchmark: str, metric: str) -> Target | None:
    """At most one pattern matches a metric; tests hold the file to that."""
    return next((target for target in all_targets().get(benchmark, ()) if target.matches(metric)), None)


def _target(pattern: str, row: dict[str, float | str]) -> Target:
    of: Literal["value", "ratio"] = "ratio" if row.get("of") == "ratio" else "value"
    side: Literal["at_least", "at_most"] = "at_least" if "at_least" in row else "at_most"
    return Target(pattern, float(row[side]), side, of)
