"""What was resolved for people lately, kept in Redis for all servers: generations and pointers, for a bounded time.

Nothing of it is served before SQL has confirmed it (`Standing`), so Redis may lose it, give an older copy back or hold
whatever somebody else wrote there. It only spares the longer look. Names are keyed digests and entries are sealed, each
for its own name, so Redis learns nothing of anybody, and no entry is taken for another one.

Time is cut into windows, at other moments for each person, and the window is part of the name: so nothing is older than
a window, whatever is done about expiry, and what is kept of one person is one key to delete. One field is one domain.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from idiolect.consent import DomainChoice, SubjectState
from idiolect.registry.resolution import Resolution, ResolvedVersion

if TYPE_CHECKING:  # it imports redis, which an installation without one need not have
    from idiolect.stores.redis.link import RedisLink

WINDOW_SECONDS = 120
PREFIX = b"idiolect:resolved:"
_FORMAT = b"\x01"  # servers of another version miss what they can't read
_NONCE_BYTES = 12

Asked = tuple[str, str | None, str | None]  # tenant, subject, domain


@dataclass(slots=True)
class MemoryStats:
    """Counts since the start."""

    missed: int = 0  # not remembered, or Redis did not answer
    confirmed: int = 0
    outdated: int = 0  # remembered, and not what SQL said


@dataclass(frozen=True, slots=True)
class _Place:
    """`name` of a person's key in one window, and the `field` of a domain."""

    name: bytes
    field: bytes
    cipher: AESGCM


class RememberedResolutions:
    """Thread-safe. Every call is one journey at most, for however many it asks."""

    longest_s = 2 * WINDOW_SECONDS  # that Redis holds anything, though nothing is recalled for so long

    def __init__(self, link: RedisLink, secret: bytes, now: Callable[[], datetime]) -> None:
        """`secret`: 32 bytes that only this installation has."""
        self._link = link
        self._secret = secret
        self._now = now
        self._lock = threading.Lock()
        self._stats = MemoryStats()

    def recall(self, asked: Sequence[Asked]) -> list[Resolution | None]:
        """What is remembered of each, with `remembered` set."""
        if not asked:
            return []
        places = [self._place(*one) for one in asked]

        def question(client: Any) -> list[bytes | None]:
            if len(places) == 1:
                return [client.hget(places[0].name, places[0].field)]
            pipeline = client.pipeline(transaction=False)
            for place in places:
                pipeline.hget(place.name, place.field)
            found: list[bytes | None] = pipeline.execute()
            return found

        sealed = self._link.ask(question) or [None] * len(asked)
        recalled = [
            None if one is None else _opened(place, one, subject or None)
            for place, one, (_, subject, _) in zip(places, sealed, asked, strict=True)
        ]
        with self._lock:
            self._stats.missed += recalled.count(None)
        return recalled

    def remember(self, resolved: Sequence[tuple[Asked, Resolution]]) -> None:
        """Best effort; what may not be remembered is left out."""
        kept = [(self._place(*asked), one) for asked, one in resolved if one.mark is not None]
        if not kept:
            return

        def question(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            for place, one in kept:
                pipeline.hset(place.name, place.field, _sealed(place, one))
                pipeline.expire(place.name, WINDOW_SECONDS)
            pipeline.execute()

        self._link.ask(question)

    def forget(self, people: Sequence[tuple[str, str]]) -> bool:
        """Delete what is kept of (tenant, subject). Whether Redis said that it did."""
        names = [name for tenant, subject in people for name in self._names(tenant, subject, (-1, 0, 1))]
        return self._link.ask(lambda client: client.unlink(*names)) is not None if names else True

    def judged(self, holds: Sequence[bool]) -> None:
        """Of what was recalled, whether SQL confirmed it."""
        with self._lock:
            self._stats.confirmed += sum(holds)
            self._stats.outdated += len(holds) - sum(holds)

    def stats(self) -> MemoryStats:
        with self._lock:
            return replace(self._stats)

    def close(self) -> None:
        self._link.close()

    def _names(self, tenant: str, subject: str, windows: Sequence[int]) -> list[bytes]:
        """In these windows, counted from the one of now: clocks of other servers may be ahead or behind."""
        person = self._digest(f"{len(tenant)}:{tenant}{subject}")
        elapsed = self._now().timestamp() + person[0] / 256 * WINDOW_SECONDS
        window = int(elapsed // WINDOW_SECONDS)
        return [b"%s%s:%d" % (PREFIX, person.hex().encode(), window + one) for one in windows]

    def _place(self, tenant: str, subject: str | None, domain: str | None) -> _Place:
        (name,) = self._names(tenant, subject or "", (0,))
        key = blake2b(name, key=self._secret, digest_size=32, person=b"seal").digest()
        return _Place(name, self._digest(f"in {domain or ''}"), AESGCM(key))

    def _digest(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=16).digest()


def _sealed(place: _Place, resolution: Resolution) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return _FORMAT + nonce + place.cipher.encrypt(nonce, _packed(resolution), _FORMAT + place.field)


def _opened(place: _Place, sealed: bytes, subject: str | None) -> Resolution | None:
    """None for what is not of this place, or of another version."""
    nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        if sealed[:1] != _FORMAT:
            return None
        return _unpacked(place.cipher.decrypt(nonce, body, _FORMAT + place.field), subject)
    except (InvalidTag, ValueError):
        return None


def _packed(resolution: Resolution) -> bytes:
    versions = [
        None if one is None else (one.id, one.release, one.weights_sha256, one.generation)
        for one in (resolution.domain, resolution.user)
    ]
    state = None if resolution.state is None else _packed_state(resolution.state)
    return json.dumps([resolution.global_digest, resolution.mark, *versions, state], separators=(",", ":")).encode()


def _unpacked(packed: bytes, subject: str | None) -> Resolution:
    global_digest, mark, domain, user, state = json.loads(packed)
    return Resolution(
        global_digest,
        None if domain is None else ResolvedVersion(*domain),
        None if user is None else ResolvedVersion(*user),
        None if state is None or subject is None else _unpacked_state(state, subject),
        mark=mark,
        remembered=True,
    )


def _packed_state(state: SubjectState) -> list[Any]:
    return [
        state.known,
        state.opted_in,
        state.paused,
        state.strength,
        state.generation,
        state.revision,
        state.policy_version,
        None if state.updated_at is None else state.updated_at.isoformat(),
        [(one.domain, one.opted_in, one.strength) for one in state.domains],
    ]


def _unpacked_state(packed: list[Any], subject: str) -> SubjectState:
    known, opted_in, paused, strength, generation, revision, policy_version, updated_at, domains = packed
    at = None if updated_at is None else datetime.fromisoformat(updated_at)
    choices = tuple(DomainChoice(*one) for one in domains)
    return SubjectState(subject, known, opted_in, paused, strength, generation, revision, policy_version, at, choices)
