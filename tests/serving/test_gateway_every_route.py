"""Every route with every wrong credential. What a caller may not see answers exactly like what does not exist, leaves
no trace, and costs the same: it is told apart by nothing, so also not by time."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from every_route import UPSTREAM, WITH_LAYERS, Settled, guarded, with_upstream
from serving_world import World, world_at

from idiolect.tenancy import Scope, hash_secret, new_secret

MISSING = "/v1/no/such/address"
METHODS = ("GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")


@pytest.fixture
def full_world(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, upstream_hosts=UPSTREAM) as made:
        yield with_upstream(made)


@pytest.fixture
def acme(full_world: World) -> Settled:
    return Settled(full_world)


@pytest.fixture
def other(full_world: World) -> Settled:
    return Settled(full_world, "other", "bob")


def said(response: httpx.Response) -> tuple[int, dict[str, str], str]:
    """All that a caller learns from an answer, but for the id of the request, and that a body was left unread."""
    request_id = response.headers["x-request-id"]
    headers = {name: value for name, value in response.headers.items() if name not in ("x-request-id", "connection")}
    return response.status_code, headers, response.text.replace(request_id, "")


@contextmanager
def nothing_changes(world: World) -> Iterator[None]:
    before = _dump(world)
    yield
    assert _dump(world) == before


def _dump(world: World) -> list[str]:
    with closing(sqlite3.connect(world.root / "x.db")) as database:
        return list(database.iterdump())


def _token(settled: Settled, user: str, scopes: list[str] | None = None) -> str:
    body = {"user": user, "scopes": scopes or ["infer", "feedback", "controls"]}
    return str(settled.world.api(settled.full).post("/v1/tokens", body).json()["token"])


def test_the_right_key_opens_every_route(acme: Settled, subtests: pytest.Subtests) -> None:
    """Or the tests below would show nothing: they compare with what does not exist."""
    for operation in guarded(acme.world.app):
        with subtests.test(str(operation)):
            response = acme.send(operation, acme.world.key("acme", operation.scope))  # type: ignore[arg-type]
            assert operation.is_open(response.status_code), response.text
            acme.settle_after(operation)


def test_whoever_shows_no_valid_key_learns_nothing(acme: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    world = acme.world
    monkeypatch.setattr("idiolect_services.gateway.auth.CACHE_SECONDS", 0.0)
    revoked = new_secret()
    world.store.revoke_key(
        world.store.create_key("acme", list(Scope), hash_secret(revoked), world.clock.now()).id, world.clock.now()
    )
    good = _token(acme, "ann")
    claims = jwt.decode(good, options={"verify_signature": False})
    now = int(datetime.now(UTC).timestamp())
    signing = world.app.state.gateway.tokens._signing_key("acme")
    wrong = {
        "nothing": None,
        "no scheme": acme.full,
        "another scheme": f"Basic {acme.full}",
        "unknown": "Bearer idio_unknown",
        "revoked": f"Bearer {revoked}",
        "expired": "Bearer " + jwt.encode(claims | {"iat": now - 900, "exp": now - 1}, signing, algorithm="HS256"),
        "alg none": "Bearer " + jwt.encode(claims, None, algorithm="none"),
        "another signature": "Bearer " + jwt.encode(claims, b"\x00" * 32, algorithm="HS256"),
    }
    missing = said(world.api().get(MISSING))
    assert missing[0] == 401
    with nothing_changes(world):
        for name, authorization in wrong.items():
            headers = {} if authorization is None else {"Authorization": authorization}
            for operation in guarded(world.app):
                for sent in acme.sent(operation), {"content": b"\xff not json"}:
                    named = headers | sent.pop("headers", {})
                    response = world.api().send(operation.method, acme.path(operation), headers=named, **sent)
                    assert said(response) == missing, (name, str(operation))


def test_without_a_key_no_method_of_any_route_is_told_apart(acme: Settled) -> None:
    world = acme.world
    paths = {acme.path(operation).partition("?")[0] for operation in guarded(world.app)}
    for method in METHODS:
        missing = said(world.api().send(method, MISSING))
        assert missing[0] == 401
        for path in paths:
            assert said(world.api().send(method, path)) == missing, (method, path)


def test_a_key_without_the_scope_is_told_what_a_stranger_to_the_address_is_told(acme: Settled) -> None:
    world = acme.world
    keys = {scope: world.key("acme", *(one for one in Scope if one is not scope)) for scope in Scope}
    with nothing_changes(world):
        for operation in guarded(world.app):
            assert operation.scope is not None
            key = keys[operation.scope]
            missing = said(world.api(key).get(MISSING))
            for changed in {}, {"user": "made-up"}:
                assert said(acme.send(operation, key, changed)) == missing, str(operation)
            for query in "?limit=x", "?limit=0&page_token=x":
                path = acme.path(operation).partition("?")[0] + query
                response = world.api(key).send(operation.method, path)
                assert said(response) == missing, (str(operation), query)


def test_a_wrong_method_is_told_to_whoever_may_use_another_one_there_and_to_nobody_else(acme: Settled) -> None:
    world = acme.world
    routes = guarded(world.app)
    keys = {scope: world.key("acme", scope) for scope in Scope}
    for path in {acme.path(operation).partition("?")[0] for operation in routes}:
        methods = {one.method: one.scope for one in routes if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one.path), path)}
        wrong = next(method for method in METHODS if method not in methods)
        for scope, key in keys.items():
            response = world.api(key).send(wrong, path)
            mine = {method for method, needed in methods.items() if needed is scope}
            if mine:
                assert response.status_code == 405, (wrong, path)
                assert set(response.headers["allow"].split(", ")) == mine
            else:
                assert said(response) == said(world.api(key).send(wrong, MISSING)), (wrong, path)


def test_a_token_opens_what_is_said_to_open_and_only_for_its_person(acme: Settled, subtests: pytest.Subtests) -> None:
    world = acme.world
    world.opt_in("bob")
    theirs = _token(acme, "bob")
    missing = said(world.api(theirs).get(MISSING))
    for operation in guarded(world.app):
        with subtests.test(str(operation)):
            mine = _token(acme, "ann")
            if operation.people:
                response = acme.send(operation, mine)
                assert operation.is_open(response.status_code), response.text
                acme.settle_after(operation)
            names_a_person = "{user}" in operation.path or "user" in (acme.body(operation) or {})
            with nothing_changes(world):
                for token in (theirs,) if operation.people else (theirs, mine):
                    if operation.people and not names_a_person:
                        continue  # ranks without a person, as everybody may
                    assert said(acme.send(operation, token)) == missing


# --- another tenant ---------------------------------------------------------------------------------------------------

IDS = ("adapter_id", "version_id", "release_id", "reset_id", "rollout_id")
NOBODY = "01900000-0000-7000-8000-000000000000"
MADE_UP: dict[str, Any] = {  # of the form of real ones, and of nobody
    "adapter_id": f"user:{'0' * 32}",
    "version_id": NOBODY,
    "release_id": NOBODY,
    "reset_id": "reset-nobody",
    "rollout_id": NOBODY,
    "inference_id": NOBODY,
    "version": NOBODY,
    "candidate": {"kind": "release", "id": NOBODY},
    "user": "nul",
}


def _masked(response: httpx.Response, *names: str) -> tuple[int, str]:
    """Without what is new in every answer: ids, times and signatures."""
    if response.headers["content-type"] == "application/zip":
        return response.status_code, "zip"
    text = response.text
    for name in names:
        text = text.replace(f'"{name}"', '"NAME"')
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[0-9:.+Z]*|\b[0-9a-f]{32,128}\b|eyJ[\w.-]+", "X", text)
    return response.status_code, re.sub(r'"(purge_sequence|created|revision)":\d+', "N", text)


def _elsewhere(acme: Settled) -> dict[str, Any]:
    """Everything that is acme's."""
    return {name: acme.known[name] for name in MADE_UP}


