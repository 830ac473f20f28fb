"""Inner-layer LoRA of a domain against a slow, obvious reference; what it may touch; and what one subject can do."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import Head
from idiolect_adapters.surface import NAMES, surface_features
from idiolect_adapters.training import domain_lora
from idiolect_adapters.training.clip_noise import clip_rows
from idiolect_adapters.training.domain_lora import (
    LoraRecipe,
    LoraScorer,
    SubjectTexts,
    attached,
    subject_gradients,
    train_domain_lora,
)
from tiny_models import HIDDEN, KINDS, save_tiny

TEXTS = [
    ("how", "warm reply thanks"),
    ("how", "cold short list"),
    ("why", "a long summary the good river and fish one two three four"),
    ("why", "bad"),
    ("", "stone tree house rain snow"),
    ("when", "sun moon star earth fire"),
]
RECIPE = LoraRecipe(clip_norm=0.5, learning_rate=0.3, steps=3, rank=2, comparisons_at_once=3)


class Recorded:
    """Zeros, or `value` everywhere; remembers the shapes."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return np.full(shape, self.value)


@pytest.fixture(scope="module", params=KINDS)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(save_tiny(tmp_path_factory.mktemp("tiny"), request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone.load(save_tiny(tmp_path_factory.mktemp("tiny"), "bert"))


def head(rank: int = 3) -> Head:
    rng, width = np.random.default_rng(1), HIDDEN + len(NAMES)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0.0, 0.5, shape).astype(np.float32)

    return Head(draw(width), draw(width), draw(2, width), draw(rank, width))


def data(seed: int = 0, subjects: int = 4, most: int = 4) -> SubjectTexts:
    rng = np.random.default_rng(seed)
    subject_C = np.repeat(np.arange(subjects), rng.integers(0, most + 1, subjects))
    chosen_C = rng.integers(0, len(TEXTS), len(subject_C))
    rejected_C = (chosen_C + rng.integers(1, len(TEXTS), len(subject_C))) % len(TEXTS)
    return SubjectTexts(subjects, TEXTS, subject_C, chosen_C, rejected_C, rng.random(len(subject_C)) + 0.1)


def prepared(backbone: Backbone) -> tuple[Any, torch.Tensor]:
    return backbone.tokenize(TEXTS).ids, torch.from_numpy(surface_features([text for _, text in TEXTS]))


def shake(scorer: LoraScorer) -> None:
    """Off the zero at which B starts, where the gradient of the head says nothing about the LoRA."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in scorer.trained().values():
            module.weight.copy_(0.3 * torch.randn(module.weight.shape, generator=generator))


def reference(scorer: LoraScorer, texts: SubjectTexts, tokens: Any, surface: torch.Tensor) -> np.ndarray:
    """One subject after another, one comparison after another, by plain autograd."""
    weights = [module.weight for module in scorer.trained().values()]
    rows = []
    for subject in range(texts.subjects):
        mine = np.flatnonzero(texts.subject_C == subject)
        row = np.zeros(sum(weight.numel() for weight in weights))
        for c in mine:
            share = texts.weights_C[c] / texts.weights_C[mine].sum()
            chosen, rejected = (
                scorer([tokens[text]], surface[text][None])[0] for text in (texts.chosen_C[c], texts.rejected_C[c])
            )
            gradients = torch.autograd.grad(-torch.nn.functional.logsigmoid(chosen - rejected), weights)
            row += share * np.concatenate([g.numpy().ravel() for g in gradients])
        rows.append(row)
    return np.array(rows)


def digests(backbone: Backbone) -> dict[str, str]:
    state = backbone.encoder.state_dict()
    return {name: hashlib.sha256(np.ascontiguousarray(t.numpy()).tobytes()).hexdigest() for name, t in state.items()}


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_gradients_of_subjects_are_those_of_one_after_another(
    backbone: Backbone, layers: int, at_once: int
) -> None:
    texts = data(seed=layers)
    tokens, surface = prepared(backbone)
    with attached(backbone, head(), replace(RECIPE, layers=layers)) as scorer:
        shake(scorer)
        everybody = np.ones(texts.subjects, bool)
        fast = subject_gradients(scorer, texts, tokens, surface, everybody, at_once)
        slow = reference(scorer, texts, tokens, surface)
    assert np.abs(slow).max() > 1e-3
    assert np.allclose(fast, slow, rtol=1e-3, atol=1e-5)
    heads = head().domain_basis_M_F.shape[0]
    assert np.abs(slow[:, heads:]).max() > 1e-4  # the LoRA itself is reached


def test_a_step_is_that_of_the_clipped_reference(bert: Backbone) -> None:
    """Also with a batch of some, and with the noise of a known value."""
    texts, once = data(seed=2), replace(RECIPE, steps=1)
    tokens, surface = prepared(bert)
    with attached(bert, head(), once) as scorer:
        rows = reference(scorer, texts, tokens, surface)
        names = list(scorer.trained())
        sizes = [module.weight.numel() for module in scorer.trained().values()]
    noisy_sum = clip_rows(rows, once.clip_norm).sum(axis=0) + 2.0 * once.clip_norm * 0.5
    step = once.learning_rate * noisy_sum / (texts.subjects + 2.0 * 0.5)
    trained = train_domain_lora(bert, head(), texts, once, 2.0, Recorded(0.5))
    for name, part in zip(names, np.split(-step, np.cumsum(sizes)[:-1]), strict=True):
        assert np.allclose(trained[f"{name}.lora_B.weight"].ravel(), part, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_a_sample_is_divided_by_what_was_expected_and_not_by_its_size(
    bert: Backbone, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, once = data(seed=2), replace(RECIPE, steps=1)
    tokens, surface = prepared(bert)
    batch = np.array([True, False, True, True])
    monkeypatch.setattr(domain_lora, "poisson_sample", lambda _units, _rate: batch)
    with attached(bert, head(), once) as scorer:
        rows = reference(scorer, texts, tokens, surface)
    step = once.learning_rate * clip_rows(rows, once.clip_norm)[batch].sum(axis=0) / (rate * texts.subjects)
    trained = train_domain_lora(bert, head(), texts, once, 0.0, Recorded(), sample_rate=rate)
    assert np.allclose(trained["head.lora_B.weight"].ravel(), -step[:3], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("says", ["once", "often", "loudly"])
def test_a_subject_more_moves_the_sum_by_at_most_the_clip_norm(bert: Backbone, says: str) -> None:
    """All of a subject's comparisons and all trained tensors together are one clipped row."""
    others, tokens_surface = data(seed=5, subjects=3), prepared(bert)
    copies = {"once": 1, "often": 40, "loudly": 2}[says]
    weight = 1e9 if says == "loudly" else 1.0
    louder = replace(head(), reward_F=100.0 * head().reward_F, domain_basis_M_F=1e3 * head().domain_basis_M_F)
    joined = SubjectTexts(
        4,
        TEXTS,
        np.concatenate([others.subject_C, np.full(copies, 3)]),
        np.concatenate([others.chosen_C, np.full(copies, 2)]),
        np.concatenate([others.rejected_C, np.full(copies, 3)]),
        np.concatenate([others.weights_C, np.full(copies, weight)]),
    )
    with attached(bert, louder, RECIPE) as scorer:
        shake(scorer)

        def clipped_sum(texts: SubjectTexts) -> np.ndarray:
            rows = subject_gradients(scorer, texts, *tokens_surface, np.ones(texts.subjects, bool), 7)
            return clip_rows(rows, RECIPE.clip_norm).sum(axis=0)

        moved = np.linalg.norm(clipped_sum(joined) - clipped_sum(others))
    assert 0.0 < moved <= RECIPE.clip_norm * (1.0 + 1e-4)


def test_nothing_but_the_declared_matrices_is_trained_and_the_backbone_is_left_as_it_was(backbone: Backbone) -> None:
    before, flags = digests(backbone), {n: p.requires_grad for n, p in backbone.encoder.named_parameters()}
    given = head()
    head_before = {name: array.copy() for name, array in given.tensors().items()}
    trained = train_domain_lora(backbone, given, data(), RECIPE, 1.0, Recorded(0.1))
    assert digests(backbone) == before
    assert {n: p.requires_grad for n, p in backbone.encoder.named_parameters()} == flags
    assert not backbone.encoder.training
    assert all(np.array_equal(array, head_before[name]) for name, array in given.tensors().items())
    with attached(backbone, given, RECIPE) as scorer:
        fresh = scorer.tensors()
    assert set(trained) == set(fresh)
    for name, tensor in trained.items():
        changed = not np.array_equal(tensor, fresh[name])
        assert changed == name.endswith("lora_B.weight"), name  # A is frozen: FFA-LoRA
    assert len(trained) == 1 + 2 * sum(name.endswith("lora_A.weight") for name in trained)


def test_an_error_takes_the_lora_off_again(bert: Backbone) -> None:
    before = digests(bert)
    with pytest.raises(RuntimeError), attached(bert, head(), RECIPE):
        raise RuntimeError
    assert digests(bert) == before


def test_an_untrained_adapter_changes_no_score(bert: Backbone) -> None:
    tokens, surface = prepared(bert)
    given = head()
    with attached(bert, given, RECIPE) as scorer, torch.inference_mode():
        score_I = scorer(tokens, surface).numpy()
    features = np.concatenate([bert.pooled(tokens).detach().numpy(), surface.numpy()], axis=1) - given.mean_F
    assert np.allclose(score_I, features @ given.reward_F, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("subjects", [0, 1, 2])
@pytest.mark.parametrize("rate", [1.0, 1e-12])
def test_it_draws_once_for_the_count_and_once_a_step_whoever_is_there(
    bert: Backbone, steps: int, subjects: int, rate: float
) -> None:
    """A rate of 1e-12 leaves every batch empty; empty batches draw noise too."""
    noise, recipe = Recorded(1.0), replace(RECIPE, steps=steps)
    texts = data(subjects=subjects)
    trained = train_domain_lora(bert, head(), texts, recipe, 1.0, noise, sample_rate=rate)
    size = sum(tensor.size for name, tensor in trained.items() if name.endswith("lora_B.weight"))
    assert noise.shapes == [(1,)] + [(size,)] * steps
    assert len(noise.shapes) == recipe.releases
    assert all(np.all(tensor != 0.0) for name, tensor in trained.items() if name.endswith("lora_B.weight"))


def test_it_learns_what_subjects_share(bert: Backbone) -> None:
    """Everybody prefers text 0 to text 1: without noise the margin grows."""
    count = 6
    zeros = np.zeros(count, np.int64)
    agreed = SubjectTexts(count, TEXTS, np.arange(count), zeros, zeros + 1, np.ones(count))
    trained = train_domain_lora(bert, head(), agreed, replace(RECIPE, steps=20), 0.0, Recorded())
    tokens, surface = prepared(bert)
    with attached(bert, head(), RECIPE) as scorer, torch.inference_mode():
        before = scorer(tokens, surface)
        for name, module in scorer.trained().items():
            module.weight.copy_(torch.from_numpy(trained[f"{name}.lora_B.weight"]))
        after = scorer(tokens, surface)
    assert after[0] - after[1] > before[0] - before[1] + 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"clip_norm": "1"},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"steps": 0},
        {"steps": 201},
        {"steps": 1.5},
        {"steps": True},
        {"rank": 0},
        {"layers": 0},
        {"comparisons_at_once": -1},
    ],
)
def test_a_recipe_that_can_not_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        replace(RECIPE, **changes)


def test_more_layers_than_there_are_are_refused_and_leave_the_backbone_alone(bert: Backbone) -> None:
    before = digests(bert)
    with pytest.raises(ConfigurationError, match="2 layers"):
        train_domain_lora(bert, head(), data(), replace(RECIPE, layers=3), 1.0, Recorded())
    assert digests(bert) == before


@pytest.mark.parametrize("multiplier", [-1.0, float("nan"), "1", True])
@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan"), "1", True])
def test_numbers_that_void_the_accounting_are_refused_before_anything_is_read(
    bert: Backbone, multiplier: Any, rate: Any
) -> None:
    class Exploding(SubjectTexts):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was read")

    exploding = object.__new__(Exploding)
    for numbers in ((multiplier, 0.5), (1.0, rate)):
        with pytest.raises(InvalidInputError):
            train_domain_lora(bert, head(), exploding, RECIPE, numbers[0], Recorded(), sample_rate=numbers[1])
