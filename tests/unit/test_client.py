"""The client by itself: what it sends, when it sends again, what it raises, and what it never shows."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from client_calls import builders, filled
from idiolect import AsyncClient, Client, errors
from idiolect.client import ApiError, Document, RetryPolicy, Signal, calls
from idiolect.client import errors as api_errors
from idiolect.client.registry_results import Pointer, Pointers
from idiolect.client.retries import Lost, parse_retry_after
from idiolect_services.gateway.marks import LIFE_MS

KEY = "idio_" + "s3cret-Key_" * 3
SAID = {
    "applied": True,
    "reason": "applied",
    "strength": 1.0,
    "global": "a" * 64,
    "domain": None,
    "adapter": "v",
    "generation": 0,
}
RANKING = {
    "id": "i",
    "model": "a" * 64,
    "results": [{"index": 1, "relevance_score": 0.7, "score": 2.0}],
    "personalization": SAID,
}
OUTCOME = {"id": "s", "status": "accepted"}
STATE = {
    "known": True,
    "opted_in": True,
    "paused": False,
    "strength": 1.0,
    "generation": 0,
    "revision": 3,
    "policy_version": None,
    "updated_at": None,
}
RECEIPT = {
    "format": "f",
    "id": "r",
    "tenant": "t",
    "subject": "s",
    "scope": "all",
    "generation": 1,
    "steps": [],
    "erased": {},
    "shared_releases": [],
    "completed_at": "2026-11-01T00:00:00Z",
    "state": "done",
    "key_id": "k",
    "signature": "00",
}
VERSION = {
    "id": "v",
    "adapter": "domain:d",
    "release": "r",
    "scope": "domain",
    "subject": None,
    "domain": "d",
    "generation": 0,
    "revoked": False,
    "withheld": None,
    "weights_sha256": "00",
    "created_at": "2026-11-01T00:00:00Z",
    "kind": "lora",
    "epsilon": None,
    "unit": None,
}
POINTERS = {"adapter": "domain:d", "pointers": [{"name": "live", "version": "v2", "revision": 3}]}
BEFORE = Pointers(adapter="domain:d", pointers=(Pointer(name="live", version="v1", revision=2),))
IMPORTED = {"release": "r", "global_digest": "g", "versions": 0, "fenced": 0, "quarantined": 0, "known": True}
ROLLOUT = {
    "id": "o",
    "candidate": {"kind": "setting", "id": None, "strength": 0.5},
    "covers": ["setting"],
    "plan": {"steps": [0.5], "guardrails": {}, "min_people": 1, "per_person": 1, "slow_ms": 1.0, "alpha": 0.1},
    "state": "aborted",
    "step": 1,
    "share": 0.0,
    "verdict": "healthy",
    "reason": "r",
    "actor": "a",
    "revision": 4,
    "created_at": "2026-11-01T00:00:00Z",
    "moved_at": "2026-11-01T00:00:00Z",
}


class Server:
    """Answers with what it was given, in order, the last one for ever; remembers requests and waits."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **options: Any) -> Client:
        return Client(
            "https://api.test/base", KEY, transport=httpx.MockTransport(self), sleep=self.waits.append, **options
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def both(self, call: Callable[[Any], Any]) -> list[Any]:
        """The result of `call` from either client."""

        async def asynchronous() -> Any:
            transport = httpx.MockTransport(self)
            async with AsyncClient("https://api.test/base", KEY, transport=transport, sleep=self._sleep) as api:
                return await call(api)

        with self.client() as api:
            return [call(api), asyncio.run(asynchronous())]


def problem(status: int, code: str, **fields: Any) -> httpx.Response:
    return httpx.Response(
        status, json={"code": code, "detail": "It is so.", "mend": "Mend it.", "request_id": "r-1", **fields}
    )


def test_both_clients_send_the_same_and_read_the_same() -> None:
    server = Server(httpx.Response(200, json=RANKING))
    documents = ["a", Document("b", id="2")]
    first, second = server.both(lambda api: api.rerank("q", documents, user="ada", top_n=1, strength=0.5))
    assert first == second
    assert (first.best.index, first.id, first.personalization.global_) == (1, "i", "a" * 64)
    sent, again = server.requests
    assert sent.content == again.content
    assert sent.url == again.url == "https://api.test/base/v1/rerank"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert httpx.Response(200, content=sent.content).json() == {
        "query": "q",
        "documents": ["a", {"text": "b", "id": "2"}],
        "user": "ada",
        "top_n": 1,
        "strength": 0.5,
    }


def test_a_result_does_not_change_and_tolerates_what_a_newer_server_adds() -> None:
    server = Server(httpx.Response(200, json=RANKING | {"new": 1}))
    ranking = server.client().rerank("q", ["a", "b"])
    with pytest.raises(ValueError, match="frozen"):
        ranking.id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "user", ["a/b", "..", ".", "a b?c#d", "ä", "%2e%2e", "https://evil.test/", "a\\b", "@evil.test"]
)
def test_an_odd_user_id_stays_one_segment_of_the_path(user: str) -> None:
    server = Server(httpx.Response(200, json=STATE))
    server.client().consent(user)
    raw = server.requests[0].url.raw_path.decode()
    assert raw.count("/") == 5
    assert raw.startswith("/base/v1/users/")
    assert raw.endswith("/personalization")
    assert server.requests[0].url.host == "api.test"


