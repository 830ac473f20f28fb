"""The calls that are made all the time, found by one look-up.

They are routes like the others, and described as such. But the router tries routes in turn and opens two exit stacks
around each call, which takes longer than a warm ranking does. Nor do they need what FastAPI puts around all of its
middleware: the same layers as for every other request are their outermost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from idiolect.errors import IdiolectError
from idiolect_services.gateway.problems import problem_from

Handler = Callable[[Request], Awaitable[Response]]

# Where clients of Cohere (its second API) and vLLM look for these calls.
OTHER_NAMES = {"/v2/rerank": "/v1/rerank", "/rerank": "/v1/rerank", "/score": "/v1/score"}


class HotRoutes:
    """Innermost: request ids, limits and the last resort for failures lie around it. `posts`: handlers by path.

    `app` is for everything else; it is known only once FastAPI has built its own.
    """

    app: ASGIApp

    def __init__(self, posts: Mapping[str, Handler]) -> None:
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except IdiolectError as error:
            response = problem_from(error, request)
        await response(scope, receive, send)


class LayeredApp(FastAPI):
    """Hands calls that are made all the time to its `layers` at once."""

    def lay(self, layers: ASGIApp, innermost: HotRoutes, posts: Mapping[str, Handler]) -> None:
        """`layers` are around `innermost`, which is around the router. Once all routes are there."""

        def around(app: ASGIApp) -> ASGIApp:
            innermost.app = app
            return layers

        self.add_middleware(around)
        self.middleware_stack = self.build_middleware_stack()
        self._layers = layers
        self._posts = frozenset(posts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = OTHER_NAMES.get(scope["path"], scope["path"])
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._posts:
            scope["app"] = self  # as Starlette does: behind the layers its router may still be asked
            await self._layers(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
