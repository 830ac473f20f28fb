"""Content-addressed bytes that are too large for a row: files for one machine, S3 for several."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from idiolect.errors import ConfigurationError
from idiolect.stores.blobs.files import FileBlobs
from idiolect.stores.blobs.port import BlobInfo, BlobStore
from idiolect.stores.blobs.s3 import S3Blobs

__all__ = ["BlobInfo", "BlobStore", "FileBlobs", "S3Blobs", "open_blobs"]


def open_blobs(url: str, **keys: str) -> BlobStore:
    """Of `file:///FOLDER` or `s3://BUCKET/PREFIX`. Raises ConfigurationError for any other URL.

    Region and endpoint of S3 come from the environment, as for every tool of AWS (AWS_REGION, AWS_ENDPOINT_URL, for one
    without TLS AWS_ALLOW_HTTP=true); so do its keys, unless they are given (access_key_id, secret_access_key).
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
        return FileBlobs(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return S3Blobs(parts.netloc, parts.path.strip("/"), **keys)
    raise ConfigurationError(
        "IDIOLECT_BLOB_URL names no place for blobs.", mend="Use file:///FOLDER or s3://BUCKET/PREFIX."
    )
