"""idiolect keys seal|replace-store"""

from __future__ import annotations

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect_services.cli.common import OPERATOR, Home, Reason, console, settings_for
from idiolect_services.wiring import open_installation


def seal(home: Home = None) -> None:
    """Seal what an older Idiolect stored of people in the clear. A server does it by itself after an upgrade.

    Example: idiolect keys seal
    """
    with open_installation(settings_for(home)) as installation:
        sealed = installation.store.seal_existing(installation.clock.now(), goes_on=lambda: True)
    console.print(f"{sealed:,} rows sealed; nothing of a person is left in the clear.")


def replace_store(
    reason: Reason,
    home: Home = None,
) -> None:
    """The key store is lost for good: begin with a new one. What was sealed of people stays unreadable for ever.

    Example: idiolect keys replace-store --reason "the disk of the key store died"
    """
    with open_installation(settings_for(home), new_keys=True) as installation:
        event = AuditEvent(OPERATOR, "key_store.replace", "key store", reason)
        installation.store.record_audit(INSTALLATION, event, installation.clock.now())
    console.print("A new key store is in use. People whose data was sealed begin anew with their next feedback.")
