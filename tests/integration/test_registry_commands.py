"""`idiolect registry`, `audit` and `keys` on a home with real trainings."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from training_home import NEW, TENANT, Home
from typer.testing import CliRunner, Result

from idiolect.errors import ConflictError, CorruptArtifactError, IdiolectError, InvalidInputError, NotFoundError
from idiolect_services import signing_keys
from idiolect_services.cli import app
from idiolect_services.cli.registry_moves import unused_blobs, unused_models
from idiolect_services.model_blobs import share_model
from idiolect_services.wiring import open_installation

USER = f"person {NEW[0]}"


def run(home: Home, *words: str, tenant: bool = True) -> Result:
    """Runs the command; what it raised is raised again, since `main` turns it into one line."""
    options = ["--home", str(home.installation.root)] + (["--tenant", TENANT] if tenant else [])
    result = CliRunner().invoke(app, [*words, *options], env={"COLUMNS": "300"})
    if isinstance(result.exception, IdiolectError):
        raise result.exception
    return result


def ids(home: Home, person: str) -> list[str]:
    return [stored.version.id for stored in home.store.versions(TENANT, subject=person)]


@pytest.fixture
def trained(home: Home) -> Home:
    """Two releases for everyone, and one for the domain."""
    home.trainer().train_domain(TENANT, "chat")
    for _ in range(2):
        home.trainer(user_epsilon=1.0, user_budget_epsilon=20.0).train_users(TENANT)
    return home


def test_a_version_is_promoted_rolled_back_and_its_history_shown(trained: Home) -> None:
    person = home_person(trained)
    first, second = ids(trained, person)
    assert f"version {first} is live" in run(trained, "registry", "promote", first, "--reason", "a test").output
    assert trained.live(person) == first
    run(trained, "registry", "rollback", "--user", USER, "--reason", "back")
    assert trained.live(person) == second
    shown = run(trained, "registry", "history", "--user", USER).output
    assert "a test" in shown
    assert "training of user adapters" in shown
    assert "operator" in shown
    with pytest.raises(ConflictError, match="no previous"):
        run(trained, "registry", "rollback", "--domain", "chat", "--reason", "back")


def home_person(home: Home) -> str:
    return home.person(NEW[0])


def test_a_release_is_promoted_rolled_back_and_revoked_whole(trained: Home) -> None:
    newest, oldest = [r.id for r in trained.store.releases(TENANT) if r.scope == "user"]
    person = home_person(trained)
    first, second = ids(trained, person)
    assert trained.live(person) == second
    assert f"{len(NEW)} adapters" in run(trained, "registry", "promote", oldest, "--reason", "a test").output
    assert trained.live(person) == first
    run(trained, "registry", "rollback", "--release", oldest, "--reason", "bad night")
    assert trained.live(person) == second
    run(trained, "registry", "revoke", newest, "--reason", "bad too")
    assert trained.live(person) is None


@pytest.mark.parametrize(
    "words",
    [
        ("rollback", "--reason", "x"),
        ("rollback", "--user", "a", "--domain", "b", "--reason", "x"),
        ("history",),
        ("lineage",),
        ("diff", "nothing", "at all"),
        ("promote", "nothing", "--reason", "x"),
        ("revoke", "nothing", "--reason", "x"),
        ("lineage", "nothing"),
        ("rollback", "--domain", "../x", "--reason", "x"),
        ("promote", "nothing", "--reason", ""),
        ("revoke", "nothing", "--reason", " "),
        ("rollback", "--domain", "chat", "--reason", "x" * 501),
        ("gc", "--older-than-days", "nan"),
    ],
)
def test_what_is_not_clear_or_not_there_is_said_with_the_mend(home: Home, words: tuple[str, ...]) -> None:
    with pytest.raises((InvalidInputError, NotFoundError)) as caught:
        run(home, "registry", *words)
    assert caught.value.mend


def test_two_versions_are_compared_in_weights_privacy_and_on_probes(trained: Home) -> None:
    first, second = ids(trained, home_person(trained))
    shown = run(trained, "registry", "diff", first, second, "--probe", "how?|like this").output
    assert "distance: " in shown
    assert "how? | like this" in shown
    assert "parent" in shown
    assert "router" not in shown
    assert "router" in run(trained, "registry", "diff", first, second).output
    same = run(trained, "registry", "diff", first, first).output
    assert "distance: 0.0000   cosine: 1.0000" in same
    with pytest.raises(InvalidInputError, match="PROMPT"):
        run(trained, "registry", "diff", first, second, "--probe", "no bar")
    domain = trained.store.resolve(TENANT, None, "chat").domain
    with pytest.raises(InvalidInputError, match="same basis"):
        run(trained, "registry", "diff", first, domain.id)


def test_two_releases_are_compared_over_the_adapters_of_both(trained: Home) -> None:
    newest, oldest = [r.id for r in trained.store.releases(TENANT) if r.scope == "user"]
    shown = run(trained, "registry", "diff", oldest, newest).output
    assert f"adapters in both: {len(NEW)}" in shown
    assert "distance: " in shown


def test_lineage_goes_from_a_person_to_versions_and_back_to_the_run(trained: Home) -> None:
    first, second = ids(trained, home_person(trained))
    shown = run(trained, "registry", "lineage", "--user", USER).output
    assert first in shown
    assert second in shown
    origin = run(trained, "registry", "lineage", second).output
    assert f"parents: {first}" in origin
    assert "user adapters, 6 charged" in origin


def test_gc_counts_first_and_deletes_only_when_told(trained: Home) -> None:
    trained.trainer(user_epsilon=1.0, user_budget_epsilon=20.0).train_users(TENANT)
    oldest = [r.id for r in trained.store.releases(TENANT) if r.scope == "user"][-1]
    run(trained, "registry", "revoke", oldest, "--reason", "old")
    dry = run(trained, "registry", "gc", "--older-than-days", "0").output
    assert f"would delete {len(NEW)} versions of 1 releases" in dry
    assert "dry run" in dry
    assert len(ids(trained, home_person(trained))) == 3
    assert f"deleted {len(NEW)} versions" in run(trained, "registry", "gc", "--older-than-days", "0", "--apply").output
    assert len(ids(trained, home_person(trained))) == 2
    assert trained.live(home_person(trained)) is not None
    assert "would delete 0 versions" in run(trained, "registry", "gc").output


def test_gc_finds_only_blobs_that_are_old_and_belong_to_nothing(home: Home) -> None:
    blobs = home.installation.blobs
    share_model(blobs, home.installation.models, home.model.digest)
    orphan, young = blobs.put(b"nobody names this"), blobs.put(b"somebody may be about to name this")
    now = home.installation.clock.now()
    old = (now - timedelta(days=40)).timestamp()
    for path in (home.installation.root / "blobs").rglob("*"):
        if path.name != young:
            os.utime(path, (old, old))
    assert [blob.digest for blob in unused_blobs(home.installation, now - timedelta(days=30))] == [orphan]


def test_gc_deletes_only_model_folders_that_are_old_and_unused(home: Home) -> None:
    models = home.installation.models
    now = home.installation.clock.now()
    for name, days in (("e" * 64, 40), ("f" * 64, 0)):
        (models / name).mkdir()
        (models / name / "weights").write_bytes(b"x" * 1000)
        moment = (now - timedelta(days=days)).timestamp()
        os.utime(models / name, (moment, moment))
    live = models / home.model.digest
    os.utime(live, (0, 0))
    assert [path.name for path in unused_models(home.installation, now.timestamp())] == ["e" * 64]
    run(home, "registry", "gc", "--apply")
    assert not (models / ("e" * 64)).exists()
    assert (models / ("f" * 64)).exists()
    assert live.exists()


def test_an_edited_template_is_named_by_list_and_the_mend_works(trained: Home) -> None:
    release = trained.store.releases(TENANT)[0].id
    with trained.store._database.engine.begin() as connection:
        connection.execute(text("UPDATE releases SET template = '{}' WHERE id = :id"), {"id": release})
    with pytest.raises(CorruptArtifactError, match=release) as caught:
        run(trained, "registry", "list")
    assert "registry revoke" in caught.value.mend
    run(trained, "registry", "revoke", release, "--reason", "damaged")


# The audit log


def test_the_logs_of_a_home_hold_and_their_heads_can_be_kept(trained: Home) -> None:
    everything = run(trained, "audit", "verify", tenant=False)
    assert everything.exit_code == 0
    assert everything.output.count("holds") == 2
    head = trained.store.audit_head(TENANT).anchor
    assert head in everything.output
    run(trained, "registry", "revoke", trained.store.releases(TENANT)[0].id, "--reason", "x")
    assert run(trained, "audit", "verify", "--expect-head", head).exit_code == 0
    forged = head.split(":")[0] + ":" + "0" * 64
    bad = run(trained, "audit", "verify", "--expect-head", forged)
    assert (bad.exit_code, "rewritten" in bad.output) == (1, True)


def test_a_broken_log_is_named_and_the_exit_code_says_so(trained: Home) -> None:
    with trained.store._database.engine.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_entries_never_change"))
        connection.execute(text("UPDATE audit_entries SET reason = 'fine' WHERE seq = 2 AND tenant = 'acme'"))
    result = run(trained, "audit", "verify", tenant=False)
    assert result.exit_code == 1
    assert "tenant acme: entry 2 is edited" in result.output
    assert "holds  installation" in result.output


def test_a_head_without_its_log_or_of_no_shape_is_refused(home: Home) -> None:
    with pytest.raises(InvalidInputError, match="one log"):
        run(home, "audit", "verify", "--expect-head", "1:" + "0" * 64, tenant=False)
    with pytest.raises(InvalidInputError, match="head"):
        run(home, "audit", "verify", "--expect-head", "nonsense")
    with pytest.raises(NotFoundError, match="no tenant 'nobody'"):
        run(home, "audit", "verify", "--tenant", "nobody", tenant=False)
    assert run(home, "audit", "list", "--before", "9" * 30).exit_code == 2
    with pytest.raises(InvalidInputError, match="two logs"):
        run(home, "audit", "list", "--installation")


def test_entries_are_listed_for_people_and_for_programs(trained: Home) -> None:
    assert "release.publish" in run(trained, "audit", "list").output
    lines = run(trained, "audit", "list", "--json", "--limit", "3").output.splitlines()
    newest = json.loads(lines[0])
    assert (len(lines), newest["hash"]) == (3, trained.store.audit_head(TENANT).hash)
    assert "global.set" in run(trained, "audit", "list", "--installation", tenant=False).output


# Signing keys


def reopened_live(home: Home) -> str | None:
    """What another process, started now, would serve."""
    with open_installation(home.installation.settings) as installation:
        resolved = installation.store.resolve(TENANT, home_person(home), None).user
        if resolved is None:
            return None
        from idiolect.registry.weights import verify_version

        stored = installation.store.version(TENANT, resolved.id)
        assert stored is not None
        verify_version(stored.template, stored.version, installation.signer)
        return resolved.id


def test_versions_signed_before_a_rotation_are_served_until_their_key_is_withdrawn(trained: Home) -> None:
    old = trained.installation.signer.key_id
    _, second = ids(trained, home_person(trained))
    assert f"{old} stays trusted" in run(trained, "keys", "rotate-signing", tenant=False).output
    assert reopened_live(trained) == second
    listed = run(trained, "keys", "signing", tenant=False).output
    assert f"{old}  trusted" in listed
    gone = run(trained, "keys", "withdraw-signing", old, "--reason", "stolen", tenant=False).output
    assert f"{2 * len(NEW) + 1} versions" in gone
    assert reopened_live(trained) is None
    assert f"{old}  withdrawn" in run(trained, "keys", "signing", tenant=False).output
    actions = [entry.action for entry in trained.store.audit_entries("", limit=2)]
    assert actions == ["signing_key.withdraw", "signing_key.rotate"]


def test_the_active_and_an_unknown_key_are_not_withdrawn(home: Home) -> None:
    with pytest.raises(ConflictError):
        run(home, "keys", "withdraw-signing", home.installation.signer.key_id, "--reason", "x", tenant=False)
    with pytest.raises(NotFoundError):
        run(home, "keys", "withdraw-signing", "0" * 16, "--reason", "x", tenant=False)


def test_a_crash_between_the_two_steps_of_a_rotation_changes_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = signing_keys._replace

    def crash(path: Path, content: bytes) -> None:
        if path.name == "signing.key":
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(signing_keys, "_replace", crash)
    keys = signing_keys.SigningKeys(home.installation.root / "secrets")
    before = keys.signer().key_id
    with pytest.raises(KeyboardInterrupt):
        keys.rotate()
    assert keys.signer().key_id == before
