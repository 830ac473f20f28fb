"""A page calls with its user's token, as a browser does it: pages of origins that the operator named, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_world import Api, World, world_at

from idiolect.errors import ConfigurationError
from idiolect_services.gateway.browsers import origins_of

SHOP, LOCAL, OTHER = "https://shop.example", "http://localhost:5173", "https://evil.example"
RANKING = {"query": "q", "documents": ["a", "b"], "user": "ann"}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[World]:
    with world_at(tmp_path, browser_origins=f"{SHOP}, {LOCAL}") as made:
        yield made


def token(world: World) -> Api:
    """What the page has: the token of one person."""
    made = world.api(world.key()).post("/v1/tokens", {"user": "ann", "scopes": ["infer", "controls"]})
    return world.api(made.json()["token"])


def preflight(world: World, origin: str, path: str, method: str, headers: str) -> dict[str, str]:
    """What the browser learns when it asks whether it may. It sends no token then."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    answer = world.api().send("OPTIONS", path, headers=asked)
    return {"status": str(answer.status_code), **answer.headers}


@pytest.mark.parametrize("origin", [SHOP, LOCAL])
@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/v1/rerank", "authorization,content-type,idiolect-timeout-ms"),
        ("POST", "/v2/rerank", "authorization,content-type"),
        ("PUT", "/v1/users/ann/personalization", "authorization,content-type,if-match"),
        ("POST", "/v1/users/ann/personalization/reset", "authorization,content-type,idempotency-key"),
        ("DELETE", "/v1/users/ann", "authorization"),
    ],
)
def test_a_browser_may_call_from_pages_that_the_operator_named(
    shop: World, origin: str, method: str, path: str, headers: str
) -> None:
    told = preflight(shop, origin, path, method, headers)
    assert told["status"] == "200"
    assert told["access-control-allow-origin"] == origin
    assert method in told["access-control-allow-methods"]
    assert {name.strip() for name in headers.split(",")} <= {
        name.strip().lower() for name in told["access-control-allow-headers"].split(",")
    }


def test_the_page_reads_answers_and_refusals_and_what_it_needs_of_their_headers(shop: World) -> None:
    page = token(shop)
    ranked = page.send("POST", "/v1/rerank", json=RANKING, headers={"Origin": SHOP})
    state = page.send("GET", "/v1/users/ann/personalization", headers={"Origin": SHOP})
    refused = page.send("POST", "/v1/rerank", json=RANKING | {"user": "bob"}, headers={"Origin": SHOP})
    assert [answer.status_code for answer in (ranked, state, refused)] == [200, 200, 404]
    for answer in (ranked, state, refused):
        assert answer.headers["access-control-allow-origin"] == SHOP
        assert answer.headers["vary"].lower() == "origin"
        assert "access-control-allow-credentials" not in answer.headers
    assert "etag" in state.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("origin", [OTHER, "null", "https://shop.example.evil.example", "http://shop.example", ""])
def test_pages_of_others_are_told_nothing(shop: World, origin: str) -> None:
    told = preflight(shop, origin, "/v1/rerank", "POST", "authorization,content-type")
    assert told["status"] != "200"
    assert "access-control-allow-origin" not in told
    ranked = token(shop).send("POST", "/v1/rerank", json=RANKING, headers={"Origin": origin})
    assert "access-control-allow-origin" not in ranked.headers


def test_what_exists_and_what_does_not_are_the_same_to_a_browser_that_asks(shop: World) -> None:
    there, nowhere = (preflight(shop, SHOP, path, "POST", "authorization") for path in ("/v1/rerank", "/v1/nothing"))
    for told in (there, nowhere):
        del told["x-request-id"]
    assert there == nowhere


def test_where_nothing_is_set_no_page_may_call(world: World) -> None:
    told = preflight(world, SHOP, "/v1/rerank", "POST", "authorization")
    assert told["status"] == "401"
    assert not [name for name in told if name.startswith("access-control")]


@pytest.mark.parametrize(
    "setting",
    [
        "*",
        "null",
        "shop.example",
        "https://shop.example/",
        "https://shop.example/page",
        "https://*.example",
        "https://Shop.example",
        "https://shop.example:port",
        "https://user@shop.example",
        "https://shop.example\nhttps://evil.example",
        "ftp://shop.example",
    ],
)
def test_what_no_browser_sends_as_an_origin_is_refused_at_the_start(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="IDIOLECT_BROWSER_ORIGINS is no origin"):
        origins_of(f"{SHOP},{setting}")


def test_a_page_that_anybody_on_the_way_could_change_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'http://shop\.example' in .* is not encrypted"):
        origins_of("http://shop.example")


def test_pages_on_the_developers_own_machine_need_no_encryption() -> None:
    own = ("http://localhost", "http://127.0.0.1:3000", "http://[::1]:8080")
    assert origins_of(",".join([*own, own[0]])) == own
