"""At which delta to say what a person was charged: that of the trainings that charged them."""

from __future__ import annotations

from idiolect.privacy.events import Unit
from idiolect.privacy.ledger import Charge
from idiolect.privacy.policy import delta_of, delta_of_run
from idiolect.settings import Settings
from idiolect.stores.ports import Store

MAX_CHARGES = 100


def delta_for_person(store: Store, settings: Settings, tenant: str, unit: Unit, subject: str) -> float:
    """The smallest of any training that read this person, at which what they are told holds for all of them."""
    if unit == "comparison":  # of the window of one person, which is always as long
        return delta_of(settings, 1)
    charges = store.charges(tenant, subject, unit=unit, limit=MAX_CHARGES)
    return min((_delta(store, settings, tenant, charge) for charge in charges), default=delta_of(settings, 1))


def delta_for_forecast(store: Store, settings: Settings, tenant: str, unit: Unit) -> float:
    """The smallest that a training of any of the tenant's domains would use now."""
    if unit == "comparison":
        return delta_of(settings, 1)
    people = [len(store.contributors(tenant, domain)) for domain in store.domains(tenant)]
    return delta_of(settings, max(people, default=1))


def _delta(store: Store, settings: Settings, tenant: str, charge: Charge) -> float:
    """As the release's manifest has it; a run that published nothing has none."""
    versions = [] if charge.release is None else store.versions(tenant, release=charge.release, limit=1)
    said = versions[0].template.privacy if versions else None
    return delta_of_run(settings, charge.run) if said is None else said.delta
