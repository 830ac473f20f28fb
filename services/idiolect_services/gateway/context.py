"""What the gateway is built from, and what its routes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from idiolect.clock import Clock
from idiolect.registry.signing import Signer
from idiolect.settings import Settings
from idiolect.stores.ports import Store
from idiolect.stores.redis.resolutions import RememberedResolutions
from idiolect.tenancy import Caller, Scope
from idiolect.upstreams import HostRules
from idiolect_services.exports import PeftFiles
from idiolect_services.gateway.auth import Authenticator
from idiolect_services.gateway.batching import Batcher
from idiolect_services.gateway.edge import LIMIT_HEADERS
from idiolect_services.gateway.fencing import AnswerFence
from idiolect_services.gateway.gate import GenerationGate
from idiolect_services.gateway.headers import header
from idiolect_services.gateway.lanes import Lanes
from idiolect_services.gateway.limits import RateLimits
from idiolect_services.gateway.marks import Marks
from idiolect_services.gateway.metrics import Metrics, SwapStats
from idiolect_services.gateway.oidc import logins_of
from idiolect_services.gateway.pace import Pace
from idiolect_services.gateway.process import Process
from idiolect_services.gateway.queueing import Bounds
from idiolect_services.gateway.recorder import InferenceRecorder
from idiolect_services.gateway.tokens import Tokens
from idiolect_services.gateway.upstream import UpstreamClient
from idiolect_services.live import LiveScorer
from idiolect_services.looks import STORE_TROUBLE
from idiolect_services.purging import PurgeListener
from idiolect_services.vault import Vault


@dataclass(frozen=True, slots=True)
class GatewayServices:
    """Built by wiring. `on_feedback(tenant, subject)` wakes the trainer; on the event loop, so it must not block."""

    store: Store
    live: LiveScorer
    settings: Settings
    signer: Signer
    clock: Clock
    pseudonym: Callable[[str, str], str]  # (tenant, the tenant's id of a person) -> subject
    on_feedback: Callable[[str, str], None]
    vault: Vault
    peft: PeftFiles | None = None  # without it, exports hold adapters in our own format only
    purges: PurgeListener = field(default_factory=PurgeListener)
    upstreams: UpstreamClient = field(default_factory=UpstreamClient)
    process: Process = field(default_factory=Process)
    swaps: Callable[[], SwapStats] | None = None  # None where the log of swaps is not followed
    memory: RememberedResolutions | None = None  # of what was resolved lately; None: each request resolves in full


@dataclass(frozen=True, slots=True)
class Gateway:
    """The services, and what belongs to this process alone."""

    services: GatewayServices
    lanes: Lanes
    batcher: Batcher
    metrics: Metrics
    gate: GenerationGate
    fence: AnswerFence
    authenticator: Authenticator
    recorder: InferenceRecorder
    pace: Pace
    upstream_rules: HostRules
    tokens: Tokens
    limits: RateLimits
    marks: Marks | None  # not where the store is at hand: it answers as fast as Redis

    @staticmethod
    def over(services: GatewayServices) -> Gateway:
        store, settings, process = services.store, services.settings, services.process
        pace, writing = (Pace(embedded=store.embedded, monotonic=process.monotonic) for _ in range(2))
        lanes = Lanes(process)
        gate = GenerationGate()
        tokens = Tokens(services.vault, services.clock)
        return Gateway(
            services=services,
            lanes=lanes,
            batcher=Batcher(Bounds(settings.tenant_queue_texts, settings.queue_texts), process),
            metrics=Metrics(),
            gate=gate,
            fence=AnswerFence(gate, store, lanes.serving, process.uptime, process.sleep, pace),
            authenticator=Authenticator(
                store,
                lanes.keys,
                lanes.control,
                process.monotonic,
                tokens=tokens,
                logins=logins_of(settings, services.clock),
            ),
            recorder=InferenceRecorder(store, process, writing),
            pace=pace,
            upstream_rules=HostRules.parse(services.settings.upstream_hosts),
            tokens=tokens,
            limits=RateLimits.of(services.settings),
            marks=None if store.embedded else Marks.of(settings, services.vault, services.clock),
        )

    def close(self) -> None:
        self.batcher.close()
        self.lanes.close()
        self.recorder.close()
        if self.marks is not None:
            self.marks.close()

    async def authorise(self, request: Request, scope: Scope) -> Caller:
        """A tenant's server. Raises NotAuthenticatedError; NotFoundError if the key lacks `scope`, and to end users."""
        caller = await self.authorise_anyone(request, scope)
        caller.require_server()
        return caller

    async def authorise_anyone(self, request: Request, scope: Scope) -> Caller:
        """End users too: the route must then call `caller.require_person` before it does anything for a person."""
        said = header(request.scope, b"authorization")
        caller = await self.authenticator.caller(said, for_control=scope is Scope.CONTROLS)
        headers = await self.limits.take(caller)
        if headers:
            request.scope["state"][LIMIT_HEADERS] = headers
        caller.require(scope)
        return caller

    def forget(self, tenant: str, subject: str, generation: int) -> None:
        """Fence and purge a person in this process. On the event loop, before the reset or opt-out answers."""
        self.gate.announce(tenant, subject, generation)
        self.services.live.forget(tenant, subject)
        self.services.purges.announce()

    async def forget_everywhere(self, tenant: str, subject: str, generation: int) -> None:
        """After the commit and before the answer of whatever raised a generation: once it returns, no process answers
        under an older one. It fences here, and waits for the others where there may be any."""
        self.forget(tenant, subject, generation)
        if not self.services.store.embedded or await self.lanes.control.run(self._has_company):
            await self.fence.wait_for_others()

    def _has_company(self) -> bool:
        """An embedded store serves one process as a rule, but nobody keeps a second from being started on it."""
        services = self.services
        try:
            replicas = services.store.replicas(services.clock.now())
        except STORE_TROUBLE:
            return True
        return any(one.id != services.purges.replica for one in replicas)
