"""The outermost layer: request ids, paths as they were sent, and a last resort for failures."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Coroutine
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idiolect.ids import new_id
from idiolect_services.gateway.bodies import BODY_READ
from idiolect_services.gateway.headers import header
from idiolect_services.gateway.patience import at_once
from idiolect_services.gateway.problems import internal_error

logger = logging.getLogger("idiolect.gateway")

LIMIT_HEADERS = "limit_headers"  # in the request's state: what was counted for its caller

# No browser keeps an answer, or takes one that holds a person's words for a page.
_ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

COME_AGAIN = (429, 503)

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """Pure ASGI: it never buffers, and it holds no request state of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        _route_on_the_raw_path(scope)
        added = ((b"x-request-id", request_id.encode()), *_ALWAYS)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message["headers"],
                    *added,
                    *scope["state"].get(LIMIT_HEADERS, ()),
                    *_closing(scope, receive, message["status"]),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as error:
            _log(error, request_id)
            if started:
                raise
            await internal_error(Request(scope))(scope, receive, send_with_headers)


def _closing(scope: Scope, receive: Receive, status: int) -> list[tuple[bytes, bytes]]:
    """Close the connection if the request's body was left unread: it may never end. But whoever has sent all of it and
    is to come again keeps theirs: in an overload, new ones would cost half as much again as the refusals."""
    if scope["state"].get(BODY_READ):
        return []
    has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
    if not has_body or (status in COME_AGAIN and _has_come(scope, receive)):
        return []
    return [(b"connection", b"close")]


def _has_come(scope: Scope, receive: Receive) -> bool:
    """Whether all of the body lies here already. Whoever waits to be asked for it (100-continue) is not asked."""
    if header(scope, b"expect") is not None:
        return False
    message = at_once(cast(Coroutine[Any, Any, Message], receive()))
    return message is not None and message["type"] == "http.request" and not message.get("more_body", False)


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-Id if it is safe to log and to send back, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = str(value, "latin-1")
            return text if _SAFE_ID.fullmatch(text) else new_id()
    return new_id()


def _route_on_the_raw_path(scope: Scope) -> None:
    """Route before percent-decoding, so that a person's id may hold '/' or '..' as %2F or %2E without becoming a path.

    Handlers decode their own segments (`routes.controls`).
    """
    raw = scope.get("raw_path")
    if raw and b"%" in raw:
        scope["path"] = raw.decode("latin-1")


def _log(error: BaseException, request_id: str) -> None:
    """Where it failed and what kind it was; not its message, which may quote a text or an id."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unhandled %s, request %s\n%s", type(error).__name__, request_id, frames)
