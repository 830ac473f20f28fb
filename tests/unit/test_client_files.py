"""A file that a client is sent: whole under its name or not there at all, and never in memory as a whole."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from idiolect import AsyncClient, Client
from idiolect.client import ApiError
from idiolect.client.errors import ApiAnswerError, ApiNotFoundError, ApiUnavailableError

BASE, KEY = "https://api.test", "idio_" + "k" * 20
NDJSON = {"Content-Type": "application/x-ndjson; charset=utf-8"}
MIB = 1 << 20

Answer = Callable[[], httpx.Response]


class Blocks(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, *blocks: bytes, times: int = 1, then: Exception | None = None) -> None:
        self._blocks, self._times, self._then = blocks, times, then

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._times):
            yield from (bytes(bytearray(block)) for block in self._blocks)  # each anew, as from a network
        if self._then is not None:
            raise self._then

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for block in self:
            yield block


def whole(*blocks: bytes, times: int = 1, headers: dict[str, str] = NDJSON) -> Answer:
    return lambda: httpx.Response(200, headers=headers, stream=Blocks(*blocks, times=times))


def torn(headers: dict[str, str] = NDJSON) -> httpx.Response:
    lost = httpx.RemoteProtocolError("peer closed connection without sending complete message body")
    return httpx.Response(200, headers=headers, stream=Blocks(b"one\n", b"tw", then=lost))


def problem(status: int) -> Answer:
    return lambda: httpx.Response(status, json={"code": "c", "detail": "d.", "mend": "m."})


async def at_once(_seconds: float) -> None:
    pass


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`ask(call, answers...)`: what either client returns; the last answer comes for ever."""

    def asked(call: Callable[[Any], Any], *answers: Answer) -> Any:
        waiting = list(answers)

        def answer(_request: httpx.Request) -> httpx.Response:
            return (waiting.pop(0) if len(waiting) > 1 else waiting[0])()

        transport = httpx.MockTransport(answer)
        if request.param == "Client":
            with Client(BASE, KEY, transport=transport, sleep=lambda _: None) as api:
                return call(api)

        async def asynchronous() -> Any:
            async with AsyncClient(BASE, KEY, transport=transport, sleep=at_once) as api:
                return await call(api)

        return asyncio.run(asynchronous())

    return asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chat.release"


def test_a_file_is_written_as_it_comes_and_never_held_as_a_whole(ask: Any, file: Path) -> None:
    block = bytes(range(256)) * (MIB // 256)
    tracemalloc.start()
    try:
        saved = ask(lambda api: api.export_release("r", file), whole(block, times=64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (saved.path, saved.size) == (file, 64 * MIB)
    assert file.stat().st_size == 64 * MIB
    assert peak < 16 * MIB


def test_a_persons_export_goes_to_a_file_in_the_same_way(ask: Any, file: Path) -> None:
    zipped = {"Content-Type": "application/zip"}
    answers = (lambda: torn(zipped), problem(503), whole(b"PK", b"...", headers=zipped))
    saved = ask(lambda api: api.save_export("ada", file), *answers)
    assert (saved.path, saved.size, file.read_bytes()) == (file, 5, b"PK...")
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        ask(lambda api: api.save_export("ada", file), problem(500))


def test_a_file_that_is_cut_off_is_asked_for_again_from_its_beginning(ask: Any, file: Path) -> None:
    saved = ask(lambda api: api.export_release("r", file), torn, problem(503), whole(b"one\n", b"two\n"))
    assert (saved.size, file.read_bytes()) == (8, b"one\ntwo\n")
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (torn, ApiUnavailableError),
        (problem(404), ApiNotFoundError),
        (problem(503), ApiUnavailableError),
        (whole(b"<html>log in", headers={"Content-Type": "text/html"}), ApiAnswerError),
        (whole(b"anything", headers={}), ApiAnswerError),
    ],
)
def test_what_is_no_whole_file_of_ours_leaves_none(ask: Any, file: Path, answer: Answer, kind: type[ApiError]) -> None:
    with pytest.raises(kind):
        ask(lambda api: api.export_release("r", file), answer)
    assert list(file.parent.iterdir()) == []


def test_a_file_that_somebody_else_wrote_meanwhile_stays_theirs(ask: Any, file: Path) -> None:
    def meanwhile() -> httpx.Response:
        file.write_text("theirs")
        return whole(b"ours")()

    with pytest.raises(FileExistsError):
        ask(lambda api: api.export_release("r", file), meanwhile)
    assert list(file.parent.iterdir()) == [file]
    assert file.read_text() == "theirs"


def test_a_page_of_another_server_is_neither_a_card_nor_an_archive(ask: Any) -> None:
    page = whole(b"<html>log in", headers={"Content-Type": "text/html"})
    for call in (lambda api: api.release_card("r"), lambda api: api.export("ada")):
        with pytest.raises(ApiAnswerError, match="text/html"):
            ask(call, page)
    card = ask(
        lambda api: api.release_card("r"), whole("# Größe\n".encode(), headers={"Content-Type": "text/markdown"})
    )
    assert card.text == "# Größe\n"
