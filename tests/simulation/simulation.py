"""One run: a few servers over one store, people who ask and change their minds, trainings, crashes. All of it, and the
order in which it happens, is drawn from the seed."""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

from faulty_parts import START, Ambush, Bus, SharedRedis, Weather
from oracle import Ask, Oracle, Person, ViolationError
from serving_world import signed_version, some_weights, template_for
from simulated_server import Call, ServerProcess, SlowModel, Surroundings
from virtual_time import Crew, CrewFuture, StuckError, VirtualLoop

from idiolect.clock import ManualClock
from idiolect.consent import ConsentChange
from idiolect.errors import IdiolectError
from idiolect.ids import new_id, pseudonym, text_digest
from idiolect.privacy.accountant import epsilon_of_run, filter_rho, noise_multiplier_for
from idiolect.registry.signing import Signer
from idiolect.settings import Settings
from idiolect.signals.events import DerivedComparison, Inference
from idiolect.stores.ports import FeedbackSignal
from idiolect.tenancy import KEY_PREFIX, Scope, hash_secret
from people_keys import open_with_keys

TENANTS = ("acme", "other")
PEOPLE = (("acme", "ann"), ("acme", "bob"), ("other", "ann"))  # only the tenant tells the two of that name apart
QUERY, DOMAIN = "how?", "chat"
TEXTS = tuple(f"answer {number}" for number in range(6))
KEYS = {tenant: KEY_PREFIX + tenant for tenant in TENANTS}
MEMORY = Path("/dev/shm")  # a store that needs no disk, where there is such a place
BUDGET = {"user_budget_epsilon": 3.0, "domain_budget_epsilon": 7.0}  # room for two trainings, as a rule

Then = Literal["fenced", "out", "in", "paused"]  # what holds once a call was answered


def subject_of(tenant: str, user: str) -> str:
    return pseudonym(hmac.digest(b"\x01" * 32, tenant.encode(), "sha256"), user)


@dataclass
class Scene:
    """The store as every run finds it: people who are in, each with an adapter and something to learn from."""

    folder: Path
    signer: Signer = field(default_factory=lambda: Signer(b"\x07" * 32))
    published: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = Settings(home=self.folder, retrain_after=1, **BUDGET)
        self.file = self.folder / "run.db"
        self.store: Any = open_with_keys(f"sqlite:///{self.file}", lock_timeout_s=5.0)
        self._fill()
        self.tables = sqlite3.connect(self.file, check_same_thread=False)
        self._copy("run.db", "begin.db")

    def restore(self) -> None:
        self._copy("begin.db", "run.db")

    def _copy(self, source: str, target: str) -> None:
        """The database, and the keys of people beside it."""
        for end in ("", ".keys"):
            with (
                closing(sqlite3.connect(self.folder / f"{source}{end}")) as found,
                closing(sqlite3.connect(self.folder / f"{target}{end}")) as made,
            ):
                found.backup(made)

    def _fill(self) -> None:
        now = START
        self.store.set_global(SlowModel.digest, now, reason="r", actor="a")
        for tenant in TENANTS:
            self.store.create_tenant(tenant, now)
            self.store.create_key(tenant, list(Scope), hash_secret(KEYS[tenant]), now)
            self._publish(tenant, "domain", tenant, domain=DOMAIN)
        for tenant, user in PEOPLE:
            subject = subject_of(tenant, user)
            self.store.change_subject(tenant, subject, ConsentChange(opted_in=True), now)
            self._say(tenant, subject)
            self._publish(tenant, "user", f"{tenant} {user}", subject=subject)

    def _publish(self, tenant: str, scope: str, name: str, **owner: str) -> None:
        template = template_for(tenant, scope, SlowModel, ManualClock(START))  # type: ignore[arg-type]
        size = SlowModel.user_rank if scope == "user" else SlowModel.domain_rank
        version = signed_version(template, self.signer, some_weights(name, size), **owner)
        self.store.publish(version.release, template, [version], START, reason="r", actor="a")
        self.published.append((template, version))

    def _say(self, tenant: str, subject: str) -> None:
        texts = [QUERY, *TEXTS[:3]]
        query, *documents = map(text_digest, texts)
        inference = Inference(new_id(), subject, DOMAIN, query, tuple(documents), (0, 1, 2), START)
        derived = (DerivedComparison(0, 1, 1.0), DerivedComparison(0, 2, 1.0))
        self.store.record_inference(tenant, inference, texts)
        signal = FeedbackSignal(new_id(), inference, "choice", 0, START, derived)
        self.store.add_feedback(tenant, subject, signal, START)


