"""Idempotency-Key: a request that is sent again does nothing again, and a key never stands for two requests.

What the routes do is idempotent by ids of its own (a signal's, a reset's). So a key only has to be claimed before it is
done, and its answer kept after: a crash in between costs nothing, since whatever comes again is done again in vain.
A rollback has no such id, so that it was done is kept in its own transaction.

Over Postgres and Redis a request that is under way is also marked there (see `marks`): the same one, sent again
meanwhile, is told so (409) and does not reach SQL.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from idiolect.errors import InvalidInputError, UnavailableError
from idiolect.stores.people_ports import ClaimedKey, KeptAnswer
from idiolect.tenancy import Caller
from idiolect_services.gateway.context import Gateway
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.marks import Mark
from idiolect_services.looks import STORE_TROUBLE

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"  # on an answer that was kept
ABOUT_KEY = (
    HEADER,
    "Sent again with the same body, it answers as the first time; with another one, 422. While the first is under way "
    "it may answer 409 (`idempotency_key_in_use`) with Retry-After. Optional.",
)

Done = tuple[Response, bool]  # an answer, and whether trying again would change nothing

_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PURPOSE = "idempotency"


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that stands for this request. `owner`: the person of an end user's token, else empty."""

    tenant: str
    owner: str
    key: str
    fingerprint: bytes

    @property
    def claimed(self) -> ClaimedKey:
        return ClaimedKey(self.owner, self.key, self.fingerprint)


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that the store knows of, `since` then, and what was answered to it. `mark`: that it is under way."""

    claim: Claim
    since: datetime
    answer: KeptAnswer | None
    mark: Mark | None = None

    def id_of(self, index: int) -> str:
        """An id for the part `index` of what is done: the same whenever it is sent again, for as long as the key is
        remembered; another one once the key stands for another request, or is another person's."""
        parts = json.dumps([self.claim.owner, self.claim.key, self.since.isoformat(), index]).encode()
        return f"key-{hashlib.sha256(parts).hexdigest()[:32]}"


def key_of(request: Request) -> str | None:
    """Raises InvalidInputError for a key that can't be one."""
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidInputError(
            "the Idempotency-Key is not usable.", mend="Send 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-'."
        )
    return key


class Idempotency:
    def __init__(self, gateway: Gateway) -> None:
        self._services = gateway.services
        self._marks = gateway.marks

    def claim(self, request: Request, caller: Caller, body: dict[str, Any]) -> Claim | None:
        """Nothing is stored yet. None without a key."""
        key = key_of(request)
        if key is None:
            return None
        said = json.dumps([request.method, request.url.path, body], sort_keys=True).encode()
        # Keyed: a plain hash of a short body could be guessed.
        secret = self._services.vault.derive(caller.tenant, _PURPOSE)
        return Claim(caller.tenant, caller.subject or "", key, hmac.digest(secret, said, "sha256"))

    async def once(self, lane: Lane, claim: Claim | None, act: Callable[[Held | None], Awaitable[Done]]) -> Response:
        """What `act` answers, or answered before. Raises as `held` does."""
        async with self.held(lane, claim) as held:
            if held is not None and held.answer is not None:
                return Response(held.answer.body, held.answer.status, {REPLAYED: "true"}, media_type="application/json")
            response, lasts = await act(held)
            if held is not None and lasts:
                with suppress(*STORE_TROUBLE):  # it was done, and is idempotent by its ids
                    await lane.run(self._keep, held, KeptAnswer(response.status_code, bytes(response.body)))
            return response

    @asynccontextmanager
    async def held(self, lane: Lane, claim: Claim | None) -> AsyncIterator[Held | None]:
        """As `hold`, for what is under way while the block is: the same request is refused meanwhile, where that can be
        known. Raises StatusError (409, code `idempotency_key_in_use`) then."""
        if claim is None or self._marks is None:
            yield await self.hold(lane, claim)
            return
        mark = self._marks.of_request(claim.tenant, claim.owner, claim.key, claim.fingerprint)
        try:
            yield await lane.run(self._mark_and_hold, mark, claim)
        finally:  # before the answer, so that whoever sends the request again gets it; also of one that was cancelled
            if not mark.is_removed:
                await asyncio.shield(asyncio.ensure_future(_remove(lane, mark)))

    async def hold(self, lane: Lane, claim: Claim | None) -> Held | None:
        """The key stands for this request from now on, and for no other. Nobody is refused for being the same.

        Raises InvalidInputError (code `idempotency_key_reused`).
        """
        return None if claim is None else await lane.run(self._hold, claim)

    def _mark_and_hold(self, mark: Mark, claim: Claim) -> Held:
        mark.put()
        return replace(self._hold(claim), mark=mark)

    def _hold(self, claim: Claim) -> Held:
        now = self._services.clock.now()
        expires = now + timedelta(hours=self._services.settings.idempotency_hours)
        store = self._services.store
        held = store.claim_key(claim.tenant, claim.owner, claim.key, claim.fingerprint, now, expires)
        return Held(claim, held.since, held.answer)

    def _keep(self, held: Held, answer: KeptAnswer) -> None:
        claim = held.claim
        self._services.store.keep_answer(claim.tenant, claim.owner, claim.key, claim.fingerprint, answer)
        if held.mark is not None:
            held.mark.remove()


async def _remove(lane: Lane, mark: Mark) -> None:
    with suppress(UnavailableError):  # the lane is full: the mark ends by itself
        await lane.run(mark.remove)
