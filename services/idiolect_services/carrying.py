"""Carries every adapter to a new global model, so that nobody starts from nothing when it changes.

First new versions are published that are live for nobody (the slow part), then the model becomes live, then they do:
until that moment the old stack serves as it was. A kill in between leaves adapters that wait, and `carry` again carries
whoever is still on an old model. What is live for somebody is what is carried, with the same generation: a person who
was reset is fenced at publish and once more when it becomes live.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError
from idiolect.ids import new_id, sha256_hex
from idiolect.registry.manifest import Carried, ReleaseTemplate, TensorSpec, Version, manifest_bytes
from idiolect.registry.weights import dump_weights, verify_version
from idiolect.signals.comparison import Item
from idiolect.stores.ports import StoredVersion
from idiolect_adapters.carrying import MAX_ANCHORS, Carry, fit_carry, projected_by
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.bank import HEAD_B, HEAD_LORA
from idiolect_adapters.training.pairs import groups
from idiolect_services.directions import noise_of
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]

BLOCK = 2000  # adapters of one release
PER_PROMPT = 8  # anchors of one prompt before those of others; more only while there is room
FALLBACKS = 8  # versions that may not be served, before the one that is
ACTOR = "trainer"


@dataclass(frozen=True, slots=True)
class CarryReport:
    """`passed_over`: not carried, for want of the old model or of a version that verifies; they wait for a training.
    `fenced`: reset or opted out meanwhile. `explained`: see `Carry`, the least of all that were used."""

    carried: int = 0
    fenced: int = 0
    passed_over: int = 0
    explained: float = 1.0

    def __add__(self, other: CarryReport) -> CarryReport:
        return CarryReport(
            self.carried + other.carried,
            self.fenced + other.fenced,
            self.passed_over + other.passed_over,
            min(self.explained, other.explained),
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """A release of carried adapters that is live for nobody yet."""

    tenant: str
    release: str


@dataclass(frozen=True, slots=True)
class _Old:
    """A model that adapters come from, and what writes its bases in those of the new one."""

    model: PreferenceModel
    user: Carry
    domain: Carry


class Carrier:
    """Carries to `model`. `anchors`: items of declared public data, at least MAX_ANCHORS if there are so many."""

    def __init__(self, installation: Installation, model: PreferenceModel, anchors: Sequence[Item]) -> None:
        self._installation = installation
        self._store = installation.store
        self._model = model
        self._anchors = spread(anchors, MAX_ANCHORS)
        self._group_A = groups(self._anchors)
        self._pairs = [(item.prompt, item.text) for item in self._anchors]
        self._pooled_A_H: NDArray[np.float32] | None = None
        self._old: dict[str, _Old | None] = {}

    def stage(self, progress: Progress) -> tuple[list[Waiting], CarryReport]:
        """New versions of every adapter of every tenant that is bound to another model."""
        waiting: list[Waiting] = []
        report = CarryReport()
        for tenant in filter(None, self._store.audit_chains()):  # whoever published something has a chain
            for sources, passed_over in self._blocks(tenant):
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

    def _blocks(self, tenant: str) -> Iterator[tuple[list[StoredVersion], int]]:
        """What is to be carried, a page of adapters at a time, and how many of the page can't be."""
        after = ""
        while page := self._store.adapters(tenant, after=after, limit=BLOCK):
            after = page[-1][0].id
            found = [self._source(tenant, pointer.version) for _, pointer in page if pointer.version is not None]
            sources = [one for one in found if isinstance(one, StoredVersion)]
            yield sources, sum(one is None for one in found)

    def _source(self, tenant: str, live: str) -> StoredVersion | str | None:
        """What is served to an owner on the old model; the new model's digest if theirs is bound to it; else None.

        Where the live version may not be served, the one that it was trained after: that was live once.
        """
        stored = self._store.version(tenant, live)
        if stored is not None and stored.template.global_digest == self._model.digest:
            return self._model.digest
        bound = None if stored is None else stored.template.global_digest
        for _ in range(FALLBACKS):
            if stored is None or stored.template.global_digest != bound:
                return None
            if not stored.revoked and stored.withheld is None:
                return stored
            parent = stored.version.parent
            stored = None if parent is None else self._store.version(tenant, parent)
        return None

    def _carry(self, tenant: str, sources: Sequence[StoredVersion], waiting: list[Waiting]) -> CarryReport:
        """`sources` are of one release."""
        template = sources[0].template
        old = self._old_model(template.global_digest)
        if old is None or not _is_ours(template, old.model):
            return CarryReport(passed_over=len(sources))
        usable = [(source, weights) for source in sources if (weights := self._verified(source)) is not None]
        if not usable:
            return CarryReport(passed_over=len(sources))
        carry = old.user if template.scope == "user" else old.domain
        adapters_P_N = np.stack([weights for _, weights in usable]) @ carry.matrix_O_N
        carried = self._template(template, usable[0][0].version.release, old, carry)
        release = new_id()
        signed = [
            self._signed(carried, _version(release, source.version, adapter_N))
            for (source, _), adapter_N in zip(usable, adapters_P_N, strict=True)
        ]
        outcome = self._store.publish(
            release,
            carried,
            signed,
            self._installation.clock.now(),
            reason="carrying to a new global model",
            actor=ACTOR,
            staged=True,
        )
        waiting.append(Waiting(tenant, release))
        missed = len(sources) - len(usable)
        return CarryReport(outcome.published, len(outcome.fenced), missed, carry.explained)

    def _verified(self, source: StoredVersion) -> FloatArray | None:
        """[K], alpha / rank included; None if it does not verify: it would not be served either."""
        try:
            tensors = verify_version(source.template, source.version, self._installation.signer)
        except CorruptArtifactError:
            return None
        weights_K: FloatArray = tensors[HEAD_B][0].astype(np.float64) * (source.template.alpha / source.template.rank)
        return weights_K

    def _template(self, template: ReleaseTemplate, source: str, old: _Old, carry: Carry) -> ReleaseTemplate:
        """Run and privacy stay: it is the same information about the same people."""
        user = template.scope == "user"
        rank = self._model.user_rank if user else self._model.domain_rank
        noise = noise_of(template, old.model.recipes.user) if user else None
        return replace(
            template,
            global_digest=self._model.digest,
            basis_digest=self._model.user_basis_digest if user else self._model.domain_basis_digest,
            rank=rank,
            alpha=float(rank),
            tensors=(TensorSpec(HEAD_B, (1, rank)),),
            producer=f"idiolect {package_version('idiolect')}",
            created_at=self._installation.clock.now(),
            carried=Carried(source, template.global_digest, carried_noise(noise, carry)),
        )

    def _signed(self, template: ReleaseTemplate, version: Version) -> Version:
        signer = self._installation.signer
        version = replace(version, key_id=signer.key_id)
        signed = replace(version, signature=signer.sign(manifest_bytes(template, version)))
        verify_version(template, signed, signer)  # what would be refused at load is not published
        return signed

    def _old_model(self, digest: str) -> _Old | None:
        """None if it is no longer on disk, or damaged. Loaded once."""
        if digest not in self._old:
            try:
                self._old[digest] = self._fitted(self._installation.load_model(digest))
            except CorruptArtifactError:
                self._old[digest] = None
        return self._old[digest]

    def _fitted(self, old: PreferenceModel) -> _Old:
        if self._pooled_A_H is None:
            self._pooled_A_H = self._model.backbone.features(self._pairs)
        before_A_P = projected_by(old, self._pairs, self._pooled_A_H)
        now_A_P = projected_by(self._model, self._pairs, self._pooled_A_H)
        of_user = fit_carry(
            before_A_P[:, 1 : 1 + old.user_rank], now_A_P[:, 1 : 1 + self._model.user_rank], self._group_A
        )
        of_domain = fit_carry(
            before_A_P[:, 1 + old.user_rank :], now_A_P[:, 1 + self._model.user_rank :], self._group_A
        )
        return _Old(old, of_user, of_domain)


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


