"""Best of n, through the `openai` package and a real server upstream."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving_world import Api, World, assert_problem, world_at
from upstream_server import UpstreamServer, completion, ignoring_n, plain, refusing_n, running, slow

from idiolect.tenancy import Scope
from idiolect_services.gateway.upstream import MAX_ANSWER_BYTES, UpstreamClient

PATH = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]}
SECRET = "sk-upstream-SECRET"


@pytest.fixture
def upstream() -> Iterator[UpstreamServer]:
    with running() as server:
        yield server


@pytest.fixture
def chat_world(tmp_path: Path, empty_database: Path, upstream: UpstreamServer) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, upstream_hosts=f"{upstream.origin},api.example.com", upstream_seconds=5) as made:
        set_upstream(made, upstream)
        yield made


def set_upstream(world: World, upstream: UpstreamServer, **fields: Any) -> httpx.Response:
    body = {"base_url": f"{upstream.origin}/v1", "api_key": SECRET} | fields
    response = world.api(world.key()).put("/v1/upstream", body)
    assert response.status_code == 200, response.text
    return response


class Through(httpx.BaseTransport):
    """Lets the synchronous `openai` client speak to the app."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        answer = self._api.send(request.method, request.url.path, content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def openai_client(world: World, key: str | None = None) -> openai.OpenAI:
    transport = httpx.Client(transport=Through(world.api()))
    return openai.OpenAI(base_url="http://test/v1", api_key=key or world.key(), http_client=transport, max_retries=0)


# --- the best of n ----------------------------------------------------------------------------------------------------


def test_the_openai_package_gets_the_one_that_this_person_would_prefer(
    chat_world: World, upstream: UpstreamServer
) -> None:
    chat_world.opt_in("ann")
    chat_world.publish_user("ann")
    answer = openai_client(chat_world).chat.completions.create(**ASK, n=5, user="ann")  # type: ignore[call-overload]
    assert (answer.object, answer.model, len(answer.choices)) == ("chat.completion", "tiny-1", 1)
    texts = [f"answer 0.{index}" for index in range(5)]
    ranked = chat_world.api(chat_world.key()).rerank("ann", query="Hello?", documents=texts)
    assert answer.choices[0].message.content == texts[ranked["results"][0]["index"]]
    assert answer.choices[0].finish_reason == "stop"
    said = answer.model_extra["personalization"]
    assert (said["applied"], said["reason"]) == (True, "applied")
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 7,
        "completion_tokens": 15,
        "total_tokens": 22,
    }


def test_another_person_may_get_another_answer_and_a_stranger_gets_the_shared_one(chat_world: World) -> None:
    api = chat_world.api(chat_world.key())
    best = {}
    for user in ("ann", "bob", "cid", "dan"):
        chat_world.opt_in(user)
        chat_world.publish_user(user, [5.0 * w for w in _weights(user)])
        best[user] = api.post(PATH, ASK | {"n": 16, "user": user}).json()["idiolect"]["ranking"][0]["index"]
    assert len(set(best.values())) > 1
    stranger = api.post(PATH, ASK | {"user": "stranger"}).json()
    nobody = api.post(PATH, ASK).json()
    assert stranger["personalization"]["reason"] == "unknown_user"
    assert nobody["personalization"]["reason"] == "no_user"


def _weights(name: str) -> Sequence[float]:
    from serving_world import K, some_weights

    return some_weights(name, K)


