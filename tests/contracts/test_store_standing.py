"""What was resolved once may be served again only if a shorter look agrees, and that must miss nothing.

Whatever is done to a store, in any order: where the look agrees with something remembered, resolving says the same.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from store_samples import GLOBAL, TENANT, at, tampering, template, version

from idiolect.audit import INSTALLATION
from idiolect.consent import ConsentChange, DomainChange
from idiolect.errors import IdiolectError
from idiolect.registry.manifest import Carried, ReleaseTemplate
from idiolect.registry.pointers import Adapter
from idiolect.registry.resolution import Resolution
from idiolect.resets.plan import plan_reset
from idiolect.rollouts.plan import Candidate, Guardrail, Plan
from idiolect.rollouts.verdicts import Move
from idiolect.stores.rollout_ports import StagedModel
from idiolect.stores.sql import SqlStore, arriving

PEOPLE, DOMAINS = ("ann", "bob", "cid"), ("chat", None)
KEYS = [(TENANT, person, domain) for person in (None, *PEOPLE) for domain in DOMAINS]
NEXT = "n" * 64
HALF = Plan(steps=(0.5, 1.0), min_people=5, guardrails=(Guardrail("success", 0.1),))
WHY: dict[str, Any] = {"reason": "r", "actor": "a"}


class Walk:
    """Random changes of one store. `agreed` counts what was remembered before a change and held after it."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.random = random.Random(1)
        self.number = 0
        self.remembered: dict[Any, list[Resolution]] = defaultdict(list)
        self.last: dict[Any, Resolution] = {}  # of the look before, what could be remembered
        self.agreed: Counter[str] = Counter()
        self.outdated: Counter[str] = Counter()
        self.kinds: dict[str, Callable[[], object]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }

    def begin(self) -> None:
        """Anew: nothing is rolled out, and everybody is served a version of their own."""
        for tenant, rollout in self.store.active_rollouts():
            with suppress(IdiolectError):
                self.store.steer_rollout(tenant, rollout, "abort", at(4), **WHY)
            if tenant == INSTALLATION:
                self.store.end_global_trial(rollout)
        self.store.set_global(GLOBAL, at(0), **WHY)
        for person in PEOPLE:
            self.change(person, opted_in=True, paused=False, domains=(DomainChange("chat", True),))
        self.publish(template(), *((person, "") for person in PEOPLE))
        self.publish(template("domain"), ("", "chat"))
        self.look("the beginning")

    def publish(self, of: ReleaseTemplate, *owners: tuple[str, str], staged: bool = False, **fields: Any) -> None:
        """Each time signed with a key of its own."""
        release = f"r-{self.new()}"
        versions = [
            version(
                f"{release}-{subject}{domain}",
                release,
                subject,
                domain,
                generation=self.generation(subject) if subject else 0,
                key_id=f"{self.number:016}",
                **fields,
            )
            for subject, domain in owners
        ]
        self.store.publish(release, of, versions, at(1), **WHY, staged=staged)

    def step(self) -> None:
        name = self.random.choice(sorted(self.kinds))
        with suppress(IdiolectError):
            self.kinds[name]()
        self.look(name)

    def look(self, after: str) -> None:
        """Together, or each alone."""
        if self.random.random() < 0.5:
            found, standings = self.store.resolve_each(KEYS), self.store.standing_each(KEYS)
        else:
            found = [self.store.resolve(*key) for key in KEYS]
            standings = [self.store.standing_each([key])[0] for key in KEYS]
        for key, now, standing in zip(KEYS, found, standings, strict=True):
            known, last = self.remembered[key], self.last.pop(key, None)
            assert now.mark is None or standing.agrees(now, key[2]), (after, key, now, standing)
            for one in known:
                if standing.agrees(one, key[2]):
                    assert one == now, (after, key)
                    assert now.mark == one.mark
            if last is not None:
                (self.agreed if standing.agrees(last, key[2]) else self.outdated)[after] += 1
            if now.mark is not None:
                self.last[key] = now
                known.append(now)

    def new(self) -> str:
        self.number += 1
        return f"v{self.number:03}"

    def person(self) -> str:
        return self.random.choice(PEOPLE)

    def some_version(self) -> str:
        return self.random.choice([one.version.id for one in self.store.versions(TENANT, limit=1000)])

    def some_release(self) -> str:
        return self.random.choice([one.id for one in self.store.releases(TENANT)])

    def generation(self, person: str) -> int:
        return self.store.subject(TENANT, person).generation

    def change(self, person: str, **fields: Any) -> None:
        self.store.change_subject(TENANT, person, ConsentChange(**fields), at(1))

    def do_nothing(self) -> None:
        pass

    def do_publish(self) -> None:
        self.publish(template(global_digest=self.store.live_global() or GLOBAL), (self.person(), ""))

    def do_publish_for_a_domain(self) -> None:
        live = self.store.live_global() or GLOBAL
        self.publish(template("domain", global_digest=live), ("", self.random.choice(["chat", "mail"])))

    def do_stage(self) -> None:
        self.publish(template(), *((person, "") for person in PEOPLE), staged=True)

    def do_publish_in_batches(self) -> None:
        with looking_between(self):
            self.publish(template(), *((person, "") for person in PEOPLE))

    def do_promote(self) -> None:
        self.store.promote(TENANT, self.some_version(), at(1), **WHY)

    def do_promote_a_release(self) -> None:
        self.store.promote_release(TENANT, self.some_release(), at(1), **WHY)

    def do_roll_back(self) -> None:
        self.store.rollback(TENANT, Adapter("user", self.person()), at(1), **WHY)

    def do_roll_a_domain_back(self) -> None:
        self.store.rollback(TENANT, Adapter("domain", "chat"), at(1), **WHY)

    def do_revoke(self) -> None:
        self.store.revoke_release(TENANT, self.some_release(), at(1), **WHY)

    def do_revoke_what_is_served(self) -> None:
        found = self.store.resolve(TENANT, self.person(), "chat")
        for one in [found.user or found.domain]:
            if one is not None:
                self.store.revoke_release(TENANT, one.release, at(1), **WHY)

    def do_quarantine(self) -> None:
        self.store.quarantine(TENANT, self.some_version(), "bad", at(1), actor="a")

    def do_quarantine_what_is_served(self) -> None:
        found = self.store.resolve(TENANT, self.person(), "chat")
        for one in [found.user or found.domain]:
            if one is not None:
                self.store.quarantine(TENANT, one.id, "bad", at(1), actor="a")

    def do_withdraw_a_key(self) -> None:
        """Of something that is served, or of nothing."""
        user = self.store.resolve(TENANT, self.person(), None).user
        stored = None if user is None else self.store.version(TENANT, user.id)
        self.store.withdraw_signing_key("z" * 16 if stored is None else stored.version.key_id, at(1), **WHY)

    def do_pause(self) -> None:
        self.change(self.person(), paused=self.random.random() < 0.5)

    def do_change_strength(self) -> None:
        self.change(self.person(), strength=self.random.choice([0.0, 0.5, 1.0]))

    def do_opt_out_or_in(self) -> None:
        self.change(self.person(), opted_in=self.random.random() < 0.7)

    def do_choose_for_a_domain(self) -> None:
        agrees = self.random.random() < 0.7
        self.change(self.person(), domains=(DomainChange("chat", agrees, self.random.choice([None, 0.5])),))

    def do_reset(self) -> None:
        plan = plan_reset(self.random.choice(["adapter", "feedback", "all"]))
        self.store.apply_reset(TENANT, self.person(), f"x-{self.new()}", plan, at(1))

    def do_collect(self) -> None:
        late = at(0) + timedelta(days=90)
        self.store.collect(TENANT, late, late, actor="a")

    def do_begin_a_rollout(self) -> None:
        candidate = Candidate("release", self.some_release())
        self.store.create_rollout(TENANT, candidate, HALF, at(3), **WHY, start=True)

    def do_begin_a_rollout_of_a_setting(self) -> None:
        candidate = Candidate("setting", strength=0.5)
        self.store.create_rollout(TENANT, candidate, replace(HALF, steps=(0.5, 0.9)), at(3), **WHY, start=True)

    def do_end_rollouts(self) -> None:
        for tenant, rollout in self.store.active_rollouts():
            known = self.store.rollout(tenant, rollout)
            assert known is not None
            if known.candidate.kind == "setting" or self.random.random() < 0.5:
                self.store.steer_rollout(tenant, rollout, "abort", at(4), **WHY)
            else:
                self.store.move_rollout(
                    known, Move("completed", 1, "healthy", "better", promotes=True), at(5), actor="a"
                )

    def do_stage_a_global_model(self) -> None:
        """With what everybody has, carried to it."""
        self.store.stage_model(StagedModel(NEXT, GLOBAL, b"{}", at(1), "r", "a"))
        for person in PEOPLE:
            user = self.store.resolve(TENANT, person, None).user
            if user is not None:
                of = replace(template(global_digest=NEXT), carried=Carried(user.release, GLOBAL, ()))
                self.publish(of, (person, ""), staged=True, parent=user.id)

    def do_begin_a_global_rollout(self) -> None:
        self.do_stage_a_global_model()
        self.store.create_rollout(INSTALLATION, Candidate("global", NEXT), HALF, at(3), **WHY, start=True)

    def do_change_the_global_model(self) -> None:
        self.store.set_global(self.random.choice([GLOBAL, GLOBAL, NEXT]), at(1), **WHY)

    def do_follow_the_global_model(self) -> None:
        for tenant, release in self.store.waiting_releases(self.store.live_global() or ""):
            self.store.follow_model(tenant, release, at(6), **WHY)


