"""Rollouts of a global model in the store: whose, who is served what, and how everybody follows or stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from crashes import Crash, crashing
from sqlalchemy import select
from store_samples import (
    GLOBAL,
    OPTED_IN,
    TENANT,
    at,
    dataset,
    opt_in,
    pairs,
    shown,
    signal,
    tampering,
    template,
    version,
)
from test_registry_crashes import everything

from idiolect.audit import INSTALLATION
from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError
from idiolect.registry.manifest import Carried
from idiolect.registry.pointers import Adapter
from idiolect.registry.resolution import Resolution
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.outcomes import Served
from idiolect.rollouts.plan import Candidate, Guardrail, Plan, Rollout
from idiolect.rollouts.verdicts import Move
from idiolect.stores.ports import Store
from idiolect.stores.rollout_ports import GlobalTrial, StagedModel
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from people_keys import open_with_keys

NEW, OTHER = "n" * 64, "other"
PEOPLE = [f"p{number:02}" for number in range(40)]
HALF = Plan(steps=(0.5, 1.0), min_people=5, guardrails=(Guardrail("success", 0.1),))
COMPLETE = Move("completed", 1, "healthy", "better", promotes=True)


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    """Forty people with a live version each and a live one of their domain, all carried to a staged model."""
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    agreed = dataset(adaptation=tuple(pair for person in PEOPLE for pair in pairs(person, 1)))
    store.import_dataset(TENANT, agreed, OPTED_IN, at(0))
    publish(store, "old", PEOPLE, minutes=1)
    publish_chat(store, "dold", minutes=1)
    carry(store, "old", PEOPLE)
    carry_chat(store, "dold")
    stage(store)
    return store


def stage(store: Store, digest: str = NEW, base: str | None = GLOBAL, minutes: float = 2) -> None:
    store.stage_model(StagedModel(digest, base, b"{}", at(minutes), "trained", "trainer"))


def publish(store: Store, release: str, people: Sequence[str], *, minutes: float, **fields: Any) -> None:
    versions = [version(f"{release}-{person}", release, person, **fields) for person in people]
    store.publish(release, template(), versions, at(minutes), reason="trained", actor="trainer")


def publish_chat(store: Store, release: str, *, minutes: float) -> None:
    of_chat = version(f"{release}-chat", release, "", "chat")
    store.publish(release, template("domain"), [of_chat], at(minutes), reason="trained", actor="trainer")


def carry(store: Store, release: str, people: Sequence[str], *, minutes: float = 2, tenant: str = TENANT) -> None:
    """What a carrier publishes: a version of each person's on the new model, made from the one that they have."""
    name = f"{release}+"
    of = replace(template(tenant=tenant, global_digest=NEW), carried=Carried(release, GLOBAL, ()))
    versions = [version(f"{name}-{person}", name, person, parent=f"{release}-{person}") for person in people]
    store.publish(name, of, versions, at(minutes), reason="carried", actor="trainer", staged=True)


def carry_chat(store: Store, release: str, *, minutes: float = 2) -> None:
    name = f"{release}+"
    of = replace(template("domain", global_digest=NEW), carried=Carried(release, GLOBAL, ()))
    of_chat = version(f"{name}-chat", name, "", "chat", parent=f"{release}-chat")
    store.publish(name, of, [of_chat], at(minutes), reason="carried", actor="trainer", staged=True)


def begin(
    store: Store, name: str = NEW, plan: Plan = HALF, *, tenant: str = INSTALLATION, start: bool = True
) -> Rollout:
    candidate = Candidate("global", name)
    return store.create_rollout(tenant, candidate, plan, at(3), reason="try", actor="operator", start=start)


def resolved(store: Store, person: str, domain: str | None = "chat") -> Resolution:
    return store.resolve(TENANT, person, domain)


def on_candidate(store: Store) -> set[str]:
    return {person for person in PEOPLE if resolved(store, person).candidate is not None}


def complete(store: Store, rollout: Rollout) -> None:
    """As the evaluator does, at once."""
    store.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    follow(store, rollout)


def follow(store: Store, rollout: Rollout) -> int:
    waiting = store.waiting_releases(NEW)
    moved = sum(store.follow_model(tenant, name, at(6), reason="done", actor="loop") for tenant, name in waiting)
    store.end_global_trial(rollout.id)
    return moved


def serve(store: Store, *people: str, **fields: Any) -> int:
    values: dict[str, Any] = {"seconds": 0.01} | fields
    return store.observe_served([Served(TENANT, one, resolved(store, one).trials, **values) for one in people])


