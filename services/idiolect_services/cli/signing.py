"""idiolect keys signing|rotate-signing|withdraw-signing"""

from __future__ import annotations

from typing import Annotated

import typer

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.errors import NotFoundError
from idiolect.registry.signing import key_id
from idiolect_services.cli.common import OPERATOR, Home, Reason, console, settings_for
from idiolect_services.signing_keys import SigningKeys, check_key_id
from idiolect_services.wiring import Installation, open_installation


def signing(home: Home = None) -> None:
    """The keys that sign manifests and receipts: the active one, those still trusted, those withdrawn.

    Example: idiolect keys signing
    """
    with open_installation(settings_for(home)) as installation:
        console.print(f"{installation.signer.key_id}  active")
        for public in _keys(installation).trusted():
            console.print(f"{key_id(public)}  trusted")
        for withdrawn in installation.store.withdrawn_signing_keys():
            console.print(f"{withdrawn}  withdrawn")


def rotate_signing(home: Home = None) -> None:
    """Sign with a new key from now on; what the old one signed stays good. Restart servers so that they sign with it.

    Example: idiolect keys rotate-signing
    """
    with open_installation(settings_for(home)) as installation:
        old, new = _keys(installation).rotate()
        event = AuditEvent(OPERATOR, "signing_key.rotate", f"signing key {new}", details={"old": old})
        installation.store.record_audit(INSTALLATION, event, installation.clock.now())
    console.print(f"{new} signs from now on; {old} stays trusted.")


def withdraw_signing(
    key: Annotated[str, typer.Argument(help="The key's id.")],
    reason: Reason,
    home: Home = None,
) -> None:
    """Trust nothing that a key signed: its versions are not served from the next request on. This can't be undone.

    Example: idiolect keys withdraw-signing 0123456789abcdef --reason "the laptop was stolen"
    """
    with open_installation(settings_for(home)) as installation:
        known = _keys(installation).withdraw(check_key_id(key))
        now = installation.clock.now()
        if not known and key not in installation.store.withdrawn_signing_keys():
            raise NotFoundError(f"there is no trusted signing key {key!r}.", mend="See: idiolect keys signing.")
        count = installation.store.withdraw_signing_key(key, now, reason=reason, actor=OPERATOR)
    console.print(f"{key} is withdrawn; {count:,} versions that it signed are no longer served.")


def _keys(installation: Installation) -> SigningKeys:
    return SigningKeys(installation.settings.secrets)
