"""Group commit of what was shown: while one transaction commits, the next one gathers.

An answer leaves only after the group that its inference is in was committed, so feedback on it always finds it. The
price of a transaction is shared by all that waited for it, and the store has one writer instead of one for each
request.

Where writing waits for nothing, a group is written at once: to hand it to a thread costs more than to write it. What
has to wait, for another writer, a new key or the disk, goes through the thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from idiolect.errors import IdiolectError, UnavailableError
from idiolect.stores.ports import RecordOutcome, ShownInference, SignalStore
from idiolect_services.gateway.pace import Pace
from idiolect_services.gateway.process import Process

MAX_WAITING = 1024
MAX_GROUP = 64
AT_ONCE_IN_A_ROW = 128  # groups; then one goes through the thread, which moves the store's log into its file


@dataclass(frozen=True, slots=True)
class _Waiting:
    shown: ShownInference
    loop: asyncio.AbstractEventLoop
    landed: asyncio.Future[RecordOutcome]


class InferenceRecorder:
    """One thread that writes. What waits for it is bounded: beyond that, `record` refuses at once."""

    def __init__(self, store: SignalStore, process: Process | None = None, pace: Pace | None = None) -> None:
        """Without a `pace` nothing is written at once."""
        self._store = store
        self._pace = pace or Pace(embedded=False)
        self._in_a_row = 0
        self._waiting: list[_Waiting] = []
        self._writing = False
        self._lock = threading.Lock()
        self._pool = (process or Process()).threads("recorder", 1)

    def record_at_once(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome] | None:
        """On the event loop. None, and nothing recorded, if it might wait: then each has to be recorded as below."""
        if self._writing or self._in_a_row >= AT_ONCE_IN_A_ROW or not self._pace.allows(0):
            return None
        self._in_a_row += 1
        began = self._pace.begins()
        try:
            return self._store.record_at_once(shown)
        except Exception as error:
            return [_refused(error)] * len(shown)
        finally:
            self._pace.ends(began)

    def record_now(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome]:
        """On a thread that may wait for the store, whatever others are recording."""
        return self._recorded(shown)

    async def record(self, shown: ShownInference) -> RecordOutcome:
        """Once it is committed, or why it is not. Raises UnavailableError (code `overloaded`) if too many wait."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(shown, loop, loop.create_future())
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                raise UnavailableError("too many answers wait to be recorded.", mend="Try again.", code="overloaded")
            starts = not self._writing
            if starts:
                self._pool.submit(self._write)  # first, because it raises once the pool is closed
                self._writing = True
            self._waiting.append(waiting)
        return await waiting.landed

    def _write(self) -> None:
        """Until nothing waits. The books are kept under the lock and by this thread alone: no loop has to be alive."""
        while group := self._next_group():
            outcomes = self._recorded([one.shown for one in group])
            for loop in {one.loop for one in group}:
                landed = [(one, o) for one, o in zip(group, outcomes, strict=True) if one.loop is loop]
                with suppress(RuntimeError):  # that loop was closed, so nobody waits there any more
                    loop.call_soon_threadsafe(_land, landed)

    def _next_group(self) -> list[_Waiting]:
        with self._lock:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            self._writing = bool(group)
            self._in_a_row = 0
        return group

    def _recorded(self, shown: Sequence[ShownInference]) -> Sequence[RecordOutcome]:
        try:
            return self._store.record_inferences(shown)
        except Exception as error:
            return [_refused(error)] * len(shown)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


def _refused(error: Exception) -> IdiolectError:
    """What is none of ours is a bug: whoever waits must not wait for ever."""
    return error if isinstance(error, IdiolectError) else IdiolectError(f"recording failed: {type(error).__name__}.")


def _land(landed: Sequence[tuple[_Waiting, RecordOutcome]]) -> None:
    for waiting, outcome in landed:
        if not waiting.landed.done():  # cancelled: its client is gone
            waiting.landed.set_result(outcome)
