"""`idiolect registry diff`: two versions, or two releases over the adapters that both hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.privacy.budget import PrivacyStatement
from idiolect.registry.manifest import LORA, ReleaseTemplate
from idiolect.registry.signing import Signer
from idiolect.registry.weights import verify_version
from idiolect.stores.ports import Store, StoredVersion
from idiolect_adapters.evaluation.version_diff import ProbeScore, WeightsDiff, diff_weights, score_probes
from idiolect_adapters.runtime.features import Projector

if TYPE_CHECKING:  # it imports torch
    from idiolect_adapters.runtime.loras import LoraEngine

FloatArray = NDArray[np.float64]
MAX_PAIRS = 1_000  # of two releases: enough for a median, and bounded whatever their size
_PAGE = 200


@dataclass(frozen=True, slots=True)
class Source:
    """`model`: the live global model, and `engine`: what applies LoRAs to it (None: nothing does). Each is asked for
    only if there are probes to score with it."""

    store: Store
    signer: Signer
    model: Callable[[], Projector]
    engine: Callable[[], LoraEngine | None]


@dataclass(frozen=True, slots=True)
class FieldChange:
    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class VersionsDiff:
    fields: tuple[FieldChange, ...]  # only what differs
    weights: WeightsDiff
    probes: tuple[ProbeScore, ...]


@dataclass(frozen=True, slots=True)
class ReleasesDiff:
    """Medians over at most MAX_PAIRS owners that both releases hold."""

    fields: tuple[FieldChange, ...]
    pairs: int
    median: WeightsDiff | None


def diff_versions(source: Source, tenant: str, a: str, b: str, probes: Sequence[tuple[str, str]]) -> VersionsDiff:
    """Both are verified first. Raises NotFoundError, CorruptArtifactError, and InvalidInputError for two that are not
    written in the same basis: their numbers can't be compared."""
    first, second = _stored(source, tenant, a), _stored(source, tenant, b)
    _check_comparable(first.template, second.template)
    a_K, b_K = _weights(source, first), _weights(source, second)
    return VersionsDiff(
        changed(_facts(first), _facts(second)),
        diff_weights(a_K, b_K),
        tuple(_probed(source, (first, second), (a_K, b_K), probes)),
    )


def diff_releases(source: Source, tenant: str, a: str, b: str) -> ReleasesDiff:
    """Raises as `diff_versions` does, and NotFoundError for a release without versions."""
    templates = [_template(source, tenant, release) for release in (a, b)]
    _check_comparable(*templates)
    pairs = [
        diff_weights(_weights(source, first), _weights(source, second))
        for first, second in _pairs(source, tenant, a, b)
    ]
    return ReleasesDiff(
        changed(_shared_facts(templates[0]), _shared_facts(templates[1])), len(pairs), _median(pairs) if pairs else None
    )


def changed(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[FieldChange, ...]:
    return tuple(FieldChange(name, a[name], b[name]) for name in a if a[name] != b[name])


def _stored(source: Source, tenant: str, version: str) -> StoredVersion:
    stored = source.store.version(tenant, version)
    if stored is None:
        raise NotFoundError(
            f"tenant {tenant!r} has no version {version[:80]!r}.", mend="See: idiolect registry list --versions."
        )
    return stored


def _template(source: Source, tenant: str, release: str) -> ReleaseTemplate:
    found = source.store.versions(tenant, release=release, limit=1)
    if not found:
        raise NotFoundError(
            f"tenant {tenant!r} has no version of release {release[:80]!r}.", mend="See: idiolect registry list."
        )
    return found[0].template


def _check_comparable(a: ReleaseTemplate, b: ReleaseTemplate) -> None:
    if (a.scope, a.basis_digest, a.tensors) != (b.scope, b.basis_digest, b.tensors):
        raise InvalidInputError(
            "the two are not written in the same basis, or change other layers, so their weights can't be compared.",
            mend="Compare two of one scope, trained on one global model.",
        )


def _weights(source: Source, stored: StoredVersion) -> FloatArray:
    whole = source.store.with_weights(stored)
    tensors = verify_version(stored.template, whole.version, source.signer)
    flat = np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)
    return np.asarray(flat * (stored.template.alpha / stored.template.rank))


