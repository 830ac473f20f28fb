"""A global model that one machine trained is served by others, which fetch it by its digest."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect.stores.blobs import BlobStore, FileBlobs
from idiolect_adapters.evaluation.random_model import random_model
from idiolect_adapters.preference import load_model
from idiolect_services.model_blobs import CARD, fetch_model, share_model


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return FileBlobs(tmp_path / "blobs")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_arrives_is_the_model_to_the_last_byte(tmp_path: Path, blobs: BlobStore) -> None:
    digest = random_model(tmp_path / "here").digest
    share_model(blobs, tmp_path / "here", digest)
    with ThreadPoolExecutor(3) as pool:  # as several processes of one machine would
        list(pool.map(lambda _: fetch_model(blobs, tmp_path / "there", digest), range(3)))
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert load_model(tmp_path / "there", digest).digest == digest


def test_a_model_that_was_not_shared_whole_is_not_there_at_all(tmp_path: Path, blobs: BlobStore) -> None:
    digest = random_model(tmp_path / "here").digest
    fetch_model(blobs, tmp_path / "there", digest)
    assert not (tmp_path / "there" / digest).exists()


def test_a_damaged_blob_is_refused_and_nothing_is_left(tmp_path: Path, blobs: BlobStore) -> None:
    digest = random_model(tmp_path / "here").digest
    share_model(blobs, tmp_path / "here", digest)
    head = sha256_hex((tmp_path / "here" / digest / "preference.safetensors").read_bytes())
    (path,) = (tmp_path / "blobs").rglob(head)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifactError, match=head):
        fetch_model(blobs, tmp_path / "there", digest)
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a\\b"])
def test_a_card_that_names_a_file_outside_is_refused(tmp_path: Path, blobs: BlobStore, name: str) -> None:
    card = json.dumps({"files": {name: blobs.put(b"x")}}).encode()
    with pytest.raises(CorruptArtifactError, match="names the file"):
        fetch_model(blobs, tmp_path / "there", blobs.put(card))
    assert list((tmp_path / "there").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_the_card_is_the_one_that_models_have(tmp_path: Path) -> None:
    digest = random_model(tmp_path).digest
    assert sha256_hex((tmp_path / digest / CARD).read_bytes()) == digest
