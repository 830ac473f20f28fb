"""What a reset erases. A pure decision; `stores` carry it out in one transaction, `receipt` proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ResetScope = Literal["adapter", "feedback", "all"]


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """Steps of one reset. The generation is always raised, and the person's adapters always go: they were learned from
    what is being forgotten. Only `adapter` keeps the raw signals, so that the person can be trained afresh."""

    scope: ResetScope
    erase_adapters: bool
    erase_signals: bool
    erase_inferences: bool
    withdraw_consent: bool

    @property
    def steps(self) -> tuple[str, ...]:
        wanted = (
            ("raise_generation", True),
            ("write_tombstone", True),
            ("erase_adapters", self.erase_adapters),
            ("erase_signals", self.erase_signals),
            ("erase_inferences", self.erase_inferences),
            ("withdraw_consent", self.withdraw_consent),
            ("purge_memory", True),
        )
        return tuple(name for name, on in wanted if on)


def plan_reset(scope: ResetScope) -> ResetPlan:
    """`adapter` forgets what was learned, `feedback` also what it was learned from, `all` also the consent."""
    return ResetPlan(
        scope=scope,
        erase_adapters=True,
        erase_signals=scope in ("feedback", "all"),
        erase_inferences=scope in ("feedback", "all"),
        withdraw_consent=scope == "all",
    )
