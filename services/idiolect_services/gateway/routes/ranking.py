"""POST /v1/rerank, /v1/score and /v1/compare."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import InvalidInputError, QuotaExceededError, TooLargeError
from idiolect.ids import check_name, new_id
from idiolect.signals.events import Inference
from idiolect.stores.ports import ShownInference
from idiolect.tenancy import Scope
from idiolect_adapters.runtime.features import Features, Stacked, Text, all_digested
from idiolect_services.directions import Directions, contributions_of
from idiolect_services.gateway.answers import Call, Draft, Ready, Render, Scored
from idiolect_services.gateway.batching import QUEUE_SECONDS
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.fencing import Claim
from idiolect_services.gateway.headers import header
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.presence import while_present
from idiolect_services.gateway.schemas.ranking import (
    NO_USAGE,
    SIDE_NAMES,
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
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.gateway.warm import WarmRankings
from idiolect_services.looks import STORE_TROUBLE
from idiolect_services.models import Models
from idiolect_services.scorer import NotResidentError, Scorer, ScoreRequest, ScoreResult, Under, Unrecorded

DEFAULT_DOMAIN = "default"
FENCE_TRIES = 2
TIMEOUT_HEADER = "Idiolect-Timeout-Ms"
_TIMEOUT_NAME = TIMEOUT_HEADER.lower().encode()
TIMEOUT_ABOUT = (
    "Milliseconds that the request may wait for the model, or for adapters that have to be loaded; then it is dropped "
    "and answered with 503. Without it a request is refused with 429 if its turn would come in more than "
    f"{QUEUE_SECONDS:g} seconds."
)

Model = TypeVar("Model", bound=ForPerson)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Computed:
    """What the model gave for a request: of the bare model, and by key of what else its texts were read under."""

    read_by: Scorer
    bare_NW: Features
    under: Under


ToRead = tuple[Scorer, Sequence[Stacked]]  # by which model, and under what beside it


class RankingRoutes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._most = dict.fromkeys(SIDE_NAMES, self._services.settings.max_documents)
        self._warm = WarmRankings(
            self._services.store,
            self._services.clock,
            gateway.pace,
            gateway.recorder,
            gateway.lanes.serving,
            self._services.process,
            self._services.memory,
        )
        self.posts = {"/v1/rerank": self.rerank, "/v1/score": self.score, "/v1/compare": self.compare}

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["ranking"])
        for path, body, response in (
            ("/v1/rerank", RerankRequest, RerankResponse),
            ("/v1/score", ScoreTexts, ScoreResponse),
            ("/v1/compare", CompareRequest, CompareResponse),
        ):
            described = documented.route(
                Scope.INFER, response, body=body, problems=(409,), headers=((TIMEOUT_HEADER, TIMEOUT_ABOUT),)
            )
            router.add_api_route(path, self.posts[path], methods=["POST"], **described)
        return router

    async def rerank(self, request: Request) -> Response:
        tenant, call = await self._read(request, RerankRequest)
        texts = self._checked("documents", [text_of(document) for document in call.documents])
        ask = self._ask(tenant, call, self._checked("query", [call.query]), texts)
        return await self._serve(request, ask, lambda scored: self._ranked(call, ask, scored))

    async def score(self, request: Request) -> Response:
        tenant, call = await self._read(request, ScoreTexts)
        queries, documents = call.sides()
        ask = self._ask(tenant, call, self._checked("query", queries), self._checked("documents", documents))
        return await self._serve(request, ask, lambda scored: self._scored(call, scored))

    async def compare(self, request: Request) -> Response:
        tenant, call = await self._read(request, CompareRequest)
        texts = self._checked("a", [call.a]) + self._checked("b", [call.b])
        ask = self._ask(tenant, call, self._checked("query", [call.query]), texts)
        return await self._serve(request, ask, lambda scored: self._compared(call, scored))

    async def _read(self, request: Request, model: type[Model]) -> tuple[str, Model]:
        caller = await self._gateway.authorise_anyone(request, Scope.INFER)
        settings = self._services.settings
        body = await read_object(request, settings.max_body_bytes)
        call = validated(model, body, **self._most)
        if caller.subject is not None and call.user is not None:
            caller.require_person(self._services.pseudonym(caller.tenant, call.user))
        return caller.tenant, call

    def _checked(self, field: str, texts: Sequence[str]) -> list[Text]:
        limit = self._services.settings.max_text_chars
        sizes = list(map(len, texts))
        if max(sizes) > limit:
            index, size = next((index, size) for index, size in enumerate(sizes) if size > limit)
            name = f"{field}.{index}" if len(texts) > 1 else field
            raise TooLargeError(f"{name!r} holds {size} characters, the limit is {limit}.", mend="Shorten or split it.")
        return all_digested(texts)

    def _ask(self, tenant: str, call: ForPerson, queries: Sequence[Text], texts: Sequence[Text]) -> ScoreRequest:
        paired = [queries[0]] * len(texts) if len(queries) == 1 else queries
        return ScoreRequest(
            tenant=tenant,
            pairs=tuple(zip(paired, texts, strict=True)),
            subject=None if call.user is None else self._services.pseudonym(tenant, call.user),
            domain=DEFAULT_DOMAIN if call.domain is None else check_name("domain", call.domain),
            mode=call.personalization,
            strength=call.strength,
            explain=call.explain,
        )

    async def _serve(self, request: Request, ask: ScoreRequest, render: Render) -> Response:
        """On one model from the beginning to the end, also if another one takes over meanwhile."""
        call = Call(request, ask, render, *_seconds(request, self._services.settings.compute_seconds))
        with self._services.live.lease() as models:
            return await self._serve_on(models, call)

    async def _serve_on(self, models: Models, call: Call) -> Response:
        gate, ask = self._gateway.gate, call.ask
        computed: Computed | None = None
        for _ in range(FENCE_TRIES):
            ticket = gate.ticket()
            tried = await self._tried(models, call, computed)
            if isinstance(tried, tuple):
                computed = await self._computed(*tried, call)
                ticket = gate.ticket()
                tried = await self._on_thread(call, partial(self._score, models, ask, computed))
            ready = tried if isinstance(tried, Ready) else Ready(tried, call.render(tried))
            response = await self._recorded(call.render, ready)
            if response is not None and await self._gateway.fence.admits(ticket, _claim(ask, ready)):
                return self._counted(response, ready.scored)
        return await self._without_person(models.live, call, computed)

    async def _tried(self, models: Models, call: Call, computed: Computed | None) -> Ready | Scored | ToRead:
        """Where memory is not enough: what has to be loaded is loaded at once, and what has to be read is told."""
        work = partial(self._try, models, call.ask, computed)
        try:
            ready = await self._warm.answer(models, call)
        except NotResidentError:
            return await while_present(call.request, self._loading(call, work))
        return await self._on_thread(call, work) if ready is None else ready

    def _counted(self, response: Response, scored: Scored) -> Response:
        self._gateway.metrics.personalized(scored.result.personalization.reason)
        return response

    async def _computed(self, scorer: Scorer, stacks: Sequence[Stacked], call: Call) -> Computed:
        ask = call.ask
        waiting = self._gateway.batcher.features(
            scorer.features, ask.tenant, ask.pairs, ask.subject, call.seconds, stacks, call.patience
        )
        rows_NW = await while_present(call.request, waiting)
        bare_NW, *others = np.split(rows_NW, 1 + len(stacks))
        return Computed(scorer, bare_NW, {stack.key: part for stack, part in zip(stacks, others, strict=True)})

    async def _on_thread(self, call: Call, work: Callable[[bool], T]) -> T:
        """`work` is told whether it must do with what is in memory, and raises NotResidentError where it can't."""
        try:
            return await self._gateway.lanes.serving.run(work, True)
        except NotResidentError:
            return await while_present(call.request, self._loading(call, work))

    async def _loading(self, call: Call, work: Callable[[bool], T]) -> T:
        """A load that takes too long goes on without whoever waited for it: the next one finds it done."""
        try:
            async with asyncio.timeout(call.seconds):
                return await self._gateway.lanes.loading.run(work, False)
        except TimeoutError:
            raise StatusError(
                503,
                f"the adapters were not loaded within {call.seconds:g} seconds.",
                mend="Come back after the time in Retry-After, or allow more time.",
                code="deadline_exceeded",
                retry_after_s=1,
            ) from None

    def _try(self, models: Models, ask: ScoreRequest, computed: Computed | None, resident: bool) -> Scored | ToRead:
        """If the model has to run first: which, and what it has to read the texts under."""
        if computed is not None:
            return self._score(models, ask, computed, resident)
        began = self._services.clock.now()
        result = models.try_score(ask, resident=resident)
        if result is None:
            return models.to_read(ask, resident=resident)
        return Scored(result, began, models.model_of(result))

    def _score(self, models: Models, ask: ScoreRequest, computed: Computed, resident: bool) -> Scored:
        began = self._services.clock.now()
        result = models.score(computed.read_by, ask, computed.bare_NW, computed.under, resident=resident)
        return Scored(result, began, models.model_of(result))

    async def _without_person(self, scorer: Scorer, call: Call, before: Computed | None) -> Response:
        known = before is not None and before.read_by is scorer
        computed = before if before is not None and known else await self._computed(scorer, (), call)

        def score(resident: bool) -> Scored:
            began = self._services.clock.now()
            result = scorer.score_without_person(call.ask, computed.bare_NW, computed.under, resident=resident)
            return Scored(result, began, scorer.model)

        scored = await self._on_thread(call, score)
        response = await self._recorded(call.render, Ready(scored, call.render(scored)))
        assert response is not None  # nobody is named, so nobody's reset can outdate it
        return self._counted(response, scored)

    async def _recorded(self, render: Render, ready: Ready) -> Response | None:
        """The answer, once what it shows is committed. None if its person was reset before that.

        If the store can't be reached, or the tenant may keep no more today, it leaves without an id and says why: no
        feedback on it is possible.
        """
        draft, outcome = ready.draft, ready.outcome
        if draft.shown is None:
            self._gateway.metrics.unrecorded(ready.scored.result.unrecorded)
            return _response(draft)
        if outcome is None:
            outcome = await self._gateway.recorder.record(draft.shown)
        if outcome == "recorded":
            return _response(draft)
        if outcome == "outdated":
            return None
        if not isinstance(outcome, (*STORE_TROUBLE, QuotaExceededError)):
            raise outcome
        why: Unrecorded = "quota_exceeded" if isinstance(outcome, QuotaExceededError) else "store_unavailable"
        self._gateway.metrics.unrecorded(why)
        said = replace(ready.scored.result, unrecorded=why)
        return _response(render(replace(ready.scored, result=said)))

    def _ranked(self, call: RerankRequest, ask: ScoreRequest, scored: Scored) -> Draft:
        result = scored.result
        scores = result.score_N
        # Python's sort is stable even when reversed, so ties stay in the order of the request.
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: call.top_n or None]
        relevance = relevance_of(scores, scored.model.temperature)
        shown = _shown(ask, scored, order) if result.unrecorded is None else None
        entries: list[dict[str, Any]] = [
            {"index": index, "relevance_score": relevance[index], "score": scores[index]} for index in order
        ]
        if call.says_more:
            for entry in entries:
                entry.update(_more_of(call, result, entry["index"]))
        contrasts = {"contrasts": Directions.of(scored.model).named(_named(entries))} if call.explain else {}
        body = to_json(
            {
                "id": None if shown is None else shown.inference.id,
                **unrecorded_of(result),
                "model": scored.model.digest,
                "results": entries,
                **contrasts,
                "usage": NO_USAGE,
                "personalization": result.personalization.to_json(),
            }
        )
        return Draft(body, shown)

    def _scored(self, call: ForPerson, scored: Scored) -> Draft:
        result = scored.result
        entries = [
            {"index": index, "object": "score", "score": score}
            | ({"parts": _parts(result, index)} if call.explain else {})
            for index, score in enumerate(result.score_N)
        ]
        body = to_json(
            {
                "id": new_id(),
                "object": "list",
                "created": int(scored.began.timestamp()),
                "model": scored.model.digest,
                "data": entries,
                "usage": NO_USAGE,
                "personalization": result.personalization.to_json(),
            }
        )
        return Draft(body)

    def _compared(self, call: CompareRequest, scored: Scored) -> Draft:
        result = scored.result
        a, b = result.score_N
        parts = {"parts": {"a": _parts(result, 0), "b": _parts(result, 1)}} if call.explain else {}
        body = to_json(
            {
                "probability": sigmoid((a - b) / scored.model.temperature),
                "preferred": "tie" if a == b else "a" if a > b else "b",
                "model": scored.model.digest,
                **parts,
                "personalization": result.personalization.to_json(),
            }
        )
        return Draft(body)


