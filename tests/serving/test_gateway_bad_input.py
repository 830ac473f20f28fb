from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_world import World, assert_problem, world_at

PATH = "/v1/rerank"
GOOD = {"query": "q", "documents": ["a", "b"]}


def body_with(**fields: Any) -> dict[str, Any]:
    return GOOD | fields


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        (body_with(documents=[]), "documents"),
        (body_with(documents="a"), "documents"),
        (body_with(documents={"0": "a"}), "documents"),
        (body_with(documents=[1]), "documents.0"),
        (body_with(documents=["a", None]), "documents.1"),
        (body_with(documents=["a", ["b"]]), "documents.1"),
        (body_with(documents=[{"id": "a"}]), "documents.0"),
        (body_with(documents=[{"text": 1}]), "documents.0"),
        (body_with(documents=[{"text": "a", "id": ""}]), "documents.0"),
        (body_with(documents=["nul \x00"]), "documents.0"),
        (body_with(documents=[{"text": "a", "id": True}]), "documents.0.id"),
        (body_with(query=None), "query"),
        (body_with(query=7), "query"),
        (body_with(query="a\x00b"), "query"),
        (body_with(top_n=-1), "top_n"),
        (body_with(top_n=1.5), "top_n"),
        (body_with(top_n="1"), "top_n"),
        (body_with(top_n=True), "top_n"),
        (body_with(strength=1.1), "strength"),
        (body_with(strength=-0.0001), "strength"),
        (body_with(strength="0.5"), "strength"),
        (body_with(strength=True), "strength"),
        (body_with(personalization="on"), "personalization"),
        (body_with(personalization=None), "personalization"),
        (body_with(explain="yes"), "explain"),
        (body_with(return_documents=1), "return_documents"),
        (body_with(user=7), "user"),
        (body_with(user="u" * 129), "user"),
        (body_with(domain=["news"]), "domain"),
        (body_with(domain="d" * 65), "domain"),
    ],
)
def test_a_field_that_does_not_validate_is_named(world: World, body: dict[str, Any], field: str) -> None:
    problem = assert_problem(world.api(world.key()).post(PATH, body), 422, "invalid_input")
    assert any(error["field"].startswith(field) for error in problem["errors"]), problem
    for error in problem["errors"]:
        assert re.fullmatch(r"[a-z_0-9.]+", error["field"])
        assert "Document" not in error["problem"]


@pytest.mark.parametrize(
    "fields", [{"user": ""}, {"user": "a\nb"}, {"domain": "News"}, {"domain": "a/b"}, {"domain": ""}]
)
def test_names_that_can_not_be_names_are_refused(world: World, fields: dict[str, str]) -> None:
    assert_problem(world.api(world.key()).post(PATH, body_with(**fields)), 422, "invalid_input")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b'{"query": "q", "documents": ["a"], "strength": NaN}',
        b'{"query": "q", "documents": ["a"], "strength": Infinity}',
        b'{"query": "q", "documents": ["a"], "x": -Infinity}',
        b'{"query": "q", "query": "r", "documents": ["a"]}',
        b'{"query": "q", "documents": [{"text": "a", "text": "b"}]}',
        b'{"query": "q", "documents": ["\\ud800"]}',
        b'{"query": "\\uDFFF", "documents": ["a"]}',
        b'{"\\ud83d": 1, "query": "q", "documents": ["a"]}',
        b'{"query": "\xff\xfe", "documents": ["a"]}',
        b'{"query": "\xed\xa0\x80", "documents": ["a"]}',
        b'\xef\xbb\xbf{"query": "q", "documents": ["a"]}',
        b'{"query": "q", "documents": ["a"]} trailing',
        b'{"query": "q", "documents": ["a"], "x": ' + b"1" * 5000 + b"}",
        b'{"query": "q", "documents": ["a"], "x": ' + b"[" * 100 + b"]" * 100 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"query": "q", "documents": ["a"], "x": ' + b'{"a":' * 33 + b"1" + b"}" * 33 + b"}",
        b"\x00",
    ],
)
def test_what_is_not_plain_json_is_refused(world: World, content: bytes) -> None:
    assert_problem(world.api(world.key()).raw(PATH, content), 400, "malformed_json")


