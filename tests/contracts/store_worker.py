"""Work that other processes do on a store, until they are done or killed.

They are forked from a process that has imported everything and opened nothing: SQLite does not survive a fork.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from sqlalchemy import func, select
from store_samples import EVENT, GLOBAL, TENANT, at, dataset, items, opt_in, pairs, template, version

from idiolect.resets.plan import plan_reset
from idiolect.signals.comparison import PreferenceDataset, Rating
from idiolect.stores.ports import ImportOptions, Store
from idiolect.stores.sql import SqlStore, arriving, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from people_keys import open_with_keys

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["idiolect.stores.sql"])

PEOPLE = [f"p{number:02}" for number in range(40)]
RATINGS = 3_000


def votes(digest: str) -> PreferenceDataset:
    return dataset(
        digest=digest,
        items=items(50, prompt=f"prompt {digest}?"),
        ratings=tuple(Rating("rob", number % 50, 1.0) for number in range(RATINGS)),
        adaptation=tuple(pair for person in PEOPLE for pair in pairs(person, 3)),
    )


def import_publish_and_reset(store: Store, seed: int) -> None:
    """One import, one release for everyone, one reset; again and again."""
    chance = random.Random(seed)
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    for number in count():
        name = f"{seed}-{number}"
        store.import_dataset(TENANT, votes(name), ImportOptions(public=True, opt_in=True), at(number))
        generations = {person: store.subject(TENANT, person).generation for person in PEOPLE}
        versions = [version(f"{name}-{p}", name, p, generation=generations[p]) for p in PEOPLE]
        store.publish(name, template(run=name), versions, at(number), reason="trained", actor="trainer")
        person = chance.choice(PEOPLE)
        store.apply_reset(TENANT, person, name, plan_reset("adapter"), at(number))
        opt_in(store, person)


def spend(store: Store, _seed: int) -> None:
    """As many reservations as the budget of 10 runs lets through."""
    for _ in range(10):
        store.reserve(TENANT, "comparison", "race", EVENT, ["ann"], 10.0, at(0))


def check_rules(store: SqlStore) -> None:
    """All or nothing: of every import, release and reset."""
    imported = {info.name for info in store.datasets(TENANT)}
    assert len(store.shared_data(TENANT).ratings) == (RATINGS if imported else 0)
    assert len({item.prompt for item in store.shared_data(TENANT).items}) <= 1
    with store._database.reading(ALL_TENANTS) as connection:
        releases = dict(connection.execute(select(schema.releases.c.id, schema.releases.c.versions)).all())
        history = schema.pointer_history.c
        written = select(history.version).where(history.version.is_not(None), history.name == "live")
        published = {*connection.scalars(written), *connection.scalars(select(schema.versions.c.id))}
        resets = connection.scalars(select(schema.resets.c.id)).all()
        stones = connection.scalar(select(func.count()).select_from(schema.tombstones)) or 0
        subjects = dict(connection.execute(select(schema.subjects.c.subject, schema.subjects.c.generation)).all())
        stored = connection.execute(
            select(schema.versions.c.subject, schema.versions.c.generation, schema.versions.c.release)
        ).all()
    assert len(published) == sum(releases.values())
    assert sum(subjects.values()) == len(resets)
    assert stones == len({person for person, generation in subjects.items() if generation})
    for person, generation, release in stored:
        assert generation == subjects[person], "a version outlived a reset"
        assert release in releases


def be_killed_between_batches(store: SqlStore, _seed: int) -> None:
    """Two of three batches of a release are written then."""
    arriving.BATCH = 1
    database, people, begun = store._database, ("ann", "bob", "cleo"), count()
    write = database.write

    def write_or_die(*call: Any, **how: Any) -> Any:
        if next(begun) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*call, **how)

    database.write = write_or_die  # type: ignore[method-assign]
    versions = [version(f"big-{person}", "big", person) for person in people]
    store.publish("big", template(run="big"), versions, at(5), reason="trained", actor="trainer")


_WORK: dict[str, Callable[[SqlStore, int], object]] = {
    "all": import_publish_and_reset,
    "spend": spend,
    "check": lambda store, _seed: store.check(),
    "killed between batches": be_killed_between_batches,
}


class Worker:
    """A process that waits, ready, until it is told to `go`."""

    def __init__(self, url: str, work: str, seed: int, *, open_first: bool = True) -> None:
        self._connection, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=_run, args=(url, work, seed, open_first, theirs))
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        assert self._connection.poll(60)
        assert self._connection.recv() == "ready"

    def go(self) -> None:
        self._connection.send("go")

    def finish(self, *, kill: bool = False) -> int | None:
        """The exit code: 0 if all went well."""
        if kill:
            self.process.kill()
        self.process.join(60)
        self._connection.close()
        code = self.process.exitcode
        self.process.close()
        return code


def _run(url: str, work: str, seed: int, open_first: bool, connection: Connection) -> None:
    store = open_with_keys(url, lock_timeout_s=60) if open_first else None
    connection.send("ready")
    connection.recv()
    _WORK[work](store or open_with_keys(url, lock_timeout_s=60), seed)
