"""POST /v1/users/{user}/exports: everything that is stored of a person, as a zip file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from idiolect.audit import AuditEvent
from idiolect.tenancy import Caller, Scope
from idiolect_services.exports import FILE_NAME, Exporter
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.idempotency import ABOUT_KEY, Idempotency
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.controls import person_of
from idiolect_services.gateway.schemas.common import Problem
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.gateway.streaming import Streamed

AT_ONCE = 2  # exports under way in this process
MEDIA_TYPE = "application/zip"

_HEADERS = {"Content-Disposition": f'attachment; filename="{FILE_NAME}"'}


class ExportRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._idempotency = Idempotency(gateway)
        self._under_way = 0

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["controls"])
        described = documented.route(Scope.CONTROLS, Problem, problems=(409,), headers=(ABOUT_KEY,))
        described["response_class"] = Response  # FastAPI would add a JSON answer to the file
        schema = {"type": "string", "format": "binary"}
        described["responses"][200] = {"description": "A zip file.", "content": {MEDIA_TYPE: {"schema": schema}}}
        router.add_api_route("/v1/users/{user}/exports", self.export, methods=["POST"], **described)
        return router

    async def export(self, request: Request, user: str) -> Response:
        """Nothing is kept of it, so sent again it is made again. Any body is ignored."""
        caller, subject = await person_of(self._gateway, request, user)
        lane, claim = self._gateway.lanes.admin, self._idempotency.claim(request, caller, {})
        async with self._idempotency.held(lane, claim):
            return await self._begun(caller, subject)

    async def _begun(self, caller: Caller, subject: str) -> Response:
        if self._under_way >= AT_ONCE:
            raise StatusError(
                503, "too many exports are under way.", mend="Try again.", code="overloaded", retry_after_s=5
            )
        self._under_way += 1
        try:
            pieces, first = await self._gateway.lanes.admin.run(self._begin, caller, subject)
        except BaseException:
            self._under_way -= 1
            raise
        return Streamed(self._rest(first, pieces), self._leave, MEDIA_TYPE, _HEADERS)

    def _leave(self) -> None:
        self._under_way -= 1

    def _begin(self, caller: Caller, subject: str) -> tuple[Iterator[bytes], bytes]:
        """Up to the first chunk, so that a store that can't be reached is still answered with a problem."""
        services, now = self._services, self._services.clock.now()
        event = AuditEvent(caller.actor, "user.export", f"user {subject}")
        services.store.record_audit(caller.tenant, event, now)
        exporter = Exporter(services.store, services.signer, services.peft)
        pieces = exporter.chunks(caller.tenant, subject, now)
        return pieces, next(pieces)

    async def _rest(self, first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        yield first
        while (chunk := await self._gateway.lanes.admin.run(_next, pieces)) is not None:
            yield chunk


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
