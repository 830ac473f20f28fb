"""idiolect registry add-peft|export-peft"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from idiolect.errors import ConfigurationError, ConflictError, InvalidInputError, NotFoundError
from idiolect.ids import check_name
from idiolect.registry.pointers import Adapter
from idiolect_services.cli.common import DEFAULT_TENANT, OPERATOR, Home, Reason, Tenant, console, open_for, settings_for
from idiolect_services.wiring import Installation


def add_peft(
    folder: Annotated[Path, typer.Argument(help="A folder that PEFT has saved: a plain LoRA, as safetensors.")],
    reason: Reason,
    user: Annotated[
        str | None, typer.Option(help="For this person, by the tenant's id; they must have opted in.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="For everybody in this domain.")] = None,
    base: Annotated[
        str | None, typer.Option("--global", help="Digest of the global model that it was trained on; the live one.")
    ] = None,
    staged: Annotated[bool, typer.Option("--staged", help="Live for nobody yet: for a rollout.")] = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Register a LoRA that was trained elsewhere, on any layers of the live global model, and make it live.

    Example: idiolect registry add-peft ./my-lora --domain support-chat --reason "trained on our style guide"
    """
    from idiolect_adapters.lora.peft_format import peft_bytes
    from idiolect_adapters.runtime.loras import LoraEngine
    from idiolect_services.registering import Registrar, Registration

    if (user is None) == (domain is None):
        raise InvalidInputError("it is not clear whose adapter this is.", mend="Give one of --user and --domain.")
    settings = settings_for(home)
    config, weights = peft_bytes(folder, settings.max_adapter_bytes)
    with open_for(settings, tenant) as installation:
        model = installation.load_live_model()
        registrar = Registrar(installation.store, LoraEngine(model), installation.signer, installation.clock)
        version = registrar.register(
            Registration(
                tenant=tenant,
                adapter=_adapter(installation, tenant, user, domain),
                global_digest=base or model.digest,
                config=config,
                weights=weights,
                reason=reason,
                actor=OPERATOR,
                staged=staged,
            )
        )
    state = "waits for a rollout or a promotion" if staged else "is live"
    console.print(f"version {version.id} {state}. Nothing is claimed about its privacy.", soft_wrap=True)


def export_peft(
    version: Annotated[str, typer.Argument(help="A version's id.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Write a version that is bound to the live global model as a folder that plain PEFT loads.

    Example: idiolect registry export-peft 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b ./my-lora
    """
    from idiolect_services.peft_export import peft_of

    if folder.exists():
        raise ConflictError(f"{folder} exists already.", mend="Name a new folder.")
    with open_for(settings_for(home), tenant) as installation:
        stored = installation.whole_version(tenant, version)
        if stored is None:
            raise NotFoundError(
                f"tenant {tenant!r} has no version {version[:80]!r}.", mend="See: idiolect registry list --versions."
            )
        files = peft_of(installation.load_live_model(), installation.signer)(stored)
    if files is None:
        raise ConfigurationError(
            f"version {version} does not verify, or is not bound to the live global model.",
            mend="See: idiolect registry show.",
        )
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    console.print(f"{folder}: {', '.join(files)}", soft_wrap=True)


def _adapter(installation: Installation, tenant: str, user: str | None, domain: str | None) -> Adapter:
    if domain is not None:
        return Adapter("domain", check_name("domain", domain))
    return Adapter("user", installation.pseudonym(tenant, user or ""))
