"""The command line: thin, one file per group; what is done is done elsewhere."""

from __future__ import annotations

import typer

from idiolect_services.cli.audit import app as audit_app
from idiolect_services.cli.backup import backup, restore
from idiolect_services.cli.bench import bench
from idiolect_services.cli.common import run_app
from idiolect_services.cli.data import import_data
from idiolect_services.cli.demo import demo
from idiolect_services.cli.doctor import doctor
from idiolect_services.cli.evaluate import evaluate
from idiolect_services.cli.keys import app as keys_app
from idiolect_services.cli.migrate import migrate
from idiolect_services.cli.privacy import app as privacy_app
from idiolect_services.cli.registry import app as registry_app
from idiolect_services.cli.rollout import app as rollout_app
from idiolect_services.cli.serve import serve
from idiolect_services.cli.tenant import app as tenant_app
from idiolect_services.cli.train import app as train_app
from idiolect_services.cli.user import app as user_app

app = typer.Typer(
    name="idiolect",
    help="A personalization adapter platform: which of these would this person prefer?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(name="demo")(demo)
app.command(name="import")(import_data)
app.add_typer(train_app, name="train")
app.command(name="serve")(serve)
app.add_typer(registry_app, name="registry")
app.add_typer(audit_app, name="audit")
app.add_typer(rollout_app, name="rollout")
app.add_typer(privacy_app, name="privacy")
app.add_typer(user_app, name="user")
app.add_typer(keys_app, name="keys")
app.add_typer(tenant_app, name="tenant")
app.command(name="eval")(evaluate)
app.command(name="bench")(bench)
app.command(name="doctor")(doctor)
app.command(name="migrate")(migrate)
app.command(name="backup")(backup)
app.command(name="restore")(restore)


def main() -> None:
    run_app(app)
