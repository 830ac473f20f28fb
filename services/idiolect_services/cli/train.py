"""idiolect train global|carry|domain|users"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from idiolect.errors import BudgetExceededError, InvalidInputError, NotFoundError
from idiolect.signals.context import declared
from idiolect_services.cli.common import DEFAULT_TENANT, Home, Tenant, bars, console, open_for, settings_for

if TYPE_CHECKING:  # it imports torch, which takes seconds; each command imports what it needs when it runs
    from idiolect_services.passage import CarryReport
    from idiolect_services.private_global import PrivateTraining
    from idiolect_services.trainer import TrainingReport

app = typer.Typer(help="Train the global model, domain adapters and user adapters.", no_args_is_help=True)


Staged = Annotated[
    bool, typer.Option("--staged", help="Publish it as live for nobody, for a rollout (idiolect rollout start).")
]
Delta = Annotated[
    float | None, typer.Option(help="Delta of the training and its budget (default: IDIOLECT_DELTA, or 1e-5 or less).")
]


@app.command("global")
def train_global(
    private: Annotated[
        bool, typer.Option("--private", help="Train on people who opted in, privately for each as a whole.")
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon of a private training (default: IDIOLECT_GLOBAL_EPSILON).")
    ] = None,
    delta: Delta = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Chance of each subject to be read in a step of a private training.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Only what people said there, in a private training; may be repeated.")
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option(help="A tenant whose people a private training reads (default: --tenant); may be repeated."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Tune the encoder too: personal rankings of new texts gain a little.")
    ] = False,
    carry: Annotated[bool, typer.Option(help="Carry everybody's adapters to the new model.")] = True,
    staged: Annotated[
        bool,
        typer.Option("--staged", help="Live for nobody, for a rollout (idiolect rollout start --global latest)."),
    ] = False,
    if_none: Annotated[bool, typer.Option("--if-none", help="Do nothing if there is one already.")] = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Train the global model on the data sets that were declared public, and make it live.

    With --private it goes on from the live model, and learns from people who opted in under differential privacy,
    charged to each of them as a whole. Every tenant is served with the result.

    Adapters are bound to the global model, so those that are live are carried to the new one, at no privacy cost. Train
    the domains and users again when their budgets allow.

    Example: idiolect train global --private --epsilon 2
    """
    from idiolect_services.private_global import Source
    from idiolect_services.training_runs import train_global_model, train_private_global_model

    if not private and any(option is not None for option in (epsilon, delta, sample_rate, domain, read)):
        raise InvalidInputError(
            "data that was declared public is trained on without privacy.",
            mend="Add --private, or leave --epsilon, --delta, --sample-rate, --domain and --read out.",
        )
    if private and tune:
        raise InvalidInputError(
            "a private training keeps the encoder of the live model as it is.", mend="Leave --tune out."
        )
    settings = settings_for(home, global_epsilon=epsilon, delta=delta, domain_sample_rate=sample_rate)
    with open_for(settings, tenant) as installation, bars() as shown:
        live = installation.store.live_global() if if_none else None
        if live is not None:
            console.print(f"global model {live[:12]} is live already.")
            return
        if private:
            sources = [Source(name, tuple(domain or ())) for name in dict.fromkeys(read or [tenant])]
            done = train_private_global_model(
                installation, tenant, sources, shown, carry=carry, staged=staged, on_carried=_say_what_was_carried
            )
            model = done.model
        else:
            model = train_global_model(
                installation, tenant, shown, tune=tune, carry=carry, staged=staged, on_carried=_say_what_was_carried
            )
    _say_model(model.digest, staged)
    if private:
        _say_private(done)


def _say_model(digest: str, staged: bool) -> None:
    if not staged:
        console.print(f"global model {digest[:12]} is live.")
        return
    console.print(f"global model {digest} is staged, and serves nobody yet.", soft_wrap=True)
    console.print('Try it: idiolect rollout start --global latest --reason "..."')


