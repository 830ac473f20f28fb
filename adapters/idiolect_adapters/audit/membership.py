"""Membership inference: does a released user adapter of ordinary data tell whether one comparison was in it?

The strongest form of the attack (likelihood ratio, Carlini et al. 2022, "Membership Inference Attacks From First
Principles"): the attacker knows the mechanism, all other comparisons of the person and the target, trains shadow
adapters with and without it, fits a Gaussian to each set, and scores the released adapter by the ratio.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from idiolect.errors import InvalidInputError
from idiolect.privacy.accountant import check_delta, check_epsilon, noise_multiplier_for
from idiolect_adapters.audit.bounds import lower_limit, upper_limit
from idiolect_adapters.audit.user_canaries import UserTraining
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import typical_curvature
from idiolect_adapters.training.user import PaddedComparisons, train_users

FloatArray = NDArray[np.float64]

RANK, COMPARISONS, STEPS, PRIOR = 12, 30, 5, 8.0
FALSE_ALARM_RATES = (0.01, 0.001)
MIN_SHADOWS = 200
CONFIDENCE = 0.999


@dataclass(frozen=True, slots=True)
class AttackPoint:
    """One point of the attack's ROC curve, beside what the claim allows there.

    The true rates are, at the confidence of the report, at least `tpr_at_least` and at most `fpr_at_most`.
    `allowed` is e^epsilon * false_positive_rate + delta; `allowed_gdp` is what a Gaussian mechanism of this claim
    allows; `refuted` compares the sure rates with the former.
    """

    false_positive_rate: float
    true_positive_rate: float
    tpr_at_least: float
    fpr_at_most: float
    allowed: float
    allowed_gdp: float
    refuted: bool


@dataclass(frozen=True, slots=True)
class MembershipReport:
    epsilon_claimed: float
    delta: float
    targets: int
    trials: int  # scored adapters with the target, and as many without
    confidence: float
    auc: float
    points: tuple[AttackPoint, ...]

    @property
    def caught(self) -> bool:
        return any(point.refuted for point in self.points)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"caught": self.caught}


@dataclass(frozen=True, slots=True)
class _Person:
    """Comparisons of a person with a taste of their own; the first is the target."""

    differences_C_K: FloatArray
    margins_C: FloatArray


def _person(rng: np.random.Generator) -> _Person:
    """Whitened features; the chosen response is drawn by Bradley-Terry from margin and taste."""
    differences_C_K = rng.normal(size=(COMPARISONS, RANK)) * np.sqrt(2.0)
    margins_C = rng.normal(size=COMPARISONS)
    wanted_C = margins_C + differences_C_K @ rng.normal(size=RANK)
    sign_C = np.where(rng.logistic(size=COMPARISONS) < wanted_C, 1.0, -1.0)
    return _Person(differences_C_K * sign_C[:, None], margins_C * sign_C)


def _recipe(people: list[_Person]) -> Recipe:
    """Chosen on other people, as for a shipped model: clip at the median norm, curvature of typical comparisons."""
    differences = np.concatenate([person.differences_C_K for person in people])
    margins = np.concatenate([person.margins_C for person in people])
    norms = np.linalg.norm(differences, axis=1) / (1.0 + np.exp(margins))
    return Recipe(float(np.median(norms)), PRIOR, STEPS, COMPARISONS * typical_curvature(differences, margins))


@dataclass(frozen=True, slots=True)
class _Claim:
    epsilon: float
    delta: float
    mu: float

    def allowed(self, false_positive_rate: float) -> float:
        """The most true positives of any attack (Kairouz et al. 2015, Theorem 2.1)."""
        return min(1.0, math.exp(min(self.epsilon, 700.0)) * false_positive_rate + self.delta)


def membership_inference(
    epsilon: float,
    delta: float,
    *,
    targets: int = 8,
    shadows: int = 2_000,
    seed: int = 0,
    train: UserTraining = train_users,
) -> MembershipReport:
    """`shadows` adapters with and as many without each target; half fit the attack, half are attacked.

    `seed` makes the people, never the noise. InvalidInputError for settings that are not usable.
    """
    check_epsilon(epsilon), check_delta(delta)
    if targets < 1 or shadows < MIN_SHADOWS:
        raise InvalidInputError(
            f"{targets} targets with {shadows} shadows show nothing.", mend=f"Use 1 and {MIN_SHADOWS} or more."
        )
    rng = np.random.default_rng(seed)
    recipe = _recipe([_person(rng) for _ in range(100)])
    multiplier = noise_multiplier_for(epsilon, delta, recipe.steps)
    scored = [_attack(train, _person(rng), recipe, multiplier, shadows) for _ in range(targets)]
    with_N, without_N = (np.concatenate(scores) for scores in zip(*scored, strict=True))
    claim = _Claim(epsilon, delta, math.sqrt(recipe.steps) / multiplier)
    points = tuple(_point(with_N, without_N, rate, claim) for rate in FALSE_ALARM_RATES)
    return MembershipReport(
        epsilon, delta, targets, len(with_N), CONFIDENCE, area_under_curve(with_N, without_N), points
    )


def _attack(
    train: UserTraining, person: _Person, recipe: Recipe, multiplier: float, shadows: int
) -> tuple[FloatArray, FloatArray]:
    """Log likelihood ratios of the attacked half, with and without the target."""
    with_N_K, without_N_K = (
        train(_with_target(person, there, shadows), recipe, multiplier, SecureNoise()) for there in (True, False)
    )
    half = shadows // 2
    fit_with, fit_without = _fit(with_N_K[:half]), _fit(without_N_K[:half])

    def scores(adapters_N_K: FloatArray) -> FloatArray:
        return _log_density(adapters_N_K, *fit_with) - _log_density(adapters_N_K, *fit_without)

    return scores(with_N_K[half:]), scores(without_N_K[half:])


def _with_target(person: _Person, there: bool, count: int) -> PaddedComparisons:
    """The person `count` times over; the target keeps its weight or loses it."""
    weights_C = np.ones(COMPARISONS)
    weights_C[0] = float(there)
    return PaddedComparisons(
        np.broadcast_to(person.differences_C_K, (count, COMPARISONS, RANK)),
        np.broadcast_to(person.margins_C, (count, COMPARISONS)),
        np.broadcast_to(weights_C, (count, COMPARISONS)),
    )


def _fit(adapters_N_K: FloatArray) -> tuple[FloatArray, FloatArray]:
    return adapters_N_K.mean(axis=0), np.cov(adapters_N_K, rowvar=False)


def _log_density(adapters_N_K: FloatArray, mean_K: FloatArray, covariance_K_K: FloatArray) -> FloatArray:
    """Up to a constant."""
    away_N_K = adapters_N_K - mean_K
    distances_N = np.einsum("nk,nk->n", away_N_K @ np.linalg.inv(covariance_K_K), away_N_K)
    densities_N: FloatArray = -0.5 * (distances_N + np.linalg.slogdet(covariance_K_K)[1])
    return densities_N


def area_under_curve(with_N: FloatArray, without_N: FloatArray) -> float:
    """The chance that an adapter with the target scores above one without; ties count half (Mann-Whitney)."""
    ordered_N = np.sort(without_N)
    below_N = np.searchsorted(ordered_N, with_N, side="left") + np.searchsorted(ordered_N, with_N, side="right")
    return float(below_N.mean()) / (2 * len(without_N))


def _point(with_N: FloatArray, without_N: FloatArray, rate: float, claim: _Claim) -> AttackPoint:
    """The threshold is an order statistic of the scores without the target. The true rate above it follows a Beta law,
    whose quantile the Clopper-Pearson limit is; so it holds though the same scores chose the threshold."""
    alarms = int(rate * len(without_N))
    threshold = np.sort(without_N)[len(without_N) - 1 - alarms]
    hits = int((with_N > threshold).sum())
    alpha = (1.0 - CONFIDENCE) / (2 * len(FALSE_ALARM_RATES))
    tpr = float(lower_limit(np.array([hits]), len(with_N), alpha)[0])
    fpr = float(upper_limit(np.array([alarms]), len(without_N), alpha)[0])
    return AttackPoint(
        false_positive_rate=rate,
        true_positive_rate=hits / len(with_N),
        tpr_at_least=tpr,
        fpr_at_most=fpr,
        allowed=claim.allowed(rate),
        allowed_gdp=float(ndtr(ndtri(rate) + claim.mu)),
        refuted=tpr > claim.allowed(fpr),
    )
