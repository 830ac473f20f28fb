"""Trains the global model on people who opted in, privately for each of them with all they ever said.

The order is that of every training: plan, reserve, read, train, save, publish, settle. The ledgers are those of each
tenant: whoever is known to two tenants is two subjects, since nobody can tell. What the mechanism released is signed,
as the one version of a release of scope `global`, in the registry of every tenant whose people were read. It is live
for nobody there: what serves is the model, and that is made from it with public arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version as package_version
from typing import Any

import numpy as np

from idiolect.errors import BudgetExceededError, NotFoundError
from idiolect.ids import new_id, sha256_hex
from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.budget import Budget, PrivacyStatement, plan_run, statement_for
from idiolect.privacy.events import Event
from idiolect.privacy.ledger import Reservation
from idiolect.privacy.policy import budget_of, delta_of
from idiolect.registry.manifest import GLOBAL_HEAD, GLOBAL_OWNER, ReleaseTemplate, TensorSpec, Version
from idiolect.registry.signed import signed_versions
from idiolect.registry.weights import dump_weights
from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons, Ratings, SharedData
from idiolect_adapters.backbone import Backbone
from idiolect_adapters.preference import PreferenceModel, join_features
from idiolect_adapters.training.build_private import build_private_global
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.domain import SubjectComparisons
from idiolect_adapters.training.global_model import GlobalOptions
from idiolect_adapters.training.pairs import groups, person_pairs
from idiolect_adapters.training.private_global import (
    UNSAMPLED_RELEASES,
    PrivateGlobal,
    halves,
    private_global,
    release_private_global,
    releases,
)
from idiolect_adapters.training.public_space import PublicSpace, public_space
from idiolect_services.production_noise import checked_noise
from idiolect_services.wiring import Installation

PURPOSE = "global model"
PAIRS_PER_SUBJECT = 120  # they are averaged, so more would only cost time
REWARD, BASIS = "global.reward", "global.basis"
MAX_WINDOW = 400  # characters of a manifest's data window
ACTOR = "trainer"


@dataclass(frozen=True, slots=True)
class Source:
    """Whose people are read: those of a tenant, in some domains or (none named) in all."""

    tenant: str
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Charged:
    """A source that may be read, and who in it."""

    source: Source
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class PrivateTraining:
    """A model that is not live yet, and the runs to settle once it is. `releases`: tenant and release of each."""

    model: PreferenceModel
    charged: tuple[Charged, ...]
    releases: tuple[tuple[str, str], ...]
    privacy: PrivacyStatement

    @property
    def refused(self) -> int:
        return sum(len(one.reservation.refused) for one in self.charged)


class PrivateGlobalTrainer:
    """Trains on top of `before`, the live model, where there is one. `public` are texts that anybody may know."""

    def __init__(
        self,
        installation: Installation,
        backbone: Backbone,
        public: Sequence[Item],
        before: PreferenceModel | None,
        noise: NoiseSource | None = None,
    ) -> None:
        """Raises ConfigurationError for a `noise` that is not secure, outside of a running test."""
        self._installation = installation
        self._store = installation.store
        self._settings = installation.settings
        self._backbone = backbone
        self._public = public
        self._before = before
        self._noise = checked_noise(noise)

    def train(self, sources: Sequence[Source], options: GlobalOptions, stages: Any) -> PrivateTraining:
        """Raises NotFoundError if nobody opted in has said anything, BudgetExceededError if nobody may be read."""
        people = {source: self._people(source) for source in sources}
        if not any(people.values()):
            raise NotFoundError(
                "nobody who opted in has said anything to learn from.", mend="Collect feedback, or import data."
            )
        texts = [(item.prompt, item.text) for item in self._public]
        pooled_I_H = self._backbone.features(texts, stages.stage("reading public texts"))
        space = public_space(self._public, pooled_I_H, None if self._before is None else self._before.head)
        total = sum(map(len, people.values()))
        budget = budget_of(self._settings, "subject", delta_of(self._settings, total))
        event = plan_run(
            self._settings.global_epsilon,
            budget.delta,
            releases(space.recipe),
            units=total,
            allow_weak=self._settings.allow_weak_privacy,
            sample_rate=self._settings.domain_sample_rate,
            unsampled_steps=UNSAMPLED_RELEASES,
        )
        charged = self._reserve(people, event, budget)
        data = merged([part for one in charged for part in self._read(one)])
        released = self._train(data, space, event, options.user_rank, stages.stage("reading texts"))
        privacy = statement_for(
            "subject",
            event,
            space.recipe.clip_norm,
            budget.delta,
            budget=budget,
            local_epsilon=self._settings.local_epsilon,
            moment=True,
        )
        model = self._build(pooled_I_H, space, released, privacy, options)
        published = tuple((one.source.tenant, self._publish(one, model, released, privacy)) for one in charged)
        return PrivateTraining(model, charged, published, privacy)

    def settle(self, training: PrivateTraining) -> None:
        for one in training.charged:
            self._store.settle(one.source.tenant, one.reservation.run, self._installation.clock.now())

    def _people(self, source: Source) -> list[str]:
        domains = source.domains or self._store.domains(source.tenant)
        found = {person for domain in domains for person in self._store.contributors(source.tenant, domain)}
        return sorted(found)

    def _reserve(self, people: Mapping[Source, Sequence[str]], event: Event, budget: Budget) -> tuple[Charged, ...]:
        """Everybody is charged before anybody is read."""
        found = []
        for source, subjects in people.items():
            if not subjects:
                continue
            now = self._installation.clock.now()
            reservation = self._store.reserve(
                source.tenant, "subject", PURPOSE, event.charged, subjects, budget.rho, now, window=budget.window
            )
            found.append(Charged(source, reservation))
        charged = tuple(one for one in found if one.reservation.granted)
        if charged:
            return charged
        now = self._installation.clock.now()
        source, subjects = next((source, subjects) for source, subjects in people.items() if subjects)
        spent = self._store.account(source.tenant, "subject", subjects[0], since=budget.since(now)).spent_rho
        before, after = (filter_epsilon(rho, budget.delta) for rho in (spent, spent + event.charged.rho))
        raise BudgetExceededError(
            f"training the {PURPOSE} would raise epsilon from {before:.2f} to {after:.2f}, over the budget of "
            f"{budget.epsilon:g} (delta {budget.delta:g}, unit subject).",
            mend="The live model stays. Raise the budget setting only with consent of those it protects.",
        )

    def _read(self, charged: Charged) -> list[tuple[str, SharedData]]:
        """Without those who were refused, or came since the reservation."""
        tenant = charged.source.tenant
        parts = [self._store.shared_data(tenant, domain=domain) for domain in charged.source.domains or (None,)]
        return [(tenant, only(part, charged.reservation.granted)) for part in parts]

    def _train(self, data: SharedData, space: PublicSpace, event: Event, rank: int, progress: Any) -> PrivateGlobal:
        rng = np.random.default_rng()
        group_I = groups(data.items)
        pairs = person_pairs(data.ratings, data.comparisons, group_I, limit=PAIRS_PER_SUBJECT, rng=rng)
        texts = [(item.prompt, item.text) for item in data.items]
        pooled_I_H = self._backbone.features(texts, progress)
        score_I, z_I_D = space.project(join_features(pooled_I_H, texts, space.kernel))
        person_C = pairs.person_C.astype(np.int64)
        comparisons = SubjectComparisons(
            subjects=len(data.people),
            subject_C=person_C,
            differences_C_K=z_I_D[pairs.chosen_C] - z_I_D[pairs.rejected_C],
            margins_C=score_I[pairs.chosen_C] - score_I[pairs.rejected_C],
            weights_C=pairs.weight_C.astype(np.float64),
        )
        released = release_private_global(
            comparisons,
            halves(person_C, pairs.chosen_C, pairs.rejected_C, group_I, rng),
            space.recipe,
            event.noise_multiplier,
            self._noise,
            sample_rate=event.sample_rate,
        )
        return private_global(released, space.recipe, space.expected_D_D, rank, event.noise_multiplier)

    def _build(
        self,
        pooled_I_H: np.ndarray[Any, np.dtype[np.float32]],
        space: PublicSpace,
        released: PrivateGlobal,
        privacy: PrivacyStatement,
        options: GlobalOptions,
    ) -> PreferenceModel:
        """The card says nothing of the people that the mechanism did not release: not how many they were either.

        `datasets` are those that were declared public, and that the model before learned from.
        """
        described = {
            "backbone": self._settings.backbone,
            "datasets": {} if self._before is None else self._before.card["training"].get("datasets", {}),
            "tuned": self._before is not None and bool(self._before.card["training"].get("tuned")),
            "options": asdict(options),
            "before": None if self._before is None else self._before.digest,
            "privacy": privacy.to_json(),
        }
        return build_private_global(
            self._installation.models,
            self._backbone,
            self._public,
            pooled_I_H,
            space,
            released,
            options.domain_rank,
            described,
            None if self._before is None else self._before.recipes,
        )

    def _publish(
        self, charged: Charged, model: PreferenceModel, released: PrivateGlobal, privacy: PrivacyStatement
    ) -> str:
        """The release's id. Its weights are all that the mechanism let out, in the public directions."""
        tensors = {
            REWARD: released.reward_D[None, :],
            BASIS: released.basis_K_D,
        }
        now = self._installation.clock.now()
        template = ReleaseTemplate(
            tenant=charged.source.tenant,
            scope="global",
            global_digest=model.digest,
            basis_digest=model.user_basis_digest,
            kind=GLOBAL_HEAD,
            rank=model.user_rank,
            alpha=float(model.user_rank),  # alpha / rank = 1
            targets=("head",),
            tensors=tuple(TensorSpec(name, tensor.shape) for name, tensor in tensors.items()),
            privacy=privacy,
            data_window=_window(charged.source),
            producer=f"idiolect {package_version('idiolect')}",
            run=charged.reservation.run,
            created_at=now,
        )
        release, weights = new_id(), dump_weights(tensors)
        version = Version(
            id=new_id(),
            release=release,
            subject="",
            domain=GLOBAL_OWNER,
            generation=0,
            parent=None,
            weights=weights,
            weights_sha256=sha256_hex(weights),
        )
        signed = signed_versions(template, [version], self._installation.signer)
        reason = "private training of the global model"
        self._store.publish(release, template, signed, now, reason=reason, actor=ACTOR, staged=True)
        return release


