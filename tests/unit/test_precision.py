"""Backbones in bfloat16 and int8: nearly the same features, the same bits in any company, and never mixed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.settings import PRECISIONS, Precision
from idiolect_adapters import precision as module
from idiolect_adapters.backbone import Backbone, Tokens
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.padding import Padding
from idiolect_adapters.precision import Int8Linear, check_exact
from idiolect_adapters.preference import PreferenceModel, load_model, save_model
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied
from idiolect_adapters.runtime.batched.reference import run_row
from idiolect_adapters.runtime.batched.scores import score_rows
from idiolect_adapters.surface import NAMES
from lora_samples import random_adapter
from preference_samples import some_head, some_recipes
from tiny_models import KINDS, WORDS, save_tiny

REDUCED = tuple(one for one in PRECISIONS if one != "float32")
# bfloat16 keeps 8 bits of every number, int8 as many of the largest in a row.
CLOSE = {"bfloat16": 0.05, "int8": 0.08}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_tiny(tmp_path_factory.mktemp("tiny") / kind, kind) for kind in KINDS}


def text(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng([seed, count]).choice(WORDS, count))


PAIRS = [("", text(n)) for n in (1, 6, 14, 15, 40, 255)] + [(text(5), text(n, 1)) for n in (1, 9, 60)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", REDUCED)
def test_a_text_gives_nearly_the_same_features_and_the_same_bits_in_any_company(
    folders: dict[str, Path], kind: str, precision: Precision
) -> None:
    backbone, exact = Backbone.load(folders[kind], precision), Backbone.load(folders[kind])
    features, wanted = backbone.features(PAIRS), exact.features(PAIRS)
    assert features.dtype == np.float32
    assert not np.array_equal(features, wanted)
    assert np.abs(features - wanted).max() < CLOSE[precision] * np.abs(wanted).max()
    alone = np.vstack([backbone.features([pair]) for pair in PAIRS])
    assert np.array_equal(features, alone)
    copies = [PAIRS[1]] * 70 + [("", text(6, seed)) for seed in range(60)]
    assert np.array_equal(backbone.features(copies)[:70], np.repeat(alone[1:2], 70, axis=0))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 70), st.integers(1, 40), st.integers(1, 600), st.booleans(), st.integers(0, 100))
def test_an_int8_layer_is_its_float_layer_within_half_a_step_of_each_number(
    inputs: int, outputs: int, rows: int, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(rows, inputs, generator=generator)
    with torch.inference_mode():
        found, wanted = Int8Linear(layer)(x), layer(x)
    step_x, step_w = x.abs().amax(1) / 127, layer.weight.abs().amax(1) / 127
    largest_x, largest_w = x.abs().sum(1), layer.weight.abs().sum(1)
    bound = 0.5 * (step_x[:, None] * largest_w + largest_x[:, None] * step_w) + inputs * step_x[:, None] * step_w / 4
    assert bool(((found - wanted).abs() <= bound * 1.001 + 1e-5).all())


def test_zeros_stay_zeros_and_one_odd_token_leaves_the_others_alone() -> None:
    layer = Int8Linear(torch.nn.Linear(8, 3, bias=False))
    x = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    x[0, 0], x[1, 5] = 0.0, 1e20
    after = layer(x)
    assert torch.equal(after[0, 0], torch.zeros(3))
    changed = torch.zeros(2, 300, dtype=torch.bool)
    changed[0, 0] = changed[1, 5] = True
    assert torch.equal(after[~changed], before[~changed])


def test_a_processor_that_adds_up_in_too_few_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exact()

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.long() @ b.long()).clamp(-(2**15), 2**15 - 1).int()

    monkeypatch.setattr(module.torch, "_int_mm", saturating)
    with pytest.raises(ConfigurationError, match="8-bit integers exactly"):
        check_exact()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_adapters_add_the_same_on_every_precision(folders: dict[str, Path], precision: Precision) -> None:
    backbone = Backbone.load(folders["bert"], precision)
    generator = torch.Generator().manual_seed(0)
    model = RewardModel(backbone, *torch.randn(2, backbone.hidden_size + len(NAMES), generator=generator) / 6)
    layers = [f"encoder.encoder.layer.{n}.attention.self.{name}" for n in (0, 1) for name in ("query", "value")]
    adapters = [random_adapter(model, dict.fromkeys([*layers, "score"], 4), seed=seed, size=0.1) for seed in range(3)]
    runtime = BatchedRuntime(model)
    handles = [runtime.residents.add(adapter, shared=number == 2) for number, adapter in enumerate(adapters)]
    rows = [[], [0], [1, 2], [2], [0, 1], []]
    tokens = Tokens(tuple(tuple((5 * row + at) % 50 for at in range(20)) for row in range(len(rows))))
    beside = torch.rand(len(rows), len(NAMES), generator=generator)
    found = score_rows(runtime, model, tokens, beside, [[Applied(handles[n]) for n in row] for row in rows])
    runtime.close()
    slow = torch.cat(
        [
            run_row(
                model, [(adapters[n], 1.0) for n in row], lambda i=i: model(tokens.ids[i : i + 1], beside[i : i + 1])
            )
            for i, row in enumerate(rows)
        ]
    )
    loose = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.05}[precision]
    assert torch.allclose(found, slow.float(), rtol=loose, atol=loose)
    bare = score_rows(BatchedRuntime(model), model, tokens, beside, [[]] * len(rows))
    assert torch.equal(found[[0, 5]], bare[[0, 5]])
    assert not torch.isclose(found[1:5], bare[1:5], atol=1e-4).any()


def saved(root: Path, folder: Path, precision: Precision) -> PreferenceModel:
    backbone = Backbone.load(folder, precision)
    head = some_head(backbone.hidden_size)
    return save_model(root, backbone, head, some_recipes(), temperature=1.0, training={"what": "a test"})


def test_the_precision_is_part_of_a_models_digest_and_comes_back_with_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    models = {precision: saved(tmp_path, folders["bert"], precision) for precision in PRECISIONS}
    assert len({model.digest for model in models.values()}) == len(PRECISIONS)
    assert "precision" not in models["float32"].card  # the digests of older models stay what they are
    for precision, model in models.items():
        loaded = load_model(tmp_path, model.digest)
        assert loaded.backbone.precision == precision
        assert np.array_equal(loaded.project(PAIRS), model.project(PAIRS))
        weights = tmp_path / model.digest / "model.safetensors"
        assert weights.read_bytes() == (tmp_path / models["float32"].digest / "model.safetensors").read_bytes()


def test_a_model_in_an_unknown_precision_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(folders["bert"])
    backbone.precision = "float8"  # type: ignore[assignment]
    head = some_head(backbone.hidden_size)
    model = save_model(tmp_path, backbone, head, some_recipes(), temperature=1.0, training={})
    with pytest.raises(CorruptArtifactError, match="precision 'float8' is not known"):
        load_model(tmp_path, model.digest)


def test_what_can_not_be_had_is_refused_with_its_mend(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="torch sees no GPU, so 'cuda:1'"):
        Backbone.load(folders["bert"], device="cuda:1")
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigurationError, match="int8 is computed on CPUs only"):
        Backbone.load(folders["bert"], "int8", "cuda")


def test_batches_that_are_filled_up_as_for_a_gpu_give_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(folders["bert"])
    wanted = backbone.features(PAIRS)
    padding = Padding.on(torch.device("meta"), backbone.max_tokens)
    sizes: list[tuple[int, int]] = []
    pooled = Backbone.pooled

    def noted(self: Backbone, ids: list[tuple[int, ...]], length: int) -> torch.Tensor:
        sizes.append((length, len(ids)))
        return pooled(self, ids, length)

    monkeypatch.setattr(Backbone, "pooled", noted)
    monkeypatch.setattr(Backbone, "padding", padding)
    assert np.allclose(backbone.features(PAIRS), wanted, atol=1e-5)
    assert sizes == [(length, padding.rows(length) + 1) for length, _ in sizes]
