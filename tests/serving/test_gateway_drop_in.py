"""What clients of Cohere, Jina and vLLM send is understood, and what they read is there.

The payloads are written out as those clients send them; the readers take from the answer what those clients take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from serving_world import World, assert_problem

from idiolect.tenancy import Scope

TEXTS = ["Hold the button.", "Happy to help! Hold the button.", "Ask somebody else."]

COHERE_V2 = {
    "model": "rerank-v3.5",
    "query": "How do I reset it?",
    "documents": TEXTS,
    "top_n": 2,
    "max_tokens_per_doc": 4096,
    "priority": 0,
}
COHERE_V1 = {
    "model": "rerank-english-v3.0",
    "query": "How do I reset it?",
    "documents": [{"text": text, "title": "FAQ"} for text in TEXTS],
    "top_n": 2,
    "rank_fields": ["text"],
    "return_documents": True,
    "max_chunks_per_doc": 10,
}
JINA = {
    "model": "jina-reranker-v2-base-multilingual",
    "query": "How do I reset it?",
    "documents": TEXTS,
    "top_n": 2,
    "return_documents": True,
    "truncation": True,
}
VLLM_RERANK = {
    "model": "BAAI/bge-reranker-v2-m3",
    "query": "How do I reset it?",
    "documents": TEXTS,
    "top_n": 2,
    "truncate_prompt_tokens": -1,
    "use_activation": True,
    "return_documents": True,
    "priority": 0,
    "mm_processor_kwargs": None,
}


class CohereResult(BaseModel):
    index: int
    relevance_score: float


class CohereAnswer(BaseModel):
    id: str | None
    results: list[CohereResult]


class VllmDocument(BaseModel):
    text: str


class VllmResult(BaseModel):
    index: int
    document: VllmDocument
    relevance_score: float


class VllmUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class VllmRerank(BaseModel):
    id: str
    model: str
    usage: VllmUsage
    results: list[VllmResult]


class VllmScore(BaseModel):
    index: int
    object: str
    score: float


class VllmScores(BaseModel):
    id: str
    object: str
    created: int
    model: str
    data: list[VllmScore]
    usage: VllmUsage


def read_as_cohere(answer: dict[str, Any]) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in CohereAnswer.model_validate(answer).results]


def read_as_jina(answer: dict[str, Any]) -> list[tuple[int, float]]:
    assert isinstance(answer["model"], str)
    assert answer["usage"]["total_tokens"] == 0
    assert all(result["document"]["text"] == TEXTS[result["index"]] for result in answer["results"])
    return [(result["index"], result["relevance_score"]) for result in answer["results"]]


def read_as_vllm(answer: dict[str, Any]) -> list[tuple[int, float]]:
    return [(result.index, result.relevance_score) for result in VllmRerank.model_validate(answer).results]


@pytest.mark.parametrize(
    ("body", "read"),
    [(COHERE_V2, read_as_cohere), (COHERE_V1, read_as_cohere), (JINA, read_as_jina), (VLLM_RERANK, read_as_vllm)],
    ids=["cohere v2", "cohere v1", "jina", "vllm"],
)
def test_a_rerank_client_gets_the_best_two_in_order(
    world: World, body: dict[str, Any], read: Callable[[dict[str, Any]], list[tuple[int, float]]]
) -> None:
    api = world.api(world.key())
    response = api.post("/v1/rerank", body)
    assert response.status_code == 200, response.text
    found = read(response.json())
    ours = api.post("/v1/rerank", {"query": "How do I reset it?", "documents": TEXTS}).json()
    assert found == [(result["index"], result["relevance_score"]) for result in ours["results"][:2]]
    assert all(0 < relevance < 1 for _, relevance in found)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v2/rerank", COHERE_V2), ("/v1/rerank", COHERE_V1), ("/rerank", VLLM_RERANK), ("/v2/rerank", VLLM_RERANK)],
)
def test_a_rerank_client_is_answered_where_it_looks(world: World, path: str, body: dict[str, Any]) -> None:
    api = world.api(world.key())
    there, here = (api.post(name, body) for name in (path, "/v1/rerank"))
    assert there.status_code == 200, there.text
    assert there.json()["results"] == here.json()["results"]


def test_what_a_client_sends_for_a_field_that_was_not_set_is_no_mistake(world: World) -> None:
    """vLLM's own request says 0 for all documents; others send every field, as null."""
    unset = {"top_n": 0, "return_documents": None, "rank_fields": None, "max_tokens_per_doc": None}
    answer = world.api(world.key()).post("/rerank", VLLM_RERANK | unset)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == len(VLLM_RERANK["documents"])
    assert "document" not in answer.json()["results"][0]


