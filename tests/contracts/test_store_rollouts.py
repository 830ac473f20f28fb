"""Rollouts in the store: who is served what, what is counted, and how a rollout moves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
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

from idiolect.consent import ConsentChange
from idiolect.errors import ConflictError, IdiolectError, InvalidInputError, NotFoundError, PreconditionError
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.assignment import ARMS
from idiolect.rollouts.outcomes import Served
from idiolect.rollouts.plan import Candidate, Guardrail, Plan, Rollout
from idiolect.rollouts.verdicts import Move
from idiolect.stores.ports import Store
from idiolect.stores.sql import SqlStore, schema
from idiolect.stores.sql.engine import Hold, hold
from idiolect.stores.sql.tenant_wall import ALL_TENANTS
from people_keys import open_with_keys

PEOPLE = [f"p{number:03}" for number in range(60)]
HALF = Plan(steps=(0.5, 1.0), min_people=5, guardrails=(Guardrail("success", 0.1),))
COMPLETE = Move("completed", 1, "healthy", "better", promotes=True)


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    return prepared(store)


def prepared(store: SqlStore) -> SqlStore:
    """Sixty people with a live version each; a domain with a live one; a staged release of each scope."""
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    agreed = dataset(adaptation=tuple(pair for person in PEOPLE for pair in pairs(person, 1)))
    store.import_dataset(TENANT, agreed, OPTED_IN, at(0))  # at once: an opt-in each takes longer than most tests
    publish(store, "old", *PEOPLE, minutes=1)
    publish(store, "new", *PEOPLE, minutes=2, staged=True)
    publish_domains(store, "dold", "chat", minutes=1)
    publish_domains(store, "dnew", "chat", minutes=2, staged=True)
    return store


def publish(store: Store, release: str, *people: str, minutes: float, staged: bool = False, **fields: Any) -> None:
    versions = [version(f"{release}-{person}", release, person, **fields) for person in people]
    store.publish(release, template(), versions, at(minutes), reason="trained", actor="trainer", staged=staged)


def publish_domains(store: Store, release: str, *domains: str, minutes: float, staged: bool = False) -> None:
    versions = [version(f"{release}-{domain}", release, "", domain) for domain in domains]
    store.publish(release, template("domain"), versions, at(minutes), reason="trained", actor="trainer", staged=staged)


def begin(
    store: Store, kind: Any = "release", name: str = "new", plan: Plan = HALF, *, start: bool = True, **fields: Any
) -> Rollout:
    candidate = Candidate(kind, name, **fields)
    return store.create_rollout(TENANT, candidate, plan, at(3), reason="try", actor="admin", start=start)


def user_versions(store: Store) -> dict[str, str | None]:
    return {person: (user.id if (user := store.resolve(TENANT, person, None).user) else None) for person in PEOPLE}


def domain_versions(store: Store) -> dict[str, str | None]:
    found = {person: store.resolve(TENANT, person, "chat").domain for person in PEOPLE}
    return {person: domain.id if domain else None for person, domain in found.items()}


def on_candidate(store: Store) -> set[str]:
    return {person for person, name in user_versions(store).items() if name == f"new-{person}"}


def serve(store: Store, *people: str, domain: str | None = None, **fields: Any) -> int:
    values: dict[str, Any] = {"seconds": 0.01} | fields
    trials = {person: store.resolve(TENANT, person, domain).trials for person in people}
    return store.observe_served([Served(TENANT, person, trials[person], **values) for person in people])


def members(store: SqlStore) -> list[str]:
    with store._database.reading(ALL_TENANTS) as connection:
        return list(connection.scalars(select(schema.rollout_members.c.subject)))


def enrolled(store: Store, rollout: Rollout) -> dict[str, int]:
    return dict(store.rollout_reading(TENANT, rollout.id).evidence.enrolled)


def test_a_staged_release_is_served_to_nobody_and_nothing_falls_back_to_it(ready: Store) -> None:
    assert set(user_versions(ready).values()) == {f"old-{person}" for person in PEOPLE}
    ready.revoke_release(TENANT, "old", at(3), reason="bad", actor="admin")
    assert set(user_versions(ready).values()) == {None}


def test_the_candidate_is_served_to_its_share_and_to_nobody_else(ready: Store) -> None:
    before = {person: ready.resolve(TENANT, person, "chat") for person in PEOPLE}
    rollout = begin(ready)
    chosen = on_candidate(ready)
    assert 10 < len(chosen) < 50
    for person in PEOPLE:
        now = ready.resolve(TENANT, person, "chat")
        (trial,) = now.trials
        assert (trial.rollout, trial.step, trial.slot) == (rollout.id, 0, "user")
        assert trial.arm == ("candidate" if person in chosen else "control")
        untouched = replace(now, trials=(), user=before[person].user)
        assert untouched == before[person]
    assert on_candidate(ready) == chosen


def test_a_second_process_assigns_alike_and_a_growing_share_only_adds(ready: SqlStore, store_url: str) -> None:
    rollout = begin(ready, plan=replace(HALF, steps=(0.1, 0.3, 0.6, 1.0)))
    seen: set[str] = set()
    for step in range(3):
        chosen = on_candidate(ready)
        other = open_with_keys(store_url)
        assert on_candidate(other) == chosen
        other.close()
        assert seen <= chosen
        seen = chosen
        if step < 2:
            rollout = ready.move_rollout(rollout, Move("running", step + 1, "healthy", "ok"), at(5), actor="loop")
    assert 20 < len(seen) < 55


def test_holding_and_resuming_reassigns_nobody(ready: Store) -> None:
    rollout = begin(ready)
    chosen = on_candidate(ready)
    for action in ("hold", "resume"):
        ready.steer_rollout(TENANT, rollout.id, action, at(5), reason="look", actor="admin")
        assert on_candidate(ready) == chosen


def test_two_rollouts_are_independent_of_each_other(ready: Store) -> None:
    begin(ready)
    begin(ready, "version", "dnew-chat")
    user = on_candidate(ready)
    domain = {person for person, name in domain_versions(ready).items() if name == "dnew-chat"}
    assert user != domain
    assert 0 < len(user & domain) < min(len(user), len(domain))
    assert {trial.slot for trial in ready.resolve(TENANT, PEOPLE[0], "chat").trials} == {"user", "domain"}


def test_without_a_person_or_their_consent_the_domain_stays_as_it_is(ready: Store) -> None:
    begin(ready, "release", "dnew")
    ready.change_subject(TENANT, PEOPLE[0], ConsentChange(paused=True), at(4))
    for subject in (None, "stranger", PEOPLE[0]):
        resolution = ready.resolve(TENANT, subject, "chat")
        assert (resolution.domain and resolution.domain.id, resolution.trials) == ("dold-chat", ())
    assert set(domain_versions(ready).values()) == {"dold-chat", "dnew-chat"}
    assert ready.resolve(TENANT, PEOPLE[1], "voice").trials == ()


def test_who_was_reset_takes_no_part_in_any_rollout(ready: SqlStore) -> None:
    begin(ready)
    begin(ready, "version", "dnew-chat")
    begin(ready, "setting", "", replace(HALF, steps=(0.5,)), strength=0.0)
    before = ready.resolve(TENANT, PEOPLE[0], "chat").trials
    assert len(before) == 3
    serve(ready, *PEOPLE, domain="chat")
    assert set(members(ready)) == set(PEOPLE)
    some = PEOPLE[:12]
    for number, person in enumerate(some):
        ready.apply_reset(TENANT, person, f"x{number}", plan_reset("adapter"), at(5))
    publish(ready, "again", *some, minutes=7, generation=1)
    for person in some:
        resolution = ready.resolve(TENANT, person, "chat")
        assert resolution.trials == ()
        assert resolution.domain is not None
        assert (resolution.domain.id, resolution.user and resolution.user.id) == ("dold-chat", f"again-{person}")
    assert set(members(ready)) == set(PEOPLE[12:])
    assert ready.observe_served([Served(TENANT, PEOPLE[0], before, 0.1)]) == 0
    assert set(members(ready)) == set(PEOPLE[12:])


def test_a_version_of_an_older_generation_is_never_served_as_a_candidate(ready: SqlStore) -> None:
    begin(ready)
    raised = schema.subjects.update().values(generation=1)  # without a tombstone, as no code path leaves it
    ready._database.write(ALL_TENANTS, lambda connection: connection.execute(raised))
    assert set(user_versions(ready).values()) == {None}
    assert all(ready.resolve(TENANT, person, None).trials == () for person in PEOPLE)


def test_a_revoked_release_leaves_the_candidates_share_at_once(ready: Store) -> None:
    rollout = begin(ready)
    ready.revoke_release(TENANT, "new", at(4), reason="bad", actor="admin")
    assert on_candidate(ready) == set()
    assert ready.rollout_reading(TENANT, rollout.id).withdrawn == "it was revoked"


def test_a_quarantined_candidate_is_not_served(ready: SqlStore) -> None:
    begin(ready, "version", "dnew-chat")
    ready.quarantine(TENANT, "dnew-chat", "damaged", at(4), actor="server")
    assert set(domain_versions(ready).values()) == {"dold-chat"}


def test_a_candidate_of_another_global_model_is_not_served(ready: Store) -> None:
    rollout = begin(ready)
    ready.set_global("other", at(4), reason="trained", actor="admin")
    assert set(user_versions(ready).values()) == {None}
    assert ready.rollout_reading(TENANT, rollout.id).withdrawn == "it is bound to another global model"


def test_who_was_trained_again_meanwhile_keeps_the_newer_version(ready: Store) -> None:
    rollout = begin(ready)
    publish(ready, "newer", *PEOPLE[:30], minutes=4)
    assert all(user_versions(ready)[person] == f"newer-{person}" for person in PEOPLE[:30])
    assert all(ready.resolve(TENANT, person, None).trials == () for person in PEOPLE[:30])
    ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    found = user_versions(ready)
    assert [found[person] for person in PEOPLE] == [
        f"newer-{person}" if person in PEOPLE[:30] else f"new-{person}" for person in PEOPLE
    ]


def test_a_person_without_a_version_before_takes_part_too(ready: Store) -> None:
    opt_in(ready, "fresh")
    publish(ready, "first", "fresh", minutes=4, staged=True)
    begin(ready, "release", "first")
    (trial,) = ready.resolve(TENANT, "fresh", None).trials
    assert (ready.resolve(TENANT, "fresh", None).user is not None) is (trial.arm == "candidate")


def test_a_setting_is_tried_on_those_who_are_served_personally(ready: Store) -> None:
    opt_in(ready, "untrained")
    begin(ready, "setting", "", replace(HALF, steps=(0.5,)), strength=0.25)
    strengths = {ready.resolve(TENANT, person, None).trials[0].strength for person in PEOPLE}
    assert strengths == {0.25, 1.0}
    assert set(user_versions(ready).values()) == {f"old-{person}" for person in PEOPLE}
    assert ready.resolve(TENANT, "untrained", None).trials == ()


def test_abort_puts_everybody_back_in_one_write(ready: SqlStore) -> None:
    rollout = begin(ready)
    assert on_candidate(ready)
    aborted = ready.steer_rollout(TENANT, rollout.id, "abort", at(5), reason="enough", actor="admin")
    assert (aborted.state, aborted.share) == ("aborted", 0.0)
    assert on_candidate(ready) == set()
    assert ready.steer_rollout(TENANT, rollout.id, "abort", at(6), reason="again", actor="admin") == aborted
    with pytest.raises(ConflictError):
        ready.steer_rollout(TENANT, rollout.id, "resume", at(6), reason="back", actor="admin")
    begin(ready)  # its pointer is free again


def test_abort_does_not_wait_for_a_training_that_holds_the_tenant(postgres_url: str) -> None:
    """On Postgres, where a publish holds a lock of its own; SQLite's writers wait for each other anyway."""
    store = prepared(open_with_keys(postgres_url, lock_timeout_s=2.0))
    rollout = begin(store)
    with tampering(store) as busy:
        hold(busy, TENANT, Hold.ONE_RUN)
        aborted = store.steer_rollout(TENANT, rollout.id, "abort", at(5), reason="enough", actor="admin")
    assert aborted.state == "aborted"
    store.close()


