"""Who is calling: a tenant's server with a key, an end user with a token, or an administrator who logged in elsewhere.

A key is looked up again after at most half a second, so a revoked one stops within a second, and so do its tokens.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from idiolect.errors import NotAuthenticatedError
from idiolect.stores.ports import TenantStore
from idiolect.tenancy import KEY_PREFIX, Caller, hash_secret
from idiolect_services.gateway.lanes import Lane
from idiolect_services.gateway.oidc import MAX_CHARS as MAX_LOGIN_CHARS
from idiolect_services.gateway.oidc import Logins
from idiolect_services.gateway.tokens import MAX_CHARS, Tokens, is_ours

CACHE_SECONDS = 0.5
CACHE_KEYS = 1024
SECRET_MAX_CHARS = 256


class Authenticator:
    """Only good keys are cached, by their hash: a flood of bad ones can't push them out."""

    def __init__(
        self,
        store: TenantStore,
        lane: Lane,
        control: Lane,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        tokens: Tokens,
        logins: Logins | None = None,
    ) -> None:
        """Whoever asks for what is done on `control` is looked up there, and waits for nobody on `lane`."""
        self._store = store
        self._lane = lane
        self._control = control
        self._monotonic = monotonic
        self._tokens = tokens
        self._logins = logins
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    async def caller(self, header: str | None, *, for_control: bool = False) -> Caller:
        """The caller that `Authorization: Bearer ...` names. Raises NotAuthenticatedError, the same for a missing,
        malformed, unknown and revoked key, and for whatever is wrong with a token."""
        secret = _secret_in(header, MAX_CHARS if self._logins is None else MAX_LOGIN_CHARS)
        lane = self._control if for_control else self._lane
        if secret.startswith(KEY_PREFIX):
            return await self._key(secret, lane)
        if self._logins is None or is_ours(secret):
            return await self._end_user(secret, lane)
        return await self._login(self._logins, secret, lane)

    async def _login(self, logins: Logins, token: str, lane: Lane) -> Caller:
        """Checked anew each time; only that its tenant exists is remembered."""
        caller = await logins.read(token)
        if caller is None:
            raise _refused()
        name = hash_secret(f"exists {caller.tenant}")
        now = self._monotonic()
        if name not in self._known or now >= self._known[name][0]:
            if not await lane.run(self._store.tenant_exists, caller.tenant):
                raise _refused()
            self._remember(name, now, caller)
        return caller

    async def _end_user(self, token: str, lane: Lane) -> Caller:
        """Checked anew each time; only that its key still holds is remembered, as long as for keys."""
        caller = self._tokens.read(token)
        if caller is None:
            raise _refused()
        # Begins unlike any key, so that nobody can send what it is the hash of.
        name = hash_secret(f"held {caller.tenant}/{caller.key_id}")
        now = self._monotonic()
        if name not in self._known or now >= self._known[name][0]:
            if not await lane.run(self._store.key_holds, caller.tenant, caller.key_id):
                self._known.pop(name, None)
                raise _refused()
            self._remember(name, now, caller)
        return caller

    async def _key(self, secret: str, lane: Lane) -> Caller:
        secret_hash = hash_secret(secret)
        known = self._known.get(secret_hash)
        now = self._monotonic()
        if known is not None and now < known[0]:
            return known[1]
        caller = await lane.run(self._store.authenticate, secret_hash)
        if caller is None:
            self._known.pop(secret_hash, None)
            raise _refused()
        self._remember(secret_hash, now, caller)
        return caller

    def _remember(self, name: bytes, now: float, caller: Caller) -> None:
        self._known[name] = (now + CACHE_SECONDS, caller)
        if len(self._known) > CACHE_KEYS:
            self._known.popitem(last=False)


def _secret_in(header: str | None, longest: int) -> str:
    scheme, _, secret = (header or "").partition(" ")
    secret = secret.strip()
    most = SECRET_MAX_CHARS if secret.startswith(KEY_PREFIX) else longest
    if scheme.lower() != "bearer" or not secret or len(secret) > most:
        raise _refused()
    return secret


def _refused() -> NotAuthenticatedError:
    return NotAuthenticatedError(
        "a valid API key is needed.", mend=f"Send the header 'Authorization: Bearer {KEY_PREFIX}...'."
    )
