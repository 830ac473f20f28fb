from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quiet import QuietStages

from idiolect.errors import ConfigurationError
from idiolect.settings import load_settings
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.basis import principal_directions
from idiolect_adapters.evaluation.peer_lora import LoraPeer, LoraRecipe, PersonPairs, train_head
from idiolect_adapters.evaluation.random_model import random_backbone
from idiolect_adapters.preference import Head, project_features, text_features
from idiolect_adapters.training.clip_noise import SecureNoise, draws_in_any_order
from idiolect_adapters.training.user import pad_comparisons
from idiolect_services.bench import catalogue
from idiolect_services.bench.catalogue import Options, run_benchmark
from idiolect_services.bench.form import Measured
from idiolect_services.bench.noise_cost import PlainNoise, by_turns, rates
from idiolect_services.bench.training_bench import HEAD_RATIO, METRICS, RATE, RATIO, Work, measure, workload_of

WORK = Work(people=600, head_people=1, comparisons=8, texts=5, rank=3, steps=2, rounds=2)
TEXTS = [("question", f"short {number}") for number in range(8)] + [
    ("question", f"an answer with very many words, as long as number {number} can be made, and longer")
    for number in range(8)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    random_backbone().save(folder)
    return folder


@pytest.fixture(scope="module")
def head(folder: Path) -> Head:
    features = text_features(Backbone.load(folder), TEXTS, None)
    basis = principal_directions(features - features.mean(axis=0), 3)
    return Head(features.mean(axis=0), basis[0], basis, basis)


@pytest.fixture
def peer(folder: Path, head: Head) -> LoraPeer:
    return LoraPeer(Backbone.load(folder), head, TEXTS)


def likes_short() -> PersonPairs:
    short, long = np.divmod(np.arange(36), 6)
    return PersonPairs(short, 8 + long, np.zeros(36))


def moved(peer: LoraPeer) -> np.ndarray:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in peer.parameters])


def last_sum(peer: LoraPeer) -> float:
    """The length of the sum of clipped contributions in the last step, before its noise."""
    return float(np.linalg.norm(np.concatenate([p.summed_grad.numpy().ravel() for p in peer.parameters])))  # type: ignore[attr-defined]


# The benchmark


def test_exactly_the_announced_metrics_come_out_with_peers_and_spreads(folder: Path) -> None:
    rows = {row.metric: row for row in measure(folder, WORK, QuietStages())}
    assert tuple(rows) == METRICS
    for row in rows.values():
        assert row.low is not None
        assert row.high is not None
        assert 0 < row.low <= row.value <= row.high
        assert row.peer
    assert rows[RATE].ratio == pytest.approx(rows[RATIO].value)  # one median divides, the other is divided
    assert rows[RATIO].value > 1
    assert rows[HEAD_RATIO].ratio == pytest.approx(rows[HEAD_RATIO].value)


def test_everyone_has_the_announced_number_of_comparisons_among_the_announced_number_of_texts() -> None:
    workload = workload_of(np.random.default_rng(0).normal(size=(20, 3)), WORK)
    pairs = workload.comparisons
    assert np.array_equal(np.bincount(pairs.person_C), np.full(WORK.people, WORK.comparisons))
    assert np.all(pairs.chosen_C != pairs.rejected_C)
    for person in range(20):
        own = workload.pairs_of(person)
        assert len(np.unique(np.concatenate([own.chosen_C, own.rejected_C]))) <= WORK.texts
        padded = pad_comparisons(
            pairs, np.array([person]), workload.taste_I_K, np.zeros(len(pairs)), limit=WORK.comparisons
        )
        expected = workload.taste_I_K[own.chosen_C] - workload.taste_I_K[own.rejected_C]
        assert np.array_equal(padded.differences_P_C_K[0], expected)  # ours and the peers work on the same pairs


def test_tasks_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = by_turns([lambda: order.append("a"), lambda: order.append("b")], rounds=2)
    assert order == ["a", "b"] * 3
    assert [len(each) for each in seconds] == [2, 2]


def test_a_rate_is_of_its_own_people_and_the_ratio_is_that_of_paired_rounds() -> None:
    row = rates("m", "u", 100, [1.0, 2.0, 4.0], "peer", 10, [1.0, 1.0, 10.0])
    assert row == Measured("m", "u", 50.0, 25.0, 100.0, "peer", 10.0, ratio=10.0)


def test_plain_noise_runs_under_the_same_conditions_as_secure_noise() -> None:
    assert draws_in_any_order(PlainNoise())
    assert draws_in_any_order(SecureNoise())
    drawn = PlainNoise().normal((300, 400))
    assert drawn.shape == (300, 400)
    assert abs(drawn.std() - 1.0) < 0.02


@pytest.mark.parametrize("name", ["training", "privacy"])
def test_without_the_peer_the_benchmark_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match="opacus"):
        run_benchmark(name, Options(load_settings(home=tmp_path)), QuietStages())


# The peers


