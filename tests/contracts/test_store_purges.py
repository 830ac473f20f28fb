"""The purge log and those who follow it; and that nobody who gives up leaves a connection behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from store_samples import TENANT, at, opt_in

from idiolect.consent import ConsentChange
from idiolect.resets.plan import plan_reset
from idiolect.resets.purges import FORGET_SECONDS, Purge
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore
from idiolect_services.gateway.lanes import Lane


def reset(store: Store, subject: str, reset_id: str, tenant: str = TENANT) -> Any:
    return store.apply_reset(tenant, subject, reset_id, plan_reset("all"), at(1))


def test_an_empty_log_ends_at_its_beginning(store: Store) -> None:
    assert store.purge_head() == 0
    assert store.purges(0) == []


def test_resets_and_withdrawals_of_all_tenants_stand_in_one_log_in_their_order(store: Store) -> None:
    opt_in(store, "ann")
    first = reset(store, "bob", "x1")
    store.change_subject(TENANT, "ann", ConsentChange(opted_in=False), at(2))
    last = reset(store, "bob", "x2", "other")
    assert [first.purge_sequence, last.purge_sequence] == [1, 3]
    assert store.purge_head() == 3
    log = [Purge(1, TENANT, "bob", 1), Purge(2, TENANT, "ann", 1), Purge(3, "other", "bob", 1)]
    assert store.purges(0) == log
    assert store.purges(1, limit=1) == log[1:2]
    assert store.purges(3) == []


def test_of_each_person_only_the_newest_purge_stays_so_the_log_never_outgrows_the_people(store: Store) -> None:
    for number in range(5):
        reset(store, "ann", f"x{number}")
    assert store.purges(0) == [Purge(5, TENANT, "ann", 5)]


def test_the_same_reset_again_is_no_new_purge(store: Store) -> None:
    assert reset(store, "ann", "x1") == reset(store, "ann", "x1")
    assert store.purge_head() == 1


def test_who_reads_while_others_reset_misses_nobody(store: Store) -> None:
    """Numbers are given in the order of commits: none turns up behind one that was already read."""
    people = [(f"tenant-{number % 4}", f"person-{number}") for number in range(40)]
    seen: set[tuple[str, str]] = set()
    with ThreadPoolExecutor(4) as pool:
        resets = [pool.submit(reset, store, subject, subject, tenant) for tenant, subject in people]
        cursor = 0
        while not all(one.done() for one in resets):
            for purge in store.purges(cursor, limit=3):
                seen.add((purge.tenant, purge.subject))
                cursor = purge.seq
        seen |= {(purge.tenant, purge.subject) for purge in store.purges(cursor)}
    assert sorted(one.result().purge_sequence for one in resets) == list(range(1, 41))
    assert seen == set(people)


def test_followers_are_known_by_what_they_said_last(store: Store) -> None:
    store.follow("r1", 3, 3, at(0))
    store.follow("r1", 3, 7, at(1))
    store.follow("r2", 5, 5, at(2))
    found = [(one.id, one.since, one.cursor, one.silent_s) for one in store.replicas(at(2))]
    assert found == [("r1", 3, 7, 60.0), ("r2", 5, 5, 0.0)]


def test_who_leaves_is_gone_and_who_was_silent_for_long_is_forgotten_until_it_is_back(store: Store) -> None:
    for name in ("r1", "r2", "r3"):
        store.follow(name, 1, 1, at(0))
    store.leave("r1")
    store.leave("r1")
    late = FORGET_SECONDS / 60 + 1
    store.follow("r2", 1, 2, at(late))
    assert [one.id for one in store.replicas(at(late))] == ["r2"]
    store.follow("r3", 1, 1, at(late))
    assert [one.id for one in store.replicas(at(late))] == ["r2", "r3"]


def test_who_spoke_with_a_clock_that_was_far_ahead_is_forgotten_until_it_is_back(store: Store) -> None:
    """Else resets would wait for it to confirm that it purged, for as long as its clock was ahead."""
    late = FORGET_SECONDS / 60 + 1
    for name, minute in (("gone", late), ("close", late - 2)):
        store.follow(name, 1, 1, at(minute))
    store.follow("here", 1, 1, at(0))
    assert [one.id for one in store.replicas(at(0))] == ["close", "here"]
    store.follow("gone", 1, 1, at(0))
    assert [one.id for one in store.replicas(at(0))] == ["close", "gone", "here"]


def test_requests_that_are_cancelled_leave_every_connection_as_it_was(store: SqlStore) -> None:
    """Reads and writes that nobody waits for any more, cut off at random moments."""
    opt_in(store, "ann")
    lane, chance = Lane("test", threads=4, depth=1000), random.Random(0)
    calls: list[Callable[[], Any]] = [
        lambda: store.resolve(TENANT, "ann", "chat"),
        lambda: store.change_subject(TENANT, "ann", ConsentChange(strength=0.5), at(1)),
    ]

    async def cut_off() -> None:
        for number in range(150):
            task = asyncio.create_task(lane.run(calls[number % 2]))
            await asyncio.sleep(chance.uniform(0, 0.002))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cut_off())
    lane.close()
    assert store._database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert store.subject(TENANT, "ann").strength == 0.5
    store.check()
