"""What a reset erases. A pure decision; `stores` carry it out in one transaction, `receipt` proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idiolect.errors import InvalidInputError
from idiolect.ids import check_name
from idiolect.subject_keys import Ending, signals_in

ResetScope = Literal["adapter", "feedback", "all"]
ErasureScope = Literal["adapter", "feedback", "all", "erasure"]  # as in records


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """Steps of one reset. The generation is always raised, and the person's adapters always go: they were learned from
    what is being forgotten. Only `adapter` keeps the raw signals, so that the person can be trained afresh.

    With a `domain`, signals and inferences of other domains stay, and so does the consent elsewhere.
    """

    scope: ErasureScope
    erase_adapters: bool
    erase_signals: bool
    erase_inferences: bool
    withdraw_consent: bool
    domain: str | None = None
    erase_traces: bool = False  # also what a reset keeps as a history

    @property
    def ending(self) -> Ending:
        """Of the person's keys."""
        scope = None if self.domain is None else signals_in(self.domain)
        return Ending(self.erase_adapters, self.erase_signals, scope)

    @property
    def steps(self) -> tuple[str, ...]:
        wanted = (
            ("raise_generation", True),
            ("write_tombstone", True),
            ("destroy_keys", True),
            ("erase_adapters", self.erase_adapters),
            ("erase_signals", self.erase_signals),
            ("erase_inferences", self.erase_inferences),
            ("withdraw_consent", self.withdraw_consent),
            ("erase_traces", self.erase_traces),
            ("purge_memory", True),
        )
        return tuple(name for name, on in wanted if on)


def plan_reset(scope: ResetScope, domain: str | None = None) -> ResetPlan:
    """`adapter` forgets what was learned, `feedback` also what it was learned from, `all` also the consent.

    Raises InvalidInputError for the adapter of one domain: a person has one adapter, which serves every domain.
    """
    if domain is not None:
        check_name("domain", domain)
        if scope == "adapter":
            raise InvalidInputError(
                "a person's adapter serves every domain, so it goes as a whole.", mend="Leave the domain out."
            )
    return ResetPlan(
        scope=scope,
        erase_adapters=True,
        erase_signals=scope in ("feedback", "all"),
        erase_inferences=scope in ("feedback", "all"),
        withdraw_consent=scope == "all",
        domain=domain,
    )


def plan_erasure() -> ResetPlan:
    """Everything of the person. The tombstone stays, and what the ledger charged."""
    return ResetPlan(
        scope="erasure",
        erase_adapters=True,
        erase_signals=True,
        erase_inferences=True,
        withdraw_consent=True,
        erase_traces=True,
    )
