"""What both clients do with a call, short of sending it: build the request, read the answer, decide on another try."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from pydantic import ValidationError

from idiolect.client.call import JSON, Call, R, check_text
from idiolect.client.errors import ApiAnswerError, ApiError, ApiUnavailableError, error_from
from idiolect.client.retries import Lost, RetryPolicy, parse_retry_after
from idiolect.errors import InvalidInputError

# Raised before a byte of the request left, so that nothing can have been done.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
# Refused, because the same call is under way: as little was done as for a limit that was reached (429).
_IN_USE = "idempotency_key_in_use"
_OF_PEOPLE = ("/v1/users/", "/v1/adapters/user%3A")


@dataclass(frozen=True, slots=True)
class Failed:
    """`wait_s`: when to try again, or None: raise the error."""

    error: ApiError
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Exchange:
    base_url: str
    retries: RetryPolicy
    draw: Callable[[], float] = random.random  # spreads retries

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Keyword arguments for httpx's `request` and `stream`. Raises InvalidInputError for what can't be sent."""
        _check_texts(call)
        headers, content = {"Accept": call.media, **call.headers}, call.content
        if call.body is not None:
            content = _json(call.body)
            headers["Content-Type"] = JSON
        options = {"method": call.method, "url": self.base_url + call.path, "headers": headers, "content": content}
        return options | ({"params": dict(call.query)} if call.query else {})

    def read(self, call: Call[R], response: httpx.Response, attempt: int) -> R | Failed:
        if response.is_success:
            self.check_kind(call, response)
            return _parsed(call, response)
        retry_after_s = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
        error = error_from(response.status_code, response.content, retry_after_s)
        outcome = 429 if error.code == _IN_USE else response.status_code
        return Failed(error, self._wait_s(call, outcome, attempt, retry_after_s))

    def check_kind(self, call: Call[Any], response: httpx.Response) -> None:
        """Raises ApiAnswerError for what can't be a file of ours. JSON says by itself what it is."""
        media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if call.media not in (JSON, media):
            raise ApiAnswerError(
                f"the answer to {call.method} {_place(call)} is {media[:80] or 'of no type'}, not {call.media}.",
                mend="Check the base URL, and what stands between here and there.",
                status=response.status_code,
            )

    def lost(self, call: Call[Any], error: httpx.RequestError, attempt: int) -> Failed:
        timed_out = isinstance(error, httpx.TimeoutException)
        said = ApiUnavailableError(
            f"{call.method} {_place(call)} got no answer: {type(error).__name__}.",
            mend="Try again later." if timed_out else "Check that the server runs at the base URL.",
            code="timeout" if timed_out else "connection_failed",
        )
        outcome = Lost.NEVER_SENT if isinstance(error, _NEVER_SENT) else Lost.NO_ANSWER
        return Failed(said, self._wait_s(call, outcome, attempt, None))

    def _wait_s(self, call: Call[Any], outcome: int | Lost, attempt: int, retry_after_s: float | None) -> float | None:
        return self.retries.wait_s(
            outcome, attempt=attempt, safe=call.safe, retry_after_s=retry_after_s, draw=self.draw()
        )


def _place(call: Call[Any]) -> str:
    """The route, without ids that name people: errors end up in logs."""
    return next((f"{start}..." for start in _OF_PEOPLE if call.path.startswith(start)), call.path)


def _check_texts(call: Call[Any]) -> None:
    for name, value in call.query.items():
        check_text(name, value)
    for name, value in call.headers.items():
        if not (value.isascii() and value.isprintable()):
            raise InvalidInputError(f"the {name} can't be sent in a header.", mend="Use printable ASCII.")


def _json(body: Any) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the call holds what JSON can't: {type(error).__name__}.", mend="Send texts, finite numbers and lists."
        ) from None


def _parsed(call: Call[R], response: httpx.Response) -> R:
    try:
        return call.result.read(response.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise ApiAnswerError(
            f"the answer to {call.method} {_place(call)} is not what this client knows, at {place[:80]}.",
            mend="Check the base URL, and that client and server are of one version.",
            status=response.status_code,
        ) from None
