"""What a person controls, under /v1/users/{user}: consent, reset, erasure, explanation."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.consent import MAX_DOMAINS, ConsentChange, SubjectState, signed_consent
from idiolect.errors import (
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from idiolect.ids import new_id
from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.budget import Budget
from idiolect.privacy.events import UNITS
from idiolect.privacy.ledger import Account
from idiolect.privacy.policy import budget_of
from idiolect.registry.resolution import ResolvedVersion
from idiolect.resets.plan import ResetPlan, plan_erasure, plan_reset
from idiolect.resets.purges import Progress, progress_of
from idiolect.resets.receipt import ResetRecord, signed_receipt
from idiolect.tenancy import Caller, Scope
from idiolect_adapters.runtime.bank import Owner
from idiolect_services.directions import Directions
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.headers import if_match
from idiolect_services.gateway.idempotency import Idempotency
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.controls import (
    ConsentReceipt,
    ConsentRequest,
    ConsentState,
    Explanation,
    ResetReceipt,
    ResetRequest,
)
from idiolect_services.looks import STORE_TROUBLE
from idiolect_services.scorer import Scorer
from idiolect_services.spent import delta_for_person

_ETAG = re.compile(r'"(\d{1,18})"')

IF_MATCH = ("If-Match", "The ETag that the change is based on; 412 if the state has moved. Optional.")
IDEMPOTENCY_KEY = (
    "Idempotency-Key",
    "Becomes the reset's id: sent again, it answers the same receipt; with another body, 422. Optional.",
)


class ControlRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store
        self._idempotency = Idempotency(gateway)

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["controls"], prefix="/v1/users/{user}")
        consent = documented.route(Scope.CONTROLS, ConsentState)
        change = documented.route(
            Scope.CONTROLS, ConsentState, body=ConsentRequest, problems=(409, 412), headers=(IF_MATCH,)
        )
        reset = documented.route(
            Scope.CONTROLS, ResetReceipt, body=ResetRequest, problems=(409,), headers=(IDEMPOTENCY_KEY,)
        )
        router.add_api_route("", self.erase, methods=["DELETE"], **documented.route(Scope.CONTROLS, ResetReceipt))
        router.add_api_route("/personalization", self.consent, methods=["GET"], **consent)
        router.add_api_route("/personalization", self.change_consent, methods=["PUT"], **change)
        router.add_api_route("/personalization/reset", self.reset, methods=["POST"], **reset)
        router.add_api_route(
            "/personalization/resets/{reset_id}",
            self.receipt,
            methods=["GET"],
            **documented.route(Scope.CONTROLS, ResetReceipt),
        )
        router.add_api_route(
            "/explanation", self.explanation, methods=["GET"], **documented.route(Scope.CONTROLS, Explanation)
        )
        router.add_api_route(
            "/personalization/receipt",
            self.consent_receipt,
            methods=["GET"],
            **documented.route(Scope.CONTROLS, ConsentReceipt),
        )
        return router

    async def _person(self, request: Request, user: str) -> tuple[str, str]:
        """(tenant, subject) that the request is about, after the caller was authorised."""
        caller, subject = await person_of(self._gateway, request, user)
        return caller.tenant, subject

    async def consent(self, request: Request, user: str) -> Response:
        tenant, subject = await self._person(request, user)
        return _state_response(await self._gateway.lanes.control.run(self._store.subject, tenant, subject))

    async def change_consent(self, request: Request, user: str) -> Response:
        caller, subject = await person_of(self._gateway, request, user)
        body = await read_object(request, self._services.settings.max_body_bytes)
        change = validated(ConsentRequest, body, domains=MAX_DOMAINS).change()
        expected = if_match(request)
        state = await self._gateway.lanes.control.run(self._change, caller, subject, change, expected)
        if change.refuses or not state.opted_in:
            await self._gateway.forget_everywhere(caller.tenant, subject, state.generation)
        return _state_response(state)

    def _change(self, caller: Caller, subject: str, change: ConsentChange, expected: str | None) -> SubjectState:
        tenant, now = caller.tenant, self._services.clock.now()
        revision = None if expected is None else _expected_revision(expected, self._store.subject(tenant, subject))
        return self._store.change_subject(tenant, subject, change, now, if_revision=revision, actor=caller.actor)

    async def consent_receipt(self, request: Request, user: str) -> Response:
        """Of the settings as they are: the same bytes until they change."""
        tenant, subject = await self._person(request, user)
        state = await self._gateway.lanes.control.run(self._store.subject, tenant, subject)
        if not state.known:
            raise NotFoundError("nothing was agreed to or refused.")
        return _json(signed_consent(tenant, state, self._services.signer))

    async def reset(self, request: Request, user: str) -> Response:
        caller, subject = await person_of(self._gateway, request, user)
        body = await read_object(request, self._services.settings.max_body_bytes)
        wanted = validated(ResetRequest, body)
        plan = plan_reset(wanted.scope, wanted.domain)
        # Its answer is not kept: the record is, under an id of the key, and its purges go on meanwhile. Nor is it
        # refused while the same one is under way: doing it twice is harmless, and waiting for it might not be.
        claim = self._idempotency.claim(request, caller, body)
        held = await self._idempotency.hold(self._gateway.lanes.control, claim)
        return await self._carry_out(caller, subject, new_id() if held is None else held.id_of(0), plan)

    async def erase(self, request: Request, user: str) -> Response:
        """Idempotent by itself: of someone who is erased already the receipt is the first one."""
        caller, subject = await person_of(self._gateway, request, user)
        return await self._carry_out(caller, subject, new_id(), plan_erasure())

    async def _carry_out(self, caller: Caller, subject: str, reset_id: str, plan: ResetPlan) -> Response:
        tenant, now = caller.tenant, self._services.clock.now()
        record = await self._gateway.lanes.control.run(
            self._store.apply_reset, tenant, subject, reset_id, plan, now, actor=caller.actor
        )
        await self._gateway.forget_everywhere(tenant, subject, record.generation)
        return await self._signed(record, purged=self._services.purges.replica)

    async def receipt(self, request: Request, user: str, reset_id: str) -> Response:
        tenant, subject = await self._person(request, user)
        record = await self._gateway.lanes.control.run(self._store.reset, tenant, decoded(reset_id))
        if record is None or record.subject != subject:
            raise NotFoundError("no such reset.")
        if not self._store.embedded:
            await (
                self._gateway.fence.wait_for_others()
            )  # it may have been committed only now, and not have answered yet
        return await self._signed(record)

    async def _signed(self, record: ResetRecord, purged: str | None = None) -> Response:
        return _json(await self._gateway.lanes.control.run(self._receipt, record, purged))

    def _receipt(self, record: ResetRecord, purged: str | None) -> dict[str, Any]:
        progress, left = self._progress(record, purged), self._blobs_left(record)
        return signed_receipt(record, self._services.signer, progress, blobs_left=left)

    def _blobs_left(self, record: ResetRecord) -> bool:
        """What can't be asked is not said to be done."""
        if not record.erased.get("blobs"):
            return False
        try:
            return self._store.blobs_left(record.completed_at)
        except STORE_TROUBLE:
            return True

    def _progress(self, record: ResetRecord, purged: str | None) -> Progress | None:
        """In the caches of all processes; `purged` names one that is done, whether it said so already or not. None if
        the store can't be asked: the reset holds all the same."""
        try:
            replicas = self._store.replicas(self._services.clock.now())
            return progress_of(record.purge_sequence, self._store.purge_head(), replicas, purged)
        except STORE_TROUBLE:
            return None

    async def explanation(self, request: Request, user: str) -> Response:
        tenant, subject = await self._person(request, user)
        return _json(await self._gateway.lanes.loading.run(self._explain, tenant, subject))

    def _explain(self, tenant: str, subject: str) -> dict[str, Any]:
        settings = self._services.settings
        found = self._store.resolve(tenant, subject, None)
        scorer, resolution = self._services.live.models.serving(found)
        state = resolution.state or SubjectState(subject)
        now = self._services.clock.now()
        deltas = [delta_for_person(self._store, settings, tenant, unit, subject) for unit in UNITS]
        budgets = [budget_of(settings, unit, delta) for unit, delta in zip(UNITS, deltas, strict=True)]
        accounts = [self._store.account(tenant, b.unit, subject, since=b.since(now)) for b in budgets]
        return {
            "state": _state_json(state),
            "adapter": None
            if resolution.user is None
            else self._explain_adapter(tenant, subject, resolution.user, scorer),
            "spent": [_spent(account, budget) for account, budget in zip(accounts, budgets, strict=True)],
        }

    def _explain_adapter(
        self, tenant: str, subject: str, version: ResolvedVersion, scorer: Scorer
    ) -> dict[str, Any] | None:
        stored = self._store.version(tenant, version.id)
        if stored is None:
            return None
        try:
            weights = scorer.bank.weights(Owner(tenant, "user", subject), version)
            norm = float(np.sqrt((weights * weights).sum()))
            directions = Directions.of(scorer.model).of_person(weights, stored.template)
        except (CorruptArtifactError, NotFoundError):
            norm, directions = None, []
        return {
            "version": version.id,
            "release": version.release,
            "created_at": stored.template.created_at,
            "norm": norm,
            "privacy": None if stored.template.privacy is None else stored.template.privacy.to_json(),
            "carried_from": None if stored.template.carried is None else stored.template.carried.release,
            "directions": directions,
        }


