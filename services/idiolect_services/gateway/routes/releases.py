"""Releases as a whole, and what concerns all versions of a tenant. Reading needs the scope `registry`; moving, deleting
and taking weights along need `admin`.

A release only ever goes from staged to live to revoked, and each step can be repeated, so there is nothing for
`If-Match` to protect here; single pointers have it.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from idiolect.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from idiolect.privacy.claims import render_card
from idiolect.registry.weights import verify_version
from idiolect.tenancy import Scope
from idiolect_adapters.evaluation.version_diff import PROBES
from idiolect_services.gateway.bodies import read_file, read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.controls import decoded
from idiolect_services.gateway.schemas.common import PlainText, Problem
from idiolect_services.gateway.schemas.registry import ReleaseEntry
from idiolect_services.gateway.schemas.releases import (
    CollectRequest,
    CollectResponse,
    DiffResponse,
    ImportResponse,
    PromoteRequest,
    PromoteResponse,
)
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.gateway.streaming import Streamed
from idiolect_services.registry_diff import Source, diff_releases, diff_versions
from idiolect_services.release_transfer import export_release, import_release

MEDIA_TYPE = "application/x-ndjson"
AT_ONCE = 2  # exports under way in this process
_BLOCK = 64 << 10
_REASON = Annotated[
    PlainText, Query(min_length=1, max_length=500, description="Kept in the history and the audit log.")
]
_ONE = Annotated[str, Query(max_length=128, description="Id of a version, or of a release.")]
_OTHER = Annotated[str, Query(max_length=128, description="Id of the other one, of the same kind.")]
_FILE = {"schema": {"type": "string", "format": "binary"}}


class ReleaseRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store
        self._under_way = 0
        self._importing = False

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["registry"])
        one = "/v1/releases/{release_id}"
        router.add_api_route(one, self.show, methods=["GET"], **documented.route(Scope.REGISTRY, ReleaseEntry))
        card = _answering(documented.route(Scope.REGISTRY, Problem), "text/markdown", "The model card.")
        router.add_api_route(one + "/card", self.card, methods=["GET"], **card)
        promote = documented.route(Scope.ADMIN, PromoteResponse, body=PromoteRequest, problems=(409,))
        router.add_api_route(one + "/promote", self.promote, methods=["POST"], **promote)
        export = _answering(documented.route(Scope.ADMIN, Problem, problems=(409,)), MEDIA_TYPE, "A signed file.")
        router.add_api_route(one + "/export", self.export, methods=["GET"], **export)
        bring = documented.route(Scope.ADMIN, ImportResponse, status=201, problems=(400, 408, 409, 413, 415))
        bring["openapi_extra"]["requestBody"] = {"required": True, "content": {MEDIA_TYPE: _FILE}}
        router.add_api_route("/v1/releases/import", self.bring_in, methods=["POST"], **bring)
        diff = documented.route(Scope.REGISTRY, DiffResponse)
        router.add_api_route("/v1/registry/diff", self.diff, methods=["GET"], **diff)
        collect = documented.route(Scope.ADMIN, CollectResponse, body=CollectRequest)
        router.add_api_route("/v1/registry/gc", self.collect, methods=["POST"], **collect)
        return router

    async def show(self, request: Request, release_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        found = await self._gateway.lanes.admin.run(self._store.release, caller.tenant, decoded(release_id))
        if found is None:
            raise NotFoundError("no such release.")
        return _json(asdict(found))

    async def card(self, request: Request, release_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        text = await self._gateway.lanes.admin.run(self._card, caller.tenant, decoded(release_id))
        return PlainTextResponse(text, media_type="text/markdown")

    def _card(self, tenant: str, release: str) -> str:
        """All that it claims is read from a manifest whose signature holds."""
        summary, found = self._store.release(tenant, release), self._store.versions(tenant, release=release, limit=1)
        if summary is None or not found:
            raise NotFoundError("no such release, or nothing is left of it.")
        first = self._store.with_weights(found[0])
        verify_version(first.template, first.version, self._services.signer)
        return render_card(found[0].template, summary.versions, summary.revoked)

    async def promote(self, request: Request, release_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(PromoteRequest, await read_object(request, self._services.settings.max_body_bytes))
        release, now = decoded(release_id), self._services.clock.now()
        moved = await self._gateway.lanes.admin.run(
            self._store.promote_release, caller.tenant, release, now, reason=wanted.reason, actor=caller.actor
        )
        return _json({"id": release, "moved": moved})

    async def export(self, request: Request, release_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        if self._under_way >= AT_ONCE:
            raise StatusError(
                503, "too many exports are under way.", mend="Try again.", code="overloaded", retry_after_s=5
            )
        self._under_way += 1
        try:
            blocks, first = await self._gateway.lanes.admin.run(
                self._begin, caller.tenant, decoded(release_id), caller.actor
            )
        except BaseException:
            self._under_way -= 1
            raise
        headers = {"Content-Disposition": 'attachment; filename="release.ndjson"'}
        return Streamed(self._rest(first, blocks), self._leave, MEDIA_TYPE, headers)

    def _leave(self) -> None:
        self._under_way -= 1

    def _begin(self, tenant: str, release: str, actor: str) -> tuple[Iterator[bytes], bytes]:
        """Up to the first block, so that a release that can't be exported is answered with a problem."""
        now = self._services.clock.now()
        blocks = _blocks(export_release(self._store, self._services.signer, tenant, release, now, actor=actor))
        return blocks, next(blocks)

    async def _rest(self, first: bytes, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
        yield first
        while (block := await self._gateway.lanes.admin.run(_next, blocks)) is not None:
            yield block

    async def bring_in(self, request: Request, reason: _REASON) -> Response:
        """Only what was exported from this tenant; from elsewhere it is for the operator to trust a key."""
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        settings = self._services.settings
        with self._alone(), tempfile.TemporaryFile(dir=settings.root) as file:
            await read_file(request, file, settings.max_import_bytes, MEDIA_TYPE)
            try:
                report = await self._gateway.lanes.admin.run(
                    import_release,
                    self._store,
                    self._services.signer,
                    caller.tenant,
                    file,
                    self._services.clock.now(),
                    reason=reason,
                    actor=caller.actor,
                )
            except CorruptArtifactError as error:  # the caller's own, not one of ours
                raise InvalidInputError(error.message, mend=error.mend, code=error.code) from error
        return _json({name: value for name, value in asdict(report).items() if name != "foreign"}, 201)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One import at a time in this process: while it is checked, all that it brings is in memory."""
        if self._importing:
            raise StatusError(
                503, "another import is under way.", mend="Try again.", code="overloaded", retry_after_s=5
            )
        self._importing = True
        try:
            yield
        finally:
            self._importing = False

    async def diff(self, request: Request, a: _ONE, b: _OTHER) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        return _json(await self._gateway.lanes.admin.run(self._diff, caller.tenant, a, b))

    def _diff(self, tenant: str, a: str, b: str) -> dict[str, Any]:
        """The probes are public texts of ours, never what a caller sends: scoring those is what /v1/score is for."""
        live = self._services.live
        source = Source(
            self._store, self._services.signer, lambda: live.current.model, lambda: live.current.bank.engine
        )
        if self._store.release(tenant, a) is not None:
            releases = diff_releases(source, tenant, a, b)
            weights = None if releases.median is None else asdict(releases.median)
            fields = list(map(asdict, releases.fields))
            return {"fields": fields, "weights": weights, "pairs": releases.pairs, "probes": []}
        versions = diff_versions(source, tenant, a, b, PROBES)
        return {
            "fields": list(map(asdict, versions.fields)),
            "weights": asdict(versions.weights),
            "pairs": None,
            "probes": list(map(asdict, versions.probes)),
        }

    async def collect(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        wanted = validated(CollectRequest, await read_object(request, self._services.settings.max_body_bytes))
        now = self._services.clock.now()
        older_than = now - timedelta(days=wanted.older_than_days)
        if wanted.apply:
            found = await self._gateway.lanes.admin.run(
                self._store.collect, caller.tenant, older_than, now, actor=caller.actor
            )
        else:
            found = await self._gateway.lanes.admin.run(self._store.garbage, caller.tenant, older_than)
        return _json({"applied": wanted.apply} | asdict(found))


def _answering(described: dict[str, Any], media: str, what: str) -> dict[str, Any]:
    """As `described`, but answering with something that is not JSON."""
    described["response_class"] = Response  # FastAPI would add a JSON answer
    described["responses"][200] = {"description": what, "content": {media: _FILE}}
    return described


def _blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    waiting, size = [], 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _next(blocks: Iterator[bytes]) -> bytes | None:
    return next(blocks, None)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")