def test_a_document_may_have_a_number_for_an_id(world: World) -> None:
    documents = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    answer = world.api(world.key()).post("/v2/rerank", COHERE_V2 | {"documents": documents, "top_n": 3}).json()
    assert [result["id"] for result in answer["results"]] == [str(result["index"]) for result in answer["results"]]


def test_a_score_client_is_answered_where_it_looks(world: World) -> None:
    api = world.api(world.key())
    there, here = (api.post(name, {"text_1": "q", "text_2": TEXTS}) for name in ("/score", "/v1/score"))
    assert there.status_code == 200, there.text
    assert there.json()["data"] == here.json()["data"]


@pytest.mark.parametrize("path", ["/v2/rerank", "/rerank", "/score"])
def test_another_name_of_a_path_opens_nothing_more_than_the_path(world: World, path: str) -> None:
    ours = "/v1/score" if path == "/score" else "/v1/rerank"
    for key in (world.key(), world.key("acme", Scope.FEEDBACK), "idio_nonsense"):
        api = world.api(key)
        for method in ("GET", "POST", "DELETE"):
            there, here = (api.send(method, name, json={}) for name in (path, ours))
            assert there.status_code == here.status_code
            assert there.headers.get("allow") == here.headers.get("allow")
    assert_problem(world.api(world.key()).post(f"{path}/", COHERE_V2), 404, "not_found")
    assert_problem(world.api(world.key()).post(path.replace("r", "%72"), COHERE_V2), 404, "not_found")


@pytest.mark.parametrize("body", [COHERE_V2, JINA, VLLM_RERANK])
def test_their_fields_and_ours_mix(world: World, body: dict[str, Any]) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    answer = world.api(world.key()).post("/v1/rerank", body | {"user": "ann", "domain": "support"}).json()
    assert answer["personalization"]["applied"]


@pytest.mark.parametrize(
    ("left", "right"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
@pytest.mark.parametrize("query", ["q", ["q"], ["q", "q", "q"]])
def test_vllms_score_clients_are_read_under_every_name(world: World, left: str, right: str, query: Any) -> None:
    api = world.api(world.key())
    body = {"model": "m", left: query, right: TEXTS, "truncate_prompt_tokens": 512, "use_activation": False}
    answer = VllmScores.model_validate(api.post("/v1/score", body).json())
    ours = api.post("/v1/score", {"query": "q", "documents": TEXTS}).json()
    assert [entry.score for entry in answer.data] == [entry["score"] for entry in ours["data"]]
    assert [entry.index for entry in answer.data] == [0, 1, 2]


@pytest.mark.parametrize(
    "body",
    [
        {"queries": "q"},
        {"items": TEXTS},
        {"queries": "q", "data_2": TEXTS},
        {"query": "q", "queries": "q", "items": TEXTS},
        {"text_1": "q", "data_1": "q", "data_2": TEXTS},
        {"queries": ["a", "b"], "items": TEXTS},
        {"queries": {"content": []}, "items": TEXTS},
        {"data_1": "q", "data_2": []},
    ],
)
def test_half_or_both_of_the_forms_is_refused(world: World, body: dict[str, Any]) -> None:
    assert_problem(world.api(world.key()).post("/v1/score", body), 422, "invalid_input")


@pytest.mark.parametrize("name", ["items", "data_2", "text_2", "documents"])
def test_the_limit_on_documents_holds_under_every_name(world: World, name: str) -> None:
    body = {"queries": "q", "data_1": "q", name: ["x"] * 1001}
    assert_problem(world.api(world.key()).post("/v1/score", body), 413, "too_large")
    assert world.model.calls == []
