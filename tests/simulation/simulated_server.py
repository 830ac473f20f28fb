"""One server process: our own gateway, scorer, caches, trainer and purge follower, over simulated surroundings."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from faulty_parts import Ambush, Bus, Committed, FaultyLink, FaultyStore, SharedRedis, SkewedClock, Weather
from serving_world import HashModel
from starlette.requests import ClientDisconnect, Request
from virtual_time import Crew, CrewExecutor, VirtualLoop

from idiolect.errors import IdiolectError
from idiolect.registry.signing import Signer
from idiolect.settings import Settings
from idiolect.stores.redis.resolutions import RememberedResolutions
from idiolect_adapters.preference import Recipes
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.tuning import UserRecipes
from idiolect_services.gateway.context import Gateway, GatewayServices
from idiolect_services.gateway.problems import problem_from
from idiolect_services.gateway.process import Process
from idiolect_services.gateway.routes.controls import ControlRoutes
from idiolect_services.gateway.routes.feedback import FeedbackRoutes
from idiolect_services.gateway.routes.ranking import RankingRoutes
from idiolect_services.gateway.routes.registry import RegistryRoutes
from idiolect_services.live import LiveScorer
from idiolect_services.memory import Forgetting
from idiolect_services.purging import POLL_SECONDS, PurgeFollower
from idiolect_services.quarantine import Quarantine
from idiolect_services.scorer import Scorer
from idiolect_services.serving import RetrainingLoop
from idiolect_services.trainer import Trainer
from idiolect_services.vault import Vault
from idiolect_services.wiring import Installation

MASTER_KEY = b"\x02" * 32
CACHED_TEXTS = 1 << 16  # bytes; small, so that texts are also pushed out


class SlowModel(HashModel):
    """Takes its time, and counts what it computes."""

    _rows: dict[tuple[str, str], list[float]] = {}  # noqa: RUF012  of all runs: a text has one row

    def __init__(self, crew: Crew, chance: random.Random) -> None:
        super().__init__()
        self._crew, self._chance = crew, chance
        self.computed: Counter[str] = Counter()  # by text
        flat = Recipe(1.0, 1.0, 4, 4.0 * np.eye(self.user_rank))
        domain = Recipe(1.0, 1.0, 4, 4.0 * np.eye(self.domain_rank))
        self.recipes = Recipes(UserRecipes({None: flat, 1.0: flat}, flat.curvature_K_K), domain)

    def project(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self._crew.pause(self._chance.uniform(0.001, 0.020))
        self.computed.update(text for _, text in pairs)
        return np.array([self.known_row(*pair) for pair in pairs]).reshape(len(pairs), -1)

    @classmethod
    def known_row(cls, prompt: str, text: str) -> list[float]:
        if (prompt, text) not in cls._rows:
            cls._rows[prompt, text] = cls.row(prompt, text)
        return cls._rows[prompt, text]


class SeededNoise:
    def __init__(self, chance: random.Random) -> None:
        self._rng = np.random.default_rng(chance.getrandbits(64))

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._rng.standard_normal(shape)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all processes of a run share."""

    loop: VirtualLoop
    crew: Crew
    store: Any  # the real one
    bus: Bus
    redis: SharedRedis
    weather: Weather
    ambush: Ambush
    settings: Settings
    signer: Signer
    pseudonym: Callable[[str, str], str]
    committed: Committed
    broke: Callable[[BaseException], None]  # told of what a request ended with that is nobody's error


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    path: str  # as the API writes it
    key: str
    body: Any = None
    segments: Mapping[str, str] = field(default_factory=dict)  # of the path
    repeated_as: str | None = None  # its Idempotency-Key
    gone_after_s: float | None = None  # its client does not wait for the answer


