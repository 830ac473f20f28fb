"""The one form of a benchmark's outcome: what was measured, beside what, against which target, on which machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idiolect.errors import InvalidInputError
from idiolect_services.bench.targets import Target, target_of


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure, with its spread (`low`, `high`), and what the peer reached in the same run.

    `ratio` is value / peer_value unless the benchmark has a better estimate, such as the median over paired windows.
    """

    metric: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that this machine can't give, and why: there is no row for it."""

    metric: str
    why: str


@dataclass(frozen=True, slots=True)
class Result:
    """The fields of the JSON form, in its order. Anything that is not a finite number is None."""

    metric: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    peer: str | None
    peer_value: float | None
    ratio: float | None
    target: float | None
    met: bool | None  # None: there is no target


@dataclass(frozen=True, slots=True)
class Report:
    benchmark: str
    commit: str | None
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    results: tuple[Result, ...]
    missing: tuple[Missing, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def results_for(benchmark: str, measured: Iterable[Measured]) -> tuple[Result, ...]:
    return tuple(judged(one, target_of(benchmark, one.metric)) for one in measured)


def judged(measured: Measured, target: Target | None) -> Result:
    """A target on something that could not be measured is missed."""
    ratio = measured.ratio
    if ratio is None and measured.peer_value:
        ratio = measured.value / measured.peer_value
    value, ratio = _finite(measured.value), _finite(ratio)
    met = None if target is None else target.met_by(value, ratio)
    return Result(
        metric=measured.metric,
        unit=measured.unit,
        value=value,
        low=_finite(measured.low),
        high=_finite(measured.high),
        peer=measured.peer,
        peer_value=_finite(measured.peer_value),
        ratio=ratio,
        target=None if target is None else target.bound,
        met=met,
    )


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)


def check_writable(path: Path) -> None:
    """Raises InvalidInputError: better before a benchmark of many minutes than after it."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInputError(f"{path} can't be written as a file.", mend="Name a file in a folder that exists.")


def write_report(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