def test_an_empty_user_id_is_refused_before_anything_is_sent() -> None:
    server = Server(httpx.Response(200, json=STATE))
    with pytest.raises(errors.InvalidInputError, match="user is empty"):
        server.client().consent("")
    assert server.requests == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_json_can_not_hold_is_refused_before_anything_is_sent(bad: Any) -> None:
    server = Server(httpx.Response(202, json=OUTCOME))
    with pytest.raises(errors.InvalidInputError, match="JSON can't"):
        server.client().feedback(Signal("i", "rating", [[0, bad]], "ada"))
    assert server.requests == []


NAMING = sorted(
    (name, parameter)
    for name, build in builders().items()
    for parameter in ("user", "adapter_id", "version_id", "release_id", "rollout_id", "reset_id")
    if parameter in inspect.signature(build).parameters
)


@pytest.mark.parametrize(("name", "parameter"), NAMING)
def test_an_id_that_names_another_place_stays_where_it_is(name: str, parameter: str) -> None:
    """In the path it is one segment, as a harmless one is; or it is in the query or the body."""
    build = builders()[name]
    harmless = filled(build).path.split("/")
    for odd in ("../../v1/tenants", ".", "a/b", "a?c=d#e", "%2e%2e", "user:a b", "日\x00"):
        found = filled(build, **{parameter: odd}).path.split("/")
        assert len(found) == len(harmless)
        for sent, plain in zip(found, harmless, strict=True):
            assert sent == plain or (quote(odd, safe="").replace(".", "%2E") == sent)


@pytest.mark.parametrize(
    "call",
    [
        lambda api: api.consent("ada\ud800"),
        lambda api: api.rollback("domain:\ud800", "r"),
        lambda api: api.contributions("\ud800"),
        lambda api: api.import_release(b"", "why\ud800"),
        lambda api: api.reset("ada", idempotency_key="k\r\nX-Evil: 1"),
        lambda api: api.reset("ada", idempotency_key="schlüssel"),
    ],
)
def test_text_that_can_not_be_sent_is_refused_before_anything_is(call: Callable[[Any], Any]) -> None:
    server = Server(httpx.Response(200, json=RECEIPT))
    with pytest.raises(errors.InvalidInputError):
        call(server.client())
    assert server.requests == []


