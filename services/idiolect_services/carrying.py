"""Carries every adapter to a new global model, so that nobody starts from nothing when it changes.

First new versions are published that are live for nobody (the slow part), then the model becomes live, then they do:
until that moment the old stack serves as it was. A kill in between leaves adapters that wait, and `carry` again carries
whoever is still on an old model. What is live for somebody is what is carried, with the same generation: a person who
was reset is fenced at publish and once more when it becomes live.

A model that is staged for a rollout goes the first half of this way. Its passage is kept with it, so that `follow` can
carry whoever is trained on the live model meanwhile.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError
from idiolect.registry.manifest import ReleaseTemplate, Version
from idiolect.registry.pointers import Adapter
from idiolect.signals.comparison import Item
from idiolect.stores.ports import Store, StoredVersion
from idiolect.stores.rollout_ports import GlobalTrial
from idiolect_adapters.carrying import MAX_ANCHORS, fit_carry, projected_by
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.pairs import groups
from idiolect_adapters.training.tuning import UserRecipes
from idiolect_services.passage import ACTOR, CarryReport, Crossing, Ferry, Passage
from idiolect_services.wiring import Installation

log = logging.getLogger("idiolect.carrying")

Progress = Callable[[int, int], None]
Recipes = Callable[[], UserRecipes]

BLOCK = 2000  # adapters of one release
PER_PROMPT = 8  # anchors of one prompt before those of others; more only while there is room
FALLBACKS = 8  # versions that may not be served, before the one that is


@dataclass(frozen=True, slots=True)
class Waiting:
    """A release of carried adapters that is live for nobody yet."""

    tenant: str
    release: str


@dataclass(frozen=True, slots=True)
class _Old:
    """A model that adapters come from, and the way from it."""

    model: PreferenceModel
    passage: Passage


class Carrier:
    """Carries to `model`. `anchors`: items of declared public data, at least MAX_ANCHORS if there are so many."""

    def __init__(self, installation: Installation, model: PreferenceModel, anchors: Sequence[Item]) -> None:
        self._installation = installation
        self._store = installation.store
        self._ferry = Ferry(installation)
        self._model = model
        self._anchors = spread(anchors, MAX_ANCHORS)
        self._group_A = groups(self._anchors)
        self._pairs = [(item.prompt, item.text) for item in self._anchors]
        self._pooled_A_H: NDArray[np.float32] | None = None
        self._old: dict[str, _Old | None] = {}

    def stage(self, progress: Progress, *, missing: bool = False) -> tuple[list[Waiting], CarryReport]:
        """New versions of every adapter of every tenant that is bound to another model; with `missing` only of those
        that have none."""
        waiting: list[Waiting] = []
        report = CarryReport()
        for tenant in tenants_with_adapters(self._store):
            for sources, passed_over in self._blocks(tenant, missing):
                report += CarryReport(passed_over=passed_over)
                for some in _by_release(sources):
                    report += self._carry(tenant, some, waiting)
                progress(report.carried, report.carried)
        return waiting, report

    def make_live(self, waiting: Sequence[Waiting]) -> None:
        """Once the model is live. Raises ConflictError if meanwhile another one is."""
        for one in waiting:
            now = self._installation.clock.now()
            self._store.promote_release(
                one.tenant, one.release, now, reason="carried to the new global model", actor=ACTOR
            )

    def passage_from(self, digest: str) -> Passage | None:
        """None if that model is no longer on disk, or damaged."""
        old = self._old_model(digest)
        return None if old is None else old.passage

    def _blocks(self, tenant: str, missing: bool) -> Iterator[tuple[list[StoredVersion], int]]:
        """What is to be carried, a page of adapters at a time, and how many of the page can't be."""
        for page in pages(self._store, tenant, self._model.digest if missing else None):
            found = [source_of(self._store, tenant, version, self._model.digest) for version in page]
            sources = [one for one in found if isinstance(one, StoredVersion)]
            yield sources, sum(one is None for one in found)

    def _carry(self, tenant: str, sources: Sequence[StoredVersion], waiting: list[Waiting]) -> CarryReport:
        """`sources` are of one release."""
        template = sources[0].template
        old = self._old_model(template.global_digest)
        if old is None:
            return CarryReport(passed_over=len(sources))
        versions = [source.version for source in sources]
        release, report = self._ferry.carry(old.passage, template, versions, lambda: old.model.recipes.user)
        if release is not None:
            waiting.append(Waiting(tenant, release))
        return report

    def _old_model(self, digest: str) -> _Old | None:
        """None if it is no longer on disk, or damaged. Loaded once."""
        if digest not in self._old:
            try:
                self._old[digest] = self._fitted(self._installation.load_model(digest))
            except CorruptArtifactError:
                self._old[digest] = None
        return self._old[digest]

    def _fitted(self, old: PreferenceModel) -> _Old:
        new = self._model
        if self._pooled_A_H is None:
            self._pooled_A_H = new.backbone.features(self._pairs)
        before_A_P = projected_by(old, self._pairs, self._pooled_A_H)
        now_A_P = projected_by(new, self._pairs, self._pooled_A_H)
        of_user = fit_carry(before_A_P[:, 1 : 1 + old.user_rank], now_A_P[:, 1 : 1 + new.user_rank], self._group_A)
        of_domain = fit_carry(before_A_P[:, 1 + old.user_rank :], now_A_P[:, 1 + new.user_rank :], self._group_A)
        user = Crossing(old.user_basis_digest, new.user_basis_digest, of_user)
        domain = Crossing(old.domain_basis_digest, new.domain_basis_digest, of_domain)
        return _Old(old, Passage(old.digest, new.digest, user, domain))


