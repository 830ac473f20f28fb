"""The clients against the real gateway, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from serving_world import Api, World

from idiolect import AsyncClient, Client
from idiolect.client import RetryPolicy

BASE = "https://api.test"
ONCE = RetryPolicy(attempts=1)


class Through(httpx.BaseTransport):
    """Lets the synchronous client speak to the app."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        raw = request.url.raw_path.decode()
        answer = self._api.send(request.method, raw, content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def client_of(world: World, key: str) -> Client:
    return Client(BASE, key, transport=Through(world.api()), retries=ONCE)


class Awaited:
    """The asynchronous client, one call at a time."""

    def __init__(self, world: World, key: str) -> None:
        self._world, self._key = world, key

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: asyncio.run(self._call(name, *args, **kwargs))

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        transport = httpx.ASGITransport(self._world.app)
        async with AsyncClient(BASE, self._key, transport=transport, retries=ONCE) as api:
            return await getattr(api, name)(*args, **kwargs)