def test_a_staged_model_and_what_was_carried_to_it_serve_nobody(ready: Store) -> None:
    found = resolved(ready, PEOPLE[0])
    assert (found.global_digest, found.candidate, found.trials) == (GLOBAL, None, ())
    assert found.user is not None
    assert found.user.id == f"old-{PEOPLE[0]}"
    assert ready.global_trial() is None
    assert NEW in ready.referenced_models()


def test_the_share_is_served_by_the_candidate_with_what_was_carried_to_it_and_nobody_else_is(ready: Store) -> None:
    before = {person: resolved(ready, person) for person in PEOPLE}
    rollout = begin(ready)
    chosen = on_candidate(ready)
    assert 8 < len(chosen) < 32
    assert ready.global_trial() == GlobalTrial(rollout.id, NEW, GLOBAL, served=True)
    for person in PEOPLE:
        now = resolved(ready, person)
        (trial,) = now.trials
        assert (trial.rollout, trial.slot) == (rollout.id, "global")
        assert trial.arm == ("candidate" if person in chosen else "control")
        assert replace(now, trials=(), candidate=None) == before[person]  # the live stack is there to fall back to
        if now.candidate is not None:
            on = now.candidate
            assert (on.digest, on.user and on.user.id, on.domain and on.domain.id) == (
                NEW,
                f"old+-{person}",
                "dold+-chat",
            )


def test_without_a_person_their_consent_or_the_domains_counterpart_all_is_as_it_was(ready: Store) -> None:
    begin(ready)
    ready.change_subject(TENANT, PEOPLE[0], ConsentChange(paused=True), at(4))
    for subject in (None, "stranger", PEOPLE[0]):
        found = ready.resolve(TENANT, subject, "chat")
        assert (found.domain and found.domain.id, found.trials, found.candidate) == ("dold-chat", (), None)
    publish_chat(ready, "dlater", minutes=4)  # not carried yet
    assert all(resolved(ready, person).trials == () for person in PEOPLE)
    assert all(len(resolved(ready, person, None).trials) == 1 for person in PEOPLE[1:])


def test_another_process_assigns_alike_and_a_larger_share_only_adds(ready: SqlStore, store_url: str) -> None:
    rollout = begin(ready, plan=replace(HALF, steps=(0.2, 0.6, 1.0)))
    first = on_candidate(ready)
    other = open_with_keys(store_url)
    assert on_candidate(other) == first
    other.close()
    ready.move_rollout(rollout, Move("running", 1, "healthy", "ok"), at(4), actor="loop")
    assert first < on_candidate(ready)


@pytest.mark.parametrize("how", ["abort", "breach"])
def test_whatever_ends_it_everybody_is_as_before_in_one_write(ready: Store, how: str) -> None:
    before = {person: resolved(ready, person) for person in PEOPLE}
    rollout = begin(ready)
    assert on_candidate(ready)
    if how == "abort":
        ready.steer_rollout(INSTALLATION, rollout.id, "abort", at(5), reason="enough", actor="operator")
    else:
        ready.move_rollout(rollout, Move("rolled_back", 0, "breach", "worse"), at(5), actor="loop")
    assert {person: resolved(ready, person) for person in PEOPLE} == before
    assert (ready.global_trial(), ready.active_rollouts(), ready.live_global()) == (None, [], GLOBAL)
    begin(ready)


def test_a_completed_rollout_makes_the_model_live_and_serves_everybody_before_any_pointer_followed(
    ready: SqlStore,
) -> None:
    rollout = begin(ready)
    ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    assert ready.live_global() == NEW
    assert ready.global_trial() == GlobalTrial(rollout.id, NEW, GLOBAL, served=False)
    for _ in range(2):  # before and after
        for person in PEOPLE:
            found = resolved(ready, person)
            assert (found.global_digest, found.trials, found.candidate) == (NEW, (), None)
            assert (found.user and found.user.id, found.domain and found.domain.id) == (f"old+-{person}", "dold+-chat")
        follow(ready, rollout)
    live, *_ = ready.pointers(TENANT, Adapter("user", PEOPLE[0]))
    assert live.version == f"old+-{PEOPLE[0]}"
    moves = ready.pointer_history(TENANT, Adapter("user", PEOPLE[0]))
    assert (moves[0].old_version, moves[0].reason) == (f"old-{PEOPLE[0]}", "done")
    assert (ready.global_trial(), ready.waiting_releases(NEW), ready.active_rollouts()) == (None, [], [])
    assert follow(ready, rollout) == 0
    said = [(entry.action, entry.reason) for entry in ready.audit_entries(INSTALLATION)]
    assert ("global.set", f"rollout {rollout.id} completed") in said


