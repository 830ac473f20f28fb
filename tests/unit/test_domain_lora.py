"""Inner-layer LoRA of a domain against a slow, obvious reference; what it may touch; and what one subject can do."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect_adapters.lora.trained import trained_adapter
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.loras import LoraEngine, LoraStack
from idiolect_adapters.training import domain_lora, inner_layers
from idiolect_adapters.training.clip_noise import clip_rows
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import subject_descent
from idiolect_adapters.training.domain_lora import LoraOptions, SubjectTexts, subject_gradients, train_domain_lora
from idiolect_adapters.training.inner_layers import InnerLayers, attached
from lora_samples import DOMAIN_RANK, USER_RANK, preference_model
from tiny_models import HIDDEN, KINDS, save_tiny

TEXTS = [
    ("how", "warm reply thanks"),
    ("how", "cold short list"),
    ("why", "a long summary the good river and fish one two three four"),
    ("why", "bad"),
    ("", "stone tree house rain snow"),
    ("when", "sun moon star earth fire"),
]
OPTIONS = LoraOptions(layers=1, rank=2, steps=3)
HEAD = Recipe(clip_norm=0.5, prior=1.0, steps=2, curvature_K_K=np.eye(DOMAIN_RANK))
HEAD_B = "head.lora_B.weight"


class Recorded:
    """Zeros, or `value` everywhere; remembers the shapes."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.full(shape, self.value)


def model_of(folder: Path, kind: str, **changes: Any) -> PreferenceModel:
    """Reward and user directions read what stands beside the encoder's output, as where there is a text kernel."""
    model = preference_model(save_tiny(folder, kind, **changes))
    model.head.reward_F[:HIDDEN] = 0.0
    model.head.user_basis_K_F[:, :HIDDEN] = 0.0
    model.recipes = replace(model.recipes, domain=HEAD)
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreferenceModel:
    return model_of(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> PreferenceModel:
    return model_of(tmp_path_factory.mktemp("tiny"), "bert")


def data(model: PreferenceModel, seed: int = 0, subjects: int = 4, most: int = 4) -> SubjectTexts:
    rng = np.random.default_rng(seed)
    subject_C = np.repeat(np.arange(subjects), rng.integers(0, most + 1, subjects))
    chosen_C = rng.integers(0, len(TEXTS), len(subject_C))
    rejected_C = (chosen_C + rng.integers(1, len(TEXTS), len(subject_C))) % len(TEXTS)
    weights_C = rng.random(len(subject_C)) + 0.1
    projected = model.project(TEXTS)
    directions = projected[:, 1 + USER_RANK :]
    return SubjectTexts(subjects, TEXTS, projected[:, 0], directions, subject_C, chosen_C, rejected_C, weights_C)


def readout(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=HIDDEN)


def shaken(inner: InnerLayers, size: float = 0.3) -> InnerLayers:
    """Off the zero at which the cores start."""
    inner.move(size * np.random.default_rng(3).normal(size=inner.size))
    return inner


def one_after_another(model: PreferenceModel, inner: InnerLayers, readout_H: np.ndarray) -> tuple[Any, Any]:
    """Of each text alone, by plain autograd in the cores."""
    cores = [core.core_R_R for core in inner._cores.values()]
    read, rows = [], []
    for ids in model.backbone.tokenize(TEXTS).ids:
        found = model.backbone.pooled([ids])[0] @ torch.from_numpy(readout_H).float()
        read.append(found.item())
        rows.append(np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(found, cores)]))
    return np.array(read), np.array(rows)


def by_subject(texts: SubjectTexts, score_I: np.ndarray, gradient_I_D: np.ndarray) -> np.ndarray:
    """One subject after another, one comparison after another."""
    rows = np.zeros((texts.subjects, gradient_I_D.shape[1]))
    for subject in range(texts.subjects):
        mine = np.flatnonzero(texts.subject_C == subject)
        for c in mine:
            share = texts.weights_C[c] / texts.weights_C[mine].sum()
            chosen, rejected = texts.chosen_C[c], texts.rejected_C[c]
            pull = share / (1.0 + np.exp(score_I[chosen] - score_I[rejected]))
            rows[subject] -= pull * (gradient_I_D[chosen] - gradient_I_D[rejected])
    return rows


