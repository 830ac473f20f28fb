"""The arithmetic of the load benchmark, and what its load and its memory watch really do."""

from __future__ import annotations

import ast
import json
import math
import os
import random
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idiolect.errors import ConfigurationError
from idiolect_services.bench import load_bench
from idiolect_services.bench.form import Measured, results_for
from idiolect_services.bench.load_bench import KINDS, METRICS, Answer, Run, Work, runs_of, summary, watched_memory


def answers(
    count: int, status: int = 200, *, kind: str = KINDS[0], at: float = 0.0, clear: bool = False, right: bool = True
) -> list[Answer]:
    return [Answer(at, at, at + 0.01, kind, status, clear, right) for _ in range(count)]


CALM = Run(10.0, [answer for kind in KINDS for answer in answers(100, kind=kind)])
MUCH = Run(10.0, [*CALM.answers, *answers(1200, 503, clear=True)])


def measured(
    steady: Run = CALM, memory: tuple[float, ...] = (1e6,) * 9, overload: Run = MUCH, after: Run = CALM
) -> dict[str, Measured]:
    return {one.metric: one for one in summary(CALM, steady, memory, overload, (2e6, 3e6), after)}


def met(found: dict[str, Measured]) -> dict[str, bool | None]:
    return {result.metric: result.met for result in results_for("load", found.values())}


def test_a_calm_run_yields_every_metric_and_meets_every_target() -> None:
    found = measured()
    assert tuple(found) == METRICS
    assert found["capacity"].value == 60.0
    assert found["recovery"].value == 0.0
    assert found["overload_memory"].value == 3.0
    assert set(met(found).values()) == {True, None}


@pytest.mark.parametrize("status", [500, 503, 0])
def test_one_failure_in_the_long_run_misses_its_target_also_if_no_answer_came(status: int) -> None:
    found = measured(steady=Run(600.0, [*answers(10_000), *answers(1, status)]))
    assert found["steady_5xx"].value == 1
    assert met(found)["steady_5xx"] is False


def test_memory_is_compared_by_the_medians_of_its_last_two_thirds() -> None:
    warming_up = (1.0, 5.0, 9.0, 10.0, 10.0, 99.0, 10.0, 10.4, 10.4)
    found = measured(memory=warming_up)
    assert found["steady_memory_growth"].value == pytest.approx(1.04)
    assert met(found)["steady_memory_growth"] is True
    assert met(measured(memory=(1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 11.0, 11.0, 11.0)))["steady_memory_growth"] is False


def test_goodput_counts_good_answers_alone_against_the_capacity() -> None:
    overload = Run(10.0, [*answers(520), *answers(1200, 503, clear=True), *answers(5, 404)])
    found = measured(overload=overload)
    assert found["overload_goodput"].value == 52.0
    assert met(found)["overload_goodput"] is False
    assert found["overload_offered"].value == pytest.approx(172.5)
    assert found["overload_refused"].value == pytest.approx(1200 / 1725)


def test_many_cheap_answers_do_not_stand_for_dear_ones() -> None:
    cheap, dear = answers(5000), answers(50, kind="rerank_new")
    found = measured(overload=Run(10.0, [*cheap, *dear]))
    judged = met(found)
    assert judged["overload_goodput"] is True
    assert found["overload_goodput_rerank_new"].value == 5.0
    assert judged["overload_goodput_rerank_known"] is True
    assert judged["overload_goodput_rerank_new"] is False
    assert judged["overload_goodput_feedback"] is False


def test_an_overload_of_less_than_it_should_be_is_said() -> None:
    assert met(measured())["overload_offered"] is True
    assert (
        met(measured(overload=Run(10.0, [*CALM.answers, *answers(700, 503, clear=True)])))["overload_offered"] is False
    )


def test_what_is_answered_after_the_end_is_offered_but_no_goodput() -> None:
    late = Answer(9.0, 9.0, 11.0, "rerank_known", 200, False)
    run = Run(10.0, [*answers(10), late])
    assert (run.offered(), run.goodput(), run.quantile(1.0)) == (1.1, 1.0, 2000.0)


