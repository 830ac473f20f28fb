"""How well the live stack orders held-out comparisons of a data set's new people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version as package_version

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.privacy.budget import plan_run
from idiolect.privacy.policy import delta_of
from idiolect.signals.data import EvaluationData
from idiolect_adapters.evaluation.judging import Judged, Pairs, judge
from idiolect_adapters.evaluation.oddities import oddities
from idiolect_adapters.evaluation.report import Evaluation
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.features import FeatureCache, digested
from idiolect_adapters.runtime.loras import Lora
from idiolect_adapters.training.clip_noise import SecureNoise
from idiolect_adapters.training.user import pad_comparisons, train_users
from idiolect_services.stacks import DomainStack, live_adapter
from idiolect_services.trainer import MAX_COMPARISONS
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]
Scores = Callable[[IntArray, IntArray], FloatArray]  # (person, item) -> score, or one for each draw of the noise
PROJECT_AT_ONCE = 64
SERVED = ("global", "+ domain", "+ user")
SHARED = SERVED[:2]  # what a gain is measured over
# At five pairs and epsilon 1 one draw says little: a mean gain then moves by half a point and more from draw to draw.
TRIAL_DRAWS = 16
GAVE = "so many pairs"


def evaluate_dataset(
    installation: Installation,
    tenant: str,
    dataset: str,
    progress: Callable[[int, int], None],
    pairs: Sequence[int] = (),
) -> Evaluation:
    """Every stack that is live; and for each n of `pairs` what user adapters from everybody's first n comparisons in
    the data set would do at the epsilon of the settings, trained for this alone and thrown away: means of TRIAL_DRAWS.

    Raises NotFoundError for an unknown data set, InvalidInputError for one that holds nobody out, or that was not
    declared public: a metric on private data would be a release that nobody charged.
    """
    pairs = tuple(dict.fromkeys(pairs))
    if not all(1 <= count <= MAX_COMPARISONS for count in pairs):
        raise InvalidInputError(
            f"adapters are trained on 1 to {MAX_COMPARISONS} comparisons.", mend="Correct the numbers of pairs."
        )
    info = next((info for info in installation.store.datasets(tenant) if info.name == dataset), None)
    if info is None:
        raise NotFoundError(f"tenant {tenant!r} has no data set {dataset!r}.", mend="Import it first: idiolect import.")
    if not info.public:
        raise InvalidInputError(
            f"data set {dataset!r} was not declared public.",
            mend="Metrics on private data would leak it; import with --public.",
        )
    data = installation.store.evaluation_data(tenant, dataset)
    _check_held_out(data, dataset, pairs)
    model = installation.load_live_model()
    features_I_P = _features(installation, model, tenant, data, progress)
    live = _Live(installation, model, tenant, data, features_I_P)
    stacks = [*live.stacks(), *(live.trial(count) for count in pairs)]
    judged = [one for part in data.parts for one in _judged(data, part, stacks, model.temperature)]
    about = {
        "data set": dataset,
        "tenant": tenant,
        "global model": model.digest[:12],
        "made": f"{installation.clock.now():%Y-%m-%d %H:%M} UTC by idiolect {package_version('idiolect')}",
        "live user adapters": live.told(),
    }
    if pairs:
        about["epsilon of adapters from so many pairs"] = f"{installation.settings.user_epsilon:g}"
        about["draws of their noise, averaged"] = str(TRIAL_DRAWS)
        about[GAVE] = _who_gave(data, pairs)
    return Evaluation(f"Evaluation of {dataset}", about, _counts(data), tuple(judged))


def _check_held_out(data: EvaluationData, dataset: str, pairs: Sequence[int]) -> None:
    if not data.parts:
        raise InvalidInputError(
            f"data set {dataset!r} holds nobody out, so there is nothing to evaluate on.",
            mend="An importer holds out a tenth of the people who said enough: import more of them, or who said more.",
        )
    if pairs and not len(data.adaptation):
        raise InvalidInputError(
            f"nobody who is held out of data set {dataset!r} has agreed to an adapter.",
            mend="Import it with --opt-in if they have, or leave --pairs out.",
        )


def _who_gave(data: EvaluationData, pairs: Sequence[int]) -> str:
    gave_P = np.bincount(data.adaptation.person_C, minlength=len(data.people))
    told = ", ".join(f"{int((gave_P >= count).sum()):,} gave {count}" for count in pairs)
    return f"of {len(gave_P):,} people {told}; whoever gave fewer is tried with those"


def _judged(
    data: EvaluationData, part: str, stacks: Sequence[tuple[str, Scores]], temperature: float
) -> Iterator[Judged]:
    """Each stack of a part, with its gain over the one below: what the domain adds, and what the user part adds."""
    pairs = data.parts[part]
    below = None
    for stack, score_P_I in stacks:
        margins = score_P_I(pairs.person_C, pairs.chosen_C) - score_P_I(pairs.person_C, pairs.rejected_C)
        yield judge(Pairs(part, data.items, pairs), stack, margins, temperature, below=below)
        if stack in SHARED:
            below = (stack, margins)


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


class _Live:
    """The live adapters of a tenant, on the items and people of a data set."""

    def __init__(
        self,
        installation: Installation,
        model: PreferenceModel,
        tenant: str,
        data: EvaluationData,
        features_I_P: FloatArray,
    ) -> None:
        self._installation, self._model, self._tenant, self._data = installation, model, tenant, data
        self._domains = DomainStack(installation, model, tenant)
        under_I_P = self._domains.applied(data.items, features_I_P)
        self._global_I, self._domain_I = features_I_P[:, 0], under_I_P[:, 0]
        self._taste_I_K = under_I_P[:, 1 : 1 + model.user_rank]
        self._releases: Counter[str] = Counter()  # of the user adapters that are live

    def stacks(self) -> list[tuple[str, Scores]]:
        """From the global model up to what each person is served at full strength."""
        weights_P_K = np.zeros((len(self._data.people), self._model.user_rank))
        own: dict[int, FloatArray] = {}
        for number, person in enumerate(self._data.people):
            adapter = self._adapter(person)
            if isinstance(adapter, Lora):
                own[number] = self._scored_under(number, adapter)
            elif adapter is not None:
                weights_P_K[number] = adapter
        head = self._with(weights_P_K)

        def served(person_C: IntArray, item_C: IntArray) -> FloatArray:
            score_C = head(person_C, item_C)
            for number, score_I in own.items():
                score_C[person_C == number] = score_I[item_C[person_C == number]]
            return score_C

        global_, domain, user = SERVED
        return [
            (global_, lambda _person, item: self._global_I[item]),
            (domain, lambda _person, item: self._domain_I[item]),
            (user, served),
        ]

    def told(self) -> str:
        """After `stacks`: of how many people user adapters are live, and at which epsilon each was trained."""
        found = (self._installation.store.release(self._tenant, release) for release in self._releases)
        epsilons = {None if release is None else release.epsilon for release in found}
        at = ", ".join(sorted("none" if epsilon is None else f"{epsilon:.2g}" for epsilon in epsilons))
        return f"of {self._releases.total():,} of {len(self._data.people):,} people{at and f', at epsilon {at}'}"

    def trial(self, count: int) -> tuple[str, Scores]:
        """User adapters from the first `count` comparisons of everybody, trained as `idiolect train users` would."""
        settings, said = self._installation.settings, self._data.adaptation
        epsilon = settings.user_epsilon
        recipe = self._model.recipes.user.at(epsilon)
        event = plan_run(
            epsilon,
            delta_of(settings, MAX_COMPARISONS),
            recipe.steps,
            units=MAX_COMPARISONS,
            allow_weak=settings.allow_weak_privacy,
        )
        margin_C = self._domain_I[said.chosen_C] - self._domain_I[said.rejected_C]
        people = np.arange(len(self._data.people))
        padded = pad_comparisons(said, people, self._taste_I_K, margin_C, limit=count)
        nobody_P = ~np.isin(people, said.person_C)  # who gave no comparison trains no adapter

        def drawn() -> Scores:
            adapters_P_K = train_users(padded, recipe, event.noise_multiplier, SecureNoise())
            adapters_P_K[nobody_P] = 0.0
            return self._with(adapters_P_K)

        draws = [drawn() for _ in range(TRIAL_DRAWS)]
        return f"+ user, {count} pairs", lambda person, item: np.stack([scores(person, item) for scores in draws])

    def _with(self, weights_P_K: FloatArray) -> Scores:
        return lambda person, item: self._domain_I[item] + (self._taste_I_K[item] * weights_P_K[person]).sum(axis=1)

    def _adapter(self, person: str) -> FloatArray | Lora | None:
        resolved = self._installation.store.resolve(self._tenant, person, None).user
        if resolved is None:
            return None
        self._releases[resolved.release] += 1
        return live_adapter(self._installation, self._tenant, resolved, self._domains.engine)

    def _scored_under(self, number: int, own: Lora) -> FloatArray:
        """[I], of the items that this person is asked about."""
        asked = [pairs.where(pairs.person_C == number) for pairs in self._data.parts.values()]
        rows = np.unique(np.concatenate([np.concatenate([pairs.chosen_C, pairs.rejected_C]) for pairs in asked]))
        score_I = np.full(len(self._data.items), np.nan)
        score_I[rows] = self._domains.scored_under(own, [self._data.items[row] for row in rows])
        return score_I
