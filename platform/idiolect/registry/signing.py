"""Ed25519 signatures over manifests, receipts and model descriptions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from idiolect.errors import CorruptArtifactError


class Verifier:
    """Verifies with the public keys that it was given. Raises ValueError for one that is none."""

    def __init__(self, public_keys: Iterable[bytes]) -> None:
        self._trusted = _by_id(public_keys)

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        return tuple(key.public_bytes_raw() for key in self._trusted.values())

    def trusts(self, public_key: bytes) -> bool:
        return self._key_of(key_id(public_key)) is not None

    def verify(self, key_id: str, signature: bytes, message: bytes, *, what: str) -> None:
        """Raises CorruptArtifactError naming `what` unless a trusted key signed exactly `message`."""
        public = self._key_of(key_id)
        if public is None:
            raise CorruptArtifactError(
                f"{what} is signed with the key {key_id[:16]!r}, which this installation does not trust.",
                mend="Restore the signing key that belongs to this home folder, or train again.",
                code="untrusted_key",
            )
        try:
            public.verify(signature, message)
        except InvalidSignature as error:
            raise CorruptArtifactError(
                f"the signature of {what} does not match its content.",
                mend="It was changed or damaged: train again.",
            ) from error

    def _key_of(self, key_id: str) -> Ed25519PublicKey | None:
        return self._trusted.get(key_id)


class Signer(Verifier):
    """Signs with one key, verifies with any that it was given: keys rotate by adding a new one."""

    def __init__(
        self,
        private_key: bytes,
        trusted_public_keys: tuple[bytes, ...] = (),
        *,
        newly_trusted: Callable[[], Iterable[bytes]] = tuple,
    ) -> None:
        """`private_key`: 32 bytes. `trusted_public_keys`: earlier keys whose signatures still count.

        `newly_trusted` is asked when a signature names an unknown key: another process may have rotated meanwhile.
        """
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)
        self._newly_trusted = newly_trusted
        super().__init__((self.public_key, *trusted_public_keys))

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def _key_of(self, key_id: str) -> Ed25519PublicKey | None:
        if key_id not in self._trusted:
            self._trusted = self._trusted | _by_id(self._newly_trusted())
        return self._trusted.get(key_id)


def _by_id(public_keys: Iterable[bytes]) -> dict[str, Ed25519PublicKey]:
    return {key_id(public): Ed25519PublicKey.from_public_bytes(public) for public in public_keys}


def key_id(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]
