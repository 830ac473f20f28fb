"""idiolect train global|domain|users"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, bars, console, settings_for
from idiolect_services.wiring import open_installation

if TYPE_CHECKING:  # it imports torch, which takes seconds; each command imports what it needs when it runs
    from idiolect_services.trainer import TrainingReport

app = typer.Typer(help="Train the global model, domain adapters and user adapters.", no_args_is_help=True)


@app.command("global")
def train_global(
    full: Annotated[bool, typer.Option("--full", help="Train to the end, not just quickly.")] = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Train the global model on the data sets that were declared public, and make it live.

    Adapters are bound to the global model, so train the domains and users again afterwards.

    Example: idiolect train global --full
    """
    from idiolect_services.training_runs import FULL_EPOCHS, QUICK_EPOCHS, train_global_model

    with open_installation(settings_for(home)) as installation, bars() as shown:
        model = train_global_model(installation, tenant, FULL_EPOCHS if full else QUICK_EPOCHS, shown)
    console.print(f"global model {model.digest[:12]} is live.")


@app.command("domain")
def train_domain(
    domain: Annotated[list[str] | None, typer.Argument(help="Domains to train; all that have data if none.")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Train domain adapters, private for each whole subject.

    Example: idiolect train domain support-replies
    """
    from idiolect_services.training_runs import open_trainer

    with open_installation(settings_for(home)) as installation, bars() as shown:
        trainer = open_trainer(installation)
        for name in domain or installation.store.domains(tenant):
            _say(f"domain {name}", trainer.train_domain(tenant, name, shown.stage(name)))


@app.command("users")
def train_users(
    user: Annotated[list[str] | None, typer.Argument(help="Users to train; all who opted in if none.")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Train user adapters, private for each comparison, and publish them as one release.

    Example: idiolect train users
    """
    from idiolect_services.training_runs import open_trainer

    with open_installation(settings_for(home)) as installation, bars() as shown:
        subjects = [installation.pseudonym(tenant, name) for name in user] if user else None
        trainer = open_trainer(installation)
        _say("users", trainer.train_users(tenant, subjects, shown.stage("reading texts")))


def _say(what: str, report: TrainingReport) -> None:
    console.print(
        f"{what}: {report.published:,} published as release {report.release} at epsilon {report.epsilon:.2f}"
        f" ({report.refused:,} over their budget, {report.fenced:,} reset meanwhile)."
    )
