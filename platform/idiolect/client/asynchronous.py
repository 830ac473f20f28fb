"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

import httpx

from idiolect.client import calls
from idiolect.client.calls import Call, R
from idiolect.client.endpoint import BearerAuth, checked_base_url, default_headers
from idiolect.client.exchange import Exchange, Failed
from idiolect.client.methods import introduced
from idiolect.client.retries import RetryPolicy

P = ParamSpec("P")


def _method(build: Callable[P, Call[R]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """A method that sends the call which `build` makes, with its parameters and words."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.send(build(*args, **kwargs))

    return introduced(method, build, "AsyncClient")


class AsyncClient:
    """Use it within one event loop, with `async with`.

    `timeout_s` is for each step of one try (connect, send, first byte), not for all tries together.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        retries: RetryPolicy | None = None,
        allow_http: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises ConfigurationError for a base URL or key that can't work; neither is sent anywhere before."""
        base_url = checked_base_url(base_url, allow_http=allow_http)
        self._exchange = Exchange(base_url, retries or RetryPolicy())
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            auth=BearerAuth(key),
            headers=default_headers(),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
            transport=transport,
        )

    async def send(self, call: Call[R]) -> R:
        """Send one call of `idiolect.client.calls`. Raises ApiError."""
        attempt = 0
        while True:
            answer = await self._try(call, attempt)
            if not isinstance(answer, Failed):
                return answer
            if answer.wait_s is None:
                raise answer.error
            await self._sleep(answer.wait_s)
            attempt += 1

    async def _try(self, call: Call[R], attempt: int) -> R | Failed:
        try:
            response = await self._http.request(**self._exchange.request(call))
        except httpx.RequestError as error:
            failed = self._exchange.lost(call, error, attempt)
            failed.error.__cause__ = error
            return failed
        return self._exchange.read(call, response, attempt)

    rerank = _method(calls.rerank)
    score = _method(calls.score)
    compare = _method(calls.compare)
    complete = _method(calls.complete)
    issue_token = _method(calls.issue_token)
    upstream = _method(calls.upstream)
    set_upstream = _method(calls.set_upstream)
    remove_upstream = _method(calls.remove_upstream)
    retention = _method(calls.retention)
    set_retention = _method(calls.set_retention)
    feedback = _method(calls.feedback)
    feedback_batch = _method(calls.feedback_batch)
    consent = _method(calls.consent)
    set_consent = _method(calls.set_consent)
    consent_receipt = _method(calls.consent_receipt)
    reset = _method(calls.reset)
    erase = _method(calls.erase)
    export = _method(calls.export)
    reset_receipt = _method(calls.reset_receipt)
    explanation = _method(calls.explanation)
    adapters = _method(calls.adapters)
    adapter = _method(calls.adapter)
    register_lora = _method(calls.register_lora)
    releases = _method(calls.releases)
    revoke_release = _method(calls.revoke_release)
    ledger = _method(calls.ledger)
    health = _method(calls.health)
    ready = _method(calls.ready)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self._exchange.base_url!r})"
