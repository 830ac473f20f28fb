"""The global model on disk: what was saved is what is loaded, bit for bit, or it is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError
from idiolect.ids import sha256_hex
from idiolect_adapters import preference as module
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import (
    CARD,
    HEAD_FILE,
    PreferenceModel,
    basis_digest,
    load_model,
    project_features,
    read_card,
    save_model,
)
from preference_samples import K, M, some_head, some_recipes

PAIRS = [("how", "warm reply please"), ("", "cold"), ("why", ""), ("how", "one two three four. five? six!")]


@dataclass(frozen=True)
class Saved:
    root: Path
    model: PreferenceModel

    @property
    def folder(self) -> Path:
        return self.root / self.model.digest


def save(root: Path, tiny_bert: Path, **changes: object) -> PreferenceModel:
    backbone = Backbone.load(tiny_bert)
    values = {"temperature": 1.75, "training": {"what": "a test"}} | changes
    return save_model(root, backbone, some_head(backbone.hidden_size), some_recipes(), **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("models")
    return Saved(root, save(root, tiny_bert))


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Saved:
    shutil.copytree(saved.root, tmp_path / "models")
    return Saved(tmp_path / "models", saved.model)


def test_a_loaded_model_says_the_same_bit_for_bit(saved: Saved) -> None:
    loaded = load_model(saved.root, saved.model.digest)
    assert np.array_equal(loaded.project(PAIRS), saved.model.project(PAIRS))
    assert loaded.project(PAIRS).shape == (4, 1 + K + M)
    for name, tensor in saved.model.head.tensors().items():
        assert np.array_equal(loaded.head.tensors()[name], tensor)
    assert loaded.temperature == saved.model.temperature == 1.75
    assert (loaded.digest, loaded.card) == (saved.model.digest, saved.model.card)
    assert loaded.user_basis_digest == saved.model.user_basis_digest
    assert loaded.domain_basis_digest == saved.model.domain_basis_digest


def test_the_recipes_come_back_as_they_were(saved: Saved) -> None:
    loaded = load_model(saved.root, saved.model.digest).recipes
    for epsilon, recipe in some_recipes().user.by_epsilon.items():
        found = loaded.user.by_epsilon[epsilon]
        assert (found.clip_norm, found.prior, found.steps) == (recipe.clip_norm, recipe.prior, recipe.steps)
        assert np.array_equal(found.curvature_K_K, recipe.curvature_K_K)
    assert np.array_equal(loaded.user.typical_K_K, some_recipes().user.typical_K_K)
    assert np.array_equal(loaded.domain.curvature_K_K, np.eye(M))
    assert (loaded.domain.clip_norm, loaded.domain.prior, loaded.domain.steps) == (0.7, 5.0, 6)


def test_a_pair_projects_to_the_same_bits_in_any_company(saved: Saved) -> None:
    many = [(f"how {n}", f"warm reply {n} " * (n % 9)) for n in range(150)]
    together = saved.model.project(many)
    for row in (0, 1, 63, 64, 65, 127, 128, 149):
        assert np.array_equal(together[row], saved.model.project([many[row]])[0])
    assert np.array_equal(saved.model.project(many[::-1])[::-1], together)


def test_the_projection_is_the_definition(saved: Saved) -> None:
    features = saved.model.features(PAIRS).astype(np.float64)
    head = saved.model.head
    centred = features - head.mean_F
    expected = np.hstack(
        [centred @ head.reward_F[:, None], centred @ head.user_basis_K_F.T, centred @ head.domain_basis_M_F.T]
    )
    assert np.allclose(saved.model.project(PAIRS), expected, rtol=1e-6, atol=1e-6)
    assert project_features(np.zeros((0, len(head.mean_F)), np.float32), head).shape == (0, 1 + K + M)


def test_saving_twice_is_harmless(saved: Saved, tiny_bert: Path, copy: Saved) -> None:
    again = save(copy.root, tiny_bert)
    assert again.digest == saved.model.digest
    assert [path.name for path in copy.root.iterdir()] == [saved.model.digest]
    assert np.array_equal(load_model(copy.root, again.digest).project(PAIRS), saved.model.project(PAIRS))


def test_saving_again_mends_a_damaged_model(saved: Saved, tiny_bert: Path, copy: Saved) -> None:
    weights = copy.root / saved.model.digest / HEAD_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptArtifactError):
        load_model(copy.root, saved.model.digest)
    save(copy.root, tiny_bert)
    assert np.array_equal(load_model(copy.root, saved.model.digest).project(PAIRS), saved.model.project(PAIRS))
    assert [path.name for path in copy.root.iterdir()] == [saved.model.digest]


def test_any_difference_is_another_model(saved: Saved, tiny_bert: Path, copy: Saved) -> None:
    digests = {
        saved.model.digest,
        save(copy.root, tiny_bert, temperature=1.76).digest,
        save(copy.root, tiny_bert, training={"what": "another test"}).digest,
    }
    assert len(digests) == 3


def files_of_a_model() -> list[str]:
    return ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", HEAD_FILE, CARD]


def test_a_model_is_made_of_the_files_that_are_tested_here(saved: Saved) -> None:
    assert {path.name for path in saved.folder.iterdir()} == set(files_of_a_model())


@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize("name", files_of_a_model())
def test_one_flipped_bit_in_any_file_is_refused(copy: Saved, name: str, where: float) -> None:
    path = copy.folder / name
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError) as refused:
        load_model(copy.root, copy.model.digest)
    assert name in str(refused.value)
    assert refused.value.mend


@pytest.mark.parametrize("name", files_of_a_model())
def test_a_missing_or_cut_file_is_refused(copy: Saved, name: str) -> None:
    path = copy.folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptArtifactError):
        load_model(copy.root, copy.model.digest)
    path.unlink()
    with pytest.raises(CorruptArtifactError):
        load_model(copy.root, copy.model.digest)


def test_a_file_that_is_written_to_while_the_model_serves_changes_no_score(copy: Saved) -> None:
    model = load_model(copy.root, copy.model.digest)
    weights = copy.folder / "model.safetensors"
    before, size = model.project(PAIRS), weights.stat().st_size
    with weights.open("r+b") as file:  # in place: the file that was read, not another one of its name
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))
    assert np.array_equal(model.project(PAIRS), before)
    os.truncate(weights, 0)
    assert np.array_equal(model.project(PAIRS), before)


def test_a_file_that_changes_while_it_is_read_is_refused(copy: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Backbone.load

    def write_meanwhile(folder: Path, *how: str) -> Backbone:
        loaded = load(folder, *how)  # type: ignore[arg-type]
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\xff" * 8)
        return loaded

    monkeypatch.setattr(module.Backbone, "load", write_meanwhile)
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors has the sha256"):
        load_model(copy.root, copy.model.digest)


@pytest.mark.parametrize("name", ["added_tokens.json", "adapter_config.json", "evil.py", "chat_templates/x.jinja"])
def test_a_file_that_was_not_saved_is_refused(copy: Saved, name: str) -> None:
    """Its bytes are under no digest, and transformers would read some of these by their name."""
    (copy.folder / name).parent.mkdir(exist_ok=True)
    (copy.folder / name).write_text('{"please": 3}')
    with pytest.raises(CorruptArtifactError, match="not part of it") as refused:
        load_model(copy.root, copy.model.digest)
    assert name in str(refused.value)


def test_an_unknown_digest_names_it_and_the_mend(saved: Saved) -> None:
    with pytest.raises(CorruptArtifactError, match=r"dddddddddddd is not in .*idiolect train global"):
        load_model(saved.root, "d" * 64)


def test_a_model_under_another_models_name_is_refused(copy: Saved) -> None:
    copy.folder.rename(copy.root / ("e" * 64))
    with pytest.raises(CorruptArtifactError, match="does not match its digest"):
        load_model(copy.root, "e" * 64)


@pytest.mark.parametrize("problem", ["missing", "misshapen", "nan"])
def test_tensors_that_do_not_fit_the_card_are_refused(copy: Saved, problem: str) -> None:
    """Even under a digest that matches: a broken trainer must not get past the loader."""
    import safetensors.numpy

    tensors = safetensors.numpy.load((copy.folder / HEAD_FILE).read_bytes())
    changed = {
        "missing": None,
        "misshapen": tensors["user_basis"][:, :-1].copy(),
        "nan": tensors["user_basis"] * np.nan,
    }
    tensors.pop("user_basis")
    if changed[problem] is not None:
        tensors["user_basis"] = changed[problem]
    data = safetensors.numpy.save(tensors)
    (copy.folder / HEAD_FILE).write_bytes(data)
    card = json.loads((copy.folder / CARD).read_text())
    card["files"][HEAD_FILE] = sha256_hex(data)
    (copy.folder / CARD).write_bytes(canonical_json(card))
    digest = sha256_hex(canonical_json(card))
    copy.folder.rename(copy.root / digest)
    with pytest.raises(CorruptArtifactError, match="'user_basis'"):
        load_model(copy.root, digest)


def test_a_save_that_fails_leaves_nothing(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.safetensors.numpy, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "models", tiny_bert)
    assert list((tmp_path / "models").iterdir()) == []


def test_the_card_can_be_read_without_the_model(saved: Saved) -> None:
    card = read_card(saved.root, saved.model.digest)
    assert card["training"] == {"what": "a test"}
    assert (card["user_rank"], card["domain_rank"], card["temperature"]) == (K, M, 1.75)


def test_a_basis_is_identified_by_its_shape_and_values() -> None:
    basis = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert basis_digest(basis) == basis_digest(np.asfortranarray(basis).copy())
    assert len({basis_digest(basis), basis_digest(basis.reshape(3, 2)), basis_digest(basis + np.float32(1e-6))}) == 3
