"""What may be deleted from the registry: the rules, in words that stores carry out.

A version is reachable, and is never touched, while any of these holds:

- a pointer of any name names it;
- its release is not revoked: a fallback or a rollback may need it;
- its release was revoked, or a pointer moved from or to it, within the retention;
- its run's reservation is not settled and is younger than the retention.

What is there of a release whose publishing was cut off, and that nobody sent again within the retention, is unreachable
too, and goes with the release itself.

A revocation is final, so what is unreachable once stays so: collecting needs no pause of those who publish. Rows of
releases stay when their versions are gone: they remember the revocation (a late publish of the same release would bring
it back), and which people a run had charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

RETENTION = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Garbage:
    """Counts and bytes of weights and signatures; `releases` is how many they are of."""

    releases: int
    versions: int
    bytes: int
