"""What the server makes of bytes on the wire: one reading of every request, and an end to whatever has none."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from test_gateway_storm import serving

from idiolect.settings import Settings
from idiolect_services.gateway import wire
from idiolect_services.serving import listen

GET = b"GET /first HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /first HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SHUT = b"HTTP/1.1 400 Bad Request\r\n"
SECONDS = 30.0
MUCH = 16 << 20


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, and tells what came. Of some not the body."""
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    told = json.dumps({"path": scope["path"], "headers": headers, "body": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(echo) as port:
        yield port


def test_the_second_half_of_an_answer_does_not_wait_for_the_client(tmp_path: Path) -> None:
    """uvicorn writes head and body apart. Without TCP_NODELAY the body waits until the client acknowledges the head."""

    async def accepted(listener: socket.socket) -> int:
        option: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ours = writer.get_extra_info("socket")
            option.set_result(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(look, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()
            await writer.wait_closed()
        return await option

    with listen(Settings(home=tmp_path).model_copy(update={"port": 0})) as listener:
        assert asyncio.run(accepted(listener))


def talk(port: int, *pieces: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        with suppress(ConnectionError):  # it may be closed before it was sent everything
            for piece in pieces:
                connection.sendall(piece)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    said = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            said += piece
    return said


def test_an_answer_does_not_name_the_software_that_it_was_served_with(port: int) -> None:
    head = talk(port, SECOND).lower().partition(b"\r\n\r\n")[0]
    assert head.startswith(b"http/1.1 200 ")
    assert b"\r\ndate: " in head
    assert b"\r\nserver:" not in head
    assert b"uvicorn" not in head


def told(said: bytes) -> list[dict[str, Any]]:
    """Of each answer, what the request was taken for."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(json.loads(rest[:size]))
        said = rest[size:]
    return found


TWO_READINGS = {
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks before there were any": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another HTTP": b"GET /first HTTP/2.0\r\nHost: x\r\n\r\n",
    "two callers": GET + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "two types": POST + b"Content-Type: a/b\r\ncontent-type: c/d\r\nContent-Length: 0\r\n\r\n",
    "two keys": POST + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n\r\n",
    "a signed length": POST + b"Content-Length: +0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding beside chunked": POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a bare carriage return": GET + b"X: 1\rContent-Length: 5\r\n\r\n",
    "a NUL in a value": GET + b"X: a\0b\r\n\r\n",
    "a NUL in a name": GET + b"X\0: a\r\n\r\n",
    "a NUL in the target": b"GET /a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a name with a space": GET + b"X y: a\r\n\r\n",
    "no host": b"GET /first HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "two hosts, one of them in the target": b"GET http://y/first HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /first\r\n\r\n",
    "a chunk of a negative size": CHUNKED + b"-2\r\nab\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "a chunk's line that ends with a line feed": CHUNKED + b"0;\n\r\n",
}


@pytest.mark.parametrize("request_", TWO_READINGS.values(), ids=TWO_READINGS)
def test_what_two_readers_could_take_for_different_requests_is_refused(port: int, request_: bytes) -> None:
    said = talk(port, request_ + SECOND)
    assert said.startswith(SHUT)
    assert b"/second" not in said


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://x/first", "/first"),
        (b"HTTP://X/first?a=http://y/", "/first"),
        (b"https://x", "/"),
        (b"http://x?a", "/"),
        (b"/http://y/", "/http://y/"),
    ],
)
def test_a_target_may_be_the_whole_address_of_this_host(port: int, target: bytes, path: str) -> None:
    said = told(talk(port, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n" + SECOND))
    assert [one["path"] for one in said] == [path, "/second"]


ENDLESS = {
    "a target": [b"GET /", b"a" * 1024],
    "a name": [GET, b"a" * 1024],
    "a value": [GET + b"X: ", b"a" * 1024],
    "many headers": [GET, b"X: 1\r\n" * 200],
    "a chunk's extension": [CHUNKED + b"1;", b"a" * 1024],
    "a trailer": [CHUNKED + b"1\r\na\r\n0\r\nX: ", b"a" * 1024],
    "many trailers": [CHUNKED + b"1\r\na\r\n0\r\n", b"X: 1\r\n" * 200],
}


@pytest.mark.parametrize("pieces", ENDLESS.values(), ids=ENDLESS)
def test_a_head_that_never_ends_is_cut_off(port: int, pieces: list[bytes]) -> None:
    begin, again = pieces
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection, suppress(ConnectionError):
        connection.sendall(begin)
        for _ in range(MUCH // len(again)):
            connection.sendall(again)
            sent += len(again)
    assert sent < MUCH - len(again)  # else the server read on


SLOW = {
    "nothing": [],
    "half a head, then nothing": [GET],
    "a head, byte by byte": [GET + b"X: ", *[b"a"] * 10_000],
    "a second head, byte by byte": [GET + b"\r\n" + GET + b"X: ", *[b"a"] * 10_000],
    "a body of which nobody reads more": [
        b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n",
        *[b"a"] * 9999,
    ],
}


@pytest.mark.parametrize("pieces", SLOW.values(), ids=SLOW)
def test_who_begins_a_request_and_does_not_go_on_is_cut_off(
    port: int, pieces: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        assert is_closed(connection, pieces)


def is_closed(connection: socket.socket, pieces: list[bytes]) -> bool:
    """By the server, while it is sent the pieces, single bytes slowly, or after that."""
    try:
        for piece in pieces:
            connection.settimeout(0.02 if len(piece) == 1 else SECONDS)
            connection.sendall(piece)
            with suppress(TimeoutError):
                if len(piece) == 1 and not connection.recv(65536):
                    return True
        connection.settimeout(SECONDS)
        read_all(connection)
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_request_that_takes_long_is_not_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its body nor its answer, and the next one on the connection begins anew."""
    monkeypatch.setattr(wire, "HEAD_SECONDS", 0.3)
    slow = POST + b"Content-Length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        for _ in range(2):
            connection.sendall(slow)
            for _ in range(9):
                time.sleep(0.1)  # of a client that is slow, which is what this is about
                connection.sendall(b"a")
            said = b""
            while b'"aaaaaaaaa"' not in said:
                piece = connection.recv(65536)
                assert piece, said
                said += piece


def test_a_body_may_come_in_any_number_of_pieces(port: int) -> None:
    size = 200_000
    chunked, second = told(talk(port, CHUNKED + b"1\r\na\r\n" * size + b"0\r\n\r\n" + SECOND))
    assert (chunked["body"], second["path"]) == ("a" * size, "/second")
    every_byte = POST + b"Content-Length: 2\r\nConnection: close\r\n\r\nab"
    (split,) = told(talk(port, *(every_byte[place : place + 1] for place in range(len(every_byte)))))
    assert split == {
        "path": "/first",
        "headers": {"host": "x", "content-length": "2", "connection": "close"},
        "body": "ab",
    }


def test_trailers_are_not_taken_for_headers(port: int) -> None:
    trailers = b"Authorization: Bearer other\r\nX-Request-Id: other\r\n\r\n"
    first, _ = told(talk(port, CHUNKED + b"1\r\na\r\n0\r\n" + trailers + SECOND))
    assert first == {"path": "/first", "headers": {"host": "x", "transfer-encoding": "chunked"}, "body": "a"}


def test_values_come_without_the_spaces_around_them_and_may_be_empty(port: int) -> None:
    (seen,) = told(talk(port, GET + b"Connection: close\r\nEmpty:\r\nKey: \t a b \t\r\n\r\n"))
    assert seen["headers"] == {"host": "x", "connection": "close", "empty": "", "key": "a b"}


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        leave = b""
        while not leave.endswith(b"\r\n\r\n"):
            leave += connection.recv(1)
        assert leave == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        assert told(read_all(connection))[0]["body"] == "ab"


def test_requests_sent_ahead_are_answered_in_their_order(port: int) -> None:
    first = GET + b"\r\n"
    answered = told(talk(port, first * 8 + SECOND))
    assert [one["path"] for one in answered] == ["/first"] * 8 + ["/second"]


@pytest.mark.parametrize("junk", [b"junk\r\n\r\n", b"GET /second HTTP/1.1\r\n\r\n", b"GET /" + b"a" * MUCH])
def test_the_refusal_of_a_later_request_is_not_taken_for_the_answer_to_an_earlier(port: int, junk: bytes) -> None:
    assert not talk(port, POST + b"Content-Length: 2\r\n\r\nab" + junk).startswith(SHUT)


@pytest.mark.parametrize("to", [b"h2c", b"websocket"])
def test_who_asks_for_another_protocol_is_answered_in_this_one_and_fills_no_log(
    port: int, caplog: pytest.LogCaptureFixture, to: bytes
) -> None:
    asked = GET + b"Connection: Upgrade, close\r\nUpgrade: " + to + b"\r\n\r\n"
    (said,) = told(talk(port, asked))
    assert said["path"] == "/first"
    assert caplog.records == []