def test_a_completed_rollout_is_live_for_everybody_with_history(ready: SqlStore) -> None:
    rollout = begin(ready)
    done = ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    assert (done.state, done.step, done.share) == ("completed", 1, 1.0)
    assert on_candidate(ready) == set(PEOPLE)
    assert ready.resolve(TENANT, PEOPLE[0], None).trials == ()
    pointers, history = schema.pointers.c, schema.pointer_history.c
    with ready._database.reading(ALL_TENANTS) as connection:
        mine = (pointers.subject == PEOPLE[0], pointers.name == "previous")
        assert connection.scalar(select(pointers.version).where(*mine)) == f"old-{PEOPLE[0]}"
        reason = connection.scalar(select(history.reason).where(history.version == f"new-{PEOPLE[0]}"))
    assert reason == f"rollout {rollout.id} completed"
    ready.revoke_release(TENANT, "new", at(6), reason="bad", actor="admin")
    assert user_versions(ready)[PEOPLE[0]] == f"old-{PEOPLE[0]}"


def test_a_domain_version_completes_for_its_domain_only(ready: Store) -> None:
    publish_domains(ready, "both", "chat", "voice", minutes=2, staged=True)
    rollout = begin(ready, "version", "both-voice")
    ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    chat, voice = (ready.resolve(TENANT, None, name).domain for name in ("chat", "voice"))
    assert (chat and chat.id, voice and voice.id) == ("dold-chat", "both-voice")
    ready.revoke_release(TENANT, "dold", at(6), reason="bad", actor="admin")
    assert ready.resolve(TENANT, None, "chat").domain is None  # both-chat was never live


