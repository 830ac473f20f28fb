"""A ranking on its way to its answer: what was asked, what was scored, what is to be written down before it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from idiolect.stores.ports import RecordOutcome, ShownInference
from idiolect_adapters.runtime.features import Projector
from idiolect_services.scorer import ScoreRequest, ScoreResult


@dataclass(frozen=True, slots=True)
class Scored:
    result: ScoreResult
    began: datetime  # before the resolve
    model: Projector


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer that may leave once `shown`, if any, is recorded."""

    body: bytes
    shown: ShownInference | None = None


Render = Callable[[Scored], Draft]


@dataclass(frozen=True, slots=True)
class Call:
    """`seconds`: how long it may wait for the model, or for adapters. `patience`: how much of that in a queue."""

    request: Request
    ask: ScoreRequest
    render: Render
    seconds: float
    patience: float


@dataclass(slots=True)
class Ready:
    """`outcome`: None if it is not recorded yet, or there is nothing to record. `looked_at`: as `ScoreResult` has it,
    where recording looked at the person's generation once more."""

    scored: Scored
    draft: Draft
    outcome: RecordOutcome | None = None
    looked_at: float | None = None
