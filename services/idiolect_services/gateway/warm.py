"""Rankings that need neither the model nor a load, which is what most are: answered several together.

Over an embedded store on the event loop, those of one turn: a thread for each would cost more than all that it does.
Over a server on threads, those that came while others were worked on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from idiolect.clock import Clock
from idiolect.stores.ports import RecordOutcome, ShownInference, Store
from idiolect.stores.redis.resolutions import RememberedResolutions
from idiolect_services.gateway.answers import Call, Ready, Scored
from idiolect_services.gateway.groups import Groups
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.pace import MOST_TEXTS, Pace
from idiolect_services.gateway.process import Process
from idiolect_services.gateway.recorder import InferenceRecorder
from idiolect_services.gateway.turns import Turns, in_step
from idiolect_services.looks import Asking, answered
from idiolect_services.models import Models


class WarmRankings:
    """Only for the event loop's thread."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        pace: Pace,
        recorder: InferenceRecorder,
        lane: Lane,
        process: Process,
        memory: RememberedResolutions | None = None,
    ) -> None:
        self._answered = partial(answered, store, memory=memory)
        self._clock = clock
        self._uptime = process.uptime
        self._pace = pace
        self._recorder = recorder
        self._turns: Turns[tuple[Models, Call], Ready | None] = Turns(self._answer)
        self._groups: Groups[tuple[Models, Call], Ready | None] = Groups(
            lane, self._answer_on_thread, process.monotonic
        )

    async def answer(self, models: Models, call: Call) -> Ready | None:
        """None if it has to go through threads: texts have to be read, or the store is slow just now. Raises
        NotResidentError if an adapter has to be loaded, and what scoring or rendering raises."""
        texts = len(call.ask.pairs)
        if not self._pace.embedded:
            return await self._groups.join((models, call), texts) if texts <= MOST_TEXTS else None
        return await self._turns.join((models, call), texts) if self._pace.allows(texts) else None

    def _answer(self, calls: Sequence[tuple[Models, Call]]) -> list[Ready | Exception | None]:
        began = self._pace.begins()
        ready = in_step([self._ready(models, call) for models, call in calls], self._answered)
        self._pace.ends(began)
        self._record(ready, self._recorder.record_at_once)
        return ready

    def _answer_on_thread(self, calls: Sequence[tuple[Models, Call]]) -> list[Ready | Exception | None]:
        ready = in_step([self._ready(models, call) for models, call in calls], self._answered)
        self._record(ready, self._recorder.record_now)
        return ready

    def _ready(self, models: Models, call: Call) -> Asking[Ready | None]:
        began = self._clock.now()
        result = yield from models.trying(call.ask, resident=True)
        if result is None:
            return None
        yield None
        scored = Scored(result, began, models.model_of(result))
        return Ready(scored, call.render(scored))

    def _record(
        self,
        ready: Sequence[Ready | Exception | None],
        record: Callable[[Sequence[ShownInference]], Sequence[RecordOutcome] | None],
    ) -> None:
        """All that is to be recorded, in one transaction. Not what `record` gives nothing for."""
        shown = [(one, one.draft.shown) for one in ready if isinstance(one, Ready) and one.draft.shown is not None]
        began = self._uptime()
        outcomes = record([inference for _, inference in shown]) if shown else None
        if outcomes is not None:
            for (one, inference), outcome in zip(shown, outcomes, strict=True):
                one.outcome = outcome
                if outcome == "recorded" and _is_fenced(inference):
                    one.looked_at = began


def _is_fenced(shown: ShownInference) -> bool:
    """Whether it is recorded only if its person is still of that generation."""
    return shown.inference.subject is not None and shown.generation is not None
