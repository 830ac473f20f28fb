"""Requests that are sent again: who gets the first answer, and who does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from store_samples import TENANT, at, opt_in, shown, signal

from idiolect.errors import ConflictError, InvalidInputError
from idiolect.stores.people_ports import KeptAnswer
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore, idempotency, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS

ONE, TWO = b"\x01" * 32, b"\x02" * 32
ANSWER = KeptAnswer(202, b'{"id":"s"}')


def claim(
    store: Store, fingerprint: bytes = ONE, *, key: str = "k", tenant: str = TENANT, owner: str = "", minutes: float = 0
) -> KeptAnswer | None:
    return store.claim_key(tenant, owner, key, fingerprint, at(minutes), at(minutes + 60))


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
