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
from idiolect_services.looks import STORE_TROUBLE

# A store or machine that is too slow for so many looks in a row, and for so long, confirms nothing. On a machine whose
# cores are all busy a single look is often too slow, and hardly ever all that fit into this time.
LOOKS, PATIENCE_SECONDS = 3, 0.5


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
        looked_at: float | None = claim.looked_at
        patience, looks = self._uptime() + PATIENCE_SECONDS, 0
        while looked_at is not None:
            if not self._gate.admits(ticket, claim.tenant, claim.subject, claim.generation):
                return False
            now = self._uptime()
            if claim.subject is None or claim.generation is None or may_leave(looked_at, now):
                return True
            if looks >= LOOKS and now > patience:
                return False
            looks += 1
            looked_at = await self._look(claim, at_last=looks >= LOOKS)
        return False

    async def _look(self, claim: Claim, *, at_last: bool) -> float | None:
        """When a look began that found it to hold. On a busy server the time may run out on the way to a thread and
        back, time and again. A file is read here then, so that nothing comes between the look and the answer."""
        if not self._pace.embedded or not (at_last or self._pace.allows(1)):
            return await self._lane.run(self._held_at, claim)
        began = self._pace.begins()
        looked_at = self._held_at(claim)
        self._pace.ends(began)
        return looked_at

    def _held_at(self, claim: Claim) -> float | None:
        began = self._uptime()  # not before: what waits for its turn has not looked yet
        try:
            state = self._store.subject(claim.tenant, claim.subject or "")
        except STORE_TROUBLE:
            return None
        holds = state.generation == claim.generation and not (claim.personal and state.refusal(claim.domain))
        return began if holds else None

    async def wait_for_others(self) -> None:
        """After the commit and before the answer of what fences a person."""
        await self._sleep(RESET_SECONDS)
