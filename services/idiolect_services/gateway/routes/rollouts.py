"""Rollouts: reading needs the scope `registry`, changing anything `admin`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import PreconditionError
from idiolect.rollouts.verdicts import BY_HAND
from idiolect.tenancy import Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.controls import decoded
from idiolect_services.gateway.schemas.rollouts import (
    RolloutDetail,
    RolloutList,
    RolloutRequest,
    RolloutState,
    SteerRequest,
)
from idiolect_services.rollout_views import detail_of, state_of

Limit = Annotated[int, Query(ge=1, le=100, description="Most entries to return.")]

_ETAG = re.compile(r'"(\d{1,18})"')
_IF_MATCH = ("If-Match", "The ETag that the change is based on; 412 if the state has moved. Optional.")


class RolloutRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["rollouts"], prefix="/v1/rollouts")
        described = documented.route(Scope.REGISTRY, RolloutList)
        router.add_api_route("", self.list, methods=["GET"], **described)
        described = documented.route(Scope.ADMIN, RolloutState, body=RolloutRequest, status=201, problems=(409,))
        router.add_api_route("", self.create, methods=["POST"], **described)
        described = documented.route(Scope.REGISTRY, RolloutDetail)
        router.add_api_route("/{rollout_id}", self.show, methods=["GET"], **described)
        for action in BY_HAND:
            described = documented.route(
                Scope.ADMIN, RolloutState, body=SteerRequest, problems=(409, 412), headers=(_IF_MATCH,)
            )
            path = "/{rollout_id}/" + action
            router.add_api_route(path, self._steering(action), methods=["POST"], name=f"{action}_rollout", **described)
        return router

    async def list(self, request: Request, limit: Limit = 50) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        found = await self._gateway.lanes.control.run(self._store.rollouts, caller.tenant, limit=limit)
        return _json({"rollouts": [state_of(rollout) for rollout in found]})

    async def create(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(RolloutRequest, await read_object(request, self._services.settings.max_body_bytes))
        created = await self._gateway.lanes.control.run(
            self._store.create_rollout,
            caller.tenant,
            wanted.candidate.candidate(),
            wanted.plan(),
            self._services.clock.now(),
            reason=wanted.reason,
            actor=caller.actor,
            start=wanted.start,
        )
        return _json(state_of(created), 201, created.revision)

    async def show(self, request: Request, rollout_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        detail = await self._gateway.lanes.control.run(detail_of, self._store, caller.tenant, decoded(rollout_id))
        return _json(detail, revision=detail["revision"])

    def _steering(self, action: str) -> Callable[[Request, str], Awaitable[Response]]:
        async def steer(request: Request, rollout_id: str) -> Response:
            caller = await self._gateway.authorise(request, Scope.ADMIN)
            wanted = validated(SteerRequest, await read_object(request, self._services.settings.max_body_bytes))
            moved = await self._gateway.lanes.control.run(
                self._store.steer_rollout,
                caller.tenant,
                decoded(rollout_id),
                action,
                self._services.clock.now(),
                reason=wanted.reason,
                actor=caller.actor,
                if_revision=_expected(request),
            )
            return _json(state_of(moved), revision=moved.revision)

        return steer


def _expected(request: Request) -> int | None:
    sent = request.headers.get("if-match")
    if sent is None or sent.strip() == "*":
        return None
    found = _ETAG.fullmatch(sent.strip())
    if found is None:
        raise PreconditionError("If-Match is not an ETag of ours.", mend="Send the ETag of the rollout, in quotes.")
    return int(found[1])


def _json(body: dict[str, Any], status: int = 200, revision: int | None = None) -> Response:
    headers = {} if revision is None else {"ETag": f'"{revision}"'}
    return Response(to_json(body), status, headers, media_type="application/json")
