"""idiolect keys create|rotate|revoke, and the commands of signing and of people's keys"""

from __future__ import annotations

from typing import Annotated

import typer

from idiolect.ids import check_name
from idiolect.tenancy import Scope, hash_secret, new_secret
from idiolect_services.cli.common import Home, console, settings_for
from idiolect_services.cli.people_keys import replace_store, seal
from idiolect_services.cli.signing import rotate_signing, signing, withdraw_signing
from idiolect_services.wiring import open_installation

app = typer.Typer(help="API keys of tenants, the keys that sign manifests, and those of people.", no_args_is_help=True)
app.command("signing")(signing)
app.command("rotate-signing")(rotate_signing)
app.command("withdraw-signing")(withdraw_signing)
app.command("seal")(seal)
app.command("replace-store")(replace_store)


@app.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="The tenant; created if it is new.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="What the key may do; infer and feedback if none.")] = None,
    home: Home = None,
) -> None:
    """Create a key and print it. Only its hash is kept, so this is the one time it can be read.

    Example: idiolect keys create acme --scope infer --scope feedback
    """
    secret = new_secret()
    with open_installation(settings_for(home)) as installation:
        now = installation.clock.now()
        installation.store.create_tenant(check_name("tenant", tenant), now)
        key = installation.store.create_key(tenant, scope or [Scope.INFER, Scope.FEEDBACK], hash_secret(secret), now)
    console.print(f"key id {key.id}, scopes {', '.join(sorted(key.scopes))}")
    console.print(secret, soft_wrap=True)


@app.command("rotate")
def rotate(key_id: Annotated[str, typer.Argument(help="The key's id (not the key).")], home: Home = None) -> None:
    """Replace a key by a new one with the same scopes, and print that. The old one, and every token that was made with
    it, stop within a second.

    Example: idiolect keys rotate 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b
    """
    secret = new_secret()
    with open_installation(settings_for(home)) as installation:
        key = installation.store.rotate_key(key_id, hash_secret(secret), installation.clock.now())
    console.print(f"key id {key.id}, scopes {', '.join(sorted(key.scopes))}; key {key_id} is revoked.")
    console.print(secret, soft_wrap=True)


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="The key's id (not the key).")], home: Home = None) -> None:
    """Revoke a key at once.

    Example: idiolect keys revoke 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b
    """
    with open_installation(settings_for(home)) as installation:
        installation.store.revoke_key(key_id, installation.clock.now())
    console.print(f"key {key_id} is revoked.")
