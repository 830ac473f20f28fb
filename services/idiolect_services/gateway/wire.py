"""HTTP/1.1 as uvicorn reads it with h11, with an end to clients that begin a request and do not go on, and with answers
that leave in one piece."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from idiolect_services.gateway.bodies import READ_SECONDS
from idiolect_services.gateway.gathered import Gathered

# For a request's head, and for what is still sent of a body once its answer is given. The body itself: see `bodies`.
HEAD_SECONDS = READ_SECONDS


class Wire(H11Protocol):
    """uvicorn's own time limit ends with the first byte, and begins with the first answer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cut_off: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._gathered = Gathered(transport, self.loop)
        super().connection_made(self._gathered)
        self._limit()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._free()  # a request is being answered
        elif self.timeout_keep_alive_task is None:
            self._limit()

    def on_response_complete(self) -> None:
        self._free()
        self._gathered.flush()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._free()
        super().connection_lost(exc)

    def _limit(self) -> None:
        """From the first byte on: more of them win no time."""
        if self._cut_off is None:
            self._cut_off = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _free(self) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()
            self._cut_off = None
