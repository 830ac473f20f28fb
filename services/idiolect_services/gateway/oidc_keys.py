"""The signing keys of an issuer: fetched when they are needed, seldom, and by one request at a time.

However many tokens name keys that nobody knows, the issuer is asked at most once in REFETCH_SECONDS. While it can't be
reached, keys that are known go on for KEEP_SECONDS after they were last seen; new ones are not believed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from idiolect.errors import ConfigurationError, UnavailableError

logger = logging.getLogger("idiolect.gateway")

FRESH_SECONDS = 600.0
REFETCH_SECONDS = 30.0
KEEP_SECONDS = 3600.0
FETCH_SECONDS = 5.0
MAX_BYTES = 256 << 10
MAX_KEYS = 100

_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~/-]*)?")

Fetch = Callable[[str], Awaitable[Mapping[str, Any]]]


def check_url(setting: str, url: str) -> str:
    """Raises ConfigurationError unless it is https, or http on this machine's own loopback."""
    parts = urlsplit(url)
    if not _URL.fullmatch(url) or not parts.hostname or (parts.scheme != "https" and not _is_loopback(parts.hostname)):
        raise ConfigurationError(
            f"{setting} is {url[:200]!r}, which is no https address.", mend="Write it as https://host/path."
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def fetch_json(url: str) -> Mapping[str, Any]:
    """A JSON object. Raises httpx.HTTPError, ValueError, TimeoutError. No redirect is followed."""
    async with (
        asyncio.timeout(FETCH_SECONDS),
        httpx.AsyncClient(trust_env=False, timeout=FETCH_SECONDS) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as response,
    ):
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError("the answer is too large")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("the answer is no JSON object")
    return found


class IssuerKeys:
    """Only for the event loop's thread. `jwks_url`: where the keys are, if not where the issuer's discovery says."""

    def __init__(
        self,
        issuer: str,
        jwks_url: str | None = None,
        fetch: Fetch = fetch_json,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._fetch = fetch
        self._monotonic = monotonic
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._seen_at: float | None = None  # when the issuer last said which keys it has
        self._ask_from = -math.inf
        self._asking = asyncio.Lock()

    async def key(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """None if the issuer has no such key for that algorithm. Raises UnavailableError if nothing can be said."""
        if self._should_ask(key_id) and not (key_id in self._keys and self._asking.locked()):
            async with self._asking:
                if self._should_ask(key_id):  # whoever waited here finds what the first one was told
                    await self._ask()
        if self._seen_at is None or self._monotonic() - self._seen_at > KEEP_SECONDS:
            raise UnavailableError("the issuer of administrators' tokens can't be reached.", mend="Try again.")
        found = self._keys.get(key_id)
        return None if found is None else _usable(found, algorithm)

    def _should_ask(self, key_id: str) -> bool:
        now = self._monotonic()
        old = self._seen_at is None or now - self._seen_at > FRESH_SECONDS
        return now >= self._ask_from and (old or key_id not in self._keys)

    async def _ask(self) -> None:
        self._ask_from = self._monotonic() + REFETCH_SECONDS
        try:
            found = await self._fetch(await self._where())
            keys = found["keys"]
            if not isinstance(keys, list) or len(keys) > MAX_KEYS:
                raise ValueError("`keys` is no short list")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TimeoutError, RecursionError) as error:
            logger.warning("the keys of the issuer can't be had (%s): %s", type(error).__name__, str(error)[:200])
            return
        # Also those that are gone there: a key that was withdrawn is believed no longer.
        self._keys = {key["kid"]: key for key in keys if isinstance(key, dict) and isinstance(key.get("kid"), str)}
        self._seen_at = self._monotonic()

    async def _where(self) -> str:
        if self._jwks_url is not None:
            return self._jwks_url
        about = await self._fetch(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        url = about.get("jwks_uri")
        if about.get("issuer") != self._issuer or not isinstance(url, str):
            raise ValueError("the discovery document is another issuer's")
        if urlsplit(url)[:2] != urlsplit(self._issuer)[:2]:
            raise ValueError("jwks_uri is on another host: if that is right, set IDIOLECT_OIDC_JWKS_URL")
        return url


def _usable(key: Mapping[str, Any], algorithm: str) -> jwt.PyJWK | None:
    """A public key for signatures, of the kind that the algorithm needs."""
    if key.get("kty") not in ("RSA", "EC", "OKP") or key.get("use", "sig") != "sig":
        return None
    if key.get("alg", algorithm) != algorithm:
        return None
    try:
        return jwt.PyJWK(dict(key), algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
