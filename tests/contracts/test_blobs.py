"""Blobs on files, and on a local server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from idiolect.errors import (
    ConfigurationError,
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from idiolect.ids import sha256_hex
from idiolect.stores.blobs import BlobStore, FileBlobs, S3Blobs, open_blobs, port
from idiolect.stores.blobs.port import unused

LONG_AGO, SOON = datetime(2000, 1, 1, tzinfo=UTC), timedelta(hours=1)
KEYS = {"region": "us-east-1", "access_key_id": "test", "secret_access_key": "test"}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, number = server.get_host_and_port()
    yield f"http://{host}:{number}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> Iterator[S3Blobs]:
    import httpx

    httpx.put(f"{s3_endpoint}/blobs", timeout=10).raise_for_status()
    yield S3Blobs("blobs", "here", endpoint=s3_endpoint, **KEYS)
    httpx.post(f"{s3_endpoint}/moto-api/reset", timeout=10).raise_for_status()


@pytest.fixture(params=["files", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FileBlobs(tmp_path / "blobs") if request.param == "files" else request.getfixturevalue("bucket")


def test_what_was_put_is_got_by_its_digest(blobs: BlobStore) -> None:
    for data in (b"", b"weights", bytes(1 << 20)):
        digest = blobs.put(data)
        assert digest == sha256_hex(data)
        assert blobs.get(digest) == data


@given(data=st.binary(max_size=200))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_come_back_as_they_were(blobs: BlobStore, data: bytes) -> None:
    assert blobs.get(blobs.put(data)) == data


def test_putting_twice_stores_once(blobs: BlobStore) -> None:
    assert blobs.put(b"x") == blobs.put(b"x")
    assert [(info.digest, info.bytes) for info in blobs.walk()] == [(sha256_hex(b"x"), 1)]


def test_an_unknown_blob_is_not_found_and_deleting_is_idempotent(blobs: BlobStore) -> None:
    digest = blobs.put(b"x")
    blobs.delete(digest)
    blobs.delete(digest)
    with pytest.raises(NotFoundError):
        blobs.get(digest)
    assert list(blobs.walk()) == []


@pytest.mark.parametrize(
    "digest", ["", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 63 + "/", "\x00" * 64, "%2e" * 20]
)
def test_only_a_digest_ever_names_a_blob(blobs: BlobStore, digest: str) -> None:
    for ask in (blobs.get, blobs.delete):
        with pytest.raises(InvalidInputError):
            ask(digest)


def test_a_blob_over_the_limit_is_refused(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "MAX_BYTES", 10)
    with pytest.raises(TooLargeError):
        blobs.put(bytes(11))
    assert list(blobs.walk()) == []


def test_collecting_takes_what_nothing_names_and_nothing_young(blobs: BlobStore) -> None:
    kept, left = blobs.put(b"kept"), blobs.put(b"left")
    later = datetime.now(UTC) + SOON
    assert [info.digest for info in unused(blobs, [kept], later)] == [left]
    assert list(unused(blobs, [kept], LONG_AGO)) == []


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    digest = blobs.put(b"weights")
    (path,) = (path for path in tmp_path.rglob(digest) if path.is_file())
    for damage in (b"Weights", b"weight", b"weights!", b""):
        path.write_bytes(damage)
        with pytest.raises(CorruptArtifactError):
            blobs.get(digest)
    assert blobs.put(b"weights") == digest  # putting it again mends it
    assert blobs.get(digest) == b"weights"


def test_an_object_that_was_changed_is_refused(bucket: S3Blobs) -> None:
    digest = bucket.put(b"weights")
    bucket._store.put(f"{digest[:2]}/{digest}", b"Weights")
    with pytest.raises(CorruptArtifactError):
        bucket.get(digest)


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    blobs = FileBlobs(tmp_path)
    monkeypatch.setattr("idiolect.stores.blobs.files.os.fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        blobs.put(b"weights")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_bucket_that_is_not_there_is_said(s3_endpoint: str) -> None:
    blobs = S3Blobs("nowhere", endpoint=s3_endpoint, **KEYS)
    with pytest.raises((UnavailableError, NotFoundError)):
        blobs.put(b"x")


def test_a_url_says_where_blobs_lie(tmp_path: Path) -> None:
    assert open_blobs(f"file://{tmp_path}/a%20b") == FileBlobs(tmp_path / "a b")
    assert isinstance(open_blobs("s3://bucket/some/prefix"), S3Blobs)
    for wrong in ("", "file://", "file://host/x", "s3://", "ftp://x/y", "/tmp/x"):
        with pytest.raises(ConfigurationError, match="IDIOLECT_BLOB_URL"):
            open_blobs(wrong)
