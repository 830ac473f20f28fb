"""Pointers of an adapter, lineage, and the audit log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.audit import AuditEntry
from idiolect.canonical import parse_json_object
from idiolect.errors import InvalidInputError, NotFoundError, PreconditionError
from idiolect.registry.pointers import LIVE, Adapter, Pointer, PointerMove
from idiolect.tenancy import Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.headers import if_match
from idiolect_services.gateway.idempotency import ABOUT_KEY, REPLAYED, Idempotency
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.controls import IF_MATCH, decoded
from idiolect_services.gateway.routes.registry import Limit, PageToken, after_token, summary_of, token_after
from idiolect_services.gateway.schemas.adapters import (
    AuditPage,
    ContributionList,
    HistoryPage,
    MoveRequest,
    PointerList,
    RollbackRequest,
    VersionOrigin,
)
from idiolect_services.gateway.schemas.registry import AdapterPage

User = Annotated[str, Query(max_length=128, description="The person (your own id).")]


class AdapterRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store
        self._idempotency = Idempotency(gateway)

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["registry"])
        read: list[tuple[str, Any, Any, Scope]] = [
            ("/v1/adapters/{adapter_id}/versions", self.versions, AdapterPage, Scope.REGISTRY),
            ("/v1/adapters/{adapter_id}/pointers", self.pointers, PointerList, Scope.REGISTRY),
            ("/v1/adapters/{adapter_id}/history", self.history, HistoryPage, Scope.REGISTRY),
            ("/v1/adapters/{version_id}/lineage", self.origin, VersionOrigin, Scope.REGISTRY),
            ("/v1/lineage", self.contributions, ContributionList, Scope.ADMIN),
            ("/v1/audit", self.audit, AuditPage, Scope.ADMIN),
        ]
        for path, handler, response, scope in read:
            router.add_api_route(path, handler, methods=["GET"], **documented.route(scope, response))
        moving: dict[str, Any] = {"problems": (409, 412), "headers": (IF_MATCH,)}
        move = documented.route(Scope.ADMIN, PointerList, body=MoveRequest, **moving)
        once: dict[str, Any] = {"problems": (409, 412), "headers": (IF_MATCH, ABOUT_KEY)}
        rollback = documented.route(Scope.ADMIN, PointerList, body=RollbackRequest, **once)
        router.add_api_route("/v1/adapters/{adapter_id}/pointers/{name}", self.move, methods=["PUT"], **move)
        router.add_api_route("/v1/adapters/{adapter_id}/rollback", self.rollback, methods=["POST"], **rollback)
        return router

    async def versions(
        self, request: Request, adapter_id: str, limit: Limit = 50, page_token: PageToken = None
    ) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        adapter, after = adapter_of(adapter_id), after_token(page_token)
        found = await self._gateway.lanes.admin.run(self._versions, caller.tenant, adapter, after, limit + 1)
        if not found and not after:
            raise NotFoundError("no such adapter.")
        page = found[:limit]
        more = token_after(page[-1].version.id) if len(found) > limit else None
        return _json({"adapters": [summary_of(stored) for stored in page], "next_page_token": more})

    def _versions(self, tenant: str, adapter: Adapter, after: str, limit: int) -> Any:
        return self._store.versions(tenant, subject=adapter.subject, domain=adapter.domain, after=after, limit=limit)

    async def pointers(self, request: Request, adapter_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        return await self._gateway.lanes.admin.run(self._pointers, caller.tenant, adapter_of(adapter_id))

    def _pointers(self, tenant: str, adapter: Adapter) -> Response:
        found = self._store.pointers(tenant, adapter)
        if found[0].version is None:
            raise NotFoundError("no such adapter.")
        body = {"adapter": adapter.id, "pointers": [asdict(pointer) for pointer in found]}
        return _json(body, {"ETag": f'"{found[0].etag}"'})

    async def move(self, request: Request, adapter_id: str, name: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(MoveRequest, await read_object(request, self._services.settings.max_body_bytes))
        adapter = adapter_of(adapter_id)
        if decoded(name) != LIVE:
            raise InvalidInputError("only the pointer `live` is moved by hand.", mend="PUT .../pointers/live.")

        def moved(expected: str | None) -> Pointer:
            stored = self._store.version(caller.tenant, wanted.version)
            if stored is None or Adapter.of(stored.version.subject, stored.version.domain) != adapter:
                raise NotFoundError("no such version of this adapter.")
            now = self._services.clock.now()
            return self._store.promote(
                caller.tenant, wanted.version, now, reason=wanted.reason, actor=caller.actor, if_match=expected
            )

        return await self._moved(caller.tenant, adapter, request, moved)

    async def rollback(self, request: Request, adapter_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        body = await read_object(request, self._services.settings.max_body_bytes)
        wanted, adapter, lane = validated(RollbackRequest, body), adapter_of(adapter_id), self._gateway.lanes.admin
        claim = self._idempotency.claim(request, caller, body)

        def moved(expected: str | None) -> Pointer:
            now, once = self._services.clock.now(), None if claim is None else claim.claimed
            return self._store.rollback(
                caller.tenant, adapter, now, reason=wanted.reason, actor=caller.actor, if_match=expected, once=once
            )

        async with self._idempotency.held(lane, claim) as held:
            if held is not None and held.answer is not None:
                done = await lane.run(self._pointers, caller.tenant, adapter)
                done.headers[REPLAYED] = "true"
                return done
            return await self._moved(caller.tenant, adapter, request, moved)

    async def _moved(
        self, tenant: str, adapter: Adapter, request: Request, move: Callable[[str | None], Pointer]
    ) -> Response:
        header = if_match(request)

        def work() -> Response:
            expected = None if header is None else _expected(header, self._store.pointers(tenant, adapter)[0])
            move(expected)
            return self._pointers(tenant, adapter)

        return await self._gateway.lanes.admin.run(work)

    async def history(
        self, request: Request, adapter_id: str, limit: Limit = 50, page_token: PageToken = None
    ) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        before = _number(page_token)
        found = await self._gateway.lanes.admin.run(
            self._store.pointer_history, caller.tenant, adapter_of(adapter_id), before=before, limit=limit + 1
        )
        if not found and before is None:
            raise NotFoundError("no such adapter.")
        page = found[:limit]
        more = token_after(str(page[-1].id)) if len(found) > limit else None
        return _json({"moves": [_move_json(move) for move in page], "next_page_token": more})

    async def origin(self, request: Request, version_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        found = await self._gateway.lanes.admin.run(self._store.version_lineage, caller.tenant, decoded(version_id))
        if found is None:
            raise NotFoundError("no such adapter version.")
        return _json(asdict(found))

    async def contributions(self, request: Request, user: User) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        subject = self._services.pseudonym(caller.tenant, user)
        found = await self._gateway.lanes.admin.run(self._store.contributions, caller.tenant, subject)
        return _json({"versions": [asdict(one) for one in found]})

    async def audit(self, request: Request, limit: Limit = 50, page_token: PageToken = None) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        before = _number(page_token)
        head = await self._gateway.lanes.admin.run(self._store.audit_head, caller.tenant)
        found = await self._gateway.lanes.admin.run(
            self._store.audit_entries, caller.tenant, before=before, limit=limit + 1
        )
        page = found[:limit]
        more = token_after(str(page[-1].seq)) if len(found) > limit else None
        body = {"entries": [_entry_json(entry) for entry in page], "head": head.anchor, "next_page_token": more}
        return _json(body)


def adapter_of(segment: str) -> Adapter:
    """What can't be an adapter's id answers like one that does not exist."""
    try:
        return Adapter.parse(decoded(segment))
    except InvalidInputError:
        raise NotFoundError("no such adapter.") from None


def _expected(header: str, live: Pointer) -> str:
    """The etag that `If-Match` allows: the live pointer's own, or the move is refused. `*` means any that exists."""
    tags = {tag.strip() for tag in header.split(",")}
    if f'"{live.etag}"' not in tags and not (header.strip() == "*" and live.version is not None):
        raise PreconditionError("the live pointer has moved since.", mend="Read it again and decide.")
    return live.etag


def _number(token: str | None) -> int | None:
    text = after_token(token)
    if token is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InvalidInputError("the page_token is not one of ours.", mend="Start again without it.")
    return int(text)


def _move_json(move: PointerMove) -> dict[str, Any]:
    return {name: value for name, value in asdict(move).items() if name != "id"}


def _entry_json(entry: AuditEntry) -> dict[str, Any]:
    names = ("seq", "at", "actor", "action", "object", "reason", "previous", "hash")
    details = parse_json_object(entry.details.encode(), what=f"audit entry {entry.seq}")
    return {name: getattr(entry, name) for name in names} | {"details": details}


def _json(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(body), headers=headers, media_type="application/json")
