"""Two people and a few documents that show what personal ranking means: the pair whose tastes differ most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import NotFoundError
from idiolect.ids import text_digest
from idiolect.signals.comparison import PreferenceDataset
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.features import FeatureCache, digested
from idiolect_services.stacks import DomainStack, live_weights
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]

MAX_PEOPLE, MAX_ITEMS, SHOWN = 60, 40, 6
MAX_TEXT_CHARS = 400  # short enough to read on a terminal


@dataclass(frozen=True, slots=True)
class Showcase:
    users: tuple[str, str]  # the data set's own ids
    domain: str
    query: str
    documents: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Showcase:
        first, second = data["users"]
        return Showcase((first, second), data["domain"], data["query"], tuple(data["documents"]))


@dataclass(frozen=True, slots=True)
class _Found:
    correlation: float
    showcase: Showcase


def choose_showcase(
    installation: Installation, model: PreferenceModel, features: FeatureCache, tenant: str, dataset: PreferenceDataset
) -> Showcase:
    """Raises NotFoundError if no two people with adapters rank anything differently."""
    best: _Found | None = None
    weights = _weights(installation, tenant, dataset)
    for (domain, query), items in _groups(dataset).items():
        people = [person for person in _people_of(dataset, domain) if person in weights][:MAX_PEOPLE]
        if len(people) < 2:
            continue
        chosen = [dataset.items[i] for i in items]
        features_I_P = features.project(tenant, [(digested(item.prompt), digested(item.text)) for item in chosen])
        features_I_P = DomainStack(installation, model, tenant).applied(chosen, features_I_P)
        base_I, taste_I_K = features_I_P[:, 0], features_I_P[:, 1 : 1 + model.user_rank]
        scores_P_I = base_I + np.stack([weights[person] for person in people]) @ taste_I_K.T
        texts = [item.text for item in chosen]
        found = _most_different(people, scores_P_I, texts, domain, query)
        if found is not None and (best is None or found.correlation < best.correlation):
            best = found
    if best is None:
        raise NotFoundError(
            "no two people with an adapter rank anything differently.",
            mend="Start with a fresh --home: the privacy budgets of this one may be spent.",
        )
    return best.showcase


def _weights(installation: Installation, tenant: str, dataset: PreferenceDataset) -> dict[str, FloatArray]:
    found = {}
    for person in sorted(dataset.new_people):
        resolved = installation.store.resolve(tenant, installation.pseudonym(tenant, person), None).user
        weights_K = live_weights(installation, tenant, resolved) if resolved else None
        if weights_K is not None:
            found[person] = weights_K
    return found


def _groups(dataset: PreferenceDataset) -> dict[tuple[str, str], list[int]]:
    """At most MAX_ITEMS short items per (domain, prompt), chosen by hash; groups with at least three."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(dataset.items):
        if len(item.text) <= MAX_TEXT_CHARS:
            groups[item.domain, item.prompt].append(index)
    few = {
        key: sorted(some, key=lambda i: text_digest(dataset.items[i].text))[:MAX_ITEMS] for key, some in groups.items()
    }
    return {key: some for key, some in few.items() if len(some) >= 3}


def _people_of(dataset: PreferenceDataset, domain: str) -> list[str]:
    return sorted({pair.person for pair in dataset.adaptation if dataset.items[pair.chosen].domain == domain})


def _most_different(
    people: Sequence[str], scores_P_I: FloatArray, texts: Sequence[str], domain: str, query: str
) -> _Found | None:
    ranks_P_I = scores_P_I.argsort(axis=1).argsort(axis=1).astype(np.float64)
    correlation_P_P: FloatArray = np.asarray(np.corrcoef(ranks_P_I))
    first, second = np.unravel_index(int(np.argmin(correlation_P_P)), correlation_P_P.shape)
    # Of many documents show those on which the two are furthest apart, in both directions.
    gap_I = scores_P_I[first] - scores_P_I[second]
    order = np.argsort(gap_I)
    shown = np.unique(np.concatenate([order[: SHOWN // 2], order[-(SHOWN // 2) :]]))
    if scores_P_I[first][shown].argmax() == scores_P_I[second][shown].argmax():
        return None
    users = (people[int(first)], people[int(second)])
    showcase = Showcase(users, domain, query, tuple(texts[int(i)] for i in shown))
    return _Found(float(correlation_P_P[first, second]), showcase)
