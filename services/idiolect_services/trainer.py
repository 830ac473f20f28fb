"""Runs trainings: reserve in the ledger, read, train, sign, publish, settle. Always in this order.

A crash anywhere leaves the charge and nothing else: a release is published whole or not at all, and a person who was
reset while it was computed is fenced off at publish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import BudgetExceededError, ConflictError, NotFoundError
from idiolect.ids import new_id, sha256_hex
from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.budget import Budget, PrivacyStatement, plan_run, statement_for
from idiolect.privacy.events import Event, Unit
from idiolect.privacy.ledger import Reservation
from idiolect.privacy.policy import budget_of, delta_of
from idiolect.registry.manifest import AdapterScope, ReleaseTemplate, TensorSpec, Version
from idiolect.registry.pointers import Adapter
from idiolect.registry.signed import signed_versions
from idiolect.registry.weights import dump_weights
from idiolect.signals.comparison import Item
from idiolect.signals.context import Context
from idiolect.signals.data import Comparisons, PersonalSnapshot, SharedData
from idiolect_adapters.lora.trained import trained_adapter
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.features import FeatureCache, digested
from idiolect_adapters.runtime.loras import LoraEngine
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import COUNT_RELEASES, releases, train_domain
from idiolect_adapters.training.domain_lora import LoraOptions, SubjectTexts, check_trainable, train_domain_lora
from idiolect_adapters.training.pairs import groups, person_pairs
from idiolect_adapters.training.user import PEOPLE_AT_ONCE, pad_comparisons, train_users
from idiolect_services.carrying import Follower
from idiolect_services.production_noise import checked_noise
from idiolect_services.registering import Origin, Registrar
from idiolect_services.stacks import DomainStack
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]

HEAD_B = "head.lora_B.weight"
MAX_COMPARISONS = 50  # of a person in one training; the curvature of the recipes is that of so many
PAIRS_PER_SUBJECT = 60  # of one subject in a domain training; they are averaged, so more would only cost time
PROJECT_AT_ONCE = 64
ACTOR = "trainer"
BUDGETS: Mapping[Unit, str] = {
    "comparison": "IDIOLECT_USER_BUDGET_EPSILON",
    "subject": "IDIOLECT_DOMAIN_BUDGET_EPSILON",
}


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """`refused`: over their privacy budget. `fenced`: reset or opted out while the training ran."""

    release: str
    published: int
    refused: int
    fenced: int
    epsilon: float


def _nothing(_done: int, _total: int) -> None:
    """No progress is shown."""


class Trainer:
    """Trains adapters of one tenant on one global model. Thread-safe; the ledger serialises what must not overlap."""

    def __init__(
        self,
        installation: Installation,
        model: PreferenceModel,
        features: FeatureCache,
        noise: NoiseSource | None = None,
        engine: LoraEngine | None = None,
    ) -> None:
        """Raises ConfigurationError for a `noise` that is not secure, outside of a running test."""
        self._installation = installation
        self._store = installation.store
        self._settings = installation.settings
        self._model = model
        self._features = features
        self._noise = checked_noise(noise)
        self._engine = engine or LoraEngine(model)

    def train_domain(
        self,
        tenant: str,
        domain: str,
        progress: Progress = _nothing,
        *,
        staged: bool = False,
        inner: LoraOptions | None = None,
        context: Context | None = None,
    ) -> TrainingReport:
        """Train the head, and with `inner` a LoRA on the encoder's last layers after it. With a `context` only what was
        said of texts within it is read; everybody is charged, since whether they said such a thing is looked up.

        Raises NotFoundError if nobody has said anything there or no text is within `context`, BudgetExceededError if
        nobody may be read, and ConfigurationError if this model has no such layers.

        A `staged` release is live for nobody: it waits for a rollout or a promotion.
        """
        if inner is not None:
            check_trainable(self._model, inner)
        people = self._store.contributors(tenant, domain)
        if not people:
            raise NotFoundError(
                f"domain {domain!r} has no feedback to learn from.", mend="Import data or wait for some."
            )
        if context is not None:
            self._check_context(tenant, domain, context)
        recipe = self._model.recipes.domain
        budget = budget_of(self._settings, "subject", delta_of(self._settings, len(people)))
        event = plan_run(
            self._settings.domain_epsilon,
            budget.delta,
            releases(recipe) if inner is None else inner.releases(recipe),
            units=len(people),
            allow_weak=self._settings.allow_weak_privacy,
            sample_rate=self._settings.domain_sample_rate,
            unsampled_steps=COUNT_RELEASES,
        )
        reservation = self._reserve(tenant, "subject", f"domain {domain}", event, people, budget)
        data = self._store.shared_data(tenant, domain=domain)
        said = self._said(tenant, data if context is None else data.within(context), reservation, progress)
        window = f"all feedback in {domain}" if context is None else f"feedback in {domain} of {context}"
        reason = f"training of domain {domain}"
        if inner is not None:
            privacy = self._statement(recipe, event, budget)
            origin = Origin(privacy, window, reservation.run, context)
            template, version = self._inner_domain(tenant, domain, said, inner, event, origin, progress)
            return self._publish(template, [version], reservation, reason, staged)
        adapter_M = train_domain(
            said.comparisons(), recipe, event.noise_multiplier, self._noise, sample_rate=event.sample_rate
        )
        template = self._template(tenant, "domain", recipe, event, budget, reservation.run, window, context)
        parent = self._store.resolve(tenant, None, domain).domain
        version = self._version("", domain, 0, parent.id if parent else None, adapter_M)
        return self._publish(template, [version], reservation, reason, staged)

    def train_users(
        self,
        tenant: str,
        subjects: Sequence[str] | None = None,
        progress: Progress = _nothing,
        *,
        staged: bool = False,
    ) -> TrainingReport:
        """Train and publish the adapters of `subjects`, or of everyone who opted in and has comparisons, as one
        release.

        Raises NotFoundError if there is nobody to train, BudgetExceededError if nobody may be read.
        """
        trainable = self._store.trainable(tenant)
        people = trainable if subjects is None else sorted(set(subjects) & set(trainable))
        if not people:
            raise NotFoundError(
                "nobody to train: no one has opted in and given feedback.", mend="Collect feedback first."
            )
        started = self._installation.clock.now()
        epsilon = self._settings.user_epsilon
        recipe = self._model.recipes.user.at(epsilon)
        budget = budget_of(self._settings, "comparison", delta_of(self._settings, MAX_COMPARISONS))
        event = plan_run(
            epsilon,
            budget.delta,
            recipe.steps,
            units=MAX_COMPARISONS,
            allow_weak=self._settings.allow_weak_privacy,
        )
        reservation = self._reserve(tenant, "comparison", "user adapters", event, people, budget)
        snapshot = self._store.personal_snapshot(
            tenant, subjects=sorted(reservation.granted), max_comparisons=MAX_COMPARISONS
        )
        adapters_P_K = self._user_adapters(tenant, snapshot, recipe, event, progress)
        window = f"the newest {MAX_COMPARISONS} comparisons of each person"
        template = self._template(tenant, "user", recipe, event, budget, reservation.run, window)
        versions = [
            self._version(person, "", snapshot.generation_P[p], snapshot.parent_P[p], adapters_P_K[p])
            for p, person in enumerate(snapshot.people)
        ]
        report = self._publish(template, versions, reservation, "training of user adapters", staged)
        self._store.mark_trained(tenant, people, started)
        return report

    def _check_context(self, tenant: str, domain: str, context: Context) -> None:
        """Before anybody is charged. It looks at what texts there are, and at nobody who judged them."""
        known = self._store.contexts(tenant, domain)
        if not any(context.covers(task, language) for task, language in known):
            there = ", ".join(f"{task or 'no task'} in {language}" for task, language in known[:10])
            raise NotFoundError(f"domain {domain!r} has no texts of {context}.", mend=f"There are texts of: {there}.")

    def _reserve(
        self, tenant: str, unit: Unit, purpose: str, event: Event, people: Sequence[str], budget: Budget
    ) -> Reservation:
        if self._store.live_global() != self._model.digest:
            raise ConflictError(
                f"the live global model is no longer {self._model.digest[:12]}: adapters trained on it are not served.",
                mend="Restart this process; it then loads the live one.",
            )
        now = self._installation.clock.now()
        charged = event.charged
        reservation = self._store.reserve(tenant, unit, purpose, charged, people, budget.rho, now, window=budget.window)
        if reservation.granted:
            return reservation
        spent = self._store.account(tenant, unit, people[0], since=budget.since(now)).spent_rho
        before, after = (filter_epsilon(rho, budget.delta) for rho in (spent, spent + charged.rho))
        raise BudgetExceededError(
            f"training {purpose} would raise epsilon from {before:.2f} to {after:.2f}, over the budget of "
            f"{budget.epsilon:g} (delta {budget.delta:g}, unit {unit}).",
            mend=f"The adapters that are live stay. With consent of those it protects, set {BUDGETS[unit]} to at least "
            f"{math.ceil(100 * after) / 100:.2f}.",
        )

    def _said(self, tenant: str, data: SharedData, reservation: Reservation, progress: Progress) -> SubjectTexts:
        """What a domain's people said. Who was refused, or came since the reservation, is left out."""
        pairs = person_pairs(
            data.ratings, data.comparisons, groups(data.items), limit=PAIRS_PER_SUBJECT, rng=np.random.default_rng()
        )
        granted_P = np.array([person in reservation.granted for person in data.people], dtype=np.bool_)
        pairs = pairs.where(granted_P[pairs.person_C])
        features_I_P = self._project(tenant, data.items, progress)
        subject_P = np.cumsum(granted_P) - 1
        return SubjectTexts(
            subjects=int(granted_P.sum()),
            texts=[(item.prompt, item.text) for item in data.items],
            score_I=features_I_P[:, 0],
            directions_I_M=features_I_P[:, 1 + self._model.user_rank :],
            subject_C=subject_P[pairs.person_C],
            chosen_C=pairs.chosen_C.astype(np.int64),
            rejected_C=pairs.rejected_C.astype(np.int64),
            weights_C=pairs.weight_C.astype(np.float64),
        )

    def _inner_domain(
        self,
        tenant: str,
        domain: str,
        said: SubjectTexts,
        inner: LoraOptions,
        event: Event,
        origin: Origin,
        progress: Progress,
    ) -> tuple[ReleaseTemplate, Version]:
        """An ordinary LoRA, with the proof of what it does. Not signed for a release yet."""
        rate, multiplier = event.sample_rate, event.noise_multiplier
        tensors = train_domain_lora(
            self._model, said, inner, multiplier, self._noise, sample_rate=rate, progress=progress
        )
        installation = self._installation
        registrar = Registrar(self._store, self._engine, installation.signer, installation.clock)
        adapter = trained_adapter(self._model.head, tensors)
        template = registrar.template(tenant, "domain", adapter, origin)
        return template, registrar.version(template, adapter, Adapter("domain", domain), 0, new_id())

    def _user_adapters(
        self, tenant: str, snapshot: PersonalSnapshot, recipe: Recipe, event: Event, progress: Progress
    ) -> FloatArray:
        """[P, K], on top of the domain adapters that are live now."""
        features_I_P = self._project(tenant, snapshot.items, progress)
        stack = DomainStack(self._installation, self._model, tenant, self._engine)
        features_I_P = stack.applied(snapshot.items, features_I_P)
        margin_C = _margins(features_I_P[:, 0], snapshot.comparisons)
        taste_I_K = features_I_P[:, 1 : 1 + self._model.user_rank]
        people = np.arange(len(snapshot.people))
        slabs = [people[start : start + PEOPLE_AT_ONCE] for start in range(0, len(people), PEOPLE_AT_ONCE)]
        trained = [
            train_users(
                pad_comparisons(snapshot.comparisons, slab, taste_I_K, margin_C, limit=MAX_COMPARISONS),
                recipe,
                event.noise_multiplier,
                self._noise,
            )
            for slab in slabs
        ]
        return np.concatenate(trained) if trained else np.zeros((0, self._model.user_rank))

    def _project(self, tenant: str, items: Sequence[Item], progress: Progress) -> FloatArray:
        """[I, 1 + k + m], from the cache that the server uses too."""
        parts = [np.zeros((0, self._features.width))]
        for start in range(0, len(items), PROJECT_AT_ONCE):
            some = items[start : start + PROJECT_AT_ONCE]
            parts.append(self._features.project(tenant, [(digested(i.prompt), digested(i.text)) for i in some]))
            progress(min(start + PROJECT_AT_ONCE, len(items)), len(items))
        return np.concatenate(parts)

    def _template(
        self,
        tenant: str,
        scope: AdapterScope,
        recipe: Recipe,
        event: Event,
        budget: Budget,
        run: str,
        window: str,
        context: Context | None = None,
    ) -> ReleaseTemplate:
        model = self._model
        user = scope == "user"
        rank = model.user_rank if user else model.domain_rank
        return ReleaseTemplate(
            tenant=tenant,
            scope=scope,
            global_digest=model.digest,
            basis_digest=model.user_basis_digest if user else model.domain_basis_digest,
            kind="head_lora",
            rank=rank,
            alpha=float(rank),  # alpha / rank = 1
            targets=("head",),
            tensors=(TensorSpec(HEAD_B, (1, rank)),),
            privacy=self._statement(recipe, event, budget),
            data_window=window,
            producer=f"idiolect {package_version('idiolect')}",
            run=run,
            created_at=self._installation.clock.now(),
            context=context,
        )

    def _statement(self, recipe: Recipe, event: Event, budget: Budget) -> PrivacyStatement:
        local = self._settings.local_epsilon
        return statement_for(budget.unit, event, recipe.clip_norm, budget.delta, budget=budget, local_epsilon=local)

    @staticmethod
    def _version(
        subject: str,
        domain: str,
        generation: int,
        parent: str | None,
        adapter_K: FloatArray,
    ) -> Version:
        """Not signed yet: its release has no id so far."""
        weights = dump_weights({HEAD_B: adapter_K[None, :].astype(np.float32)})
        return Version(
            id=new_id(),
            release="",
            subject=subject,
            domain=domain,
            generation=generation,
            parent=parent,
            weights=weights,
            weights_sha256=sha256_hex(weights),
        )

    def _publish(
        self,
        template: ReleaseTemplate,
        versions: Sequence[Version],
        reservation: Reservation,
        reason: str,
        staged: bool,
    ) -> TrainingReport:
        assert template.privacy is not None  # what is trained here always says how private it is
        release, now = new_id(), self._installation.clock.now()
        named = (replace(version, release=release) for version in versions)
        signed = signed_versions(template, named, self._installation.signer)
        outcome = self._store.publish(release, template, signed, now, reason=reason, actor=ACTOR, staged=staged)
        if not staged:
            kept = [version for version in signed if version.subject not in outcome.fenced]
            Follower(self._installation).follow(template, kept, lambda: self._model.recipes.user)
        self._store.settle(template.tenant, reservation.run, self._installation.clock.now())
        return TrainingReport(
            release=release,
            published=outcome.published,
            refused=len(reservation.refused),
            fenced=len(outcome.fenced),
            epsilon=template.privacy.epsilon,
        )


def _margins(score_I: FloatArray, comparisons: Comparisons) -> FloatArray:
    return score_I[comparisons.chosen_C] - score_I[comparisons.rejected_C]
