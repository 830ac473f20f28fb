"""Whole releases over the API: card, promotion, diff, garbage, export and import."""

from __future__ import annotations

import asyncio
import errno
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from serving_world import K, World, assert_problem

from idiolect.errors import UnavailableError
from idiolect.tenancy import Scope
from idiolect_services.gateway.routes import releases as routes

WHY = {"reason": "a test"}
NDJSON = {"Content_Type": "application/x-ndjson"}


def admin(world: World, tenant: str = "acme") -> Any:
    return world.api(world.key(tenant))


def bring(api: Any, content: Any, **headers: str) -> Any:
    return api.raw("/v1/releases/import?reason=back", content, **NDJSON | headers)


def served(world: World) -> str | None:
    found = admin(world).rerank("ann")["personalization"]["adapter"]
    return None if found is None else str(found)


def test_a_release_is_read_and_its_card_says_only_what_was_signed(world: World) -> None:
    world.opt_in("ann")
    made, api = world.publish_user("ann"), admin(world)
    one = f"/v1/releases/{made.release}"
    assert api.get(one).json()["versions"] == 1
    card = api.get(f"{one}/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert "# User adapters" in card.text
    with world.store._database.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE releases SET template = replace(template, '\"delta\": 1e-05', '\"delta\": 1e-09')"
        )
    assert api.get(f"{one}/card").status_code == 500


def test_an_older_release_is_made_live_again_for_all_that_it_holds(world: World) -> None:
    world.opt_in("ann")
    first, second = world.publish_user("ann"), world.publish_user("ann", [0.5] * K)
    assert served(world) == second.id
    answer = admin(world).post(f"/v1/releases/{first.release}/promote", WHY)
    assert (answer.status_code, answer.json()) == (200, {"id": first.release, "moved": 1})
    assert served(world) == first.id
    assert admin(world).post(f"/v1/releases/{first.release}/promote", WHY).json()["moved"] == 0
    world.store.revoke_release("acme", second.release, world.clock.now(), reason="bad", actor="t")
    assert_problem(admin(world).post(f"/v1/releases/{second.release}/promote", WHY), 409, "not_promotable")


def test_a_diff_of_versions_and_of_releases(world: World) -> None:
    world.opt_in("ann")
    first, second = world.publish_user("ann", [1.0] * K), world.publish_user("ann", [2.0] * K)
    found = admin(world).get(f"/v1/registry/diff?a={first.id}&b={second.id}").json()
    assert found["weights"]["cosine"] == pytest.approx(1.0)
    assert found["weights"]["norm_b"] == pytest.approx(2 * found["weights"]["norm_a"])
    assert found["pairs"] is None
    assert "run" in [field["name"] for field in found["fields"]]
    assert [probe["b"] for probe in found["probes"]] == pytest.approx([2 * probe["a"] for probe in found["probes"]])
    assert found["probes"]
    whole = admin(world).get(f"/v1/registry/diff?a={first.release}&b={second.release}").json()
    assert (whole["pairs"], whole["probes"]) == (1, [])
    assert whole["weights"] == found["weights"]


def test_garbage_is_counted_and_deleted_only_when_told(world: World) -> None:
    world.opt_in("ann")
    first = world.publish_user("ann")
    for value in (0.5, 0.7, 0.9):
        world.publish_user("ann", [value] * K)
    world.store.revoke_release("acme", first.release, world.clock.now(), reason="bad", actor="t")
    api = admin(world)
    for body, found, left in (
        ({"older_than_days": 0}, 1, True),
        ({"apply": True}, 0, True),
        ({"apply": True, "older_than_days": 0}, 1, False),
    ):
        answer = api.post("/v1/registry/gc", body).json()
        assert (answer["applied"], answer["versions"]) == (body.get("apply", False), found)
        assert (world.store.version("acme", first.id) is not None) == left
    assert_problem(api.post("/v1/registry/gc", {"older_than_days": -1}), 422, "invalid_input")


