"""The four lines that the demo prints for copying into a terminal."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import quote

from idiolect_services.demo.check import order_of
from idiolect_services.demo.showcase import Showcase


def curl_lines(address: str, key: str, showcase: Showcase, inference: dict[str, Any]) -> list[tuple[str, str]]:
    """(what it shows, the line). `inference` is an answer of /v1/rerank for the first person."""
    first, second = showcase.users
    ranking = {"query": showcase.query, "documents": list(showcase.documents), "domain": showcase.domain}
    choice = {
        "inference_id": inference["id"],
        "user": first,
        "domain": showcase.domain,
        "kind": "choice",
        "value": order_of(inference)[-1],
    }
    reset = f"/v1/users/{quote(second, safe='')}/personalization/reset"
    return [
        (f"rank as {first}", _curl(address, key, "/v1/rerank", ranking | {"user": first})),
        (f"the same as {second}, whose taste differs", _curl(address, key, "/v1/rerank", ranking | {"user": second})),
        (
            f"{first} chose what was ranked last; rank again to see it learned",
            _curl(address, key, "/v1/feedback", choice),
        ),
        (f"forget {second}", _curl(address, key, reset, {"scope": "all"})),
    ]


def _curl(address: str, key: str, path: str, body: dict[str, Any]) -> str:
    headers = f"-H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
    return f"curl -s {shlex.quote(address + path)} {headers} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
