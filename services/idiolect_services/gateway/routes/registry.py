"""Adapters, releases and the privacy ledger."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.privacy.accountant import epsilon_of_run
from idiolect.privacy.ledger import LedgerRun
from idiolect.privacy.policy import delta_of_run
from idiolect.registry.manifest import manifest_bytes
from idiolect.registry.pointers import Adapter
from idiolect.stores.ports import StoredVersion
from idiolect.tenancy import Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.controls import decoded
from idiolect_services.gateway.schemas.registry import (
    AdapterDetail,
    AdapterPage,
    LedgerPage,
    ReleaseList,
    RevokeRequest,
    RevokeResponse,
)

Limit = Annotated[int, Query(ge=1, le=100, description="Most entries to return.")]
PageToken = Annotated[str | None, Query(max_length=200, description="`next_page_token` of the page before.")]
UserFilter = Annotated[str | None, Query(max_length=128, description="Only adapters of this person (your own id).")]

_PAGE_PREFIX = "v1:"


class RegistryRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["registry"])
        get: list[tuple[str, Any, Any, Scope]] = [
            ("/v1/adapters", self.adapters, AdapterPage, Scope.REGISTRY),
            ("/v1/adapters/{version_id}", self.adapter, AdapterDetail, Scope.REGISTRY),
            ("/v1/releases", self.releases, ReleaseList, Scope.REGISTRY),
            ("/v1/privacy/ledger", self.ledger, LedgerPage, Scope.ADMIN),
        ]
        for path, handler, response, scope in get:
            described = documented.route(scope, response)
            router.add_api_route(path, handler, methods=["GET"], **described)
        revoke = documented.route(Scope.ADMIN, RevokeResponse, body=RevokeRequest)
        router.add_api_route("/v1/releases/{release_id}/revoke", self.revoke, methods=["POST"], **revoke)
        return router

    async def adapters(
        self, request: Request, limit: Limit = 50, page_token: PageToken = None, user: UserFilter = None
    ) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        subject = None if user is None else self._services.pseudonym(caller.tenant, user)
        after = after_token(page_token)
        # One more than asked for tells whether there is a next page.
        found = await self._gateway.lanes.admin.run(
            self._store.versions, caller.tenant, subject=subject, after=after, limit=limit + 1
        )
        page = found[:limit]
        more = token_after(page[-1].version.id) if len(found) > limit else None
        return _json({"adapters": [summary_of(stored) for stored in page], "next_page_token": more})

    async def adapter(self, request: Request, version_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        stored = await self._gateway.lanes.admin.run(self._store.version, caller.tenant, decoded(version_id))
        if stored is None:
            raise NotFoundError("no such adapter version.")
        return _json(
            {
                "id": stored.version.id,
                "revoked": stored.revoked,
                "withheld": stored.withheld,
                "manifest": json.loads(manifest_bytes(stored.template, stored.version)),
                "key_id": stored.version.key_id,
                "signature": stored.version.signature.hex(),
            }
        )

    async def releases(self, request: Request, limit: Limit = 50) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        found = await self._gateway.lanes.admin.run(self._store.releases, caller.tenant, limit=limit)
        return _json({"releases": [asdict(release) for release in found]})

    async def revoke(self, request: Request, release_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(RevokeRequest, await read_object(request, self._services.settings.max_body_bytes))
        release, now = decoded(release_id), self._services.clock.now()
        await self._gateway.lanes.admin.run(
            self._store.revoke_release, caller.tenant, release, now, reason=wanted.reason, actor=caller.actor
        )
        return _json({"id": release, "revoked": True})

    async def ledger(self, request: Request, limit: Limit = 50) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        runs = await self._gateway.lanes.admin.run(self._ledger_runs, caller.tenant, limit)
        return _json({"runs": runs})

    def _ledger_runs(self, tenant: str, limit: int) -> list[dict[str, Any]]:
        settings = self._services.settings
        runs = self._store.runs(tenant, limit=limit)
        return [_ledger_entry(run, delta_of_run(settings, run)) for run in runs]


def token_after(version_id: str) -> str:
    return base64.urlsafe_b64encode((_PAGE_PREFIX + version_id).encode()).decode().rstrip("=")


def after_token(token: str | None) -> str:
    """The id that the page starts after. Raises InvalidInputError for a token that we did not make."""
    if token is None:
        return ""
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith(_PAGE_PREFIX) or not text.isprintable():
        raise InvalidInputError("the page_token is not one of ours.", mend="Start again without it.")
    return text.removeprefix(_PAGE_PREFIX)


def summary_of(stored: StoredVersion) -> dict[str, Any]:
    template, version = stored.template, stored.version
    return {
        "id": version.id,
        "adapter": Adapter.of(version.subject, version.domain).id,
        "release": version.release,
        "scope": template.scope,
        "subject": version.subject or None,
        "domain": version.domain or None,
        "generation": version.generation,
        "revoked": stored.revoked,
        "withheld": stored.withheld,
        "weights_sha256": version.weights_sha256,
        "created_at": template.created_at,
        "kind": template.kind,
        "epsilon": None if template.privacy is None else template.privacy.epsilon,
        "unit": None if template.privacy is None else template.privacy.unit,
    }


def _ledger_entry(run: LedgerRun, delta: float) -> dict[str, Any]:
    return {
        "id": run.id,
        "unit": run.unit,
        "purpose": run.purpose,
        "state": run.state,
        "accounts": run.accounts,
        "epsilon": epsilon_of_run(run.event, delta),
        "delta": delta,
        "rho": run.event.rho,
        "noise_multiplier": run.event.noise_multiplier,
        "steps": run.event.steps,
        "reserved_at": run.reserved_at,
        "settled_at": run.settled_at,
    }


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body), media_type="application/json")