def test_completing_brings_back_nobody_who_left(ready: SqlStore) -> None:
    rollout = begin(ready)
    gone, reset = PEOPLE[:2]
    ready.change_subject(TENANT, gone, ConsentChange(opted_in=False), at(4))
    ready.apply_reset(TENANT, reset, "x1", plan_reset("adapter"), at(4))
    ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    assert [user_versions(ready)[person] for person in (gone, reset)] == [None, None]


def test_of_several_evaluators_one_makes_the_step(ready: Store) -> None:
    rollout = begin(ready, plan=replace(HALF, steps=(0.1, 0.3, 0.6, 1.0)))
    move = Move("running", 1, "healthy", "ok")

    def attempt(_: int) -> bool:
        try:
            return ready.move_rollout(rollout, move, at(5), actor="loop").step == 1
        except PreconditionError:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(6))) == 1
    found = ready.rollout(TENANT, rollout.id)
    assert found is not None
    assert (found.step, found.revision) == (1, rollout.revision + 1)


def test_a_stale_evaluator_can_not_undo_an_abort(ready: Store) -> None:
    rollout = begin(ready)
    ready.steer_rollout(TENANT, rollout.id, "abort", at(5), reason="enough", actor="admin")
    with pytest.raises(PreconditionError):
        ready.move_rollout(rollout, COMPLETE, at(6), actor="loop")
    assert on_candidate(ready) == set()


