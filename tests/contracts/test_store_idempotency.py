"""Requests that are sent again: who gets the first answer, and who does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import func, select
from store_samples import TENANT, at, opt_in, shown, signal, template, version

from idiolect.errors import ConflictError, InvalidInputError
from idiolect.registry.pointers import Adapter
from idiolect.rollouts.plan import Candidate, Plan, Rollout
from idiolect.stores.people_ports import ClaimedKey, KeptAnswer
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore, idempotency, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

ONE, TWO = b"\x01" * 32, b"\x02" * 32
ANSWER = KeptAnswer(202, b'{"id":"s"}')


def claim(
    store: Store, fingerprint: bytes = ONE, *, key: str = "k", tenant: str = TENANT, owner: str = "", minutes: float = 0
) -> KeptAnswer | None:
    return store.claim_key(tenant, owner, key, fingerprint, at(minutes), at(minutes + 60)).answer


def kept(store: SqlStore) -> int:
    with store._database.reading(ALL_TENANTS) as connection:
        return connection.scalar(select(func.count()).select_from(schema.idempotency_keys)) or 0


def test_the_first_answer_is_given_again(store: Store) -> None:
    assert claim(store) is None
    store.keep_answer(TENANT, "", "k", ONE, ANSWER)
    store.keep_answer(TENANT, "", "k", ONE, KeptAnswer(500, b"later"))
    assert claim(store, minutes=1) == ANSWER


def test_what_was_never_answered_is_done_again(store: Store) -> None:
    assert claim(store) is None
    assert claim(store) is None


def test_a_key_never_stands_for_two_requests(store: Store) -> None:
    claim(store)
    for _ in range(2):
        with pytest.raises(InvalidInputError) as caught:
            claim(store, TWO)
        assert caught.value.code == "idempotency_key_reused"
        store.keep_answer(TENANT, "", "k", TWO, KeptAnswer(200, b"forged"))
        store.keep_answer(TENANT, "", "k", ONE, ANSWER)
    assert claim(store) == ANSWER


def test_tenants_and_people_do_not_meet_each_others_keys(store: Store) -> None:
    claim(store)
    store.keep_answer(TENANT, "", "k", ONE, ANSWER)
    assert claim(store, TWO, tenant="other") is None
    assert claim(store, TWO, owner="ann") is None
    assert claim(store, ONE, owner="bob") is None


def test_an_expired_key_is_free_again(store: SqlStore) -> None:
    claim(store)
    store.keep_answer(TENANT, "", "k", ONE, ANSWER)
    assert claim(store, minutes=59) == ANSWER
    assert claim(store, TWO, minutes=60) is None
    assert kept(store) == 1


def test_expired_keys_go_with_the_next_one(store: SqlStore) -> None:
    for number in range(5):
        claim(store, key=f"k{number}")
    claim(store, key="other tenant", tenant="other")
    claim(store, key="new", minutes=61)
    assert kept(store) == 2


def test_a_tenant_keeps_a_bounded_number_of_keys(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 3)
    for number in range(8):
        claim(store, key=f"k{number}", minutes=number)
    assert kept(store) == 8
    claim(store, b"\x00" * 32, key="sweep", minutes=8)
    assert kept(store) == 4
    assert claim(store, TWO, key="k0", minutes=9) is None


def test_a_long_answer_is_not_kept(store: Store) -> None:
    claim(store)
    store.keep_answer(TENANT, "", "k", ONE, KeptAnswer(202, b"x" * (idempotency.MAX_ANSWER_BYTES + 1)))
    assert claim(store) is None


def test_of_two_requests_at_once_one_gets_the_key(store: Store) -> None:
    def attempt(fingerprint: bytes) -> str:
        try:
            claim(store, fingerprint)
        except InvalidInputError:
            return "refused"
        return "claimed"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, [bytes([number + 1]) * 32 for number in range(8)]))
    assert sorted(outcomes) == ["claimed"] + ["refused"] * 7


def test_a_signal_that_comes_again_with_other_content_is_a_conflict(store: Store) -> None:
    opt_in(store, "ann", "bob")
    inference = shown(store)
    assert store.add_feedback(TENANT, "ann", signal("s1", inference, value=0), at(1))
    assert not store.add_feedback(TENANT, "ann", signal("s1", inference, value=0, minutes=3), at(4))
    other = shown(store, "i2", texts=("q2", "a", "b"))
    bobs = shown(store, "i3", "bob")
    for person, changed in (
        ("ann", signal("s1", inference, value=1)),
        ("ann", signal("s1", other, value=0)),
        ("bob", signal("s1", bobs, value=0)),
    ):
        with pytest.raises(ConflictError) as caught:
            store.add_feedback(TENANT, person, changed, at(2))
        assert caught.value.code == "signal_id_reused"
    assert len(store.personal_snapshot(TENANT).comparisons) == 2


def test_what_is_rolled_back_under_one_key_at_the_same_time_goes_back_once(store: Store) -> None:
    store.set_global("g" * 64, at(0), reason="first", actor="admin")
    opt_in(store, "ann")
    for number, name in enumerate(("first", "second", "third", "fourth")):
        made = [version(name, f"r-{name}", "ann")]
        store.publish(f"r-{name}", template(), made, at(number), reason="trained", actor="trainer")
    claim(store, minutes=5)
    once, adapter = ClaimedKey("", "k", ONE), Adapter("user", "ann")

    def roll_back(_: int) -> str | None:
        return store.rollback(TENANT, adapter, at(6), reason="worse", actor="admin", once=once).version

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(roll_back, range(4))) == {"third"}
    assert claim(store, minutes=7) == KeptAnswer(204, b"")
    assert store.rollback(TENANT, adapter, at(8), reason="worse", actor="admin").version == "second"


def test_a_rollout_that_is_made_twice_at_the_same_time_is_made_once(store: Store) -> None:
    store.create_tenant(TENANT, at(0))
    halved = Candidate("setting", "", 0.5)

    def make(_: int = 0) -> Rollout:
        plan = Plan((0.5,))
        return store.create_rollout(
            TENANT, halved, plan, at(1), reason="half?", actor="admin", start=True, rollout_id="key-1"
        )

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert {one.id for one in made} == {"key-1"}
    assert len(store.rollouts(TENANT)) == 1
    begun = len(store.rollout_history(TENANT, "key-1"))
    assert make().id == "key-1"
    assert len(store.rollout_history(TENANT, "key-1")) == begun


def test_a_key_is_held_since_it_was_claimed_and_afresh_once_it_was_forgotten(store: Store) -> None:
    def since(minutes: float) -> datetime:
        return store.claim_key(TENANT, "", "k", ONE, at(minutes), at(minutes + 60)).since

    assert [since(0), since(1), since(59)] == [at(0)] * 3
    assert [since(60), since(61)] == [at(60)] * 2
