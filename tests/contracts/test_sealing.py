"""What is stored of a person can't be read without their keys, and a reset is the end of those.

The attacker has the database as it was before the reset (its file, or a dump of every row, and a backup), and every key
that there is after it. As a control they are also given the keys from before: then everything can be read.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from postgres_server import PostgresServer
from sqlalchemy import select, text, update
from store_samples import TENANT, at, opt_in, publish_user, shown, signal, template, version

from idiolect.consent import ConsentChange
from idiolect.errors import ConfigurationError, CorruptArtifactError, UnavailableError
from idiolect.ids import sha256_hex, text_digest
from idiolect.resets.plan import ResetPlan, plan_erasure, plan_reset
from idiolect.settings import Settings
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql import KeyStore, SqlStore, open_key_store, open_store, schema
from idiolect.stores.sql.tenant_wall import ALL_TENANTS, stand_behind
from idiolect.subject_keys import ADAPTERS, Ending, signals_in
from idiolect_services.restoring import back_up
from idiolect_services.wiring import Installation, open_installation, open_keys
from people_keys import keys_beside, open_with_keys, wrapping_key

CHAT, MAIL = "chat", "mail"
SECRETS = {(who, where): f"{who} only said this in {where}" for who in ("ann", "bob") for where in (CHAT, MAIL)}
ANSWER = "the very answer"


@dataclass(frozen=True)
class Place:
    """An installation whose databases can be copied as a thief would."""

    settings: Settings
    tmp_path: Path
    postgres: PostgresServer | None

    def copy_of_database(self, name: str) -> str:
        """Its URL."""
        return self._copy(self.settings.sql_url, name)

    def copy_of_keys(self, name: str) -> str:
        return self._copy(self.settings.key_store_url, name)

    def _copy(self, url: str, name: str) -> str:
        if self.postgres is None:
            source, target = Path(url.removeprefix("sqlite:///")), self.tmp_path / f"{name}.db"
            for ending in ("", "-wal"):
                if source.with_name(source.name + ending).exists():
                    shutil.copy(source.with_name(source.name + ending), target.with_name(target.name + ending))
            return f"sqlite:///{target}"
        copied = self.postgres.create_database(f"{name}_{abs(hash(self.tmp_path))}")
        with psycopg.connect(self._as_admin(url)) as source, psycopg.connect(copied) as target:
            _copy_rows(source, target)
        return copied

    def _as_admin(self, url: str) -> str:
        """Past the wall between tenants, which is no part of this."""
        assert self.postgres is not None
        return self.postgres.admin_url(urlsplit(url).path.strip("/"))

    def every_byte(self, url: str) -> bytes:
        """Of the file, or of every row. Hex and base64 would hide nothing: both are searched as raw bytes."""
        if self.postgres is None:
            path = Path(url.removeprefix("sqlite:///"))
            return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
        found = bytearray()
        with psycopg.connect(self._as_admin(url)) as connection:
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (name,) in names:
                for row in connection.execute(f'SELECT * FROM "{name}"').fetchall():  # type: ignore[call-overload]
                    for value in row:
                        found += value if isinstance(value, bytes) else str(value).encode()
        return bytes(found)


def _copy_rows(source: psycopg.Connection, target: psycopg.Connection) -> None:
    """Tables and rows, as a dump has them; what keeps order among them is not needed to read."""
    names = source.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    for (name,) in names:
        columns = source.execute(
            "SELECT string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) "
            "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (name,),
        ).fetchone()
        assert columns is not None
        target.execute(f'CREATE TABLE "{name}" ({columns[0]})'.encode())
        with (
            source.cursor().copy(f'COPY "{name}" TO STDOUT'.encode()) as out,
            target.cursor().copy(f'COPY "{name}" FROM STDIN'.encode()) as into,
        ):
            for block in out:
                into.write(block)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return Place(Settings(home=tmp_path / "home"), tmp_path, None)
    server: PostgresServer = request.getfixturevalue("postgres")
    main, keys = (server.create_database(f"{name}_{abs(hash(tmp_path))}") for name in ("main", "keys"))
    return Place(Settings(home=tmp_path / "home", database_url=main, keys_url=keys), tmp_path, server)


def furnish(installation: Installation) -> dict[str, bytes]:
    """Ann and Bob do something in two domains, and have an adapter each. Their weights."""
    store = installation.store
    store.create_tenant(TENANT, at(0))
    opt_in(store, "ann", "bob")
    for (who, where), secret in SECRETS.items():
        seen = shown(store, f"i-{who}-{where}", who, texts=(f"{secret}?", secret, f"not {secret}"), domain=where)
        store.add_feedback(TENANT, who, signal(f"s-{who}-{where}", seen, (0, 1), value=f"{ANSWER} of {who}"), at(1))
    for who in ("ann", "bob"):
        publish_user(store, f"v-{who}", who)
    return {who: store.versions(TENANT, subject=who)[0].version.weights for who in ("ann", "bob")}


def readable(store: SqlStore, who: str) -> tuple[set[str], bool]:
    """In which domains anything of a person can be read by any means that the store has; and whether an adapter can."""
    rows = [
        row
        for part in ("shown", "signals", "comparisons")
        for row in store.person_page(TENANT, who, part).rows  # type: ignore[arg-type]
    ]
    learned = store.personal_snapshot(TENANT, subjects=[who])
    shared = store.shared_data(TENANT)
    found = json.dumps(rows, default=str) + repr(learned.items) + repr(shared.items)
    inferences = [store.inference(TENANT, f"i-{who}-{where}") for where in (CHAT, MAIL)]
    domains = {where for where in (CHAT, MAIL) if SECRETS[who, where] in found}
    domains |= {inference.domain or "" for inference in inferences if inference is not None}
    return domains, bool(store.versions(TENANT, subject=who)) or store.version(TENANT, f"v-{who}") is not None


def stolen(place: Place, database: str, keys: str) -> SqlStore:
    """What the code itself reads of a copied database, with copied keys and the installation's own secrets."""
    master = (place.settings.root / "secrets" / "master.key").read_bytes()
    settings = place.settings.model_copy(update={"keys_url": keys})
    return open_store(database, open_keys(settings, master))