def test_what_was_revoked_just_now_does_not_become_live_by_an_evaluation_from_before(ready: Store) -> None:
    rollout = begin(ready)
    ready.revoke_release(TENANT, "new", at(4), reason="bad", actor="admin")
    with pytest.raises(ConflictError, match="revoked"):
        ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
    found = ready.rollout(TENANT, rollout.id)
    assert found is not None
    assert found.state == "running"
    assert set(user_versions(ready).values()) == {f"old-{person}" for person in PEOPLE}


def test_every_change_of_a_rollout_is_in_the_audit_log_and_a_new_word_alone_is_not(ready: Store) -> None:
    rollout = begin(ready, start=False)
    for minute, action in ((4, "start"), (5, "hold"), (6, "resume")):
        rollout = ready.steer_rollout(TENANT, rollout.id, action, at(minute), reason=action, actor="admin")
    rollout = ready.move_rollout(rollout, Move("running", 0, "inconclusive", "few"), at(7), actor="loop")
    assert rollout.moved_at == at(4)  # the step goes on
    history = ready.rollout_history(TENANT, rollout.id)
    assert [entry.at for entry in history] == [at(minute) for minute in (3, 4, 5, 6, 7)]
    ready.steer_rollout(TENANT, rollout.id, "abort", at(8), reason="abort", actor="admin")
    said = [
        (entry.action, entry.reason) for entry in ready.audit_walk(TENANT) if entry.object == f"rollout {rollout.id}"
    ]
    assert said == [
        ("rollout.create", "try"),
        *((f"rollout.{action}", action) for action in ("start", "hold", "resume", "abort")),
    ]


