"""Blobs in a bucket of S3, or of anything that speaks it. The service's own writes are whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.ids import sha256_hex
from idiolect.stores.blobs.port import BlobInfo, check_digest, check_size, is_digest, missing, verified

if TYPE_CHECKING:
    from obstore.store import S3Store

_PATIENCE: dict[str, Any] = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


class S3Blobs:
    def __init__(self, bucket: str, prefix: str = "", **config: Any) -> None:
        """`config` goes before the environment: endpoint, region, access_key_id, secret_access_key and so on."""
        import obstore.store

        options: dict[str, Any] = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=5)}
        # With options of our own, obstore no longer looks at this variable itself.
        asked = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
        if asked or str(config.get("endpoint", "")).startswith("http://127.0.0.1"):
            options["allow_http"] = True
        try:
            self._store: S3Store = obstore.store.S3Store(
                bucket, prefix=prefix or None, client_options=options, retry_config=_PATIENCE, **config
            )
        except Exception as error:
            raise ConfigurationError(f"the bucket {bucket!r} can't be used: {error}.", mend="Check AWS_*.") from error

    def put(self, data: bytes) -> str:
        check_size(len(data))
        digest = sha256_hex(data)
        with _translated(digest):
            self._store.put(_key(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        check_digest(digest)
        with _translated(digest):
            found = self._store.get(_key(digest))
            check_size(found.meta["size"])
            return verified(bytes(found.bytes()), digest)

    def delete(self, digest: str) -> None:
        check_digest(digest)
        with _translated(digest):
            self._store.delete(_key(digest))

    def walk(self) -> Iterator[BlobInfo]:
        with _translated("list"):
            for page in self._store.list():
                for one in page:
                    name = one["path"].rsplit("/", 1)[-1]
                    if is_digest(name):
                        yield BlobInfo(name, one["size"], one["last_modified"])


def _key(digest: str) -> str:
    """Spread over prefixes, which S3 serves apart."""
    return f"{digest[:2]}/{digest}"


@contextmanager
def _translated(digest: str) -> Iterator[None]:
    from obstore.exceptions import BaseError
    from obstore.exceptions import NotFoundError as MissingKey

    try:
        yield
    except (MissingKey, FileNotFoundError) as error:
        raise missing(digest) from error
    except (BaseError, OSError) as error:
        raise UnavailableError(
            f"the object store did not answer for {digest} ({type(error).__name__}).",
            mend="Check that it runs and that its keys are right, then try again.",
        ) from error
