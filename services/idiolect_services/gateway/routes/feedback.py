"""POST /v1/feedback: one signal, or a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import (
    ConflictError,
    ConsentError,
    IdiolectError,
    InvalidInputError,
    NotFoundError,
    QuotaExceededError,
    UnavailableError,
)
from idiolect.ids import new_id
from idiolect.privacy.randomised_response import randomised_comparisons
from idiolect.signals.events import WEIGHTS, Signal, SignalKind, comparisons_from
from idiolect.stores.ports import FeedbackSignal
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.bodies import FieldsError, read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.idempotency import ABOUT_KEY, Done, Held, Idempotency
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.problems import refusal_of
from idiolect_services.gateway.schemas.feedback import (
    MAX_SIGNALS,
    BatchOutcome,
    SignalBatch,
    SignalOutcome,
    SignalRequest,
)
from idiolect_services.looks import STORE_TROUBLE

CLOCK_SKEW = timedelta(minutes=5)
PASSING = frozenset({UnavailableError.code, QuotaExceededError.code})  # sent again later, it may be taken


@dataclass(frozen=True, slots=True)
class Accepted:
    """A signal that has passed every check and may be stored."""

    subject: str
    signal: FeedbackSignal


class FeedbackRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._idempotency = Idempotency(gateway)

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["feedback"])
        described = documented.route(
            Scope.FEEDBACK,
            (SignalOutcome, BatchOutcome),
            body=(SignalRequest, SignalBatch),
            status=202,
            problems=(409,),
            headers=(ABOUT_KEY,),
        )
        router.add_api_route("/v1/feedback", self.feedback, methods=["POST"], **described)
        return router

    async def feedback(self, request: Request) -> Response:
        caller = await self._gateway.authorise_anyone(request, Scope.FEEDBACK)
        body = await read_object(request, self._services.settings.max_body_bytes)
        is_batch = "signals" in body
        signals = (
            validated(SignalBatch, body, signals=MAX_SIGNALS).signals if is_batch else [validated(SignalRequest, body)]
        )
        self._check_people(caller, signals)
        claim, lane = self._idempotency.claim(request, caller, body), self._gateway.lanes.serving

        async def store(held: Held | None) -> Done:
            named = _named(signals, held)
            if is_batch:
                outcomes = await lane.run(self._store_batch, caller.tenant, named)
            else:
                outcomes = [await lane.run(self._store_one, caller.tenant, named[0])]
            self._wake(caller.tenant, zip(named, outcomes, strict=True))
            lasts = all(outcome.get("code") not in PASSING for outcome in outcomes)
            return _accepted(_summary(outcomes) if is_batch else outcomes[0]), lasts

        return await self._idempotency.once(lane, claim, store)

    def _check_people(self, caller: Caller, signals: Sequence[SignalRequest]) -> None:
        """Raises NotFoundError if an end user speaks for somebody else, before anything is stored."""
        for user in {signal.user for signal in signals} if caller.subject is not None else ():
            caller.require_person(self._services.pseudonym(caller.tenant, user))

    def _store_one(self, tenant: str, signal: SignalRequest) -> dict[str, Any]:
        return self._store(tenant, self._check(tenant, signal, prefix=""))

    def _store_batch(self, tenant: str, signals: Sequence[SignalRequest]) -> list[dict[str, Any]]:
        """Check everything, then change anything: a signal that can never be stored refuses the batch."""
        checked = [self._check(tenant, signal, prefix=f"signals.{index}.") for index, signal in enumerate(signals)]
        outcomes = []
        for accepted in checked:
            try:
                outcomes.append(self._store(tenant, accepted))
            except (ConflictError, ConsentError, NotFoundError, QuotaExceededError, *STORE_TROUBLE) as error:
                outcomes.append({"id": accepted.signal.id, "status": "refused", **refusal_of(error)})
        return outcomes

    def _store(self, tenant: str, accepted: Accepted) -> dict[str, Any]:
        now = self._services.clock.now()
        new = self._services.store.add_feedback(tenant, accepted.subject, accepted.signal, now)
        return {"id": accepted.signal.id, "status": "accepted" if new else "duplicate"}

    def _check(self, tenant: str, signal: SignalRequest, prefix: str) -> Accepted:
        """Raises FieldsError. An inference of another tenant or person is one that does not exist."""
        subject = self._services.pseudonym(tenant, signal.user)
        inference = self._services.store.inference(tenant, signal.inference_id)
        if inference is None or inference.subject not in (None, subject):
            raise _field_error(f"{prefix}inference_id", "no such inference of this person")
        if signal.domain not in (None, inference.domain):
            raise _field_error(f"{prefix}domain", "is not the domain of this inference")
        now = self._services.clock.now()
        occurred_at = signal.occurred_at or now
        if occurred_at > now + CLOCK_SKEW:
            raise _field_error(f"{prefix}occurred_at", "lies in the future")
        signal_id = signal.id or new_id()
        event = Signal(signal_id, inference, signal.kind, signal.value, occurred_at)
        try:
            comparisons = comparisons_from(event)
        except InvalidInputError as error:
            raise _field_error(f"{prefix}value", error.message) from error
        derived = FeedbackSignal(signal_id, inference, signal.kind, signal.value, occurred_at, comparisons)
        return Accepted(subject, self._randomised(derived, signal.kind))

    def _randomised(self, signal: FeedbackSignal, kind: SignalKind) -> FeedbackSignal:
        """The signal as the local option lets it be stored, without the value that was sent.

        A retry draws again in vain: the store keeps the first signal of an id, and what came of it.
        """
        epsilon = self._services.settings.local_epsilon
        if epsilon is None:
            return signal
        drawn = randomised_comparisons(signal.comparisons, signal.inference.shown, WEIGHTS[kind], epsilon)
        return replace(signal, value=None, comparisons=drawn)

    def _wake(self, tenant: str, stored: Iterable[tuple[SignalRequest, dict[str, Any]]]) -> None:
        users = {signal.user for signal, outcome in stored if outcome["status"] == "accepted"}
        for user in users:
            self._services.on_feedback(tenant, self._services.pseudonym(tenant, user))


def _named(signals: Sequence[SignalRequest], held: Held | None) -> list[SignalRequest]:
    """Each with an id: without one of its own it gets that of its place in a request that may be sent again."""
    if held is None:
        return list(signals)
    return [
        signal if signal.id else signal.model_copy(update={"id": held.id_of(index)})
        for index, signal in enumerate(signals)
    ]


def _field_error(field: str, text: str) -> IdiolectError:
    return FieldsError([{"field": field, "problem": text}], 1)


def _summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = {
        status: sum(outcome["status"] == status for outcome in outcomes)
        for status in ("accepted", "duplicate", "refused")
    }
    return {"results": outcomes, **counts}


def _accepted(body: dict[str, Any]) -> Response:
    return Response(to_json(body), 202, media_type="application/json")
