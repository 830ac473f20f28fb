"""What is asked of one person as a whole: all that is stored of them, and answers to requests that are sent again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

# `shown`: what was ranked for the person. `held_out`: comparisons that only evaluations read.
PersonPart = Literal["history", "shown", "signals", "comparisons", "held_out", "ratings", "live", "resets"]


@dataclass(frozen=True, slots=True)
class PersonPage:
    """`rows` hold JSON values and times. `after`: what the next page starts after; None on the last one."""

    rows: Sequence[Mapping[str, Any]]
    after: str | None


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key that stands for a request. `since`: when it was claimed first. `answer`: None until there is one."""

    since: datetime
    answer: KeptAnswer | None


@dataclass(frozen=True, slots=True)
class ClaimedKey:
    """What `claim_key` was asked for: something that is done under it is done once."""

    owner: str
    key: str
    fingerprint: bytes


class PersonStore(Protocol):
    def person_page(self, tenant: str, subject: str, part: PersonPart, after: str | None = None) -> PersonPage:
        """A bounded page of what is stored of a person, oldest first. Of nobody that is known: no rows."""
        ...


class IdempotencyStore(Protocol):
    """`owner` is the person of an end user's token, else empty: nobody meets the keys of another."""

    def claim_key(
        self, tenant: str, owner: str, key: str, fingerprint: bytes, now: datetime, expires: datetime
    ) -> HeldKey:
        """With what this request was answered before; without an answer it is to be done (again).

        Raises InvalidInputError (code `idempotency_key_reused`) if the key stands for another request.
        """
        ...

    def keep_answer(self, tenant: str, owner: str, key: str, fingerprint: bytes, answer: KeptAnswer) -> None:
        """The first answer stays. Does nothing for a key that is not claimed for this request."""
        ...