def test_an_error_names_no_person_even_by_their_pseudonym() -> None:
    server = Server(httpx.ReadTimeout("too slow"))
    for call in (lambda api: api.rollback("user:abcdef", "r"), lambda api: api.erase("abcdef")):
        with pytest.raises(ApiError) as raised:
            call(server.client(retries=RetryPolicy(attempts=1)))
        assert "abcdef" not in str(raised.value)
    with pytest.raises(ApiError, match="/v1/rollouts/o/hold"):
        server.client().hold_rollout("o", "r")


def test_one_text_is_not_a_list_of_documents() -> None:
    with pytest.raises(errors.InvalidInputError, match="one text"):
        calls.rerank("q", "abc")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "also"),
    [
        (400, "malformed_json", api_errors.ApiInvalidInputError, errors.InvalidInputError),
        (401, "not_authenticated", api_errors.ApiAuthenticationError, errors.NotAuthenticatedError),
        (404, "not_found", api_errors.ApiNotFoundError, errors.NotFoundError),
        (409, "conflict", api_errors.ApiConflictError, errors.ConflictError),
        (409, "idempotency_key_reused", api_errors.ApiConflictError, errors.ConflictError),
        (409, "personalization_unavailable", api_errors.ApiConsentError, errors.ConsentError),
        (412, "precondition_failed", api_errors.ApiPreconditionError, errors.PreconditionError),
        (413, "too_large", api_errors.ApiTooLargeError, errors.TooLargeError),
        (422, "invalid_input", api_errors.ApiInvalidInputError, errors.InvalidInputError),
        (429, "rate_limited", api_errors.ApiRateLimitError, ApiError),
        (500, "internal", ApiError, errors.IdiolectError),
        (503, "unavailable", api_errors.ApiUnavailableError, errors.UnavailableError),
    ],
)
def test_a_problem_becomes_its_error(status: int, code: str, kind: type[ApiError], also: type[Exception]) -> None:
    server = Server(problem(status, code, errors=[{"field": "query", "problem": "missing"}]))
    with pytest.raises(kind) as raised:
        server.client(retries=RetryPolicy(attempts=1)).rerank("q", ["a"])
    error = raised.value
    assert isinstance(error, also)
    assert (error.status, error.code, error.request_id) == (status, code, "r-1")
    assert (error.message, error.mend) == ("It is so.", "Mend it.")
    assert [field.field for field in error.fields] == ["query"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(502, text="<html>bad gateway"), api_errors.ApiUnavailableError),
        (httpx.Response(404, text="nginx"), api_errors.ApiAnswerError),
        (httpx.Response(404, json=["code"]), api_errors.ApiAnswerError),
        (httpx.Response(500, content=b"[" * 100_000), api_errors.ApiAnswerError),
        (httpx.Response(307, headers={"Location": "https://evil.test/"}), api_errors.ApiAnswerError),
        (httpx.Response(200, text="<html>hello"), api_errors.ApiAnswerError),
        (httpx.Response(200, json={"id": "i"}), api_errors.ApiAnswerError),
        (httpx.Response(200, json=RANKING | {"results": "none"}), api_errors.ApiAnswerError),
    ],
)
def test_an_answer_of_another_server_is_an_error_and_a_redirect_is_not_followed(
    answer: httpx.Response, kind: type[ApiError]
) -> None:
    server = Server(answer)
    with pytest.raises(kind):
        server.client(retries=RetryPolicy(attempts=1)).rerank("q", ["a"])
    assert len(server.requests) == 1


def test_words_of_the_server_can_not_forge_log_lines() -> None:
    server = Server(problem(422, "bad\r\ncode", detail="one\nERROR two\x1b[31m" + "x" * 5000))
    with pytest.raises(ApiError) as raised:
        server.client().rerank("q", ["a"])
    assert str(raised.value).isprintable()
    assert raised.value.code == "badcode"
    assert len(raised.value.message) <= 500


# --- retries ----------------------------------------------------------------------------------------------------------

