"""Request bodies: bounded while they arrive, strict JSON, and nothing believed before it is checked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from idiolect.errors import IdiolectError, InvalidInputError, TooLargeError, UnavailableError
from idiolect_services.gateway.headers import header
from idiolect_services.gateway.patience import within

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 32
READ_SECONDS = 30.0
SLOWEST = 256 << 10  # bytes a second: a file that comes at this pace has the time that it takes
BIG_BODY_BYTES = 64 << 10  # parsing more than this would hold up the event loop for milliseconds
NAMED_ERRORS = 10
_FORM = re.compile(r"Document|str|int|[a-z-]+\[.*\]")
BODY_READ = "body_read"  # in the request's state: the edge closes connections whose body was left unread


class FieldsError(InvalidInputError):
    """Some fields don't validate. `errors`: {field, problem} each, never the value that was sent."""

    def __init__(self, errors: list[dict[str, str]], total: int) -> None:
        names = ", ".join(sorted({error["field"] for error in errors}))
        super().__init__(
            f"{total} problem(s) with the request, in: {names}.", mend="Correct the fields under 'errors'."
        )
        self.errors = errors


class UnsupportedMediaError(InvalidInputError):
    code = "unsupported_media_type"


class MalformedError(InvalidInputError):
    """Not JSON at all, or JSON that means different things to different readers."""

    code = "malformed_json"


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the body. Raises TooLargeError, UnsupportedMediaError, MalformedError."""
    _check_media(request, "application/json")
    body = await _read(request, max_bytes)
    return parse_object(body) if len(body) <= BIG_BODY_BYTES else await asyncio.to_thread(parse_object, body)


async def read_file(request: Request, file: BinaryIO, max_bytes: int, media: str) -> None:
    """The body into `file`, bounded while it arrives, and never in memory as a whole.

    Raises TooLargeError, UnsupportedMediaError; UnavailableError if the disk is full.
    """
    _check_media(request, media)
    _check_declared(request, max_bytes)
    try:
        await _write_whole(request, file, max_bytes)
    except TimeoutError as error:
        raise _too_slow(or_else=f", and a second for every {SLOWEST} bytes") from error
    except OSError as error:
        raise UnavailableError("what is imported can't be written to disk.", mend="Free some space.") from error


async def _write_whole(request: Request, file: BinaryIO, max_bytes: int) -> None:
    size, more, until = 0, True, asyncio.get_running_loop().time() + READ_SECONDS
    while more:
        async with asyncio.timeout_at(until):
            message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        until += len(chunk) / SLOWEST
        if size > max_bytes:
            raise _too_large(max_bytes)
        await asyncio.to_thread(file.write, chunk)
    request.scope["state"][BODY_READ] = True
    await asyncio.to_thread(file.seek, 0)


def _check_media(request: Request, wanted: str) -> None:
    media = (header(request.scope, b"content-type") or "").partition(";")[0].strip().lower()
    if media != wanted:
        what = "JSON" if wanted == "application/json" else wanted
        raise UnsupportedMediaError(f"the body is not {what}.", mend=f"Send 'Content-Type: {wanted}'.")
    if (header(request.scope, b"content-encoding") or "identity").lower() != "identity":
        raise UnsupportedMediaError("compressed bodies are not read.", mend="Send the body uncompressed.")


async def _read(request: Request, max_bytes: int) -> bytes:
    _check_declared(request, max_bytes)
    try:
        return await within(READ_SECONDS, _read_whole(request, max_bytes))
    except TimeoutError as error:
        raise _too_slow() from error


def _check_declared(request: Request, max_bytes: int) -> None:
    declared = header(request.scope, b"content-length") or ""
    if declared.isdecimal() and int(declared[:18]) > max_bytes:
        raise _too_large(max_bytes)


def _too_slow(*, or_else: str = "") -> IdiolectError:
    return IdiolectError(
        f"the body did not arrive within {READ_SECONDS:g} seconds{or_else}.",
        mend="Send it again.",
        code="request_timeout",
    )


async def _read_whole(request: Request, max_bytes: int) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    request.scope["state"][BODY_READ] = True
    return b"".join(chunks)


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the body is over the limit of {max_bytes} bytes.", mend="Send less at once.")


def parse_object(body: bytes) -> dict[str, Any]:
    """Strict RFC 8259: UTF-8, one object, no NaN, no key twice, at most MAX_DEPTH deep, no lone surrogates."""
    try:
        value = _STRICT.decode(body.decode("utf-8"))
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise MalformedError("the body is not UTF-8.", mend="Encode the JSON as UTF-8.") from None
    except ValueError as error:
        # The parser's message names a position, never the content; ours below are our own words.
        raise MalformedError(f"the body is not valid JSON: {error}.", mend="Send one JSON object.") from None
    if not isinstance(value, dict):
        raise MalformedError("the body is not a JSON object.", mend="Send one JSON object.")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if b"\\ud" in body or b"\\uD" in body:
        _check_surrogates(value)
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return value


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants)  # costly to make


def _too_deep() -> MalformedError:
    return MalformedError(f"the body nests deeper than {MAX_DEPTH} levels.", mend="Send flatter JSON.")


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _children(parent: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return parent.values() if isinstance(parent, dict) else parent


def _check_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedError(
            "a string holds half of a surrogate pair.", mend="Send whole Unicode characters."
        ) from None


def validated(model: type[Model], value: dict[str, Any], **most: int) -> Model:
    """`value` as `model`. `most` bounds the length of list fields, checked first: an oversized list costs nothing.

    Raises TooLargeError or FieldsError.
    """
    for name, limit in most.items():
        found = value.get(name)
        if isinstance(found, list) and len(found) > limit:
            raise TooLargeError(
                f"{name!r} holds {len(found)} entries, the limit is {limit}.", mend="Split it into several requests."
            )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise fields_error(
            error.errors(include_url=False, include_context=False, include_input=False), error.error_count()
        ) from None


def fields_error(errors: Iterable[Any], total: int) -> FieldsError:
    """From pydantic's list of errors; names at most NAMED_ERRORS of them."""
    named = [
        {"field": ".".join(str(part)[:60] for part in _place(error["loc"])) or "body", "problem": _words(error)}
        for error in list(errors)[:NAMED_ERRORS]
    ]
    return FieldsError(named, total)


def _place(loc: Iterable[int | str]) -> Iterable[int | str]:
    """Without pydantic's names of the forms that a field may have, which are names in our code."""
    return (part for part in loc if not (isinstance(part, str) and _FORM.fullmatch(part)))


def _words(error: Any) -> str:
    """Of checks of our own pydantic says "Value error, " before what they said."""
    if error["type"] in ("model_type", "model_attributes_type"):
        return "Input should be a valid object"  # pydantic names the class
    return str(error["msg"]).removeprefix("Value error, ")[:200]
