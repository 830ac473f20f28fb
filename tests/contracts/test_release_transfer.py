"""Releases as signed files: out, back and elsewhere; and every way in which a file may not be believed."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from store_samples import GLOBAL, TENANT, at, opt_in, template, version

from idiolect.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from idiolect.registry.manifest import Imported, ReleaseTemplate, Version, manifest_bytes
from idiolect.registry.portable import FORMAT, dump_release
from idiolect.registry.signing import Signer
from idiolect.registry.weights import verify_version
from idiolect.resets.plan import plan_reset
from idiolect.stores.sql import SqlStore
from idiolect_services.release_transfer import ImportReport, export_release, import_release
from people_keys import open_with_keys

OURS, THEIRS = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
KEYS = [OURS.public_key.hex()]
PEOPLE = ("ann", "bob", "cleo")


def signed(made: ReleaseTemplate, one: Version, signer: Signer = OURS) -> Version:
    mine = replace(one, key_id=signer.key_id)
    return replace(mine, signature=signer.sign(manifest_bytes(made, mine)))


def publish(store: SqlStore, release: str, scope: str = "user", signer: Signer = OURS) -> list[Version]:
    made = template(scope, run=release)
    owners = [{"subject": person} for person in PEOPLE] if scope == "user" else [{"domain": "chat"}]
    versions = [signed(made, version(f"{release}-{n}", release, **owner), signer) for n, owner in enumerate(owners)]
    store.publish(release, made, versions, at(1), reason="trained", actor="trainer")
    return versions


def file_of(store: SqlStore, release: str, signer: Signer = OURS) -> bytes:
    return b"".join(export_release(store, signer, TENANT, release, at(2), actor="operator"))


def bring(store: SqlStore, content: bytes, tenant: str = TENANT, signer: Signer = OURS, **more: Any) -> ImportReport:
    return import_release(store, signer, tenant, BytesIO(content), at(3), reason="back", actor="operator", **more)


@pytest.fixture
def ready(store: SqlStore) -> SqlStore:
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(store, *PEOPLE)
    return store


@pytest.fixture
def empty(tmp_path: Path, sqlite_template: Path) -> Iterator[SqlStore]:
    """The same installation without the release, as after a restore."""
    shutil.copy(sqlite_template, tmp_path / "another.db")
    opened = open_with_keys(f"sqlite:///{tmp_path / 'another.db'}")
    opened.set_global(GLOBAL, at(0), reason="first", actor="admin")
    opt_in(opened, *PEOPLE)
    yield opened
    opened.close()


def test_a_release_comes_back_byte_for_byte_and_is_live_for_nobody_before_it_is_promoted(
    ready: SqlStore, empty: SqlStore
) -> None:
    versions = publish(ready, "r1")
    report = bring(empty, file_of(ready, "r1"))
    assert (report.versions, report.fenced, report.quarantined, report.known, report.foreign) == (3, 0, 0, False, False)
    stored = empty.versions(TENANT, release="r1")
    assert [one.version for one in stored] == versions
    assert all(verify_version(one.template, one.version, OURS) for one in stored)
    assert empty.resolve(TENANT, "ann", None).user is None
    assert empty.promote_release(TENANT, "r1", at(4), reason="good", actor="operator") == 3
    assert empty.resolve(TENANT, "ann", None).user is not None


def test_importing_twice_or_what_is_here_changes_nothing(ready: SqlStore, empty: SqlStore) -> None:
    publish(ready, "r1")
    content = file_of(ready, "r1")
    before = ready.audit_head(TENANT)
    assert bring(ready, content).known
    assert ready.audit_head(TENANT) == before
    assert not bring(empty, content).known
    assert bring(empty, content).known
    assert len(empty.versions(TENANT)) == 3


def test_whoever_was_reset_or_left_stays_without_their_old_adapter(ready: SqlStore, empty: SqlStore) -> None:
    publish(ready, "r1")
    content = file_of(ready, "r1")
    empty.apply_reset(TENANT, "ann", "x1", plan_reset("adapter"), at(2))
    empty.apply_reset(TENANT, "bob", "x2", plan_reset("erasure"), at(2))
    assert (bring(empty, content).versions, bring(empty, content).known) == (1, True)
    empty.promote_release(TENANT, "r1", at(4), reason="good", actor="operator")
    assert [empty.resolve(TENANT, person, None).user is None for person in PEOPLE] == [True, True, False]


def test_a_revoked_release_is_neither_exported_nor_brought_back(ready: SqlStore) -> None:
    publish(ready, "r1")
    content = file_of(ready, "r1")
    ready.revoke_release(TENANT, "r1", at(3), reason="bad data", actor="operator")
    with pytest.raises(ConflictError, match="revoked"):
        file_of(ready, "r1")
    with pytest.raises(ConflictError, match="revoked here"):
        bring(ready, content)


def test_a_revocation_counts_though_the_release_itself_is_gone(ready: SqlStore, empty: SqlStore) -> None:
    """A restored database has the entry of the audit log again, but not the release that was published since."""
    publish(ready, "r1")
    publish(empty, "r1")
    content = file_of(ready, "r1")
    empty.revoke_release(TENANT, "r1", at(3), reason="bad data", actor="operator")
    with empty._database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM pointers")
        connection.exec_driver_sql("DELETE FROM versions")
        connection.exec_driver_sql("DELETE FROM releases")
    with pytest.raises(ConflictError, match="revoked here"):
        bring(empty, content)
    assert empty.versions(TENANT) == []


def test_quarantined_versions_stay_out(ready: SqlStore, empty: SqlStore) -> None:
    first, *_ = publish(ready, "r1")
    content = file_of(ready, "r1")
    ready.quarantine(TENANT, first.id, "does not verify", at(2), actor="serving")
    assert file_of(ready, "r1").count(b"\n") == content.count(b"\n") - 1
    publish(empty, "r1")
    empty.quarantine(TENANT, first.id, "does not verify", at(2), actor="serving")
    with empty._database.engine.begin() as connection:
        for table in ("pointers", "versions", "releases"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    report = bring(empty, content)
    assert (report.versions, report.quarantined) == (2, 1)
    assert empty.version(TENANT, first.id) is None


def test_a_domain_of_another_installation_comes_in_under_a_key_that_is_named_and_says_where_it_is_from(
    ready: SqlStore, empty: SqlStore
) -> None:
    (made,) = publish(ready, "r1", "domain", THEIRS)
    content = file_of(ready, "r1", THEIRS)
    with pytest.raises(CorruptArtifactError, match=THEIRS.public_key.hex()) as caught:
        bring(empty, content)
    assert caught.value.code == "untrusted_key"
    with pytest.raises(CorruptArtifactError):
        bring(empty, content, from_key=OURS.public_key.hex())
    report = bring(empty, content, "other", from_key=THEIRS.public_key.hex())
    assert (report.versions, report.foreign) == (1, True)
    stored = empty.version("other", made.id)
    assert stored is not None
    assert verify_version(stored.template, stored.version, OURS)
    assert stored.template.imported == Imported(TENANT, THEIRS.public_key.hex())
    assert stored.template.privacy == template("domain").privacy
    assert stored.version.weights == made.weights
    assert bring(empty, content, "other", from_key=THEIRS.public_key.hex()).known


def test_people_do_not_go_to_another_installation_or_tenant(ready: SqlStore, empty: SqlStore) -> None:
    publish(ready, "r1")
    with pytest.raises(InvalidInputError, match="pseudonyms"):
        bring(empty, file_of(ready, "r1"), "other", from_key=OURS.public_key.hex())
    assert empty.versions("other") == []


def test_another_tenant_of_the_same_installation_is_foreign_too(ready: SqlStore, empty: SqlStore) -> None:
    publish(ready, "r1", "domain")
    with pytest.raises(CorruptArtifactError) as caught:
        bring(empty, file_of(ready, "r1"), "other")
    assert caught.value.code == "untrusted_key"


def test_after_a_rotation_older_signatures_count_until_their_key_is_withdrawn(ready: SqlStore, empty: SqlStore) -> None:
    publish(ready, "r1")
    rotated = Signer(b"\x03" * 32, (OURS.public_key,))
    content = file_of(ready, "r1", rotated)
    with pytest.raises(CorruptArtifactError):
        bring(empty, content, signer=Signer(b"\x03" * 32))
    assert bring(empty, content, signer=rotated).versions == 3


def test_a_server_that_runs_on_after_a_rotation_takes_what_the_new_key_signed(ready: SqlStore, empty: SqlStore) -> None:
    rotated = Signer(b"\x03" * 32, (OURS.public_key,))
    publish(ready, "r1", signer=rotated)
    running = Signer(b"\x01" * 32, newly_trusted=lambda: [rotated.public_key])
    assert bring(empty, file_of(ready, "r1", rotated), signer=running).versions == 3
    assert bring(empty, file_of(ready, "r1", running), signer=running).known


def test_what_is_not_there_is_not_exported(ready: SqlStore) -> None:
    publish(ready, "r1")
    for tenant, release in ((TENANT, "r2"), ("other", "r1"), (TENANT, "")):
        with pytest.raises(NotFoundError):
            export_release(ready, OURS, tenant, release, at(2), actor="operator")


def test_an_export_is_in_the_audit_log(ready: SqlStore) -> None:
    publish(ready, "r1")
    file_of(ready, "r1")
    entry = ready.audit_entries(TENANT)[0]
    assert (entry.action, entry.object, entry.actor) == ("release.export", "release r1", "operator")


def lines_of(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def sealed(lines: list[Any], keys: Any = KEYS) -> bytes:
    """A file with these lines, whatever they say, whose last line is right."""
    body = b"".join(json.dumps(line).encode() + b"\n" if not isinstance(line, bytes) else line for line in lines)
    said = {"versions": len(lines) - 1, "sha256": hashlib.sha256(body).hexdigest(), "public_keys": keys}
    message = json.dumps({"format": FORMAT, **said}, separators=(",", ":"), sort_keys=True).encode()
    end = said | {"public_key": OURS.public_key.hex(), "signature": OURS.sign(message).hex()}
    return body + json.dumps(end).encode() + b"\n"


def with_line(number: int, **changes: Any) -> Callable[[list[Any]], bytes]:
    return lambda lines: sealed([*lines[:number], lines[number] | changes, *lines[number + 1 : -1]])


def with_template(**changes: Any) -> Callable[[list[Any]], bytes]:
    return lambda lines: with_line(0, template=lines[0]["template"] | changes)(lines)


def weights(data: bytes) -> str:
    return base64.b64encode(data).decode()


HOSTILE: Mapping[str, Callable[[list[Any]], bytes]] = {
    "nothing": lambda lines: b"",
    "one line": lambda lines: b"{}\n",
    "a zip": lambda lines: b"PK\x03\x04" + bytes(100),
    "no newline at the end": lambda lines: sealed(lines[:-1])[:-1],
    "a version more": lambda lines: sealed([*lines[:-1], lines[1]]),
    "an unsigned end": lambda lines: sealed(lines[:-1]).replace(b'"signature": "', b'"signature": "00', 1),
    "a line of 200 MB": lambda lines: b'{"format": "' + b"a" * (200 << 20),
    "a version of 100 KB": with_line(1, parent="a" * 100_000),
    "a header that nests": lambda lines: sealed([b'{"a":' * 100_000 + b"\n", *lines[1:-1]]),
    "a key twice": lambda lines: sealed([lines[0], b'{"id": "a", "id": "b"}\n']),
    "bad UTF-8": lambda lines: sealed([lines[0], b'{"id": "\xff"}\n']),
    "NaN": lambda lines: sealed(
        [lines[0], json.dumps(lines[1] | {"evaluation": {"x": float("nan")}}).encode() + b"\n"]
    ),
    "half a surrogate pair": with_line(1, evaluation={"\ud800": 1.0}),
    "a huge whole number": with_line(1, evaluation={"gain": 10**400}),
    "another format": with_line(0, format="idiolect-release/2"),
    "an unknown field": with_line(0, url="http://localhost/"),
    "a path": with_line(1, path="/etc/passwd"),
    "a path for an id": with_line(1, id="../../etc/passwd"),
    "%2e": with_line(1, id="%2e%2e"),
    "NUL": with_line(1, id="a\x00b"),
    "10,000 characters": with_line(1, id="a" * 10_000),
    "look-alike letters": with_line(1, id="\u0430bc"),
    "a list for an id": with_line(1, id=["a"]),
    "true for a generation": with_line(1, generation=True),
    "a negative generation": with_line(1, generation=-1),
    "no base64": with_line(1, weights="not base64!"),
    "a number for weights": with_line(1, weights=7),
    "a pickle": with_line(1, weights=weights(b"\x80\x04\x95\x10\x00")),
    "a header of 2^64-1": with_line(1, weights=weights(b"\xff" * 8)),
    "other weights": with_line(1, weights=weights(version("other", "r1").weights)),
    "another person": with_line(1, subject="bob"),
    "a later generation": with_line(1, generation=1),
    "a nicer rank": with_template(rank=1),
    "a rank of true": with_template(rank=True),
    "a rank of 1e9": with_template(rank=10**9),
    "a target that is a pattern": with_template(targets=[".*"]),
    "another tenant": with_template(tenant="other"),
    "a nicer epsilon": lambda lines: with_template(privacy=lines[0]["template"]["privacy"] | {"epsilon": 0.01})(lines),
    "no key": lambda lines: sealed(lines[:-1], []),
    "a key that is none": lambda lines: sealed(lines[:-1], ["00"]),
    "a thousand keys": lambda lines: sealed(lines[:-1], ["00" * 32] * 1_000),
    "an end of 1 MB": lambda lines: sealed(lines[:-1], "0" * (1 << 20)),
    "the same version twice": lambda lines: sealed([lines[0], lines[1], lines[1]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_a_stable_code_and_nothing_is_written(name: str, empty: SqlStore) -> None:
    made = template(run="r1")
    versions = [signed(made, version(f"r1-{person}", "r1", person)) for person in PEOPLE]
    good = b"".join(dump_release("r1", made, versions, OURS, at(2)))
    content = HOSTILE[name](lines_of(good))
    before = empty.audit_head(TENANT)
    with pytest.raises((CorruptArtifactError, InvalidInputError)) as caught:
        bring(empty, content)
    assert caught.value.code in {"corrupt_artifact", "untrusted_key", "invalid_input", "too_large"}
    assert len(caught.value.message) < 2_000
    assert empty.releases(TENANT) == []
    assert empty.audit_head(TENANT) == before
    assert bring(empty, good).versions == 3


def test_what_the_hostile_files_are_made_from_is_good(empty: SqlStore) -> None:
    made = template(run="r1")
    good = b"".join(dump_release("r1", made, [signed(made, version("v1", "r1", "ann"))], OURS, at(2)))
    assert bring(empty, sealed(lines_of(good)[:-1])).versions == 1


def test_every_byte_that_is_changed_is_noticed(empty: SqlStore) -> None:
    made = template(run="r1")
    good = b"".join(dump_release("r1", made, [signed(made, version("v1", "r1", "ann"))], OURS, at(2)))
    for place in range(0, len(good), 7):
        bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        with pytest.raises(CorruptArtifactError):
            bring(empty, bad)
    assert empty.releases(TENANT) == []