@contextmanager
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        with _drawn_ids(random.Random(0), first=1):
            made = Scene(Path(folder))
        try:
            yield made
        finally:
            made.tables.close()
            made.store.close()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seen`: how often what happened, by name."""

    seed: int
    violation: str | None
    trace: list[str]
    seen: dict[str, int]


def run(scene: Scene, seed: int) -> Outcome:
    """The same seed gives the same trace, to the last line, as long as nothing in the code changes."""
    scene.restore()
    loop = VirtualLoop()
    chance = random.Random(seed)
    CrewFuture.crew = Crew(loop)
    story = Story(scene, loop, CrewFuture.crew, chance)
    violation = None
    with _drawn_ids(chance), _patched():
        try:
            loop.run_until_complete(story.play())
        except (ViolationError, StuckError) as found:
            violation = f"{type(found).__name__}: {found}"
        finally:
            story.end()
    return Outcome(seed, violation, story.oracle.trace, dict(story.oracle.seen))


@contextmanager
def _drawn_ids(chance: random.Random, first: int = 1 << 20) -> Iterator[None]:
    """UUIDv7 and people's keys of this run's own: after those of the scene, and the same every time."""
    numbers, keys = count(first), random.Random(first + chance.getrandbits(32))

    def drawn_id() -> int:
        return (next(numbers) << 80) | (7 << 76) | (2 << 62) | chance.getrandbits(48)

    drawn_keys = SimpleNamespace(urandom=keys.randbytes)
    with mock.patch("idiolect.ids._uuid7", drawn_id), mock.patch("idiolect.subject_keys.os", drawn_keys):
        yield


@contextmanager
def _patched() -> Iterator[None]:
    """What is not passed in: who waits for another thread's load lets others go on, and real time decides nothing."""
    with (
        mock.patch("idiolect_adapters.runtime.bank.Future", CrewFuture),
        mock.patch("idiolect_adapters.runtime.features.Future", CrewFuture),
        mock.patch("idiolect_services.gateway.batching.GATHER_SECONDS", 0.0),
        mock.patch("idiolect_services.gateway.batching._Speed.saw"),
        mock.patch.multiple("idiolect.privacy.budget", **_REMEMBERED),
    ):
        yield


# What the accountant said once it says again: pure functions that take longer than all the rest of a training.
_REMEMBERED = {one.__name__: cache(one) for one in (epsilon_of_run, filter_rho, noise_multiplier_for)}


class Story:
    def __init__(self, scene: Scene, loop: VirtualLoop, crew: Crew, chance: random.Random) -> None:
        self._scene, self._loop, self._crew, self._chance = scene, loop, crew, chance
        budgets = {
            unit: filter_rho(BUDGET[f"{name}_budget_epsilon"], 1e-5)
            for unit, name in (("comparison", "user"), ("subject", "domain"))
        }
        self.oracle = Oracle(scene.store, scene.tables, scene.signer, budgets, loop.time)
        for template, version in scene.published:
            self.oracle.learn(template, version)
        weather = Weather.drawn(chance)
        self.oracle.note(str(weather))
        self._ambush = Ambush(crew, chance, weather.ambushes)
        self._around = Surroundings(
            loop,
            crew,
            scene.store,
            Bus(loop, chance, weather),
            SharedRedis(),
            weather,
            self._ambush,
            scene.settings,
            scene.signer,
            subject_of,
            self.oracle.committed,
            self.oracle.broke,
        )
        self._servers: list[ServerProcess] = []
        self._started = 0
        self._shown: dict[tuple[str, str], str] = {}

    async def play(self) -> None:
        chance = self._chance
        for _ in range(chance.choice([1, 2, 2, 3])):
            self._start_server()
        acts = [self._asks(*person, chance.randint(2, 4)) for person in PEOPLE]
        acts += [self._minds(*person, chance.randint(1, 3)) for person in PEOPLE]
        acts += [self._operates(chance.choice(TENANTS), chance.randint(0, 2)), self._trains(chance.randint(1, 4))]
        acts += [self._breaks(chance.randint(0, 3))]
        watching = self._loop.create_task(self._watch())
        await self._all(acts)
        watching.cancel()
        self._heal()
        await asyncio.sleep(0.3)
        for tenant, user in [*PEOPLE, (chance.choice(TENANTS), None)]:
            await self._rank(tenant, user)
        self.oracle.audit()
        for server in self._servers:
            server.gateway.services.live.current.bank.check_integrity()
            server.gateway.services.live.current.features.check_integrity()
        self._check()

    async def _all(self, acts: list[Any]) -> None:
        tasks = [self._loop.create_task(act) for act in acts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def end(self) -> None:
        """Nobody is left: threads that are under way end at their next step."""
        for server in self._servers:
            server.kill()
        for task in list(self._loop.tasks):
            task.cancel()
        with suppress(ViolationError, StuckError):
            self._loop.run_until_complete(asyncio.sleep(1.0))
        self._crew.dismiss()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _check(self) -> None:
        """A violation that was noticed on a server's own thread, where its code may have gone on, ends the run here."""
        if self.oracle.violation is not None:
            raise ViolationError(self.oracle.violation)

    # Servers

    def _start_server(self) -> None:
        self._started += 1
        self._servers.append(ServerProcess(f"server {self._started}", self._around, self._chance))
        self.oracle.note(f"server {self._started} starts")

    def _heal(self) -> None:
        for server in self._servers:
            server.cut_off = False
        if not self._servers:
            self._start_server()

    async def _breaks(self, times: int) -> None:
        chance = self._chance
        for _ in range(times):
            await asyncio.sleep(chance.uniform(0.0, 0.12))
            if not self._servers:
                continue
            server = chance.choice(self._servers)
            what = chance.choice(["kill", "cut off", "damage"])
            self.oracle.note(f"{server.name}: {what}")
            self.oracle.seen[what] += 1
            if what == "kill":
                self._servers.remove(server)
                server.kill()
                await asyncio.sleep(chance.uniform(0.0, 0.05))
                self._start_server()
            elif what == "cut off":
                server.cut_off = True
                await asyncio.sleep(chance.uniform(0.01, 0.1))
                server.cut_off = False
            else:
                self._damage()

    def _damage(self) -> None:
        """A bit of a stored adapter flips, on the disk."""
        with closing(sqlite3.connect(self._scene.file)) as database:
            found = database.execute("SELECT id, weights, sealed FROM versions ORDER BY seq").fetchall()
            version, weights, sealed = self._chance.choice(found)
            column, stored = ("weights", weights) if sealed is None else ("sealed", sealed)
            flipped = stored[:-2] + bytes([stored[-2] ^ 0x40]) + stored[-1:]
            database.execute(f"UPDATE versions SET {column} = ? WHERE id = ?", (flipped, version))
            database.commit()
        self.oracle.damaged.add(version)

    # What people and operators do

    async def _send(self, call: Call, leaves: Any, server: ServerProcess | None = None) -> None:
        """To any server that runs; no answer comes from one that is killed meanwhile."""
        if server is None and not self._servers:
            await asyncio.sleep(0.01)
            return
        chosen = server or self._chance.choice(self._servers)

        def left(status: int, body: Any) -> None:
            if not chosen.dead:
                leaves(chosen, status, body)

        await asyncio.wait({chosen.spawn(chosen.answer(call, left))})
        self._check()

    async def _asks(self, tenant: str, user: str, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self._chance.uniform(0.0, 0.040))
            await self._rank(tenant, user if self._chance.random() < 0.95 else None)
            if self._chance.random() < 0.3:
                await self._feed_back(tenant, user)

    async def _rank(self, tenant: str, user: str | None, server: ServerProcess | None = None) -> None:
        texts = tuple(self._chance.sample(TEXTS, 2))
        subject = None if user is None else subject_of(tenant, user)
        ask = Ask(tenant, subject, DOMAIN, QUERY, texts, self.oracle.number)
        body: dict[str, Any] = {"query": QUERY, "documents": texts, "domain": DOMAIN}
        if user is not None:
            body["user"] = user

        def leaves(server: ServerProcess, status: int, answer: Any) -> None:
            if status == 200:
                self.oracle.ranked(server, ask, answer)
                if user is not None and answer["id"] is not None:
                    self._shown[tenant, user] = answer["id"]
            else:
                self.oracle.demand(status == 503, "a ranking is answered", str(answer))

        gone = self._chance.uniform(0.0, 0.005) if self._chance.random() < 0.03 else None
        await self._send(Call("POST", "/v1/rerank", KEYS[tenant], body, gone_after_s=gone), leaves, server)

    async def _feed_back(self, tenant: str, user: str) -> None:
        if (tenant, user) not in self._shown:
            return
        body = {"inference_id": self._shown[tenant, user], "user": user, "kind": "choice", "value": 0}
        await self._send(Call("POST", "/v1/feedback", KEYS[tenant], body), lambda *_: None)

    async def _minds(self, tenant: str, user: str, times: int) -> None:
        """One person changes their mind, one thing after the other."""
        person = (tenant, subject_of(tenant, user))
        for _ in range(times):
            await asyncio.sleep(self._chance.uniform(0.0, 0.080))
            what = self._chance.choice(["adapter", "adapter", "feedback", "all", "erase", "out", "pause"])
            for call, then in self._wish(what, tenant, user):
                if then == "in":
                    self.oracle.asks_in(person)
                rush = [self._rush(tenant, user) for _ in range(3 if then in ("fenced", "out") else 0)]
                with self._ambush.laid() if rush else nullcontext():
                    await self._all([*rush, self._changes(call, person, then)])
                await asyncio.sleep(self._chance.uniform(0.0, 0.020))

    async def _rush(self, tenant: str, user: str) -> None:
        """A ranking at about the time at which its person changes their mind."""
        await asyncio.sleep(self._chance.uniform(0.0, 10 * self._around.weather.latency_s))
        await self._rank(tenant, user)

    async def _changes(self, call: Call, person: Person, then: Then) -> None:
        """Also sent twice at once, to two servers perhaps, as an impatient client does."""
        await asyncio.sleep(self._chance.uniform(0.0, 10 * self._around.weather.latency_s))
        if call.path.endswith("/reset") and self._chance.random() < 0.3:
            call = replace(call, repeated_as=f"reset-{self.oracle.number}")
            await self._all([self._send(call, self._told(person, then)) for _ in range(2)])
        else:
            await self._send(call, self._told(person, then))

    def _wish(self, what: str, tenant: str, user: str) -> Iterator[tuple[Call, Then]]:
        key, segments = KEYS[tenant], {"user": user}
        consent = "/v1/users/{user}/personalization"
        if what in ("adapter", "feedback", "all"):
            then: Then = "out" if what == "all" else "fenced"
            yield Call("POST", f"{consent}/reset", key, {"scope": what}, segments), then
        elif what == "erase":
            yield Call("DELETE", "/v1/users/{user}", key, None, segments), "out"
        elif what == "out":
            yield Call("PUT", consent, key, {"opted_in": False}, segments), "out"
        else:
            yield Call("PUT", consent, key, {"paused": True}, segments), "paused"
        if what != "adapter" and self._chance.random() < 0.7:
            yield Call("PUT", consent, key, {"opted_in": True, "paused": False}, segments), "in"

    def _told(self, person: Person, then: Then) -> Any:
        def leaves(_server: ServerProcess, status: int, answer: Any) -> None:
            if status == 200 and then in ("fenced", "out"):
                self.oracle.fenced(person, answer["generation"], out=then == "out")
                self._ambush.answered()

        return leaves

    async def _operates(self, tenant: str, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self._chance.uniform(0.0, 0.120))
            releases = sorted(self.oracle.releases(tenant))
            release = self._chance.choice(releases)

            def leaves(_server: ServerProcess, status: int, _answer: Any, release: str = release) -> None:
                if status == 200:
                    self.oracle.revoked(release)

            segments = {"release_id": release}
            body = {"reason": "bad"}
            await self._send(Call("POST", "/v1/releases/{release_id}/revoke", KEYS[tenant], body, segments), leaves)

    async def _trains(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self._chance.uniform(0.0, 0.080))
            if not self._servers:
                continue
            server = self._chance.choice(self._servers)
            if self._chance.random() < 0.7:
                work = server.in_background(self._trained, server.retraining.train_queued)
            else:
                tenant = self._chance.choice(TENANTS)
                work = server.in_background(self._trained, server.trainer.train_domain, tenant, DOMAIN)
            await asyncio.wait({server.spawn(work)})
            self._check()

    def _trained(self, train: Any, *args: Any) -> None:
        try:
            train(*args)
        except IdiolectError as error:
            self.oracle.note(f"no training: {type(error).__name__}")

    async def _watch(self) -> None:
        with suppress(ViolationError):  # the next step of anybody ends the run
            while True:
                await asyncio.sleep(self._chance.uniform(0.010, 0.080))
                self.oracle.audit()


logging.getLogger("idiolect").setLevel(logging.CRITICAL)  # what is simulated here is trouble