@pytest.mark.parametrize(
    ("status", "clear", "unclear"),
    [(429, True, 0), (503, True, 0), (429, False, 1), (503, False, 1), (500, True, 1), (0, False, 1), (404, False, 1)],
)
def test_a_refusal_is_clear_if_it_says_when_to_come_again(status: int, clear: bool, unclear: int) -> None:
    found = measured(overload=Run(10.0, [*answers(950), *answers(1, status, clear=clear)]))
    assert found["overload_unclear"].value == unclear


def test_a_wrong_answer_is_neither_good_nor_clear_and_misses_its_target_in_any_run() -> None:
    wrong = Run(10.0, [*MUCH.answers, *answers(1, 200, right=False)])
    assert wrong.goodput() == MUCH.goodput()
    found = measured(overload=wrong)
    assert (found["wrong_answers"].value, found["overload_unclear"].value) == (1, 1)
    assert met(found)["wrong_answers"] is False
    assert met(measured(steady=wrong))["wrong_answers"] is False


def test_recovery_lasts_until_the_last_answer_that_was_not_good_whenever_it_was_asked_for() -> None:
    asked_before = Answer(9.9, 9.9, 12.5, "rerank_new", 503, True)
    found = measured(overload=Run(10.0, [*MUCH.answers, asked_before]))
    assert found["recovery"].value == 2.5
    after = Run(30.0, [*answers(5), *answers(1, 503, at=6.0, clear=True), *answers(5, at=7.0)])
    found = measured(after=after)
    assert found["recovery"].value == pytest.approx(6.01)
    assert met(found)["recovery"] is False


def test_quantiles_are_those_of_good_answers_from_when_they_were_due() -> None:
    good = [Answer(1.0, 1.5, 1.0 + ms / 1000, "score", 200, False) for ms in range(500, 601)]
    run = Run(10.0, [*good, Answer(1.0, 1.5, 9.0, "score", 503, True)])
    assert (run.quantile(0.5), run.quantile(0.99)) == pytest.approx((550.0, 599.0))
    assert run.late(0.5) == 500.0
    assert math.isnan(Run(1.0, answers(1, 503)).quantile(0.5))


def test_what_the_load_writes_is_read_back_by_phases_that_begin_at_zero() -> None:
    first = [0.5, 0.5, 2.5, "reset", 503, True, True, ""]
    late = [1.9, 2.25, 3.0, "score", 200, False, True, "applied"]
    last = [6.5, 7.5, 8.0, "score", 500, False, True, ""]  # nobody was free until all was over
    one, two = runs_of({"calls": [first, late, last], "cores": [[0.25, 1.5], [0.125, 0.5]]}, [2.0, 5.0])
    assert one == Run(2.0, [Answer(0.5, 0.5, 2.5, "reset", 503, True)], 0.25, 1.5)
    assert (two.seconds, two.load_cores, two.server_cores) == (5.0, 0.125, 0.5)
    assert [(answer.sent, answer.came, answer.said) for answer in two.answers] == [
        (0.25, 1.0, "applied"),
        (5.5, 6.0, ""),
    ]
    assert (two.offered(), two.count(500, 599), two.bad_until()) == (0.2, 1, 6.0)
    assert two.answers[0].milliseconds == pytest.approx(1100.0)


def test_rankings_that_name_nobody_are_counted_among_those_that_say_something() -> None:
    said = [Answer(0, 0, 0.1, "score", 200, False, True, reason) for reason in ("applied", "unconfirmed", "no_adapter")]
    quiet = [Answer(0, 0, 0.1, "consent", 200, False), Answer(0, 0, 0.1, "rerank_known", 503, True)]
    assert measured(steady=Run(1.0, [*said, *quiet]))["steady_unconfirmed"].value == pytest.approx(1 / 3)
    assert measured()["overload_unconfirmed"].value == 0.0


def test_a_shorter_run_shrinks_all_of_it() -> None:
    assert Work.of(20) == Work(steady_s=20, capacity_s=5, overload_s=5, after_s=5)
    assert Work.of(600).overload_s == 60


