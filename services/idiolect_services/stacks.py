"""The verified weights that are live for a tenant: what a user adapter is trained on top of, and what evaluation
reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError
from idiolect.registry.manifest import LORA
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.weights import verify_version
from idiolect.signals.comparison import Item
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.loras import Lora, LoraEngine, LoraStack, clash
from idiolect_services.quarantine import Quarantine
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]
FALLBACKS = 8  # bad versions of one domain that are passed over
AT_ONCE = 64


class DomainStack:
    """The domain adapters of one tenant, each loaded once."""

    def __init__(
        self, installation: Installation, model: PreferenceModel, tenant: str, engine: LoraEngine | None = None
    ) -> None:
        self._installation = installation
        self._model = model
        self._tenant = tenant
        self.engine = engine or LoraEngine(model)
        self._adapters: dict[str, FloatArray | Lora | None] = {}

    def applied(self, items: Sequence[Item], features_I_P: FloatArray) -> FloatArray:
        """[I, P]: the features of each item under its domain's live adapter, its part in the score; as they are where
        there is none that verifies."""
        domains = np.array([item.domain for item in items], dtype=object)
        found_I_P = features_I_P.copy()
        for domain in sorted(set(domains)):
            adapter = self._adapter(str(domain))
            rows_I = np.flatnonzero(domains == domain).tolist()
            if isinstance(adapter, Lora):
                found_I_P[rows_I] = self._under([adapter], [items[row] for row in rows_I])
            elif adapter is not None:
                found_I_P[rows_I, 0] += features_I_P[rows_I, 1 + self._model.user_rank :] @ adapter
        return found_I_P

    def scored_under(self, own: Lora, items: Sequence[Item]) -> FloatArray:
        """[I]: scores under a person's own LoRA on top of each item's domain; those of the domain alone where the two
        can't be one stack."""
        domains = np.array([item.domain for item in items], dtype=object)
        found_I = np.zeros(len(items))
        for domain in sorted(set(domains)):
            adapter, rows = self._adapter(str(domain)), np.flatnonzero(domains == domain).tolist()
            below = [adapter] if isinstance(adapter, Lora) else []
            loras = below if below and clash(below[0], own) else [*below, own]
            rows_I_P = self._under(loras, [items[row] for row in rows])
            found_I[rows] = rows_I_P[:, 0]
            if isinstance(adapter, np.ndarray):
                found_I[rows] += rows_I_P[:, 1 + self._model.user_rank :] @ adapter
        return found_I

    def _under(self, loras: Sequence[Lora], items: Sequence[Item]) -> FloatArray:
        stack = LoraStack(tuple((lora, 1.0) for lora in loras))
        parts = [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
        return np.concatenate(
            [self.engine.project([(item.prompt, item.text) for item in some], [stack] * len(some)) for some in parts]
        )

    def _adapter(self, domain: str) -> FloatArray | Lora | None:
        if domain not in self._adapters:
            self._adapters[domain] = self._loaded(domain)
        return self._adapters[domain]

    def _loaded(self, domain: str) -> FloatArray | Lora | None:
        for _ in range(FALLBACKS):
            resolved = self._installation.store.resolve(self._tenant, None, domain).domain
            if resolved is None:
                return None
            adapter = live_adapter(self._installation, self._tenant, resolved, self.engine)
            if adapter is not None:
                return adapter
        return None


def live_weights(installation: Installation, tenant: str, resolved: ResolvedVersion) -> FloatArray | None:
    """As `live_adapter`, where only a head adapter will do; None for any other."""
    found = live_adapter(installation, tenant, resolved, None)
    return found if isinstance(found, np.ndarray) else None


def live_adapter(
    installation: Installation, tenant: str, resolved: ResolvedVersion, engine: LoraEngine | None
) -> FloatArray | Lora | None:
    """The weights [K] of a version, scaled by alpha / rank, or its LoRA (None without an engine). None if it is gone or
    does not verify: it is not served then, and quarantined, so that resolving again gives the next one.
    """
    stored = installation.store.version(tenant, resolved.id)
    if stored is None or stored.withheld is not None or (stored.template.kind == LORA and engine is None):
        return None
    try:
        stored = installation.store.with_weights(stored)
        tensors = verify_version(stored.template, stored.version, installation.signer)
        if stored.template.kind == LORA and engine is not None:
            return engine.load(stored.template, tensors, stored.version.weights_sha256)
    except CorruptArtifactError as error:
        Quarantine(installation.store, installation.clock).report(tenant, resolved.id, error)
        return None
    scale = stored.template.alpha / stored.template.rank
    (tensor,) = tensors.values()
    weights_K: FloatArray = tensor[0].astype(np.float64) * scale
    return weights_K