Forget = Callable[[SqlStore], object]


def reset(plan: ResetPlan) -> Forget:
    return lambda store: store.apply_reset(TENANT, "ann", "r1", plan, at(5))


def withdraw(change: ConsentChange) -> Forget:
    return lambda store: store.change_subject(TENANT, "ann", change, at(5))


@pytest.mark.parametrize(
    ("forget", "left"),
    [
        (reset(plan_reset("all")), set()),
        (reset(plan_reset("feedback")), set()),
        (reset(plan_erasure()), set()),
        (withdraw(ConsentChange(opted_in=False)), set()),
        (reset(plan_reset("adapter")), {CHAT, MAIL}),
        (reset(plan_reset("all", MAIL)), {CHAT}),
        (reset(plan_reset("feedback", CHAT)), {MAIL}),
    ],
    ids=["all", "feedback", "erasure", "opted out", "adapter", "all of a domain", "feedback of a domain"],
)
def test_a_copy_from_before_a_reset_can_not_be_read_after_it(place: Place, forget: Forget, left: set[str]) -> None:
    with open_installation(place.settings) as installation:
        furnish(installation)
        back_up(installation, place.tmp_path / "backup")
        database, keys_before = place.copy_of_database("before"), place.copy_of_keys("keys_before")
        forget(installation.store)  # type: ignore[arg-type]
    control = stolen(place, database, keys_before)
    assert readable(control, "ann") == ({CHAT, MAIL}, True)
    control.close()
    thief = stolen(place, database, place.copy_of_keys("keys_after"))
    assert readable(thief, "ann") == (left, False)
    assert readable(thief, "bob") == ({CHAT, MAIL}, True)
    thief.close()


