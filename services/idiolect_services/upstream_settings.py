"""Setting a tenant's upstream: the same checks and the same sealing for the API and the command line."""

from __future__ import annotations

from datetime import datetime

from idiolect.upstreams import HostRules, Upstream
from idiolect_services.vault import Vault

UPSTREAM_KEY = "upstream-key"  # what the vault seals it for


def new_upstream(
    rules: HostRules, vault: Vault, tenant: str, base_url: str, model: str | None, api_key: str | None, now: datetime
) -> Upstream:
    """Raises InvalidInputError for an address that this installation does not talk to."""
    rules.target(base_url)
    sealed = None if api_key is None else vault.seal(tenant, UPSTREAM_KEY, api_key)
    return Upstream(base_url, model, sealed, now)


def api_key_of(vault: Vault, tenant: str, upstream: Upstream) -> str | None:
    """Raises ConfigurationError if it was sealed by another installation."""
    return None if upstream.sealed_key is None else vault.open(tenant, UPSTREAM_KEY, upstream.sealed_key)
