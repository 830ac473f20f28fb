"""Keys of people: what is stored of a person under a key of their own can't be read once that key is gone.

    master key of the installation (a file)         opens the wrapping key of
      tenant key                                    (one row of the key store), which opens
        subject key, one for each scope of a person (one row of the key store), which opens rows of the database

A scope is what a reset forgets together: the adapters, or what the person did in one domain. So every reset, also of
the adapters or of one domain alone, is the end of whole keys. See deploy/decisions/0018-keys-of-people.md.

Everything sealed is bound to its tenant, person, scope, kind and row: a value that was copied elsewhere does not open.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any, Generic, Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.ids import new_id_bytes

ADAPTERS = "adapters"

Kind = Literal["text", "inference", "signal", "comparison", "version"]

ID_BYTES, SECRET_BYTES = 16, 32
_NONCE_BYTES = 12
_FORMAT = b"\x01"
_HEAD = len(_FORMAT) + ID_BYTES + _NONCE_BYTES

T = TypeVar("T")


class _Lazy(Generic[T]):
    """`functools.cached_property` without the lock that it has before Python 3.12: two threads may both compute it."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__

    def __get__(self, of: Any, _kind: type) -> T:
        value = of.__dict__[self._name] = self._compute(of)
        return value


def signals_in(domain: str | None) -> str:
    """The scope of what a person was shown and did in a domain."""
    return f"signals:{domain or ''}"


@dataclass(frozen=True, slots=True)
class Ending:
    """Which keys of a person are destroyed, so that what they sealed is gone also from copies of the database that are
    out of reach: that of their adapters; those of what they were shown and did, all or the one of `scope`."""

    adapters: bool
    signals: bool
    scope: str | None = None

    def ends(self, scope: str) -> bool:
        return self.adapters if scope == ADAPTERS else self.signals and self.scope in (None, scope)


def key_id_of(sealed: bytes) -> bytes:
    """Which key opens it."""
    return sealed[len(_FORMAT) : len(_FORMAT) + ID_BYTES]


@dataclass(frozen=True)
class SubjectKey:
    """One key. Thread-safe; never stored or logged as it is."""

    tenant: str
    subject: str
    scope: str
    id: bytes
    secret: bytes = field(repr=False)

    def seal(self, kind: Kind, row: bytes, plain: bytes) -> bytes:
        """`row` names the row that the result belongs to, within the person."""
        nonce = os.urandom(_NONCE_BYTES)
        return _FORMAT + self.id + nonce + self._cipher.encrypt(nonce, plain, self._bound_to(kind, row))

    def open(self, kind: Kind, row: bytes, sealed: bytes) -> bytes:
        """Raises CorruptArtifactError for what was changed, or sealed for another row, person or key."""
        try:
            if sealed[:1] != _FORMAT or key_id_of(sealed) != self.id:
                raise InvalidTag
            return self._cipher.decrypt(sealed[_HEAD - _NONCE_BYTES : _HEAD], sealed[_HEAD:], self._bound_to(kind, row))
        except (InvalidTag, ValueError):
            raise CorruptArtifactError(
                f"a sealed {kind} does not open: it was changed, or moved here from elsewhere.",
                mend="Restore a backup.",
            ) from None

    def reference(self, digest: bytes) -> bytes:
        """32 bytes that stand for a text of this person. Unlike a digest they can't be tried out with guesses."""
        (reference,) = self.references((digest,))
        return reference

    def references(self, digests: Iterable[bytes]) -> list[bytes]:
        """In their order."""
        fresh, found = self._keyed.copy, []
        for digest in digests:
            keyed = fresh()  # which is half of the work
            keyed.update(digest)
            found.append(keyed.digest())
        return found

    @_Lazy
    def _cipher(self) -> AESGCM:
        return AESGCM(self._part(b"seals"))

    @_Lazy
    def _keyed(self) -> hashlib.blake2b:
        return hashlib.blake2b(key=self._part(b"references"), digest_size=32)

    def _part(self, use: bytes) -> bytes:
        """32 bytes for one use. Secrets of before had 64: half of them sealed, half made references."""
        if len(self.secret) > SECRET_BYTES:
            return self.secret[:SECRET_BYTES] if use == b"seals" else self.secret[SECRET_BYTES:]
        return hashlib.blake2b(key=self.secret, person=use, digest_size=32).digest()

    @_Lazy
    def _owner(self) -> bytes:
        return _bound("sealed", self.tenant, self.subject, self.scope)

    def _bound_to(self, kind: Kind, row: bytes) -> bytes:
        return b"\n".join((self._owner, kind.encode(), row))


@dataclass(frozen=True)
class TenantKey:
    """Wraps the keys of a tenant's people."""

    tenant: str
    secret: bytes = field(repr=False)

    def new_subject_key(self, subject: str, scope: str) -> SubjectKey:
        # In the order of their making, so that the ids of many new keys lie side by side in an index.
        return SubjectKey(self.tenant, subject, scope, new_id_bytes(), os.urandom(SECRET_BYTES))

    def wrap(self, key: SubjectKey) -> bytes:
        return _wrapped(self._cipher, key.secret, _bound("key", self.tenant, key.subject, key.scope, key.id.hex()))

    def unwrap(self, subject: str, scope: str, key_id: bytes, wrapped: bytes) -> SubjectKey:
        """Raises ConfigurationError for what was wrapped under another key, or for somebody else."""
        bound = _bound("key", self.tenant, subject, scope, key_id.hex())
        return SubjectKey(self.tenant, subject, scope, key_id, _unwrapped(self._cipher, wrapped, bound))

    @_Lazy
    def _cipher(self) -> AESGCM:
        return AESGCM(self.secret)


def new_tenant_key(tenant: str) -> TenantKey:
    return TenantKey(tenant, os.urandom(32))


def wrap_tenant_key(key: TenantKey, wrapping: bytes) -> bytes:
    return _wrapped(AESGCM(wrapping), key.secret, _bound("tenant", key.tenant))


def unwrap_tenant_key(tenant: str, wrapped: bytes, wrapping: bytes) -> TenantKey:
    """Raises ConfigurationError for one of another installation."""
    return TenantKey(tenant, _unwrapped(AESGCM(wrapping), wrapped, _bound("tenant", tenant)))


def _wrapped(cipher: AESGCM, secret: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, secret, bound)


def _unwrapped(cipher: AESGCM, wrapped: bytes, bound: bytes) -> bytes:
    try:
        return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        raise ConfigurationError(
            "a key in the key store does not open.",
            mend="Use the key store and the secrets/master.key that belong to this database.",
        ) from None


def _bound(*names: str) -> bytes:
    """Unambiguous whatever the names hold: a list in JSON, as `json.dumps` writes it, in a third of the time."""
    return f"[{', '.join(map(encode_basestring_ascii, names))}]".encode()