def unrecorded_of(result: ScoreResult) -> dict[str, str]:
    return {} if result.unrecorded is None else {"unrecorded": result.unrecorded}


def _seconds(request: Request, most: float) -> tuple[float, float]:
    """How long it may take, and may stand in a queue. Raises InvalidInputError. More than the server's own limit is the
    limit; whoever names a time is taken at their word."""
    text = header(request.scope, _TIMEOUT_NAME)
    if text is None:
        return most, min(most, QUEUE_SECONDS)
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) > 0):
        raise InvalidInputError(
            f"the header {TIMEOUT_HEADER} is not a number of milliseconds.", mend="Send a whole number over 0."
        )
    seconds = min(int(text) / 1000.0, most)
    return seconds, seconds


def _claim(ask: ScoreRequest, ready: Ready) -> Claim:
    result = ready.scored.result
    said, looked_at = result.personalization, result.looked_at if ready.looked_at is None else ready.looked_at
    return Claim(ask.tenant, ask.subject, ask.domain, said.generation, said.applied, looked_at)


def _response(draft: Draft) -> Response:
    return Response(draft.body, media_type="application/json")


def _shown(ask: ScoreRequest, scored: Scored, order: Sequence[int]) -> ShownInference:
    """What is to be recorded, under a new id.

    A person who has not opted in is not named in it: nothing that they were shown is kept as theirs. It carries the
    generation, so that the store drops it if the person was reset since.
    """
    query = ask.pairs[0][0]
    inference = Inference(
        id=new_id(),
        subject=ask.subject if scored.result.consented else None,
        domain=ask.domain,
        query=query.digest,
        documents=tuple([text.digest for _, text in ask.pairs]),
        shown=tuple(order),
        created_at=scored.began,
    )
    texts = [query.text, *(text.text for _, text in ask.pairs)]
    return ShownInference(ask.tenant, inference, texts, scored.result.personalization.generation)


