"""MLflow's registry on a SQLite file. Run by the peer's own Python, so it imports nothing of Idiolect.

Arguments: a folder and the number of registered models. For every line on standard input, a number of operations, it
does so many of each kind and answers with one line of JSON: {kind: [seconds, ...]}.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(folder: str, models: int) -> None:
    from mlflow import MlflowClient  # type: ignore[import-not-found,unused-ignore]

    logging.disable(logging.WARNING)
    url = f"sqlite:///{Path(folder) / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=url, registry_uri=url)
    names = [f"user-{number}" for number in range(models)]
    for name in names:
        client.create_registered_model(name)
        for number in (1, 2):
            client.create_model_version(name, source=f"file:///adapters/{name}/{number}")
        client.set_registered_model_alias(name, "live", "1")
    print("ready", flush=True)
    live = dict.fromkeys(names, "1")
    for line in sys.stdin:
        print(json.dumps(_measure(client, live, int(line))), flush=True)


def _measure(client: Any, live: dict[str, str], count: int) -> dict[str, list[float]]:
    """`live`: the version that each alias points to. Every move goes to the other one."""
    chosen = [random.choice([*live]) for _ in range(count)]  # noqa: S311  not a secret
    create, move, resolve = (
        client.create_model_version,
        client.set_registered_model_alias,
        client.get_model_version_by_alias,
    )
    return {
        "create": [_seconds(create, name, f"file:///adapters/{name}") for name in chosen],
        "move": [_seconds(move, name, "live", _other(live, name)) for name in chosen],
        "resolve": [_seconds(resolve, name, "live") for name in chosen],
    }


def _other(live: dict[str, str], name: str) -> str:
    live[name] = "2" if live[name] == "1" else "1"
    return live[name]


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
