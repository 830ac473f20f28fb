"""Marks in Redis of requests with an Idempotency-Key that are under way, so that a storm of retries stays off SQL.

A mark only ever refuses, for less than two seconds, and says nothing of anybody: its name and what it holds are digests
that only this installation can make. What is not there, not readable or not ours goes on to SQL, which alone decides
what a key stands for, and what was answered to it.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import struct
import threading
from datetime import timedelta
from typing import Any

from idiolect.clock import Clock
from idiolect.settings import Settings
from idiolect.stores.redis.link import ANSWER_SECONDS, RedisLink
from idiolect_services.gateway.statuses import StatusError
from idiolect_services.vault import Vault

# So short that the client outlasts it: sent again after a crash, its last try (after 2 s of Retry-After) finds no mark.
LIFE_MS = 1800
IN_USE = "idempotency_key_in_use"

_PURPOSE = "idempotency marks"
_DIGEST_BYTES = 16
_HEAD = struct.Struct(f">Q8s{_DIGEST_BYTES}s")  # ends at (ms since 1970), whose it is, what the request is
_DELETE_MINE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

log = logging.getLogger("idiolect.gateway")


class Marks:
    def __init__(self, link: RedisLink, vault: Vault, clock: Clock) -> None:
        self.link = link
        self._vault = vault
        self._clock = clock

    @staticmethod
    def of(settings: Settings, vault: Vault, clock: Clock) -> Marks | None:
        """None without Redis. Raises ValueError for what is not a Redis URL."""
        if settings.redis_url is None:
            return None
        without = "requests that are sent again at once all ask the store"
        return Marks(RedisLink(settings.redis_url, log, without, answer_seconds=ANSWER_SECONDS), vault, clock)

    def close(self) -> None:
        self.link.close()

    def of_request(self, tenant: str, owner: str, key: str, fingerprint: bytes) -> Mark:
        """Nothing is asked yet."""
        return Mark(self, tenant, json.dumps([owner, key]).encode(), fingerprint)

    def secret(self, tenant: str) -> bytes:
        return self._vault.derive(tenant, _PURPOSE)

    def now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    def ends_at_ms(self) -> int:
        return int((self._clock.now() + timedelta(milliseconds=LIFE_MS)).timestamp() * 1000)


class Mark:
    """Of one request. Each method blocks for a moment, and raises nothing of Redis. `remove` holds for good, also while
    `put` is only on its way: a request that was cancelled leaves no mark behind."""

    def __init__(self, marks: Marks, tenant: str, named: bytes, fingerprint: bytes) -> None:
        self._marks = marks
        self._tenant = tenant
        self._named = named
        self._fingerprint = fingerprint
        self._name = ""
        self._held: bytes | None = None
        self._ended = False
        self._lock = threading.Lock()

    def put(self) -> None:
        """Raises StatusError (409) if the same request is under way already."""
        with self._lock:
            if self._ended:
                return
            secret = self._marks.secret(self._tenant)
            self._name = f"idiolect:mark:{hmac.digest(secret, b'name' + self._named, 'sha256').hex()}"
            what = hmac.digest(secret, b"what" + self._fingerprint, "sha256")[:_DIGEST_BYTES]
            head = _HEAD.pack(self._marks.ends_at_ms(), os.urandom(8), what)
            self._held = head + self._seal(secret, head)
            there = self._marks.link.ask(self._put_or_get)
            if there is None:
                return
            self._held = None
            if self._is_same(secret, there, what):
                raise StatusError(
                    409,
                    "a request with this Idempotency-Key is under way.",
                    mend="Send it again after the time in Retry-After.",
                    code=IN_USE,
                    retry_after_s=1,
                )

    @property
    def is_removed(self) -> bool:
        return self._ended

    def remove(self) -> None:
        """If it is still ours."""
        with self._lock:
            self._ended = True
            held, self._held = self._held, None
            if held is not None:
                self._marks.link.ask(lambda client: client.eval(_DELETE_MINE, 1, self._name, held))

    def _put_or_get(self, client: Any) -> bytes | None:
        """None if it is ours now, or nobody's."""
        if client.set(self._name, self._held, nx=True, px=LIFE_MS):
            return None
        found: bytes | None = client.get(self._name)
        return found

    def _seal(self, secret: bytes, head: bytes) -> bytes:
        return hmac.digest(secret, self._name.encode() + head, "sha256")[:_DIGEST_BYTES]

    def _is_same(self, secret: bytes, there: bytes, what: bytes) -> bool:
        """Ours by its seal, of the same request, and not kept past its end by a Redis that was stopped or restored."""
        head, seal = there[: _HEAD.size], there[_HEAD.size :]
        if len(head) < _HEAD.size or not hmac.compare_digest(seal, self._seal(secret, head)):
            return False
        ends_at_ms, _, of_request = _HEAD.unpack(head)
        return bool(of_request == what and self._marks.now_ms() < ends_at_ms)