def test_who_is_trained_again_is_back_on_the_live_model_until_that_is_carried_too(ready: Store) -> None:
    rollout = begin(ready)
    chosen = on_candidate(ready)
    person = min(chosen)
    publish(ready, "again", [person], minutes=4)
    found = resolved(ready, person)
    assert (found.user and found.user.id, found.candidate, found.trials) == (f"again-{person}", None, ())
    assert ready.left_behind(TENANT, NEW) == [(Adapter("user", person), f"again-{person}")]
    carry(ready, "again", [person], minutes=4)
    assert ready.left_behind(TENANT, NEW) == []
    on = resolved(ready, person).candidate
    assert on is not None
    assert on.user is not None
    assert on.user.id == f"again+-{person}"
    assert on_candidate(ready) == chosen
    complete(ready, rollout)
    served = resolved(ready, person).user
    assert served is not None
    assert served.id == f"again+-{person}"
    ready.revoke_release(TENANT, "again+", at(8), reason="bad", actor="admin")
    assert resolved(ready, person).user is None  # what was carried from an adapter before it never was live


def test_what_was_taken_back_on_the_live_model_comes_back_on_no_other(ready: Store) -> None:
    rollout = begin(ready)
    publish(ready, "bad", PEOPLE[:6], minutes=4)
    carry(ready, "bad", PEOPLE[:6], minutes=4)
    ready.revoke_release(TENANT, "bad", at(5), reason="bad night", actor="admin")
    ready.rollback(TENANT, Adapter("user", PEOPLE[0]), at(5), reason="worse", actor="admin")
    ready.quarantine(TENANT, f"old-{PEOPLE[7]}", "damaged", at(5), actor="server")
    for person in PEOPLE[:6]:
        found = resolved(ready, person)
        assert found.user is not None
        assert found.user.id == f"old-{person}"
        assert found.candidate is None or (found.candidate.user and found.candidate.user.id == f"old+-{person}")
    complete(ready, rollout)
    served = [resolved(ready, person).user for person in PEOPLE[:6]]
    assert [one.id if one else None for one in served] == [f"old+-{person}" for person in PEOPLE[:6]]


def test_who_was_reset_takes_no_part_and_nothing_of_theirs_is_left_on_either_model(ready: SqlStore) -> None:
    rollout = begin(ready)
    serve(ready, *PEOPLE)
    person = min(on_candidate(ready))
    ready.apply_reset(TENANT, person, "x1", plan_reset("adapter"), at(5))
    found = resolved(ready, person)
    assert (found.user, found.candidate, found.trials) == (None, None, ())
    assert ready.versions(TENANT, subject=person) == []
    late = replace(template(global_digest=NEW), carried=Carried("old", GLOBAL, ()))
    of_person = version("late", "late", person, parent=f"old-{person}")
    done = ready.publish("late", late, [of_person], at(5), reason="carried", actor="trainer", staged=True)
    assert (done.published, done.fenced) == (0, (person,))
    publish(ready, "again", [person], minutes=6, generation=1)
    assert resolved(ready, person).trials == ()
    complete(ready, rollout)
    assert resolved(ready, person).user is None
    with ready._database.reading(ALL_TENANTS) as connection:
        members = set(connection.scalars(select(schema.rollout_members.c.subject)))
    assert person not in members


def test_completing_brings_back_nobody_who_left(ready: SqlStore) -> None:
    rollout = begin(ready)
    ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    ready.change_subject(TENANT, PEOPLE[0], ConsentChange(opted_in=False), at(5))
    ready.apply_reset(TENANT, PEOPLE[1], "x1", plan_reset("adapter"), at(5))
    follow(ready, rollout)
    assert [resolved(ready, person).user for person in PEOPLE[:2]] == [None, None]


def test_who_is_trained_on_the_new_model_before_the_pointers_followed_keeps_that(ready: Store) -> None:
    rollout = begin(ready)
    ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    newest = [version("newest", "newest", PEOPLE[0])]
    ready.publish("newest", template(global_digest=NEW), newest, at(5), reason="trained", actor="trainer")
    follow(ready, rollout)
    served = resolved(ready, PEOPLE[0]).user
    assert served is not None
    assert served.id == "newest"