def test_numbers_beyond_float_are_no_strength(world: World) -> None:
    content = b'{"query": "q", "documents": ["a"], "strength": 1e999}'
    assert_problem(world.api(world.key()).raw(PATH, content), 422, "invalid_input")


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": ["{" * 100, "[" * 100]},
        {"documents": ["\\ud800 written out", "\U0001f600"]},
        {"query": ""},
        {"documents": [""]},
        {"documents": ["<script>alert(1)</script>", "=1+1", "\u202e\u2028"]},
    ],
)
def test_odd_texts_are_texts(world: World, fields: dict[str, Any]) -> None:
    """Also pairs of surrogates, which are one character, and braces, which only look like nesting."""
    response = world.api(world.key()).raw(PATH, json.dumps(body_with(**fields)).encode())
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("media", "encoding"),
    [("text/plain", ""), ("", ""), ("application/x-www-form-urlencoded", ""), ("application/json", "gzip")],
)
def test_another_media_type_is_refused(world: World, media: str, encoding: str) -> None:
    headers = {"Content-Type": media} | ({"Content-Encoding": encoding} if encoding else {})
    response = world.api(world.key()).send("POST", PATH, content=json.dumps(GOOD).encode(), headers=headers)
    assert_problem(response, 415, "unsupported_media_type")
    assert response.headers["connection"] == "close"


def test_a_charset_after_the_media_type_is_fine(world: World) -> None:
    content = json.dumps(GOOD).encode()
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert world.api(world.key()).send("POST", PATH, content=content, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        body_with(documents=["x"] * 10_000),
        body_with(documents=[1] * 400_000),
        body_with(documents=["x" * 1_000_000]),
        body_with(query="x" * 1_000_000),
        body_with(documents=["ok", {"text": "x" * 20_001}]),
    ],
)
def test_too_much_is_refused_with_the_limit_and_without_an_echo(world: World, body: dict[str, Any]) -> None:
    response = world.api(world.key()).post(PATH, body)
    problem = assert_problem(response, 413, "too_large")
    assert "limit" in problem["detail"]
    assert len(response.content) < 1_000
    assert world.model.calls == []


def test_no_answer_quotes_what_was_sent(world: World) -> None:
    secret = "TOP-SECRET" * 50
    bodies: list[Any] = [
        body_with(documents=[{"text": secret, "id": secret}] * 500),
        body_with(top_n=secret),
        body_with(personalization=secret),
        {"signals": [{secret: secret}]},
    ]
    api = world.api(world.key())
    for body in bodies:
        response = api.post("/v1/feedback" if "signals" in body else PATH, body)
        problem = assert_problem(response, 422, "invalid_input")
        assert len(problem["errors"]) <= 10
        assert "TOP-SECRET" not in response.text


def test_a_body_over_the_limit_is_refused_while_it_arrives(world: World) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b" " * (1 << 16)

    response = world.api(world.key()).send(
        "POST", PATH, content=endless(), headers={"Content-Type": "application/json"}
    )
    assert_problem(response, 413, "too_large")
    assert response.headers["connection"] == "close"
    assert sent < world.settings.max_body_bytes + (1 << 20)


@pytest.mark.parametrize("declared", ["99999999", "9" * 400])
def test_a_declared_length_over_the_limit_is_refused_before_the_body(world: World, declared: str) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        raise AssertionError("the body must not be read")
        yield b""

    headers = {"Content-Type": "application/json", "Content-Length": declared}
    assert_problem(world.api(world.key()).send("POST", PATH, content=nothing(), headers=headers), 413, "too_large")


