"""Secrets of tenants that have to be read again, sealed with keys that are derived from the installation's own.

The database alone opens nothing: the master key lies beside it in a file (`secrets`). Each seal is bound to its tenant
and purpose, so that one tenant's sealed key, copied into another's row, does not open.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from idiolect.errors import ConfigurationError

_NONCE_BYTES = 12
_FORMAT = b"\x01"


class Vault:
    def __init__(self, master: bytes) -> None:
        self._master = master

    def derive(self, tenant: str, purpose: str) -> bytes:
        """32 bytes that only this installation can make, one for each tenant and purpose (HKDF-SHA256)."""
        info = b"\0".join((b"idiolect", purpose.encode(), tenant.encode()))
        return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(self._master)

    def seal(self, tenant: str, purpose: str, secret: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _FORMAT + nonce + AESGCM(self.derive(tenant, purpose)).encrypt(nonce, secret.encode(), _FORMAT)

    def open(self, tenant: str, purpose: str, sealed: bytes) -> str:
        """Raises ConfigurationError for what was not sealed here, for this tenant and purpose."""
        head, nonce, body = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if head != _FORMAT:
                raise InvalidTag
            return AESGCM(self.derive(tenant, purpose)).decrypt(nonce, body, _FORMAT).decode()
        except (InvalidTag, ValueError):
            raise ConfigurationError(
                f"a sealed secret ({purpose}) does not open.",
                mend="Restore secrets/master.key from the backup that the database came from, or set the secret again.",
            ) from None

    def __repr__(self) -> str:
        return "Vault()"