def test_two_tenants_take_part_and_their_counts_are_added(ready: SqlStore) -> None:
    with tampering(ready) as connection:
        connection.execute(schema.tenants.insert(), {"name": OTHER, "created_at": 0})
    for person in PEOPLE[:10]:
        ready.change_subject(OTHER, person, ConsentChange(opted_in=True), at(1))
    rollout = begin(ready)
    serve(ready, *PEOPLE)
    theirs = [Served(OTHER, person, ready.resolve(OTHER, person, None).trials, 0.01) for person in PEOPLE[:10]]
    assert ready.observe_served(theirs) == 10
    reading = ready.rollout_reading(INSTALLATION, rollout.id)
    assert sum(reading.evidence.enrolled.values()) == len(PEOPLE) + 10
    assert reading.evidence.tally("candidate", "slow").people == reading.evidence.people("candidate")
    assert serve(ready, *PEOPLE) + ready.observe_served(theirs) == len(PEOPLE) + 10
    assert ready.rollout_reading(INSTALLATION, rollout.id).evidence.enrolled == reading.evidence.enrolled


def test_counting_from_many_threads_enrolls_nobody_twice(ready: SqlStore) -> None:
    rollout = begin(ready)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: serve(ready, *PEOPLE), range(4)))
    assert sum(ready.rollout_reading(INSTALLATION, rollout.id).evidence.enrolled.values()) == len(PEOPLE)


def test_feedback_and_complaints_count_in_the_arm_of_their_person_and_members_are_forgotten(ready: SqlStore) -> None:
    rollout = begin(ready)
    serve(ready, *PEOPLE)
    arm = resolved(ready, PEOPLE[0]).trials[0].arm
    inference = shown(ready, "i1", PEOPLE[0], minutes=4)
    ready.add_feedback(TENANT, PEOPLE[0], signal("s1", inference, value=1, minutes=4), at(4))
    ready.change_subject(TENANT, PEOPLE[0], ConsentChange(paused=True), at(5))
    evidence = ready.rollout_reading(INSTALLATION, rollout.id).evidence
    success, complaints = evidence.tally(arm, "success"), evidence.tally(arm, "complaints")
    assert (success.people, success.total, complaints.total) == (1, 0.5, 1.0)
    assert ready.forget_members() == 0
    ready.steer_rollout(INSTALLATION, rollout.id, "abort", at(5), reason="enough", actor="operator")
    assert ready.forget_members() == len(PEOPLE)


def test_it_is_the_installations_and_no_tenant_sees_or_moves_it(ready: Store) -> None:
    rollout = begin(ready)
    assert ready.rollout(TENANT, rollout.id) is None
    assert ready.rollouts(TENANT) == []
    with pytest.raises(NotFoundError):
        ready.steer_rollout(TENANT, rollout.id, "abort", at(4), reason="x", actor="x")
    assert [one.id for one in ready.rollouts(INSTALLATION)] == [rollout.id]
    assert ready.active_rollouts() == [(INSTALLATION, rollout.id)]
    assert [entry.state for entry in ready.rollout_history(INSTALLATION, rollout.id)] == ["draft", "running"]
    with pytest.raises(InvalidInputError):
        begin(ready, tenant=TENANT)
    with pytest.raises(InvalidInputError):
        ready.create_rollout(INSTALLATION, Candidate("release", "old+"), HALF, at(4), reason="x", actor="x", start=True)


def test_a_model_that_can_not_be_rolled_out_is_refused_and_leaves_nothing(ready: Store) -> None:
    stage(ready, "u" * 64, None, minutes=1)
    stage(ready, "s" * 64, "before", minutes=1)
    stage(ready, GLOBAL, None, minutes=1)
    for name, error in (("missing", NotFoundError), ("u" * 64, ConflictError), ("s" * 64, ConflictError)):
        with pytest.raises(error) as caught:
            begin(ready, name)
        assert caught.value.mend
    with pytest.raises(ConflictError, match="live already"):
        begin(ready, GLOBAL)
    assert ready.rollouts(INSTALLATION) == []
    assert begin(ready, "latest").candidate == Candidate("global", NEW)


def test_nothing_else_is_tried_on_people_at_the_same_time(ready: Store) -> None:
    ready.publish(
        "mine", template("domain"), [version("m", "mine", "", "chat")], at(2), reason="t", actor="t", staged=True
    )

    def of_tenant(kind: Any, name: str, plan: Plan = HALF, **fields: Any) -> Rollout:
        candidate = Candidate(kind, name, **fields)
        return ready.create_rollout(TENANT, candidate, plan, at(3), reason="try", actor="admin", start=True)

    own = of_tenant("release", "mine")
    with pytest.raises(ConflictError, match="1 rollouts of tenants"):
        begin(ready)
    ready.steer_rollout(TENANT, own.id, "abort", at(4), reason="x", actor="x")
    first = begin(ready)
    with pytest.raises(ConflictError, match="another global model"):
        begin(ready)
    with pytest.raises(ConflictError, match="new global model"):
        of_tenant("release", "mine")
    of_tenant("setting", "", replace(HALF, steps=(0.5,)), strength=0.5)  # it changes neither model nor adapter
    assert {trial.slot for trial in resolved(ready, PEOPLE[0]).trials} == {"setting", "global"}
    assert [one.id for one in ready.rollouts(INSTALLATION)] == [first.id]


