from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from serving_world import World, world_at

from idiolect.stores.sql import open_store
from idiolect_services.bench.reset_fleet import RedisServer


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database at the newest schema, made once: bringing one up to date takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "x.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real one, which a test may stop, kill and start again."""
    server = RedisServer(Path(tmp_path_factory.mktemp("r")))
    server.start()
    yield server
    with suppress(subprocess.SubprocessError):
        server.stop()


@pytest.fixture
def client(redis: RedisServer) -> Iterator[Any]:
    """Whoever else reads and writes there. It is empty at first."""
    with redis_client.Redis.from_url(redis.url, protocol=2) as made:
        made.flushall()
        yield made
