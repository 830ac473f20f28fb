"""Whose adapters were used last, and which: a bank's slots know their owners by digests alone.

Not thread-safe: the bank holds its lock around every call.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from idiolect.registry.resolution import ResolvedVersion
from idiolect_adapters.runtime.slab import Owner


class Remembered:
    """At most `most` owners, those that were used last. With 0 it costs nothing, and remembers nobody."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._versions: OrderedDict[Owner, ResolvedVersion] = OrderedDict()
        self._of_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._versions)

    def note(self, owner: Owner, used: ResolvedVersion) -> None:
        if not self.most:
            return
        if owner in self._versions:
            self._versions.move_to_end(owner)
        else:
            self._of_tenant[owner.tenant] += 1
            if len(self._versions) == self.most:
                self.forget(next(iter(self._versions)))
        self._versions[owner] = used

    def forget(self, owner: Owner) -> None:
        if self._versions.pop(owner, None) is not None:
            self._of_tenant[owner.tenant] -= 1
            if not self._of_tenant[owner.tenant]:
                del self._of_tenant[owner.tenant]

    def knows(self, tenant: str) -> bool:
        return tenant in self._of_tenant

    def get(self, owner: Owner) -> ResolvedVersion | None:
        return self._versions.get(owner)

    def of(self, tenant: str) -> list[tuple[Owner, ResolvedVersion]]:
        """Those used last come first."""
        if tenant not in self._of_tenant:
            return []
        return [(owner, used) for owner, used in reversed(self._versions.items()) if owner.tenant == tenant]
