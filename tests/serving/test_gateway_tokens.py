"""Tokens for one end user: what they open, and everything that they don't."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from serving_world import DOCUMENTS, Api, World, assert_problem

from idiolect.clock import SystemClock
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_services.gateway.tokens import AUDIENCE
from idiolect_services.vault import Vault

ALL = ["infer", "feedback", "controls"]
RERANK = {"query": "q", "documents": ["a", "b"]}


def issue(world: World, user: str = "ann", tenant: str = "acme", **fields: Any) -> str:
    response = world.api(world.key(tenant)).post("/v1/tokens", {"user": user, "scopes": ALL} | fields)
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


class SetClock(SystemClock):
    """The system's clock, moved by `ahead`."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock(world: World) -> SetClock:
    clock = SetClock()
    world.app.state.gateway.tokens._clock = clock
    return clock


def test_a_token_opens_its_persons_things(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    api = world.api(issue(world))
    ranked = api.rerank("ann")
    assert ranked["personalization"]["applied"]
    signal = {"inference_id": ranked["id"], "kind": "choice", "value": 3, "user": "ann"}
    assert api.post("/v1/feedback", signal).status_code == 202
    assert api.get("/v1/users/ann/explanation").status_code == 200
    assert api.put("/v1/users/ann/personalization", {"paused": True}).json()["paused"]
    assert api.post("/v1/users/ann/personalization/reset", {"scope": "all"}).status_code == 200


def test_without_a_person_it_ranks_as_for_nobody(world: World) -> None:
    assert world.api(issue(world)).rerank()["personalization"]["reason"] == "no_user"


def _as_somebody_else(api: Api) -> list[tuple[str, Any]]:
    signal = {"inference_id": "x", "kind": "choice", "value": 0, "user": "bob"}
    mine = signal | {"user": "ann"}
    chat = {"model": "m", "messages": [{"role": "user", "content": "q"}], "user": "bob"}
    return [
        ("rerank", api.post("/v1/rerank", RERANK | {"user": "bob"})),
        ("score", api.post("/v1/score", RERANK | {"user": "bob"})),
        ("compare", api.post("/v1/compare", {"query": "q", "a": "a", "b": "b", "user": "bob"})),
        ("chat", api.post("/v1/chat/completions", chat)),
        ("feedback", api.post("/v1/feedback", signal)),
        ("batch", api.post("/v1/feedback", {"signals": [mine, signal]})),
        ("consent", api.get("/v1/users/bob/personalization")),
        ("change", api.put("/v1/users/bob/personalization", {"opted_in": True})),
        ("reset", api.post("/v1/users/bob/personalization/reset", {"scope": "all"})),
        ("receipt", api.get("/v1/users/bob/personalization/resets/r")),
        ("explanation", api.get("/v1/users/bob/explanation")),
        ("encoded", api.get("/v1/users/%62ob/personalization")),
    ]


def test_somebody_else_is_what_does_not_exist(world: World) -> None:
    api = world.api(issue(world))
    missing = api.get("/v1/no/such/address").json() | {"request_id": ""}
    for name, response in _as_somebody_else(api):
        assert_problem(response, 404, "not_found")
        assert response.json() | {"request_id": ""} == missing, name
    assert not world.api(world.key()).get("/v1/users/bob/personalization").json()["known"]


def test_a_token_opens_nothing_of_a_server(world: World) -> None:
    """Every route of the API but those for a person, whatever is added later: refused unless it admits end users."""
    api = world.api(issue(world))
    for path, methods in world.app.openapi()["paths"].items():
        if not path.startswith("/v1/") or "/users/{user}" in path:
            continue
        for method in methods:
            if path in ("/v1/rerank", "/v1/score", "/v1/compare", "/v1/feedback", "/v1/chat/completions"):
                continue
            response = api.send(method.upper(), path.replace("{", "").replace("}", ""), json={})
            # 422: a query that was left out is complained about by its name alone, before any handler runs.
            assert response.status_code == 404 or "query." in response.json()["detail"], (method, path)


@pytest.mark.parametrize("scope", ALL)
def test_a_scope_that_was_not_asked_for_is_not_there(world: World, scope: str) -> None:
    api = world.api(issue(world, scopes=[name for name in ALL if name != scope]))
    calls = {
        "infer": ("POST", "/v1/rerank", RERANK),
        "feedback": ("POST", "/v1/feedback", {"signals": []}),
        "controls": ("PUT", "/v1/users/ann/personalization", {"paused": True}),
    }
    method, path, body = calls[scope]
    assert_problem(api.send(method, path, json=body), 404, "not_found")


@pytest.mark.parametrize(
    "fields",
    [
        {"scopes": []},
        {"scopes": ["admin"]},
        {"scopes": ["registry"]},
        {"scopes": "infer"},
        {"ttl_seconds": 0},
        {"ttl_seconds": 3601},
        {"ttl_seconds": -5},
        {"ttl_seconds": "60"},
        {"user": ""},
        {"user": "a\r\nb"},
        {"user": None},
    ],
)
def test_a_token_that_should_not_be_is_not_made(world: World, fields: dict[str, Any]) -> None:
    body = {"user": "ann", "scopes": ["infer"]} | fields
    assert_problem(world.api(world.key()).post("/v1/tokens", body), 422, "invalid_input")


def test_a_key_gives_away_no_scope_that_it_does_not_have(world: World) -> None:
    limited = world.api(world.key("acme", Scope.CONTROLS, Scope.INFER))
    assert limited.post("/v1/tokens", {"user": "ann", "scopes": ["infer"]}).status_code == 201
    assert_problem(limited.post("/v1/tokens", {"user": "ann", "scopes": ["feedback"]}), 422, "invalid_input")
    without = world.api(world.key("acme", Scope.INFER))
    assert_problem(without.post("/v1/tokens", {"user": "ann", "scopes": ["infer"]}), 404, "not_found")


def test_it_says_nothing_about_who_the_person_is(world: World) -> None:
    token = issue(world, "ann@example.org")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert "example" not in json.dumps(claims)
    assert claims["sub"] == world.pseudonym("acme", "ann@example.org")
    assert claims["exp"] - claims["iat"] == 900


# --- all that is wrong with a token answers alike ---------------------------------------------------------------------


def _key_of(world: World, tenant: str = "acme") -> bytes:
    return Vault(b"\x02" * 32).derive(tenant, "end-user-token")


def _claims(world: World, **changes: Any) -> dict[str, Any]:
    return jwt.decode(issue(world), options={"verify_signature": False}) | changes


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _forged(world: World) -> dict[str, str]:
    good = issue(world)
    key, claims, now = _key_of(world), _claims(world), int(datetime.now(UTC).timestamp())
    head, body, signature = good.split(".")
    public = Ed25519PrivateKey.generate()

    def signed(**changes: Any) -> str:
        return jwt.encode(claims | changes, key, algorithm="HS256")

    def without(name: str) -> str:
        return jwt.encode({k: v for k, v in claims.items() if k != name}, key, algorithm="HS256")

    return {
        "alg none": f"{_part({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "alg None": f"{_part({'alg': 'None'})}.{body}.{signature}",
        "no alg": f"{_part({'typ': 'JWT'})}.{body}.{signature}",
        "HS512": jwt.encode(claims, key * 2, algorithm="HS512"),
        "HS384": jwt.encode(claims, key * 2, algorithm="HS384"),
        "EdDSA": jwt.encode(claims, public, algorithm="EdDSA"),
        "another key": jwt.encode(claims, b"\x00" * 32, algorithm="HS256"),
        "another tenant's key": jwt.encode(claims, _key_of(world, "other"), algorithm="HS256"),
        "another tenant": jwt.encode(claims | {"ten": "other"}, key, algorithm="HS256"),
        "another tenant, its key": jwt.encode(claims | {"ten": "other"}, _key_of(world, "other"), algorithm="HS256"),
        "a tenant that is none": signed(ten="../acme"),
        "a tenant that is a number": signed(ten=7),
        "another body": f"{head}.{_part(claims | {'sub': world.pseudonym('acme', 'bob')})}.{signature}",
        "no signature": f"{head}.{body}.",
        "half a signature": f"{head}.{body}.{signature[:20]}",
        "expired": signed(iat=now - 1000, exp=now - 1),
        "expires now": signed(exp=now),
        "from the future": signed(iat=now + 60, exp=now + 600),
        "too long": signed(exp=now + 7200),
        "for ever": signed(exp=10**18),
        "not a time": signed(exp="soon"),
        "no time": without("exp"),
        "no start": without("iat"),
        "no person": without("sub"),
        "no scopes": without("scp"),
        "no key": without("key"),
        "wrong audience": signed(aud="idiolect"),
        "audiences": signed(aud=["x", "y"]),
        "no audience": without("aud"),
        "unknown scope": signed(scp=["root"]),
        "a key that never was": signed(key="00000000"),
        "crit": jwt.encode(claims, key, algorithm="HS256", headers={"crit": ["x"], "x": 1}),
        "long": good + "A" * 3000,
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.{body}",
        "empty parts": "..",
        "words": "not a token",
        "deep": f"{head}.{base64.urlsafe_b64encode(b'[' * 500).decode()}.{signature}",
    }


def test_every_kind_of_wrong_token_answers_like_no_token_at_all(world: World) -> None:
    nothing = world.api().post("/v1/rerank", RERANK).json() | {"request_id": ""}
    assert AUDIENCE in jwt.decode(issue(world), options={"verify_signature": False})["aud"]
    for name, token in _forged(world).items():
        response = world.api(token).post("/v1/rerank", RERANK)
        assert response.status_code == 401, name
        assert response.json() | {"request_id": ""} == nothing, name
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_admin_scopes_in_a_token_of_our_own_making_are_dropped(world: World) -> None:
    """Even if a later change signed them by mistake."""
    token = jwt.encode(_claims(world, scp=["infer", "admin", "registry"]), _key_of(world), algorithm="HS256")
    api = world.api(token)
    assert api.post("/v1/rerank", RERANK).status_code == 200
    assert_problem(api.get("/v1/privacy/ledger"), 404, "not_found")


def test_a_token_ends_when_it_says_and_not_later(world: World, clock: SetClock) -> None:
    api = world.api(issue(world, ttl_seconds=60))
    clock.ahead = timedelta(seconds=58)
    assert api.post("/v1/rerank", RERANK).status_code == 200
    clock.ahead = timedelta(seconds=60)
    assert_problem(api.post("/v1/rerank", RERANK), 401, "not_authenticated")


def test_revoking_a_key_ends_its_tokens_within_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(world.app.state.gateway.authenticator, "_monotonic", lambda: now[0])
    secret = new_secret()
    key = world.store.create_key("acme", list(Scope), hash_secret(secret), world.clock.now())
    token = world.api(secret).post("/v1/tokens", {"user": "ann", "scopes": ALL}).json()["token"]
    api = world.api(token)
    assert api.post("/v1/rerank", RERANK).status_code == 200
    world.store.revoke_key(key.id, world.clock.now())
    now[0] += 0.6
    assert_problem(api.post("/v1/rerank", RERANK), 401, "not_authenticated")


def test_what_is_remembered_of_a_token_is_no_key(world: World) -> None:
    """The cache holds keys by their hash: what it holds of tokens must not be something that can be sent."""
    secret = new_secret()
    key = world.store.create_key("acme", list(Scope), hash_secret(secret), world.clock.now())
    token = world.api(secret).post("/v1/tokens", {"user": "ann", "scopes": ALL}).json()["token"]
    world.api(token).post("/v1/rerank", RERANK)
    for guess in (f"held acme/{key.id}", f"acme/{key.id}", key.id, f"idio_{key.id}"):
        assert_problem(world.api(guess).post("/v1/rerank", RERANK), 401, "not_authenticated")


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_a_rotated_key_has_the_same_scopes_and_the_old_one_stops_within_a_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(world.app.state.gateway.authenticator, "_monotonic", lambda: now[0])
    old, new = new_secret(), new_secret()
    first = world.store.create_key("acme", [Scope.INFER], hash_secret(old), world.clock.now())
    assert world.api(old).post("/v1/rerank", RERANK).status_code == 200
    second = world.store.rotate_key(first.id, hash_secret(new), world.clock.now())
    assert (second.tenant, second.scopes) == (first.tenant, first.scopes)
    assert second.id != first.id
    assert world.api(new).post("/v1/rerank", RERANK).status_code == 200
    now[0] += 0.6
    assert_problem(world.api(old).post("/v1/rerank", RERANK), 401, "not_authenticated")


def test_the_documents_of_the_world_are_ranked_for_a_token_as_for_a_key(world: World) -> None:
    world.opt_in("ann")
    world.publish_user("ann")
    body = {"query": "q", "documents": DOCUMENTS, "user": "ann"}
    by_token = world.api(issue(world)).post("/v1/rerank", body).json()
    assert by_token["results"] == world.api(world.key()).post("/v1/rerank", body).json()["results"]
