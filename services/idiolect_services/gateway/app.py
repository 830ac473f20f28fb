"""The FastAPI application, built from services; nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import IdiolectError
from idiolect.tenancy import Caller
from idiolect_services.gateway.admission import Admission
from idiolect_services.gateway.bodies import fields_error
from idiolect_services.gateway.browsers import for_browsers, origins_of
from idiolect_services.gateway.context import Gateway, GatewayServices
from idiolect_services.gateway.edge import Edge
from idiolect_services.gateway.hot_routes import HotRoutes, LayeredApp
from idiolect_services.gateway.measured import Measured
from idiolect_services.gateway.openapi import Documented, methods_for, needed_by
from idiolect_services.gateway.problems import not_found, problem, problem_from
from idiolect_services.gateway.routes.adapters import AdapterRoutes
from idiolect_services.gateway.routes.chat import ChatRoutes
from idiolect_services.gateway.routes.controls import ControlRoutes
from idiolect_services.gateway.routes.exports import ExportRoutes
from idiolect_services.gateway.routes.feedback import FeedbackRoutes
from idiolect_services.gateway.routes.health import HealthRoutes
from idiolect_services.gateway.routes.ranking import RankingRoutes
from idiolect_services.gateway.routes.registry import RegistryRoutes
from idiolect_services.gateway.routes.releases import ReleaseRoutes
from idiolect_services.gateway.routes.retention import RetentionRoutes
from idiolect_services.gateway.routes.rollouts import RolloutRoutes
from idiolect_services.gateway.routes.tokens import TokenRoutes
from idiolect_services.gateway.routes.uploads import UploadRoutes
from idiolect_services.gateway.routes.upstreams import UpstreamRoutes

_ABOUT = "Ranks candidates for one person: a global preference model, and a small private adapter for each who opts in."


def create_app(services: GatewayServices) -> FastAPI:
    """The whole API. The app owns its threads: run its lifespan, or close `app.state.gateway`.

    Paths hold user ids: run the server without an access log.
    """
    origins = origins_of(services.settings.browser_origins)  # may be refused, so before anything is opened
    gateway = Gateway.over(services)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.limits.close()
        gateway.close()

    app = LayeredApp(
        title="Idiolect",
        version=version("idiolect"),
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    documented = Documented()
    ranking = RankingRoutes(gateway)
    others = (
        ChatRoutes,
        UpstreamRoutes,
        RetentionRoutes,
        TokenRoutes,
        FeedbackRoutes,
        ControlRoutes,
        ExportRoutes,
        RegistryRoutes,
        ReleaseRoutes,
        AdapterRoutes,
        UploadRoutes,
        RolloutRoutes,
        HealthRoutes,
    )
    routers = [ranking.router(documented), *(routes(gateway).router(documented) for routes in others)]
    for router in routers:
        app.include_router(router)
    documented.install(app)
    described = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    for kind, handler in _handlers(gateway, described).items():
        app.add_exception_handler(kind, handler)
    hot = HotRoutes(ranking.posts)
    admitted = Admission(hot, most=services.settings.max_requests)
    edge = Edge(for_browsers(admitted, origins))
    app.lay(Measured(edge, gateway.metrics, ranking.posts), hot, ranking.posts)
    return app


Handler = Callable[[Request, Any], Awaitable[Response]]


def _handlers(gateway: Gateway, routes: Sequence[APIRoute]) -> dict[type[Exception], Handler]:
    async def on_idiolect_error(request: Request, error: IdiolectError) -> Response:
        return problem_from(error, request)

    async def _unauthenticated(request: Request) -> Response | None:
        """What was wrong with the address or its query is only said to who may call it."""
        needed = needed_by(request.scope.get("route"))
        if needed is not None or request.url.path.startswith("/v1/"):
            try:
                caller = await gateway.authenticator.caller(request.headers.get("authorization"))
                if needed is not None:
                    needed.check(caller)
            except IdiolectError as refused:
                return problem_from(refused, request)
        return None

    async def on_bad_parameters(request: Request, error: RequestValidationError) -> Response:
        refused = await _unauthenticated(request)
        if refused is not None:
            return refused
        found = error.errors()
        return problem_from(fields_error(found, len(found)), request)

    async def on_routing_error(request: Request, error: HTTPException) -> Response:
        """404 and 405. Without a valid key every address under /v1 answers alike, and with one those of which it may
        use no method."""
        caller: Caller | None = None
        if request.url.path.startswith("/v1/"):
            try:
                caller = await gateway.authenticator.caller(request.headers.get("authorization"))
            except IdiolectError as refused:
                return problem_from(refused, request)
        offered = methods_for(routes, request, caller) if error.status_code == 405 else set()
        if not offered:
            return not_found(request)
        response = problem(request, 405, "method_not_allowed", "this method is not offered here.", "See /openapi.json.")
        response.headers["Allow"] = ", ".join(sorted(offered))
        return response

    return {
        IdiolectError: on_idiolect_error,
        RequestValidationError: on_bad_parameters,
        HTTPException: on_routing_error,
    }
