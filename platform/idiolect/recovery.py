"""What a restored database must still learn: changes that were made after its backup and must never be undone.

Every administrative change is written, whole, to a recovery log outside the database before it is committed
(`stores.recovery_log`). A line holds the audit entry of the change, which is chained to the one before it, and what the
entry alone does not say: a person's whole state, or whom a run charged. So a database that went back in time can be
recognised by its audit heads, the entries that it lacks can be told from the chain, and nothing that is missing in
between goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from idiolect.audit import AuditEntry, Head
from idiolect.errors import ConfigurationError, CorruptArtifactError


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """`extra`: `state` and `record` of a person, `run` and `subjects` of a charge."""

    entry: AuditEntry
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"entry": asdict(self.entry), "extra": dict(self.extra)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LoggedChange:
        """Raises CorruptArtifactError for what no log holds."""
        try:
            change = LoggedChange(AuditEntry(**data["entry"]), dict(data["extra"]))
            intact = change.entry.computed_hash() == change.entry.hash
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(f"a change of the recovery log is malformed: {error}.") from error
        if not intact:
            raise CorruptArtifactError(
                f"change {change.entry.seq} of {change.entry.tenant!r} in the recovery log does not match its hash.",
                mend="Use another copy of the log.",
            )
        return change


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many changes were applied again, by their action."""

    applied: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.applied.values())


def continuation(tenant: str, head: Head, changes: Sequence[LoggedChange]) -> list[LoggedChange]:
    """What follows `head` in the chain of one tenant, in order. `changes` come in the order of their logs.

    A change that was logged and never committed is a dead end of the chain and is left out, unless it is the very end:
    then it is finished now. Raises ConfigurationError if a change between `head` and the newest one is in none of the
    logs: another machine's log has it.
    """
    by_hash = {change.entry.hash: change for change in changes if change.entry.seq > head.seq}
    if not by_hash:
        return []
    newest = max(by_hash.values(), key=lambda change: change.entry.seq)
    path = [newest]
    while path[-1].entry.previous != head.hash:
        before = by_hash.get(path[-1].entry.previous)
        if before is None:
            raise ConfigurationError(
                f"the recovery log lacks change {path[-1].entry.seq - 1} of the tenant {tenant!r}, and has later ones.",
                mend="Give the logs of all machines: idiolect restore BACKUP --log FILE --log FILE.",
            )
        path.append(before)
    return path[::-1]