class ServerProcess:
    """From its start to the crash that ends it."""

    def __init__(self, name: str, around: Surroundings, chance: random.Random) -> None:
        self.name, self.around = name, around
        self._chance = chance
        self.dead = self.cut_off = False
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order in which they began
        clock = self.clock = SkewedClock(around.loop, chance, around.weather.drift)
        store: Any = FaultyStore(
            around.store, self, around.crew, chance, around.weather, around.ambush, around.committed
        )
        self.model = SlowModel(around.crew, chance)
        features = FeatureCache(self.model, max_bytes=CACHED_TEXTS)
        bank = AdapterBank(
            self.model, store.version, around.signer, max_adapters=1_000, max_loads=64, monotonic=clock.uptime
        )
        scorer = Scorer(store, features, bank, Quarantine(store, clock), uptime=clock.uptime)
        live = LiveScorer(scorer)
        link: Any = FaultyLink(around.redis, self, around.crew, chance, around.weather)
        self.memory = RememberedResolutions(link, MASTER_KEY, clock.now)
        follower = PurgeFollower(
            store,
            live.forget,
            clock,
            forget_shared=Forgetting(self.memory, clock.uptime),
            monotonic=clock.uptime,
        )
        self.purges = _Follower(self, follower)
        installation = Installation(around.settings, store, around.signer, clock, MASTER_KEY)
        trainer = Trainer(installation, self.model, features, SeededNoise(chance))  # type: ignore[arg-type]
        self.trainer = trainer
        self.retraining = RetrainingLoop(installation, trainer)
        self.gateway = Gateway.over(
            GatewayServices(
                store=store,
                live=live,
                settings=around.settings,
                signer=around.signer,
                clock=clock,
                pseudonym=around.pseudonym,
                on_feedback=lambda _tenant, _subject: None,
                vault=Vault(MASTER_KEY),
                purges=self.purges,  # type: ignore[arg-type]
                memory=self.memory,
                process=Process(clock.uptime, clock.uptime, self._sleep, lambda _, count: self._executor(count)),
            )
        )
        self._ranking = RankingRoutes(self.gateway)
        self._controls = ControlRoutes(self.gateway)
        self._feedback = FeedbackRoutes(self.gateway)
        self._registry = RegistryRoutes(self.gateway)
        self._background = self._executor(4)
        self.spawn(self.purges.run())

    def _executor(self, count: int) -> CrewExecutor:
        return CrewExecutor(self.around.crew, count, self._chance, lambda: self.dead)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(self.clock.seconds(seconds))

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self.around.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.around.broke(error)

    async def in_background(self, call: Callable[..., Any], *args: Any) -> Any:
        """On a thread of this process that serves no request."""
        return await asyncio.wrap_future(self._background.submit(call, *args))

    def kill(self) -> None:
        """Nothing of it goes on: no thread, no task, no answer."""
        self.dead = True
        self.around.bus.listeners.pop(self.name, None)
        for task in list(self._tasks):
            task.cancel()

    # What clients call. The router, the schema of paths and the like are not what is simulated.

    async def answer(self, call: Call, leaves: Callable[[int, Any], None]) -> None:
        """`leaves(status, body)` is called at the moment at which the answer is handed to the socket."""
        request = _request(call)
        handler = self._handlers()[call.method, call.path]
        try:
            response = await handler(request, **{name: quote(one, safe="") for name, one in call.segments.items()})
        except ClientDisconnect:
            return
        except IdiolectError as error:
            response = problem_from(error, request)
        leaves(response.status_code, json.loads(response.body))

    def _handlers(self) -> dict[tuple[str, str], Callable[..., Any]]:
        return {
            ("POST", "/v1/rerank"): self._ranking.rerank,
            ("POST", "/v1/feedback"): self._feedback.feedback,
            ("PUT", "/v1/users/{user}/personalization"): self._controls.change_consent,
            ("POST", "/v1/users/{user}/personalization/reset"): self._controls.reset,
            ("DELETE", "/v1/users/{user}"): self._controls.erase,
            ("POST", "/v1/releases/{release_id}/revoke"): self._registry.revoke,
        }


def _request(call: Call) -> Request:
    headers = [(b"authorization", f"Bearer {call.key}".encode()), (b"content-type", b"application/json")]
    if call.repeated_as is not None:
        headers.append((b"idempotency-key", call.repeated_as.encode()))
    scope = {
        "type": "http",
        "method": call.method,
        "path": call.path,
        "query_string": b"",
        "headers": headers,
        "state": {},
    }
    messages = [{"type": "http.request", "body": b"" if call.body is None else json.dumps(call.body).encode()}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        if call.gone_after_s is None:
            await asyncio.get_running_loop().create_future()  # the client stays
        await asyncio.sleep(call.gone_after_s or 0.0)
        return {"type": "http.disconnect"}

    return Request(scope, receive)


class _Follower:
    """The purge follower's work without its thread: asked again after a while, or when a hint comes in."""

    def __init__(self, process: ServerProcess, follower: PurgeFollower) -> None:
        self._process, self._follower = process, follower
        self._hinted = asyncio.Event()
        self.replica = follower.replica
        process.around.bus.listeners[process.name] = self._hinted.set

    def announce(self) -> None:
        self._process.around.bus.publish(self._process.name)

    async def run(self) -> None:
        await self._process.in_background(self._follower.begin)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._process.clock.seconds(POLL_SECONDS)):
                    await self._hinted.wait()
            self._hinted.clear()
            with suppress(IdiolectError):  # it asks again
                await self._process.in_background(self._follower.follow)