def test_all_candidates_come_with_their_scores_on_request_and_take_feedback(chat_world: World) -> None:
    chat_world.opt_in("ann")
    chat_world.publish_user("ann")
    api = chat_world.api(chat_world.key())
    body = ASK | {"n": 4, "user": "ann", "idiolect": {"candidates": True, "explain": True, "domain": "support"}}
    answer = api.post(PATH, body).json()
    block = answer["idiolect"]
    assert (block["asked"], block["received"], block["ranked"]) == (4, 4, 4)
    scores = [entry["score"] for entry in block["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice, entry in zip(answer["choices"], block["ranking"], strict=True):
        assert choice["message"]["content"] == f"answer 0.{entry['index']}"
        assert entry["score"] == (entry["parts"]["global"] + entry["parts"]["domain"]) + entry["parts"]["user"]
    assert answer["id"] == block["inference_id"]
    signal = {"inference_id": answer["id"], "kind": "choice", "value": block["ranking"][2]["index"], "user": "ann"}
    assert api.post("/v1/feedback", signal).json()["status"] == "accepted"
    assert chat_world.store.inference("acme", answer["id"]).domain == "support"
    assert chat_world.fed_back == [("acme", chat_world.pseudonym("acme", "ann"))]


def test_what_was_not_returned_was_not_shown(chat_world: World) -> None:
    chat_world.opt_in("ann")
    answer = chat_world.api(chat_world.key()).post(PATH, ASK | {"n": 4, "user": "ann"}).json()
    inference = chat_world.store.inference("acme", answer["idiolect"]["inference_id"])
    assert inference.shown == (answer["idiolect"]["ranking"][0]["index"],)
    assert len(inference.documents) == 4


def test_parameters_go_to_the_upstream_and_the_persons_id_does_not(chat_world: World, upstream: UpstreamServer) -> None:
    chat_world.api(chat_world.key()).post(
        PATH, ASK | {"n": 2, "user": "ann@example.org", "temperature": 0.9, "stream": False, "idiolect": {}}
    )
    assert upstream.bodies == [ASK | {"n": 2, "temperature": 0.9}]
    assert upstream.paths == ["/v1/chat/completions"]
    sent = upstream.headers[0]
    assert sent["authorization"] == f"Bearer {SECRET}"
    assert sent["host"] == f"127.0.0.1:{upstream.port}"
    assert "ann" not in json.dumps([upstream.bodies, upstream.headers])
    assert "idio_" not in json.dumps(upstream.headers)


def test_the_tenants_model_replaces_the_one_that_is_asked_for(chat_world: World, upstream: UpstreamServer) -> None:
    set_upstream(chat_world, upstream, model="pinned")
    chat_world.api(chat_world.key()).post(PATH, ASK)
    assert upstream.bodies[0]["model"] == "pinned"


@pytest.mark.parametrize("behaviour", [ignoring_n, refusing_n])
def test_an_upstream_that_does_not_do_n_is_asked_several_times(
    chat_world: World, upstream: UpstreamServer, behaviour: Any
) -> None:
    upstream.answer = behaviour
    answer = chat_world.api(chat_world.key()).post(PATH, ASK | {"n": 5, "idiolect": {"candidates": True}}).json()
    assert answer["idiolect"]["received"] == 5
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 5
    assert all("n" not in body for body in upstream.bodies[1:])
    assert answer["usage"]["total_tokens"] == 50


def test_one_candidate_is_one_plain_request(chat_world: World, upstream: UpstreamServer) -> None:
    answer = chat_world.api(chat_world.key()).post(PATH, ASK | {"n": 1}).json()
    assert upstream.bodies == [ASK]
    assert answer["choices"][0]["message"]["content"] == "answer 0.0"


def test_candidates_without_a_text_are_left_out_of_the_ranking(chat_world: World, upstream: UpstreamServer) -> None:
    upstream.answer = lambda body, number: plain(200, completion(None, "a", "", "b"))
    answer = chat_world.api(chat_world.key()).post(PATH, ASK | {"idiolect": {"candidates": True}}).json()
    assert (answer["idiolect"]["received"], answer["idiolect"]["ranked"]) == (4, 2)
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"a", "b"}


def test_a_tool_call_is_returned_as_it_came_and_says_that_nothing_was_ranked(
    chat_world: World, upstream: UpstreamServer
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    upstream.answer = lambda body, number: plain(200, completion() | {"choices": [choice, choice]})
    answer = openai_client(chat_world).chat.completions.create(**ASK, n=2)  # type: ignore[call-overload]
    assert answer.choices[0].message.tool_calls[0].function.name == "f"
    assert answer.model_extra["personalization"] is None
    assert answer.model_extra["idiolect"]["inference_id"] is None


def test_a_very_long_candidate_is_ranked_by_its_beginning_and_returned_whole(
    chat_world: World, upstream: UpstreamServer
) -> None:
    long = "x" * 50_000
    upstream.answer = lambda body, number: plain(200, completion(long, long + "y"))
    answer = chat_world.api(chat_world.key()).post(PATH, ASK | {"n": 2}).json()
    assert answer["choices"][0]["message"]["content"] == long
    assert all(len(text) <= 20_000 for pairs in chat_world.model.calls for pair in pairs for text in pair)


# --- what is refused, before the upstream costs anything --------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"stream": True}, "stream is not offered"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 1.5}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role user"),
        ({"messages": [{"role": "user", "content": "  "}]}, "role user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "role user"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"user": "u" * 129}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"idiolect": {"domain": "No Good"}}, "domain"),
        ({"idiolect": {"strength": 2}}, "strength"),
        ({"idiolect": []}, "idiolect"),
    ],
)
def test_a_request_that_can_not_work_never_reaches_the_upstream(
    chat_world: World, upstream: UpstreamServer, fields: dict[str, Any], word: str
) -> None:
    response = chat_world.api(chat_world.key()).post(PATH, ASK | fields)
    assert_problem(response, 422, "invalid_input")
    assert word in response.text
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        openai_client(chat_world).chat.completions.create(**(ASK | {"extra_body": fields}))  # type: ignore[call-overload]
    assert raised.value.code == "invalid_input"
    assert upstream.bodies == []


def test_text_parts_are_the_prompt(chat_world: World) -> None:
    parts = [{"type": "text", "text": "Hello?"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    api = chat_world.api(chat_world.key())
    whole = api.post(PATH, ASK | {"messages": [{"role": "user", "content": parts}]}).json()
    assert whole["idiolect"]["ranked"] == 4
    assert chat_world.model.calls[-1][0][0] == "Hello?"


def test_too_long_a_prompt_is_refused(chat_world: World, upstream: UpstreamServer) -> None:
    body = ASK | {"messages": [{"role": "user", "content": "x" * 20_001}]}
    assert_problem(chat_world.api(chat_world.key()).post(PATH, body), 413, "too_large")
    assert upstream.bodies == []


def test_the_clients_exception_says_what_is_wrong(chat_world: World) -> None:
    client = openai_client(chat_world)
    system = [{"role": "system", "content": "Be kind."}]
    with pytest.raises(openai.UnprocessableEntityError, match="messages hold no text of the role user"):
        client.chat.completions.create(model="m", messages=system)  # type: ignore[call-overload]
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        openai_client(chat_world, "idio_wrong").chat.completions.create(**ASK)  # type: ignore[call-overload]


def test_without_an_upstream_there_are_no_completions(chat_world: World) -> None:
    other = chat_world.key("other")
    assert_problem(chat_world.api(other).post(PATH, ASK), 409, "no_upstream")
    with pytest.raises(openai.ConflictError):
        openai_client(chat_world, other).chat.completions.create(**ASK)  # type: ignore[call-overload]


def test_keys_are_checked_as_everywhere(chat_world: World) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai_client(chat_world, "idio_wrong").chat.completions.create(**ASK)  # type: ignore[call-overload]
    limited = chat_world.key("acme", Scope.FEEDBACK)
    with pytest.raises(openai.NotFoundError):
        openai_client(chat_world, limited).chat.completions.create(**ASK)  # type: ignore[call-overload]


# --- what goes wrong upstream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "code", "kind"),
    [
        (plain(500, {"error": {"message": "boom"}}), 502, "upstream_failed", openai.InternalServerError),
        (plain(503, b"busy"), 502, "upstream_failed", openai.InternalServerError),
        (plain(401, {"error": {"message": SECRET}}), 502, "upstream_failed", openai.InternalServerError),
        (plain(403, b""), 502, "upstream_failed", openai.InternalServerError),
        (plain(400, {"error": {"message": "no such\r\nmodel"}}), 400, "upstream_rejected", openai.BadRequestError),
        (plain(404, b"<html>"), 400, "upstream_rejected", openai.BadRequestError),
        (plain(429, {}, Retry_After="7"), 429, "upstream_rate_limited", openai.RateLimitError),
        (plain(302, b"", Location="http://127.0.0.1:1/"), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b"not json"), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, []), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, {}), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, completion()), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, {"choices": [1]}), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, {"choices": [{"message": "x"}]}), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b'{"choices": [], "choices": []}'), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b'{"x": NaN, "choices": []}'), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b'{"choices": "\\ud800"}'), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b'{"a":' * 50_000), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b"\x1f\x8b", Content_Encoding="gzip"), 502, "upstream_failed", openai.InternalServerError),
        (plain(200, b" " * (MAX_ANSWER_BYTES + 1)), 502, "upstream_failed", openai.InternalServerError),
    ],
)
def test_an_upstream_that_fails_is_a_problem_with_the_right_type_for_openai(
    chat_world: World, upstream: UpstreamServer, answer: Any, status: int, code: str, kind: type[Exception]
) -> None:
    upstream.answer = lambda body, number: answer
    response = chat_world.api(chat_world.key()).post(PATH, ASK)
    problem = assert_problem(response, status, code)
    assert SECRET not in response.text
    assert problem["detail"].isprintable()
    assert response.headers.get("retry-after") == ("7" if status == 429 else None)
    with pytest.raises(kind) as raised:
        openai_client(chat_world).chat.completions.create(**ASK)  # type: ignore[call-overload]
    assert raised.value.code == code  # type: ignore[attr-defined]