_BELOW_ONE = 1.0 - 2**-53


def sigmoid(x: float) -> float:
    """In the open interval (0, 1), also where float64 would round to its ends."""
    if x >= 0:
        value = 1.0 / (1.0 + math.exp(-x))
        return value if value < _BELOW_ONE else _BELOW_ONE
    odds = math.exp(x if x > -700.0 else -700.0)
    return odds / (1.0 + odds)


def relevance_of(scores: Sequence[float], temperature: float) -> list[float]:
    """Raw scores have no zero of their own, so each is set against the request's mean (Bradley-Terry)."""
    mean = math.fsum(scores) / len(scores)
    return [sigmoid((score - mean) / temperature) for score in scores]


def _more_of(call: RerankRequest, result: ScoreResult, index: int) -> dict[str, Any]:
    more: dict[str, Any] = {}
    document = call.documents[index]
    if isinstance(document, Document) and document.id is not None:
        more["id"] = document.id
    if call.return_documents:
        more["document"] = {"text": text_of(document)}
    if call.explain:
        more["parts"] = _parts(result, index)
        more["directions"] = contributions_of(result, index)
    return more


def _named(entries: Sequence[dict[str, Any]]) -> set[str]:
    return {key for entry in entries for key in entry["directions"]["top"]}


def _parts(result: ScoreResult, index: int) -> dict[str, float]:
    return {"global": result.global_N[index], "domain": result.domain_N[index], "user": result.user_N[index]}
