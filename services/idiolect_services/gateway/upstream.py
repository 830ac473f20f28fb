"""One request to a tenant's upstream. Nothing that the upstream or its name server does is believed:

the name is resolved here, every address is checked, and the connection goes to the checked address (a second look-up
could answer otherwise); redirects are not followed; no proxy is taken from the environment; size and time are bounded.
No connection is used again: two names may share an address, and a certificate vouches for one of them only.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import httpx

from idiolect.errors import InvalidInputError
from idiolect.upstreams import Target, pick_address
from idiolect_services.gateway.bodies import parse_object
from idiolect_services.gateway.statuses import StatusError

MAX_ANSWER_BYTES = 4 << 20
MOST_SECONDS = 600.0  # the setting's bound; the real one is set outside
_MAX_WORDS = 300
_RETRY_AFTER_MOST_S = 3600

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
Transport = Callable[[], httpx.AsyncBaseTransport]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Every address of `host`. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _transport() -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=httpx.Limits(max_connections=1))


class UpstreamClient:
    def __init__(self, resolver: Resolver = resolve, transport: Transport = _transport) -> None:
        self._resolver = resolver
        self._transport = transport

    async def post(self, target: Target, path: str, key: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that the upstream answers. Raises StatusError: 400, 429, 502; never with the key in it.

        Bound the time outside, with `asyncio.timeout`.
        """
        try:
            address = pick_address(await self._resolver(target.origin.host, target.origin.port), target)
        except (OSError, UnicodeError):
            raise _failed("its name does not resolve") from None
        except InvalidInputError as error:
            raise StatusError(502, error.message, mend=error.mend, code=error.code) from None
        request = _request(target, address, path, key, body)
        try:
            async with httpx.AsyncClient(transport=self._transport(), trust_env=False, timeout=MOST_SECONDS) as client:
                response = await client.send(request, stream=True)
                try:
                    return _read(response.status_code, response.headers, await _bounded(response))
                finally:
                    await response.aclose()
        except httpx.HTTPError as error:
            raise _failed(f"the connection failed ({type(error).__name__})") from None


def _request(target: Target, address: str, path: str, key: str | None, body: Mapping[str, Any]) -> httpx.Request:
    headers = {"Host": target.authority, "Accept": "application/json", "Accept-Encoding": "identity"}
    headers |= {"Content-Type": "application/json", "User-Agent": "idiolect"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    url = httpx.URL(scheme=target.origin.scheme, host=address, port=target.origin.port, path=target.path + path)
    content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    # The certificate is checked against the name, though the connection goes to an address.
    return httpx.Request("POST", url, headers=headers, content=content, extensions={"sni_hostname": target.origin.host})


async def _bounded(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _failed("it sent a compressed answer, unasked")
    chunks, size = [], 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _failed(f"its answer is over {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _read(status: int, headers: httpx.Headers, body: bytes) -> dict[str, Any]:
    if 200 <= status < 300:
        value = _parsed(body)
        if value is None:
            raise _failed("its answer is not one plain JSON object")
        return value
    if status == 429:
        raise StatusError(
            429,
            "the upstream takes no more requests now.",
            mend="Try again later.",
            code="upstream_rate_limited",
            retry_after_s=_seconds(headers.get("retry-after")),
        )
    if status in (401, 403):
        raise _failed("it does not accept the key that was set for it")
    if 400 <= status < 500 and status != 408:
        said = _said(body)
        raise StatusError(
            400,
            f"the upstream refused the request with status {status}{said}.",
            mend="Correct the request's parameters, such as its model.",
            code="upstream_rejected",
        )
    raise _failed(f"it answered with status {status}")


def _parsed(body: bytes) -> dict[str, Any] | None:
    """As strict as with callers: what it holds is sent on, and must mean the same to every reader."""
    try:
        return parse_object(body)
    except InvalidInputError:
        return None


def _said(body: bytes) -> str:
    """What the upstream says is wrong, if it says it as OpenAI does: short and printable."""
    value = _parsed(body)
    error = value.get("error") if value is not None else None
    words = error.get("message") if isinstance(error, dict) else None
    if not isinstance(words, str):
        return ""
    return ": " + "".join(char for char in words[:_MAX_WORDS] if char.isprintable()).rstrip(". ")


def _seconds(header: str | None) -> int | None:
    text = (header or "").strip()
    return min(int(text[:9]), _RETRY_AFTER_MOST_S) if text.isascii() and text.isdigit() else None


def _failed(what: str) -> StatusError:
    return StatusError(
        502,
        f"the upstream can't be used: {what}.",
        mend="Try again; check the upstream's settings if it stays.",
        code="upstream_failed",
    )
