"""idiolect rollout start|list|show|evaluate|hold|resume|abort"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from idiolect.audit import INSTALLATION
from idiolect.errors import InvalidInputError
from idiolect.rollouts.plan import DEFAULT_GUARDRAILS, METRICS, Candidate, CandidateKind, Guardrail, Plan, Rollout
from idiolect.stores.ports import Store
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Reason, Tenant, check_tenant, console, settings_for
from idiolect_services.rollout_views import detail_of
from idiolect_services.rollouts import evaluate_all
from idiolect_services.wiring import open_installation

app = typer.Typer(help="Try a candidate on a share of people first.", no_args_is_help=True)

ACTOR = "cli"
_DEFAULTS = Plan()

Id = Annotated[str, typer.Argument(help="A rollout's id.")]


@app.command("start")
def start(
    reason: Reason,
    release: Annotated[str | None, typer.Option(help="The candidate: a release.")] = None,
    version: Annotated[str | None, typer.Option(help="The candidate: one version of a domain.")] = None,
    global_model: Annotated[
        str | None,
        typer.Option(
            "--global", help="The candidate: a staged global model, by its digest or as latest. Of all tenants."
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="The candidate: a factor on everybody's strength; 0 is off.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Shares of people, rising.")] = ",".join(map(str, _DEFAULTS.steps)),
    margin: Annotated[list[str] | None, typer.Option(help="METRIC=HARM that is tolerated; repeat for several.")] = None,
    min_people: Annotated[int, typer.Option(help="In each arm, before a step may end well.")] = _DEFAULTS.min_people,
    per_person: Annotated[int, typer.Option(help="Requests of a person that are averaged.")] = _DEFAULTS.per_person,
    slow_ms: Annotated[float, typer.Option(help="Scoring that takes longer is slow.")] = _DEFAULTS.slow_ms,
    alpha: Annotated[float, typer.Option(help="Bound on a false alarm.")] = _DEFAULTS.alpha,
    draft: Annotated[bool, typer.Option("--draft", help="Serve nobody yet.")] = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Give a candidate to the first share of people. The server evaluates and advances it.

    A global model is tried on people of all tenants, and at the end becomes live for all.

    Example: idiolect rollout start --strength 0.5 --steps 0.5 --reason "is half as strong as good?"
    """
    candidate = _candidate(release, version, strength, global_model)
    plan = Plan(_shares(steps), _guardrails(margin), min_people, per_person, slow_ms, alpha)
    with open_installation(settings_for(home)) as installation:
        owner = INSTALLATION if candidate.kind == "global" else check_tenant(installation.store, tenant)
        made = installation.store.create_rollout(
            owner, candidate, plan, installation.clock.now(), reason=reason, actor=ACTOR, start=not draft
        )
    _say(made)


def _candidate(release: str | None, version: str | None, strength: float | None, global_model: str | None) -> Candidate:
    named: list[tuple[CandidateKind, str, float | None]] = []
    if release is not None:
        named.append(("release", release, None))
    if version is not None:
        named.append(("version", version, None))
    if global_model is not None:
        named.append(("global", global_model, None))
    if strength is not None:
        named.append(("setting", "", strength))
    if len(named) != 1:
        raise InvalidInputError(
            f"{len(named)} candidates were named.",
            mend="Use exactly one of --release, --version, --global and --strength.",
        )
    return Candidate(*named[0])


def _shares(steps: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in steps.split(","))
    except ValueError as error:
        raise InvalidInputError(f"--steps {steps!r} are not numbers.", mend="Use 0.01,0.05,0.25,1.") from error


def _guardrails(margins: list[str] | None) -> tuple[Guardrail, ...]:
    if not margins:
        return DEFAULT_GUARDRAILS
    found = []
    for text in margins:
        metric, _, value = text.partition("=")
        known = next((name for name in METRICS if name == metric), None)
        try:
            found.append(Guardrail(known, float(value)) if known else None)
        except ValueError:
            found.append(None)
        if found[-1] is None:
            raise InvalidInputError(
                f"--margin {text!r} is not METRIC=NUMBER.", mend=f"The metrics are {', '.join(METRICS)}."
            )
    return tuple(guardrail for guardrail in found if guardrail is not None)