def _probed(
    source: Source,
    both: tuple[StoredVersion, StoredVersion],
    weights: tuple[FloatArray, FloatArray],
    probes: Sequence[tuple[str, str]],
) -> list[ProbeScore]:
    """Nothing if the two are bound to another model than the live one: no other is loaded."""
    template = both[0].template
    if not probes or source.store.live_global() != template.global_digest:
        return []
    if template.kind == LORA:
        engine = source.engine()
        bound = engine is not None and engine.model.digest == template.global_digest
        return _probed_loras(source, engine, both, probes) if engine is not None and bound else []
    model = source.model()
    if model.digest != template.global_digest:
        return []  # another one went live in between
    return score_probes(model, template.scope == "user", *weights, probes)


def _probed_loras(
    source: Source,
    engine: LoraEngine,
    both: tuple[StoredVersion, StoredVersion],
    probes: Sequence[tuple[str, str]],
) -> list[ProbeScore]:
    from idiolect_adapters.runtime.loras import LoraStack

    bare_N = engine.project(probes, [None] * len(probes))[:, 0]
    added = []
    for stored in both:
        whole = source.store.with_weights(stored)
        tensors = verify_version(whole.template, whole.version, source.signer)
        stack = LoraStack(((engine.load(whole.template, tensors, whole.version.weights_sha256), 1.0),))
        added.append((engine.project(probes, [stack] * len(probes))[:, 0] - bare_N).tolist())
    return [ProbeScore(prompt, text, a, b) for (prompt, text), a, b in zip(probes, *added, strict=True)]


def _pairs(source: Source, tenant: str, a: str, b: str) -> Iterator[tuple[StoredVersion, StoredVersion]]:
    """Owners of `a` in the order of its versions, with their version in `b`. One page of `a` in memory at a time."""
    after, found = "", 0
    while page := source.store.versions(tenant, release=a, after=after, limit=_PAGE):
        for first in page:
            second = _of_same_owner(source, tenant, b, first)
            if second is not None:
                yield first, second
                found += 1
                if found == MAX_PAIRS:
                    return
        after = page[-1].version.id


def _of_same_owner(source: Source, tenant: str, release: str, first: StoredVersion) -> StoredVersion | None:
    owner = first.version.subject
    found = source.store.versions(tenant, subject=owner, release=release, limit=_PAGE)
    return next((stored for stored in found if stored.version.domain == first.version.domain), None)


def _median(pairs: Sequence[WeightsDiff]) -> WeightsDiff:
    cosines = [pair.cosine for pair in pairs if pair.cosine is not None]
    return WeightsDiff(
        median(pair.norm_a for pair in pairs),
        median(pair.norm_b for pair in pairs),
        median(pair.distance for pair in pairs),
        median(cosines) if cosines else None,
    )


def _facts(stored: StoredVersion) -> dict[str, str]:
    version = stored.version
    return _shared_facts(stored.template) | {
        "owner": version.subject or version.domain,
        "release": version.release,
        "generation": str(version.generation),
        "parent": version.parent or "none",
        "evaluation": _listed(version.evaluation),
        "state": "revoked" if stored.revoked else stored.withheld or "good",
    }


def _shared_facts(template: ReleaseTemplate) -> dict[str, str]:
    said = {} if template.privacy is None else template.privacy.to_json()
    privacy = {f"privacy {name}": str(value) for name, value in said.items()}
    return {
        "global model": template.global_digest,
        "trained on": template.data_window,
        "run": template.run,
        "made": template.created_at.isoformat(),
        "producer": template.producer,
        **{f"privacy {field.name}": "not stated" for field in fields(PrivacyStatement)},
        **privacy,
    }


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items())) or "none"
