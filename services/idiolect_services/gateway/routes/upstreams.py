"""GET, PUT and DELETE /v1/upstream: where a tenant's completions come from."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import NotFoundError
from idiolect.tenancy import Scope
from idiolect.upstreams import Upstream
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.chat import Removed, UpstreamRequest, UpstreamState
from idiolect_services.upstream_settings import new_upstream


class UpstreamRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["completions"])
        described = documented.route(Scope.ADMIN, UpstreamState)
        router.add_api_route("/v1/upstream", self.show, methods=["GET"], **described)
        described = documented.route(Scope.ADMIN, UpstreamState, body=UpstreamRequest)
        router.add_api_route("/v1/upstream", self.put, methods=["PUT"], **described)
        described = documented.route(Scope.ADMIN, Removed)
        router.add_api_route("/v1/upstream", self.remove, methods=["DELETE"], **described)
        return router

    async def show(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        upstream = await self._gateway.lanes.admin.run(self._store.upstream, caller.tenant)
        if upstream is None:
            raise NotFoundError("no upstream is set.")
        return _json(_state(upstream))

    async def put(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(UpstreamRequest, await read_object(request, self._services.settings.max_body_bytes))
        rules, vault, now = self._gateway.upstream_rules, self._services.vault, self._services.clock.now()
        upstream = new_upstream(rules, vault, caller.tenant, wanted.base_url, wanted.model, wanted.api_key, now)
        await self._gateway.lanes.admin.run(self._store.set_upstream, caller.tenant, upstream)
        return _json(_state(upstream))

    async def remove(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        await self._gateway.lanes.admin.run(self._store.remove_upstream, caller.tenant)
        return _json({"removed": True})


def _state(upstream: Upstream) -> dict[str, Any]:
    return {
        "base_url": upstream.base_url,
        "model": upstream.model,
        "has_api_key": upstream.sealed_key is not None,
        "updated_at": upstream.updated_at,
    }


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body), media_type="application/json")
