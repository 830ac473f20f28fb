"""Backup and restore of a whole installation: what came after the backup, and must not be undone, is made again."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from store_samples import EVENT, GLOBAL, TENANT, at, give_feedback, opt_in, publish_domain, publish_user
from test_store_large_weights import large
from test_store_large_weights import publish as publish_large
from typer.testing import CliRunner

from idiolect.consent import ConsentChange
from idiolect.errors import ConfigurationError, CorruptArtifactError, IdiolectError, InvalidInputError
from idiolect.recovery import LoggedChange
from idiolect.registry.pointers import Adapter
from idiolect.resets.plan import plan_reset
from idiolect.settings import Settings
from idiolect.stores.ports import Store
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.tenancy import Scope
from idiolect_services import restoring
from idiolect_services.backup import FORMAT, Archive
from idiolect_services.cli import app
from idiolect_services.restoring import back_up, restore
from idiolect_services.wiring import open_installation, recovery_log_of

PASSPHRASE = "five long random words here"
SECRET_HASH = b"\x07" * 32


@pytest.fixture(params=["sqlite", "postgres"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str | None]:
    """Call it for a database to start with, and again for an empty one to restore into: on SQLite the same file."""
    if request.param == "sqlite":
        return lambda: None
    server: PostgresServer = request.getfixturevalue("postgres")
    numbers = iter(range(10))
    return lambda: server.create_database(f"backup_{abs(hash(tmp_path))}_{next(numbers)}")


@pytest.fixture
def settings(tmp_path: Path, fresh_url: Callable[[], str | None]) -> Settings:
    return Settings(home=tmp_path / "home", database_url=fresh_url())


def furnish(store: Store) -> None:
    """Ann, Bob and Cid opted in and have adapters; so has a domain."""
    store.create_tenant(TENANT, at(0))
    store.set_global(GLOBAL, at(0), reason="trained", actor="trainer")
    opt_in(store, "ann", "bob", "cid")
    for number, person in enumerate(("ann", "bob", "cid")):
        give_feedback(store, person)
        publish_user(store, f"v{number}", person)
    publish_domain(store, "d0")


def saved(settings: Settings, tmp_path: Path) -> Path:
    with open_installation(settings) as installation:
        furnish(installation.store)
        assert back_up(installation, tmp_path / "backup") > 0
    return tmp_path / "backup"


def elsewhere(settings: Settings, fresh_url: Callable[[], str | None]) -> Settings:
    return settings.model_copy(update={"database_url": fresh_url()})


def test_everything_comes_back_as_it_was(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    backup = saved(settings, tmp_path)
    with open_installation(settings) as installation:
        before = [installation.store.resolve(TENANT, person, "chat") for person in ("ann", "bob", None)]
        versions = installation.store.versions(TENANT)
        data = installation.store.personal_snapshot(TENANT)
    target = elsewhere(settings, fresh_url)
    restored = restore(target, backup)
    with open_installation(target) as installation:
        store = installation.store
        assert [store.resolve(TENANT, person, "chat") for person in ("ann", "bob", None)] == before
        assert store.versions(TENANT) == versions
        assert store.personal_snapshot(TENANT).people == data.people
        publish_user(store, "v9", "ann", minutes=9)  # numbering goes on where it stood
        assert give_feedback(store, "ann", 2)
    assert restored.recovered.applied == {"backup.create": 1}


def test_weights_in_blobs_come_back_but_not_those_of_whoever_was_reset_since(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    with open_installation(settings) as installation:
        furnish(installation.store)
        publish_large(installation.store, large("big-1", "ann", seed=1))
        publish_large(installation.store, large("big-2", domain="chat", seed=2))
        back_up(installation, tmp_path / "backup")
        installation.store.apply_reset(TENANT, "ann", "reset-1", plan_reset("adapter"), at(5))
        shutil.rmtree(installation.root / "blobs")
    target = elsewhere(settings, fresh_url)
    restore(target, tmp_path / "backup")
    with open_installation(target) as installation:
        assert installation.store.version(TENANT, "big-1") is None
        stored = installation.store.version(TENANT, "big-2")
        assert stored is not None
        assert installation.store.with_weights(stored).version == large("big-2", domain="chat", seed=2)
        assert [info.digest for info in installation.blobs.walk()] == [stored.version.weights_sha256]


def test_whoever_was_reset_after_the_backup_stays_reset(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    backup = saved(settings, tmp_path)
    with open_installation(settings) as installation:
        store = installation.store
        store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(5))
        store.apply_reset(TENANT, "bob", "r2", plan_reset("adapter"), at(6))
        store.change_subject(TENANT, "cid", ConsentChange(opted_in=False), at(7))
        states = {person: store.subject(TENANT, person) for person in ("ann", "bob", "cid")}
        records = store.reset(TENANT, "r1"), store.reset(TENANT, "r2")
        head = store.audit_head(TENANT)
    target = elsewhere(settings, fresh_url)
    assert restore(target, backup).recovered.applied["reset"] == 2
    with open_installation(target) as installation:
        store = installation.store
        for person in ("ann", "bob", "cid"):
            assert store.resolve(TENANT, person, "chat").user is None
            assert store.subject(TENANT, person) == states[person]
            assert not store.versions(TENANT, subject=person)
            late = publish_user(store, f"late-{person}", person, minutes=8)  # of the old generation
            assert late.fenced == (person,)
        assert (store.reset(TENANT, "r1"), store.reset(TENANT, "r2")) == records
        assert [entry.seq for entry in store.audit_entries(TENANT) if entry.head == head] == [head.seq]
        assert "ann" not in store.personal_snapshot(TENANT).people


def test_what_was_revoked_rolled_back_or_quarantined_after_the_backup_stays_so(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    with open_installation(settings) as installation:
        store = installation.store
        furnish(store)
        publish_user(store, "v3", "cid", minutes=2)
        key = store.create_key(TENANT, [Scope("infer")], SECRET_HASH, at(1))
        back_up(installation, tmp_path / "backup")
        store.revoke_release(TENANT, "r-v0", at(3), reason="bad night", actor="op")
        store.quarantine(TENANT, "v1", "does not verify", at(4), actor="server")
        store.rollback(TENANT, Adapter("user", "cid"), at(5), reason="worse", actor="op")
        store.revoke_key(key.id, at(6))
        store.withdraw_signing_key("k" * 16, at(7), reason="stolen", actor="op")
    target = elsewhere(settings, fresh_url)
    restore(target, tmp_path / "backup")
    with open_installation(target) as installation:
        store = installation.store
        assert store.withdrawn_signing_keys() == ["k" * 16]
        release = store.release(TENANT, "r-v0")
        assert release is not None
        assert release.revoked
        withheld = {one.version.id: (one.withheld or "").split(":")[0] for one in store.versions(TENANT)}
        assert (withheld["v1"], withheld["v3"]) == ("quarantined", "rolled_back")
        assert store.authenticate(SECRET_HASH) is None
        assert store.resolve(TENANT, "ann", None).user is None


def test_a_restore_gives_no_privacy_budget_back(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    with open_installation(settings) as installation:
        store = installation.store
        furnish(store)
        store.reserve(TENANT, "comparison", "users", EVENT, ["ann"], 10.0, at(1))
        back_up(installation, tmp_path / "backup")
        store.reserve(TENANT, "comparison", "users", EVENT, ["ann", "bob"], 10.0, at(2))
        store.reserve(TENANT, "subject", "domain", EVENT, ["cid"], 10.0, at(3))
        accounts = [store.account(TENANT, "comparison", person) for person in ("ann", "bob", "cid")]
        runs = {(run.id, run.accounts, run.event) for run in store.runs(TENANT)}
    target = elsewhere(settings, fresh_url)
    restore(target, tmp_path / "backup")
    with open_installation(target) as installation:
        store = installation.store
        assert [store.account(TENANT, "comparison", person) for person in ("ann", "bob", "cid")] == accounts
        assert store.account(TENANT, "subject", "cid").spent_rho == EVENT.rho
        assert {(run.id, run.accounts, run.event) for run in store.runs(TENANT)} == runs
        assert len(store.charges(TENANT, "ann")) == 2


def test_a_second_restore_of_the_same_backup_knows_the_same(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    backup = saved(settings, tmp_path)
    with open_installation(settings) as installation:
        installation.store.apply_reset(TENANT, "ann", "r1", plan_reset("adapter"), at(5))
    once, twice = elsewhere(settings, fresh_url), elsewhere(settings, fresh_url)
    restore(once, backup)
    with open_installation(once) as installation:
        installation.store.apply_reset(TENANT, "bob", "r2", plan_reset("adapter"), at(6))
    restore(twice, backup, [recovery_log_of(once).path])
    with open_installation(twice) as installation:
        assert installation.store.resolve(TENANT, "ann", None).user is None
        assert installation.store.resolve(TENANT, "bob", None).user is None
        assert installation.store.resolve(TENANT, "cid", None).user is not None


@pytest.fixture
def embedded(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_database_file_that_was_copied_back_by_hand_catches_up_when_it_is_opened(
    embedded: Settings, tmp_path: Path
) -> None:
    database = embedded.root / "idiolect.db"
    with open_installation(embedded) as installation:
        furnish(installation.store)
    shutil.copy(database, tmp_path / "copy.db")
    with open_installation(embedded) as installation:
        installation.store.apply_reset(TENANT, "ann", "r1", plan_reset("adapter"), at(5))
    for left in embedded.root.glob("idiolect.db-*"):
        left.unlink()
    shutil.copy(tmp_path / "copy.db", database)
    with open_installation(embedded) as installation:
        assert installation.store.resolve(TENANT, "ann", None).user is None
        assert installation.store.resolve(TENANT, "bob", None).user is not None


def test_a_change_that_only_another_machines_log_holds_stops_the_restore(embedded: Settings, tmp_path: Path) -> None:
    backup = saved(embedded, tmp_path)
    log = recovery_log_of(embedded).path
    other = tmp_path / "other.log"
    with open_installation(embedded) as installation:
        store = installation.store
        store.apply_reset(TENANT, "ann", "r1", plan_reset("adapter"), at(5))
        log.rename(other)  # from here on as if another machine wrote
        store.apply_reset(TENANT, "bob", "r2", plan_reset("adapter"), at(6))
    before = (embedded.root / "idiolect.db").read_bytes()
    with pytest.raises(ConfigurationError, match="lacks change") as caught:
        restore(embedded, backup)
    assert "--log" in caught.value.mend
    assert (embedded.root / "idiolect.db").read_bytes() == before
    restore(embedded, backup, [other])
    with open_installation(embedded) as installation:
        assert installation.store.resolve(TENANT, "ann", None).user is None
        assert installation.store.resolve(TENANT, "bob", None).user is None


def test_without_a_log_a_restore_is_refused_unless_told_that_nothing_changed(
    embedded: Settings, tmp_path: Path
) -> None:
    backup = saved(embedded, tmp_path)
    shutil.rmtree(embedded.root / "recovery")
    with pytest.raises(ConfigurationError, match="nobody knows who was reset"):
        restore(embedded, backup)
    restored = restore(embedded, backup, nothing_since=True)
    assert restored.aside is not None
    assert restored.aside.exists()


def test_secrets_travel_only_sealed_and_open_an_empty_home(embedded: Settings, tmp_path: Path) -> None:
    with open_installation(embedded) as installation:
        furnish(installation.store)
        with pytest.raises(InvalidInputError, match="passphrase"):
            back_up(installation, tmp_path / "weak", "short")
        back_up(installation, tmp_path / "backup", PASSPHRASE)
        master, signing = installation.master_key, (embedded.root / "secrets" / "signing.key").read_bytes()
    content = (tmp_path / "backup").read_bytes()
    with zipfile.ZipFile(tmp_path / "backup") as archive:
        content += b"".join(archive.read(name) for name in archive.namelist())
    for secret in (master, signing):
        assert secret not in content
        assert secret.hex().encode() not in content
    fresh = Settings(home=tmp_path / "fresh")
    with pytest.raises(ConfigurationError, match="lacks the installation's keys"):
        restore(fresh, tmp_path / "backup", nothing_since=True)
    with pytest.raises(ConfigurationError, match="do not open"):
        restore(fresh, tmp_path / "backup", nothing_since=True, passphrase="another long passphrase")
    assert not (fresh.root / "idiolect.db").exists()
    with pytest.raises(ConfigurationError, match="another key store"):
        restore(fresh, tmp_path / "backup", nothing_since=True, passphrase=PASSPHRASE)
    shutil.rmtree(fresh.root / "keys")
    shutil.copytree(embedded.root / "keys", fresh.root / "keys")  # what a mirror of it is for
    restore(fresh, tmp_path / "backup", nothing_since=True, passphrase=PASSPHRASE)
    with open_installation(fresh) as installation:
        assert installation.master_key == master
        assert installation.store.resolve(TENANT, "ann", None).user is not None
        assert installation.store.personal_snapshot(TENANT).people == ("ann", "bob", "cid")


def test_a_backup_whose_key_store_is_lost_still_brings_back_consents_and_charges(
    embedded: Settings, tmp_path: Path
) -> None:
    backup = saved(embedded, tmp_path)
    shutil.rmtree(embedded.root / "keys")
    with pytest.raises(ConfigurationError, match="another key store"):
        restore(embedded, backup)
    restore(embedded, backup, without_keys=True)
    with open_installation(embedded) as installation:
        store = installation.store
        assert store.subject(TENANT, "ann").opted_in
        assert store.resolve(TENANT, None, "chat").domain is not None
        assert store.personal_snapshot(TENANT).people == ()
        assert give_feedback(store, "ann", 2)
        assert store.personal_snapshot(TENANT).people == ("ann",)


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def _edit_row(members: dict[str, bytes]) -> None:
    members["tables/subjects.jsonl"] = members["tables/subjects.jsonl"].replace(b"ann", b"eve")


def _edit_manifest(members: dict[str, bytes]) -> None:
    manifest = json.loads(members["manifest.json"])
    members["manifest.json"] = json.dumps(manifest | {"schema": "0001"}).encode()


def _add_path(members: dict[str, bytes]) -> None:
    members["../../evil"] = b"x"


def _drop(members: dict[str, bytes]) -> None:
    del members["tables/tombstones.jsonl"]


def _unsign(members: dict[str, bytes]) -> None:
    members["manifest.sig.json"] = b'{"key_id": 7}'


def _other_format(members: dict[str, bytes]) -> None:
    members["manifest.json"] = b"{}"


def _format_alone(members: dict[str, bytes]) -> None:
    members["manifest.json"] = json.dumps({"format": FORMAT}).encode()


@pytest.mark.parametrize("change", [_edit_row, _edit_manifest, _add_path, _drop, _unsign, _other_format, _format_alone])
def test_an_archive_that_was_changed_anywhere_is_refused_and_nothing_is_written(
    change: Callable[[dict[str, bytes]], None], embedded: Settings, tmp_path: Path
) -> None:
    hostile = rewritten(saved(embedded, tmp_path), tmp_path / "hostile", change)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(CorruptArtifactError):
        restore(embedded, hostile)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_damage_of_any_byte_is_refused_or_changes_nothing_that_counts(embedded: Settings, tmp_path: Path) -> None:
    good = saved(embedded, tmp_path).read_bytes()
    with open_installation(embedded) as installation:
        signer = installation.signer
    refused = 0
    for place in range(0, len(good), 29):
        (tmp_path / "damaged").write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            archive = Archive(tmp_path / "damaged")
        except IdiolectError:
            refused += 1
            continue
        with contextlib.closing(archive):
            try:
                archive.check(signer)
            except CorruptArtifactError:
                refused += 1
    assert refused > len(good) / 29 / 2


def test_a_packing_that_asks_for_more_memory_than_a_backup_needs_is_refused(embedded: Settings, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(embedded, tmp_path)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "lzma", "w", zipfile.ZIP_LZMA) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(CorruptArtifactError, match="packed"):
        restore(embedded, tmp_path / "lzma")


def test_the_keys_of_a_damaged_archive_are_not_taken_into_an_empty_home(embedded: Settings, tmp_path: Path) -> None:
    with open_installation(embedded) as installation:
        furnish(installation.store)
        back_up(installation, tmp_path / "backup", PASSPHRASE)
    hostile = rewritten(tmp_path / "backup", tmp_path / "hostile", _edit_row)
    fresh = Settings(home=tmp_path / "fresh")
    with pytest.raises(CorruptArtifactError):
        restore(fresh, hostile, nothing_since=True, passphrase=PASSPHRASE)
    assert not fresh.root.exists()


@pytest.mark.parametrize("step", ["link", "replace"])
def test_a_restore_that_is_killed_leaves_a_whole_database_and_can_be_repeated(
    step: str, embedded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, database = saved(embedded, tmp_path), embedded.root / "idiolect.db"
    with open_installation(embedded) as installation:
        publish_user(installation.store, "v9", "ann", minutes=9)
        for file in (database, database.with_name("idiolect.db-wal")):
            shutil.copy(file, tmp_path / file.name)
    for file in (database, database.with_name("idiolect.db-wal")):  # as a server that crashed leaves them
        shutil.copy(tmp_path / file.name, file)
    left = embedded.root / ".idiolect.db.restoring-0"
    left.write_bytes(b"of an earlier one")

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(restoring.os, "link", killed) if step == "link" else patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(embedded, backup)
    assert not left.exists()
    with open_installation(embedded) as installation:
        assert installation.store.version(TENANT, "v9") is not None
    restore(embedded, backup)
    with open_installation(embedded) as installation:
        assert installation.store.version(TENANT, "v9") is None
        assert installation.store.resolve(TENANT, "ann", None).user is not None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x00" * 4096])
def test_a_file_that_is_no_archive_is_refused(content: bytes, embedded: Settings, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(content)
    with pytest.raises(IdiolectError):
        restore(embedded, tmp_path / "junk")


def test_a_backup_of_another_installation_is_refused(embedded: Settings, tmp_path: Path) -> None:
    backup = saved(embedded, tmp_path)
    other = Settings(home=tmp_path / "other")
    with open_installation(other):
        pass
    with pytest.raises(ConfigurationError, match="another installation"):
        restore(other, backup)


def test_a_database_that_holds_something_is_not_restored_into(
    settings: Settings, fresh_url: Callable[[], str | None], tmp_path: Path
) -> None:
    backup = saved(settings, tmp_path)
    if settings.database_url is None:
        assert restore(settings, backup).aside is not None
        return
    with pytest.raises(ConfigurationError, match="not empty"):
        restore(settings, backup)


def test_a_backup_never_replaces_a_file(embedded: Settings, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("precious")
    with open_installation(embedded) as installation, pytest.raises(ConfigurationError, match="exists already"):
        back_up(installation, tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "precious"


def test_the_commands_save_and_bring_back_and_say_what_was_made_again(embedded: Settings, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    home, file = ["--home", str(embedded.home)], str(tmp_path / "monday.idiolect")
    with open_installation(embedded) as installation:
        furnish(installation.store)
    run = CliRunner().invoke
    saved = run(app, ["backup", file, "--passphrase-file", str(tmp_path / "passphrase"), *home])
    assert saved.exit_code == 0, saved.output
    assert "rows" in saved.output
    with open_installation(embedded) as installation:
        installation.store.apply_reset(TENANT, "ann", "r1", plan_reset("adapter"), at(5))
    restored = run(app, ["restore", file, *home])
    assert restored.exit_code == 0, restored.output
    assert "made again since: 1 x reset" in restored.output
    assert "before is" in " ".join(restored.output.split())


def test_a_crash_between_the_log_and_the_commit_leaves_a_change_that_is_finished_at_the_next_start(
    embedded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_installation(embedded) as installation:
        furnish(installation.store)
        append = RecoveryLog.append

        def crash(log: RecoveryLog, changes: Sequence[LoggedChange]) -> None:
            append(log, changes)
            raise KeyboardInterrupt

        monkeypatch.setattr(RecoveryLog, "append", crash)
        with pytest.raises(KeyboardInterrupt):
            installation.store.apply_reset(TENANT, "ann", "r1", plan_reset("adapter"), at(5))
        monkeypatch.undo()
        assert installation.store.resolve(TENANT, "ann", None).user is not None  # not committed, and not answered
    with open_installation(embedded) as installation:
        assert installation.store.resolve(TENANT, "ann", None).user is None
        assert installation.store.reset(TENANT, "r1") is not None


def test_a_log_that_cannot_be_written_refuses_the_change(embedded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_log: RecoveryLog, _changes: Sequence[LoggedChange]) -> None:
        raise OSError(28, "No space left on device")

    with open_installation(embedded) as installation:
        furnish(installation.store)
        monkeypatch.setattr(RecoveryLog, "append", full)
        with pytest.raises((OSError, IdiolectError)):
            installation.store.apply_reset(TENANT, "ann", "r1", plan_reset("adapter"), at(5))
        assert installation.store.subject(TENANT, "ann").generation == 0
