"""Any order of publish, promote, roll back, revoke, reset, quarantine and gc, with crashes in the middle of any of them
and backups that are restored, against a model of a few dictionaries."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from crashes import Crash, crashing
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store_samples import GLOBAL, TENANT, at, opt_in, publish_user, template, version

from idiolect.audit import verify
from idiolect.errors import ConflictError, IdiolectError, NotFoundError
from idiolect.recovery import LoggedChange
from idiolect.registry.pointers import Adapter
from idiolect.resets.plan import plan_reset
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.sql import SqlStore, arriving
from idiolect.stores.sql.snapshots import Row, Snapshot
from people_keys import mirror_keys, open_with_keys

PEOPLE = ("ann", "bob")
PERSON = st.sampled_from(PEOPLE)


@dataclass
class Made:
    """One version, as the model remembers it. `number` is the order in which they were written."""

    id: str
    number: int
    generation: int
    release: str
    revoked: bool = False
    bad: bool = False
    rolled_back: bool = False


@dataclass
class Person:
    generation: int = 0
    versions: list[Made] = field(default_factory=list)
    live: Made | None = None
    previous: Made | None = None

    def fits(self, made: Made | None) -> bool:
        return made is not None and not (made.revoked or made.bad or made.rolled_back)

    def served(self) -> str | None:
        if self.live is None:
            return None
        if self.fits(self.live):
            return self.live.id
        return next((made.id for made in reversed(self.versions) if self.fits(made)), None)

    def may_be_live(self, made: Made) -> bool:
        return not (made.revoked or made.bad)


class Log:
    """A recovery log in memory."""

    def __init__(self) -> None:
        self.changes: list[LoggedChange] = []

    def append(self, changes: Sequence[LoggedChange]) -> None:
        self.changes += changes

    def held(self, *, alone: bool) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Backup:
    """`since`: what was done to each person after it that a restore must not undo."""

    snapshot: Snapshot
    people: dict[str, Person]
    since: list[Callable[[dict[str, Person]], None]] = field(default_factory=list)

    def expected(self) -> dict[str, Person]:
        people = deepcopy(self.people)
        for again in self.since:
            again(people)
        return people


def copied(store: SqlStore) -> Snapshot:
    with store.snapshot() as found:
        rows: dict[str, list[Row]] = {name: list(found.rows(name)) for name in found.columns}
    return Snapshot(found.revision, found.columns, found.counters, rows.__getitem__)


@contextmanager
def in_batches(store: SqlStore, step: int, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Of one version each; `meanwhile` is before the transaction of this number, the first one being 0."""
    write, begun = store._database.write, count()

    def written(*call: Any, **how: Any) -> Any:
        if next(begun) == step:
            with pytest.MonkeyPatch.context() as undone:
                undone.setattr(store._database, "write", write)
                meanwhile()
        return write(*call, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arriving, "BATCH", 1)
        patched.setattr(store._database, "write", written)
        yield


def die() -> None:
    raise Crash


