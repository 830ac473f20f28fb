"""Errors as RFC 9457 problem details. What the server did wrong says nothing of its inside."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import (
    ConfigurationError,
    ConflictError,
    ConsentError,
    IdiolectError,
    InvalidInputError,
    NotAuthenticatedError,
    NotFoundError,
    PreconditionError,
    QuotaExceededError,
    TooLargeError,
    UnavailableError,
)
from idiolect_services.gateway.bodies import FieldsError, MalformedError, UnsupportedMediaError
from idiolect_services.gateway.statuses import StatusError

logger = logging.getLogger("idiolect.gateway")

_TRY_AGAIN = "Try again after a moment."
MEDIA_TYPE = "application/problem+json"

# The first class that matches decides, so subclasses come before their parents.
STATUS_OF: tuple[tuple[type[IdiolectError], int], ...] = (
    (NotAuthenticatedError, 401),
    (NotFoundError, 404),
    (PreconditionError, 412),
    (ConflictError, 409),
    (ConsentError, 409),
    (TooLargeError, 413),
    (UnsupportedMediaError, 415),
    (MalformedError, 400),
    (InvalidInputError, 422),
    (UnavailableError, 503),
    (ConfigurationError, 503),
)


def status_of(error: IdiolectError) -> int:
    if isinstance(error, StatusError):
        return error.status
    if isinstance(error, QuotaExceededError):
        return 409 if error.retry_after_s is None else 429
    if error.code == "request_timeout":
        return 408
    return next((status for kind, status in STATUS_OF if isinstance(error, kind)), 500)


def problem_from(error: IdiolectError, request: Request) -> Response:
    status = status_of(error)
    if status == 404:
        # One answer for what does not exist and for what this key may not see.
        return not_found(request)
    if status == 500:
        return internal_error(request)
    if status == 503:
        logger.warning("%s, request %s: %s", error.code, request_id(request), error.message)
    extra: dict[str, Any] = {"errors": error.errors} if isinstance(error, FieldsError) else {}
    mend = _TRY_AGAIN if _is_ours(error) else error.mend
    response = problem(request, status, **refusal_of(error), mend=mend, **extra)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, StatusError):
        response.raw_headers.extend(error.headers)
    return response


def refusal_of(error: IdiolectError) -> dict[str, str]:
    """The stable code and the words for a caller. A store's troubles name files and hosts, so they stay inside."""
    if _is_ours(error):
        return {"code": "unavailable", "detail": "a part of the service can't be reached now."}
    return {"code": error.code, "detail": error.message}


def _is_ours(error: IdiolectError) -> bool:
    return isinstance(error, ConfigurationError) or error.code == UnavailableError.code


def not_found(request: Request) -> Response:
    return problem(
        request, 404, "not_found", "no such resource.", "Check the address, and that the key has the scope for it."
    )


def internal_error(request: Request) -> Response:
    return problem(
        request, 500, "internal", "the server failed on this request.", "Try again; report the request_id if it stays."
    )


def problem(request: Request, status: int, code: str, detail: str, mend: str, **extra: Any) -> Response:
    body = {
        "type": f"urn:idiolect:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id(request),
        "mend": mend,
        "message": message_of(detail, mend, extra.get("errors", ())),
        **extra,
    }
    return Response(to_json(body), status, _headers(status), MEDIA_TYPE)


def message_of(detail: str, mend: str, errors: Sequence[Mapping[str, str]]) -> str:
    """All of it in one line: the exceptions of OpenAI's clients say this field and nothing else."""
    if errors:
        return "; ".join(f"{error['field']}: {error['problem']}" for error in errors)
    return f"{detail} {mend}"


def _headers(status: int) -> dict[str, str]:
    if status == 401:
        return {"WWW-Authenticate": 'Bearer realm="idiolect"'}
    if status in (429, 503):
        return {"Retry-After": "1"}  # where nothing better is known
    return {}


def request_id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))
