"""GET /healthz (this process runs) and /readyz (it can serve)."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.common import ResponseModel

_OK = b'{"status":"ok"}'


class Health(ResponseModel):
    status: Literal["ok"] = Field(description="Anything else is a problem with status 503.")


class HealthRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["health"])
        described = documented.route(None, Health)
        router.add_api_route("/healthz", self.healthz, methods=["GET"], **described)
        router.add_api_route("/readyz", self.readyz, methods=["GET"], **described)
        return router

    async def healthz(self, _request: Request) -> Response:
        return Response(_OK, media_type="application/json")

    async def readyz(self, _request: Request) -> Response:
        """503 if the store can't be reached: what is served then is the global ranking only."""
        await self._gateway.lanes.control.run(self._gateway.services.store.check)
        return Response(_OK, media_type="application/json")
