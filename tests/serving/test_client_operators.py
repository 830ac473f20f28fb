"""What operators do, from Python, against the real gateway: with either client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client_world import Awaited, client_of
from serving_world import K, World

from idiolect.client import errors as api_errors
from idiolect.client.errors import ApiInvalidInputError
from idiolect.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError, TooLargeError
from idiolect.tenancy import Scope

Make = Callable[[World, str], Any]


@pytest.fixture(params=[client_of, Awaited], ids=["Client", "AsyncClient"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest.fixture
def api(world: World, make: Make) -> Any:
    return make(world, world.key())


def two_versions(world: World) -> tuple[str, str]:
    world.opt_in("ann")
    return world.publish_user("ann").id, world.publish_user("ann", [0.5] * K).id


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_a_version_is_promoted_and_rolled_back_and_the_history_says_so(world: World, api: Any) -> None:
    first, second = two_versions(world)
    newest = api.adapters(user="ann").adapters[-1]
    assert (newest.id, newest.withheld) == (second, None)
    adapter = newest.adapter
    seen = api.pointers(adapter)
    assert (seen.adapter, seen.live.version, seen.live.revision) == (adapter, second, 2)
    assert seen.previous is not None
    assert seen.previous.version == first
    promoted = api.promote(adapter, first, "it was better", based_on=seen)
    assert promoted.live.version == first
    assert api.rerank("q", ["a"], user="ann").personalization.adapter == first
    assert api.promote(adapter, second, "or not").live.version == second
    assert api.rollback(adapter, "no, it was").live.version == first
    assert api.adapter(second).withheld == "rolled_back: no, it was"
    moves = api.adapter_history(adapter, limit=3).moves
    assert [(move.old_version, move.version, move.reason) for move in moves] == [
        (second, first, "no, it was"),
        (first, second, "or not"),
        (second, first, "it was better"),
    ]


def test_a_change_that_was_overtaken_is_refused_and_changes_nothing(world: World, api: Any) -> None:
    first, second = two_versions(world)
    adapter = api.adapters(user="ann").adapters[0].adapter
    stale = api.pointers(adapter)
    api.promote(adapter, first, "meanwhile")
    for change in (
        lambda: api.promote(adapter, second, "late", based_on=stale),
        lambda: api.rollback(adapter, "late", based_on=stale),
    ):
        with pytest.raises(PreconditionError) as refused:
            change()
        assert isinstance(refused.value, api_errors.ApiPreconditionError)
    assert api.pointers(adapter).live.version == first
    assert api.rollback(adapter, "in time", based_on=api.pointers(adapter)).live.version == second


def test_what_can_not_be_live_is_a_conflict_and_what_is_not_there_is_not_found(world: World, api: Any) -> None:
    version = world.publish_domain("chat")
    world.publish_domain("news")
    with pytest.raises(ConflictError) as refused:
        api.rollback("domain:chat", "there is none before")
    assert (refused.value.code, refused.value.status) == ("not_promotable", 409)
    for call in (
        lambda: api.promote("domain:news", version.id, "of another domain"),
        lambda: api.rollback("domain:other", "nothing there"),
        lambda: api.pointers("nonsense"),
        lambda: api.adapter_history("domain:other"),
        lambda: api.adapter_versions("user:../../releases"),
        lambda: api.lineage("nothing"),
    ):
        with pytest.raises(NotFoundError):
            call()
    with pytest.raises(ApiInvalidInputError) as invalid:
        api.promote("domain:chat", version.id, "")
    assert [field.field for field in invalid.value.fields] == ["reason"]


def test_versions_and_histories_come_a_page_at_a_time(world: World, api: Any) -> None:
    first, second = two_versions(world)
    adapter = api.adapters(user="ann").adapters[0].adapter
    page = api.adapter_versions(adapter, limit=1)
    rest = api.adapter_versions(adapter, limit=1, page_token=page.next_page_token)
    assert [entry.id for entry in (*page.adapters, *rest.adapters)] == [first, second]
    assert rest.next_page_token is None
    moves = api.adapter_history(adapter, limit=1)
    older = api.adapter_history(adapter, page_token=moves.next_page_token)
    assert [move.version for move in (*moves.moves, *older.moves)] == [second, first]
    log = api.audit(limit=2)
    assert log.head == f"{log.entries[0].seq}:{log.entries[0].hash}"
    assert api.audit(limit=1, page_token=log.next_page_token).entries[0].hash == log.entries[-1].previous
    with pytest.raises(ApiInvalidInputError):
        api.audit(page_token="one of nobody's")


def test_lineage_says_what_a_version_is_made_of_and_whom_a_training_read(world: World, api: Any) -> None:
    first, second = two_versions(world)
    found = api.contributions("ann").versions
    assert [(one.version, one.via, one.revoked) for one in found] == [(first, "own", False), (second, "own", False)]
    assert api.contributions("a&user=ann").versions == ()
    origin = api.lineage(second)
    assert (origin.version, origin.data_window, origin.parents) == (second, "test", ())
    assert origin.adapter == api.adapter_versions(origin.adapter).adapters[0].adapter


def test_the_audit_log_says_who_did_what(world: World, api: Any) -> None:
    made = world.publish_domain("chat")
    api.revoke_release(made.release, "bad data")
    entry = api.audit(limit=1).entries[0]
    assert (entry.action, entry.object, entry.reason) == ("release.revoke", f"release {made.release}", "bad data")
    assert entry.actor.startswith("api key ")


# --- releases ---------------------------------------------------------------------------------------------------------


def test_a_release_is_read_compared_and_made_live_again(world: World, api: Any) -> None:
    world.opt_in("ann")
    first, second = world.publish_user("ann", [1.0] * K), world.publish_user("ann", [2.0] * K)
    assert api.release(first.release) in api.releases().releases
    assert api.release_card(first.release).text.startswith("# User adapters")
    changed = api.diff(first.id, second.id)
    assert changed.weights.norm_b == pytest.approx(2 * changed.weights.norm_a)
    assert changed.probes
    whole = api.diff(first.release, second.release)
    assert (whole.pairs, whole.probes, whole.weights) == (1, (), changed.weights)
    assert [api.promote_release(first.release, "better").moved for _ in range(2)] == [1, 0]
    assert api.rerank("q", ["a"], user="ann").personalization.adapter == first.id
    api.revoke_release(second.release, "bad")
    with pytest.raises(ConflictError):
        api.promote_release(second.release, "again")
    for call in (api.release, api.release_card, lambda one: api.diff(first.id, one)):
        with pytest.raises(NotFoundError):
            call("nothing")


def test_a_release_goes_into_a_file_and_comes_back(world: World, make: Make, tmp_path: Path) -> None:
    world.opt_in("ann")
    made, api = world.publish_user("ann"), make(world, world.key())
    file = tmp_path / "out" / "ann.release"
    file.parent.mkdir()
    saved = api.export_release(made.release, file)
    assert (saved.path, saved.size) == (file, file.stat().st_size)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes().count(b"\n") == 3
    assert api.import_release(file.read_bytes(), "it is here").known
    with world.store._database.engine.begin() as connection:
        for table in ("pointers", "versions", "releases"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    report = api.import_release(file.read_bytes(), "back & again")
    assert (report.release, report.versions, report.known) == (made.release, 1, False)
    assert api.audit(limit=1).entries[0].reason == "back & again"
    assert not api.rerank("q", ["a"], user="ann").personalization.applied
    assert api.promote_release(made.release, "on").moved == 1
    assert api.rerank("q", ["a"], user="ann").personalization.adapter == made.id
    stranger = make(world, world.key("other"))
    with pytest.raises(ApiInvalidInputError) as refused:
        stranger.import_release(file.read_bytes(), "mine now")
    assert refused.value.code == "untrusted_key"
    with pytest.raises(ApiInvalidInputError) as damaged:
        api.import_release(file.read_bytes()[:-40], "torn")
    assert damaged.value.code == "corrupt_artifact"
    with pytest.raises(TooLargeError):
        api.import_release(bytes(world.settings.max_import_bytes + 1), "too much")


def test_an_export_that_is_refused_leaves_no_file_and_one_that_is_there_is_not_touched(
    world: World, api: Any, tmp_path: Path
) -> None:
    made = world.publish_domain("chat")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    entries = len(api.audit().entries)
    with pytest.raises(FileExistsError, match="mine"):
        api.export_release(made.release, folder / "mine")
    with pytest.raises(FileNotFoundError):
        api.export_release(made.release, folder / "nowhere" / "new")
    assert len(api.audit().entries) == entries  # neither was even asked for
    with pytest.raises(NotFoundError):
        api.export_release("nothing", folder / "new")
    api.revoke_release(made.release, "bad")
    with pytest.raises(ConflictError, match="revoked"):
        api.export_release(made.release, folder / "new")
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("mine", "mine")]


def test_garbage_is_counted_and_deleted_only_when_told(world: World, api: Any) -> None:
    world.opt_in("ann")
    first = world.publish_user("ann")
    for value in (0.5, 0.7, 0.9):
        world.publish_user("ann", [value] * K)
    api.revoke_release(first.release, "bad")
    counted = api.collect_garbage(older_than_days=0)
    assert (counted.applied, counted.versions, counted.releases) == (False, 1, 1)
    assert api.collect_garbage().versions == 0  # it was revoked just now
    assert api.adapter(first.id).revoked
    deleted = api.collect_garbage(apply=True, older_than_days=0)
    assert (deleted.applied, deleted.versions, deleted.bytes) == (True, 1, counted.bytes)
    with pytest.raises(NotFoundError):
        api.adapter(first.id)
    with pytest.raises(ApiInvalidInputError):
        api.collect_garbage(older_than_days=-1)


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_a_rollout_is_made_steered_and_aborted(api: Any) -> None:
    draft = api.create_rollout(
        "milder?", strength=0.5, steps=[0.1, 0.5], guardrails={"slow": 0.2}, min_people=7, start=False
    )
    assert (draft.state, draft.share, draft.candidate.kind, draft.candidate.strength) == ("draft", 0.0, "setting", 0.5)
    assert (draft.plan.steps, draft.plan.guardrails, draft.plan.min_people) == ((0.1, 0.5), {"slow": 0.2}, 7)
    running = api.start_rollout(draft.id, "go", if_revision=draft.revision)
    assert (running.state, running.share, running.step) == ("running", 0.1, 1)
    held = api.hold_rollout(draft.id, "wait", if_revision=running.revision)
    assert held.state == "held"
    with pytest.raises(PreconditionError):
        api.resume_rollout(draft.id, "late", if_revision=running.revision)
    assert api.resume_rollout(draft.id, "go on").state == "running"
    assert api.abort_rollout(draft.id, "enough") == api.abort_rollout(draft.id, "enough")
    shown = api.rollout(draft.id)
    assert [step.state for step in shown.history] == ["draft", "running", "held", "running", "aborted"]
    assert shown.enrolled == {"control": 0, "candidate": 0}
    assert [reading.metric for reading in shown.evaluation.guardrails] == ["slow"]
    assert [one.id for one in api.rollouts(limit=5).rollouts] == [draft.id]
    with pytest.raises(ConflictError):
        api.hold_rollout(draft.id, "it is over")
    with pytest.raises(NotFoundError):
        api.rollout("nothing")


def test_a_release_or_a_version_is_tried_and_two_at_once_are_a_conflict(world: World, api: Any) -> None:
    live, candidate = world.publish_domain("chat"), world.publish_domain("chat")
    api.promote("domain:chat", live.id, "the other one is to be tried first")
    tried = api.create_rollout("try", version=candidate.id)
    assert (tried.state, tried.candidate.id, tried.covers) == ("running", candidate.id, ("domain:chat",))
    with pytest.raises(ConflictError, match=tried.id):
        api.create_rollout("me too", release=candidate.release)
    api.abort_rollout(tried.id, "next")
    assert api.create_rollout("now", release=candidate.release).candidate.kind == "release"
    with pytest.raises(NotFoundError):
        api.create_rollout("the operator's", global_model="latest")


def test_a_rollout_has_one_candidate_and_its_server_checks_the_plan(api: Any) -> None:
    for candidates in ({}, {"release": "r", "strength": 0.0}):
        with pytest.raises(InvalidInputError, match="candidates were named"):
            api.create_rollout("which?", **candidates)
    with pytest.raises(ApiInvalidInputError):
        api.create_rollout("backwards", strength=0.5, steps=[0.5, 0.1])
    assert api.create_rollout("off", strength=0.0, steps=[0.5]).candidate.strength == 0.0


def test_reading_needs_one_scope_and_changing_another(world: World, make: Make, tmp_path: Path) -> None:
    made = world.publish_domain("chat")
    reader = make(world, world.key("acme", Scope.REGISTRY))
    assert reader.pointers("domain:chat").live.version == made.id
    assert reader.rollouts().rollouts == ()
    for call in (
        lambda: reader.promote("domain:chat", made.id, "r"),
        lambda: reader.audit(),
        lambda: reader.contributions("ann"),
        lambda: reader.export_release(made.release, tmp_path / "new"),
        lambda: reader.create_rollout("r", strength=0.5),
    ):
        with pytest.raises(NotFoundError):
            call()