def test_the_bound_on_requests_is_met_in_the_overload_and_never_in_the_steady_run() -> None:
    assert Work().steady_callers < load_bench.MOST_REQUESTS < Work().overload_callers


def test_memory_is_that_of_the_process_that_is_watched() -> None:
    with watched_memory(os.getpid()) as samples:
        while not samples:
            time.sleep(0.001)
    assert all(1e6 < sample < 1e12 for sample in samples)


def test_without_locust_it_says_how_to_get_it_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Path:
        raise ConfigurationError(f"{name} is not set up.", mend="Run: make peers.")

    monkeypatch.setattr(load_bench, "peer_python", missing)
    with pytest.raises(ConfigurationError, match="locust is not set up"):
        load_bench.measure(tmp_path / "home", tmp_path, Work(), None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# --- the load ---------------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the load's script defines. locust is in an environment of its own; here its names stand for nothing."""
    locust = {"User": object, "task": lambda _weight: lambda call: call}
    monkeypatch.setitem(sys.modules, "locust", SimpleNamespace(**locust))
    monkeypatch.setitem(sys.modules, "locust.env", SimpleNamespace(Environment=object))
    monkeypatch.setitem(sys.modules, "locust.exception", SimpleNamespace(StopUser=StopError))
    return runpy.run_path(str(Path(load_bench.__file__).with_name("peer_locust.py")))


def plan(port: int = 1, *phases: tuple[float | None, float]) -> dict[str, Any]:
    return {"port": port, "server": 1, "secret": "s", "domain": "d", "users": ["ann"], "callers": 4, "phases": phases}


def test_calls_are_due_at_random_moments_at_the_rate_of_each_phase(load: dict[str, Any]) -> None:
    phases = [(100.0, 50.0), (10.0, 50.0)]
    dues = list(load["due_times"](phases, random.Random(7), None))
    much, little = [due for due in dues if due < 50.0], [due for due in dues if due >= 50.0]
    assert dues == sorted(dues)
    assert dues[-1] < 100.0
    assert 4600 < len(much) < 5400
    assert 380 < len(little) < 620
    gaps = sorted(b - a for a, b in pairwise(much))
    assert 0.005 < gaps[len(gaps) // 2] < 0.009  # ln 2 of the mean: some come together, others long after


def test_a_call_is_made_when_it_is_due_by_whoever_is_free(load: dict[str, Any]) -> None:
    """However long the answer to one takes, the others are made at their times."""
    run = load["Run"](plan(1, (10.0, 60.0)), name="a")
    now = [0.0]
    run.clock = lambda: now[0]
    expected = list(islice(load["due_times"]([(10.0, 60.0)], random.Random("a"), run.clock), 40))
    kind = load["callers_of"](run)
    waits, free = kind(), kind()
    waits.wait_time()  # takes the first one, and is not answered
    for due in expected[1:]:
        assert now[0] + free.wait_time() == pytest.approx(due)
        now[0] = due
    now[0] += 5.0
    assert waits.wait_time() == 0.0  # nobody was free: it is made at once, and counts from when it was due
    assert waits.due < now[0] - 4.0


def test_callers_without_a_rate_never_wait_and_stop_at_the_end(load: dict[str, Any]) -> None:
    run = load["Run"](plan(1, (None, 60.0)))
    now = [0.0]
    run.clock = lambda: now[0]
    run.dues = load["due_times"](run.plan["phases"], run.random, run.clock)
    caller = load["callers_of"](run)()
    for now[0] in (0.0, 1.5, 59.0):
        assert caller.wait_time() == 0.0
        assert caller.due == now[0]
    now[0] = 60.0
    assert caller.wait_time() == 0.0
    with pytest.raises(StopError):
        caller.read_consent()
    assert run.calls == []


@contextmanager
def answering(*replies: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that sends these, one for each request, and the requests it got. Empty: it closes instead."""
    asked: list[bytes] = []

    def serve() -> None:
        connection: socket.socket | None = None
        for reply in replies:
            if connection is None:
                connection, _ = listener.accept()
            asked.append(connection.recv(65536))
            for byte in (reply[:20], reply[20:]):  # an answer comes in pieces
                connection.sendall(byte)
            if not reply or b"connection: close" in reply:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(10.0)


def reply(body: object, status: str = "200 OK", more: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\n{more}\r\n".encode() + data


def ranking(count: int = 10, **other: object) -> dict[str, Any]:
    results = [{"index": index, "score": -0.5 * index} for index in range(count)]
    return {"id": "i", "results": results, "personalization": {"reason": "applied"}, **other}


def made(load: dict[str, Any], ask: Callable[[Any], None], *replies: bytes) -> tuple[list[list[Any]], list[bytes]]:
    """(kind, status, clear, right, said) of each call, and what was sent."""
    with answering(*replies) as (port, asked):
        run = load["Run"](plan(port, (None, 60.0)))
        caller = load["callers_of"](run)()
        caller.on_start()
        for _ in replies:
            ask(caller)
        caller.on_stop()
    assert all(due <= sent <= came for due, sent, came, *_ in run.calls)
    return [call[3:] for call in run.calls], asked


def test_each_answer_is_read_as_it_is(load: dict[str, Any]) -> None:
    refused = [
        reply({}, "503 Service Unavailable", "retry-after: 1\r\nconnection: close\r\n"),
        reply({}, "429 Too Many Requests", "Retry-After: 3\r\n"),
        reply({}, "503 Service Unavailable"),
        reply({}, "500 Internal Server Error"),
    ]
    calls, asked = made(load, lambda caller: caller.rerank_known_texts(), reply(ranking()), *refused, b"")
    assert calls == [
        ["rerank_known", 200, False, True, "applied"],
        ["rerank_known", 503, True, True, ""],
        ["rerank_known", 429, True, True, ""],
        ["rerank_known", 503, False, True, ""],
        ["rerank_known", 500, False, True, ""],
        ["rerank_known", 0, False, True, ""],
    ]
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/rerank HTTP/1.1\r\n")
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    assert len(json.loads(body)["documents"]) == 10


WRONG = {
    "not JSON": b"<html>",
    "not an object": [],
    "a document too few": ranking(9),
    "one twice": ranking(results=[{"index": 0, "score": 0.0}] * 10),
    "no number": ranking(results=[{"index": index, "score": math.nan} for index in range(10)]),
    "no scores": ranking(results=[{"index": index} for index in range(10)]),
    "nothing of the person": ranking(personalization={}),
    "empty": b"",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=list(WRONG))
def test_an_answer_with_status_200_that_is_none_to_what_was_asked_is_noticed(
    load: dict[str, Any], body: object
) -> None:
    calls, _ = made(load, lambda caller: caller.rerank_known_texts(), reply(body), reply(ranking()))
    assert [call[3] for call in calls] == [False, True]


def test_feedback_is_on_what_was_shown_and_its_answer_is_read_like_the_others(load: dict[str, Any]) -> None:
    taken, odd = reply({"accepted": 1}, "202 Accepted"), reply(b"oh", "202 Accepted")
    calls, asked = made(load, lambda caller: caller.feedback(), reply(ranking()), taken, reply(ranking()), odd)
    assert [call[0] for call in calls] == ["rerank_known", "feedback"] * 2
    signal = json.loads(asked[1].partition(b"\r\n\r\n")[2])
    assert (signal["inference_id"], signal["user"]) == ("i", "ann")
    assert [call[3] for call in calls] == [True, True, True, False]


def test_the_kinds_are_those_that_the_load_names(load: dict[str, Any]) -> None:
    source = (Path(load_bench.__file__).parent / "peer_locust.py").read_text()
    named = {
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("call", "rank")
        and isinstance(node.args[0], ast.Constant)
    }
    assert named == set(KINDS)


def test_the_load_calls_nothing_but_loopback_and_imports_nothing_of_ours() -> None:
    source = (Path(load_bench.__file__).parent / "peer_locust.py").read_text()
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert not {name for name in imported if name.startswith("idiolect")}
    assert "://" not in source
    assert source.count("create_connection(") == 1
    assert 'create_connection(("127.0.0.1", self._port)' in source
