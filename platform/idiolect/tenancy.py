"""Tenants, their keys, and what a key may do."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
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
    key_id: str = field(default="", compare=False)  # names the caller in the audit log
    subject: str | None = None  # the one person that an end user's token speaks for
    login: str | None = None  # the administrator, where no key but the operator's identity provider vouches

    @property
    def actor(self) -> str:
        if self.login is not None:
            return f"administrator {self.login}"
        key = f"api key {self.key_id}" if self.key_id else "api"
        return key if self.subject is None else f"the person, by {key}"

    def require_person(self, subject: str | None) -> None:
        """Raises NotFoundError if this is an end user and `subject` somebody else. Nobody (None) is fine."""
        if self.subject is not None and subject not in (None, self.subject):
            raise NotFoundError("no such resource.", mend="A token acts for its own person alone.")

    def require_server(self) -> None:
        """Raises NotFoundError if this is an end user."""
        if self.subject is not None:
            raise NotFoundError("no such resource.", mend="Use a key of the tenant, not an end user's token.")

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