@app.command("carry")
def carry_adapters(
    to: Annotated[
        str | None, typer.Option("--to", help="A global model that is to be rolled out: its digest, or latest.")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Carry adapters that are bound to an older global model to the live one, at no privacy cost; with --to those of
    the live model to another, which can be rolled out then.

    `train global` does it by itself; this goes on after a kill, or later. It reads public texts of the tenant, and
    carries the adapters of all tenants.

    Example: idiolect train carry
    """
    from idiolect_services.training_runs import carry_adapters

    with open_for(settings_for(home), tenant) as installation, bars() as shown:
        report = carry_adapters(installation, tenant, shown, to)
    _say_carried(report)


@app.command("domain")
def train_domain(
    domain: Annotated[list[str] | None, typer.Argument(help="Domains to train; all that have data if none.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon of each training (default: IDIOLECT_DOMAIN_EPSILON).")
    ] = None,
    delta: Delta = None,
    sample_rate: Annotated[
        float | None,
        typer.Option(help="Chance of each subject to be read in a step (default: IDIOLECT_DOMAIN_SAMPLE_RATE)."),
    ] = None,
    layers: Annotated[
        int, typer.Option(help="Train a LoRA on so many of the encoder's last layers as well, after the head.", min=0)
    ] = 0,
    task: Annotated[
        list[str] | None, typer.Option(help="Read only what was said of texts for this task; may be repeated.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Read only what was said of texts in this language; may be repeated.")
    ] = None,
    staged: Staged = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Train domain adapters, private for each whole subject.

    Sampling needs less noise for the same epsilon of one training, and takes more of the budget.

    The adapter's manifest says for which --task and --language it was trained. It serves the whole domain all the same.

    Layers pay where the global model does not know the domain and its people judge the same texts again. Each new text
    is then read by the encoder twice, and a new global model needs the domain trained again.

    Example: idiolect train domain support-replies --epsilon 2
    """
    from idiolect_adapters.training.domain_lora import LoraOptions
    from idiolect_services.training_runs import open_trainer

    settings = settings_for(home, domain_epsilon=epsilon, delta=delta, domain_sample_rate=sample_rate)
    with open_for(settings, tenant) as installation, bars() as shown:
        trainer = open_trainer(installation)
        inner = LoraOptions(layers) if layers else None
        context = declared(task or (), language or ())
        trained, left_out = 0, None
        for name in domain or installation.store.domains(tenant):
            try:
                report = trainer.train_domain(
                    tenant, name, shown.stage(name), staged=staged, inner=inner, context=context
                )
            except (BudgetExceededError, NotFoundError) as error:
                if domain:
                    raise
                left_out = error
                console.print(f"domain {name} left out: {error.message}", markup=False)
                continue
            trained += 1
            _say(f"domain {name}", report)
        if left_out is not None and not trained:
            raise left_out


@app.command("users")
def train_users(
    user: Annotated[list[str] | None, typer.Argument(help="Users to train; all who opted in if none.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon of the training (default: IDIOLECT_USER_EPSILON).")
    ] = None,
    delta: Delta = None,
    staged: Staged = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Train user adapters, private for each comparison, and publish them as one release.

    Example: idiolect train users --epsilon 1
    """
    from idiolect_services.training_runs import open_trainer

    settings = settings_for(home, user_epsilon=epsilon, delta=delta)
    with open_for(settings, tenant) as installation, bars() as shown:
        subjects = [installation.pseudonym(tenant, name) for name in user] if user else None
        trainer = open_trainer(installation)
        _say("users", trainer.train_users(tenant, subjects, shown.stage("reading texts"), staged=staged))


def _say(what: str, report: TrainingReport) -> None:
    console.print(
        f"{what}: {report.published:,} published as release {report.release} at epsilon {report.epsilon:.2f}"
        f" ({report.refused:,} over their budget, {report.fenced:,} reset meanwhile).",
        markup=False,
        soft_wrap=True,
    )


def _say_private(done: PrivateTraining) -> None:
    console.print(f"epsilon {done.privacy.epsilon:.2f} per subject ({done.refused:,} over their budget).")
    for tenant, release in done.releases:
        console.print(f"of tenant {tenant}: release {release}", markup=False, soft_wrap=True)


def _say_what_was_carried(report: CarryReport) -> None:
    """Nothing of a first model, which finds no adapters."""
    if report.carried or report.passed_over or report.fenced:
        _say_carried(report)


def _say_carried(report: CarryReport) -> None:
    kept = f"; the new basis says {report.explained:.0%} of what the old one did" if report.carried else ""
    console.print(
        f"{report.carried:,} adapters carried to it ({report.passed_over:,} can't be, {report.fenced:,} reset"
        f" meanwhile){kept}."
    )