class Registry(RuleBasedStateMachine):
    """`store` is set by the test. Every run has people and versions of its own, so that none needs an empty store."""

    store: SqlStore
    log: Log
    url: str  # of the store
    template: Path  # an empty database
    run = 0
    done: ClassVar[Counter[str]] = Counter()  # crashes by what was under way, and restores

    def __init__(self) -> None:
        super().__init__()
        type(self).run += 1
        self.prefix = f"run{self.run}"
        self.people = {name: Person() for name in PEOPLE}
        self.made: dict[str, Made] = {}
        self.owner: dict[str, str] = {}
        self.number = 0
        self.backup: Backup | None = None
        opt_in(self.store, *map(self.name, PEOPLE))

    def name(self, person: str) -> str:
        return f"{self.prefix}-{person}"

    def adapter(self, person: str) -> Adapter:
        return Adapter("user", self.name(person))

    def some(self, data: st.DataObject) -> Made:
        return self.made[data.draw(st.sampled_from(sorted(self.made)))]

    @rule(person=PERSON, late=st.booleans())
    def publish(self, person: str, late: bool) -> None:
        """`late`: trained before the last reset, and so fenced."""
        self.number += 1
        state = self.people[person]
        version_id = f"{self.prefix}-v{self.number:03}"
        generation = state.generation - 1 if late and state.generation else state.generation
        outcome = publish_user(self.store, version_id, self.name(person), generation=generation)
        if generation < state.generation:
            assert outcome.published == 0
            return
        made = Made(version_id, self.number, generation, f"r-{version_id}")
        self.made[version_id], self.owner[version_id] = made, person
        state.versions.append(made)
        if state.live is not None:
            state.previous = state.live
        state.live = made

    @rule(data=st.data(), step=st.integers(1, 3), late=st.booleans())
    def publish_in_batches(self, data: st.DataObject, step: int, late: bool) -> None:
        """Of everybody, a person to a batch. Before the batch of this number, or before the end, something else happens
        or the process dies, and then the same is sent again."""
        self.number += 1
        release = f"r-{self.prefix}-b{self.number:03}"
        sent = {
            person: Made(f"{release[2:]}-{person}", self.number, state.generation, release)
            for person, state in self.people.items()
        }
        if late and self.people["bob"].generation:
            sent["bob"].generation -= 1
        versions = [
            version(made.id, release, self.name(person), generation=made.generation) for person, made in sent.items()
        ]

        def send() -> PublishOutcome:
            return self.store.publish(release, template(), versions, at(1), reason="trained", actor="trainer")

        def meanwhile() -> None:
            self.as_the_model_says()
            for number, made in enumerate(sent.values(), 1):
                if number >= step:  # versions are in the order in which they were written
                    self.number += 1
                    made.number = self.number
            self.something(data)
            self.as_the_model_says()

        with suppress(Crash), in_batches(self.store, step + 1, meanwhile):
            send()
        outcome = send()
        self.done["batches"] += 1
        arrived = [one for one in sent if self.people[one].generation == sent[one].generation]
        assert outcome.published == len(arrived)
        for person in arrived:
            state, made = self.people[person], sent[person]
            self.made[made.id], self.owner[made.id] = made, person
            state.versions = sorted([*state.versions, made], key=lambda one: one.number)
            state.previous, state.live = state.live or state.previous, made

    def something(self, data: st.DataObject) -> None:
        person = data.draw(PERSON)
        changes: dict[str, Callable[[], None]] = {
            "nothing": lambda: None,
            "die": die,
            "publish": lambda: self.publish(person, False),
            "rollback": lambda: self.rollback(person),
            "revoke": lambda: self.revoke_what_is_live(person),
            "reset": lambda: self.reset(person),
        }
        if self.made:
            changes["promote"] = lambda: self.promote(data)
        changes[data.draw(st.sampled_from(sorted(changes)))]()

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        self.try_to_promote(self.some(data))

    @precondition(lambda self: self.flawed())
    @rule(data=st.data())
    def promote_what_is_flawed(self, data: st.DataObject) -> None:
        self.try_to_promote(data.draw(st.sampled_from(self.flawed())))

    def flawed(self) -> list[Made]:
        """Also those from before a reset, which are gone."""
        known = [made for state in self.people.values() for made in state.versions]
        return [made for made in self.made.values() if made.revoked or made.bad or made not in known]

    def try_to_promote(self, made: Made) -> None:
        state = self.people[self.owner[made.id]]
        known = made in state.versions
        try:
            self.store.promote(TENANT, made.id, at(1), reason="r", actor="a")
        except NotFoundError:
            assert not known
        except ConflictError:
            assert known
            assert not state.may_be_live(made)
        else:
            assert known
            assert state.may_be_live(made)
            if state.live is not made:
                state.previous, state.live = state.live or state.previous, made
                made.rolled_back = False

    @rule(person=PERSON)
    def rollback(self, person: str) -> None:
        state = self.people[person]
        target = state.previous
        allowed = state.live is not None and target is not None and target is not state.live
        allowed = allowed and target is not None and state.may_be_live(target)
        try:
            moved = self.store.rollback(TENANT, self.adapter(person), at(1), reason="r", actor="a")
        except (NotFoundError, ConflictError):
            assert not allowed
            return
        assert allowed
        assert target is not None
        assert state.live is not None
        assert moved.version == target.id
        state.live.rolled_back = True
        self.not_undone(state.live.id, "rolled_back")
        state.live = target
        older = [made for made in state.versions if made.number < target.number and state.fits(made)]
        state.previous = older[-1] if older else None

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        self.revoke_release_of(self.some(data))

    @rule(person=PERSON)
    def revoke_what_is_live(self, person: str) -> None:
        live = self.people[person].live
        if live is not None:
            self.revoke_release_of(live)

    def revoke_release_of(self, one: Made) -> None:
        self.store.revoke_release(TENANT, one.release, at(1), reason="r", actor="a")
        for made in self.made.values():
            if made.release == one.release:
                made.revoked = True
                self.not_undone(made.id, "revoked")

    @rule(person=PERSON)
    def publish_twice_and_roll_back(self, person: str) -> None:
        """A rule of its own: two publishes and a rollback of one person are rarely drawn in a row."""
        self.publish(person, False)
        self.publish(person, False)
        self.rollback(person)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        made = self.some(data)
        known = made in self.people[self.owner[made.id]].versions
        new = self.store.quarantine(TENANT, made.id, "bad", at(1), actor="serving")
        assert new == (known and not made.bad)
        made.bad = made.bad or new
        if new:
            self.not_undone(made.id, "bad")

    @rule(person=PERSON)
    def reset(self, person: str) -> None:
        self.number += 1
        self.reset_as(person, f"{self.prefix}-x{self.number}")

    def reset_as(self, person: str, reset_id: str) -> None:
        record = self.store.apply_reset(TENANT, self.name(person), reset_id, plan_reset("adapter"), at(1))
        self.people[person] = Person(record.generation)
        if self.backup is not None:
            self.backup.since.append(lambda people: people.update({person: Person(record.generation)}))

    def not_undone(self, version_id: str, flag: str) -> None:
        def again(people: dict[str, Person]) -> None:
            for made in (made for state in people.values() for made in state.versions if made.id == version_id):
                setattr(made, flag, True)

        if self.backup is not None:
            self.backup.since.append(again)

    @rule(data=st.data(), person=PERSON, writes=st.integers(0, 6))
    def crash(self, data: st.DataObject, person: str, writes: int) -> None:
        """The process dies after so many writes of a change, or before it commits: nothing of it is there.

        Only a reset may have destroyed the person's keys by then. Nobody was answered, so it is asked for again.
        """
        name, generation = self.name(person), self.people[person].generation
        store, adapter = self.store, self.adapter(person)
        live = self.people[person].live
        self.number += 1
        reset_id = f"{self.prefix}-crash{self.number}"
        changes: dict[str, Callable[[], object]] = {
            "publish": lambda: publish_user(store, f"{self.prefix}-crashed", name, generation=generation),
            "reset": lambda: store.apply_reset(TENANT, name, reset_id, plan_reset("adapter"), at(1)),
        }
        if live is not None:
            changes["promote"] = lambda: store.promote(TENANT, live.id, at(1), reason="r", actor="a")
            changes["rollback"] = lambda: store.rollback(TENANT, adapter, at(1), reason="r", actor="a")
            changes["revoke"] = lambda: store.revoke_release(TENANT, live.release, at(1), reason="r", actor="a")
            changes["quarantine"] = lambda: store.quarantine(TENANT, live.id, "bad", at(1), actor="serving")
        kind = data.draw(st.sampled_from(sorted(changes)))
        with suppress(Crash, IdiolectError), crashing(store, writes):
            changes[kind]()
        if kind == "reset":
            assert store.reset(TENANT, reset_id) is None
            self.reset_as(person, reset_id)
        self.done[kind] += 1

    @rule()
    def back_up(self) -> None:
        self.backup = Backup(copied(self.store), deepcopy(self.people))

    @precondition(lambda self: self.backup is not None)
    @rule()
    def restore(self) -> None:
        """Beside the store, which goes on: what it serves is what the backup served, less all that was taken back."""
        assert self.backup is not None
        self.done["restore"] += 1
        path = self.template.with_name("restored.db")
        shutil.copy(self.template, path)
        mirror_keys(self.url, f"sqlite:///{path}")
        restored = open_with_keys(f"sqlite:///{path}")
        try:
            restored.load(self.backup.snapshot, self.log.changes)
            for person, state in self.backup.expected().items():
                resolution = restored.resolve(TENANT, self.name(person), None)
                assert (resolution.user and resolution.user.id) == state.served()
            assert verify(restored.audit_walk(TENANT), self.store.audit_head(TENANT)).broken is None
        finally:
            restored.close()
            path.unlink()

    @rule()
    def collect(self) -> None:
        late = at(0) + timedelta(days=90)
        self.store.collect(TENANT, late, late, actor="a")
        for state in self.people.values():
            state.versions = [m for m in state.versions if not m.revoked or m in (state.live, state.previous)]

    @rule(person=PERSON)
    def replay_a_publish(self, person: str) -> None:
        """Sent again after whatever happened since, a publish changes nothing."""
        for made in [one for one in self.people[person].versions if one.release == f"r-{one.id}"][:1]:
            publish_user(self.store, made.id, self.name(person), generation=made.generation)

    def as_the_model_says(self) -> None:
        self.what_is_served_is_what_the_model_says()
        self.the_pointers_are_those_of_the_model()
        self.stored_are_exactly_the_versions_of_the_model()

    @invariant()
    def what_is_served_is_what_the_model_says(self) -> None:
        for person, state in self.people.items():
            resolution = self.store.resolve(TENANT, self.name(person), None)
            assert (resolution.user and resolution.user.id) == state.served()
            assert resolution.user is None or resolution.user.generation == state.generation

    @invariant()
    def the_pointers_are_those_of_the_model(self) -> None:
        for person, state in self.people.items():
            found = {p.name: p.version for p in self.store.pointers(TENANT, self.adapter(person))}
            assert found.get("live") == (state.live and state.live.id)
            assert found.get("previous") == (state.previous and state.previous.id)

    @invariant()
    def stored_are_exactly_the_versions_of_the_model(self) -> None:
        for person, state in self.people.items():
            stored = self.store.versions(TENANT, subject=self.name(person), limit=1000)
            assert [one.version.id for one in stored] == sorted(made.id for made in state.versions)

    def teardown(self) -> None:
        assert verify(self.store.audit_walk(TENANT), self.store.audit_head(TENANT)).broken is None


