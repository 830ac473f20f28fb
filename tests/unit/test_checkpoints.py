"""A training of the global model that was killed goes on from what it had done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idiolect.signals.data import SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.build import build_global
from idiolect_adapters.training.checkpoints import PREFIX, Checkpoint, identity_of, read_texts
from idiolect_adapters.training.global_model import GlobalOptions
from tasteful_world import make_world, shared_data

OPTIONS = GlobalOptions(user_rank=2, domain_rank=3)
TEXTS = [("how?", f"answer {number}") for number in range(9)]


class Killed(BaseException):
    """As sudden as a signal: nothing catches it."""


class Stages:
    """Notes the stages, and dies at the start of one."""

    def __init__(self, die_at: str | None = None) -> None:
        self.seen: list[str] = []
        self._die_at = die_at

    def stage(self, name: str) -> Callable[[int, int], None]:
        self.seen.append(name)
        if name == self._die_at:
            raise Killed
        return lambda done, total: None


class CountingBackbone(Backbone):
    read = 0

    def features(self, pairs: Any, progress: Any = None) -> np.ndarray:
        self.read += len(pairs)
        return super().features(pairs, progress)


def counting(folder: Path) -> CountingBackbone:
    plain = Backbone.load(folder)
    return CountingBackbone(plain.encoder, plain.tokenizer)


def data(people: int = 12) -> SharedData:
    return shared_data(make_world(people, prompts=6), list(range(people)))


def build(root: Path, backbone: Backbone, stages: Stages, people: int = 12) -> PreferenceModel:
    return build_global(root, backbone, data(people), OPTIONS, {"privacy": "declared public data"}, stages)


def folders(root: Path) -> list[Path]:
    return list(root.glob(f"{PREFIX}*"))


def test_a_training_that_was_killed_reads_no_text_twice_and_chooses_no_constant_twice(
    tiny_bert: Path, tmp_path: Path
) -> None:
    backbone = counting(tiny_bert)
    with pytest.raises(Killed):
        build(tmp_path, backbone, Stages(die_at="global model"))
    assert len(folders(tmp_path)) == 1
    assert backbone.read == len(data().items)
    stages = Stages()
    model = build(tmp_path, backbone, stages)
    assert backbone.read == len(data().items)
    assert "private recipes" not in stages.seen
    assert folders(tmp_path) == []
    whole = build(tmp_path / "whole", backbone, Stages())
    assert all(np.array_equal(whole.head.tensors()[name], tensor) for name, tensor in model.head.tensors().items())


STAGES = ["reading all texts", "global model without a tenth", "private recipes", "global model"]


@pytest.mark.parametrize("tune", [False, True])
def test_a_training_that_was_killed_anywhere_ends_in_the_model_of_one_that_was_not(
    tiny_bert: Path, tmp_path: Path, tune: bool
) -> None:
    """Its digest is of every byte: weights, contrasts, and the recipes, which are chosen under noise."""

    def digest(root: Path, stages: Stages) -> str:
        options = replace(OPTIONS, tune=tune)
        return build_global(root, Backbone.load(tiny_bert), data(), options, {}, stages).digest

    whole = digest(tmp_path / "whole", Stages())
    for stage in STAGES[:2] + ["tuning the encoder", "reading all texts again"] * tune + STAGES[2:]:
        with pytest.raises(Killed):
            digest(tmp_path / "killed", Stages(die_at=stage))
        assert folders(tmp_path / "killed")
    assert digest(tmp_path / "killed", Stages()) == whole
    with pytest.raises(Killed):
        digest(tmp_path / "once", Stages(die_at="private recipes"))
    assert digest(tmp_path / "once", Stages()) == whole


def test_a_training_that_was_killed_does_not_tune_its_encoder_twice(tiny_bert: Path, tmp_path: Path) -> None:
    def tune(root: Path, stages: Stages) -> PreferenceModel:
        options = replace(OPTIONS, tune=True)
        return build_global(root, Backbone.load(tiny_bert), data(), options, {}, stages)

    with pytest.raises(Killed):
        tune(tmp_path, Stages(die_at="reading all texts again"))
    stages = Stages()
    model = tune(tmp_path, stages)
    assert "tuning the encoder" not in stages.seen
    assert (
        tune(tmp_path / "whole", Stages()).backbone.features(TEXTS).tobytes()
        == model.backbone.features(TEXTS).tobytes()
    )


def test_a_training_on_other_data_starts_anew_and_clears_the_rest_away(tiny_bert: Path, tmp_path: Path) -> None:
    backbone = counting(tiny_bert)
    with pytest.raises(Killed):
        build(tmp_path, backbone, Stages(die_at="global model"))
    read, stages = backbone.read, Stages()
    build(tmp_path, backbone, stages, people=14)
    assert backbone.read > read
    assert "private recipes" in stages.seen
    assert folders(tmp_path) == []


def test_a_part_that_was_cut_off_is_computed_again(tiny_bert: Path, tmp_path: Path) -> None:
    backbone = counting(tiny_bert)
    checkpoint = Checkpoint.at(tmp_path, {"what": "a test"})
    first = read_texts(backbone, TEXTS, checkpoint, lambda *_: None)
    (part,) = folders(tmp_path)[0].iterdir()
    part.write_bytes(part.read_bytes()[:40])
    assert np.array_equal(read_texts(backbone, TEXTS, checkpoint, lambda *_: None), first)
    assert backbone.read == 2 * len(TEXTS)
    assert np.array_equal(first, Backbone.load(tiny_bert).features(TEXTS))
    checkpoint.document("constants", lambda: {"value": 1})
    (folders(tmp_path)[0] / "constants").write_text('{"value": ')
    assert checkpoint.document("constants", lambda: {"value": 2}) == {"value": 2}


def test_whatever_decides_the_outcome_is_in_the_identity(tiny_bert: Path) -> None:
    backbone, same = Backbone.load(tiny_bert), data()
    identity = identity_of(backbone, same, OPTIONS, None)
    assert identity_of(backbone, data(), OPTIONS, None) == identity
    others = [
        identity_of(backbone, data(13), OPTIONS, None),
        identity_of(backbone, same, GlobalOptions(user_rank=3, domain_rank=3), None),
        identity_of(backbone, same, OPTIONS, "an older model"),
    ]
    next(backbone.encoder.parameters()).data += 1.0
    others.append(identity_of(backbone, same, OPTIONS, None))
    assert all(other != identity for other in others)
