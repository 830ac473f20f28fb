"""Which web pages may call with their users' tokens: those of the origins that the operator names, and no others.

The protocol is CORS (https://fetch.spec.whatwg.org/#http-cors-protocol). Cookies are never read here, so none is let
through.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from idiolect.errors import ConfigurationError

METHODS = ("GET", "POST", "PUT", "DELETE")
ASKED = ("Authorization", "Content-Type", "If-Match", "Idempotency-Key", "Idiolect-Timeout-Ms", "X-Request-Id")
TOLD = ("ETag", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-Id")
SECONDS = 600  # for which a browser need not ask again
LOCAL = ("localhost", "127.0.0.1", "::1")

_ORIGIN = re.compile(r"https?://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")


def for_browsers(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """`app` itself where no origin is allowed, so that nobody pays for what nobody uses."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=ASKED,
        expose_headers=TOLD,
        max_age=SECONDS,
    )


def origins_of(setting: str) -> tuple[str, ...]:
    """Raises ConfigurationError for what no browser would send as an origin, and for pages that anybody between a
    person and their server could change."""
    origins = tuple(dict.fromkeys(part.strip() for part in setting.split(",") if part.strip()))
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"{origin!r} in IDIOLECT_BROWSER_ORIGINS is no origin.",
                mend="Name each as browsers do, like https://shop.example: in small letters, without a path or a '*'.",
            )
        if origin.startswith("http:") and urlsplit(origin).hostname not in LOCAL:
            raise ConfigurationError(
                f"{origin!r} in IDIOLECT_BROWSER_ORIGINS is not encrypted.", mend="Serve that page over https."
            )
    return origins