def test_an_upstream_that_nobody_answers_at_is_a_problem(chat_world: World) -> None:
    with running() as gone:
        pass
    chat_world.settings = chat_world.settings.model_copy(update={"upstream_hosts": gone.origin})
    app = chat_world.make_app()
    chat_world.store.set_upstream("acme", _stored(gone.origin, chat_world))
    assert_problem(chat_world.api(chat_world.key(), app).post(PATH, ASK), 502, "upstream_failed")
    app.state.gateway.close()


def _stored(base_url: str, world: World) -> Any:
    from idiolect.upstreams import Upstream

    return Upstream(base_url, None, None, world.clock.now())


def test_an_upstream_that_is_too_slow_is_cut_off(chat_world: World, upstream: UpstreamServer) -> None:
    upstream.answer = slow(1.5)
    chat_world.settings = chat_world.settings.model_copy(update={"upstream_seconds": 0.2})
    app = chat_world.make_app()
    response = chat_world.api(chat_world.key(), app).post(PATH, ASK)
    assert_problem(response, 504, "upstream_timeout")
    app.state.gateway.close()


def test_half_of_the_candidates_are_enough(chat_world: World, upstream: UpstreamServer) -> None:
    def every_other(body: dict[str, Any], number: int) -> Any:
        return plain(500, {}) if number % 2 else plain(200, completion(f"answer {number}"))

    upstream.answer = every_other
    answer = chat_world.api(chat_world.key()).post(PATH, ASK | {"n": 5, "idiolect": {"candidates": True}})
    assert answer.status_code == 200, answer.text
    block = answer.json()["idiolect"]
    assert (block["asked"], block["received"]) == (5, 3)


