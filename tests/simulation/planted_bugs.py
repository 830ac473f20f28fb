"""Bugs to be found: each takes away one of the things that the promises rest on, in our own code."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any
from unittest import mock

from idiolect.registry.resolution import ResolvedVersion
from idiolect.registry.weights import load_weights
from idiolect.stores.sql import SqlStore, resolving
from idiolect_adapters.runtime import features
from idiolect_adapters.runtime.bank import AdapterBank, Owner

Planted = Callable[[], AbstractContextManager[Any]]


@contextmanager
def _refunded() -> Iterator[None]:
    """A reset that gives back what was spent."""
    real = SqlStore.apply_reset

    def apply_reset(self: Any, tenant: str, subject: str, *args: Any, **kwargs: Any) -> Any:
        record = real(self, tenant, subject, *args, **kwargs)
        with closing(sqlite3.connect(self._database.engine.url.database)) as database:
            statement = "UPDATE ledger_accounts SET spent_rho = 0 WHERE tenant = ? AND subject = ?"
            database.execute(statement, (tenant, subject))
            database.commit()
        return record

    with mock.patch.object(SqlStore, "apply_reset", apply_reset):
        yield


def _without_revocation(real: Any) -> Any:
    def fitting(connection: Any, live: Any, *args: Any) -> Any:
        return real(connection, None if live is None else _Unrevoked(live), *args)

    return fitting


class _Unrevoked:
    revoked_at = None

    def __init__(self, row: Any) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


def _cached_for_all() -> AbstractContextManager[Any]:
    one, many = features._key, features._keys
    return mock.patch.multiple(
        features,
        _key=lambda want: ("", *one(want)[1:]),
        _keys=lambda *asked: [("", *key[1:]) for key in many(*asked)],
    )


@contextmanager
def _cached_by_owner() -> Iterator[None]:
    """Whatever was loaded for somebody first is what they get, until they are purged."""
    part, purge = AdapterBank.part, AdapterBank.purge
    first: dict[tuple[int, Owner], ResolvedVersion] = {}

    def cached(self: AdapterBank, owner: Owner, wanted: ResolvedVersion) -> Any:
        return part(self, owner, first.setdefault((id(self), owner), wanted))

    def purged(self: AdapterBank, tenant: str, subject: str) -> int:
        first.pop((id(self), Owner(tenant, "user", subject)), None)
        return purge(self, tenant, subject)

    with mock.patch.multiple(AdapterBank, part=cached, purge=purged):
        yield


def _unchecked(template: Any, version: Any, _signer: Any) -> Any:
    return load_weights(version.weights, template.tensors)


def _instead_of(name: str, value: Any) -> Planted:
    return lambda: mock.patch(name, value)


def _always(name: str, answer: Any) -> Planted:
    return lambda: mock.patch(name, return_value=answer)


# By name: the bug, and the promise that it breaks.
PLANTED: dict[str, tuple[Planted, str]] = {
    "the last look at the generation is left out": (
        _always("idiolect_services.gateway.fencing.may_leave", True),
        "nothing older than an answered reset is served",
    ),
    "adapters are cached by their owner": (_cached_by_owner, "a score is that of the versions it names"),
    "a training publishes for people who were reset meanwhile": (
        _always("idiolect.stores.sql.publishing.is_fenced", False),
        "answered reset",  # nothing is published after it, nothing is left behind by it
    ),
    "a reset waits for no other process": (
        _instead_of("idiolect_services.gateway.fencing.RESET_SECONDS", 0.0),
        "nothing older than an answered reset is served",
    ),
    "a reset refunds what was spent": (_refunded, "what was spent never falls"),
    "a revoked release is still resolved": (
        _instead_of("idiolect.stores.sql.resolving._fitting", _without_revocation(resolving._fitting)),
        "what was revoked before a request is not served to it",
    ),
    "what is remembered is served unconfirmed": (
        _always("idiolect.registry.resolution.Standing.agrees", True),
        "what was revoked before a request is not served to it",
    ),
    "texts are cached without their tenant": (_cached_for_all, "no cache is shared between tenants"),
    "a budget is passed": (_always("idiolect.stores.sql.ledger.fits", True), "no budget is passed"),
    "stored weights are not verified": (
        _instead_of("idiolect_adapters.runtime.verified.verify_version", _unchecked),
        "a score is that of the versions it names",
    ),
    "an opt-out keeps what was learned": (
        _always("idiolect.stores.sql.subjects.erase", {}),
        "answered reset",
    ),
}