@contextmanager
def looking_between(walk: Walk) -> Iterator[None]:
    """A release arrives a version at a time, with a look after each transaction."""
    write = walk.store._database.write

    def written(*call: Any, **how: Any) -> Any:
        done = write(*call, **how)
        walk.look("a batch")
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arriving, "BATCH", 1)
        patched.setattr(walk.store._database, "write", written)
        yield


def walked(store: SqlStore) -> Walk:
    store.create_tenant(TENANT, at(0))
    walk = Walk(store)
    for _ in range(40):
        walk.begin()
        for _ in range(10):
            walk.step()
    return walk


def test_whatever_is_done_what_the_short_look_agrees_with_is_what_resolving_says(store: SqlStore) -> None:
    walk = walked(store)
    assert walk.agreed["nothing"] > 0
    assert walk.outdated["nothing"] == 0
    assert walk.agreed["publish"] > walk.outdated["publish"] > 0  # the others' still holds
    assert {"revoke_what_is_served", "quarantine_what_is_served", "withdraw_a_key", "reset"} <= walk.outdated.keys()


@pytest.mark.parametrize("table", ["versions", "releases", "withdrawn_keys"])
def test_a_write_that_did_not_mark_the_tenant_would_be_found(store: SqlStore, table: str) -> None:
    with tampering(store) as connection:
        if connection.dialect.name == "sqlite":
            triggers = connection.scalars(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table"), {"table": table}
            ).all()
            for name in triggers:
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER {table}_mark_served"))
    try:
        with pytest.raises(AssertionError):
            walked(store)
    finally:
        with tampering(store) as connection:
            if connection.dialect.name != "sqlite":  # one database for all tests
                connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER {table}_mark_served"))
