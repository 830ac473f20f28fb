"""Rankings that need neither the model nor a load: answered on the event loop, those of one turn together.

That is what most rankings are, and a thread for each would cost more than all that it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from idiolect.clock import Clock
from idiolect.stores.ports import Store
from idiolect_services.gateway.answers import Call, Ready, Scored
from idiolect_services.gateway.pace import Pace
from idiolect_services.gateway.recorder import InferenceRecorder
from idiolect_services.gateway.turns import Turns, in_step
from idiolect_services.looks import Asking, answered
from idiolect_services.models import Models


class WarmRankings:
    """Only for the event loop's thread."""

    def __init__(self, store: Store, clock: Clock, pace: Pace, recorder: InferenceRecorder) -> None:
        self._answered = partial(answered, store)
        self._clock = clock
        self._pace = pace
        self._recorder = recorder
        self._turns: Turns[tuple[Models, Call], Ready | None] = Turns(self._answer)

    async def answer(self, models: Models, call: Call) -> Ready | None:
        """None if it has to go through threads: what it needs is not in memory, or the store is slow just now. Raises
        what scoring or rendering raises."""
        texts = len(call.ask.pairs)
        return await self._turns.join((models, call), texts) if self._pace.allows(texts) else None

    def _answer(self, calls: Sequence[tuple[Models, Call]]) -> list[Ready | Exception | None]:
        began = self._pace.begins()
        ready = in_step([self._ready(models, call) for models, call in calls], self._answered)
        self._pace.ends(began)
        shown = [(one, one.draft.shown) for one in ready if isinstance(one, Ready) and one.draft.shown is not None]
        outcomes = self._recorder.record_at_once([inference for _, inference in shown]) if shown else None
        if outcomes is not None:
            for (one, _), outcome in zip(shown, outcomes, strict=True):
                one.outcome = outcome
        return ready

    def _ready(self, models: Models, call: Call) -> Asking[Ready | None]:
        began = self._clock.now()
        result = yield from models.trying(call.ask, resident=True)
        if result is None:
            return None
        yield None
        scored = Scored(result, began, models.model_of(result))
        return Ready(scored, call.render(scored))
