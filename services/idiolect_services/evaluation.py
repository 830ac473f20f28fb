"""How well the live stack orders held-out comparisons of a data set's new people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.signals.data import EvaluationData
from idiolect_adapters.evaluation.judging import Judged, Pairs, judge
from idiolect_adapters.evaluation.oddities import oddities
from idiolect_adapters.evaluation.report import Evaluation
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.features import FeatureCache, digested
from idiolect_services.stacks import DomainStack, live_weights
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]
Scores = Callable[[NDArray[np.int32], NDArray[np.int32]], FloatArray]  # (person, item) -> score
PROJECT_AT_ONCE = 64


def evaluate_dataset(
    installation: Installation, tenant: str, dataset: str, progress: Callable[[int, int], None]
) -> Evaluation:
    """Raises NotFoundError for an unknown data set, InvalidInputError for one that was not declared public: a metric on
    private data would be a release that nobody charged."""
    info = next((info for info in installation.store.datasets(tenant) if info.name == dataset), None)
    if info is None:
        raise NotFoundError(f"tenant {tenant!r} has no data set {dataset!r}.", mend="Import it first: idiolect import.")
    if not info.public:
        raise InvalidInputError(
            f"data set {dataset!r} was not declared public.",
            mend="Metrics on private data would leak it; import with --public.",
        )
    model = installation.load_live_model()
    data = installation.store.evaluation_data(tenant, dataset)
    features_I_P = _features(installation, model, tenant, data, progress)
    stacks = _scores(installation, model, tenant, data, features_I_P)
    judged = [one for part in data.parts for one in _judged(data, part, stacks, model.temperature)]
    about = {"data set": dataset, "tenant": tenant, "global model": model.digest[:12]}
    return Evaluation(f"Evaluation of {dataset}", about, _counts(data), tuple(judged))


def _judged(
    data: EvaluationData, part: str, stacks: Sequence[tuple[str, Scores]], temperature: float
) -> Iterator[Judged]:
    """Each stack of a part, with its gain over the one below: what the domain adds, and what the user part adds."""
    pairs = data.parts[part]
    below = None
    for stack, score_P_I in stacks:
        margin_C = score_P_I(pairs.person_C, pairs.chosen_C) - score_P_I(pairs.person_C, pairs.rejected_C)
        yield judge(Pairs(part, data.items, pairs), stack, margin_C, temperature, below=below)
        below = (stack, margin_C)


def _counts(data: EvaluationData) -> dict[str, int]:
    """What can't teach an evaluation anything is still scored, but said: the figures above it may rest on it."""
    counts = {"people": len(data.people), "texts": len(data.items)}
    for part, pairs in data.parts.items():
        for name, count in oddities(pairs, data.items).items():
            counts[f"{part}: {name}"] = count
    return counts


def _features(
    installation: Installation,
    model: PreferenceModel,
    tenant: str,
    data: EvaluationData,
    progress: Callable[[int, int], None],
) -> FloatArray:
    cache = FeatureCache(model, max_bytes=installation.settings.feature_cache_bytes)
    parts = [np.zeros((0, cache.width))]
    for start in range(0, len(data.items), PROJECT_AT_ONCE):
        some = data.items[start : start + PROJECT_AT_ONCE]
        parts.append(cache.project(tenant, [(digested(item.prompt), digested(item.text)) for item in some]))
        progress(start + len(some), len(data.items))
    return np.concatenate(parts)


def _scores(
    installation: Installation, model: PreferenceModel, tenant: str, data: EvaluationData, features_I_P: FloatArray
) -> list[tuple[str, Scores]]:
    global_I = features_I_P[:, 0]
    under_I_P = DomainStack(installation, model, tenant).applied(data.items, features_I_P)
    domain_I, taste_I_K = under_I_P[:, 0], under_I_P[:, 1 : 1 + model.user_rank]
    weights_P_K = np.stack([_weights(installation, model, tenant, person) for person in data.people] or [np.zeros(0)])
    return [
        ("global", lambda _person, item: global_I[item]),
        ("+ domain", lambda _person, item: domain_I[item]),
        ("+ user", lambda person, item: domain_I[item] + (taste_I_K[item] * weights_P_K[person]).sum(axis=1)),
    ]


def _weights(installation: Installation, model: PreferenceModel, tenant: str, person: str) -> FloatArray:
    resolved = installation.store.resolve(tenant, person, None).user
    weights_K = live_weights(installation, tenant, resolved) if resolved else None
    return np.zeros(model.user_rank) if weights_K is None else weights_K