def test_what_came_before_the_time_was_up_is_used(chat_world: World, upstream: UpstreamServer) -> None:
    def later_ones_hang(body: dict[str, Any], number: int) -> Any:
        return plain(200, completion("first")) if number == 0 else slow(1.5)(body, number)

    upstream.answer = later_ones_hang
    chat_world.settings = chat_world.settings.model_copy(update={"upstream_seconds": 0.5})
    app = chat_world.make_app()
    answer = chat_world.api(chat_world.key(), app).post(PATH, ASK).json()
    assert answer["choices"][0]["message"]["content"] == "first"
    assert answer["idiolect"]["received"] == 1
    app.state.gateway.close()


def test_a_refusal_for_another_reason_is_not_repeated_n_times(chat_world: World, upstream: UpstreamServer) -> None:
    upstream.answer = lambda body, number: plain(400, {"error": {"message": "no such model"}})
    response = chat_world.api(chat_world.key()).post(PATH, ASK | {"n": 16})
    assert "no such model" in assert_problem(response, 400, "upstream_rejected")["detail"]
    assert len(upstream.bodies) == 2


# --- where it may be sent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/v1",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433/",
        "http://[::ffff:127.0.0.1]/",
        "https://api.example.com@127.0.0.1/",
        "https://api.example.com/v1?redirect=http://127.0.0.1",
        "file:///etc/passwd",
        "x" * 301,
    ],
)
def test_an_address_that_the_operator_did_not_list_can_not_be_set(chat_world: World, url: str) -> None:
    api = chat_world.api(chat_world.key())
    before = api.get("/v1/upstream").json()
    assert_problem(api.put("/v1/upstream", {"base_url": url}), 422, "invalid_input")
    assert api.get("/v1/upstream").json() == before