def _window(source: Source) -> str:
    where = "every domain" if not source.domains else ", ".join(source.domains)
    text = f"all feedback of people who opted in, in {where}"
    return text if len(text) <= MAX_WINDOW else f"all feedback of people who opted in, in {len(source.domains)} domains"


def only(data: SharedData, people: Collection[str]) -> SharedData:
    """What some of the people said, numbered anew; the texts stay."""
    keep_P = np.array([person in people for person in data.people], dtype=np.bool_)
    number_P = (np.cumsum(keep_P) - 1).astype(np.int32)
    rated, compared = data.ratings, data.comparisons.where(keep_P[data.comparisons.person_C])
    mask_R = keep_P[rated.person_R]
    return SharedData(
        items=data.items,
        people=tuple(np.array(data.people, dtype=object)[keep_P]),
        ratings=Ratings(number_P[rated.person_R[mask_R]], rated.item_R[mask_R], rated.value_R[mask_R]),
        comparisons=replace(compared, person_C=number_P[compared.person_C]),
    )


def merged(parts: Sequence[tuple[str, SharedData]]) -> SharedData:
    """One, in which a tenant's person is one person in however many parts they are."""
    number: dict[tuple[str, str], int] = {}
    items: list[Item] = []
    ratings, comparisons = [], []
    for tenant, part in parts:
        person_P = np.array([number.setdefault((tenant, name), len(number)) for name in part.people], np.int32)
        start = np.int32(len(items))
        items += part.items
        rated, said = part.ratings, part.comparisons
        ratings.append(Ratings(person_P[rated.person_R], rated.item_R + start, rated.value_R))
        comparisons.append(
            Comparisons(person_P[said.person_C], said.chosen_C + start, said.rejected_C + start, said.weight_C)
        )
    return SharedData(
        tuple(items),
        tuple(f"{tenant}/{person}" for tenant, person in number),
        Ratings(*(np.concatenate([getattr(one, field.name) for one in ratings]) for field in fields(Ratings))),
        Comparisons(
            *(np.concatenate([getattr(one, name.name) for one in comparisons]) for name in fields(Comparisons))
        ),
    )