class Follower:
    """Keeps the adapters on the candidate of a rollout of the global model up to those on the live one."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._store = installation.store
        self._ferry = Ferry(installation)

    def follow(self, template: ReleaseTemplate, versions: Sequence[Version], recipes: Recipes) -> None:
        """After a training on the live model, or whatever else published these. Never fails: whoever is not carried is
        served by the live model alone, until `catch_up` has carried them."""
        try:
            trial = self._store.global_trial()
            if trial is None or not trial.served or template.global_digest != trial.base:
                return
            passage = self._passage(trial)
            if passage is not None:
                self._ferry.carry(passage, template, versions, recipes)
        except Exception:
            log.exception("what was trained now is carried to the candidate later")

    def catch_up(self, trial: GlobalTrial) -> CarryReport:
        """Carry what stayed behind: trainings of other machines, rollbacks, and what failed in `follow`.

        Raises CorruptArtifactError if the live model can't be loaded, UnavailableError.
        """
        passage = self._passage(trial)
        report = CarryReport()
        if passage is None:
            return report
        recipes = _once(lambda: self._installation.load_model(trial.base).recipes.user)
        for tenant in tenants_with_adapters(self._store):
            for page in pages(self._store, tenant, trial.candidate):
                found = [source_of(self._store, tenant, version, trial.candidate) for version in page]
                sources = [
                    one for one in found if isinstance(one, StoredVersion) and self._is_missing(tenant, one, trial)
                ]
                for some in _by_release(sources):
                    _, done = self._ferry.carry(passage, some[0].template, [one.version for one in some], recipes)
                    report += done
        return report

    def _is_missing(self, tenant: str, source: StoredVersion, trial: GlobalTrial) -> bool:
        return not self._store.is_carried(tenant, source.version.id, trial.candidate)

    def _passage(self, trial: GlobalTrial) -> Passage | None:
        staged = self._store.staged_model(trial.candidate)
        if staged is None or staged.passage is None or staged.base != trial.base:
            return None
        return Passage.from_bytes(staged.passage)


def _once(load: Recipes) -> Recipes:
    kept: list[UserRecipes] = []

    def recipes() -> UserRecipes:
        if not kept:
            kept.append(load())
        return kept[0]

    return recipes


def tenants_with_adapters(store: Store) -> list[str]:
    return [tenant for tenant in store.audit_chains() if tenant]  # whoever published something has a chain


def pages(store: Store, tenant: str, without: str | None) -> Iterator[list[str]]:
    """Live versions, a page of adapters at a time: all, or those without a counterpart on the model `without`."""
    after = ""
    while True:
        page: list[tuple[Adapter, str | None]]
        if without is None:
            page = [(adapter, pointer.version) for adapter, pointer in store.adapters(tenant, after=after, limit=BLOCK)]
        else:
            page = list(store.left_behind(tenant, without, after=after, limit=BLOCK))
        if not page:
            return
        after = page[-1][0].id
        yield [version for _, version in page if version is not None]


def source_of(store: Store, tenant: str, live: str, new: str) -> StoredVersion | str | None:
    """What is served to an owner on the old model; the new model's digest if theirs is bound to it; else None.

    Where the live version may not be served, the one that it was trained after: that was live once.
    """
    stored = store.version(tenant, live)
    if stored is not None and stored.template.global_digest == new:
        return new
    bound = None if stored is None else stored.template.global_digest
    for _ in range(FALLBACKS):
        if stored is None or stored.template.global_digest != bound:
            return None
        if not stored.revoked and stored.withheld is None:
            return stored
        parent = stored.version.parent
        stored = None if parent is None else store.version(tenant, parent)
    return None


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items, from as many prompts as there are: PER_PROMPT of each, then as many more, and so on.

    The choice is random but always the same, so that carrying twice gives the same weights.
    """
    group_I = groups(items)
    order = np.random.default_rng(0).permutation(len(items))
    seen: dict[int, int] = defaultdict(int)
    turn: dict[int, int] = {}
    for index in order.tolist():
        turn[index] = seen[int(group_I[index])] // PER_PROMPT
        seen[int(group_I[index])] += 1
    return [items[index] for index in sorted(turn, key=lambda i: turn[i])[:most]]


def _by_release(sources: Sequence[StoredVersion]) -> list[list[StoredVersion]]:
    found: dict[str, list[StoredVersion]] = defaultdict(list)
    for source in sources:
        found[source.version.release].append(source)
    return list(found.values())
