"""HTTP/1.1 as uvicorn reads it with h11, with one reading of every request, an end to clients that begin one and do not
go on, and answers that leave in one piece."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from idiolect_services.gateway.bodies import READ_SECONDS
from idiolect_services.gateway.gathered import Gathered

# For a request's head, and for what is still sent of a body once its answer is given. The body itself: see `bodies`.
HEAD_SECONDS = READ_SECONDS
HEAD_BYTES = 64 << 10


# A proxy in front may go by the last one, and this server goes by the first.
ONCE = (b"authorization", b"content-type", b"idempotency-key")
_WHOLE_ADDRESS = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)


class OneReading(h11.Connection):
    """h11 takes one of two possible readings of these; whoever stands in front may take the other, and then think that
    something else was asked for, or by somebody else."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            _refuse_two_readings(event)
            return _to_this_host(event)
        return event


def _refuse_two_readings(request: h11.Request) -> None:
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        raise h11.RemoteProtocolError("two ways to tell where the body ends")
    if not request.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError("another HTTP")
    if any(names.count(name) > 1 for name in ONCE):
        raise h11.RemoteProtocolError("a header that says one thing, twice")


def _to_this_host(request: h11.Request) -> h11.Request:
    """A client that takes the server for a proxy puts the host into the target as well (RFC 9112, 3.2.2)."""
    whole = _WHOLE_ADDRESS.fullmatch(request.target)
    if whole is None:
        return request
    host, rest = whole[1], whole[2]
    if any(name == b"host" and value.lower() != host.lower() for name, value in request.headers):
        raise h11.RemoteProtocolError("two hosts")
    target = rest if rest.startswith(b"/") else b"/" + rest
    headers = list(request.headers)
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)


class Wire(H11Protocol):
    """uvicorn's own time limit ends with the first byte, and begins with the first answer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = OneReading(h11.SERVER, HEAD_BYTES)
        self._cut_off: asyncio.TimerHandle | None = None

    def _unsupported_upgrade_warning(self) -> None:
        """It is answered as if nothing were asked, and nobody writes into the log by asking (curl --http2 does)."""

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