SAFE: list[tuple[Callable[[Any], Any], Any]] = [
    (lambda api: api.rerank("q", ["a"]), RANKING),
    (lambda api: api.feedback(Signal("i", "choice", 0, "ada")), OUTCOME),
    (lambda api: api.reset("ada"), RECEIPT),
    (lambda api: api.set_consent("ada", opted_in=True), STATE),
    (lambda api: api.consent("ada"), STATE),
    (lambda api: api.register_lora_version("domain:d", {}, b"w", global_digest="g", reason="r"), VERSION),
    (lambda api: api.promote("domain:d", "v", "r"), POINTERS),
    (lambda api: api.promote_release("r", "r"), {"id": "r", "moved": 0}),
    (lambda api: api.import_release(b"{}", "r"), IMPORTED),
    (lambda api: api.collect_garbage(apply=True), {"applied": True, "releases": 0, "versions": 0, "bytes": 0}),
    (lambda api: api.abort_rollout("o", "r"), ROLLOUT),
    (lambda api: api.create_rollout("r", strength=0.5), ROLLOUT),
    (lambda api: api.rollback("domain:d", "r"), POINTERS),
    (lambda api: api.rollback("domain:d", "r", based_on=BEFORE), POINTERS),
]
ONCE_ONLY: list[tuple[Callable[[Any], Any], Any]] = [
    (lambda api: api.set_consent("ada", paused=True, if_revision=3), STATE),
    (lambda api: api.promote("domain:d", "v", "r", based_on=BEFORE), POINTERS),
    (lambda api: api.start_rollout("o", "r"), ROLLOUT),
    (lambda api: api.hold_rollout("o", "r"), ROLLOUT),
    (lambda api: api.resume_rollout("o", "r", if_revision=3), ROLLOUT),
    (lambda api: api.abort_rollout("o", "r", if_revision=3), ROLLOUT),
]
LOST = httpx.ReadTimeout("too slow")


@pytest.mark.parametrize(("call", "body"), SAFE)
@pytest.mark.parametrize("trouble", [problem(503, "unavailable"), LOST, httpx.ConnectError("no"), problem(429, "x")])
def test_a_safe_call_is_sent_again_exactly_as_it_was(
    call: Callable[[Any], Any], body: Any, trouble: httpx.Response | Exception
) -> None:
    server = Server(trouble, trouble, httpx.Response(200, json=body))
    call(server.client())
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1
    assert len({request.headers.get("idempotency-key") for request in server.requests}) == 1
    assert len(server.waits) == 2


def test_writes_carry_an_id_of_the_clients_making_and_a_new_one_each_time() -> None:
    server = Server(httpx.Response(200, json=RECEIPT))
    api = server.client()
    api.reset("ada")
    api.reset("ada")
    api.reset("ada", idempotency_key="mine")
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


@pytest.mark.parametrize(("call", "body"), ONCE_ONLY)
def test_a_call_that_can_not_be_made_twice_is_not_sent_again_after_its_answer_was_lost(
    call: Callable[[Any], Any], body: Any
) -> None:
    server = Server(LOST)
    with pytest.raises(api_errors.ApiUnavailableError) as raised:
        call(server.client())
    assert raised.value.code == "timeout"
    assert len(server.requests) == 1
    refused = Server(problem(503, "unavailable"))
    with pytest.raises(api_errors.ApiUnavailableError):
        call(refused.client())
    assert len(refused.requests) == 1


@pytest.mark.parametrize(("call", "body"), ONCE_ONLY)
def test_such_a_call_is_sent_again_if_it_never_left_or_was_turned_away(call: Callable[[Any], Any], body: Any) -> None:
    server = Server(httpx.ConnectError("no"), problem(429, "rate_limited"), httpx.Response(200, json=body))
    assert call(server.client()).model_dump(mode="json", exclude_unset=True).items() <= body.items()
    assert len(server.requests) == 3


