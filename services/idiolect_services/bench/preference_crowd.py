"""The other half of the preference benchmark: UKPConvArg, the protocol with published peers.

The shared model here is no tuned encoder: tuned without each group of folds, the small one gains nothing on folds that
it has not seen (deploy/decisions/0039-what-limits-accuracy.md). It is a Gaussian process on features from inside the
frozen one, with a personal part for every worker. The baselines read the same features and the same folds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from idiolect.signals.data import Comparisons
from idiolect.signals.importers.ukpconvarg import CrowdLabels, load_crowd_labels
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.evaluation.accuracy import bootstrap_mean
from idiolect_adapters.evaluation.baselines_linear import fit_global_linear, fit_personal_linear
from idiolect_adapters.evaluation.baselines_mixture import Mixture, fit_lore, fit_pal
from idiolect_adapters.evaluation.baselines_pairs import Baseline
from idiolect_adapters.evaluation.calibration import expected_calibration_error
from idiolect_adapters.evaluation.folds import (
    LEAST_PROBABILITY,
    FoldProtocol,
    FoldScores,
    Predictor,
    cross_validated,
    fold_protocol,
    fold_scores,
)
from idiolect_adapters.evaluation.kernel_preference import ItemKernels, KernelOptions, item_kernels, predict
from idiolect_adapters.evaluation.layers import inner_features
from idiolect_adapters.surface import surface_features
from idiolect_services.bench.form import Measured
from idiolect_services.training_runs import Stages

FloatArray = NDArray[np.float64]

KIND = "ukpconvarg"
GROUPS: Mapping[str, int] = {"all": 0, "over_50": 50}  # workers with more labels than this outside of the fold
MODELS = ("longer", "linear", "linear_per_person", "lore", "pal", "shared", "personal")
PEER = "linear"
CALIBRATED = ("shared", "personal")
ACCURACY, ENTROPY, ERROR = "accuracy", "cross_entropy", "ece"

STRENGTHS = (1e-3, 3e-3, 1e-2)
PERSONAL_PRIORS = (3.0, 30.0)
MIXTURE_RANK = 4
SHARED_SCALES = (0.7, 1.4)
PERSONAL_SCALES = (0.05, 0.1, 0.2)


def metrics() -> list[str]:
    return [
        f"{KIND}_{group}_{model}_{what}"
        for group in GROUPS
        for model in MODELS
        for what in (ACCURACY, ENTROPY, *((ERROR,) if model in CALIBRATED else ()))
    ] + [f"{KIND}_seconds"]


def measure_crowd(folder: Path, backbone: Path, stages: Stages) -> Iterator[Measured]:
    started = time.monotonic()
    crowd = load_crowd_labels(folder, stages.stage(f"reading {KIND}"))
    texts = [item.text for item in crowd.items]
    layers_I_F = inner_features(Backbone.load(backbone), texts, stages.stage(f"reading all texts of {KIND}"))
    yield from measure_labels(crowd, layers_I_F, surface_features(texts), stages)
    yield Measured(f"{KIND}_seconds", "s", time.monotonic() - started)


def measure_labels(
    crowd: CrowdLabels, layers_I_F: NDArray[np.float32], surface_I_S: NDArray[np.float32], stages: Stages
) -> Iterator[Measured]:
    """Every model of `MODELS` for every group of workers, each beside the linear model on the same features."""
    protocol = fold_protocol(crowd)
    families = candidates(layers_I_F, surface_I_S, protocol)
    predicted = {
        model: cross_validated(protocol, families[model], stages.stage(f"{KIND}: {model}")) for model in MODELS
    }
    for group, more_than in GROUPS.items():
        scores = {model: fold_scores(protocol, predicted[model], more_than=more_than) for model in MODELS}
        for model in MODELS:
            yield from _measured(f"{KIND}_{group}_{model}", scores[model], None if model == PEER else scores[PEER])
            if model in CALIBRATED:
                yield _calibration(f"{KIND}_{group}_{model}_{ERROR}", scores[model])


def candidates(
    layers_I_F: NDArray[np.float32], surface_I_S: NDArray[np.float32], protocol: FoldProtocol
) -> Mapping[str, Sequence[Predictor]]:
    """What cross-validation may choose from, by model."""
    kernels = item_kernels(layers_I_F, surface_I_S)
    features_I_F = np.concatenate([layers_I_F, surface_I_S], axis=1)

    def linear(strength: float) -> Predictor:
        return _adapted(lambda train: fit_global_linear(features_I_F, train, strength=strength))

    def per_person(prior: float) -> Predictor:
        def fit(train: Comparisons) -> Baseline:
            shared = fit_global_linear(features_I_F, train, strength=STRENGTHS[1])
            return fit_personal_linear(features_I_F, shared, prior=prior)

        return _adapted(fit)

    def mixture(fit: Callable[..., Mixture]) -> Predictor:
        return _adapted(
            lambda train: fit(features_I_F, train, protocol.people, rank=MIXTURE_RANK, strength=STRENGTHS[0])
        )

    return {
        "longer": [_longer(np.array([len(item.text) for item in protocol.items]))],
        "linear": [linear(strength) for strength in STRENGTHS],
        "linear_per_person": [per_person(prior) for prior in PERSONAL_PRIORS],
        "lore": [mixture(fit_lore)],
        "pal": [mixture(fit_pal)],
        "shared": [_kernel(kernels, KernelOptions(scale, 0.0)) for scale in SHARED_SCALES],
        "personal": [
            _kernel(kernels, KernelOptions(scale, personal)) for scale in SHARED_SCALES for personal in PERSONAL_SCALES
        ],
    }


def _longer(length_I: NDArray[np.int64]) -> Predictor:
    """In characters, as it was published; as sure of itself as it is right, about 70%."""

    def predicted(_train: Comparisons, test: Comparisons) -> FloatArray:
        probability_C: FloatArray = 0.5 + 0.2 * np.sign(length_I[test.chosen_C] - length_I[test.rejected_C])
        return probability_C

    return predicted


def _kernel(kernels: ItemKernels, options: KernelOptions) -> Predictor:
    return lambda train, test: predict(kernels, train, test, options)


def _adapted(fit: Callable[[Comparisons], Baseline]) -> Predictor:
    """The people of a test fold are those of training: what they said there is what they adapt to."""

    def predicted(train: Comparisons, test: Comparisons) -> FloatArray:
        people = np.unique(test.person_C)
        said = train.where(np.isin(train.person_C, people))
        scores_P_I = fit(train).scores(_renumbered(said, people), len(people))
        own = _renumbered(test, people)
        margin_C = scores_P_I[own.person_C, own.chosen_C] - scores_P_I[own.person_C, own.rejected_C]
        probability_C: FloatArray = expit(margin_C)
        return probability_C

    return predicted


def _renumbered(pairs: Comparisons, people: NDArray[np.int32]) -> Comparisons:
    person_C = np.searchsorted(people, pairs.person_C).astype(np.int32)
    return Comparisons(person_C, pairs.chosen_C, pairs.rejected_C, pairs.weight_C)


def _measured(name: str, scores: FoldScores, peer: FoldScores | None) -> Iterator[Measured]:
    for what, values_F in ((ACCURACY, scores.accuracy_F), (ENTROPY, scores.cross_entropy_F)):
        found = bootstrap_mean(values_F)
        beside: tuple[str | None, float | None] = (None, None)
        if peer is not None:
            beside = (PEER, float((peer.accuracy_F if what == ACCURACY else peer.cross_entropy_F).mean()))
        yield Measured(f"{name}_{what}", what.replace("_", " "), found.value, found.low, found.high, *beside)


def _calibration(metric: str, scores: FoldScores) -> Measured:
    stated_C = np.clip(scores.probability_C, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return Measured(metric, "calibration error", expected_calibration_error(logit(stated_C), 1.0))
