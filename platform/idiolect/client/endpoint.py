"""Where the API is and what opens it. Both are checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version

import httpx

from idiolect.errors import ConfigurationError

_KEY = re.compile(r"idio_[A-Za-z0-9_-]{8,250}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,2000}(\.[A-Za-z0-9_-]{1,2000}){2}")  # a JWT for one end user
_HOST = re.compile(
    rb"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:.]+"
)  # a name, as IDNA where it needs to be, or an address
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class BearerAuth(httpx.Auth):
    """Holds the key out of sight: neither in the headers that httpx prints, nor in any repr."""

    __slots__ = ("_header",)

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {checked_key(key)}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._header
        yield request

    def __repr__(self) -> str:
        return "BearerAuth()"


def checked_key(key: str) -> str:
    """Raises ConfigurationError, which never quotes the key, unless it can be a key or an end user's token."""
    key = key.strip()
    if not (_KEY.fullmatch(key) or _TOKEN.fullmatch(key)):
        raise ConfigurationError(
            "the API key is neither a key (idio_...) nor a token.", mend="Make one: idiolect keys create."
        )
    return key


def checked_base_url(base_url: str, *, allow_http: bool) -> str:
    """Without a slash at its end. The key travels to this host, so plain http is for this machine alone unless
    `allow_http`. Raises ConfigurationError."""
    try:
        url = httpx.URL(base_url.strip())
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigurationError(f"the base URL {str(base_url)[:80]!r} is not a URL.", mend=_MEND_URL) from error
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.raw_host):
        raise ConfigurationError(f"the base URL {base_url[:80]!r} has no http(s) host.", mend=_MEND_URL)
    if url.userinfo or url.query or url.fragment:
        raise ConfigurationError("the base URL holds a user, query or fragment.", mend=_MEND_URL)
    if url.scheme == "http" and url.host not in _LOOPBACK and not allow_http:
        raise ConfigurationError(
            f"plain http would show the key to everyone on the way to {url.host[:80]!r}.",
            mend="Use https, or pass allow_http=True within a network that you trust.",
        )
    return str(url).rstrip("/")


_MEND_URL = "Pass something like https://idiolect.example."


def default_headers() -> dict[str, str]:
    return {"User-Agent": f"idiolect-python/{_version()}"}


def _version() -> str:
    try:
        return version("idiolect")
    except PackageNotFoundError:  # imported from a source tree that was never installed
        return "0"
