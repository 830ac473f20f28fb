"""idiolect user show|reset|export|erase"""

from __future__ import annotations

import json
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from idiolect.audit import AuditEvent
from idiolect.errors import ConflictError, NotFoundError
from idiolect.ids import new_id
from idiolect.privacy.accountant import filter_epsilon
from idiolect.privacy.policy import delta_of
from idiolect.registry.resolution import ResolvedVersion
from idiolect.resets.fence import RESET_SECONDS
from idiolect.resets.plan import ResetPlan, plan_erasure, plan_reset
from idiolect.resets.purges import progress_of
from idiolect.resets.receipt import signed_receipt
from idiolect_services.cli.common import DEFAULT_TENANT, OPERATOR, Home, Tenant, console, open_for, settings_for
from idiolect_services.exports import Exporter, PeftFiles
from idiolect_services.wiring import Installation

app = typer.Typer(help="Look at one person's state, export, reset or erase it.", no_args_is_help=True)


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
    settings = settings_for(home)
    with open_for(settings, tenant) as installation:
        subject = installation.pseudonym(tenant, user)
        state = installation.store.subject(tenant, subject)
        resolution = installation.store.resolve(tenant, subject, None)
        spent = installation.store.account(tenant, "comparison", subject)
        told = _directions(installation, tenant, resolution.user) if state.known and resolution.user else []
    if not state.known:
        raise NotFoundError(
            f"tenant {tenant!r} knows no user {user[:80]!r}: nobody of this id ever opted in or was reset.",
            mend="Check the id and --tenant. What imported data sets hold of somebody, idiolect user export writes.",
        )
    console.print(f"opted in: {state.opted_in}   paused: {state.paused}   strength: {state.strength:g}")
    console.print(f"generation: {state.generation}   adapter: {resolution.user.id if resolution.user else 'none'}")
    delta = delta_of(settings, 1)
    epsilon = filter_epsilon(spent.spent_rho, delta)
    trainings = "1 training" if spent.runs == 1 else f"{spent.runs:,} trainings"
    console.print(f"privacy spent: epsilon {epsilon:.2f} at delta {delta:g} per comparison, in {trainings}")
    for one in told:
        console.print(f"direction {one['direction']}: {one['weight']:+.2f}. {one['says']}", markup=False)
        for end in ("high", "low"):
            for example in one[end][:1]:
                console.print(f"  {end}: {example['text']!r}", markup=False, highlight=False)


def _directions(installation: Installation, tenant: str, version: ResolvedVersion) -> list[dict[str, Any]]:
    """Where the person stands on each direction of the live model, as `GET .../explanation` tells it."""
    from idiolect_services.directions import Directions
    from idiolect_services.stacks import live_weights

    stored = installation.store.version(tenant, version.id)
    weights_K = live_weights(installation, tenant, version)
    if stored is None or weights_K is None:
        return []
    return Directions.of(installation.load_live_model()).of_person(weights_K, stored.template)


@app.command("reset")
def reset(
    user: Annotated[str, typer.Argument(help="The tenant's id of the person.")],
    scope: Annotated[What, typer.Option(help="Forget the adapter; also the feedback; or also the consent.")] = What.ALL,
    domain: Annotated[str | None, typer.Option(help="Only the feedback or the consent of this domain.")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Forget what was learned of a person, and print the signed receipt. A running server obeys at once.

    Example: idiolect user reset brief-01 --scope adapter
    """
    with open_for(settings_for(home), tenant) as installation:
        _carry_out(installation, tenant, user, plan_reset(scope.value, domain))


@app.command("erase")
def erase(
    user: Annotated[str, typer.Argument(help="The tenant's id of the person.")],
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Erase everything of a person, and print the signed receipt. What stays: that there was somebody under this
    pseudonym, and what the ledger charged. Doing it twice is harmless.

    Example: idiolect user erase brief-01
    """
    with open_for(settings_for(home), tenant) as installation:
        _carry_out(installation, tenant, user, plan_erasure())


@app.command("export")
def export(
    user: Annotated[str, typer.Argument(help="The tenant's id of the person.")],
    file: Annotated[Path, typer.Argument(help="The zip file to write; it must not exist yet.")],
    peft: Annotated[
        bool, typer.Option(help="Also the adapter in PEFT's format, which loads the global model.")
    ] = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Write all that is stored of a person into a zip file that only you can read.

    Example: idiolect user export brief-01 brief-01.zip
    """
    with open_for(settings_for(home), tenant) as installation:
        now, subject = installation.clock.now(), installation.pseudonym(tenant, user)
        exporter = Exporter(installation.store, installation.signer, _peft(installation) if peft else None)
        try:
            target = open(file, "xb", opener=_private)  # noqa: SIM115  closed below
        except FileExistsError:
            raise ConflictError(f"{file} exists already.", mend="Name a new file.") from None
        installation.store.record_audit(tenant, AuditEvent(OPERATOR, "user.export", f"user {subject}"), now)
        try:
            with target:
                for chunk in exporter.chunks(tenant, subject, now):
                    target.write(chunk)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    console.print(f"{file}: {file.stat().st_size} bytes. It is that person's: delete it once they have it.")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _peft(installation: Installation) -> PeftFiles:
    from idiolect_services.peft_export import peft_of

    return peft_of(installation.load_live_model(), installation.signer)


def _carry_out(installation: Installation, tenant: str, user: str, plan: ResetPlan) -> None:
    subject, now = installation.pseudonym(tenant, user), installation.clock.now()
    record = installation.store.apply_reset(tenant, subject, new_id(), plan, now, actor=OPERATOR)
    time.sleep(RESET_SECONDS)  # what servers have under way leaves before this answers
    replicas = installation.store.replicas(installation.clock.now())
    progress = progress_of(record.purge_sequence, installation.store.purge_head(), replicas)
    left = installation.store.blobs_left(record.completed_at)
    console.print_json(json.dumps(signed_receipt(record, installation.signer, progress, blobs_left=left)))
