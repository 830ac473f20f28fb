"""Who is calling. A key is looked up again after at most half a second, so a revoked one stops within a second."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from idiolect.errors import NotAuthenticatedError
from idiolect.stores.ports import TenantStore
from idiolect.tenancy import KEY_PREFIX, Caller, hash_secret
from idiolect_services.gateway.lanes import Lane

CACHE_SECONDS = 0.5
CACHE_KEYS = 1024
SECRET_MAX_CHARS = 256


class Authenticator:
    """Only good keys are cached, by their hash: a flood of bad ones can't push them out."""

    def __init__(self, store: TenantStore, lane: Lane, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._lane = lane
        self._monotonic = monotonic
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    async def caller(self, header: str | None) -> Caller:
        """The caller that `Authorization: Bearer idio_...` names. Raises NotAuthenticatedError, the same for a missing,
        malformed, unknown and revoked key."""
        secret_hash = hash_secret(_secret_in(header))
        known = self._known.get(secret_hash)
        now = self._monotonic()
        if known is not None and now < known[0]:
            return known[1]
        caller = await self._lane.run(self._store.authenticate, secret_hash)
        if caller is None:
            self._known.pop(secret_hash, None)
            raise _refused()
        self._known[secret_hash] = (now + CACHE_SECONDS, caller)
        if len(self._known) > CACHE_KEYS:
            self._known.popitem(last=False)
        return caller


def _secret_in(header: str | None) -> str:
    scheme, _, secret = (header or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret.startswith(KEY_PREFIX) or len(secret) > SECRET_MAX_CHARS:
        raise _refused()
    return secret


def _refused() -> NotAuthenticatedError:
    return NotAuthenticatedError(
        "a valid API key is needed.", mend=f"Send the header 'Authorization: Bearer {KEY_PREFIX}...'."
    )
