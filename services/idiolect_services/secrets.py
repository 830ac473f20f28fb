"""The installation's own secrets: files under <home>/secrets, readable by their owner alone, made on first use."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import tempfile
from pathlib import Path

from idiolect.errors import ConfigurationError

SECRET_BYTES = 32
MASTER, SIGNING = "master.key", "signing.key"
KEY_FILES = (MASTER, SIGNING)


def load_or_create(path: Path) -> bytes:
    """32 random bytes that stay the same from the first call on, also when two processes start at once."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_secret(path, os.urandom(SECRET_BYTES))
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the secret {path} can't be read or written: {error.strerror}.",
            mend="Check the home folder's permissions.",
        ) from error
    if len(secret) != SECRET_BYTES:
        raise ConfigurationError(
            f"the secret {path} is damaged: {len(secret)} bytes instead of {SECRET_BYTES}.",
            mend="Restore it from a backup; without it, signatures and pseudonyms of this home are lost.",
        )
    return secret


def check_given(folder: Path) -> None:
    """Raises ConfigurationError unless all keys are in a folder that was given to us: one of several servers that made
    a key of its own would disagree with the others."""
    missing = [name for name in KEY_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"{folder} lacks {' and '.join(missing)}.",
            mend=f"Each is {SECRET_BYTES} random bytes, the same for all servers: head -c {SECRET_BYTES} /dev/urandom.",
        )


def write_secret(path: Path, secret: bytes) -> None:
    """Unless there is one. Written aside and linked: a crash leaves nothing half, and the first of two wins."""
    # Not named by process id: two containers on one volume may have the same. mkstemp makes it 0600.
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(staging, path)
    finally:
        Path(staging).unlink()


def tenant_key(master: bytes, tenant: str) -> bytes:
    """The key of a tenant's pseudonyms, derived from the installation's master key (HMAC-SHA256 as a KDF)."""
    return hmac.new(master, b"idiolect/pseudonym/" + tenant.encode(), hashlib.sha256).digest()


def master_check(master: bytes) -> str:
    """Tells whether two homes have the same master key, and nothing else about it."""
    return hmac.new(master, b"idiolect/backup", hashlib.sha256).hexdigest()
