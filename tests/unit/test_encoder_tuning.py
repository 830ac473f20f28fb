"""An encoder that is moved towards seeing as alike what people judge alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from idiolect.errors import ConfigurationError
from idiolect.signals.data import Ratings, SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import load_model
from idiolect_adapters.training import encoder_tuning
from idiolect_adapters.training.build import build_global
from idiolect_adapters.training.encoder_tuning import Surprise, tuned_weights, with_weights
from idiolect_adapters.training.global_model import GlobalOptions, Lesson, learn_votes
from idiolect_adapters.training.kernel_fit import START, negative_log_likelihood, parts_between, targets_of
from tasteful_world import make_world, shared_data
from tiny_models import save_tiny

OPTIONS = GlobalOptions(user_rank=2, domain_rank=3, tune=True)
CPU = torch.device("cpu")


class Quiet:
    def stage(self, _name: str) -> Callable[[int, int], None]:
        return lambda _done, _total: None


def world(people: int = 12) -> SharedData:
    return shared_data(make_world(people, prompts=6), list(range(people)))


def texts_of(data: SharedData) -> list[tuple[str, str]]:
    return [(item.prompt, item.text) for item in data.items]


def lesson_for(backbone: Backbone, data: SharedData) -> Lesson:
    everybody_P = np.ones(len(data.people), bool)
    return learn_votes(backbone.features(texts_of(data)), data, everybody_P, OPTIONS)


def surprise_at(lesson: Lesson, backbone: Backbone) -> float:
    """Of all items, seen by `backbone`."""
    targets = targets_of(lesson.votes, lesson.factors)
    seen = targets.item_N
    features = backbone.features([lesson.pairs[item] for item in seen]) - lesson.lens.mean_H
    parts = parts_between(lesson.views, lesson.views, seen, seen)
    rows = np.arange(len(seen))
    return float(Surprise(targets, lesson.theta_O_A, CPU)(rows, torch.from_numpy(features), parts))


def test_the_loss_is_the_likelihood_that_the_kernel_is_fitted_by(tiny_bert: Path) -> None:
    """Against the plain reference in numpy, for the encoder that the lesson was learned with."""
    backbone = Backbone.load(tiny_bert)
    lesson = lesson_for(backbone, world())
    targets = targets_of(lesson.votes, lesson.factors)
    parts = parts_between(lesson.views, lesson.views, targets.item_N, targets.item_N)
    share_O = np.maximum((targets.scale_O / targets.scale_O[-1]) ** 2, 0.1)
    expected = 0.0
    for output, share in enumerate(share_O / share_O.sum()):
        theta = lesson.theta_O_A[output]
        value, _ = negative_log_likelihood(theta, parts, targets.mean_N_O[:, output], targets.noise_N_O[:, output])
        prior = 0.5 * float(((theta - START) ** 2).sum()) / 2.0**2
        expected += share * (value - prior) / len(targets.item_N)
    assert surprise_at(lesson, backbone) == pytest.approx(expected, rel=1e-4)


def test_a_tuned_encoder_is_less_surprised_by_what_people_judge(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_tuning, "RATE", 3e-3)  # four steps must be enough here
    backbone = Backbone.load(tiny_bert)
    lesson = lesson_for(backbone, world())
    steps: list[tuple[int, int]] = []
    tuned = with_weights(backbone, tuned_weights(backbone, lesson, 0, lambda *at: steps.append(at)))
    assert surprise_at(lesson, tuned) < surprise_at(lesson, backbone) - 0.01
    assert steps == [(step + 1, len(steps)) for step in range(len(steps))]


def test_tuning_leaves_the_encoder_it_began_with_and_the_embeddings_alone(tiny_bert: Path) -> None:
    backbone, probe = Backbone.load(tiny_bert), [("how?", "warm reply"), ("", "stone")]
    before = backbone.features(probe)
    lesson = lesson_for(backbone, world())
    drawn = torch.random.get_rng_state()
    weights = tuned_weights(backbone, lesson, 0, lambda *_: None)
    assert torch.equal(drawn, torch.random.get_rng_state()), "others' draws are not touched"
    tuned = with_weights(backbone, weights)
    assert np.array_equal(backbone.features(probe), before)
    assert not np.array_equal(tuned.features(probe), before)
    words = [encoder.get_input_embeddings().weight for encoder in (backbone.encoder, tuned.encoder)]
    assert torch.equal(*words)


def test_the_same_seed_tunes_to_the_same_bits(tiny_bert: Path) -> None:
    backbone = Backbone.load(tiny_bert)
    lesson = lesson_for(backbone, world())
    first, again, other = (tuned_weights(backbone, lesson, seed, lambda *_: None) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["modernbert", "mpnet", "qwen3"])
def test_every_kind_of_backbone_can_be_tuned(tmp_path: Path, kind: str) -> None:
    backbone = Backbone.load(save_tiny(tmp_path, kind))
    data = world(8)
    tuned = with_weights(backbone, tuned_weights(backbone, lesson_for(backbone, data), 0, lambda *_: None))
    features = tuned.features(texts_of(data))
    assert np.isfinite(features).all()
    assert not np.array_equal(features, backbone.features(texts_of(data)))


def test_a_model_with_a_tuned_encoder_is_whole_and_says_so(tiny_bert: Path, tmp_path: Path) -> None:
    data = world()
    model = build_global(tmp_path, Backbone.load(tiny_bert), data, OPTIONS, {}, Quiet())
    loaded = load_model(tmp_path, model.digest)
    assert loaded.card["training"]["tuned"] is True
    texts = texts_of(data)
    assert np.array_equal(loaded.project(texts), model.project(texts))
    assert not np.array_equal(loaded.backbone.features(texts), Backbone.load(tiny_bert).features(texts))


def test_one_pair_of_one_person_can_be_tuned_on(tiny_bert: Path, tmp_path: Path) -> None:
    """Asked for, it is done, however little it is."""
    some = make_world(3, prompts=2)
    said = some.comparisons([0], 1, np.random.default_rng(0))
    nothing = Ratings(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    data = SharedData(some.items, ("a", "b", "c"), nothing, said)
    model = build_global(tmp_path, Backbone.load(tiny_bert), data, OPTIONS, {}, Quiet())
    assert np.isfinite(model.project(texts_of(data))).all()


def test_an_encoder_in_another_precision_is_not_tuned(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="int8"):
        build_global(tmp_path, Backbone.load(tiny_bert, "int8"), world(), OPTIONS, {}, Quiet())
    assert not list(tmp_path.iterdir())
