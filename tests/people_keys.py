"""Opens a store together with the key store of its people, which lies beside it."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from idiolect.stores.sql import KeyStore, SqlStore, open_key_store, open_store


def keys_beside(url: str) -> KeyStore:
    """The same for everybody who opens this database."""
    return open_key_store(f"sqlite:///{_file_beside(url)}", wrapping_key)


def mirror_keys(url: str, other: str) -> None:
    """The key store beside one database, copied to beside another."""
    with closing(sqlite3.connect(_file_beside(url))) as source, closing(sqlite3.connect(_file_beside(other))) as target:
        source.backup(target)


def _file_beside(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return Path(f"{url.split('?')[0].removeprefix('sqlite:///').removeprefix('file:')}.keys")
    folder = Path(parse_qs(parts.query)["host"][0]).parent  # of the server's own socket
    return folder / f"{parts.path.strip('/')}.keys"


def wrapping_key(tenant: str) -> bytes:
    return hashlib.sha256(b"test" + tenant.encode()).digest()


def open_with_keys(url: str, *, lock_timeout_s: float = 10.0) -> SqlStore:
    return open_store(url, keys_beside(url), lock_timeout_s=lock_timeout_s)