def test_when_another_model_becomes_live_the_candidate_is_withdrawn_and_serves_nobody(ready: Store) -> None:
    rollout = begin(ready)
    ready.set_global("x" * 64, at(4), reason="trained", actor="trainer")
    assert on_candidate(ready) == set()
    assert ready.rollout_reading(INSTALLATION, rollout.id).withdrawn == "another global model became live"
    with pytest.raises(ConflictError):
        ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    assert ready.live_global() == "x" * 64


def test_of_several_evaluators_one_completes_and_a_stale_one_undoes_no_abort(ready: Store) -> None:
    rollout = begin(ready)

    def attempt(_: int) -> bool:
        try:
            return ready.move_rollout(rollout, COMPLETE, at(5), actor="loop").state == "completed"
        except PreconditionError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1
    complete_again = begin_another(ready, rollout)
    ready.steer_rollout(INSTALLATION, complete_again.id, "abort", at(9), reason="enough", actor="operator")
    with pytest.raises(PreconditionError):
        ready.move_rollout(complete_again, COMPLETE, at(10), actor="loop")
    assert ready.live_global() == NEW


def begin_another(store: Store, first: Rollout) -> Rollout:
    """Back to the model before, once everybody followed to the new one."""
    follow(store, first)
    stage(store, GLOBAL, NEW, minutes=8)
    return begin(store, GLOBAL)


def test_a_completion_that_fails_half_way_leaves_all_as_it_was(
    ready: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = begin(ready)
    chosen = on_candidate(ready)

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    for place in ("save", "_audit"):
        with monkeypatch.context() as patched:
            patched.setattr(f"idiolect.stores.sql.rollouts.{place}", crash)
            with pytest.raises(RuntimeError):
                ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
        assert (ready.live_global(), on_candidate(ready)) == (GLOBAL, chosen)
    complete(ready, rollout)


@pytest.mark.parametrize("name", ["stage", "begin", "abort", "complete", "follow"])
def test_a_crash_at_any_write_leaves_nothing_and_the_change_can_be_made_again(ready: SqlStore, name: str) -> None:
    rollout = begin(ready) if name in ("abort", "complete", "follow") else None
    if rollout is not None and name == "follow":
        rollout = ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    changes: dict[str, Callable[[], object]] = {
        "stage": lambda: stage(ready, minutes=9),
        "begin": lambda: begin(ready),
        "abort": lambda: ready.steer_rollout(INSTALLATION, rollout.id, "abort", at(5), reason="x", actor="x"),  # type: ignore[union-attr]
        "complete": lambda: ready.move_rollout(rollout, COMPLETE, at(5), actor="loop"),  # type: ignore[arg-type]
        "follow": lambda: ready.follow_model(TENANT, "old+", at(6), reason="done", actor="loop"),
    }
    before, points = everything(ready), 0
    while True:
        with pytest.raises(Crash) as crash, crashing(ready, points):
            changes[name]()
        assert everything(ready) == before, f"after {points} writes"
        if str(crash.value) == "commit":
            break
        points += 1
    changes[name]()
    assert points >= 2
    assert everything(ready) != before


def test_collecting_garbage_touches_neither_the_candidate_nor_its_adapters(ready: SqlStore) -> None:
    begin(ready)
    chosen = on_candidate(ready)
    later = at(0) + timedelta(days=60)
    ready.collect(TENANT, later, later, actor="admin")
    assert on_candidate(ready) == chosen
    assert NEW in ready.referenced_models()
    assert ready.is_carried(TENANT, f"old-{PEOPLE[0]}", NEW)
    assert not ready.is_carried(TENANT, "missing", NEW)


def test_the_adapters_that_stay_behind_come_a_page_at_a_time(ready: Store) -> None:
    opt_in(ready, "fresh")
    publish(ready, "more", PEOPLE[:5], minutes=4)
    publish_chat(ready, "dmore", minutes=4)
    seen, after = [], ""
    while page := ready.left_behind(TENANT, NEW, after=after, limit=2):
        seen += page
        after = page[-1][0].id
    assert seen == [(Adapter("domain", "chat"), "dmore-chat")] + [
        (Adapter("user", person), f"more-{person}") for person in PEOPLE[:5]
    ]