def test_a_completion_that_fails_half_way_leaves_it_running(ready: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = begin(ready)

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    for place in ("save", "_audit"):
        with monkeypatch.context() as patched:
            patched.setattr(f"idiolect.stores.sql.rollouts.{place}", crash)
            with pytest.raises(RuntimeError):
                ready.move_rollout(rollout, COMPLETE, at(5), actor="loop")
        assert ready.rollout(TENANT, rollout.id) == rollout
        assert 0 < len(on_candidate(ready)) < len(PEOPLE)
    assert ready.move_rollout(rollout, COMPLETE, at(6), actor="loop").state == "completed"


def test_people_are_counted_once_whatever_they_ask(ready: SqlStore) -> None:
    rollout = begin(ready)
    chosen = on_candidate(ready)
    for _ in range(3):
        serve(ready, *PEOPLE)
    serve(ready, PEOPLE[0], PEOPLE[0], PEOPLE[0], seconds=9.0, failed=True)
    assert enrolled(ready, rollout) == {"candidate": len(chosen), "control": len(PEOPLE) - len(chosen)}
    evidence = ready.rollout_reading(TENANT, rollout.id).evidence
    assert evidence.tally("candidate", "slow").people == len(chosen)
    assert evidence.tally("candidate", "slow").total == evidence.tally("control", "failed").total == 0.0
    assert len(members(ready)) == len(PEOPLE)


def test_the_mean_of_the_first_requests_is_what_counts(ready: Store) -> None:
    rollout = begin(ready, plan=replace(HALF, per_person=4))
    person = PEOPLE[0]
    arm = ready.resolve(TENANT, person, None).trials[0].arm
    for seconds in (9.0, 0.0, 0.0):
        serve(ready, person, seconds=seconds)
    assert ready.rollout_reading(TENANT, rollout.id).evidence.tally(arm, "slow").people == 0
    serve(ready, person, seconds=0.0)
    serve(ready, person, seconds=9.0)
    tally = ready.rollout_reading(TENANT, rollout.id).evidence.tally(arm, "slow")
    assert (tally.people, tally.total) == (1, 0.25)


def test_a_request_that_failed_early_counts_where_the_person_is_enrolled(ready: Store) -> None:
    rollout = begin(ready, plan=replace(HALF, per_person=2))
    person = PEOPLE[0]
    arm = ready.resolve(TENANT, person, None).trials[0].arm
    blind = Served(TENANT, person, (), 0.0, failed=True)
    assert ready.observe_served([blind]) == 0
    serve(ready, person)
    assert ready.observe_served([blind]) == 1
    assert ready.rollout_reading(TENANT, rollout.id).evidence.tally(arm, "failed").total == 0.5


def answer(store: Store, person: str, number: int, value: int, *, minutes: float) -> None:
    inference = shown(store, f"i-{person}-{number}", person, minutes=minutes)
    store.add_feedback(
        TENANT, person, signal(f"s-{person}-{number}", inference, value=value, minutes=minutes), at(minutes)
    )


def test_feedback_counts_in_the_arm_and_step_that_its_inference_was_served_in(ready: Store) -> None:
    rollout = begin(ready)
    person = PEOPLE[0]
    arm = ready.resolve(TENANT, person, None).trials[0].arm
    answer(ready, person, 0, 0, minutes=4)  # not enrolled yet
    serve(ready, person)
    answer(ready, person, 1, 2, minutes=2)  # shown before the rollout began
    answer(ready, person, 2, 1, minutes=5)
    answer(ready, person, 3, 0, minutes=6)  # the one that counts was given already
    tally = ready.rollout_reading(TENANT, rollout.id).evidence.tally(arm, "success")
    assert (tally.people, tally.total) == (1, 0.5)


def test_answers_of_the_step_go_on_counting_while_it_is_held_and_after(ready: Store) -> None:
    rollout = begin(ready)
    person = PEOPLE[0]
    arm = ready.resolve(TENANT, person, None).trials[0].arm
    serve(ready, person)
    inference = shown(ready, "i-before", person, minutes=4)
    for minute, action in ((5, "hold"), (6, "resume")):
        ready.steer_rollout(TENANT, rollout.id, action, at(minute), reason="look", actor="admin")
    ready.add_feedback(TENANT, person, signal("s-after", inference, value=0, minutes=7), at(7))
    assert ready.rollout_reading(TENANT, rollout.id).evidence.tally(arm, "success").people == 1


def test_an_answer_to_what_was_shown_in_the_step_before_does_not_count_in_this_one(ready: Store) -> None:
    """Also if the clock went back when the step ended."""
    rollout = begin(ready, plan=replace(HALF, steps=(0.5, 0.6, 0.9, 1.0)))
    person = PEOPLE[0]
    for step, (shown_at, ended_at) in enumerate([(4, 5), (5.5, 6)], 1):
        serve(ready, person)
        inference = shown(ready, f"i-{step}", person, minutes=shown_at)
        rollout = ready.move_rollout(rollout, Move("running", step, "healthy", "ok"), at(ended_at), actor="loop")
        serve(ready, person)
        ready.add_feedback(TENANT, person, signal(f"s-{step}", inference, value=0, minutes=7), at(7))
        evidence = ready.rollout_reading(TENANT, rollout.id).evidence
        assert sum(evidence.tally(arm, "success").people for arm in ARMS) == 0
    turned_back = ready.move_rollout(rollout, Move("held", 2, "sample ratio mismatch", "?"), at(2), actor="loop")
    ended = ready.move_rollout(turned_back, Move("rolled_back", 2, "breach", "harm"), at(1), actor="loop")
    assert (turned_back.moved_at, ended.moved_at) == (at(6), at(6))


def test_the_next_step_counts_afresh_and_the_last_one_is_kept(ready: SqlStore) -> None:
    rollout = begin(ready, plan=replace(HALF, steps=(0.5, 0.9, 1.0)))
    serve(ready, *PEOPLE)
    late = [Served(TENANT, person, ready.resolve(TENANT, person, None).trials, 0.1) for person in PEOPLE]
    rollout = ready.move_rollout(rollout, Move("running", 1, "healthy", "ok"), at(5), actor="loop")
    assert enrolled(ready, rollout) == {}
    assert ready.observe_served(late) == 0
    serve(ready, *PEOPLE)
    found = enrolled(ready, rollout)
    assert sum(found.values()) == len(PEOPLE)
    assert found["candidate"] == len(on_candidate(ready)) > 40
    table = schema.rollout_tallies.c
    with ready._database.reading(ALL_TENANTS) as connection:
        rows = connection.scalars(select(table.people).where(table.step == 0, table.metric == "enrolled"))
        assert sum(rows) == len(PEOPLE)


@pytest.mark.parametrize("how", ["pause", "leave", "reset"])
def test_who_pauses_leaves_or_resets_is_one_complaint_of_their_arm(ready: SqlStore, how: str) -> None:
    rollout = begin(ready)
    serve(ready, *PEOPLE)
    person = PEOPLE[0]
    arm = ready.resolve(TENANT, person, None).trials[0].arm
    for number in range(2):
        if how == "reset":
            ready.apply_reset(TENANT, person, f"x{number}", plan_reset("all"), at(5))
        else:
            change = ConsentChange(paused=True) if how == "pause" else ConsentChange(opted_in=False)
            ready.change_subject(TENANT, person, change, at(5))
            ready.change_subject(TENANT, person, ConsentChange(paused=False), at(5))
    evidence = ready.rollout_reading(TENANT, rollout.id).evidence
    assert evidence.tally(arm, "complaints").total == 1.0
    assert (person in members(ready)) is (how == "pause")


def test_members_of_ended_rollouts_are_erased_and_their_sums_stay(ready: SqlStore) -> None:
    rollout = begin(ready)
    serve(ready, *PEOPLE)
    assert ready.forget_members() == 0
    ready.steer_rollout(TENANT, rollout.id, "hold", at(4), reason="look", actor="admin")
    assert ready.forget_members() == 0
    ready.steer_rollout(TENANT, rollout.id, "abort", at(5), reason="enough", actor="admin")
    assert ready.forget_members(limit=50) == 50
    assert ready.forget_members(limit=50) == 10
    assert members(ready) == []
    assert sum(enrolled(ready, rollout).values()) == len(PEOPLE)


def test_counting_from_many_threads_enrolls_nobody_twice(ready: SqlStore) -> None:
    rollout = begin(ready)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: serve(ready, *PEOPLE), range(4)))
    assert sum(enrolled(ready, rollout).values()) == len(PEOPLE)