def test_no_copy_holds_anything_of_a_person_as_it_is(place: Place) -> None:
    with open_installation(place.settings) as installation:
        weights = furnish(installation)
        back_up(installation, place.tmp_path / "backup")
        with zipfile.ZipFile(place.tmp_path / "backup") as archive:
            archived = b"".join(_decoded(archive.read(name)) for name in archive.namelist())
        rows = place.every_byte(place.settings.sql_url)
    told = [secret.encode() for secret in (*SECRETS.values(), ANSWER)]
    guesses = [bytes.fromhex(text_digest(secret)) for secret in SECRETS.values()]  # texts that are tried out
    numbers = [made[-16:] for made in weights.values()]  # the head before them is the same for all
    for copy in (rows, archived):
        assert not [what for what in (*told, *guesses, *weights.values(), *numbers) if what in copy]
    assert b"i-ann-chat" in rows  # the search would find what is there
    assert b"i-ann-chat" in archived


def _decoded(member: bytes) -> bytes:
    """With the base64 that rows keep bytes in, and what it says."""
    strings = re.findall(rb'"([A-Za-z0-9+/]{8,}={0,2})"', member)
    return member + b"".join(base64.b64decode(found) for found in strings if len(found) % 4 == 0)


def test_a_restored_backup_does_not_bring_back_what_was_forgotten(place: Place) -> None:
    """Even if nobody makes the resets since again, as a thief would not."""
    with open_installation(place.settings) as installation:
        furnish(installation)
        store = installation.store
        assert isinstance(store, SqlStore)
        with store.snapshot() as snapshot:
            tables = {name: list(snapshot.rows(name)) for name in snapshot.columns}
        store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(5))
    copied = replace(snapshot, rows=lambda name: tables[name])
    target = open_store(f"sqlite:///{place.tmp_path / 'stolen.db'}", _own_keys(place))
    target.load(copied, [])
    assert readable(target, "ann") == (set(), False)
    assert readable(target, "bob") == ({CHAT, MAIL}, True)
    target.close()


def _own_keys(place: Place) -> KeyStore:
    master = (place.settings.root / "secrets" / "master.key").read_bytes()
    return open_keys(place.settings, master)


def test_a_person_who_comes_back_gets_new_keys(place: Place) -> None:
    with open_installation(place.settings) as installation:
        furnish(installation)
        database = place.copy_of_database("before")
        store = installation.store
        store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(5))
        opt_in(store, "ann", minutes=6)
        seen = shown(store, "new", "ann", texts=("q", "x", "y"), domain=CHAT, minutes=7)
        assert store.add_feedback(TENANT, "ann", signal("new", seen, (0, 1), minutes=8), at(8))
        publish_user(store, "v9", "ann", generation=1, minutes=9)
        assert [item.text for item in store.personal_snapshot(TENANT, subjects=["ann"]).items] == ["x", "y"]
    thief = stolen(place, database, place.copy_of_keys("keys_after"))
    assert readable(thief, "ann") == (set(), False)
    thief.close()


def test_without_the_master_key_the_key_store_opens_nothing(place: Place) -> None:
    with open_installation(place.settings) as installation:
        furnish(installation)
    keys = open_key_store(place.copy_of_keys("stolen"), wrapping_key)
    with pytest.raises(ConfigurationError, match="does not open"):
        keys.find(TENANT, {("ann", "adapters")})
    keys.close()


# --- tampering --------------------------------------------------------------------------------------------------------


def furnished(store: SqlStore) -> SqlStore:
    opt_in(store, "ann", "bob")
    for who in ("ann", "bob"):
        for number in (1, 2):
            seen = shown(store, f"i-{who}-{number}", who, texts=(f"q{number}", f"{who} a{number}", f"{who} b{number}"))
            store.add_feedback(TENANT, who, signal(f"s-{who}-{number}", seen, (0, 1), value=number), at(number))
        publish_user(store, f"v-{who}", who)
    return store