async def person_of(gateway: Gateway, request: Request, user: str) -> tuple[Caller, str]:
    """Who asks, and the subject that the path names. Raises as `authorise_anyone`, and NotFoundError to an end user
    who names somebody else."""
    caller = await gateway.authorise_anyone(request, Scope.CONTROLS)
    subject = gateway.services.pseudonym(caller.tenant, decoded(user))
    caller.require_person(subject)
    return caller, subject


def decoded(segment: str) -> str:
    """A path segment as its sender meant it; the router sees it percent-encoded."""
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInputError("the address is not UTF-8.", mend="Percent-encode it as UTF-8.") from None


def _expected_revision(header: str, state: SubjectState) -> int:
    """The revision that `If-Match` allows. Raises PreconditionError where none of its tags is the current one.

    A weak tag (`W/"3"`) never matches (RFC 9110, 13.1.1); `*` matches any person who is known.
    """
    current = state.known if header.strip() == "*" else str(state.revision) in _strong_tags(header)
    if not current:
        raise PreconditionError(
            f"the state is at revision {state.revision}, not the one in If-Match.", mend="Read it again and decide."
        )
    return state.revision


def _strong_tags(header: str) -> set[str]:
    tags = (_ETAG.fullmatch(tag.strip()) for tag in header.split(","))
    return {tag[1] for tag in tags if tag is not None}


def _spent(account: Account, budget: Budget) -> dict[str, Any]:
    return {
        "unit": account.unit,
        "runs": account.runs,
        "rho": account.spent_rho,
        "epsilon": filter_epsilon(account.spent_rho, budget.delta),
        "delta": budget.delta,
        "budget_epsilon": budget.epsilon,
    }


def _state_json(state: SubjectState) -> dict[str, Any]:
    return {
        "known": state.known,
        "opted_in": state.opted_in,
        "paused": state.paused,
        "strength": state.strength,
        "generation": state.generation,
        "revision": state.revision,
        "policy_version": state.policy_version,
        "updated_at": state.updated_at,
        "domains": {one.domain: {"opted_in": one.opted_in, "strength": one.strength} for one in state.domains},
    }


def _state_response(state: SubjectState) -> Response:
    return _json(_state_json(state), {"ETag": f'"{state.revision}"'})


def _json(body: dict[str, Any] | None, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(body), headers=headers, media_type="application/json")
