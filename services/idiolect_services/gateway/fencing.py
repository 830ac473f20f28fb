"""The last look at a person's generation before a response leaves, and the wait of resets for those that have looked.

See `idiolect.resets.fence` for why time alone makes this hold between processes; within one, the gate does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from idiolect.resets.fence import RESET_SECONDS, may_leave, uptime
from idiolect.stores.ports import SubjectStore
from idiolect_services.gateway.gate import GenerationGate
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.pace import Pace
from idiolect_services.scorer import STORE_TROUBLE

LOOKS = 3  # a store or machine that is too slow for so many in a row confirms nothing


@dataclass(frozen=True, slots=True)
class Claim:
    """What a response says of a person, and when the store was last asked whether it holds."""

    tenant: str
    subject: str | None
    domain: str | None
    generation: int | None
    personal: bool  # something of the person's own was applied
    looked_at: float  # of `fence.uptime`, taken before the store was asked


class AnswerFence:
    """Only for the event loop's thread, as the gate is."""

    def __init__(
        self,
        gate: GenerationGate,
        store: SubjectStore,
        lane: Lane,
        uptime: Callable[[], float] = uptime,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        pace: Pace | None = None,
    ) -> None:
        """Without a `pace` it never looks on the event loop."""
        self._gate = gate
        self._store = store
        self._lane = lane
        self._uptime = uptime
        self._sleep = sleep
        self._pace = pace or Pace(embedded=False)

    async def admits(self, ticket: int, claim: Claim) -> bool:
        """Whether the response may leave; if so, hand it to the server without another await.

        False: the person was reset meanwhile, or it can't be confirmed in time that they were not.
        """
        looked_at = claim.looked_at
        for look in range(1, LOOKS + 1):
            if not self._gate.admits(ticket, claim.tenant, claim.subject, claim.generation):
                return False
            if claim.subject is None or claim.generation is None or may_leave(looked_at, self._uptime()):
                return True
            looked_at = self._uptime()
            if not await self._look(claim, last=look == LOOKS):
                return False
        current = self._gate.admits(ticket, claim.tenant, claim.subject, claim.generation)
        return current and may_leave(looked_at, self._uptime())

    async def _look(self, claim: Claim, *, last: bool) -> bool:
        """On a busy server the time may run out on the way to a thread and back, time and again. A file is read here
        then, so that nothing comes between the look and the answer."""
        if not self._pace.embedded or not (last or self._pace.allows(1)):
            return await self._lane.run(self._holds, claim)
        began = self._pace.begins()
        holds = self._holds(claim)
        self._pace.ends(began)
        return holds

    def _holds(self, claim: Claim) -> bool:
        try:
            state = self._store.subject(claim.tenant, claim.subject or "")
        except STORE_TROUBLE:
            return False
        return state.generation == claim.generation and not (claim.personal and state.refusal(claim.domain))

    async def wait_for_others(self) -> None:
        """After the commit and before the answer of what fences a person."""
        await self._sleep(RESET_SECONDS)
