"""The baselines on the same people, pairs and features as the stacks; their constants chosen on training people.

A tenth of the training people (at most TUNING_PEOPLE) is left out of every fit; for them some items are adapted to and
others predicted, as for the new people, and the candidate with the best mean accuracy over TUNING_SIZES is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.evaluation.accuracy import Accuracy, bootstrap_mean, person_accuracies
from idiolect_adapters.evaluation.baselines_items import CollaborativeFilter, fit_collaborative
from idiolect_adapters.evaluation.baselines_linear import fit_global_linear, fit_personal_linear
from idiolect_adapters.evaluation.baselines_mixture import fit_lore, fit_pal
from idiolect_adapters.evaluation.baselines_pairs import Baseline
from idiolect_adapters.evaluation.splits import NewPeople
from idiolect_adapters.training.pairs import groups, person_pairs
from idiolect_adapters.training.tuning import TuningPairs, split_pairs

FloatArray = NDArray[np.float64]
Kind = TypeVar("Kind", bound=Baseline)

TUNING_SHARE, TUNING_PEOPLE = 0.1, 300
TUNING_SIZES = (10, 30)
PAIRS_PER_PERSON = 30
STRENGTHS = (1e-5, 1e-4, 1e-3)
PERSONAL_PRIORS = (3.0, 30.0, 300.0)
RANKS = (3, 8)
ITEM_PENALTIES = (3.0, 10.0)
ITEM_PRIORS = (0.7, 1.5)

PERSONAL = ("linear_per_person", "lore", "pal")
BY_ITEM_ID = "collaborative"
GLOBAL = "global_linear"


@dataclass(frozen=True, slots=True)
class BaselineScore:
    """`pairs` 0: it does not adapt to people."""

    name: str
    pairs: int
    part: str
    accuracy: Accuracy

    @property
    def metric(self) -> str:
        return baseline_metric(self.name, self.pairs)


def baseline_metric(name: str, pairs: int) -> str:
    return f"{name}_n{pairs}" if pairs else name


def baselines_of(part: str, sizes: Sequence[int], known_part: str) -> tuple[str, ...]:
    """Names of the rows of a part: only known items have anything that an item id can say."""
    personal = (*PERSONAL, BY_ITEM_ID) if part == known_part else PERSONAL
    return (GLOBAL, *(baseline_metric(name, size) for name in personal for size in sizes))


def baseline_scores(
    features_I_F: NDArray[np.floating], data: SharedData, new: NewPeople, sizes: Sequence[int], known_part: str
) -> Iterator[BaselineScore]:
    """Every baseline, on every part where it can say anything."""
    chosen = choose_baselines(features_I_F, data)
    for name, baseline in chosen.items():
        for size in (0,) if name == GLOBAL else sizes:
            scores_P_I = baseline.scores(first_pairs(new.adaptation, size), len(new.people))
            for part, pairs in new.parts.items():
                if name != BY_ITEM_ID or part == known_part:
                    yield BaselineScore(name, size, part, bootstrap_mean(_accuracies(scores_P_I, pairs)))


def choose_baselines(features_I_F: NDArray[np.floating], data: SharedData) -> Mapping[str, Baseline]:
    """The best candidate of each kind."""
    tuning_P = _tuning_people(len(data.people))
    rng = np.random.default_rng(0)
    group_I = groups(data.items)
    pairs = person_pairs(data.ratings, data.comparisons, group_I, limit=PAIRS_PER_PERSON, rng=rng)
    train = pairs.where(~tuning_P[pairs.person_C])
    held_out = split_pairs(pairs.where(tuning_P[pairs.person_C]), group_I, rng)
    people = len(data.people)
    shared = _best([fit_global_linear(features_I_F, train, strength=s) for s in STRENGTHS], held_out)
    return {
        GLOBAL: shared,
        "linear_per_person": _best(
            [fit_personal_linear(features_I_F, shared, prior=p) for p in PERSONAL_PRIORS], held_out
        ),
        "lore": _best(
            [fit_lore(features_I_F, train, people, rank=r, strength=s) for r in RANKS for s in STRENGTHS[:2]],
            held_out,
        ),
        "pal": _best(
            [fit_pal(features_I_F, train, people, rank=r, strength=s) for r in RANKS for s in STRENGTHS[:2]],
            held_out,
        ),
        BY_ITEM_ID: _best(_collaborative_candidates(data, tuning_P), held_out),
    }


def _collaborative_candidates(data: SharedData, tuning_P: NDArray[np.bool_]) -> list[CollaborativeFilter]:
    kept_R = ~tuning_P[data.ratings.person_R]
    ratings = Ratings(data.ratings.person_R[kept_R], data.ratings.item_R[kept_R], data.ratings.value_R[kept_R])
    comparisons = data.comparisons.where(~tuning_P[data.comparisons.person_C])
    fitted = [
        fit_collaborative(ratings, comparisons, len(data.items), len(data.people), penalty=penalty)
        for penalty in ITEM_PENALTIES
    ]
    return [one.with_prior(prior) for one in fitted for prior in ITEM_PRIORS]


def first_pairs(pairs: Comparisons, limit: int) -> Comparisons:
    """The first `limit` pairs of each person, grouped by person."""
    order = np.argsort(pairs.person_C, kind="stable")
    people = pairs.person_C[order]
    rank = np.arange(len(people)) - np.searchsorted(people, people)
    kept = order[rank < limit]
    return Comparisons(pairs.person_C[kept], pairs.chosen_C[kept], pairs.rejected_C[kept], pairs.weight_C[kept])


def _tuning_people(people: int) -> NDArray[np.bool_]:
    mask_P = np.zeros(people, dtype=np.bool_)
    count = min(TUNING_PEOPLE, round(TUNING_SHARE * people))
    mask_P[np.random.default_rng(0).choice(people, count, replace=False)] = True
    return mask_P


def _best(candidates: Sequence[Kind], held_out: TuningPairs) -> Kind:
    """Scores only the tuning people: their rows are renumbered, so that no [all people, items] array is made."""
    adapt, test = (_renumbered(pairs, held_out.people) for pairs in (held_out.adapt, held_out.test))
    values = []
    for candidate in candidates:
        found = [
            _accuracies(candidate.scores(first_pairs(adapt, size), len(held_out.people)), test) for size in TUNING_SIZES
        ]
        values.append(np.mean([share.mean() if len(share) else 0.0 for share in found]))
    return candidates[int(np.argmax(values))]


def _renumbered(pairs: Comparisons, people: NDArray[np.int64]) -> Comparisons:
    return Comparisons(
        np.searchsorted(people, pairs.person_C).astype(np.int32), pairs.chosen_C, pairs.rejected_C, pairs.weight_C
    )


def _accuracies(scores_P_I: FloatArray, pairs: Comparisons) -> FloatArray:
    margin_C = scores_P_I[pairs.person_C, pairs.chosen_C] - scores_P_I[pairs.person_C, pairs.rejected_C]
    return person_accuracies(margin_C, pairs.person_C)
