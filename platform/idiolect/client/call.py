"""What a call of the API is, as a value, and what its parts are made of."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from idiolect.client.results import Result
from idiolect.errors import InvalidInputError

R = TypeVar("R", bound=Result)

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """`safe`: sent twice, it does no more than once (see `retries`). `content` is sent in place of a JSON `body`, under
    a Content-Type among the `headers`. `media` is the type of the answer, which is written to a new file `into`, if
    that is given, and is otherwise read whole."""

    method: str
    path: str
    result: type[R]
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)
    media: str = JSON
    into: Path | None = None
    safe: bool = True


def new_id() -> str:
    return str(uuid.uuid4())


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def segment(what: str, value: str) -> str:
    """Percent-encoded, dots too: an id of '..' must stay an id. Raises InvalidInputError for what can't be one."""
    if not value:
        raise InvalidInputError(f"the {what} is empty.", mend="Name one.")
    check_text(what, value)
    return quote(value, safe="").replace(".", "%2E")


def check_text(what: str, value: object) -> None:
    """Raises InvalidInputError for half of a surrogate pair, which no encoding holds."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"the {what} holds half a character.", mend="Send whole text.") from None
