"""Headers of a request. Single ones are read from ASGI's list: Starlette's mapping takes four times as long."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope


def header(scope: Scope, name: bytes) -> str | None:
    """The first of this name, which is in lower case."""
    for found, value in scope["headers"]:
        if found == name:
            return str(value, "latin-1")
    return None


def if_match(request: Request) -> str | None:
    """All tags: a list may be spread over several headers (RFC 9110, 5.3), as by a proxy."""
    return ", ".join(request.headers.getlist("if-match")) if "if-match" in request.headers else None