def test_a_draft_serves_nobody_until_it_is_started(ready: Store) -> None:
    draft = begin(ready, start=False)
    assert (draft.state, draft.share, on_candidate(ready)) == ("draft", 0.0, set())
    other = begin(ready)
    with pytest.raises(ConflictError, match=other.id):
        ready.steer_rollout(TENANT, draft.id, "start", at(4), reason="go", actor="admin")
    ready.steer_rollout(TENANT, other.id, "abort", at(4), reason="stop", actor="admin")
    started = ready.steer_rollout(TENANT, draft.id, "start", at(5), reason="go", actor="admin")
    assert (started.state, started.share) == ("running", 0.5)
    assert on_candidate(ready)


def test_a_draft_can_be_given_up_and_then_never_starts(ready: Store) -> None:
    draft = begin(ready, start=False)
    given_up = ready.steer_rollout(TENANT, draft.id, "abort", at(4), reason="no", actor="admin")
    assert (given_up.state, given_up.share) == ("aborted", 0.0)
    with pytest.raises(ConflictError, match="aborted"):
        ready.steer_rollout(TENANT, draft.id, "start", at(5), reason="go", actor="admin")


def test_a_draft_whose_candidate_was_revoked_can_not_start(ready: Store) -> None:
    draft = begin(ready, start=False)
    ready.revoke_release(TENANT, "new", at(4), reason="bad", actor="admin")
    with pytest.raises(ConflictError, match="revoked"):
        ready.steer_rollout(TENANT, draft.id, "start", at(5), reason="go", actor="admin")


