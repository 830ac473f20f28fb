"""Errors that bring a status of their own: what an upstream did, and limits that were reached."""

from __future__ import annotations

from collections.abc import Sequence

from idiolect.errors import IdiolectError


class StatusError(IdiolectError):
    """`retry_after_s` becomes the header Retry-After; `headers` are sent as they are."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        mend: str,
        code: str,
        retry_after_s: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message, mend=mend, code=code)
        self.status = status
        self.retry_after_s = retry_after_s
        self.headers = headers
