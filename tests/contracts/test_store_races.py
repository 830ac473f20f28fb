"""Many at once, and killed half way: threads, processes, SIGKILL."""

from __future__ import annotations

import random
import signal as signal_numbers
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from store_samples import (
    EVENT,
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    give_feedback,
    opt_in,
    pairs,
    publish_user,
    shown,
    signal,
    template,
    version,
)
from store_worker import Worker, check_rules

from idiolect.consent import ConsentChange
from idiolect.errors import PreconditionError
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Start all calls at the same moment; their results, or what they raised."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def release(*workers: Worker) -> None:
    """Let workers go once all of them are ready."""
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.go()


def test_threads_do_not_spend_the_same_rest_of_a_budget(store: Store) -> None:
    def spend() -> int:
        return sum(
            len(store.reserve(TENANT, "comparison", "race", EVENT, ["ann"], 10.0, at(0)).granted) for _ in range(5)
        )

    assert sum(at_once(*[spend] * 6)) == 10
    assert store.account(TENANT, "comparison", "ann").spent_rho == pytest.approx(10.0)


def test_processes_do_not_spend_the_same_rest_of_a_budget(store: Store, store_url: str) -> None:
    workers = [Worker(store_url, "spend", seed) for seed in range(2)]
    release(*workers)
    assert [worker.finish() for worker in workers] == [0, 0]
    account = store.account(TENANT, "comparison", "ann")
    assert (account.spent_rho, account.runs, len(store.runs(TENANT))) == (10.0, 10, 20)


def test_of_changes_from_the_same_revision_one_wins(store: Store) -> None:
    opt_in(store, "ann")
    changes = [
        lambda: store.change_subject(TENANT, "ann", ConsentChange(strength=0.5), at(1), if_revision=1) for _ in range(6)
    ]
    results = at_once(*changes)
    assert sum(isinstance(result, PreconditionError) for result in results) == 5
    assert store.subject(TENANT, "ann").revision == 2


def test_first_changes_of_an_unknown_person_are_all_applied(store: Store) -> None:
    results = at_once(*[lambda: store.change_subject(TENANT, "ann", ConsentChange(opted_in=True), at(1))] * 6)
    assert sorted(result.revision for result in results) == [1, 2, 3, 4, 5, 6]


def test_a_signal_that_is_sent_many_times_at_once_is_stored_once(store: Store) -> None:
    opt_in(store, "ann")
    given = signal("s1", shown(store))
    results = at_once(*[lambda: store.add_feedback(TENANT, "ann", given, at(1))] * 6)
    assert sorted(results) == [False] * 5 + [True]
    assert len(store.personal_snapshot(TENANT).comparisons) == 2
    assert store.training_queue(min_new=2) == [(TENANT, "ann")]
    assert store.training_queue(min_new=3) == []


def test_a_reset_that_is_sent_many_times_at_once_happens_once(store: Store) -> None:
    opt_in(store, "ann")
    results = at_once(*[lambda: store.apply_reset(TENANT, "ann", "x1", plan_reset("all"), at(1))] * 4)
    assert [result.generation for result in results] == [1] * 4
    assert store.subject(TENANT, "ann").generation == 1


def test_the_same_import_and_release_at_once_happen_once(store: Store) -> None:
    data = dataset(adaptation=pairs("ann", 3))
    outcomes = at_once(*[lambda: store.import_dataset(TENANT, data, OPTED_IN, at(0))] * 3)
    assert sorted(outcome.unchanged for outcome in outcomes) == [False, True, True]
    published = at_once(*[lambda: publish_user(store, "v1")] * 3)
    assert [outcome.published for outcome in published] == [1, 1, 1]
    assert len(store.versions(TENANT)) == 1


def test_no_publish_survives_a_reset_that_runs_beside_it(store: SqlStore) -> None:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, "ann")

    def publish(worker: int) -> None:
        for number in range(15):
            generation = store.subject(TENANT, "ann").generation
            publish_user(store, f"v-{worker}-{number}", generation=generation)

    def reset() -> None:
        for number in range(10):
            generation = store.apply_reset(TENANT, "ann", f"x{number}", plan_reset("adapter"), at(number)).generation
            user = store.resolve(TENANT, "ann", None).user
            assert user is None or user.generation >= generation

    results = at_once(lambda: publish(0), lambda: publish(1), reset)
    assert results == [None, None, None]
    generation = store.subject(TENANT, "ann").generation
    assert generation == 10
    assert {stored.version.generation for stored in store.versions(TENANT, limit=1000)} <= {generation}


def test_feedback_beside_resets_leaves_no_text_without_its_item_and_no_item_without_its_text(store: SqlStore) -> None:
    opt_in(store, "ann", "bob")

    def feedback(person: str) -> None:
        for number in range(12):
            give_feedback(store, person, number, minutes=100 + number)

    def reset() -> None:
        for number in range(6):
            store.apply_reset(TENANT, "bob", f"x{number}", plan_reset("feedback"), at(number))

    results = at_once(lambda: feedback("ann"), reset)
    assert results == [None, None]
    snapshot = store.personal_snapshot(TENANT)
    assert len(snapshot.comparisons) == 24
    assert {item.text for item in snapshot.items} == {"a", "b", "c"}


def test_readers_see_a_release_whole_while_it_is_published(store: Store) -> None:
    people = [f"p{number}" for number in range(50)]
    opt_in(store, *people)
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    seen: list[int] = []

    def read() -> None:
        for _ in range(20):
            seen.append(len(store.versions(TENANT, limit=1000)) % len(people))

    assert at_once(lambda: _publish_all(store, people), read, read) == [None] * 3
    assert set(seen) == {0}


def _publish_all(store: Store, people: list[str]) -> None:
    for number in range(5):
        versions = [version(f"{number}-{person}", f"r{number}", person) for person in people]
        store.publish(f"r{number}", template(), versions, at(number), reason="trained", actor="trainer")


def test_a_process_that_is_killed_leaves_all_or_nothing(store: SqlStore, store_url: str) -> None:
    chance = random.Random(7)
    for seed in range(5):
        worker = Worker(store_url, "all", seed)
        release(worker)
        time.sleep(chance.uniform(0.05, 1.0))
        assert worker.finish(kill=True) == -signal_numbers.SIGKILL
        check_rules(store)
    worker = Worker(store_url, "all", 5)  # on a busy machine none of them may have come as far as a release
    release(worker)
    deadline = time.monotonic() + 60
    while not store.releases(TENANT) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert worker.finish(kill=True) == -signal_numbers.SIGKILL
    assert store.releases(TENANT)
    check_rules(store)
