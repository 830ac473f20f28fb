"""GET and PUT /v1/retention: for how many days a tenant's texts are kept."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import PreconditionError
from idiolect.retention import etag_of
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.headers import if_match
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.controls import IF_MATCH
from idiolect_services.gateway.schemas.retention import RetentionRequest, RetentionState


class RetentionRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["retention"])
        router.add_api_route(
            "/v1/retention", self.show, methods=["GET"], **documented.route(Scope.ADMIN, RetentionState)
        )
        described = documented.route(
            Scope.ADMIN, RetentionState, body=RetentionRequest, problems=(412,), headers=(IF_MATCH,)
        )
        router.add_api_route("/v1/retention", self.put, methods=["PUT"], **described)
        return router

    async def show(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        return self._state(await self._gateway.lanes.admin.run(self._store.retention, caller.tenant))

    async def put(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(RetentionRequest, await read_object(request, self._services.settings.max_body_bytes))
        expected = if_match(request)
        await self._gateway.lanes.admin.run(self._set, caller, wanted.days, expected)
        return self._state(wanted.days)

    def _set(self, caller: Caller, days: int | None, expected: str | None) -> None:
        tenant, now = caller.tenant, self._services.clock.now()
        tag = None if expected is None else _expected(expected, self._store.retention(tenant))
        self._store.set_retention(tenant, days, now, actor=caller.actor, if_match=tag)

    def _state(self, own: int | None) -> Response:
        body = {"days": own or self._services.settings.retention_days, "own_days": own}
        return Response(to_json(body), headers={"ETag": f'"{etag_of(own)}"'}, media_type="application/json")


def _expected(header: str, own: int | None) -> str:
    """The tag that `If-Match` allows. Raises PreconditionError where none is the current one."""
    current = etag_of(own)
    if header.strip() != "*" and f'"{current}"' not in {tag.strip() for tag in header.split(",")}:
        raise PreconditionError("the retention is not the one in If-Match.", mend="Read it again and decide.")
    return current
