"""Releases, versions, pointers and what may be served."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select
from store_samples import (
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    give_feedback,
    opt_in,
    pairs,
    publish_domain,
    publish_user,
    template,
    version,
)

from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError, TooLargeError
from idiolect.ids import sha256_hex
from idiolect.registry.manifest import Version, manifest_bytes
from idiolect.registry.pointers import Adapter
from idiolect.registry.resolution import ReleaseSummary, Resolution, ResolvedVersion
from idiolect.registry.weights import INLINE_MAX_BYTES
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import PublishOutcome, Store
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    """Ann opted in, and a global model is live."""
    opt_in(store, "ann")
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    return store


def served(store: Store, subject: str | None = "ann", domain: str | None = "chat") -> tuple[str | None, str | None]:
    """Ids of the domain's and the person's version."""
    resolution = store.resolve(TENANT, subject, domain)
    return (resolution.domain and resolution.domain.id, resolution.user and resolution.user.id)


def publish(store: Store, release: str, *versions: Version, minutes: float = 0) -> PublishOutcome:
    return store.publish(release, template(), versions, at(minutes), reason="trained", actor="trainer")


def test_the_newest_global_model_is_live(store: Store) -> None:
    assert store.live_global() is None
    assert store.resolve(TENANT, "ann", "chat").global_digest is None
    for digest in ("one", "two"):
        store.set_global(digest, at(0), reason="trained", actor="admin")
    assert store.live_global() == "two"


def test_naming_the_live_global_model_again_writes_no_history(store: SqlStore) -> None:
    for digest in ("one", "one", "two", "one"):
        store.set_global(digest, at(0), reason="trained", actor="admin")
    with store._database.reading(ALL_TENANTS) as connection:
        history = connection.scalars(select(schema.global_pointer.c.digest).order_by(schema.global_pointer.c.id))
        assert list(history) == ["one", "two", "one"]


def test_a_published_version_comes_back_byte_for_byte(ready: Store) -> None:
    sent = version("v1", "r1", "ann", parent="v0", evaluation={"accuracy": 0.75})
    assert publish(ready, "r1", sent) == PublishOutcome(1, ())
    stored = ready.version(TENANT, "v1")
    assert stored is not None
    assert (stored.template, stored.version, stored.revoked) == (template(), sent, False)
    assert manifest_bytes(stored.template, stored.version) == manifest_bytes(template(), sent)
    assert ready.version("other", "v1") is None


def test_a_published_version_is_served(ready: Store) -> None:
    publish_user(ready, "v1")
    publish_domain(ready, "d1")
    resolution = ready.resolve(TENANT, "ann", "chat")
    stored = ready.version(TENANT, "v1")
    assert stored is not None
    assert resolution == Resolution(
        global_digest=GLOBAL,
        domain=resolution.domain,
        user=ResolvedVersion("v1", "r-v1", stored.version.weights_sha256, 0),
        state=ready.subject(TENANT, "ann"),
    )
    assert resolution.domain is not None
    assert resolution.domain.id == "d1"


def test_nothing_is_served_across_tenants(ready: Store) -> None:
    publish_user(ready, "v1")
    publish_domain(ready, "d1")
    ready.change_subject("other", "ann", ConsentChange(opted_in=True), at(0))
    resolution = ready.resolve("other", "ann", "chat")
    assert (resolution.user, resolution.domain) == (None, None)


def test_without_a_name_only_the_domain_is_served(ready: Store) -> None:
    publish_user(ready, "v1")
    publish_domain(ready, "d1")
    resolution = ready.resolve(TENANT, None, "chat")
    assert (resolution.state, resolution.user) == (None, None)
    assert served(ready, None) == ("d1", None)
    assert served(ready, "ann", None) == (None, "v1")
    assert ready.resolve(TENANT, "", "").state is None


def test_a_persons_version_is_not_served_to_another_or_as_a_domain(ready: Store) -> None:
    opt_in(ready, "bob")
    publish_user(ready, "v1")
    assert served(ready, "bob") == (None, None)
    assert served(ready, None, "ann") == (None, None)


def test_who_is_unknown_or_paused_gets_no_personal_part_and_the_reason(ready: Store) -> None:
    publish_user(ready, "v1")
    unknown = ready.resolve(TENANT, "zoe", None)
    assert (unknown.user, unknown.state and unknown.state.refusal()) == (None, "unknown_user")
    ready.change_subject(TENANT, "ann", ConsentChange(paused=True), at(1))
    paused = ready.resolve(TENANT, "ann", None)
    assert (paused.user, paused.state and paused.state.refusal()) == (None, "paused")
    ready.change_subject(TENANT, "ann", ConsentChange(paused=False), at(2))
    assert served(ready) == (None, "v1")


def test_the_newest_publish_is_served(ready: Store) -> None:
    publish_user(ready, "v2", minutes=1)
    publish_user(ready, "v1", minutes=2)  # newest by publishing, not by id
    assert served(ready) == (None, "v1")


def test_a_version_of_another_global_model_is_not_served_until_it_is_live_again(ready: Store) -> None:
    publish_user(ready, "v1")
    publish_domain(ready, "d1")
    ready.set_global("other", at(1), reason="trained", actor="admin")
    assert served(ready) == (None, None)
    publish_user(ready, "v2", global_digest="other")
    assert served(ready) == (None, "v2")
    ready.set_global(GLOBAL, at(2), reason="back", actor="admin")
    assert served(ready) == ("d1", "v1")


def test_a_revoked_release_falls_back_to_the_newest_that_fits(ready: Store) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    publish_domain(ready, "d1")
    publish_domain(ready, "d2")
    for release in ("r-v3", "r-d2", "r-v3"):
        ready.revoke_release(TENANT, release, at(1), reason="bad", actor="admin")
    assert served(ready) == ("d1", "v2")
    ready.revoke_release(TENANT, "r-v2", at(2), reason="bad", actor="admin")
    ready.revoke_release(TENANT, "r-d1", at(2), reason="bad", actor="admin")
    assert served(ready) == (None, "v1")
    stored = ready.version(TENANT, "v2")
    assert stored is not None
    assert stored.revoked is True


def test_revoking_one_release_takes_it_from_everyone(ready: Store) -> None:
    opt_in(ready, "bob")
    publish(ready, "r1", version("a1", "r1", "ann"), version("b1", "r1", "bob"))
    ready.revoke_release(TENANT, "r1", at(1), reason="bad", actor="admin")
    assert served(ready, "ann") == served(ready, "bob") == (None, None)


def test_an_unknown_release_can_not_be_revoked(ready: Store) -> None:
    publish_user(ready, "v1")
    for tenant, release in ((TENANT, "missing"), ("other", "r-v1")):
        with pytest.raises(NotFoundError):
            ready.revoke_release(tenant, release, at(0), reason="bad", actor="admin")
    assert served(ready) == (None, "v1")


def test_a_version_trained_before_a_reset_is_fenced(ready: Store) -> None:
    opt_in(ready, "bob")
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(1))
    outcome = publish(ready, "r1", version("a1", "r1", "ann"), version("b1", "r1", "bob"))
    assert outcome == PublishOutcome(1, ("ann",))
    assert ready.version(TENANT, "a1") is None
    assert served(ready, "ann") == (None, None)
    assert served(ready, "bob") == (None, "b1")
    assert publish(ready, "r2", version("a2", "r2", "ann", generation=1)) == PublishOutcome(1, ())
    assert served(ready, "ann") == (None, "a2")


def test_versions_of_people_who_did_not_agree_are_fenced(ready: Store) -> None:
    ready.change_subject(TENANT, "bob", ConsentChange(opted_in=False), at(0))
    ready.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(0))
    people = [version(f"v-{name}", "r1", name) for name in ("ann", "bob", "zoe")]
    assert publish(ready, "r1", *people, version("late", "r1", "eve", generation=1)).fenced == (
        "ann",
        "bob",
        "eve",
        "zoe",
    )
    assert ready.versions(TENANT) == []


def test_a_version_of_a_generation_that_is_not_there_yet_is_fenced(ready: Store) -> None:
    assert publish(ready, "r1", version("v1", "r1", "ann", generation=1)).fenced == ("ann",)


def test_a_tombstone_fences_even_if_the_persons_row_was_restored_from_a_backup(ready: SqlStore) -> None:
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(1))
    ready._database.write(
        ALL_TENANTS, lambda connection: connection.execute(schema.subjects.update().values(generation=0))
    )
    assert publish_user(ready, "v1").fenced == ("ann",)


def test_publishing_the_same_release_again_changes_nothing(ready: Store) -> None:
    first = publish(ready, "r1", version("v1", "r1", "ann"), version("z1", "r1", "zoe"))
    publish_user(ready, "v2")
    assert publish(ready, "r1", version("z1", "r1", "zoe"), version("v1", "r1", "ann"), minutes=9) == first
    assert served(ready) == (None, "v2")


def test_publishing_again_after_a_reset_brings_nothing_back(ready: Store) -> None:
    publish_user(ready, "v1")
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(1))
    publish_user(ready, "v1")
    assert ready.version(TENANT, "v1") is None
    assert served(ready) == (None, None)


def test_another_content_under_the_same_release_is_a_conflict(ready: Store) -> None:
    publish_user(ready, "v1")
    for changed in (
        [version("v1", "r-v1", "ann", evaluation={"accuracy": 1.0})],
        [version("v1", "r-v1", "ann", signature=b"other")],
        [version("v1", "r-v1", "ann", parent="v0")],
        [],
    ):
        with pytest.raises(ConflictError, match="r-v1"):
            publish(ready, "r-v1", *changed)
    with pytest.raises(ConflictError, match="r-v1"):
        publish_user(ready, "v1", run="another")


def test_a_version_id_belongs_to_one_release(ready: Store) -> None:
    publish_user(ready, "v1")
    with pytest.raises(ConflictError):
        publish(ready, "r2", version("v1", "r2", "ann"))
    assert [release.id for release in ready.releases(TENANT)] == ["r-v1"]


def test_a_release_lands_whole_or_not_at_all(ready: Store) -> None:
    opt_in(ready, "bob")
    bad = version("b1", "r1", "bob")
    for broken, error in (
        (replace(bad, weights=b"x" * (INLINE_MAX_BYTES + 1)), TooLargeError),
        (replace(bad, weights=b"other"), CorruptArtifactError),
        (replace(bad, release="r2"), InvalidInputError),
        (replace(bad, subject=""), InvalidInputError),
        (replace(bad, domain="chat"), InvalidInputError),
        (replace(bad, subject="ann"), InvalidInputError),
        (replace(bad, id="a1"), InvalidInputError),
    ):
        with pytest.raises(error):
            publish(ready, "r1", version("a1", "r1", "ann"), broken)
    assert ready.releases(TENANT) == []
    assert ready.versions(TENANT) == []


def test_weights_of_exactly_the_limit_are_stored(ready: Store) -> None:
    weights = b"x" * INLINE_MAX_BYTES
    publish(ready, "r1", version("v1", "r1", "ann", weights=weights, weights_sha256=sha256_hex(weights)))
    stored = ready.version(TENANT, "v1")
    assert stored is not None
    assert stored.version.weights == weights


def test_pointers_keep_their_history_with_reason_and_actor(ready: SqlStore) -> None:
    publish_user(ready, "v1", minutes=1)
    publish_user(ready, "v2", minutes=2)
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(3))
    with ready._database.reading(ALL_TENANTS) as connection:
        assert connection.execute(select(schema.pointers)).all() == []
    moves = reversed(ready.pointer_history(TENANT, Adapter("user", "ann")))
    rows = [(move.name, move.old_version, move.version, move.reason, move.actor) for move in moves]
    assert rows[:2] == [
        ("live", None, "v1", "trained", "trainer"),
        ("live", "v1", "v2", "trained", "trainer"),
    ]
    assert sorted(rows[2:], key=str) == [
        ("live", "v2", None, "reset x1", "subject"),
        ("previous", "v1", None, "reset x1", "subject"),
    ]


def test_the_version_that_was_live_becomes_previous(ready: SqlStore) -> None:
    for name in ("v1", "v2", "v3"):
        publish_user(ready, name)
    table = schema.pointers.c
    with ready._database.reading(ALL_TENANTS) as connection:
        rows = connection.execute(select(table.name, table.version, table.revision).order_by(table.name)).all()
    assert [tuple(row) for row in rows] == [("live", "v3", 3), ("previous", "v2", 2)]


def test_versions_are_listed_in_order_of_id_page_by_page_and_per_person(ready: Store) -> None:
    opt_in(ready, "bob")
    publish_user(ready, "v2")
    publish_user(ready, "v1", "bob")
    publish_domain(ready, "v3")
    assert [stored.version.id for stored in ready.versions(TENANT, limit=2)] == ["v1", "v2"]
    assert [stored.version.id for stored in ready.versions(TENANT, after="v2")] == ["v3"]
    assert [stored.version.id for stored in ready.versions(TENANT, subject="ann")] == ["v2"]
    assert ready.versions("other") == []


def test_releases_are_summed_up_newest_first(ready: Store) -> None:
    publish_user(ready, "v1", minutes=1)
    publish_domain(ready, "d1", minutes=2)
    ready.revoke_release(TENANT, "r-v1", at(3), reason="bad", actor="admin")
    assert ready.releases(TENANT) == [
        ReleaseSummary("r-d1", "domain", at(0).isoformat(), 1, False, 2.0, "subject"),
        ReleaseSummary("r-v1", "user", at(0).isoformat(), 1, True, 2.0, "comparison"),
    ]
    assert [release.id for release in ready.releases(TENANT, limit=1)] == ["r-d1"]


def test_a_large_release_is_published_in_batches(ready: Store) -> None:
    people = [f"p{number:05}" for number in range(5_200)]
    adaptation = dataset(adaptation=tuple(pair for person in people for pair in pairs(person, 1)))
    ready.import_dataset(TENANT, adaptation, OPTED_IN, at(0))
    outcome = publish(ready, "r1", *[version(f"v-{person}", "r1", person) for person in people])
    assert outcome == PublishOutcome(5_200, ())
    assert served(ready, people[0]) == (None, f"v-{people[0]}")
    assert served(ready, people[-1]) == (None, f"v-{people[-1]}")
    again = [version(f"w-{person}", "r2", person) for person in people]
    assert publish(ready, "r2", *again) == outcome
    assert publish(ready, "r2", *again) == outcome
    for person in (people[0], people[4_999], people[5_000], people[-1]):
        assert [(one.name, one.version, one.revision) for one in ready.pointers(TENANT, Adapter("user", person))] == [
            ("live", f"w-{person}", 2),
            ("previous", f"v-{person}", 1),
        ]
        stored = ready.version(TENANT, f"w-{person}")
        assert stored is not None
        assert stored.version == version(f"w-{person}", "r2", person)


def test_a_person_can_be_trained_again_after_a_reset(ready: Store) -> None:
    give_feedback(ready, minutes=1)
    ready.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(2))
    (generation,) = ready.personal_snapshot(TENANT).generation_P
    assert publish_user(ready, "v2", generation=generation) == PublishOutcome(1, ())
    assert served(ready) == (None, "v2")
