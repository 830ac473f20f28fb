"""Administrators who log in at an identity provider: a small real one, that can be told to misbehave."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from serving_world import World, assert_problem, world_at

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.settings import Settings
from idiolect.tenancy import Scope
from idiolect_services.gateway.oidc import Rules, parse_roles
from idiolect_services.gateway.oidc_keys import FRESH_SECONDS, KEEP_SECONDS, REFETCH_SECONDS, IssuerKeys

DISCOVERY, KEYS = "/.well-known/openid-configuration", "/keys"


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """One for each name: making them takes longer than most tests."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Issuer:
    """`keys` is what it publishes; `asked` counts how often each path was asked for; `broken` makes it fail."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.asked: Counter[str] = Counter()
        self.broken = False
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked[self.path] += 1
                status, headers, body = issuer.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.add("one")

    def add(self, kid: str) -> None:
        self.keys[kid] = rsa_key(kid)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.broken:
            return 500, {}, b""
        if path in self.answers:
            return self.answers[path]
        bodies = {
            DISCOVERY: {"issuer": self.url, "jwks_uri": self.url + KEYS},
            KEYS: {"keys": [self.public(kid) for kid in self.keys]},
        }
        return (200, {}, json.dumps(bodies[path]).encode()) if path in bodies else (404, {}, b"")

    def public(self, kid: str) -> dict[str, Any]:
        kind = RSAAlgorithm if isinstance(self.keys[kid], rsa.RSAPrivateKey) else ECAlgorithm
        found = kind.to_jwk(self.keys[kid].public_key(), as_dict=True)
        return {**found, "kid": kid, "use": "sig"}

    def token(self, kid: str = "one", algorithm: str = "RS256", key: Any = None, **claims: Any) -> str:
        now = int(datetime.now(UTC).timestamp())
        said = {"iss": self.url, "aud": "idiolect", "sub": "alice", "iat": now, "exp": now + 300}
        said |= {"tenant": "acme", "roles": ["ops"]} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.keys[kid] if key is None else key, algorithm=algorithm, headers={"kid": kid})

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.stop()


@pytest.fixture
def world(tmp_path: Path, empty_database: Path, issuer: Issuer) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    settings = {
        "oidc_issuer": issuer.url,
        "oidc_audience": "idiolect",
        "oidc_roles": "ops=registry+admin, viewer=registry",
    }
    with world_at(tmp_path, **settings) as made:
        yield made


def refused(world: World, token: str) -> None:
    """As everything is that is no credential: nothing in the answer tells why."""
    response = world.api(token).get("/v1/audit")
    problem, other = assert_problem(response, 401, "not_authenticated"), world.api("nonsense").get("/v1/audit").json()
    assert problem | {"request_id": ""} == other | {"request_id": ""}


def test_an_administrator_may_what_their_role_allows_in_their_tenant(world: World, issuer: Issuer) -> None:
    api = world.api(issuer.token())
    assert api.get("/v1/audit").status_code == 200
    assert api.get("/v1/releases").status_code == 200
    upstream = api.get("/v1/upstream")
    assert_problem(upstream, 404, "not_found")
    viewer = world.api(issuer.token(roles="viewer other"))
    assert viewer.get("/v1/releases").status_code == 200
    assert_problem(viewer.get("/v1/audit"), 404, "not_found")


def test_an_administrator_ranks_nothing_and_touches_no_person(world: World, issuer: Issuer) -> None:
    api = world.api(issuer.token())
    assert_problem(api.post("/v1/rerank", {"query": "q", "documents": ["a"]}), 404, "not_found")
    assert_problem(api.get("/v1/users/ann/personalization"), 404, "not_found")
    assert_problem(api.post("/v1/tokens", {"user": "ann", "scopes": ["infer"]}), 404, "not_found")


def test_the_audit_log_names_who_it_was(world: World, issuer: Issuer) -> None:
    version = world.publish_domain("support")
    world.api(issuer.token(sub="bob@example")).post(f"/v1/releases/{version.release}/revoke", {"reason": "bad"})
    entries = world.store.audit_entries("acme")
    assert "administrator bob@example" in {entry.actor for entry in entries}


def test_a_tenant_sees_nothing_of_another(world: World, issuer: Issuer) -> None:
    version = world.publish_domain("support", tenant="other")
    api = world.api(issuer.token())
    assert_problem(api.post(f"/v1/releases/{version.release}/revoke", {"reason": "bad"}), 404, "not_found")


NOW = int(datetime.now(UTC).timestamp())
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "another audience": {"aud": "something-else"},
    "no audience": {"aud": None},
    "another issuer": {"iss": "https://elsewhere.example"},
    "no issuer": {"iss": None},
    "expired": {"iat": NOW - 1000, "exp": NOW - 100},
    "not yet": {"nbf": NOW + 10_000},
    "from the future": {"iat": NOW + 10_000, "exp": NOW + 20_000},
    "never expires": {"exp": None},
    "expires in words": {"exp": "tomorrow"},
    "no time of issue": {"iat": None},
    "nobody": {"sub": None},
    "a subject with a line break": {"sub": "alice\nadmin"},
    "no tenant": {"tenant": None},
    "a tenant that is no name": {"tenant": "../acme"},
    "a tenant that does not exist": {"tenant": "nobody-has-this"},
    "several tenants": {"tenant": ["acme", "other"]},
    "no role": {"roles": None},
    "an unknown role": {"roles": ["root", "*", ""]},
    "roles that are no list": {"roles": {"ops": True}},
    "roles within roles": {"roles": [["ops"]]},
}


@pytest.mark.parametrize("claims", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
def test_a_token_with_wrong_claims_is_no_credential(world: World, issuer: Issuer, claims: dict[str, Any]) -> None:
    refused(world, issuer.token(**claims))


def hs256_with_the_public_key(issuer: Issuer) -> str:
    """PyJWT refuses to make it, so it is made by hand: HMAC over the PEM, which everybody knows."""
    import base64
    import hashlib
    import hmac

    def packed(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    pem = (
        issuer.keys["one"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    said = ".".join(packed(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "one"}, claims))
    return f"{said}.{packed(hmac.digest(pem, said.encode(), hashlib.sha256))}"


WRONG_SIGNATURES: dict[str, Callable[[Issuer], str]] = {
    "no signature": lambda issuer: issuer.token(algorithm="none", key=""),
    "the public key as a shared secret": hs256_with_the_public_key,
    "a key of somebody else's": lambda issuer: issuer.token(key=rsa_key("stranger")),
    "another kind of key": lambda issuer: issuer.token(algorithm="ES256", key=ec.generate_private_key(ec.SECP256R1())),
    "changed afterwards": lambda issuer: issuer.token()[:-4] + "AAAA",
    "no key named": lambda issuer: jwt.encode(
        {"iss": issuer.url, "aud": "idiolect"}, issuer.keys["one"], algorithm="RS256"
    ),
    "far too long": lambda issuer: issuer.token(padding="x" * 10_000),
    "three dots": lambda issuer: "...",
    "deep": lambda issuer: "[" * 5000 + "." + "x.x",
}


@pytest.mark.parametrize("forge", WRONG_SIGNATURES.values(), ids=WRONG_SIGNATURES)
def test_a_token_that_the_issuer_did_not_sign_is_no_credential(
    world: World, issuer: Issuer, forge: Callable[[Issuer], str]
) -> None:
    assert world.api(issuer.token()).get("/v1/audit").status_code == 200
    refused(world, forge(issuer))


@pytest.mark.parametrize("change", [{"use": "enc"}, {"alg": "RS512"}, {"kty": "oct", "k": "AAAA"}, {"n": 7}])
def test_a_key_that_is_not_for_such_signatures_checks_none(
    world: World, issuer: Issuer, change: dict[str, Any]
) -> None:
    keys = {"keys": [issuer.public("one") | change]}
    issuer.answers[KEYS] = (200, {}, json.dumps(keys).encode())
    refused(world, issuer.token())


def test_a_storm_of_unknown_keys_asks_the_issuer_once(world: World, issuer: Issuer) -> None:
    """Whatever the tokens name, and however many come at once."""
    world.app.state.gateway.authenticator._logins._keys._monotonic = Clock()  # on which no time passes
    assert world.api(issuer.token()).get("/v1/audit").status_code == 200
    assert issuer.asked[KEYS] == 1
    stranger = rsa_key("stranger")

    async def storm() -> None:
        api = world.api()
        tokens = [issuer.token(key=stranger, kid="one") for _ in range(5)]
        forged = [jwt.encode({"iss": issuer.url}, stranger, "RS256", headers={"kid": f"k{n}"}) for n in range(60)]
        sent = [api._send("GET", "/v1/audit", headers={"Authorization": f"Bearer {one}"}) for one in tokens + forged]
        assert {response.status_code for response in await asyncio.gather(*sent)} == {401}

    asyncio.run(storm())
    assert issuer.asked[KEYS] == 1
    assert world.api(issuer.token()).get("/v1/audit").status_code == 200


def test_tokens_of_others_ask_nobody_anything(world: World, issuer: Issuer) -> None:
    refused(world, issuer.token(iss="https://elsewhere.example", key=rsa_key("stranger")))
    refused(world, issuer.token(algorithm="none", key=""))
    assert not issuer.asked


def test_while_the_issuer_is_away_nobody_new_gets_in_and_it_is_said_as_an_outage(world: World, issuer: Issuer) -> None:
    issuer.broken = True
    response = world.api(issuer.token()).get("/v1/audit")
    assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"]
    assert world.api(world.key("acme", Scope.ADMIN)).get("/v1/audit").status_code == 200


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """The keys of the issuer under a clock that is set by hand."""

    def __init__(self, issuer: Issuer) -> None:
        self.clock = Clock()
        self.keys = IssuerKeys(issuer.url, monotonic=self.clock)

    def knows(self, kid: str) -> bool:
        return asyncio.run(self.keys.key(kid, "RS256")) is not None


def test_a_new_key_is_found_after_a_bounded_while_and_a_withdrawn_one_is_forgotten(issuer: Issuer) -> None:
    watched = Watched(issuer)
    assert watched.knows("one")
    issuer.add("two")
    assert not watched.knows("two")
    watched.clock.now = REFETCH_SECONDS
    assert watched.knows("two")
    del issuer.keys["one"]
    assert watched.knows("one")
    watched.clock.now += FRESH_SECONDS + 1
    assert not watched.knows("one")
    assert watched.knows("two")


def test_known_keys_outlive_an_outage_for_a_bounded_while(issuer: Issuer) -> None:
    watched = Watched(issuer)
    assert watched.knows("one")
    issuer.broken = True
    issuer.add("two")
    watched.clock.now = KEEP_SECONDS
    assert watched.knows("one")
    assert not watched.knows("two")
    watched.clock.now = KEEP_SECONDS + 1
    with pytest.raises(UnavailableError, match="issuer"):
        watched.knows("one")
    issuer.broken = False
    watched.clock.now += REFETCH_SECONDS
    assert watched.knows("one")
    assert watched.knows("two")


def test_an_outage_is_not_made_worse_by_asking(issuer: Issuer) -> None:
    watched = Watched(issuer)
    issuer.broken = True
    for _ in range(50):
        with pytest.raises(UnavailableError):
            watched.knows("one")
    assert issuer.asked.total() == 1


STRANGE_ANSWERS: dict[str, tuple[str, tuple[int, dict[str, str], bytes]]] = {
    "another issuer's discovery": (DISCOVERY, (200, {}, b'{"issuer": "https://elsewhere", "jwks_uri": "URL/keys"}')),
    "keys on another host": (DISCOVERY, (200, {}, b'{"issuer": "URL", "jwks_uri": "http://127.0.0.2:1/keys"}')),
    "no address of keys": (DISCOVERY, (200, {}, b'{"issuer": "URL"}')),
    "a redirect": (KEYS, (302, {"Location": "/elsewhere"}, b"")),
    "no JSON": (KEYS, (200, {}, b"<html>")),
    "a list": (KEYS, (200, {}, b"[]")),
    "no keys": (KEYS, (200, {}, b"{}")),
    "far too much": (KEYS, (200, {}, b" " * 300_000 + b'{"keys": []}')),
    "too many keys": (KEYS, (200, {}, json.dumps({"keys": [{"kid": str(n)} for n in range(101)]}).encode())),
    "deep": (KEYS, (200, {}, b"[" * 100_000)),
}


@pytest.mark.parametrize("name", STRANGE_ANSWERS)
def test_strange_answers_of_the_issuer_are_an_outage_and_no_failure(issuer: Issuer, name: str) -> None:
    path, (status, headers, body) = STRANGE_ANSWERS[name]
    issuer.answers[path] = (status, headers, body.replace(b"URL", issuer.url.encode()))
    with pytest.raises(UnavailableError):
        Watched(issuer).knows("one")
    assert issuer.asked["/elsewhere"] == 0


def test_keys_on_another_host_are_used_if_the_operator_says_so(issuer: Issuer) -> None:
    assert asyncio.run(IssuerKeys("https://issuer.example", issuer.url + KEYS).key("one", "RS256")) is not None
    assert issuer.asked[DISCOVERY] == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"oidc_issuer": "http://issuer.example"}, "IDIOLECT_OIDC_ISSUER"),
        ({"oidc_issuer": "https://user@issuer.example"}, "IDIOLECT_OIDC_ISSUER"),
        ({"oidc_issuer": "https://issuer.example?x"}, "IDIOLECT_OIDC_ISSUER"),
        ({"oidc_issuer": "ftp://issuer.example"}, "IDIOLECT_OIDC_ISSUER"),
        ({"oidc_issuer": "https://issuer.example", "oidc_audience": None}, "IDIOLECT_OIDC_AUDIENCE"),
        ({"oidc_issuer": "https://issuer.example", "oidc_jwks_url": "http://keys"}, "IDIOLECT_OIDC_JWKS_URL"),
        ({"oidc_issuer": "https://issuer.example", "oidc_roles": "ops"}, "IDIOLECT_OIDC_ROLES"),
        ({"oidc_issuer": "https://issuer.example", "oidc_roles": "ops=infer"}, "IDIOLECT_OIDC_ROLES"),
        ({"oidc_issuer": "https://issuer.example", "oidc_roles": "=admin"}, "IDIOLECT_OIDC_ROLES"),
    ],
)
def test_settings_that_would_let_the_wrong_ones_in_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Rules.of(Settings(**{"oidc_audience": "idiolect"} | settings))


def test_without_an_issuer_there_is_no_login_and_without_roles_nobody_may_anything() -> None:
    assert Rules.of(Settings()) is None
    assert parse_roles("") == {}
    assert parse_roles(" a=b=registry ,ops = admin+registry") == {
        "a=b": {Scope.REGISTRY},
        "ops": {Scope.ADMIN, Scope.REGISTRY},
    }
