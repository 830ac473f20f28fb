"""An installation's secrets under a passphrase: scrypt for the key, AES-GCM for the rest."""

from __future__ import annotations

import json
import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from idiolect.errors import ConfigurationError, InvalidInputError

_FORMAT = b"idiolect-sealed/1"
_SALT, _NONCE = 16, 12
MIN_PASSPHRASE_CHARS = 12


def seal_secrets(secrets: dict[str, Any], passphrase: str) -> bytes:
    """Raises InvalidInputError for a passphrase that is too short to be one."""
    if len(passphrase) < MIN_PASSPHRASE_CHARS:
        raise InvalidInputError(
            f"the passphrase has under {MIN_PASSPHRASE_CHARS} characters.", mend="Use several random words."
        )
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, json.dumps(secrets).encode(), _FORMAT)
    return _FORMAT + salt + nonce + sealed


def open_secrets(sealed: bytes, passphrase: str) -> dict[str, Any]:
    """Raises ConfigurationError for a wrong passphrase or damaged secrets; which of them nobody can tell."""
    body = sealed.removeprefix(_FORMAT)
    salt, nonce, secret = body[:_SALT], body[_SALT : _SALT + _NONCE], body[_SALT + _NONCE :]
    try:
        if len(body) == len(sealed):
            raise InvalidTag
        found: dict[str, Any] = json.loads(AESGCM(_key(passphrase, salt)).decrypt(nonce, secret, _FORMAT))
    except (InvalidTag, ValueError) as error:
        raise ConfigurationError("the sealed secrets do not open.", mend="Check the passphrase.") from error
    return found


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase.encode())