def test_what_a_change_is_based_on_is_sent_as_its_etag() -> None:
    server = Server(httpx.Response(200, json=POINTERS))
    api = server.client()
    api.promote("domain:d", "v", "r", based_on=BEFORE)
    api.rollback("domain:d", "r", based_on=api.pointers("domain:d"))
    server.answers = [httpx.Response(200, json=STATE)]
    api.set_consent("ada", paused=True, if_revision=3)
    assert [request.headers.get("if-match") for request in server.requests] == ['"2.v1"', None, '"3.v2"', '"3"']


@pytest.mark.parametrize("status", [400, 401, 404, 409, 412, 413, 422, 500])
def test_what_would_only_fail_again_is_not_sent_again(status: int) -> None:
    server = Server(problem(status, "x"))
    with pytest.raises(ApiError):
        server.client().rerank("q", ["a"])
    assert len(server.requests) == 1


def test_what_is_under_way_already_is_asked_for_again_and_another_conflict_is_not() -> None:
    busy = httpx.Response(409, headers={"Retry-After": "1"}, json={"code": "idempotency_key_in_use"})
    server = Server(busy, busy, httpx.Response(200, json=POINTERS))
    server.client().rollback("domain:d", "r")
    assert [1.0 <= wait < 2.0 for wait in server.waits] == [True, True]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    other = Server(httpx.Response(409, headers={"Retry-After": "1"}, json={"code": "conflict"}))
    with pytest.raises(api_errors.ApiConflictError):
        other.client().rollback("domain:d", "r")
    assert len(other.requests) == 1


def test_after_a_crash_the_tries_outlast_the_mark_of_the_one_that_was_lost() -> None:
    """Whatever the dice say: the first answer is lost at once, and each later one is refused as under way."""
    policy, waited = RetryPolicy(), 0.0
    for attempt, outcome, asked in ((0, Lost.NO_ANSWER, None), (1, 429, 1.0), (2, 429, 1.0)):
        wait = policy.wait_s(outcome, attempt=attempt, safe=True, retry_after_s=asked, draw=0.0)
        assert wait is not None
        waited += wait
    assert waited * 1000 > LIFE_MS


def test_tries_end_and_the_last_error_is_raised() -> None:
    server = Server(problem(503, "overloaded"))
    with pytest.raises(api_errors.ApiUnavailableError) as raised:
        server.client(retries=RetryPolicy(attempts=3)).rerank("q", ["a"])
    assert len(server.requests) == 3
    assert raised.value.code == "overloaded"


def test_retry_after_is_waited_for_and_too_long_a_one_is_not() -> None:
    soon = httpx.Response(429, headers={"Retry-After": "7"}, json={"code": "rate_limited"})
    server = Server(soon, httpx.Response(200, json=RANKING))
    server.client().rerank("q", ["a"])
    assert 7.0 <= server.waits[0] < 7.3
    late = Server(httpx.Response(429, headers={"Retry-After": "3600"}, json={"code": "rate_limited"}))
    with pytest.raises(api_errors.ApiRateLimitError) as raised:
        late.client().rerank("q", ["a"])
    assert raised.value.retry_after_s == 3600
    assert late.waits == []


def test_waits_grow_are_capped_and_jittered() -> None:
    policy = RetryPolicy(attempts=20, base_s=0.5, cap_s=4.0)

    def wait(attempt: int, draw: float) -> float | None:
        return policy.wait_s(503, attempt=attempt, safe=True, retry_after_s=None, draw=draw)

    assert [wait(attempt, 0.5) for attempt in range(6)] == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert wait(3, 0.0) == 0.0
    assert wait(19, 0.5) is None
    assert policy.wait_s(Lost.NO_ANSWER, attempt=0, safe=False, retry_after_s=None, draw=0.5) is None


NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 12 ", 12.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 40, 999_999_999.0),
        ("\u0663", None),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2026 12:00:30 -0000", 30.0),
        ("Sat, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_both_forms_of_retry_after_are_read(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds
    assert parse_retry_after((NOW + timedelta(seconds=5)).strftime("%a, %d %b %Y %H:%M:%S GMT"), NOW) == 5.0


@pytest.mark.parametrize("bad", [{"attempts": 0}, {"attempts": 21}, {"base_s": -1}, {"base_s": 9.0}])
def test_a_policy_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidInputError):
        RetryPolicy(**bad)