BOUNDED = settings(
    max_examples=25,
    stateful_step_count=18,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def machine(store: SqlStore, store_url: str, sqlite_template: Path, tmp_path: Path) -> Iterator[Any]:
    Registry.log = Log()
    store.keep_log(Registry.log)  # type: ignore[arg-type]
    store.set_global(GLOBAL, at(0), reason="first", actor="admin")
    Registry.store, Registry.url, Registry.template = store, store_url, tmp_path / "template.db"
    Registry.done = Counter()
    shutil.copy(sqlite_template, Registry.template)
    yield Registry
    del Registry.store


def test_any_order_of_changes_leaves_what_a_small_model_says(machine: Any) -> None:
    run_state_machine_as_test(machine, settings=settings(BOUNDED, max_examples=15))
    assert {"publish", "reset", "restore", "batches"} <= machine.done.keys()


@pytest.mark.parametrize("forgotten", ["check_promotable", "_withhold"])
def test_the_machine_finds_a_rule_that_was_forgotten(
    machine: Any, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    monkeypatch.setattr(f"idiolect.stores.sql.pointers.{forgotten}", lambda *_arguments: None)
    with pytest.raises((AssertionError, IdiolectError)):
        run_state_machine_as_test(machine, settings=settings(BOUNDED, phases=(Phase.generate,), print_blob=False))
