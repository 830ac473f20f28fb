"""The two servers of the http benchmark, each one process on a socket that its parent opened.

    python -m idiolect_services.bench.http_servers ours FD HOME
    python -m idiolect_services.bench.http_servers peer FD ANSWER.json

The peer is the least that a FastAPI route can do for the same exchange, on uvicorn as it comes: it parses the same
request model and writes the same answer, and decides, checks and records nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from idiolect_services.bench.http_home import home_settings
from idiolect_services.gateway.schemas.ranking import RerankRequest
from idiolect_services.serving import create_server_app, server_for
from idiolect_services.wiring import open_installation


def main(kind: str, descriptor: str, argument: str) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    listener = socket.socket(fileno=int(descriptor))
    if kind == "peer":
        answer = json.loads(Path(argument).read_bytes())
        uvicorn.Server(
            uvicorn.Config(empty_app(answer), http="h11", ws="none", log_level="warning", access_log=False)
        ).run(sockets=[listener])
        return
    with open_installation(home_settings(Path(argument))) as installation:
        server_for(create_server_app(installation)).run(sockets=[listener])


def _leave_with_parent() -> None:
    """A killed benchmark must not leave servers behind."""
    sys.stdin.buffer.read()
    os._exit(1)


def empty_app(answer: dict[str, Any]) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/rerank")
    async def rerank(_call: RerankRequest) -> JSONResponse:
        return JSONResponse(answer)

    return app


if __name__ == "__main__":
    main(*sys.argv[1:4])
