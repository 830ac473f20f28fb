"""POST /v1/tokens: a short-lived token for one end user, whose adapter is loaded ahead."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import InvalidInputError
from idiolect.tenancy import Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.tokens import TokenRequest, TokenResponse
from idiolect_services.scorer import ScoreRequest


class TokenRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["tokens"])
        described = documented.route(Scope.CONTROLS, TokenResponse, body=TokenRequest, status=201, people=False)
        router.add_api_route("/v1/tokens", self.issue, methods=["POST"], **described)
        return router

    async def issue(self, request: Request) -> Response:
        """A token makes no tokens: `authorise` refuses end users."""
        caller = await self._gateway.authorise(request, Scope.CONTROLS)
        wanted = validated(TokenRequest, await read_object(request, self._services.settings.max_body_bytes))
        scopes = frozenset(map(Scope, wanted.scopes))
        if not scopes <= caller.scopes:
            raise InvalidInputError(
                "the key does not have all of these scopes itself.", mend="Ask for fewer, or use another key."
            )
        subject = self._services.pseudonym(caller.tenant, wanted.user)
        if Scope.INFER in scopes:
            self._gateway.lanes.loading.begin(self._prefetch, caller.tenant, subject)
        issued = self._gateway.tokens.issue(caller, subject, scopes, wanted.ttl_seconds)
        body = {"token": issued.token, "expires_at": issued.expires_at, "scopes": sorted(scopes)}
        return Response(to_json(body), 201, media_type="application/json")

    def _prefetch(self, tenant: str, subject: str) -> None:
        """A session begins: the adapter is in memory by the time that its first ranking is asked for."""
        with self._services.live.lease() as models:
            scorer, resolution = models.serving(self._services.store.resolve(tenant, subject, None))
            scorer.prefetch(ScoreRequest(tenant, (), subject), resolution)
