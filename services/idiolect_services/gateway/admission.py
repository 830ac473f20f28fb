"""A bound on requests under way: what is over it is refused at once, before its body or its key is looked at.

Without it an overload only makes everybody wait, and memory grows with every connection that waits. What people decide
about themselves has places of its own beyond that bound: a flood of rankings refuses no reset.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from idiolect_services.gateway.problems import problem

# Whoever watches the server must see it also while it refuses.
NEVER_REFUSED = frozenset({"/healthz", "/readyz", "/metrics"})
OF_PEOPLE = "/v1/users/"
SHARE = 8  # one place for them for so many of all requests, at least one


class Admission:
    """Only for the event loop's thread."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self._most = most
        self._most_with_people = most + max(1, most // SHARE)
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in NEVER_REFUSED:
            await self.app(scope, receive, send)
            return
        most = self._most_with_people if scope["path"].startswith(OF_PEOPLE) else self._most
        if self._under_way >= most:
            await _refusal(Request(scope))(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._under_way -= 1


def _refusal(request: Request) -> Response:
    return problem(
        request, 503, "overloaded", "the server has too much to do.", "Call again after the time in Retry-After."
    )
