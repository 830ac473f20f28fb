"""The purge log: whose data must leave the memory of every process, in the order of the commits that said so.

What is served never depends on it (see `fence`): it only frees memory, and says honestly how far that has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

SILENT_SECONDS = 15.0  # three heartbeats: a process that says nothing for so long is stopped, cut off or gone
FORGET_SECONDS = 3600.0

Cache = Literal["confirmed", "pending", "silent"]


@dataclass(frozen=True, slots=True)
class Purge:
    """Everything of this person that is older than `generation` goes."""

    seq: int
    tenant: str
    subject: str  # pseudonym
    generation: int


@dataclass(frozen=True, slots=True)
class Replica:
    """A server process: it began with empty caches at `since`, and has purged up to and including `cursor`."""

    id: str
    since: int
    cursor: int
    silent_s: float  # since it was last heard of


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a purge has come in the caches of every process that may hold something of it."""

    replicas: tuple[tuple[str, Cache], ...]  # (id, state), in order of id

    @property
    def done(self) -> bool:
        return all(state == "confirmed" for _, state in self.replicas)

    def to_json(self) -> dict[str, Any]:
        counts = {name: sum(state == name for _, state in self.replicas) for name in ("confirmed", "pending", "silent")}
        listed = [{"replica": replica, "state": state} for replica, state in self.replicas]
        return {"state": "confirmed" if self.done else "pending", **counts, "replicas": listed}


def progress_of(seq: int, head: int, replicas: Sequence[Replica], purged: str | None = None) -> Progress:
    """Of the purge at `seq`. Processes that began after it never held anything of it, and are left out. `purged` names
    one that is known to be done.

    After a restore the log may be shorter than `seq`; everybody has begun anew since, so its end is what counts.
    """
    needed = min(seq, head)
    concerned = sorted((one for one in replicas if one.since < needed), key=lambda one: one.id)
    return Progress(tuple((one.id, "confirmed" if one.id == purged else _state(one, needed)) for one in concerned))


def _state(replica: Replica, needed: int) -> Cache:
    if replica.cursor >= needed:
        return "confirmed"
    return "silent" if replica.silent_s > SILENT_SECONDS else "pending"