def swap(store: SqlStore, table: str, name: str, one: object, other: object) -> None:
    columns = schema.metadata.tables[table].c
    with store._database.engine.begin() as connection:
        stand_behind(connection, ALL_TENANTS)
        query = select(columns.sealed).where(columns.tenant == TENANT)
        of = {key: connection.scalar(query.where(columns[name] == key)) for key in (one, other)}
        assert None not in of.values()
        for key, sealed in ((one, of[other]), (other, of[one])):
            change = update(schema.metadata.tables[table]).where(columns.tenant == TENANT, columns[name] == key)
            connection.execute(change.values(sealed=sealed))


@pytest.mark.parametrize("other", ["bob", "ann"])
def test_what_was_moved_to_another_row_does_not_open(store: SqlStore, other: str) -> None:
    furnished(store)
    swap(store, "inferences", "id", "i-ann-1", f"i-{other}-2")
    with pytest.raises(CorruptArtifactError):
        store.inference(TENANT, "i-ann-1")
    swap(store, "signals", "id", "s-ann-1", f"s-{other}-2")
    with pytest.raises(CorruptArtifactError):
        store.person_page(TENANT, "ann", "signals")


def test_an_adapter_that_was_moved_to_another_person_has_no_weights(store: SqlStore) -> None:
    furnished(store)
    swap(store, "versions", "id", "v-ann", "v-bob")
    found = store.version(TENANT, "v-ann")
    assert found is not None
    assert found.version.weights == b""


def test_what_the_weights_of_a_release_begin_with_is_kept_once(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    opt_in(store, "ann", "bob")
    made = [version(f"v-{who}", "r", who) for who in ("ann", "bob")]
    store.publish("r", template(), made, at(1), reason="r", actor="a")
    head = made[0].weights[: -4 * 8]
    versions, releases = schema.versions.c, schema.releases.c
    with store._database.reading(ALL_TENANTS) as connection:
        assert connection.scalars(select(releases.weights_head)).all() == [head]
        sealed = connection.scalars(select(versions.sealed)).all()
    assert {len(one or b"") - len(made[0].weights) for one in sealed} == {45 - len(head)}
    assert [stored.version for stored in store.versions(TENANT)] == made


def test_a_head_that_was_changed_is_noticed(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    opt_in(store, "ann")
    publish_user(store, "v-ann")
    for changed in (None, b"", b"another head"):
        with store._database.engine.begin() as connection:
            stand_behind(connection, ALL_TENANTS)
            connection.execute(update(schema.releases).values(weights_head=changed))
        found = store.version(TENANT, "v-ann")
        assert found is not None
        assert sha256_hex(found.version.weights) != found.version.weights_sha256


def test_weights_that_do_not_begin_alike_are_sealed_whole(store: SqlStore) -> None:
    store.create_tenant(TENANT, at(0))
    opt_in(store, "ann", "bob")
    odd = b"of ann alone"
    made = [
        version("v-ann", "r", "ann", weights=odd, weights_sha256=sha256_hex(odd)),
        version("v-bob", "r", "bob"),
    ]
    store.publish("r", template(), made, at(1), reason="r", actor="a")
    with store._database.reading(ALL_TENANTS) as connection:
        assert connection.scalars(select(schema.releases.c.weights_head)).all() == [None]
    assert [stored.version for stored in store.versions(TENANT)] == made


def test_a_comparison_that_was_moved_to_another_does_not_open(store: SqlStore) -> None:
    furnished(store)
    rows = schema.comparisons.c
    with store._database.reading(ALL_TENANTS) as connection:
        mine = select(rows.id).where(rows.tenant == TENANT, rows.subject == "ann").order_by(rows.id)
        first, second = connection.scalars(mine).all()
    swap(store, "comparisons", "id", first, second)
    with pytest.raises(CorruptArtifactError):
        store.personal_snapshot(TENANT, subjects=["ann"])


def test_a_text_that_was_moved_to_another_does_not_open(store: SqlStore) -> None:
    furnished(store)
    inferences = schema.inferences.c
    with store._database.reading(ALL_TENANTS) as connection:
        packed = connection.scalar(select(inferences.documents).where(inferences.id == "i-ann-1"))
    assert packed is not None
    swap(store, "texts", "digest", packed[:32], packed[32:])
    with pytest.raises(CorruptArtifactError):
        store.personal_snapshot(TENANT, subjects=["ann"])


# --- a reset that is cut off ------------------------------------------------------------------------------------------


def test_a_reset_that_fails_after_the_keys_went_serves_nothing_and_can_be_done_again(
    store: SqlStore, tmp_path: Path
) -> None:
    furnished(store)
    (tmp_path / "file").write_text("")
    store.keep_log(RecoveryLog(tmp_path / "file" / "log"))  # it can't be written, so nothing commits
    with pytest.raises((OSError, UnavailableError)):
        store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(5))
    assert store.version(TENANT, "v-ann") is None
    assert store.personal_snapshot(TENANT).people == ("bob",)
    store.keep_log(RecoveryLog(tmp_path / "log"))
    record = store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(5))
    assert record.erased["signals"] == 2
    assert store.resolve(TENANT, "ann", "chat").user is None


