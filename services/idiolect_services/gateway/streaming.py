"""A long answer that is made while it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

STEP_SECONDS = 60.0  # for a chunk: whoever reads more slowly gives way to others


class Streamed(StreamingResponse):
    """`done` is called once, however the sending ends."""

    def __init__(
        self, pieces: AsyncIterator[bytes], done: Callable[[], None], media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(pieces, media_type=media_type, headers=headers)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(STEP_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        try:
            await super().__call__(scope, receive, in_time)
        finally:
            self._done()
