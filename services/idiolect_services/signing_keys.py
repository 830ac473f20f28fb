"""The installation's signing keys: one that signs, and earlier ones whose signatures still count.

The active private key is `secrets/signing.key`; other trusted public keys lie in `secrets/signing-trusted.json`. Trust
comes only from this folder, which whoever can write to the database can't change. Withdrawing a key is told to the
database as well, so that every process obeys at its next resolve, and a restored folder does not bring the key back.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from idiolect.errors import ConfigurationError, ConflictError, NotFoundError
from idiolect.registry.signing import Signer, key_id
from idiolect_services.secrets import SIGNING, load_or_create

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class SigningKeys:
    folder: Path  # <home>/secrets

    @property
    def _active(self) -> Path:
        return self.folder / SIGNING

    @property
    def _trusted(self) -> Path:
        return self.folder / "signing-trusted.json"

    def signer(self) -> Signer:
        return Signer(load_or_create(self._active), self.trusted(), newly_trusted=self._all)

    def trusted(self) -> tuple[bytes, ...]:
        """Public keys of earlier signers. Raises ConfigurationError for a damaged list."""
        try:
            return tuple(_public(text) for text in json.loads(self._trusted.read_text()))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"the list of trusted signing keys {self._trusted} can't be read: {error}.",
                mend="Restore it from a backup; without it, earlier versions don't verify.",
            ) from error

    def _all(self) -> tuple[bytes, ...]:
        return (_public_of(load_or_create(self._active)), *self.trusted())

    def rotate(self) -> tuple[str, str]:
        """(old id, new id). A new key signs from now on, and the old one stays trusted.

        First the old public key is trusted, then the new private key replaces the old: a crash in between changes
        nothing. The old private key is gone after it.
        """
        with self._locked():
            old = _public_of(load_or_create(self._active))
            self._write_trusted((*self.trusted(), old))
            fresh = os.urandom(_KEY_BYTES)
            _replace(self._active, fresh)
            return key_id(old), key_id(_public_of(fresh))

    def withdraw(self, withdrawn: str) -> bool:
        """Trust a key no longer; whether it was trusted. Raises ConflictError for the key that signs."""
        with self._locked():
            if key_id(_public_of(load_or_create(self._active))) == withdrawn:
                raise ConflictError(
                    f"the key {withdrawn} is the one that signs.", mend="First: idiolect keys rotate-signing."
                )
            kept = tuple(public for public in self.trusted() if key_id(public) != withdrawn)
            known = len(kept) < len(self.trusted())
            if known:
                self._write_trusted(kept)
            return known

    def export(self) -> dict[str, Any]:
        """Everything, the private key included: only for `adopt`, and never unsealed."""
        return {"signing": load_or_create(self._active).hex(), "trusted": [public.hex() for public in self.trusted()]}

    def adopt(self, exported: Mapping[str, Any]) -> None:
        """The keys of another home, in a home that has none."""
        with self._locked():
            self._write_trusted(tuple(_public(text) for text in exported["trusted"]))
            _replace(self._active, bytes.fromhex(exported["signing"]))

    def _write_trusted(self, publics: tuple[bytes, ...]) -> None:
        listed = [public.hex() for public in dict.fromkeys(publics)]
        _replace(self._trusted, json.dumps(listed, indent=1).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / ".signing.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def check_key_id(text: str) -> str:
    """Raises NotFoundError for what can't be a key's id."""
    if len(text) != 16 or any(letter not in "0123456789abcdef" for letter in text):
        raise NotFoundError(f"there is no signing key {text[:80]!r}.", mend="See: idiolect keys signing.")
    return text


def _public(text: object) -> bytes:
    public = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(public) != _KEY_BYTES:
        raise ValueError("an entry is not 64 hex characters")
    return public


def _public_of(private: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, readable by the owner alone, and on the disk before anything builds on it."""
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(staging).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise
