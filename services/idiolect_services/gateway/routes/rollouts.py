"""Rollouts: reading needs the scope `registry`, changing anything `admin`.

Those of a global model are the installation's, since they reach the people of all tenants. Keys of the operator's
tenant (IDIOLECT_OPERATOR_TENANT) act for it as well; to everybody else they do not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.audit import INSTALLATION
from idiolect.errors import NotFoundError, PreconditionError
from idiolect.rollouts.plan import Rollout
from idiolect.rollouts.verdicts import BY_HAND
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.headers import if_match
from idiolect_services.gateway.idempotency import ABOUT_KEY, Idempotency
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

_IF_MATCH = ("If-Match", "The ETag that the change is based on; 412 if the state has moved. Optional.")


class RolloutRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._store = gateway.services.store
        self._idempotency = Idempotency(gateway)

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["rollouts"], prefix="/v1/rollouts")
        described = documented.route(Scope.REGISTRY, RolloutList)
        router.add_api_route("", self.list, methods=["GET"], **described)
        described = documented.route(
            Scope.ADMIN, RolloutState, body=RolloutRequest, status=201, problems=(409,), headers=(ABOUT_KEY,)
        )
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
        found = await self._gateway.lanes.admin.run(self._list, self._owners(caller), limit)
        return _json({"rollouts": [state_of(rollout) for rollout in found]})

    def _owners(self, caller: Caller) -> Sequence[str]:
        """For whom the caller may act."""
        operates = caller.tenant == self._services.settings.operator_tenant
        return (caller.tenant, INSTALLATION) if operates else (caller.tenant,)

    def _list(self, owners: Sequence[str], limit: int) -> Sequence[Rollout]:
        found = [rollout for owner in owners for rollout in self._store.rollouts(owner, limit=limit)]
        return sorted(found, key=lambda rollout: (rollout.created_at, rollout.id), reverse=True)[:limit]

    def _owner(self, owners: Sequence[str], rollout_id: str) -> str:
        """Whose it is; the caller's own, where it does not exist."""
        return next((owner for owner in owners if self._store.rollout(owner, rollout_id) is not None), owners[0])

    async def create(self, request: Request) -> Response:
        caller = await self._gateway.authorise(request, Scope.ADMIN)
        body = await read_object(request, self._services.settings.max_body_bytes)
        wanted, lane = validated(RolloutRequest, body), self._gateway.lanes.admin
        candidate, owners = wanted.candidate.candidate(), self._owners(caller)
        if candidate.kind == "global" and INSTALLATION not in owners:
            raise NotFoundError(
                f"there is no staged global model {candidate.id[:80]!r}.",
                mend="Global models are the operator's: see IDIOLECT_OPERATOR_TENANT.",
            )
        claim = self._idempotency.claim(request, caller, body)
        async with self._idempotency.held(lane, claim) as held:
            created = await lane.run(
                self._store.create_rollout,
                owners[-1] if candidate.kind == "global" else caller.tenant,
                candidate,
                wanted.plan(),
                self._services.clock.now(),
                reason=wanted.reason,
                actor=caller.actor,
                start=wanted.start,
                rollout_id=None if held is None else held.id_of(0),
            )
        return _json(state_of(created), 201, created.revision)

    async def show(self, request: Request, rollout_id: str) -> Response:
        caller = await self._gateway.authorise(request, Scope.REGISTRY)
        detail = await self._gateway.lanes.admin.run(self._detail, self._owners(caller), decoded(rollout_id))
        return _json(detail, revision=detail["revision"])

    def _detail(self, owners: Sequence[str], rollout_id: str) -> dict[str, Any]:
        return detail_of(self._store, self._owner(owners, rollout_id), rollout_id)

    def _steering(self, action: str) -> Callable[[Request, str], Awaitable[Response]]:
        async def steer(request: Request, rollout_id: str) -> Response:
            caller = await self._gateway.authorise(request, Scope.ADMIN)
            wanted = validated(SteerRequest, await read_object(request, self._services.settings.max_body_bytes))
            lane, owners, rollout = self._gateway.lanes.admin, self._owners(caller), decoded(rollout_id)
            owner, tags = await lane.run(self._owner, owners, rollout), if_match(request)
            moved = await lane.run(
                self._store.steer_rollout,
                owner,
                rollout,
                action,
                self._services.clock.now(),
                reason=wanted.reason,
                actor=caller.actor,
                if_revision=None if tags is None else await lane.run(self._expected, owner, rollout, tags),
            )
            return _json(state_of(moved), revision=moved.revision)

        return steer

    def _expected(self, owner: str, rollout_id: str, tags: str) -> int | None:
        """The revision that `If-Match` allows. Raises PreconditionError where none of its tags is the current one."""
        if tags.strip() == "*":
            return None
        found = self._store.rollout(owner, rollout_id)
        if found is not None and f'"{found.revision}"' not in {tag.strip() for tag in tags.split(",")}:
            raise PreconditionError(
                f"the rollout is at revision {found.revision}, not the one in If-Match.",
                mend="Read it again and decide.",
            )
        return None if found is None else found.revision


def _json(body: dict[str, Any], status: int = 200, revision: int | None = None) -> Response:
    headers = {} if revision is None else {"ETag": f'"{revision}"'}
    return Response(to_json(body), status, headers, media_type="application/json")
