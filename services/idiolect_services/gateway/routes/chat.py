"""POST /v1/chat/completions: n candidates from the tenant's upstream, and the one that this person would prefer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import ConflictError
from idiolect.ids import check_name, new_id
from idiolect.tenancy import Scope
from idiolect.upstreams import Upstream
from idiolect_adapters.runtime.features import Pair, digested
from idiolect_services.gateway.answers import Draft, Scored
from idiolect_services.gateway.bodies import read_object, validated
from idiolect_services.gateway.candidates import Batch, Candidate, Post, gather
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.openapi import Documented
from idiolect_services.gateway.presence import while_present
from idiolect_services.gateway.routes.ranking import (
    DEFAULT_DOMAIN,
    TIMEOUT_HEADER,
    RankingRoutes,
    _parts,
    _seconds,
    _shown,
    relevance_of,
    unrecorded_of,
)
from idiolect_services.gateway.schemas.chat import MAX_MESSAGES, ChatRequest, ChatResponse
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.gateway.upstream_places import UpstreamPlaces
from idiolect_services.scorer import ScoreRequest
from idiolect_services.upstream_settings import api_key_of

# Ours, or not to be passed on: the upstream has no business knowing who the person is.
_NOT_FORWARDED = frozenset({"idiolect", "user", "n", "stream", "stream_options"})
TIMEOUT_ABOUT = (
    "Milliseconds that the request may wait for the upstream, where that is less than the server allows; and then as "
    "long for the model."
)


@dataclass(frozen=True, slots=True)
class Found:
    """A batch, and which of its candidates have a text to rank."""

    call: ChatRequest
    batch: Batch
    rankable: tuple[Candidate, ...]


class ChatRoutes(RankingRoutes):
    """Ranks as `/v1/rerank` does, with the last message of the user as the query."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self._places = UpstreamPlaces(self._services.settings.max_requests)

    def router(self, documented: Documented) -> APIRouter:
        router = APIRouter(tags=["completions"])
        described = documented.route(
            Scope.INFER,
            ChatResponse,
            body=ChatRequest,
            problems=(409, 429, 502, 504),
            headers=((TIMEOUT_HEADER, TIMEOUT_ABOUT),),
        )
        router.add_api_route("/v1/chat/completions", self.complete, methods=["POST"], **described)
        return router

    async def complete(self, request: Request) -> Response:
        caller = await self._gateway.authorise_anyone(request, Scope.INFER)
        body = await read_object(request, self._services.settings.max_body_bytes)
        call = validated(ChatRequest, body, messages=MAX_MESSAGES)
        # Everything that can be refused is refused before the upstream costs anything.
        ask = self._asked(caller.tenant, call)
        caller.require_person(ask.subject)
        seconds, _ = _seconds(request, self._services.settings.upstream_seconds)
        upstream = await self._gateway.lanes.serving.run(self._services.store.upstream, caller.tenant)
        if upstream is None:
            raise ConflictError(
                "this tenant has no upstream.",
                mend="An admin sets one: PUT /v1/upstream, or idiolect tenant upstream set.",
                code="no_upstream",
            )
        post = self._post_to(caller.tenant, upstream, seconds)
        with self._places.one(caller.tenant):
            batch = await while_present(request, gather(post, _forwarded(body, upstream), call.n))
        found = Found(call, batch, tuple(candidate for candidate in batch.candidates if candidate.text is not None))
        if not found.rankable:
            return _json(_unranked(found))
        ask = replace(ask, pairs=self._pairs(ask, found))
        return await self._serve(request, ask, lambda scored: self._completed(found, ask, scored))

    def _post_to(self, tenant: str, upstream: Upstream, seconds: float) -> Post:
        """All requests of one completion share one deadline, so that what came in time is not lost with the rest."""
        deadline = asyncio.get_running_loop().time() + seconds
        # Checked again on every use: the operator may have shortened the list since.
        target = self._gateway.upstream_rules.target(upstream.base_url)
        key = api_key_of(self._services.vault, tenant, upstream)

        async def post(body: Mapping[str, Any]) -> dict[str, Any]:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._services.upstreams.post(target, "/chat/completions", key, body)
            except TimeoutError:
                raise StatusError(
                    504,
                    f"the upstream did not answer within {seconds:g} seconds.",
                    mend="Try again, with fewer candidates or tokens.",
                    code="upstream_timeout",
                ) from None

        return post

    def _pairs(self, ask: ScoreRequest, found: Found) -> tuple[Pair, ...]:
        """Of a very long candidate the beginning is ranked; it is returned whole."""
        most = self._services.settings.max_text_chars
        prompt = ask.pairs[0][0]
        return tuple((prompt, digested((candidate.text or "")[:most])) for candidate in found.rankable)

    def _asked(self, tenant: str, call: ChatRequest) -> ScoreRequest:
        """The ranking to come, with the prompt alone. Raises TooLargeError, InvalidInputError."""
        (prompt,) = self._checked("messages", [call.prompt()])
        wanted = call.idiolect
        return ScoreRequest(
            tenant=tenant,
            pairs=((prompt, prompt),),
            subject=None if call.user is None else self._services.pseudonym(tenant, call.user),
            domain=DEFAULT_DOMAIN if wanted.domain is None else check_name("domain", wanted.domain),
            mode=wanted.personalization,
            strength=wanted.strength,
        )

    def _completed(self, found: Found, ask: ScoreRequest, scored: Scored) -> Draft:
        result, wanted = scored.result, found.call.idiolect
        order = sorted(range(len(result.score_N)), key=result.score_N.__getitem__, reverse=True)
        returned = order if wanted.candidates else order[:1]
        relevance = relevance_of(result.score_N, scored.model.temperature)
        shown = _shown(ask, scored, returned) if result.unrecorded is None else None
        ranking = [
            {"index": index, "score": result.score_N[index], "relevance_score": relevance[index]}
            | ({"parts": _parts(result, index)} if wanted.explain else {})
            for index in returned
        ]
        body = _completion(
            found,
            [found.rankable[index] for index in returned],
            inference_id=None if shown is None else shown.inference.id,
            unrecorded=unrecorded_of(result),
            ranking=ranking,
            personalization=result.personalization.to_json(),
        )
        return Draft(to_json(body), shown)


def _forwarded(body: Mapping[str, Any], upstream: Upstream) -> dict[str, Any]:
    """What the caller sent, with the tenant's model if one is set."""
    kept = {name: value for name, value in body.items() if name not in _NOT_FORWARDED}
    return kept if upstream.model is None else kept | {"model": upstream.model}


def _unranked(found: Found) -> dict[str, Any]:
    """Tool calls and refusals can't be compared: the first candidate, as if nobody had ranked."""
    return _completion(found, [found.batch.candidates[0]], inference_id=None, ranking=[], personalization=None)


def _completion(
    found: Found,
    choices: Sequence[Candidate],
    *,
    inference_id: str | None,
    ranking: list[dict[str, Any]],
    personalization: dict[str, Any] | None,
    unrecorded: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    batch = found.batch
    return {
        "id": inference_id or new_id(),
        "object": "chat.completion",
        "created": batch.created,
        "model": batch.model,
        "choices": [candidate.choice | {"index": position} for position, candidate in enumerate(choices)],
        "usage": batch.usage,
        "idiolect": {
            "inference_id": inference_id,
            **(unrecorded or {}),
            "asked": found.call.n,
            "received": len(batch.candidates),
            "ranked": len(found.rankable),
            "ranking": ranking,
        },
        "personalization": personalization,
    }


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body), media_type="application/json")
