"""What a call may raise: the tree of `idiolect.errors` again, each error also an ApiError.

    ApiError
    ├── ApiInvalidInputError     InvalidInputError     ... ApiTooLargeError    TooLargeError
    ├── ApiAuthenticationError   NotAuthenticatedError
    ├── ApiNotFoundError         NotFoundError
    ├── ApiConflictError         ConflictError         ... ApiPreconditionError   PreconditionError
    ├── ApiConsentError          ConsentError
    ├── ApiRateLimitError        a limit was reached; `retry_after_s` says when to come back
    ├── ApiUnavailableError      UnavailableError: also no connection, and no answer in time
    └── ApiAnswerError           an answer that is not one of this API: most often another server, or a proxy

So `except NotFoundError` catches the same thing in the platform and over the network. None of them ever holds the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idiolect.errors import (
    ConflictError,
    ConsentError,
    IdiolectError,
    InvalidInputError,
    NotAuthenticatedError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
    UnavailableError,
)

_MAX_WORDS = 500  # of each text in a problem: it ends up in logs


@dataclass(frozen=True, slots=True)
class FieldProblem:
    field: str
    problem: str


class ApiError(IdiolectError):
    """`status` is 0 where no answer came. `code` is stable; `request_id` is what to report."""

    def __init__(
        self,
        message: str,
        *,
        mend: str = "",
        code: str | None = None,
        status: int = 0,
        request_id: str = "",
        fields: tuple[FieldProblem, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, mend=mend, code=code)
        self.status = status
        self.request_id = request_id
        self.fields = fields
        self.retry_after_s = retry_after_s


class ApiInvalidInputError(ApiError, InvalidInputError):
    pass


class ApiTooLargeError(ApiInvalidInputError, TooLargeError):
    pass


class ApiAuthenticationError(ApiError, NotAuthenticatedError):
    pass


class ApiNotFoundError(ApiError, NotFoundError):
    pass


class ApiConflictError(ApiError, ConflictError):
    pass


class ApiPreconditionError(ApiConflictError, PreconditionError):
    pass


class ApiConsentError(ApiError, ConsentError):
    pass


class ApiRateLimitError(ApiError):
    code = "rate_limited"


class ApiUnavailableError(ApiError, UnavailableError):
    pass


class ApiAnswerError(ApiError):
    code = "unexpected_answer"


_BY_CODE: dict[str, type[ApiError]] = {ConsentError.code: ApiConsentError}
_BY_STATUS: dict[int, type[ApiError]] = {
    400: ApiInvalidInputError,
    401: ApiAuthenticationError,
    404: ApiNotFoundError,
    405: ApiInvalidInputError,
    408: ApiUnavailableError,
    409: ApiConflictError,
    412: ApiPreconditionError,
    413: ApiTooLargeError,
    415: ApiInvalidInputError,
    422: ApiInvalidInputError,
    429: ApiRateLimitError,
    502: ApiUnavailableError,
    503: ApiUnavailableError,
    504: ApiUnavailableError,
}


def error_from(status: int, body: bytes, retry_after_s: float | None) -> ApiError:
    """The error that an answer of this status means, whether or not its body is one of our problems."""
    problem = _problem_in(body)
    if problem is None:
        kind = _BY_STATUS.get(status, ApiAnswerError) if status in (429, 502, 503, 504) else ApiAnswerError
        return kind(
            f"the answer has status {status}, and is not one of this API.",
            mend="Check the base URL, and what stands between here and there.",
            status=status,
            retry_after_s=retry_after_s,
        )
    code = _words(problem.get("code"))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, ApiError)
    return kind(
        _words(problem.get("detail")),
        mend=_words(problem.get("mend")),
        code=code,
        status=status,
        request_id=_words(problem.get("request_id")),
        fields=_fields_in(problem),
        retry_after_s=retry_after_s,
    )


def _problem_in(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("code"), str) else None


def _fields_in(problem: Mapping[str, Any]) -> tuple[FieldProblem, ...]:
    found = problem.get("errors")
    entries = found if isinstance(found, list) else []
    return tuple(
        FieldProblem(_words(entry.get("field")), _words(entry.get("problem")))
        for entry in entries
        if isinstance(entry, dict)
    )


def _words(value: object) -> str:
    """Printable and short: it comes from the network, and goes into terminals and logs."""
    return "".join(char for char in str(value or "")[:_MAX_WORDS] if char.isprintable())
