"""The server: the gateway over one installation, and the thread that retrains people after their feedback."""

from __future__ import annotations

import logging
import socket
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from idiolect.errors import (
    BudgetExceededError,
    ConfigurationError,
    ConflictError,
    CorruptArtifactError,
    IdiolectError,
    NotFoundError,
    QuotaExceededError,
    UnavailableError,
)
from idiolect.privacy.pauses import LOOKED_AT, pause
from idiolect.rollouts.outcomes import Served
from idiolect.settings import Settings
from idiolect.stores.redis.resolutions import RememberedResolutions
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.runtime.bank import AdapterBank
from idiolect_adapters.runtime.features import FeatureCache
from idiolect_adapters.runtime.loras import LoraEngine
from idiolect_services.candidate import CandidateKeeper
from idiolect_services.gateway.app import create_app
from idiolect_services.gateway.context import GatewayServices
from idiolect_services.gateway.wire import Wire
from idiolect_services.live import LiveScorer
from idiolect_services.memory import Forgetting, memory_of
from idiolect_services.models import CandidateScorer
from idiolect_services.peft_export import peft_of
from idiolect_services.purging import PurgeFollower, redis_hints
from idiolect_services.quarantine import Quarantine
from idiolect_services.redis_setting import redis_wanted
from idiolect_services.retention import RetentionLoop
from idiolect_services.rollouts import RolloutLoop
from idiolect_services.scorer import Scorer
from idiolect_services.takeover import Takeover, TakeoverLoop
from idiolect_services.trainer import Trainer
from idiolect_services.wiring import Installation

if TYPE_CHECKING:  # it imports redis, which embedded servers may do without
    from idiolect_services.swaps import SwapFollower

log = logging.getLogger("idiolect.serving")

AnyScorer = TypeVar("AnyScorer", bound=Scorer)

REMEMBERED = 10_000  # people and domains whose adapters are loaded ahead of need, where swaps are followed
# Feedback wakes the trainer at once; this often it looks by itself, for what a crash or another process left queued.
POLL_SECONDS = 30.0


