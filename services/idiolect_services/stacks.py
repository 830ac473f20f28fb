"""The verified weights that are live for a tenant: what a user adapter is trained on top of, and what evaluation
reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import CorruptArtifactError
from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.weights import verify_version
from idiolect.signals.comparison import Item
from idiolect_adapters.preference import PreferenceModel
from idiolect_services.quarantine import Quarantine
from idiolect_services.wiring import Installation

FloatArray = NDArray[np.float64]
FALLBACKS = 8  # bad versions of one domain that are passed over


class DomainStack:
    """The domain adapters of one tenant, each loaded once."""

    def __init__(self, installation: Installation, model: PreferenceModel, tenant: str) -> None:
        self._installation = installation
        self._model = model
        self._tenant = tenant

    def deltas(self, items: Sequence[Item], features_I_P: FloatArray) -> FloatArray:
        """[I]: what the live domain adapter adds to each item; 0 where there is none that verifies."""
        domains = np.array([item.domain for item in items], dtype=object)
        directions_I_M = features_I_P[:, 1 + self._model.user_rank :]
        delta_I = np.zeros(len(items))
        for domain in sorted(set(domains)):
            adapter_M = self._adapter(str(domain))
            if adapter_M is not None:
                mask_I = domains == domain
                delta_I[mask_I] = directions_I_M[mask_I] @ adapter_M
        return delta_I

    def _adapter(self, domain: str) -> FloatArray | None:
        for _ in range(FALLBACKS):
            resolved = self._installation.store.resolve(self._tenant, None, domain).domain
            if resolved is None:
                return None
            weights_M = live_weights(self._installation, self._tenant, resolved)
            if weights_M is not None:
                return weights_M
        return None


def live_weights(installation: Installation, tenant: str, resolved: ResolvedVersion) -> FloatArray | None:
    """The weights [K] of a version, scaled by alpha / rank; None if it is gone or does not verify: it is not served
    then, and quarantined, so that resolving again gives the next one.
    """
    stored = installation.store.version(tenant, resolved.id)
    if stored is None or stored.withheld is not None:
        return None
    try:
        tensors = verify_version(stored.template, stored.version, installation.signer)
    except CorruptArtifactError as error:
        Quarantine(installation.store, installation.clock).report(tenant, resolved.id, error)
        return None
    scale = stored.template.alpha / stored.template.rank
    (tensor,) = tensors.values()
    weights_K: FloatArray = tensor[0].astype(np.float64) * scale
    return weights_K
