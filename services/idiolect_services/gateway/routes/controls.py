"""What a person controls, under /v1/users/{user}: consent, reset, explanation."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.consent import ConsentChange, SubjectState
from idiolect.errors import (
    ConflictError,
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from idiolect.ids import new_id
from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.privacy.events import UNITS
from idiolect.privacy.ledger import Account
from idiolect.privacy.policy import budget_of
from idiolect.registry.resolution import ResolvedVersion
from idiolect.resets.plan import plan_reset
from idiolect.resets.receipt import ResetRecord, signed_receipt
from idiolect.tenancy import Scope
from idiolect_adapters.runtime.bank import Owner
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.controls import (
    ConsentRequest,
    ConsentState,
    Explanation,
    ResetReceipt,
    ResetRequest,
)

_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ETAG = re.compile(r'"(\d{1,18})"')

IF_MATCH = ("If-Match", "The ETag that the change is based on; 412 if the state has moved. Optional.")
IDEMPOTENCY_KEY = ("Idempotency-Key", "Becomes the reset's id: sent again, it answers the same receipt. Optional.")


class ControlRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["controls"], prefix="/v1/users/{user}")
        consent = documented.route(Scope.CONTROLS, ConsentState)
        change = documented.route(
            Scope.CONTROLS, ConsentState, body=ConsentRequest, problems=(412,), headers=(IF_MATCH,)
        )
        reset = documented.route(
            Scope.CONTROLS, ResetReceipt, body=ResetRequest, problems=(409,), headers=(IDEMPOTENCY_KEY,)
        )
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
        return router

    async def _person(self, request: Request, user: str) -> tuple[str, str]:
        """(tenant, subject) that the request is about, after the caller was authorised."""
        caller = await self._gateway.authorise(request, Scope.CONTROLS)
        return caller.tenant, self._services.pseudonym(caller.tenant, decoded(user))

    async def consent(self, request: Request, user: str) -> Response:
        tenant, subject = await self._person(request, user)
        return _state_response(await self._gateway.lanes.control.run(self._store.subject, tenant, subject))

    async def change_consent(self, request: Request, user: str) -> Response:
        tenant, subject = await self._person(request, user)
        body = await read_object(request, self._services.settings.max_body_bytes)
        wanted = validated(ConsentRequest, body)
        change = ConsentChange(wanted.opted_in, wanted.paused, wanted.strength)
        expected = request.headers.get("if-match")
        state = await self._gateway.lanes.control.run(self._change, tenant, subject, change, expected)
        if not state.opted_in:
            self._gateway.forget(tenant, subject, state.generation)
        return _state_response(state)

    def _change(self, tenant: str, subject: str, change: ConsentChange, expected: str | None) -> SubjectState:
        revision = None if expected is None else _expected_revision(expected, self._store.subject(tenant, subject))
        return self._store.change_subject(tenant, subject, change, self._services.clock.now(), if_revision=revision)

    async def reset(self, request: Request, user: str) -> Response:
        tenant, subject = await self._person(request, user)
        wanted = validated(ResetRequest, await read_object(request, self._services.settings.max_body_bytes))
        reset_id = _reset_id(request.headers.get("idempotency-key"))
        plan = plan_reset(wanted.scope)
        now = self._services.clock.now()
        record = await self._gateway.lanes.control.run(self._store.apply_reset, tenant, subject, reset_id, plan, now)
        # No await from here on: whatever leaves after this answer has passed the gate with the new generation.
        if (record.subject, record.scope) != (subject, wanted.scope):
            raise ConflictError(
                "this Idempotency-Key was used for another reset.",
                mend="Send a new key.",
                code="idempotency_key_reused",
            )
        self._gateway.forget(tenant, subject, record.generation)
        return self._signed(record)

    async def receipt(self, request: Request, user: str, reset_id: str) -> Response:
        tenant, subject = await self._person(request, user)
        record = await self._gateway.lanes.control.run(self._store.reset, tenant, decoded(reset_id))
        if record is None or record.subject != subject:
            raise NotFoundError("no such reset.")
        return self._signed(record)

    def _signed(self, record: ResetRecord) -> Response:
        return _json(signed_receipt(record, self._services.signer))

    async def explanation(self, request: Request, user: str) -> Response:
        tenant, subject = await self._person(request, user)
        return _json(await self._gateway.lanes.control.run(self._explain, tenant, subject))

    def _explain(self, tenant: str, subject: str) -> dict[str, Any]:
        settings = self._services.settings
        resolution = self._store.resolve(tenant, subject, None)
        state = resolution.state or SubjectState(subject)
        now = self._services.clock.now()
        budgets = [budget_of(settings, unit) for unit in UNITS]
        accounts = [self._store.account(tenant, b.unit, subject, since=b.since(now)) for b in budgets]
        return {
            "state": _state_json(state),
            "adapter": None if resolution.user is None else self._explain_adapter(tenant, subject, resolution.user),
            "spent": [_spent(account, budget.epsilon) for account, budget in zip(accounts, budgets, strict=True)],
        }

    def _explain_adapter(self, tenant: str, subject: str, version: ResolvedVersion) -> dict[str, Any] | None:
        stored = self._store.version(tenant, version.id)
        if stored is None:
            return None
        try:
            weights = self._services.scorer.bank.weights(Owner(tenant, "user", subject), version)
            norm = float(np.sqrt((weights * weights).sum()))
        except (CorruptArtifactError, NotFoundError):
            norm = None
        return {
            "version": version.id,
            "release": version.release,
            "created_at": stored.template.created_at,
            "norm": norm,
            "privacy": stored.template.privacy.to_json(),
        }


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


def _reset_id(key: str | None) -> str:
    if key is None:
        return new_id()
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInputError(
            "the Idempotency-Key is not usable.", mend="Send 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-'."
        )
    return key


def _spent(account: Account, budget_epsilon: float) -> dict[str, Any]:
    return {
        "unit": account.unit,
        "runs": account.runs,
        "rho": account.spent_rho,
        "epsilon": filter_epsilon(account.spent_rho, DEFAULT_DELTA),
        "delta": DEFAULT_DELTA,
        "budget_epsilon": budget_epsilon,
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
    }


def _state_response(state: SubjectState) -> Response:
    return _json(_state_json(state), {"ETag": f'"{state.revision}"'})


def _json(body: dict[str, Any] | None, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(body), headers=headers, media_type="application/json")