class Rebinding:
    """A name server that answers publicly first, and with an address inside from then on."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Recording(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        # A stream, as a real connection gives one: what was read already can't be read again.
        return httpx.Response(200, stream=_Stream(json.dumps(completion("a", "b")).encode()))


class _Stream(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> Any:
        yield self._content


def test_the_connection_goes_to_the_address_that_was_checked(chat_world: World) -> None:
    transport, resolver = Recording(), Rebinding(["93.184.216.34"], ["127.0.0.1"])
    app = chat_world.make_app(upstreams=UpstreamClient(resolver, lambda: transport))
    chat_world.store.set_upstream("acme", _stored("https://api.example.com/v1", chat_world))
    api = chat_world.api(chat_world.key(), app)
    assert api.post(PATH, ASK | {"n": 2}).status_code == 200
    (request,) = transport.requests
    assert resolver.asked == 1
    assert request.url == "https://93.184.216.34/v1/chat/completions"
    assert request.headers["host"] == "api.example.com"
    assert request.extensions["sni_hostname"] == "api.example.com"
    assert_problem(api.post(PATH, ASK | {"n": 2}), 502, "upstream_address_refused")
    assert len(transport.requests) == 1
    app.state.gateway.close()


def test_a_name_that_does_not_resolve_is_a_problem(chat_world: World) -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    app = chat_world.make_app(upstreams=UpstreamClient(nowhere, Recording))
    chat_world.store.set_upstream("acme", _stored("https://api.example.com/v1", chat_world))
    assert_problem(chat_world.api(chat_world.key(), app).post(PATH, ASK), 502, "upstream_failed")
    app.state.gateway.close()


def test_a_host_that_was_taken_off_the_list_is_not_spoken_to_any_more(
    chat_world: World, upstream: UpstreamServer
) -> None:
    chat_world.settings = chat_world.settings.model_copy(update={"upstream_hosts": "api.example.com"})
    app = chat_world.make_app()
    assert_problem(chat_world.api(chat_world.key(), app).post(PATH, ASK), 422, "invalid_input")
    assert upstream.bodies == []
    app.state.gateway.close()


def test_proxies_of_the_environment_are_not_used(
    chat_world: World, upstream: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert chat_world.api(chat_world.key()).post(PATH, ASK).status_code == 200


# --- the upstream's key -----------------------------------------------------------------------------------------------


def test_the_upstreams_key_is_sealed_and_in_no_answer_log_or_database(
    chat_world: World, upstream: UpstreamServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    response = set_upstream(chat_world, upstream)
    assert response.json() | {"updated_at": ""} == {
        "base_url": f"{upstream.origin}/v1",
        "model": None,
        "has_api_key": True,
        "updated_at": "",
    }
    api = chat_world.api(chat_world.key())
    answers = [response.text, api.get("/v1/upstream").text, api.post(PATH, ASK).text]
    upstream.answer = lambda body, number: plain(500, {})
    answers.append(api.post(PATH, ASK).text)
    stored = b"".join(path.read_bytes() for path in chat_world.root.glob("x.db*"))
    assert SECRET not in "".join(answers) + caplog.text
    assert SECRET.encode() not in stored
    assert upstream.headers[0]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX: y", "ü", "x" * 501, 7])
def test_a_key_that_could_forge_a_header_is_refused(chat_world: World, upstream: UpstreamServer, key: Any) -> None:
    body = {"base_url": upstream.origin, "api_key": key}
    response = chat_world.api(chat_world.key()).put("/v1/upstream", body)
    assert_problem(response, 422, "invalid_input")


def test_another_tenants_upstream_is_not_seen_and_its_sealed_key_does_not_open(
    chat_world: World, upstream: UpstreamServer
) -> None:
    other = chat_world.api(chat_world.key("other"))
    assert_problem(other.get("/v1/upstream"), 404, "not_found")
    chat_world.store.set_upstream("other", chat_world.store.upstream("acme"))
    assert_problem(other.post(PATH, ASK), 503, "unavailable")
    assert upstream.bodies == []


def test_a_removed_upstream_is_gone_and_removing_it_twice_is_harmless(chat_world: World) -> None:
    api = chat_world.api(chat_world.key())
    for _ in range(2):
        assert api.send("DELETE", "/v1/upstream").json() == {"removed": True}
    assert_problem(api.get("/v1/upstream"), 404, "not_found")
    assert_problem(api.post(PATH, ASK), 409, "no_upstream")


def test_only_an_admin_sets_it(chat_world: World) -> None:
    limited = chat_world.api(chat_world.key("acme", *(set(Scope) - {Scope.ADMIN})))
    for method in ("GET", "PUT", "DELETE"):
        assert_problem(limited.send(method, "/v1/upstream", json={}), 404, "not_found")


def test_many_completions_at_once_do_not_mix(chat_world: World, upstream: UpstreamServer) -> None:
    upstream.answer = lambda body, number: plain(200, completion(body["messages"][0]["content"], "z"))
    key = chat_world.key()

    async def ask(number: int) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": f"prompt {number}"}], "n": 2, "idiolect": {"candidates": True}}
        transport = httpx.ASGITransport(chat_world.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(PATH, json=body, headers={"Authorization": f"Bearer {key}"})
            return dict(answer.json())

    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(ask(number) for number in range(20)))

    for number, answer in enumerate(asyncio.run(all_of_them())):
        assert f"prompt {number}" in {choice["message"]["content"] for choice in answer["choices"]}
