"""POST /v1/rerank, /v1/score and /v1/compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import TooLargeError
from idiolect.ids import check_name, new_id
from idiolect.signals.events import Inference
from idiolect.tenancy import Scope
from idiolect_adapters.runtime.features import Features, Text, digested
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.schemas.ranking import (
    CompareRequest,
    CompareResponse,
    Document,
    ForPerson,
    RerankRequest,
    RerankResponse,
    ScoreResponse,
    ScoreTexts,
    text_of,
)
from idiolect_services.scorer import STORE_TROUBLE, ScoreRequest, ScoreResult

DEFAULT_DOMAIN = "default"
FENCE_TRIES = 2

Model = TypeVar("Model", bound=ForPerson)
Render = Callable[[ScoreResult, datetime], bytes]  # the time is that before the resolve


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    generation: int | None


class RankingRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._scorer = gateway.services.scorer

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["ranking"])
        for path, handler, body, response in (
            ("/v1/rerank", self.rerank, RerankRequest, RerankResponse),
            ("/v1/score", self.score, ScoreTexts, ScoreResponse),
            ("/v1/compare", self.compare, CompareRequest, CompareResponse),
        ):
            described = documented.route(Scope.INFER, response, body=body, problems=(409,))
            router.add_api_route(path, handler, methods=["POST"], **described)
        return router

    async def rerank(self, request: Request) -> Response:
        tenant, call = await self._read(request, RerankRequest)
        texts = self._checked("documents", [text_of(document) for document in call.documents])
        ask = self._ask(tenant, call, self._checked("query", [call.query]), texts)
        return await self._serve(ask, lambda result, began: self._ranked(call, ask, result, began))

    async def score(self, request: Request) -> Response:
        tenant, call = await self._read(request, ScoreTexts)
        queries, documents = call.sides()
        ask = self._ask(tenant, call, self._checked("query", queries), self._checked("documents", documents))
        return await self._serve(ask, lambda result, began: self._scored(call, result, began))

    async def compare(self, request: Request) -> Response:
        tenant, call = await self._read(request, CompareRequest)
        texts = self._checked("a", [call.a]) + self._checked("b", [call.b])
        ask = self._ask(tenant, call, self._checked("query", [call.query]), texts)
        return await self._serve(ask, lambda result, _began: self._compared(call, result))

    async def _read(self, request: Request, model: type[Model]) -> tuple[str, Model]:
        caller = await self._gateway.authorise(request, Scope.INFER)
        settings = self._services.settings
        most = settings.max_documents
        body = await read_object(request, settings.max_body_bytes)
        return caller.tenant, validated(model, body, documents=most, text_1=most, text_2=most)

    def _checked(self, field: str, texts: Sequence[str]) -> list[Text]:
        limit = self._services.settings.max_text_chars
        for index, text in enumerate(texts):
            if len(text) > limit:
                name = f"{field}.{index}" if len(texts) > 1 else field
                raise TooLargeError(
                    f"{name!r} holds {len(text)} characters, the limit is {limit}.", mend="Shorten or split it."
                )
        return [digested(text) for text in texts]

    def _ask(self, tenant: str, call: ForPerson, queries: Sequence[Text], texts: Sequence[Text]) -> ScoreRequest:
        paired = [queries[0]] * len(texts) if len(queries) == 1 else queries
        return ScoreRequest(
            tenant=tenant,
            pairs=tuple(zip(paired, texts, strict=True)),
            subject=None if call.user is None else self._services.pseudonym(tenant, call.user),
            domain=DEFAULT_DOMAIN if call.domain is None else check_name("domain", call.domain),
            mode=call.personalization,
            strength=call.strength,
        )

    async def _serve(self, ask: ScoreRequest, render: Render) -> Response:
        """One thread hop if everything is cached; the model runs on its own lane otherwise."""
        lanes, gate = self._gateway.lanes, self._gateway.gate
        features_NW: Features | None = None
        for _ in range(FENCE_TRIES):
            ticket = gate.ticket()
            answer = await lanes.serving.run(self._answer, ask, features_NW, render)
            if answer is None:
                features_NW = await lanes.compute.run(self._scorer.compute_features, ask)
                ticket = gate.ticket()
                answer = await lanes.serving.run(self._answer, ask, features_NW, render)
            # No await from here until the response is handed to the server: see GenerationGate.
            if answer is not None and gate.admits(ticket, ask.tenant, ask.subject, answer.generation):
                return _response(answer)
        return _response(await lanes.serving.run(self._answer_without_person, ask, features_NW, render))

    def _answer(self, ask: ScoreRequest, features_NW: Features | None, render: Render) -> Answer | None:
        """On a serving thread: decide, sum, record, write. None if the model has to run first."""
        began = self._services.clock.now()
        result = self._scorer.try_score(ask) if features_NW is None else self._scorer.score(ask, features_NW)
        return None if result is None else Answer(render(result, began), result.personalization.generation)

    def _answer_without_person(self, ask: ScoreRequest, features_NW: Features | None, render: Render) -> Answer:
        began = self._services.clock.now()
        result = self._scorer.score_without_person(ask, features_NW)
        return Answer(render(result, began), result.personalization.generation)

    def _ranked(self, call: RerankRequest, ask: ScoreRequest, result: ScoreResult, began: datetime) -> bytes:
        scores = result.score_N
        # Python's sort is stable even when reversed, so ties stay in the order of the request.
        shown = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: call.top_n]
        relevance = relevance_of(scores, self._scorer.model.temperature)
        return to_json(
            {
                "id": self._record(ask, result, shown, began),
                "model": self._scorer.model.digest,
                "results": [_ranked_entry(call, result, relevance, index) for index in shown],
                "personalization": result.personalization.to_json(),
            }
        )

    def _record(self, ask: ScoreRequest, result: ScoreResult, shown: Sequence[int], began: datetime) -> str | None:
        """The new inference's id, or None if the store can't be reached.

        A person who has not opted in is not named in it: nothing that they were shown is kept as theirs. It carries the
        time before the resolve, so that the store drops it if the person was reset since.
        """
        if result.personalization.reason == "store_unavailable":
            return None
        query = ask.pairs[0][0]
        inference = Inference(
            id=new_id(),
            subject=ask.subject if result.consented else None,
            domain=ask.domain,
            query=query.digest,
            documents=tuple([text.digest for _, text in ask.pairs]),
            shown=tuple(shown),
            created_at=began,
        )
        texts = [query.text, *(text.text for _, text in ask.pairs)]
        try:
            self._services.store.record_inference(ask.tenant, inference, texts)
        except STORE_TROUBLE:
            return None
        return inference.id

    def _scored(self, call: ForPerson, result: ScoreResult, began: datetime) -> bytes:
        entries = [
            {"index": index, "object": "score", "score": score}
            | ({"parts": _parts(result, index)} if call.explain else {})
            for index, score in enumerate(result.score_N)
        ]
        return to_json(
            {
                "id": new_id(),
                "object": "list",
                "created": int(began.timestamp()),
                "model": self._scorer.model.digest,
                "data": entries,
                "personalization": result.personalization.to_json(),
            }
        )

    def _compared(self, call: CompareRequest, result: ScoreResult) -> bytes:
        a, b = result.score_N
        parts = {"parts": {"a": _parts(result, 0), "b": _parts(result, 1)}} if call.explain else {}
        return to_json(
            {
                "probability": sigmoid((a - b) / self._scorer.model.temperature),
                "preferred": "tie" if a == b else "a" if a > b else "b",
                "model": self._scorer.model.digest,
                **parts,
                "personalization": result.personalization.to_json(),
            }
        )


def _response(answer: Answer) -> Response:
    return Response(answer.body, media_type="application/json")


def sigmoid(x: float) -> float:
    """In the open interval (0, 1), also where float64 would round to its ends."""
    value = 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(max(x, -700.0)) / (1.0 + math.exp(max(x, -700.0)))
    return min(value, 1.0 - 2**-53)


def relevance_of(scores: Sequence[float], temperature: float) -> list[float]:
    """Raw scores have no zero of their own, so each is set against the request's mean (Bradley-Terry)."""
    mean = math.fsum(scores) / len(scores)
    return [sigmoid((score - mean) / temperature) for score in scores]


def _ranked_entry(call: RerankRequest, result: ScoreResult, relevance: Sequence[float], index: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": index, "relevance_score": relevance[index], "score": result.score_N[index]}
    document = call.documents[index]
    if isinstance(document, Document) and document.id is not None:
        entry["id"] = document.id
    if call.return_documents:
        entry["document"] = {"text": text_of(document)}
    if call.explain:
        entry["parts"] = _parts(result, index)
    return entry


def _parts(result: ScoreResult, index: int) -> dict[str, float]:
    return {"global": result.global_N[index], "domain": result.domain_N[index], "user": result.user_N[index]}