def carried_noise(noise: tuple[float, ...] | None, carry: Carry) -> tuple[float, ...]:
    """Of independent noise with these deviations, after the carrying. Empty if it is not known."""
    if noise is None or len(noise) != len(carry.matrix_O_N):
        return ()
    return tuple(np.sqrt((np.array(noise) ** 2) @ carry.matrix_O_N**2).tolist())


def _by_release(sources: Sequence[StoredVersion]) -> list[list[StoredVersion]]:
    found: dict[str, list[StoredVersion]] = defaultdict(list)
    for source in sources:
        found[source.version.release].append(source)
    return list(found.values())


def _is_ours(template: ReleaseTemplate, model: PreferenceModel) -> bool:
    """Written in the model's basis. A LoRA of inner layers, registered from elsewhere, can't be carried like this."""
    basis = model.user_basis_digest if template.scope == "user" else model.domain_basis_digest
    return template.kind == HEAD_LORA and template.basis_digest == basis


def _version(release: str, source: Version, adapter_N: FloatArray) -> Version:
    """Not signed yet. The generation stays, so whoever was reset since is fenced."""
    weights = dump_weights({HEAD_B: adapter_N[None, :].astype(np.float32)})
    return Version(
        id=new_id(),
        release=release,
        subject=source.subject,
        domain=source.domain,
        generation=source.generation,
        parent=source.id,
        weights=weights,
        weights_sha256=sha256_hex(weights),
    )