def _rows_of(world: World, tenant: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(world.root / "x.db")) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found: list[tuple[Any, ...]] = []
        for table in sorted(tables):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            if "tenant" in columns:
                found += [
                    (table, *row) for row in database.execute(f"SELECT * FROM {table} WHERE tenant = ?", [tenant])
                ]
    assert len(found) > 20
    return found


def test_what_is_another_tenants_answers_like_what_does_not_exist(
    acme: Settled, other: Settled, subtests: pytest.Subtests
) -> None:
    world, elsewhere = acme.world, _elsewhere(acme)
    secrets = [acme.subject, *(str(acme.known[name]) for name in (*IDS, "inference_id", "version"))]
    before = _rows_of(world, "acme")
    for operation in guarded(world.app):
        with subtests.test(str(operation)):
            theirs = other.send(operation, other.full, elsewhere)
            nothing = other.send(operation, other.full, MADE_UP)
            names = [acme.user, MADE_UP["user"], acme.known["reset_id"], MADE_UP["reset_id"]]
            assert _masked(theirs, *names) == _masked(nothing, *names)
            assert [secret for secret in secrets if secret in theirs.text] == []
            assert _rows_of(world, "acme") == before


class Asked:
    """A store that writes down what it is asked."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(self._store, name)

    def during(self, act: Callable[[], httpx.Response]) -> tuple[int, list[str]]:
        self.names.clear()
        return act().status_code, list(self.names)


def test_refusing_what_exists_takes_the_same_steps_as_what_does_not(
    acme: Settled, other: Settled, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of a stopwatch: the same questions to the store, in the same order."""
    monkeypatch.setattr("idiolect_services.gateway.auth.CACHE_SECONDS", 3600.0)  # however slow this machine is
    world, elsewhere = acme.world, _elsewhere(acme)
    asked = Asked(world.store)
    world.app.state.gateway.close()
    world.app = world.make_app(store=asked)
    by_id = [one for one in guarded(world.app) if any(f"{{{name}}}" in one.path for name in IDS)]
    assert len(by_id) > 10
    for operation in by_id:
        with subtests.test(str(operation)):
            key = world.key("acme", *(scope for scope in Scope if scope is not operation.scope))
            for warm in key, other.full:
                world.api(warm).get(MISSING)  # from now on the key is remembered
            theirs = asked.during(partial(other.send, operation, other.full, elsewhere))
            assert theirs == asked.during(partial(other.send, operation, other.full, MADE_UP))
            assert theirs[0] == 404 or str(operation) in WITH_LAYERS  # those make what they name
            # Without the scope, before anything is looked up.
            assert asked.during(partial(acme.send, operation, key)) == (404, [])