@app.command("list")
def list_rollouts(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows to show.")] = 20,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """The rollouts of a tenant and of global models, newest first.

    Example: idiolect rollout list --limit 5
    """
    with open_installation(settings_for(home)) as installation:
        store = installation.store
        found = list(store.rollouts(INSTALLATION, limit=limit))
        if not found:
            check_tenant(store, tenant)
        found += store.rollouts(tenant, limit=limit)
    found = sorted(found, key=lambda rollout: rollout.created_at, reverse=True)[:limit]
    table = Table(box=None)
    table.add_column("rollout", no_wrap=True, min_width=36)
    for name in ("candidate", "state", "share", "verdict"):
        table.add_column(name, no_wrap=name != "verdict")  # it may take two lines: more than 80 columns are cut
    for rollout in found:
        table.add_row(rollout.id, rollout.candidate.kind, rollout.state, f"{rollout.share:.2%}", rollout.verdict)
    console.print(table)


@app.command("show")
def show(rollout: Id, tenant: Tenant = DEFAULT_TENANT, home: Home = None) -> None:
    """One rollout: its guardrails with bounds that may be looked at at any time, and its history.

    Example: idiolect rollout show 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b
    """
    with open_installation(settings_for(home)) as installation:
        detail = detail_of(installation.store, _owner(installation.store, tenant, rollout), rollout)
    console.print_json(json.dumps(detail))


@app.command("evaluate")
def evaluate(home: Home = None) -> None:
    """Evaluate every active rollout of every tenant once: for cron, where no server runs.

    Example: idiolect rollout evaluate
    """
    with open_installation(settings_for(home)) as installation:
        done = evaluate_all(installation)
    for one in done:
        verb = "moved to" if one.moved else "stays"
        console.print(
            f"{one.rollout.id}: {one.evaluation.verdict}; {verb} {one.rollout.state} at {one.rollout.share:g}"
        )
        console.print(f"  {one.evaluation.explanation}")
    if not done:
        console.print("no rollout is running")


@app.command("hold")
def hold(rollout: Id, reason: Reason, tenant: Tenant = DEFAULT_TENANT, home: Home = None) -> None:
    """Keep a rollout at its step. A breach still rolls it back.

    Example: idiolect rollout hold 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b --reason "the weekend"
    """
    _steer("hold", rollout, reason, tenant, home)


@app.command("resume")
def resume(rollout: Id, reason: Reason, tenant: Tenant = DEFAULT_TENANT, home: Home = None) -> None:
    """Let a rollout that is held, or a draft, go on.

    Example: idiolect rollout resume 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b --reason "looked at it"
    """
    _steer("resume", rollout, reason, tenant, home)


@app.command("abort")
def abort(rollout: Id, reason: Reason, tenant: Tenant = DEFAULT_TENANT, home: Home = None) -> None:
    """Put everybody back on what is live, in one write that waits for no analysis. A running server obeys at once.

    Example: idiolect rollout abort 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b --reason "complaints"
    """
    _steer("abort", rollout, reason, tenant, home)


def _steer(action: str, rollout: str, reason: str, tenant: str, home: Path | None) -> None:
    with open_installation(settings_for(home)) as installation:
        store, now = installation.store, installation.clock.now()
        owner = _owner(store, tenant, rollout)
        if action == "resume":
            found = store.rollout(owner, rollout)
            action = "start" if found is not None and found.state == "draft" else action
        moved = store.steer_rollout(owner, rollout, action, now, reason=reason, actor=ACTOR)
    _say(moved)


def _owner(store: Store, tenant: str, rollout: str) -> str:
    """A global model's rollout is the installation's, whatever the tenant."""
    return INSTALLATION if store.rollout(INSTALLATION, rollout) is not None else check_tenant(store, tenant)


def _say(rollout: Rollout) -> None:
    console.print(f"{rollout.id}: {rollout.state}, {rollout.share:.2%} of people are on the candidate")
