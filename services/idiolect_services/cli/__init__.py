"""The command line: thin, one file per group; what is done is done elsewhere."""

from __future__ import annotations

import typer

from idiolect_services.cli import bench, data, demo, doctor, keys, registry, serve, train, user
from idiolect_services.cli.common import run_app

app = typer.Typer(
    name="idiolect",
    help="A personalization adapter platform: which of these would this person prefer?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(name="demo")(demo.demo)
app.command(name="import")(data.import_data)
app.add_typer(train.app, name="train")
app.command(name="serve")(serve.serve)
app.add_typer(registry.app, name="registry")
app.add_typer(user.app, name="user")
app.add_typer(keys.app, name="keys")
app.command(name="bench")(bench.bench)
app.command(name="doctor")(doctor.doctor)


def main() -> None:
    run_app(app)