def digests(model: PreferenceModel) -> dict[str, str]:
    state = model.backbone.encoder.state_dict()
    return {name: hashlib.sha256(np.ascontiguousarray(t.numpy()).tobytes()).hexdigest() for name, t in state.items()}


@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_gradients_of_texts_are_those_of_one_after_another(
    model: PreferenceModel, layers: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_layers, "KEPT_BYTES", kept)
    with attached(model.backbone, model.backbone.tokenize(TEXTS), layers=layers, rank=3) as inner:
        shaken(inner)
        read, rows = inner.gradients(readout())
        expected_read, expected = one_after_another(model, inner, readout())
    assert rows.shape == (len(TEXTS), inner.size)
    assert np.abs(expected).max(axis=0).min() > 0.0  # every entry of every core is reached
    np.testing.assert_allclose(read, expected_read, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_layers_below_the_first_adapted_one_are_computed_once(bert: PreferenceModel) -> None:
    calls = []
    encoder: Any = bert.backbone.encoder
    hooks = [
        layer.attention.self.key.register_forward_hook(lambda *_, n=number: calls.append(n))
        for number, layer in enumerate(encoder.encoder.layer)
    ]
    with attached(bert.backbone, bert.backbone.tokenize(TEXTS), layers=1, rank=2) as inner:
        calls.clear()
        for _ in range(3):
            inner.gradients(readout())
    for hook in hooks:
        hook.remove()
    assert 0 not in calls
    assert calls.count(1) >= 3


@pytest.mark.parametrize("seed", range(3))
def test_the_gradients_of_subjects_are_those_of_one_after_another(bert: PreferenceModel, seed: int) -> None:
    texts, rng = data(bert, seed=seed, subjects=5), np.random.default_rng(seed)
    score_I, gradient_I_D = rng.normal(size=len(TEXTS)), rng.normal(size=(len(TEXTS), 7)).astype(np.float32)
    expected = by_subject(texts, score_I, gradient_I_D)
    assert np.abs(expected).max() > 1e-3
    some = np.array([True, False, True, True, False])
    found = subject_gradients(texts, score_I, gradient_I_D, some)
    np.testing.assert_allclose(found, expected[some], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_a_step_is_that_of_the_clipped_reference(
    bert: PreferenceModel, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a batch of some, with noise of a known value, and on the head that was released before."""
    texts, once = data(bert, seed=2), replace(OPTIONS, steps=1)
    batch = np.array([True, rate == 1.0, True, True])
    monkeypatch.setattr(domain_lora, "poisson_sample", lambda _units, _rate: batch)
    monkeypatch.setattr("idiolect_adapters.training.domain.poisson_sample", lambda _units, _rate: batch)
    count = rate * (texts.subjects + 2.0 * 0.5)
    head_M = subject_descent(texts.comparisons(), HEAD, count, 2.0, Recorded(0.5), rate)
    readout_H = head_M @ bert.head.domain_basis_M_F[:, :HIDDEN]
    with attached(bert.backbone, bert.backbone.tokenize(TEXTS), layers=1, rank=2) as inner:
        _, gradient_I_D = one_after_another(bert, inner, readout_H)
    watched: list[tuple[float, float]] = []
    real = domain_lora._TextGradients

    def watching(*arguments: Any) -> Any:
        made = real(*arguments)
        watched.append((made._unit, made.learning_rate))
        return made

    monkeypatch.setattr(domain_lora, "_TextGradients", watching)
    trained = train_domain_lora(bert, texts, once, 2.0, Recorded(0.5), sample_rate=rate)
    ((unit, learning_rate),) = watched
    rows = clip_rows(by_subject(texts, texts.score_I + texts.directions_I_M @ head_M, unit * gradient_I_D), 0.5)
    noisy_sum = rows[batch].sum(axis=0) + 2.0 * HEAD.clip_norm * 0.5
    cores = np.split(-unit * learning_rate * noisy_sum / count, 2)
    np.testing.assert_allclose(trained[HEAD_B][0], head_M, rtol=1e-5)
    names = [name.removesuffix(".lora_A.weight") for name in trained if name.endswith("lora_A.weight")]
    for name, core in zip(names, cores, strict=True):
        weight = dict(bert.backbone.encoder.named_modules())[name].weight.detach().numpy()
        u, s, v = np.linalg.svd(weight)
        found = trained[f"{name}.lora_B.weight"] @ trained[f"{name}.lora_A.weight"]
        signs = np.sign((trained[f"{name}.lora_A.weight"] * v[:2]).sum(axis=1))  # an SVD is one but for these
        expected = (u[:, :2] * s[:2] * signs) @ core.reshape(2, 2) @ (v[:2] * signs[:, None])
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("says", ["once", "often", "loudly"])
def test_a_subject_more_moves_the_sum_by_at_most_the_clip_norm(bert: PreferenceModel, says: str) -> None:
    """All of a subject's comparisons and all trained tensors together are one clipped row."""
    others = data(bert, seed=5, subjects=3)
    copies = {"once": 1, "often": 10_000, "loudly": 2}[says]
    weight = 1e9 if says == "loudly" else 1.0
    joined = replace(
        others,
        subjects=4,
        subject_C=np.concatenate([others.subject_C, np.full(copies, 3)]),
        chosen_C=np.concatenate([others.chosen_C, np.full(copies, 2)]),
        rejected_C=np.concatenate([others.rejected_C, np.full(copies, 3)]),
        weights_C=np.concatenate([others.weights_C, np.full(copies, weight)]),
    )
    gradient_I_D = 1e3 * np.random.default_rng(0).normal(size=(len(TEXTS), 9)).astype(np.float32)

    def clipped_sum(texts: SubjectTexts) -> np.ndarray:
        rows = subject_gradients(texts, texts.score_I, gradient_I_D, np.ones(texts.subjects, bool))
        return clip_rows(rows, HEAD.clip_norm).sum(axis=0)

    moved = np.linalg.norm(clipped_sum(joined) - clipped_sum(others))
    assert 0.0 < moved <= HEAD.clip_norm * (1.0 + 1e-6)


def test_nothing_but_the_declared_matrices_is_trained_and_the_backbone_is_left_as_it_was(
    model: PreferenceModel,
) -> None:
    encoder = model.backbone.encoder
    before, flags = digests(model), {n: p.requires_grad for n, p in encoder.named_parameters()}
    head_before = {name: array.copy() for name, array in model.head.tensors().items()}
    features = model.features(TEXTS)
    trained = train_domain_lora(model, data(model), OPTIONS, 1.0, Recorded(0.1))
    assert digests(model) == before
    assert {n: p.requires_grad for n, p in encoder.named_parameters()} == flags
    assert not encoder.training
    assert all(np.array_equal(array, head_before[name]) for name, array in model.head.tensors().items())
    assert np.array_equal(model.features(TEXTS), features)
    with attached(model.backbone, model.backbone.tokenize(TEXTS), layers=1, rank=2) as inner:
        fresh = inner.tensors()
    assert set(trained) == {HEAD_B, *fresh}
    for name, tensor in fresh.items():
        assert np.array_equal(trained[name], tensor) == name.endswith("lora_A.weight")  # A is frozen


def test_an_error_takes_the_lora_off_again(bert: PreferenceModel) -> None:
    before, tokens = digests(bert), bert.backbone.tokenize(TEXTS)
    with pytest.raises(RuntimeError), attached(bert.backbone, tokens, layers=1, rank=2):
        raise RuntimeError
    assert digests(bert) == before


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("subjects", [0, 1, 2])
@pytest.mark.parametrize("rate", [1.0, 1e-12])
def test_it_draws_once_for_the_count_and_once_a_step_whoever_is_there(
    bert: PreferenceModel, steps: int, subjects: int, rate: float
) -> None:
    """A rate of 1e-12 leaves every batch empty; empty batches draw noise too."""
    noise, options = Recorded(1.0), replace(OPTIONS, steps=steps)
    trained = train_domain_lora(bert, data(bert, subjects=subjects), options, 1.0, noise, sample_rate=rate)
    size = 2 * options.rank**2  # query and value
    assert noise.shapes == [(1,)] + [(1, DOMAIN_RANK)] * HEAD.steps + [(size,)] * steps
    assert len(noise.shapes) == options.releases(HEAD)
    assert all(np.isfinite(tensor).all() and np.any(tensor != 0.0) for tensor in trained.values())


def served(model: PreferenceModel, tensors: dict[str, np.ndarray]) -> np.ndarray:
    engine = LoraEngine(model)
    lora = engine.add(trained_adapter(model.head, tensors), "trained", shared=True)
    return engine.project(TEXTS, [LoraStack(((lora, 1.0),))] * len(TEXTS))


def test_inner_layers_learn_what_the_head_can_not_say(tmp_path: Path) -> None:
    """Everybody prefers text 0 to text 1: without noise the margin grows beyond that of the head alone."""
    bert = model_of(tmp_path / "bert", "bert", initializer_range=0.3)  # of its usual weights attention makes nothing
    texts, count = data(bert), 6
    zeros = np.zeros(count, np.int64)
    agreed = replace(
        texts,
        subjects=count,
        subject_C=np.arange(count),
        chosen_C=zeros,
        rejected_C=zeros + 1,
        weights_C=np.ones(count),
    )
    trained = train_domain_lora(bert, agreed, replace(OPTIONS, steps=20), 0.0, Recorded())
    head_M = trained[HEAD_B][0].astype(np.float64)
    alone_I = texts.score_I + texts.directions_I_M @ head_M
    score_I = served(bert, trained)[:, 0]
    assert score_I[0] - score_I[1] > alone_I[0] - alone_I[1] + 0.2 > texts.score_I[0] - texts.score_I[1] + 0.4


def test_what_is_served_is_what_was_trained_and_the_user_part_has_the_bits_that_it_had(
    model: PreferenceModel,
) -> None:
    """score = the model's own on bare features + the head's delta on those that the LoRA moves."""
    texts = data(model, subjects=9)
    trained = train_domain_lora(model, texts, replace(OPTIONS, layers=2, steps=5), 1.0, Recorded(0.7))
    head_M = trained[HEAD_B][0].astype(np.float64)
    found, bare = served(model, trained), model.project(TEXTS)
    assert np.array_equal(found[:, 1 : 1 + USER_RANK], bare[:, 1 : 1 + USER_RANK])
    moved_I_M = found[:, 1 + USER_RANK :]
    assert not np.allclose(moved_I_M, texts.directions_I_M, atol=1e-4)
    np.testing.assert_allclose(found[:, 0], bare[:, 0] + moved_I_M @ head_M, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 0},
        {"layers": True},
        {"layers": 10**9},
        {"steps": 0},
        {"steps": 201},
        {"steps": 1.5},
        {"rank": 0},
        {"rank": "4"},
    ],
)
def test_options_that_can_not_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        replace(OPTIONS, **changes)


def test_more_layers_than_there_are_are_refused_and_leave_the_backbone_alone(bert: PreferenceModel) -> None:
    before = digests(bert)
    with pytest.raises(ConfigurationError, match="2 layers"):
        train_domain_lora(bert, data(bert), replace(OPTIONS, layers=3), 1.0, Recorded())
    assert digests(bert) == before


def test_a_model_whose_user_directions_read_the_encoder_is_refused(tmp_path: Path) -> None:
    model = preference_model(save_tiny(tmp_path / "tiny", "bert"))
    noise = Recorded()
    with pytest.raises(ConfigurationError, match="user directions read"):
        train_domain_lora(model, data(model), OPTIONS, 1.0, noise)
    assert noise.shapes == []


@pytest.mark.parametrize("multiplier", [-1.0, float("nan"), "1", True])
@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan"), "1", True])
def test_numbers_that_void_the_accounting_are_refused_before_anything_is_read(
    bert: PreferenceModel, multiplier: Any, rate: Any
) -> None:
    class Exploding(SubjectTexts):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was read")

    exploding = object.__new__(Exploding)
    for numbers in ((multiplier, 0.5), (1.0, rate)):
        with pytest.raises(InvalidInputError):
            train_domain_lora(bert, exploding, OPTIONS, numbers[0], Recorded(), sample_rate=numbers[1])
