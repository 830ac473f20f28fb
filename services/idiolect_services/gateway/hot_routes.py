"""The calls that are made all the time, found by one look-up.

They are routes like the others, and described as such. But the router tries routes in turn and opens two exit stacks
around each call, which takes longer than a warm ranking does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from idiolect.errors import IdiolectError
from idiolect_services.gateway.problems import problem_from

Handler = Callable[[Request], Awaitable[Response]]


class HotRoutes:
    """Innermost: request ids, limits and the last resort for failures lie around it. `posts`: handlers by path."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, Handler]) -> None:
        self.app = app
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