def test_a_receipt_says_that_the_keys_went_before_the_rows(store: SqlStore) -> None:
    furnished(store)
    steps = store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(5)).steps
    assert steps.index("destroy_keys") < steps.index("erase_adapters")


# --- the key store ----------------------------------------------------------------------------------------------------


def test_threads_that_need_a_new_key_at_once_get_the_same(store_url: str) -> None:
    stores = [keys_beside(store_url) for _ in range(4)]
    wanted = [(f"p{number}", "adapters") for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda keys: keys.ensure(TENANT, wanted), stores))
    assert all(one == found[0] for one in found)
    assert len({key.id for key in found[0].values()}) == 20
    for keys in stores:
        keys.close()


def test_keys_are_found_by_person_and_scope_whether_of_one_scope_or_of_several(store_url: str) -> None:
    keys = keys_beside(store_url)
    wanted = [(person, scope) for person in ("ann", "bob") for scope in ("signals:chat", "signals:mail")]
    made = keys.ensure(TENANT, wanted)
    assert set(made) == set(wanted)
    for asked in (wanted[:1], wanted[::2], wanted[1:3], wanted, [("nobody", "signals:chat")], []):
        assert keys.find(TENANT, set(asked)) == {one: made[one] for one in asked if one in made}
    keys.close()


def test_who_is_taken_for_new_and_is_not_keeps_their_keys(store_url: str) -> None:
    keys = keys_beside(store_url)
    ann, bob = ("ann", ADAPTERS), ("bob", ADAPTERS)
    made = keys.ensure(TENANT, [ann], new=True)
    both = keys.ensure(TENANT, [ann, bob], new=True)
    assert both[ann] == made[ann]
    assert keys.find(TENANT, {ann, bob}) == both == keys.ensure(TENANT, [ann, bob], new=True)
    keys.close()


def test_tenants_do_not_share_keys(store_url: str) -> None:
    keys = keys_beside(store_url)
    mine = keys.ensure(TENANT, [("ann", "adapters")])["ann", "adapters"]
    theirs = keys.ensure("other", [("ann", "adapters")])["ann", "adapters"]
    assert mine.secret != theirs.secret
    assert keys.by_id("other", [mine.id]) == {}
    keys.destroy("other", "ann", Ending(adapters=True, signals=True))
    assert keys.by_id(TENANT, [mine.id]) == {mine.id: mine}
    keys.close()


