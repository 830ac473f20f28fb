"""What is sent to break out of its place: into headers, logs, paths, pages, spreadsheets; and bodies that never end."""

from __future__ import annotations

import io
import json
import logging
import shutil
import socket
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from every_route import JSON, UPSTREAM, Operation, Settled, guarded, names, with_upstream
from serving_world import World, assert_problem, world_at
from test_gateway_storm import serving
from upstream_server import completion

from idiolect_services.gateway.upstream import UpstreamClient

MARK = "zXq7"  # in everything hostile here, so that it is recognised wherever it turns up
HOSTILE = [
    f"{MARK}\r\nX-Injected: 1\r\n\r\n<script>",
    f"{MARK}\nERROR forged line",
    f"{MARK}\x00",
    f"{MARK}\x1b[2J\x1b]0;title\x07",
    f"{MARK}\u2028\u202e\u0085",
    f"<script>alert('{MARK}')</script>",
    f"=cmd|' /C calc'!{MARK}",
    f"../../../etc/passwd/{MARK}",
    f"..\\..\\{MARK}",
    f"%2e%2e%2f{MARK}",
    f"http://169.254.169.254/{MARK}",
    f"'; DROP TABLE tenants; -- {MARK}",
    f"${{jndi:ldap://x/{MARK}}}{{{{7*7}}}}%s%n",
    f"user:{MARK}" + "9" * 3000,
]
HARMLESS_TYPES = (  # no browser runs any of them
    "application/json",
    "application/problem+json",
    "application/zip",
    "application/x-ndjson",
    "text/markdown",
)
FOREIGN_BYTES = ["%ff%fe", "%c0%ae%c0%ae", "%ed%a0%80", "%", "%zz", "%u0041"]


@pytest.fixture
def acme(tmp_path: Path, empty_database: Path) -> Iterator[Settled]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, upstream_hosts=UPSTREAM) as made:
        yield Settled(with_upstream(made))


def harmless(response: httpx.Response) -> None:
    """An answer that no browser, log or client takes for something else."""
    assert response.status_code < 500, response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"].partition(";")[0] in HARMLESS_TYPES
    assert "x-injected" not in response.headers
    assert all(MARK not in value for value in response.headers.values())
    assert not any(ord(char) < 32 for value in response.headers.values() for char in value)


def assert_unlogged(caplog: pytest.LogCaptureFixture) -> None:
    """By the server, that is: the client of these tests logs what it sends."""
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("idiolect")]
    assert not any(MARK in line or "\n" in line for line in ours)


def test_no_place_in_a_path_or_query_lets_anything_out(acme: Settled, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for operation in guarded(acme.world.app):
        bare = acme.path(operation).partition("?")[0]
        for hostile in HOSTILE:
            for name in names(operation.path):
                harmless(_sent(acme, operation, acme.path(operation, {name: quote(hostile, safe="")})))
            query = dict.fromkeys((*operation.required, "user", "page_token", "limit"), hostile)
            harmless(_sent(acme, operation, f"{bare}?{urlencode(query)}"))
        for segment in FOREIGN_BYTES:
            for name in names(operation.path):
                harmless(_sent(acme, operation, acme.path(operation, {name: segment})))
    assert_unlogged(caplog)


def test_no_header_lets_anything_out(acme: Settled, caplog: pytest.LogCaptureFixture) -> None:
    """As bytes, the way a client that checks nothing would send them."""
    caplog.set_level(logging.INFO)
    for operation in guarded(acme.world.app):
        if operation.schema is None and "{user}" not in operation.path:
            continue  # it reads no header but the key
        for name in ("If-Match", "Idempotency-Key", "X-Request-Id", "Idiolect-Timeout-Ms", "Content-Type"):
            for hostile in HOSTILE[:4]:
                harmless(_sent(acme, operation, acme.path(operation), {name: hostile.encode()}))
    assert_unlogged(caplog)


def _sent(acme: Settled, operation: Operation, path: str, headers: dict[str, bytes] | None = None) -> httpx.Response:
    sent = acme.sent(operation)
    content = sent["content"] if "content" in sent else json.dumps(sent.get("json", {})).encode()
    headers = {"Content-Type": (operation.media or JSON).encode()} | (headers or {})
    return acme.world.api(acme.full).send(operation.method, path, content=content, headers=headers)


def test_what_is_stored_of_a_hostile_text_is_exported_as_data(acme: Settled) -> None:
    """No file that a spreadsheet opens by itself, no row that begins like a formula, no markup."""
    api = acme.world.api(acme.full)
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "<script>alert(1)</script>", '=HYPERLINK("http://x")']
    served = api.rerank("ann", query="=cmd|' /C calc'!A0", documents=texts)
    signal = {"inference_id": served["id"], "user": "ann", "kind": "choice", "value": 0}
    assert api.post("/v1/feedback", signal).status_code == 202
    archive = zipfile.ZipFile(io.BytesIO(api.post("/v1/users/ann/exports").content))
    assert {Path(name).suffix for name in archive.namelist()} <= {".txt", ".json", ".safetensors"}
    shown = json.loads(archive.read("shown.json"))
    assert texts in [one["documents"] for one in shown]
    for name in archive.namelist():
        if name.endswith(".json"):
            content = archive.read(name)
            assert not set(b"<>&\t\r") & set(content)
            assert not any(line.startswith((b"=", b"+", b"-", b"@")) for line in content.splitlines())


