"""The outermost layer: counts every answer by its route, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idiolect_services.gateway.metrics import Metrics

UNROUTED = "none"


class Measured:
    """`paths`: those that are served before the router, and so have no pattern but themselves."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self._metrics.answered(self._route(scope), scope["method"], status, time.perf_counter() - began)

    def _route(self, scope: Scope) -> str:
        path: str = scope["path"]
        return path if path in self._paths else getattr(scope.get("route"), "path", UNROUTED)
