"""Tenants, their keys, and what a key may do."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from idiolect.errors import NotFoundError

KEY_PREFIX = "idio_"


class Scope(StrEnum):
    INFER = "infer"
    FEEDBACK = "feedback"
    CONTROLS = "controls"
    REGISTRY = "registry"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: the tenant and scopes of the key that was sent."""

    tenant: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raises NotFoundError without `scope`: what a caller may not see answers like what does not exist."""
        if scope not in self.scopes:
            raise NotFoundError(
                "no such resource.", mend=f"If it should exist, use a key with the scope {scope.value!r}."
            )


def new_secret() -> str:
    """A key to hand out once: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """What is stored of a key. A plain hash is enough: 256 random bits can't be guessed, so there is nothing to slow
    down.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