def test_a_release_goes_out_and_comes_back(world: World) -> None:
    world.opt_in("ann")
    made, api = world.publish_user("ann"), admin(world)
    out = api.get(f"/v1/releases/{made.release}/export")
    assert (out.status_code, out.headers["content-type"]) == (200, "application/x-ndjson")
    back = bring(api, out.content)
    assert (back.status_code, back.json()["known"]) == (201, True)
    with world.store._database.engine.begin() as connection:
        for table in ("pointers", "versions", "releases"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    assert served(world) is None
    assert bring(api, out.content).json()["versions"] == 1
    assert served(world) is None
    assert api.post(f"/v1/releases/{made.release}/promote", WHY).json()["moved"] == 1
    assert served(world) == made.id


def test_a_file_of_another_tenant_is_refused_and_a_bad_one_answers_a_problem(world: World) -> None:
    made = world.publish_domain("chat")
    content = admin(world).get(f"/v1/releases/{made.release}/export").content
    assert_problem(bring(admin(world, "other"), content), 422, "untrusted_key")
    api = admin(world)
    for bad in (
        b"",
        b"{}\n",
        b"PK\x03\x04" + bytes(100),
        content[:-40],
        content.replace(b"chat", b"char"),
        b"{" * 10**6,
    ):
        assert_problem(bring(api, bad), 422, "corrupt_artifact")
    assert_problem(bring(api, content, Content_Type="application/json"), 415, "unsupported_media_type")
    assert_problem(bring(api, bytes(world.settings.max_import_bytes + 1)), 413, "too_large")
    assert_problem(api.raw("/v1/releases/import", content, **NDJSON), 422, "invalid_input")
    assert_problem(api.raw("/v1/releases/import?reason=a%00b", content, **NDJSON), 422, "invalid_input")
    assert world.store.releases("other") == []


def test_nobody_meets_the_releases_of_another_tenant(world: World) -> None:
    made = world.publish_domain("chat")
    api = admin(world, "other")
    one = f"/v1/releases/{made.release}"
    for path in (one, f"{one}/card", f"{one}/export", f"/v1/registry/diff?a={made.id}&b={made.id}"):
        assert_problem(api.get(path), 404, "not_found")
    assert_problem(api.post(f"{one}/promote", WHY), 404, "not_found")


def test_reading_needs_one_scope_and_moving_or_taking_along_another(world: World) -> None:
    made = world.publish_domain("chat")
    reader = world.api(world.key("acme", Scope.REGISTRY))
    one = f"/v1/releases/{made.release}"
    for path in (one, f"{one}/card", f"/v1/registry/diff?a={made.id}&b={made.id}"):
        assert reader.get(path).status_code == 200
    for answer in (
        reader.get(f"{one}/export"),
        reader.post(f"{one}/promote", WHY),
        reader.post("/v1/registry/gc", {}),
        bring(reader, b""),
    ):
        assert_problem(answer, 404, "not_found")
    nobody = world.api(world.key("acme", Scope.INFER))
    assert_problem(nobody.get(one), 404, "not_found")


def test_too_many_exports_at_once_are_put_off_and_each_frees_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, api = world.publish_domain("chat"), admin(world)
    path = f"/v1/releases/{made.release}/export"
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    for _ in range(3):
        assert api.get(path).status_code == 200
        assert_problem(api.get("/v1/releases/none/export"), 404, "not_found")
    monkeypatch.setattr(routes, "AT_ONCE", 0)
    assert_problem(api.get(path), 503, "overloaded")


def test_a_long_release_is_sent_in_blocks(world: World) -> None:
    made = world.publish_domain("chat")
    lines = list(admin(world).get(f"/v1/releases/{made.release}/export").iter_lines())
    blocks = list(routes._blocks(iter([b"x" * 1000 + b"\n"] * 1000)))
    assert len(lines) == 3
    assert sum(map(len, blocks)) == 1_001_000
    assert max(map(len, blocks)) < 70_000


def bounded(world: World, **bounds: int) -> Any:
    return world.api(world.key(), app=world.make_app(settings=world.settings.model_copy(update=bounds)))


def test_a_release_may_be_larger_than_any_other_body_but_not_than_its_own_bound(world: World) -> None:
    made = world.publish_domain("chat")
    content = admin(world).get(f"/v1/releases/{made.release}/export").content
    assert len(content) > 1024
    assert bring(bounded(world, max_body_bytes=1024), content).json()["known"]
    small = bounded(world, max_import_bytes=len(content) - 1)
    assert_problem(bring(small, content), 413, "too_large")

    async def undeclared() -> AsyncIterator[bytes]:
        yield content

    assert_problem(bring(small, undeclared()), 413, "too_large")


def test_nothing_is_left_on_the_disk_and_a_full_one_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world.publish_domain("chat")
    content, before = admin(world).get(f"/v1/releases/{made.release}/export").content, sorted(world.root.iterdir())
    assert bring(admin(world), content).status_code == 201
    assert_problem(bring(admin(world), b"no release"), 422, "corrupt_artifact")

    class Full(io.BytesIO):
        def write(self, _block: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(routes.tempfile, "TemporaryFile", lambda **_: Full())
        assert_problem(bring(admin(world), content), 503, "unavailable")
    assert bring(admin(world), content).status_code == 201
    assert sorted(world.root.iterdir()) == before


def test_imports_come_one_after_the_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made, api = world.publish_domain("chat"), admin(world)
    content = api.get(f"/v1/releases/{made.release}/export").content
    within: list[httpx.Response] = []

    def another(*_: Any, **__: Any) -> Any:
        within.append(bring(api, content))
        raise UnavailableError("the store is away.")

    monkeypatch.setattr(routes, "import_release", another)
    assert_problem(bring(api, content), 503, "unavailable")
    assert_problem(within[0], 503, "overloaded")
    monkeypatch.undo()
    assert bring(api, content).status_code == 201


def test_a_file_that_trickles_in_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idiolect_services.gateway.bodies.READ_SECONDS", 0.1)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b"{"
            await asyncio.sleep(0.01)

    assert_problem(bring(admin(world), trickle()), 408, "request_timeout")
