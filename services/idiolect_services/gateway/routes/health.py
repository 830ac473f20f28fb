"""GET /healthz (this process runs), /readyz (it can serve) and /metrics (how it does, for the operator)."""

from __future__ import annotations

import hmac
from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import NotFoundError
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.exposition import MEDIA_TYPE, exposition
from idiolect_services.gateway.metrics import ServerState, state_families
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.common import ResponseModel
from idiolect_services.looks import STORE_TROUBLE

_OK = b'{"status":"ok"}'


class Health(ResponseModel):
    status: Literal["ok"] = Field(description="Anything else is a problem with status 503.")


class Readiness(Health):
    model: Literal["outdated"] | None = Field(
        None, description="Sent if the live global model can't be loaded: the one before goes on serving."
    )
    candidate: Literal["missing"] | None = Field(
        None, description="Sent if the global model that is being rolled out can't be loaded: the live one serves all."
    )


class HealthRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._live = gateway.services.live

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["health"])
        for path, answer, model in (("/healthz", self.healthz, Health), ("/readyz", self.readyz, Readiness)):
            router.add_api_route(path, answer, methods=["GET"], **documented.route(None, model))
            router.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)  # load balancers ask so
        router.add_api_route("/metrics", self.metrics, methods=["GET"], include_in_schema=False)
        return router

    async def healthz(self, _request: Request) -> Response:
        return Response(_OK, media_type="application/json")

    async def readyz(self, _request: Request) -> Response:
        """503 if the store can't be reached: what is served then is the global ranking only."""
        await self._gateway.lanes.keys.run(self._gateway.services.store.check)
        trouble = {} if self._live.outdated is None else {"model": "outdated"}
        trouble |= {} if self._live.candidate_missing is None else {"candidate": "missing"}
        body = to_json({"status": "ok"} | trouble) if trouble else _OK
        return Response(body, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """They are of all tenants together, so no tenant's key opens them, whatever its scopes."""
        token = self._gateway.services.settings.metrics_token
        sent = request.headers.get("authorization", "")
        if token is None or not hmac.compare_digest(sent.encode(), f"Bearer {token.get_secret_value()}".encode()):
            raise NotFoundError("no such resource.")
        families = [*self._gateway.metrics.families(), *state_families(await self._state())]
        return Response(exposition(families), media_type=MEDIA_TYPE)

    async def _state(self) -> ServerState:
        scorer, memory, swaps = self._live.current, self._gateway.services.memory, self._gateway.services.swaps
        return ServerState(
            bank=scorer.bank.stats(),
            features=scorer.features.stats(),
            batches=self._gateway.batcher.stats(),
            model=scorer.model.digest,
            model_switches=self._live.switches,
            model_outdated=self._live.outdated is not None,
            models_draining=self._live.draining,
            candidate_missing=self._live.candidate_missing is not None,
            quarantined=scorer.quarantine.count,
            active_rollouts=await self._active_rollouts(),
            memory=None if memory is None else memory.stats(),
            swaps=None if swaps is None else swaps(),
        )

    async def _active_rollouts(self) -> int | None:
        try:
            return len(await self._gateway.lanes.keys.run(self._gateway.services.store.active_rollouts))
        except STORE_TROUBLE:
            return None
