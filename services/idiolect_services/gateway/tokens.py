"""Short-lived tokens for one end user: JWTs (RFC 7519) that the tenant's server fetches and hands to a browser.

HS256 is pinned: the same installation signs and checks, so a public key would only add a way to confuse the two. Each
tenant has a signing key of its own, derived from the master key; the tenant that a token names before its signature is
checked only chooses the key. A token carries the pseudonym, never the tenant's own id of the person, and the id of the
API key that it was made with: revoking that key ends it within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from idiolect.clock import Clock
from idiolect.errors import IdiolectError
from idiolect.ids import check_name, new_id
from idiolect.tenancy import Caller, Scope
from idiolect_services.vault import Vault

ALGORITHM = "HS256"
AUDIENCE = "idiolect:end-user"
TOKEN_SCOPES = frozenset({Scope.INFER, Scope.FEEDBACK, Scope.CONTROLS})
MIN_SECONDS, DEFAULT_SECONDS, MAX_SECONDS = 30, 900, 3600
MAX_CHARS = 2048

_PURPOSE = "end-user-token"
_SKEW_SECONDS = 5  # between replicas
_CLAIMS = ("aud", "exp", "iat", "jti", "key", "scp", "sub", "ten")


@dataclass(frozen=True, slots=True)
class Issued:
    token: str
    expires_at: datetime


def is_ours(token: str) -> bool:
    """Whether it says of itself that it was made here: only such a one is ever checked with a secret of ours."""
    try:
        return jwt.get_unverified_header(token).get("alg") == ALGORITHM
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return True


class Tokens:
    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock

    def issue(self, caller: Caller, subject: str, scopes: frozenset[Scope], seconds: int) -> Issued:
        """For `subject` alone. The scopes must be the caller's own, and among TOKEN_SCOPES."""
        assert scopes <= caller.scopes & TOKEN_SCOPES
        assert MIN_SECONDS <= seconds <= MAX_SECONDS
        now = int(self._clock.now().timestamp())
        claims = {
            "aud": AUDIENCE,
            "exp": now + seconds,
            "iat": now,
            "jti": new_id(),
            "key": caller.key_id,
            "scp": sorted(scopes),
            "sub": subject,
            "ten": caller.tenant,
        }
        token = jwt.encode(claims, self._signing_key(caller.tenant), algorithm=ALGORITHM)
        return Issued(token, datetime.fromtimestamp(now + seconds, UTC))

    def read(self, token: str) -> Caller | None:
        """Whom the token speaks for, or None for whatever is wrong with it. That its key still holds is not asked here.

        Time is judged by our clock, not by PyJWT's: only so can a simulation replay it.
        """
        if len(token) > MAX_CHARS:
            return None
        try:
            named = jwt.decode(token, options={"verify_signature": False}).get("ten")
            key = self._signing_key(check_name("tenant", named) if isinstance(named, str) else "")
            options: Any = {"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False}
            claims = jwt.decode(token, key, algorithms=[ALGORITHM], audience=AUDIENCE, options=options)
            return self._caller(claims)
        except (jwt.InvalidTokenError, IdiolectError, ValueError, TypeError, RecursionError):
            return None

    def _caller(self, claims: dict[str, Any]) -> Caller | None:
        """Signed by us, so its types are right; its times may still be over."""
        issued, expires, now = claims["iat"], claims["exp"], self._clock.now().timestamp()
        # Compared as numbers: one that is no date at all must not raise.
        if not (issued - _SKEW_SECONDS <= now < expires <= issued + MAX_SECONDS):
            return None
        scopes = frozenset(map(Scope, claims["scp"])) & TOKEN_SCOPES
        return Caller(claims["ten"], scopes, claims["key"], subject=claims["sub"])

    def _signing_key(self, tenant: str) -> bytes:
        return self._vault.derive(tenant, _PURPOSE)
