"""What changed of what is live: said after the commit to whoever loads adapters ahead of need, and to nobody else.

It may be lost, late or made up. Each ranking resolves anew, so all that a swap does is to have that resolve find its
version in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_NAMED = 64  # versions that a swap names; of a larger release only the release is
_NAME = re.compile(r"[^\x00-\x1f,]{1,200}")


@dataclass(frozen=True, slots=True)
class Swap:
    """`versions`: those that became live, or stopped to be; empty: some of `release`, or of the whole tenant. Ids only,
    and nothing of whom."""

    tenant: str
    release: str = ""
    versions: tuple[str, ...] = ()

    def fields(self) -> dict[str, str]:
        return {"tenant": self.tenant, "release": self.release, "versions": ",".join(self.versions)}


OnSwap = Callable[[Swap], None]  # raises nothing, and does not block for long


def swap_in(fields: Mapping[bytes, bytes]) -> Swap | None:
    """None for what can't be one."""
    try:
        tenant, release, named = (fields[name].decode() for name in (b"tenant", b"release", b"versions"))
    except (KeyError, UnicodeDecodeError):
        return None
    versions = tuple(named.split(",", MAX_NAMED)) if named else ()
    names = (tenant, *([release] if release else ()), *versions)
    return Swap(tenant, release, versions) if all(map(_NAME.fullmatch, names)) else None