# --- bodies -----------------------------------------------------------------------------------------------------------


def test_a_body_that_trickles_in_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every route that reads one: each waits the same time, and no longer."""
    monkeypatch.setattr("idiolect_services.gateway.bodies.READ_SECONDS", 0.2)
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key()}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    with serving(world.app) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head)
        connection.sendall(b"1\r\n{\r\n")  # and then nothing more
        answer = b""
        while chunk := connection.recv(65536):  # until the server closes it
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert b"connection: close" in answer.lower()
    assert world.model.calls == []


TWO_WAYS = [
    b"[" * 40 + b"]" * 40,
    b'{"a":' * 40 + b"1" + b"}" * 40,
    b'{"reason": NaN}',
    b'{"user": "ann", "user": "bob"}',
    b'{"scope": "all", "scope": "adapter"}',
    b'{"a": 1e400, "a": 2}',
]


def test_json_that_readers_could_take_in_two_ways_is_refused_by_every_route(acme: Settled) -> None:
    headers = {"Content-Type": "application/json"}
    for operation in guarded(acme.world.app):
        for body in TWO_WAYS if operation.schema is not None else ():
            path = acme.path(operation)
            response = acme.world.api(acme.full).send(operation.method, path, content=body, headers=headers)
            assert_problem(response, 400, "malformed_json")


def test_every_route_that_reads_a_body_has_a_limit(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "x.db")
    limits = {"max_body_bytes": 8192, "max_adapter_bytes": 8192, "max_import_bytes": 8192}
    with world_at(tmp_path, upstream_hosts=UPSTREAM, **limits) as made:
        acme = Settled(with_upstream(made))
        for operation in guarded(made.app):
            if operation.media is not None:
                headers = {"Content-Type": operation.media}
                path, content = acme.path(operation), b'{"padding": "' + b"x" * (2 << 20)
                big = made.api(acme.full).send(operation.method, path, content=content, headers=headers)
                assert_problem(big, 413, "too_large")


# --- where the gateway lets itself be sent ----------------------------------------------------------------------------


class Elsewhere(httpx.AsyncBaseTransport):
    """An upstream that sends whoever asks to somewhere inside."""

    def __init__(self, status: int, location: str) -> None:
        self.status, self.location = status, location
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        if len(self.asked) == 1:
            return httpx.Response(self.status, headers={"Location": self.location}, stream=httpx.ByteStream(b""))
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(completion("inside")).encode()))


async def _at_home(_host: str, _port: int) -> Sequence[str]:
    return ["10.0.0.5"]


def test_a_redirect_is_not_followed(acme: Settled) -> None:
    ask = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
    for status in (301, 302, 303, 307, 308):
        elsewhere = Elsewhere(status, "http://169.254.169.254/latest/meta-data")
        app = acme.world.make_app(upstreams=UpstreamClient(_at_home, partial(_same, elsewhere)))
        response = acme.world.api(acme.full, app=app).post("/v1/chat/completions", ask)
        app.state.gateway.close()
        assert_problem(response, 502, "upstream_failed")
        assert elsewhere.asked == [f"{UPSTREAM}/chat/completions"]
        assert "169.254" not in response.text


def _same(transport: Elsewhere) -> Elsewhere:
    return transport
