"""Administrators who log in at the operator's own identity provider (OpenID Connect): what their tokens allow here.

Only the operator names the issuer, so it may lie in a private network; but nothing that it answers is believed beyond
its signing keys. Only asymmetric algorithms are read: no token can turn a public key into a shared secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from idiolect.clock import Clock
from idiolect.errors import ConfigurationError, IdiolectError
from idiolect.ids import check_name
from idiolect.settings import Settings
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.oidc_keys import IssuerKeys, check_url

ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
# Not those of serving, nor of people: an administrator ranks nothing and speaks for nobody.
SCOPES = frozenset({Scope.REGISTRY, Scope.ADMIN})
MAX_CHARS = 8192
LEEWAY_SECONDS = 30
MAX_ROLES = 200

_CLAIMS = ("iss", "sub", "aud", "exp", "iat")
_SUBJECT = re.compile(r"[\x21-\x7e]{1,255}")  # OpenID Connect Core 1.0, section 2: at most 255 ASCII characters


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator set. `roles`: values of the claim `roles_claim`, and what each allows; others allow nothing."""

    issuer: str
    audience: str
    tenant_claim: str
    roles_claim: str
    roles: Mapping[str, frozenset[Scope]]
    jwks_url: str | None

    @staticmethod
    def of(settings: Settings) -> Rules | None:
        """None if no issuer is set. Raises ConfigurationError."""
        if settings.oidc_issuer is None:
            return None
        if not settings.oidc_audience:
            raise ConfigurationError(
                "IDIOLECT_OIDC_AUDIENCE is not set: any token of the issuer would do.",
                mend="Set what the issuer writes into `aud` for Idiolect.",
            )
        if settings.oidc_jwks_url is not None:
            check_url("IDIOLECT_OIDC_JWKS_URL", settings.oidc_jwks_url)
        return Rules(
            issuer=check_url("IDIOLECT_OIDC_ISSUER", settings.oidc_issuer),
            audience=settings.oidc_audience,
            tenant_claim=settings.oidc_tenant_claim,
            roles_claim=settings.oidc_roles_claim,
            roles=parse_roles(settings.oidc_roles),
            jwks_url=settings.oidc_jwks_url,
        )


def parse_roles(setting: str) -> dict[str, frozenset[Scope]]:
    """`ROLE=registry+admin, OTHER=registry`. Raises ConfigurationError naming the entry that is none."""
    roles: dict[str, frozenset[Scope]] = {}
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        role, _, scopes = entry.rpartition("=")
        named = {scope.strip() for scope in scopes.split("+")}
        if not role.strip() or not named <= {scope.value for scope in SCOPES}:
            raise ConfigurationError(
                f"IDIOLECT_OIDC_ROLES holds {entry[:80]!r}, which is no role with its scopes.",
                mend="Write it as ops=registry+admin, with only these two scopes.",
            )
        roles[role.strip()] = frozenset(map(Scope, named))
    return roles


class Logins:
    """Reads tokens of the issuer. Only for the event loop's thread."""

    def __init__(self, rules: Rules, keys: IssuerKeys, clock: Clock) -> None:
        self._rules = rules
        self._keys = keys
        self._clock = clock

    async def read(self, token: str) -> Caller | None:
        """Whom the token allows what, or None for whatever is wrong with it. That its tenant exists is not asked here.

        Raises UnavailableError if the issuer's keys can't be had, and those that are known are too old.
        """
        if len(token) > MAX_CHARS:
            return None
        try:
            header = jwt.get_unverified_header(token)
            unverified = jwt.decode(token, options={"verify_signature": False})
        except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
            return None
        algorithm, key_id = header.get("alg"), header.get("kid")
        # Before anything is fetched: only a token that says that it is the issuer's may cause a look for its key.
        if algorithm not in ALGORITHMS or unverified.get("iss") != self._rules.issuer:
            return None
        if "crit" in header or not isinstance(key_id, str) or not 0 < len(key_id) <= 200:
            return None
        key = await self._keys.key(key_id, algorithm)
        return None if key is None else self._verified(token, key, algorithm)

    def _verified(self, token: str, key: jwt.PyJWK, algorithm: str) -> Caller | None:
        options: Any = {"require": list(_CLAIMS), "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                options=options,
            )
            return self._caller(claims) if self._is_valid_now(claims) else None
        except (jwt.PyJWTError, IdiolectError, ValueError, TypeError, RecursionError):
            return None

    def _is_valid_now(self, claims: Mapping[str, Any]) -> bool:
        """Judged by our clock, as for our own tokens."""
        times = [claims["exp"], claims["iat"], claims.get("nbf", claims["iat"])]
        if not all(
            isinstance(time, int | float) and not isinstance(time, bool) and math.isfinite(time) for time in times
        ):
            return False
        expires, issued, begins = times
        now = self._clock.now().timestamp()
        return bool(max(issued, begins) - LEEWAY_SECONDS <= now < expires + LEEWAY_SECONDS)

    def _caller(self, claims: Mapping[str, Any]) -> Caller | None:
        tenant, subject = claims.get(self._rules.tenant_claim), claims["sub"]
        if not isinstance(tenant, str) or not _SUBJECT.fullmatch(subject):
            return None
        scopes = frozenset[Scope]().union(*(self._rules.roles.get(role, ()) for role in self._roles(claims)))
        if not scopes:
            return None
        return Caller(check_name("tenant", tenant), scopes, f"login {subject}", login=subject)

    def _roles(self, claims: Mapping[str, Any]) -> list[str]:
        """A list, or words in one string."""
        said = claims.get(self._rules.roles_claim)
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        return [word for word in words[:MAX_ROLES] if isinstance(word, str)]


def logins_of(settings: Settings, clock: Clock) -> Logins | None:
    """None if no issuer is set. Raises ConfigurationError."""
    rules = Rules.of(settings)
    return None if rules is None else Logins(rules, IssuerKeys(rules.issuer, rules.jwks_url), clock)