@pytest.mark.parametrize("scope", [None, signals_in("chat"), signals_in(None)])
@pytest.mark.parametrize("signals", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_exactly_the_keys_that_end_are_destroyed_and_of_nobody_else(
    store_url: str, adapters: bool, signals: bool, scope: str | None
) -> None:
    keys, ending = keys_beside(store_url), Ending(adapters, signals, scope)
    wanted = [
        (person, kept)
        for person in ("ann", "bob")
        for kept in (ADAPTERS, signals_in("chat"), signals_in("mail"), signals_in(None))
    ]
    made = keys.ensure(TENANT, wanted)
    left = {one: key for one, key in made.items() if one[0] == "bob" or not ending.ends(one[1])}
    assert keys.destroy(TENANT, "ann", ending) == len(made) - len(left)
    assert keys.find(TENANT, wanted) == left
    assert keys.destroy(TENANT, "ann", ending) == 0
    keys.close()


@pytest.fixture
def lost(store_url: str, tmp_path: Path) -> str:
    """A database whose key store is gone; an empty one is in its place."""
    store = furnished(open_with_keys(store_url))
    store.close()
    return f"sqlite:///{tmp_path / 'empty.keys'}"


def test_another_key_store_is_refused(store_url: str, lost: str) -> None:
    with pytest.raises(ConfigurationError, match="another key store"):
        open_store(store_url, open_key_store(lost, wrapping_key))
    open_with_keys(store_url).close()


def test_after_a_key_store_was_lost_people_begin_anew(store_url: str, lost: str) -> None:
    store = open_store(store_url, open_key_store(lost, wrapping_key), instead=True)
    assert store.personal_snapshot(TENANT).people == ()
    assert len(store.shared_data(TENANT).comparisons) == 0
    assert store.versions(TENANT) == []
    assert [list(store.person_page(TENANT, "ann", part).rows) for part in ("shown", "signals", "comparisons")] == [
        []
    ] * 3  # type: ignore[arg-type]
    seen = shown(store, "new", "ann", texts=("q", "x", "y"), minutes=7)
    assert store.add_feedback(TENANT, "ann", signal("new", seen, (0, 1)), at(8))
    publish_user(store, "v9", "ann", minutes=9)
    assert store.personal_snapshot(TENANT).people == ("ann",)
    assert store.version(TENANT, "v9") is not None
    store.close()
    with pytest.raises(ConfigurationError, match="another key store"):
        open_with_keys(store_url)


def test_a_store_without_keys_keeps_nothing_of_a_person(store_url: str) -> None:
    store = open_store(store_url)
    with pytest.raises(ConfigurationError, match="keys of people"):
        shown(store)
    shown(store, "i2", None)
    assert store.inference(TENANT, "i2") is not None
    store.close()


def test_the_database_itself_can_not_be_the_key_store(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'one.db'}"
    settings = Settings(home=tmp_path / "home", database_url=url, keys_url=url)
    with pytest.raises(ConfigurationError, match="the database itself"), open_installation(settings):
        pass


def texts_of(store: SqlStore) -> Sequence[object]:
    with store._database.reading(ALL_TENANTS) as connection:
        return connection.execute(text("SELECT digest FROM texts")).all()


def test_a_reset_leaves_no_text_of_the_person_behind(store: SqlStore) -> None:
    furnished(store)
    for who in ("ann", "bob"):
        store.apply_reset(TENANT, who, f"r-{who}", plan_reset("all"), at(5))
    assert texts_of(store) == []


def test_what_was_shown_to_nobody_becomes_the_persons_own_with_their_feedback(store: SqlStore) -> None:
    opt_in(store, "ann")
    seen = shown(store, "i1", None, texts=("q", "x", "y"))
    store.add_feedback(TENANT, "ann", signal("s1", seen, (1, 0)), at(1))
    learned = store.personal_snapshot(TENANT)
    assert learned.items[int(learned.comparisons.chosen_C[0])].text == "y"
    assert len(texts_of(store)) == 6
    store.apply_reset(TENANT, "ann", "r1", plan_reset("all"), at(2))
    assert len(texts_of(store)) == 3