class RetrainingLoop:
    """One thread that trains whoever has enough new comparisons. The queue is in the store, so a crash loses nobody."""

    def __init__(self, installation: Installation, trainer: Trainer) -> None:
        self._installation = installation
        self._trainer = trainer
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._paused: set[str] = set()  # tenants of which it was said
        self._thread = threading.Thread(target=self._run, name="retraining", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A training that runs is finished first: its charge is spent either way."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def use(self, trainer: Trainer) -> None:
        """From the next training on."""
        self._trainer = trainer
        self._wake.set()

    def wake(self, _tenant: str, _subject: str) -> None:
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._stop.is_set():  # asked after the clear, which would otherwise swallow a stop's wake-up
                return
            try:
                self.train_queued()
            except IdiolectError as error:
                log.warning("retraining is put off: %s", error)
            except Exception:
                log.exception("retraining failed; it is tried again in %.0f s", POLL_SECONDS)
            self._wake.wait(POLL_SECONDS)

    def train_queued(self) -> None:
        """Train everyone who is queued now, one release per tenant."""
        waiting: dict[str, list[str]] = defaultdict(list)
        for tenant, subject in self._installation.store.training_queue(
            min_new=self._installation.settings.retrain_after
        ):
            waiting[tenant].append(subject)
        for tenant, subjects in waiting.items():
            if not self._pauses(tenant):
                self._train(tenant, subjects)

    def _pauses(self, tenant: str) -> bool:
        """Whether its last trainings came to nothing, so that its people stay queued for now."""
        runs = self._installation.store.runs(tenant, unit="comparison", limit=LOOKED_AT)
        waits = pause(runs, self._installation.clock.now())
        if not waits:
            self._paused.discard(tenant)
        elif tenant not in self._paused:
            self._paused.add(tenant)
            log.error(
                "the last trainings of people of tenant %s were charged and cut off, so nobody is retrained for %.0f "
                "minutes; once the cause is mended, `idiolect train users` trains at once",
                tenant,
                waits.total_seconds() / 60,
            )
        return bool(waits)

    def _train(self, tenant: str, subjects: Sequence[str]) -> None:
        started = self._installation.clock.now()
        try:
            report = self._trainer.train_users(tenant, subjects)
            log.info("retrained %d people (%d over their budget)", report.published, report.refused)
        except (BudgetExceededError, NotFoundError) as error:
            log.info("nobody retrained: %s", error)
        except QuotaExceededError as error:
            log.info("nobody retrained yet: %s", error)
            return  # they stay queued: tomorrow there is room again
        except (UnavailableError, ConflictError):
            raise  # they stay queued: it works again once the store is back, or the server has the live model
        except Exception:
            # Tried again, it would fail again, and every try is charged to their budgets.
            log.exception("the retraining of %d people failed", len(subjects))
        # Whoever was refused keeps the adapter that is live; only new feedback queues them again.
        self._installation.store.mark_trained(tenant, subjects, started)


def create_server_app(installation: Installation, model: PreferenceModel | None = None) -> FastAPI:
    """The API over the live global model, with its retraining thread tied to the app's lifespan."""
    model = model or installation.load_live_model()
    store, signer = installation.store, installation.signer
    rollouts = RolloutLoop(installation)
    quarantine = Quarantine(store, installation.clock)

    def scorer_on(model: PreferenceModel, kind: type[AnyScorer]) -> AnyScorer:
        model.backbone.hasten()
        settings, engine = installation.settings, LoraEngine(model)
        features = FeatureCache(model, max_bytes=settings.feature_cache_bytes, project_stacked=engine.project)
        bank = AdapterBank(
            model,
            installation.whole_version,
            signer,
            engine=engine,
            lora_bytes=settings.lora_cache_bytes,
            remembers=0 if settings.redis_url is None else REMEMBERED,
        )
        return kind(store, features, bank, quarantine, note)

    def loaded(digest: str) -> PreferenceModel:
        return _warmed(installation.load_model(digest))

    def note(served: Served) -> None:
        counted = live.countable(served)
        if counted is not None:
            rollouts.note(counted)

    live = LiveScorer(scorer_on(model, Scorer))
    loop = RetrainingLoop(installation, _trainer(installation, live.current))
    candidates = CandidateKeeper(live, store.global_trial, lambda digest: scorer_on(loaded(digest), CandidateScorer))
    takeovers = TakeoverLoop(
        Takeover(live, store.live_global, lambda digest: scorer_on(loaded(digest), Scorer), candidate=candidates),
        on_switch=lambda scorer: loop.use(_trainer(installation, scorer)),
    )
    memory = memory_of(installation)
    purges = purge_follower(installation, live, memory)
    swaps = swap_follower(installation, live)
    retention = RetentionLoop(installation)
    app = create_app(
        GatewayServices(
            store=store,
            live=live,
            settings=installation.settings,
            signer=signer,
            clock=installation.clock,
            pseudonym=installation.pseudonym,
            on_feedback=loop.wake,
            vault=installation.vault,
            peft=lambda stored: peft_of(_model_of(live.current), signer)(stored),
            purges=purges,
            memory=memory,
            swaps=None if swaps is None else swaps.stats,
        )
    )
    gateway_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[None]:
        async with gateway_lifespan(running):
            purges.start()
            loop.start()
            rollouts.start()
            takeovers.start()
            retention.start()
            if swaps is not None:
                swaps.start()
            yield
            if swaps is not None:
                swaps.stop()
            retention.stop()
            takeovers.stop()
            rollouts.stop()
            loop.stop()
            purges.stop()
        live.close()
        if memory is not None:
            memory.close()

    app.router.lifespan_context = lifespan
    return app


def _trainer(installation: Installation, scorer: Scorer) -> Trainer:
    """It trains on the model that is served, and shares what is cached of it."""
    return Trainer(installation, _model_of(scorer), scorer.features, engine=scorer.bank.engine)


def _model_of(scorer: Scorer) -> PreferenceModel:
    assert isinstance(scorer.model, PreferenceModel)
    return scorer.model


def _warmed(model: PreferenceModel) -> PreferenceModel:
    """Its first forward takes longer than others. Nor does one take over that can't do any."""
    features_NW = model.project([("warm", "up")])
    if not np.isfinite(features_NW).all():
        raise CorruptArtifactError("the model gives features that are not finite.", mend="Train it again.")
    return model


def purge_follower(
    installation: Installation, live: LiveScorer, memory: RememberedResolutions | None = None
) -> PurgeFollower:
    """Raises ConfigurationError for a Redis URL that can't be read."""
    store, settings = installation.store, installation.settings
    hints = None if settings.redis_url is None else redis_hints(settings.redis_url)
    return PurgeFollower(
        store,
        live.forget,
        installation.clock,
        embedded=store.embedded,
        hints=hints,
        forget_shared=None if memory is None else Forgetting(memory),
    )


def swap_follower(installation: Installation, live: LiveScorer) -> SwapFollower | None:
    """None without Redis. Raises ConfigurationError for a URL that can't be read."""
    store, url = installation.store, installation.settings.redis_url
    if url is None:
        return None
    with redis_wanted():
        from idiolect_services.swaps import SwapFollower

        follower = SwapFollower(url, live, store)
    store.on_swap = follower.tell
    return follower


def listen(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything slow, so that a port in use is said at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named, because asyncio sends small answers at once (TCP_NODELAY) only where it sees that the protocol is TCP. Else
    # the second half of each answer waits 40 ms for the client to acknowledge the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"{settings.host}:{settings.port} can't be listened on: {error.strerror}.",
            mend="Stop what uses that port, or set IDIOLECT_PORT to another one.",
        ) from error
    return listener


def server_for(app: ASGIApp) -> uvicorn.Server:
    """No access log: paths hold user ids. No WebSockets. Always h11: httptools, which uvicorn takes where it is there,
    reads a head without an end into memory (`deploy/decisions/0021`). What a proxy says of its client is not read,
    since nothing here depends on it, and an answer does not name what it was served with."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Wire,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=75,
            proxy_headers=False,
            server_header=False,
        )
    )