# --- the base URL and the key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.test",
        "ftp://api.test",
        "https://",
        "https://user:pass@api.test",
        "https://api.test?x=1",
        "https://api.test#x",
        "http://api.test",
        "http://127.0.0.1.evil.test",
        "https://[::1",
        "https://a b",
    ],
)
def test_a_base_url_that_can_not_be_right_is_refused(url: str) -> None:
    with pytest.raises(errors.ConfigurationError) as raised:
        Client(url, KEY)
    assert raised.value.mend
    assert "pass@" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:1/", "https://api.test/x/"])
def test_a_base_url_of_this_machine_may_be_plain(url: str) -> None:
    with Client(url, KEY) as api:
        assert not repr(api).endswith("/')")


def test_plain_http_elsewhere_has_to_be_asked_for() -> None:
    with Client("http://idiolect.internal", KEY, allow_http=True) as client:
        assert "http://idiolect.internal" in repr(client)


@pytest.mark.parametrize("key", ["", "idio_", "sk-123456789", KEY + "\r\nX-Evil: 1", KEY + "é", "idio_a b", "a.b"])
def test_a_key_that_can_not_be_one_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(errors.ConfigurationError) as raised:
        Client("https://api.test", key)
    assert len(key) < 6 or key not in str(raised.value)


def test_an_end_users_token_is_taken_too() -> None:
    token, sent = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl", []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        return httpx.Response(200, json={"status": "ok"})

    with Client("https://api.test", token, transport=httpx.MockTransport(answer)) as client:
        client.health()
    assert sent == [f"Bearer {token}"]


def test_the_key_is_in_no_repr_log_or_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = Server(problem(503, "unavailable"), httpx.ReadTimeout("x"), problem(401, "not_authenticated"))
    api = server.client()
    shown = [repr(api), str(api), repr(vars(api)), repr(vars(api._http))]
    with pytest.raises(ApiError) as raised:
        api.rerank("q", ["a"])
    shown += [repr(raised.value), "".join(traceback.format_exception(raised.value)), caplog.text]
    lost = Server(httpx.ConnectError("refused"))
    with pytest.raises(ApiError) as raised:
        lost.client(retries=RetryPolicy(attempts=1)).consent("ada@example.org")
    shown += ["".join(traceback.format_exception(raised.value))]
    assert not any("s3cret" in text for text in shown)
    assert "ada" not in str(raised.value)


# --- what it needs ----------------------------------------------------------------------------------------------------

ONLY = """
import sys
ALLOWED = {"httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio", "pydantic", "pydantic_core",
           "annotated_types", "typing_extensions", "typing_inspection", "idiolect"} | set(sys.stdlib_module_names)
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED and not name.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Guard())
"""


def test_the_client_imports_httpx_and_pydantic_and_nothing_else_of_ours() -> None:
    code = ONLY + (
        "import idiolect\n"
        "api = idiolect.Client('https://api.test', 'idio_0123456789')\n"
        "idiolect.AsyncClient('https://api.test', 'idio_0123456789')\n"
        "ours = sorted(name for name in sys.modules if name.startswith('idiolect.'))\n"
        "assert all(name.startswith(('idiolect.client', 'idiolect.errors')) for name in ours), ours\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_idiolect_alone_imports_not_even_those() -> None:
    code = "import sys, idiolect; assert not {'httpx', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_without_the_server_says_in_one_line_how_to_get_it() -> None:
    code = ONLY.replace('"idiolect"', '"idiolect", "idiolect_services"') + (
        "sys.argv = ['idiolect', 'serve']\nfrom idiolect_services.__main__ import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'idiolect[server]'" in done.stderr


def test_a_name_that_idiolect_does_not_have_is_an_attribute_error() -> None:
    import idiolect

    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = idiolect.Klient
