"""idiolect user show|reset"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from idiolect.errors import NotFoundError
from idiolect.ids import new_id
from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.budget import DEFAULT_DELTA
from idiolect.resets.plan import plan_reset
from idiolect.resets.receipt import signed_receipt
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, console, settings_for
from idiolect_services.wiring import open_installation

app = typer.Typer(help="Look at one person's state, and reset it.", no_args_is_help=True)


class What(StrEnum):
    ADAPTER = "adapter"
    FEEDBACK = "feedback"
    ALL = "all"


@app.command("show")
def show(
    user: Annotated[str, typer.Argument(help="The tenant's id of the person.")],
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """What is known about a person: consent, generation, adapter, privacy spent.

    Example: idiolect user show brief-01
    """
    with open_installation(settings_for(home)) as installation:
        subject = installation.pseudonym(tenant, user)
        state = installation.store.subject(tenant, subject)
        resolution = installation.store.resolve(tenant, subject, None)
        spent = installation.store.account(tenant, "comparison", subject)
    if not state.known:
        raise NotFoundError(f"tenant {tenant!r} knows no user {user[:80]!r}.", mend="Check the id and --tenant.")
    console.print(f"opted in: {state.opted_in}   paused: {state.paused}   strength: {state.strength:g}")
    console.print(f"generation: {state.generation}   adapter: {resolution.user.id if resolution.user else 'none'}")
    epsilon = filter_epsilon(spent.spent_rho, DEFAULT_DELTA)
    console.print(
        f"privacy spent: epsilon {epsilon:.2f} at delta {DEFAULT_DELTA:g} per comparison, in {spent.runs} trainings"
    )


@app.command("reset")
def reset(
    user: Annotated[str, typer.Argument(help="The tenant's id of the person.")],
    scope: Annotated[What, typer.Option(help="Forget the adapter; also the feedback; or also the consent.")] = What.ALL,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Forget what was learned of a person, and print the signed receipt. A running server obeys at once.

    Example: idiolect user reset brief-01 --scope adapter
    """
    with open_installation(settings_for(home)) as installation:
        subject = installation.pseudonym(tenant, user)
        record = installation.store.apply_reset(
            tenant, subject, new_id(), plan_reset(scope.value), installation.clock.now()
        )
        receipt = signed_receipt(record, installation.signer)
    console.print_json(json.dumps(receipt))