def test_before_training_the_lora_changes_nothing(peer: LoraPeer, folder: Path, head: Head) -> None:
    peer.train(likes_short(), LoraRecipe(0.0, 1.0, 1), 0.0)
    expected = project_features(text_features(Backbone.load(folder), TEXTS, None), head)[:, 0]
    assert np.allclose(peer.scores(np.arange(16)), expected, atol=1e-4)


def test_without_noise_the_lora_learns_what_a_person_likes_and_ranks_unseen_texts(peer: LoraPeer) -> None:
    peer.train(likes_short(), LoraRecipe(0.02, 1.0, 20), 0.0)
    scores = peer.scores(np.arange(16))
    assert scores[[6, 7]].min() > scores[[14, 15]].max()
    flipped = likes_short()
    peer.train(PersonPairs(flipped.rejected_C, flipped.chosen_C, flipped.offsets_C), LoraRecipe(0.02, 1.0, 20), 0.0)
    scores = peer.scores(np.arange(16))
    assert scores[[6, 7]].max() < scores[[14, 15]].min()


def test_every_person_starts_from_nothing(peer: LoraPeer) -> None:
    recipe = LoraRecipe(0.02, 1.0, 3)
    peer.train(likes_short(), recipe, 0.0)
    first = moved(peer)
    peer.train(PersonPairs(np.array([9]), np.array([3]), np.zeros(1)), recipe, 0.0)
    assert not np.allclose(moved(peer), first)
    peer.train(likes_short(), recipe, 0.0)
    assert np.array_equal(moved(peer), first)


@pytest.mark.parametrize("clip_norm", [1e-3, 0.05])
def test_a_comparison_is_one_clipped_contribution_its_two_texts_together(peer: LoraPeer, clip_norm: float) -> None:
    one = PersonPairs(np.array([0]), np.array([8]), np.array([-5.0]))
    assert peer.gradient_norms(one)[0] > clip_norm
    peer.train(one, LoraRecipe(0.0, clip_norm, 1), 0.0)
    assert last_sum(peer) == pytest.approx(clip_norm, rel=2e-3)  # Opacus divides by the norm plus a millionth
    many = PersonPairs(np.zeros(30, np.int64), np.full(30, 8), np.full(30, -5.0))
    peer.train(many, LoraRecipe(0.0, clip_norm, 1), 0.0)
    assert last_sum(peer) == pytest.approx(30 * clip_norm, rel=2e-3)


def test_gradients_of_comparisons_are_those_of_the_loss(peer: LoraPeer) -> None:
    """By finite differences along the direction of Opacus's own sum."""
    pairs = PersonPairs(np.array([0, 3, 9]), np.array([8, 12, 1]), np.array([0.3, -0.2, 0.0]))

    def loss() -> float:
        margins = peer.scores(pairs.chosen_C) - peer.scores(pairs.rejected_C) + pairs.offsets_C
        return float(np.logaddexp(0.0, -margins).sum())

    peer.gradient_norms(pairs)
    sums = [parameter.summed_grad.clone() for parameter in peer.parameters]  # type: ignore[attr-defined]
    length = float(np.sqrt(sum(float((part**2).sum()) for part in sums)))
    step = 0.02 / length
    for parameter, part in zip(peer.parameters, sums, strict=True):
        parameter.data += step * part
    above = loss()
    for parameter, part in zip(peer.parameters, sums, strict=True):
        parameter.data -= 2 * step * part
    assert (above - loss()) / (2 * step) == pytest.approx(length**2, rel=0.03)


def test_the_noise_of_the_lora_is_what_its_multiplier_says(peer: LoraPeer) -> None:
    """The last step's noisy sum minus its sum."""
    clip_norm, multiplier = 0.5, 3.0
    peer.train(likes_short(), LoraRecipe(0.0, clip_norm, 1), multiplier)
    noise = np.concatenate([(p.grad - p.summed_grad).numpy().ravel() for p in peer.parameters])  # type: ignore[attr-defined,operator]
    assert noise.std() == pytest.approx(clip_norm * multiplier, rel=0.1)


def test_texts_of_all_lengths_get_their_own_scores(peer: LoraPeer) -> None:
    items = np.array([15, 0, 9, 3, 0])
    together = peer.scores(items)
    assert np.allclose(together, [peer.scores(np.array([item]))[0] for item in items], atol=1e-5)
    assert together[1] == pytest.approx(together[4])


def test_opacus_on_cached_features_learns_the_same_direction() -> None:
    rng = np.random.default_rng(0)
    taste = np.array([1.0, -2.0, 0.0])
    rows = rng.normal(size=(60, 3))
    rows *= np.sign(rows @ taste)[:, None]
    found = train_head(rows, np.zeros(60), LoraRecipe(0.1, 1.0, 20), 0.0)
    assert np.mean(rows @ found > 0) > 0.9
    noisy = train_head(rows, np.zeros(60), LoraRecipe(0.1, 1.0, 20), 50.0)
    assert np.isfinite(noisy).all()
    assert not np.allclose(noisy, found)
