"""POST /v1/adapters and /v1/adapters/{id}/versions: LoRAs that were trained elsewhere."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import ConflictError, InvalidInputError, NotFoundError, TooLargeError
from idiolect.ids import check_name
from idiolect.registry.pointers import Adapter
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.idempotency import ABOUT_KEY, Idempotency
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.routes.adapters import adapter_of
from idiolect_services.gateway.routes.registry import summary_of
from idiolect_services.gateway.schemas.adapters import AdapterUpload, LoraUpload
from idiolect_services.gateway.schemas.registry import AdapterSummary
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.registering import Registrar, Registration

BESIDE_WEIGHTS = 1 << 20  # of a body: the config, the reason

Upload = TypeVar("Upload", bound=LoraUpload)


class UploadRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._idempotency = Idempotency(gateway)
        self._uploading: set[str] = set()  # tenants; an upload may be large, and is probed on the model

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["registry"])
        routes: list[tuple[str, Any, type[LoraUpload]]] = [
            ("/v1/adapters", self.first, AdapterUpload),
            ("/v1/adapters/{adapter_id}/versions", self.next, LoraUpload),
        ]
        for path, handler, body in routes:
            described = documented.route(
                Scope.REGISTRY, AdapterSummary, body=body, status=201, problems=(409,), headers=(ABOUT_KEY,)
            )
            router.add_api_route(path, handler, methods=["POST"], **described)
        return router

    async def first(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        with self._alone(caller.tenant):
            body, wanted = await self._read(request, AdapterUpload)
            return await self._register(request, caller, self._owner(caller, wanted), body, wanted)

    async def next(self, request: Request, adapter_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        adapter = adapter_of(adapter_id)
        with self._alone(caller.tenant):
            body, wanted = await self._read(request, LoraUpload)
            return await self._register(request, caller, adapter, body, wanted)

    @contextmanager
    def _alone(self, tenant: str) -> Iterator[None]:
        """One upload of a tenant at a time: together they would be a flood. Raises StatusError (429)."""
        if tenant in self._uploading:
            raise StatusError(
                429,
                "another upload of this tenant is under way.",
                mend="Send one adapter after the other.",
                code="upload_running",
                retry_after_s=1,
            )
        self._uploading.add(tenant)
        try:
            yield
        finally:
            self._uploading.discard(tenant)

    async def _read(self, request: Request, model: type[Upload]) -> tuple[dict[str, Any], Upload]:
        limit = -(-self._services.settings.max_adapter_bytes // 3) * 4 + BESIDE_WEIGHTS
        body = await read_object(request, limit)
        return body, await asyncio.to_thread(validated, model, body)

    def _owner(self, caller: Caller, wanted: AdapterUpload) -> Adapter:
        if (wanted.user is None) == (wanted.domain is None):
            raise InvalidInputError("it is not clear whose adapter this is.", mend="Name one of user and domain.")
        if wanted.domain is not None:
            return Adapter("domain", check_name("domain", wanted.domain))
        return Adapter("user", self._services.pseudonym(caller.tenant, wanted.user or ""))

    async def _register(
        self, request: Request, caller: Caller, adapter: Adapter, body: dict[str, Any], wanted: LoraUpload
    ) -> Response:
        lanes = self._gateway.lanes
        claim = await asyncio.to_thread(self._idempotency.claim, request, caller, body)
        async with self._idempotency.held(lanes.admin, claim) as held:
            asked = Registration(
                tenant=caller.tenant,
                adapter=adapter,
                global_digest=wanted.global_,
                config=json.dumps(wanted.adapter_config).encode(),
                weights=b"",
                reason=wanted.reason,
                actor=caller.actor,
                staged=wanted.staged,
                release=None if held is None else held.id_of(0),
            )
            return await lanes.loading.run(self._work, asked, wanted.weights)

    def _work(self, asked: Registration, weights: str) -> Response:
        with self._services.live.lease() as models:
            engine = models.live.bank.engine
            if engine is None:
                raise ConflictError("this server serves no LoRAs of inner layers.", code="not_served_here")
            registrar = Registrar(self._services.store, engine, self._services.signer, self._services.clock)
            version = registrar.register(replace(asked, weights=self._decoded(weights)))
        stored = self._services.store.version(asked.tenant, version.id)
        if stored is None:
            raise NotFoundError("it was erased meanwhile.")
        return Response(to_json(summary_of(stored)), 201, media_type="application/json")

    def _decoded(self, weights: str) -> bytes:
        limit = self._services.settings.max_adapter_bytes
        try:
            data = base64.b64decode(weights, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInputError(
                "'weights' is not base64.", mend="Send the bytes of adapter_model.safetensors in base64."
            ) from None
        if len(data) > limit:
            raise TooLargeError(f"the weights hold {len(data)} bytes, the limit is {limit}.", mend="Lower the rank.")
        return data