def test_limits_are_settings(tmp_path: Any) -> None:
    with world_at(tmp_path, max_documents=2, max_text_chars=3, max_body_bytes=1024) as world:
        api = world.api(world.key())
        assert api.post(PATH, GOOD).status_code == 200
        assert_problem(api.post(PATH, body_with(documents=["a"] * 3)), 413, "too_large")
        assert_problem(api.post(PATH, body_with(documents=["abcd"])), 413, "too_large")
        assert_problem(api.post(PATH, body_with(x="a" * 2000)), 413, "too_large")
        assert_problem(api.post("/v1/score", {"text_1": "q", "text_2": ["a"] * 3}), 413, "too_large")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "q"},
        {"text_1": "q"},
        {"query": "q", "documents": ["a"], "text_1": "q"},
        {"query": "q", "documents": ["a"], "text_1": "q", "text_2": "a"},
        {"query": "q", "text_2": ["a"]},
        {"text_1": ["q", "r"], "text_2": ["a", "b", "c"]},
        {"text_1": [], "text_2": []},
        {"text_1": "q", "text_2": []},
        {"text_1": ["q", "r"], "text_2": "a"},
    ],
)
def test_score_wants_exactly_one_of_its_two_forms(world: World, body: dict[str, Any]) -> None:
    assert_problem(world.api(world.key()).post("/v1/score", body), 422, "invalid_input")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v3/rerank", 404, "not_found"),
        ("POST", "/v1/rerank/", 404, "not_found"),
        ("POST", "/v1//rerank", 404, "not_found"),
        ("POST", "/v1/%72erank", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v1/users//personalization", 404, "not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
        ("TRACE", PATH, 405, "method_not_allowed"),
        ("DELETE", "/v1/users/ann/personalization", 405, "method_not_allowed"),
    ],
)
def test_other_addresses_and_methods_are_problems_too(
    world: World, method: str, path: str, status: int, code: str
) -> None:
    response = world.api(world.key()).send(method, path)
    assert_problem(response, status, code)
    if status == 405:
        assert response.headers["allow"]


def test_a_request_id_is_echoed_if_it_is_safe_and_made_if_it_is_not(world: World) -> None:
    api = world.api(world.key())
    assert api.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in (b"a b", b"x" * 65, b"\xff", b"", b"{}"):
        made = api.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert made.encode("latin-1") != bad
        assert len(made) == 36


def test_a_failure_inside_says_nothing_of_the_inside_and_logs_no_text(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(" ".join(["secret", "of", "ann"]))  # a traceback shows source lines

    monkeypatch.setattr(world.model, "project", fail)
    with caplog.at_level(logging.DEBUG):
        response = world.api(world.key()).post(PATH, body_with(user="ann-the-user", query="my private query"))
    problem = assert_problem(response, 500, "internal")
    assert "secret" not in response.text
    assert problem["request_id"] in caplog.text
    for word in ("secret of ann", "ann-the-user", "my private query", "idio_"):
        assert word not in caplog.text


@pytest.fixture
def key(world: World) -> str:
    """One for all examples of a property: making a key is a write."""
    return world.key()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = {
    "/v1/rerank": ["query", "documents", "top_n", "user", "domain", "personalization", "strength", "explain"],
    "/v1/score": ["query", "documents", "text_1", "text_2", "user", "strength"],
    "/v1/compare": ["query", "a", "b", "user", "domain"],
    "/v1/feedback": ["signals", "id", "inference_id", "kind", "value", "user", "domain", "occurred_at"],
    "/v1/users/ann/personalization/reset": ["scope", "domain"],
}


@given(st.sampled_from(sorted(FIELDS)), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_whatever_makes_the_server_fail(world: World, key: str, path: str, data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), json_values))
    good = {"query": "q", "documents": ["a"], "kind": "choice", "inference_id": "x", "user": "ann", "value": 0}
    if data.draw(st.booleans()):
        body = {name: value for name, value in good.items() if name in FIELDS[path]} | body
    response = world.api(key).raw(path, json.dumps(body).encode())
    assert response.status_code < 500, (body, response.text)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_whatever_make_the_server_fail(world: World, key: str, content: bytes) -> None:
    good = bytearray(json.dumps(GOOD).encode())
    place = random.Random(content).randrange(len(good))
    for body in (content, bytes(good[:place]) + content + bytes(good[place:])):
        assert world.api(key).raw(PATH, body).status_code in (200, 400, 413, 422)
