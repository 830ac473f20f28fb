"""What the gateway is built from, and what its routes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from idiolect.clock import Clock
from idiolect.registry.signing import Signer
from idiolect.settings import Settings
from idiolect.stores.ports import Store
from idiolect.tenancy import Caller, Scope
from idiolect_services.gateway.auth import Authenticator
from idiolect_services.gateway.gate import GenerationGate
from idiolect_services.gateway.lanes import Lanes
from idiolect_services.scorer import Scorer


@dataclass(frozen=True, slots=True)
class GatewayServices:
    """Built by wiring. `on_feedback(tenant, subject)` wakes the trainer; on the event loop, so it must not block."""

    store: Store
    scorer: Scorer
    settings: Settings
    signer: Signer
    clock: Clock
    pseudonym: Callable[[str, str], str]  # (tenant, the tenant's id of a person) -> subject
    on_feedback: Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Gateway:
    """The services, and what belongs to this process alone."""

    services: GatewayServices
    lanes: Lanes
    gate: GenerationGate
    authenticator: Authenticator

    @staticmethod
    def over(services: GatewayServices) -> Gateway:
        lanes = Lanes()
        return Gateway(services, lanes, GenerationGate(), Authenticator(services.store, lanes.control))

    async def authorise(self, request: Request, scope: Scope) -> Caller:
        """Raises NotAuthenticatedError, or NotFoundError if the key lacks `scope`."""
        caller = await self.authenticator.caller(request.headers.get("authorization"))
        caller.require(scope)
        return caller

    def forget(self, tenant: str, subject: str, generation: int) -> None:
        """Fence and purge a person in this process. On the event loop, before the reset or opt-out answers."""
        self.gate.announce(tenant, subject, generation)
        self.services.scorer.bank.purge(tenant, subject)
