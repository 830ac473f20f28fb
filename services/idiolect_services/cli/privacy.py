"""idiolect privacy show|forecast|audit"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from idiolect.errors import NotFoundError
from idiolect.privacy.accountant import composed_epsilon, epsilon_of_run, filter_epsilon
from idiolect.privacy.budget import Budget, plan_run
from idiolect.privacy.events import UNITS, GaussianEvent, Unit
from idiolect.privacy.forecast import forecast as forecast_of
from idiolect.privacy.ledger import Charge, LedgerRun
from idiolect.privacy.policy import budget_of, delta_of_run
from idiolect.settings import Settings
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, console, open_for, settings_for
from idiolect_services.cli.privacy_audit import audit
from idiolect_services.spent import delta_for_forecast, delta_for_person
from idiolect_services.wiring import Installation

app = typer.Typer(
    help="What was spent of the privacy budgets, what is left, and whether the claims hold.", no_args_is_help=True
)
app.command("audit")(audit)


class UnitOption(StrEnum):
    COMPARISON = "comparison"
    SUBJECT = "subject"

    @property
    def unit(self) -> Unit:
        return "comparison" if self is UnitOption.COMPARISON else "subject"


User = Annotated[str | None, typer.Option(help="The tenant's id of a person.")]
SHOWN = 10  # of the runs that a forecast finds room for
SAMPLED_STEPS = 7  # of a domain training unless --steps says otherwise: the count, and six steps


@app.command("show")
def show(
    user: User = None,
    unit: Annotated[UnitOption | None, typer.Option(help="Only what protects this unit.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most runs to show.")] = 20,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """The runs that were charged, newest first; or what one person was charged, in each unit.

    The two units protect different things, so their costs are never added.

    Example: idiolect privacy show --user brief-01 --unit subject
    """
    units = UNITS if unit is None else (unit.unit,)
    with open_for(settings_for(home), tenant) as installation:
        if user is None:
            runs = installation.store.runs(tenant, unit=None if unit is None else unit.unit, limit=limit)
            _show_runs(installation.settings, runs)
        else:
            _show_person(installation, tenant, _known(installation, tenant, user), units, limit)


@app.command("forecast")
def forecast(
    epsilon: Annotated[float, typer.Option(help="Epsilon of each training.")],
    user: User = None,
    unit: Annotated[UnitOption, typer.Option(help="What the trainings protect.")] = UnitOption.COMPARISON,
    steps: Annotated[
        int | None, typer.Option(help="Releases per training; they matter only where it samples subjects.")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """How many more trainings at an epsilon each the budget has room for: of a person, or of someone new.

    Example: idiolect privacy forecast --epsilon 2 --user brief-01
    """
    settings = settings_for(home)
    with open_for(settings, tenant) as installation:
        budget = budget_of(settings, unit.unit, delta_for_forecast(installation.store, settings, tenant, unit.unit))
        event = _planned(settings, budget, epsilon, steps)
        subject = None if user is None else _known(installation, tenant, user)
        spent_rho = 0.0 if subject is None else _spent_rho(installation, tenant, subject, budget)
    found = forecast_of(spent_rho, budget, event)
    console.print(f"budget: {_budget_line(budget)}")
    console.print(f"spent: epsilon {found.epsilon_now:.2f}")
    trainings = "1 training" if found.runs == 1 and not found.more else f"{found.runs:,} trainings"
    console.print(f"room for {'more than ' if found.more else ''}{trainings} at epsilon {epsilon:g} each")
    for number, after in enumerate(found.epsilon_after[:SHOWN], 1):
        console.print(f"  after {number}: epsilon {after:.2f}")


def _planned(settings: Settings, budget: Budget, epsilon: float, steps: int | None) -> GaussianEvent:
    """What a training will be charged."""
    rate = settings.domain_sample_rate if budget.unit == "subject" else 1.0
    sampled = rate < 1.0
    event = plan_run(
        epsilon,
        budget.delta,
        steps if steps is not None else (SAMPLED_STEPS if sampled else 1),
        allow_weak=settings.allow_weak_privacy,
        sample_rate=rate,
        unsampled_steps=1 if sampled else 0,
    )
    return event.charged


def _known(installation: Installation, tenant: str, user: str) -> str:
    """The pseudonym. People who are in data sets only were never asked, and are charged all the same."""
    subject = installation.pseudonym(tenant, user)
    charged = bool(installation.store.charges(tenant, subject, limit=1))
    if not charged and not installation.store.subject(tenant, subject).known:
        raise NotFoundError(f"tenant {tenant!r} knows no user {user[:80]!r}.", mend="Check the id and --tenant.")
    return subject


def _spent_rho(installation: Installation, tenant: str, subject: str, budget: Budget) -> float:
    since = budget.since(installation.clock.now())
    return installation.store.account(tenant, budget.unit, subject, since=since).spent_rho


def _budget_line(budget: Budget) -> str:
    period = "for ever" if budget.window is None else f"per window of {budget.window.total_seconds() / 86_400:g} days"
    return f"epsilon {budget.epsilon:g} at delta {budget.delta:g} per {budget.unit}, {period}"


def _show_runs(settings: Settings, runs: Sequence[LedgerRun]) -> None:
    for run in runs:
        _print_plain(f"{run.id}  {run.purpose}, {run.accounts:,} accounts per {run.unit}\n    {_cost(settings, run)}")


def _cost(settings: Settings, run: LedgerRun) -> str:
    delta = delta_of_run(settings, run)
    epsilon = epsilon_of_run(run.event, delta)
    state = "refused to everyone" if run.state == "refused" else run.state
    mechanism = f"{run.event.steps} x noise {run.event.noise_multiplier:.2f}"
    cost = f"epsilon {epsilon:.2f} at delta {delta:g}, rho {run.event.rho:.4f}"
    return f"{cost}, {mechanism}, {state}, {run.reserved_at:%Y-%m-%d %H:%M}"


def _show_person(installation: Installation, tenant: str, subject: str, units: Sequence[Unit], limit: int) -> None:
    for unit in units:
        settings = installation.settings
        delta = delta_for_person(installation.store, settings, tenant, unit, subject)
        budget = budget_of(settings, unit, delta)
        ever = installation.store.account(tenant, unit, subject)
        counted = _spent_rho(installation, tenant, subject, budget)
        console.print(f"[bold]per {unit}[/]: {ever.runs} runs, {ever.spent_rho:.4f} in zCDP")
        console.print(f"  epsilon {composed_epsilon(ever.spent_rho, budget.delta):.2f} by exact composition")
        console.print(
            f"  epsilon {filter_epsilon(counted, budget.delta):.2f} by the filter, counted towards the budget"
        )
        console.print(f"  budget: {_budget_line(budget)}")
        _show_charges(settings, installation.store.charges(tenant, subject, unit=unit, limit=limit))


def _show_charges(settings: Settings, charges: Sequence[Charge]) -> None:
    for charge in charges:
        released = "nothing published" if charge.release is None else f"release {charge.release}"
        revoked = " (revoked)" if charge.revoked else ""
        _print_plain(f"  {released}{revoked}, {charge.run.purpose}\n    {_cost(settings, charge.run)}")


def _print_plain(text: str) -> None:
    """Names are data, not markup, and ids stay whole so that they can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
