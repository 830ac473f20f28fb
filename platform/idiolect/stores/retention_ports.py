"""What is asked of a store about how long texts are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from idiolect.retention import Swept


def for_ever() -> bool:
    """For callers who never stop a sweep."""
    return True


class RetentionStore(Protocol):
    def set_retention(
        self, tenant: str, days: int | None, now: datetime, *, actor: str, if_match: str | None = None
    ) -> None:
        """None: the installation's own. Raises NotFoundError for an unknown tenant, InvalidInputError for a number
        that is no retention, PreconditionError if `if_match` is not the `etag_of` what is set."""
        ...

    def retention(self, tenant: str) -> int | None:
        """What the tenant has set; None: the installation's own. Raises NotFoundError for an unknown tenant."""
        ...

    def retentions(self) -> Mapping[str, int | None]:
        """Of every tenant; None where it is the installation's own."""
        ...

    def sweep(
        self,
        tenant: str,
        older_than: datetime,
        now: datetime,
        *,
        actor: str,
        goes_on: Callable[[], bool] = for_ever,
    ) -> Swept:
        """Delete what was served before `older_than`, with all that came of it but the adapters. In bounded batches,
        each a transaction with its entry in the audit log: what is cut off, or stopped by `goes_on`, goes on with the
        next call."""
        ...
