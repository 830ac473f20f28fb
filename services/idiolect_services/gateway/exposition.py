"""Prometheus' text format, version 0.0.4. Only what is needed here: counters, gauges and histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name: by their labels, each set of which comes once."""

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    samples: Mapping[Labels, float]

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.kind, self.about)
        for labels, value in self.samples.items():
            yield f"{self.name}{_labelled(labels)} {_number(value)}"


@dataclass(slots=True)
class Buckets:
    """Counts of what was at most `bounds[i]` and over the one before; the last is over all of them."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class Histogram:
    name: str
    about: str
    samples: Mapping[Labels, Buckets]

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, "histogram", self.about)
        for labels, buckets in self.samples.items():
            seen = 0
            for bound, count in zip([*map(_number, buckets.bounds), "+Inf"], buckets.counts, strict=True):
                seen += count
                yield f"{self.name}_bucket{_labelled((*labels, ('le', bound)))} {seen}"
            yield f"{self.name}_sum{_labelled(labels)} {_number(buckets.total)}"
            yield f"{self.name}_count{_labelled(labels)} {seen}"


def exposition(families: Sequence[Family | Histogram]) -> bytes:
    return "".join(f"{line}\n" for family in families for line in family.lines()).encode()


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _labelled(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
