from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from quiet import QuietStages

from idiolect.errors import UnavailableError
from idiolect_services.bench.http_bench import (
    METRICS,
    P50,
    PEOPLE_RATE,
    PEOPLE_RATIO,
    RATE,
    RATIO,
    UNCONFIRMED,
    Round,
    Window,
    Windows,
    encoded,
    measure,
    summary,
    window_of,
)
from idiolect_services.bench.http_home import DOCUMENTS, home_settings
from idiolect_services.bench.http_load import PROOF, answer_size, run_window

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + b"{" + PROOF + b"}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_the_whole_benchmark_runs_and_leaves_nothing_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "home"
    windows = Windows(rounds=3, seconds=0.2, warm_up=0.1, connections=2)
    measured = {one.metric: one for one in measure(root, windows, QuietStages())}
    assert tuple(measured) == METRICS
    for one in measured.values():
        assert one.low is not None
        assert one.high is not None
        assert (0 if one.metric == UNCONFIRMED else 1e-9) <= one.low <= one.value <= one.high
    assert measured[RATE].ratio == measured[RATIO].value
    assert measured[PEOPLE_RATE].ratio == measured[PEOPLE_RATIO].value
    assert measured[RATE].peer_value is not None
    assert list(root.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


def test_the_served_home_never_uses_the_database_of_the_real_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDIOLECT_DATABASE_URL", "postgresql://real/one")
    monkeypatch.setenv("IDIOLECT_HOME", "/somewhere/real")
    settings = home_settings(tmp_path)
    assert settings.sql_url == f"sqlite:///{tmp_path / 'idiolect.db'}"
    assert settings.root == tmp_path


def test_ratios_are_medians_over_rounds_of_windows_not_quotients_of_medians() -> None:
    rounds = [
        Round(Window(10, 5.0, 9.0, 0.01), Window(100, 1.0, 2.0), Window(20, 5.0, 9.0)),
        Round(Window(40, 2.0, 4.0), Window(50, 1.0, 2.0), Window(35, 2.0, 4.0, 0.02)),
        Round(Window(30, 3.0, 6.0, 0.002), Window(60, 1.5, 3.0), Window(24, 3.0, 6.0, 0.004)),
    ]
    measured = {one.metric: one for one in summary(rounds)}
    assert (measured[RATIO].value, measured[RATIO].low, measured[RATIO].high) == (0.5, 0.1, 0.8)
    rate = measured[RATE]
    assert (rate.value, rate.low, rate.high, rate.peer_value, rate.ratio) == (30, 10, 40, 60, 0.5)
    assert (measured[P50].value, measured[P50].ratio) == (3.0, 2.0)
    people = measured[PEOPLE_RATE]
    assert (people.value, people.low, people.high, people.peer_value, people.ratio) == (24, 20, 35, 60, 0.4)
    assert (measured[PEOPLE_RATIO].low, measured[PEOPLE_RATIO].high) == (0.2, 0.7)
    share = measured[UNCONFIRMED]
    assert (share.value, share.low, share.high, share.peer) == (pytest.approx(0.003), 0.0, 0.02, None)


def test_quantiles_of_a_window_are_those_of_its_latencies() -> None:
    outcome = {"problem": None, "seconds": 2.0, "latencies": [index / 1000 for index in range(100)], "unconfirmed": 25}
    assert window_of(outcome) == Window(50.0, pytest.approx(50.0), pytest.approx(99.0), 0.2)


@pytest.mark.parametrize("outcome", [{"problem": "it broke", "latencies": [1.0]}, {"problem": None, "latencies": []}])
def test_a_failed_window_is_an_error_and_no_figure(outcome: dict[str, object]) -> None:
    with pytest.raises(UnavailableError, match="window of load failed"):
        window_of({"seconds": 1.0, "unconfirmed": 1, **outcome})


@pytest.mark.parametrize(
    ("head", "rest", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", b"ab", 3),
        (b"HTTP/1.1 200 OK\r\nContent-Length:12\r\nx: 1\r\n\r\n", b"", 12),
        (b"HTTP/1.1 204 No Content\r\nx: 1\r\n\r\n", b"", 0),
        (b"HTTP/1.1 200 OK\r\nx: 1\r\n\r\n", b"\r\ncontent-length: 9", 0),
    ],
)
def test_the_size_of_an_answer_is_read_from_its_head_alone(head: bytes, rest: bytes, body: int) -> None:
    assert answer_size(head + rest) == len(head) + body
    assert answer_size(head[:-1]) is None


SAME = [encoded(b"{}", "secret")] * 2


def window_against(serve: Serve, seconds: float = 0.2, requests: Sequence[bytes] = SAME) -> dict[str, object]:
    async def both() -> dict[str, object]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            outcome = await run_window(port, seconds, requests)
            await asyncio.sleep(0.05)  # let the server's handlers see that the connections are gone
            return outcome

    return asyncio.run(both())


def answering(answer: bytes, pieces: int = 1) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"{}"):
                step = -(-len(answer) // pieces)
                for start in range(0, len(answer), step):
                    writer.write(answer[start : start + step])
                    await asyncio.sleep(0)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return serve


def test_good_answers_are_counted_one_by_one_until_the_time_is_over() -> None:
    outcome = window_against(answering(GOOD))
    assert outcome["problem"] is None
    assert 0.2 <= outcome["seconds"] < 5  # type: ignore[operator]
    assert len(outcome["latencies"]) > 10  # type: ignore[arg-type]


def test_what_a_busy_server_could_not_confirm_is_counted_apart() -> None:
    refused = GOOD.replace(PROOF, b'"reason":"unconfirmed"').replace(b"Length: 16", b"Length: 24")
    outcome = window_against(answering(refused))
    assert (outcome["problem"], outcome["latencies"]) == (None, [])
    assert outcome["unconfirmed"] > 10  # type: ignore[operator]


def test_each_connection_sends_a_request_of_its_own() -> None:
    came: set[str] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                came.add((await reader.readuntil(b"{}")).decode())
                writer.write(GOOD)
        writer.close()

    outcome = window_against(serve, requests=[b"ann{}", b"bob{}"])
    assert outcome["problem"] is None
    assert came == {"ann{}", "bob{}"}


def test_an_answer_may_arrive_in_pieces() -> None:
    assert window_against(answering(GOOD, pieces=7))["problem"] is None


@pytest.mark.parametrize(
    "answer",
    [
        GOOD.replace(b"200 OK", b"503 No"),
        GOOD.replace(b"true", b"nope"),
        GOOD + b"more",
    ],
)
def test_any_other_answer_ends_the_window_as_failed(answer: bytes) -> None:
    assert "not the expected one" in str(window_against(answering(answer), seconds=5)["problem"])


def test_a_server_that_hangs_up_fails_the_window() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.close()

    assert "closed a connection" in str(window_against(serve, seconds=5)["problem"])


def test_the_request_on_the_wire_names_its_length_and_its_key() -> None:
    body = json.dumps({"documents": DOCUMENTS}).encode()
    head, _, sent = encoded(body, "idio_x").partition(b"\r\n\r\n")
    assert sent == body
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Authorization: Bearer idio_x" in head
