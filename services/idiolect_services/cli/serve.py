"""idiolect serve"""

from __future__ import annotations

from typing import Annotated

import typer

from idiolect_services.cli.common import Home, console, settings_for
from idiolect_services.wiring import open_installation


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    home: Home = None,
) -> None:
    """Serve the API on the live global model, retraining people as their feedback comes in.

    Example: idiolect serve --port 8080
    """
    from idiolect_services.serving import create_server_app, listen, server_for

    settings = settings_for(home, host=host, port=port)
    with listen(settings) as listener, open_installation(settings) as installation:
        app = create_server_app(installation)
        console.print(f"Serving at http://{settings.host}:{settings.port} (Ctrl-C stops).")
        server_for(app).run(sockets=[listener])