def test_one_pointer_has_one_rollout_at_a_time(ready: Store) -> None:
    first = begin(ready, "version", "dnew-chat")
    publish_domains(ready, "wide", "chat", "voice", minutes=3, staged=True)
    with pytest.raises(ConflictError, match=first.id):
        begin(ready, "release", "wide")
    assert [rollout.id for rollout in ready.rollouts(TENANT)] == [first.id]
    assert ready.active_rollouts() == [(TENANT, first.id)]


@pytest.mark.parametrize(
    ("kind", "name", "error"),
    [
        ("release", "missing", NotFoundError),
        ("version", "missing", NotFoundError),
        ("release", "theirs", NotFoundError),
        ("version", "theirs-chat", NotFoundError),
        ("version", "new-p000", InvalidInputError),  # one person's
        ("version", "dold-chat", ConflictError),  # live already
        ("release", "dold", ConflictError),
        ("release", "revoked", ConflictError),
        ("release", "foreign", ConflictError),
        ("release", "empty", ConflictError),
    ],
)
def test_a_candidate_that_can_not_be_rolled_out_is_refused_and_leaves_nothing(
    ready: SqlStore, kind: Any, name: str, error: type[IdiolectError]
) -> None:
    theirs = [version("theirs-chat", "theirs", "", "chat")]
    ready.publish("theirs", template("domain", tenant="other"), theirs, at(1), reason="t", actor="t", staged=True)
    publish_domains(ready, "revoked", "chat", minutes=2, staged=True)
    ready.revoke_release(TENANT, "revoked", at(3), reason="bad", actor="admin")
    foreign = [version("f1", "foreign", "", "chat")]
    ready.publish("foreign", template("domain", global_digest="f"), foreign, at(1), reason="t", actor="t", staged=True)
    ready.publish("empty", template("domain"), [], at(1), reason="t", actor="t", staged=True)
    with pytest.raises(error) as caught:
        begin(ready, kind, name)
    assert caught.value.mend
    assert ready.rollouts(TENANT) == []


def test_other_tenants_see_and_move_nothing(ready: Store) -> None:
    rollout = begin(ready)
    assert ready.rollout("other", rollout.id) is None
    assert ready.rollouts("other") == []
    for call in (
        lambda: ready.rollout_reading("other", rollout.id),
        lambda: ready.steer_rollout("other", rollout.id, "abort", at(4), reason="x", actor="x"),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert on_candidate(ready)


def test_changes_are_guarded_by_the_revision_and_kept_in_the_history(ready: Store) -> None:
    rollout = begin(ready)
    with pytest.raises(PreconditionError):
        ready.steer_rollout(TENANT, rollout.id, "hold", at(4), reason="x", actor="x", if_revision=rollout.revision - 1)
    held = ready.steer_rollout(
        TENANT, rollout.id, "hold", at(4), reason="look", actor="admin", if_revision=rollout.revision
    )
    ready.move_rollout(held, Move("rolled_back", 0, "breach", "worse"), at(5), actor="loop")
    history = ready.rollout_history(TENANT, rollout.id)
    assert [(entry.state, entry.verdict, entry.reason) for entry in history] == [
        ("draft", "not enough data", "try"),
        ("running", "not enough data", "try"),
        ("held", "not enough data", "look"),
        ("rolled_back", "breach", "worse"),
    ]
    with pytest.raises(InvalidInputError):
        ready.steer_rollout(TENANT, rollout.id, "delete", at(6), reason="x", actor="x")
