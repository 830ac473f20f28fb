"""Ed25519 signatures over manifests, receipts and model descriptions."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from idiolect.errors import CorruptArtifactError


class Signer:
    """Signs with one key, verifies with any that it was given: keys rotate by adding a new one."""

    def __init__(self, private_key: bytes, trusted_public_keys: tuple[bytes, ...] = ()) -> None:
        """`private_key`: 32 bytes. `trusted_public_keys`: earlier keys whose signatures still count."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        own = self._key.public_key().public_bytes_raw()
        self.key_id = key_id(own)
        self._trusted = {
            key_id(public): Ed25519PublicKey.from_public_bytes(public) for public in (own, *trusted_public_keys)
        }

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def verify(self, key_id: str, signature: bytes, message: bytes, *, what: str) -> None:
        """Raises CorruptArtifactError naming `what` unless a trusted key signed exactly `message`."""
        public = self._trusted.get(key_id)
        if public is None:
            raise CorruptArtifactError(
                f"{what} is signed with the key {key_id[:16]!r}, which this installation does not trust.",
                mend="Restore the signing key that belongs to this home folder, or train again.",
            )
        try:
            public.verify(signature, message)
        except InvalidSignature as error:
            raise CorruptArtifactError(
                f"the signature of {what} does not match its content.",
                mend="It was changed or damaged: train again.",
            ) from error


def key_id(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]
