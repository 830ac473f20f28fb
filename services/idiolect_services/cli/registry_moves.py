"""idiolect registry promote|rollback|revoke|history|diff|lineage|gc"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from idiolect.errors import InvalidInputError, NotFoundError
from idiolect.ids import check_name
from idiolect.registry.garbage import RETENTION
from idiolect.registry.pointers import Adapter
from idiolect.stores.blobs.port import BlobInfo, unused
from idiolect.stores.ports import Store
from idiolect_adapters.evaluation.version_diff import PROBES, WeightsDiff
from idiolect_services.cli.common import DEFAULT_TENANT, OPERATOR, Home, Reason, Tenant, console, open_for, settings_for
from idiolect_services.model_blobs import blobs_of_model
from idiolect_services.registry_diff import FieldChange, Source, diff_releases, diff_versions
from idiolect_services.wiring import Installation

if TYPE_CHECKING:  # it imports torch
    from idiolect_adapters.runtime.loras import LoraEngine

User = Annotated[str | None, typer.Option(help="The person, by the tenant's id.")]
Domain = Annotated[str | None, typer.Option(help="The domain.")]
STAGING_AGE = timedelta(days=1)  # a model folder younger than this may belong to a training that still runs


def promote(
    what: Annotated[str, typer.Argument(help="Id of a version, or of a release for all that it holds.")],
    reason: Reason,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Make a version live, or all versions of a release. Nothing from before a reset, or revoked, can be made live.

    Example: idiolect registry promote 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b --reason "better on support"
    """
    with open_for(settings_for(home), tenant) as installation:
        store, now = installation.store, installation.clock.now()
        if _is_release(store, tenant, what):
            moved = store.promote_release(tenant, what, now, reason=reason, actor=OPERATOR)
            console.print(f"{moved:,} adapters now serve their version of release {what}.")
            return
        pointer = store.promote(tenant, what, now, reason=reason, actor=OPERATOR)
    console.print(f"version {pointer.version} is live (revision {pointer.revision}).")


def _is_release(store: Store, tenant: str, what: str) -> bool:
    return store.release(tenant, what) is not None


def rollback(
    reason: Reason,
    user: User = None,
    domain: Domain = None,
    release: Annotated[str | None, typer.Option(help="A whole release: it is revoked, for everyone at once.")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Go back to the version before, for a person or a domain; or undo a whole release.

    Example: idiolect registry rollback --domain support-chat --reason "complaints doubled"
    """
    if sum(given is not None for given in (user, domain, release)) != 1:
        raise InvalidInputError("it is not clear what to roll back.", mend="Give one of --user, --domain, --release.")
    with open_for(settings_for(home), tenant) as installation:
        store, now = installation.store, installation.clock.now()
        if release is not None:
            store.revoke_release(tenant, release, now, reason=reason, actor=OPERATOR)
            console.print(f"release {release} is revoked; everyone is back on the version before it.")
            return
        adapter = _adapter(installation, tenant, user, domain)
        pointer = store.rollback(tenant, adapter, now, reason=reason, actor=OPERATOR)
    console.print(f"version {pointer.version} is live again (revision {pointer.revision}).")


def revoke(
    release: Annotated[str, typer.Argument(help="A release's id.")],
    reason: Reason,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Serve no version of a release any more: one write, however many it holds. This can't be undone.

    Example: idiolect registry revoke 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b --reason "trained on bad data"
    """
    with open_for(settings_for(home), tenant) as installation:
        now = installation.clock.now()
        installation.store.revoke_release(tenant, release, now, reason=reason, actor=OPERATOR)
    console.print(f"release {release} is revoked.")


def history(
    user: User = None,
    domain: Domain = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most moves to show.")] = 20,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """What was live for a person or a domain, when, and why it changed; newest first.

    Example: idiolect registry history --domain support-chat
    """
    with open_for(settings_for(home), tenant) as installation:
        adapter = _adapter(installation, tenant, user, domain)
        moves = installation.store.pointer_history(tenant, adapter, limit=limit)
        pointers = installation.store.pointers(tenant, adapter)
    for pointer in pointers:
        console.print(f"{pointer.name}: {pointer.version or 'none'} (revision {pointer.revision})", soft_wrap=True)
    table = Table(box=None)
    for name in ("time (UTC)", "pointer", "to", "by", "reason"):
        table.add_column(name, no_wrap=name != "reason")
    for move in moves:
        words = (move.name, move.version or "erased", move.actor, move.reason)
        table.add_row(f"{move.at:%Y-%m-%d %H:%M:%S}", *map(escape, words))
    console.print(table)


def _adapter(installation: Installation, tenant: str, user: str | None, domain: str | None) -> Adapter:
    if (user is None) == (domain is None):
        raise InvalidInputError("it is not clear whose adapter is meant.", mend="Give one of --user and --domain.")
    if domain is not None:
        return Adapter("domain", check_name("domain", domain))
    return Adapter("user", installation.pseudonym(tenant, user or ""))


def diff(
    a: Annotated[str, typer.Argument(help="Id of a version, or of a release.")],
    b: Annotated[str, typer.Argument(help="Id of the other one, of the same kind.")],
    probe: Annotated[
        list[str] | None, typer.Option(help="A text to score with both, as PROMPT|TEXT; some public ones if none.")
    ] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """What changed from one version or release to another: weights, data, privacy, evaluation, scores of probe texts.

    Example: idiolect registry diff 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5b 0197b1a2-3c4d-7e5f-8a9b-0c1d2e3f4a5c
    """
    with open_for(settings_for(home), tenant) as installation:
        source = Source(
            installation.store,
            installation.signer,
            installation.load_live_model,
            lambda: _engine(installation),
        )
        if _is_release(installation.store, tenant, a):
            releases = diff_releases(source, tenant, a, b)
            _show_fields(releases.fields)
            of_them = "" if releases.median is None else "; medians of their weights:"
            console.print(f"adapters in both: {releases.pairs:,}{of_them}")
            if releases.median is not None:
                _show_weights(releases.median)
            return
        versions = diff_versions(source, tenant, a, b, [_probe(text) for text in probe or ()] or PROBES)
    _show_fields(versions.fields)
    _show_weights(versions.weights)
    if not versions.probes:
        console.print("probe texts: not scored, since the two are bound to another global model than the live one")
        return
    table = Table("adds to", "a", "b", box=None)
    for scored in versions.probes:
        table.add_row(escape(f"{scored.prompt} | {scored.text}"), f"{scored.a:+.4f}", f"{scored.b:+.4f}")
    console.print(table)


def _engine(installation: Installation) -> LoraEngine:
    from idiolect_adapters.runtime.loras import LoraEngine

    return LoraEngine(installation.load_live_model())


def _probe(text: str) -> tuple[str, str]:
    prompt, bar, candidate = text.partition("|")
    if not bar or not candidate.strip():
        raise InvalidInputError(f"the probe {text[:60]!r} has no text.", mend="Write it as PROMPT|TEXT.")
    return prompt.strip(), candidate.strip()


def _show_fields(fields: Sequence[FieldChange]) -> None:
    table = Table("changed", "a", "b", box=None)
    for field in fields:
        table.add_row(field.name, escape(field.a), escape(field.b))
    console.print(table if fields else "the manifests agree in all that is shown here")


def _show_weights(weights: WeightsDiff) -> None:
    cosine = "none" if weights.cosine is None else f"{weights.cosine:.4f}"
    console.print(
        f"norm: {weights.norm_a:.4f} and {weights.norm_b:.4f}   distance: {weights.distance:.4f}   cosine: {cosine}"
    )


def lineage(
    version: Annotated[str | None, typer.Argument(help="A version's id.")] = None,
    user: Annotated[str | None, typer.Option(help="A person instead: every version that learned from them.")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Where a version comes from; or every version that may hold what a person said.

    Example: idiolect registry lineage --user brief-01
    """
    if (version is None) == (user is None):
        raise InvalidInputError("it is not clear whose lineage is meant.", mend="Give a version's id or --user.")
    with open_for(settings_for(home), tenant) as installation:
        if version is not None:
            _show_origin(installation.store, tenant, version)
        else:
            _show_contributions(installation, tenant, user or "")


def _show_origin(store: Store, tenant: str, version: str) -> None:
    found = store.version_lineage(tenant, version)
    if found is None:
        raise NotFoundError(
            f"tenant {tenant!r} has no version {version[:80]!r}.", mend="See: idiolect registry list --versions."
        )
    charged = "not in the ledger" if found.purpose is None else f"{found.purpose}, {found.accounts:,} charged"
    for name, value in (
        ("adapter", found.adapter),
        ("release", found.release),
        ("run", f"{found.run} ({charged})"),
        ("trained on", found.data_window),
        ("global model", found.global_digest),
        ("parents", ", ".join(found.parents) or "none"),
    ):
        console.print(f"{name}: {escape(value)}", soft_wrap=True)


_OWNERS = {"user": "the person", "global": "the global model"}


def _show_contributions(installation: Installation, tenant: str, user: str) -> None:
    subject = installation.pseudonym(tenant, user)
    found = installation.store.contributions(tenant, subject)
    table = Table(box=None)
    for name in ("version", "of", "published (UTC)", "known by", "state"):
        table.add_column(name, no_wrap=True)
    for one in found:
        owner = _OWNERS.get(one.scope, f"domain {one.domain}")
        state = "revoked" if one.revoked else "good"
        table.add_row(one.version, escape(owner), f"{one.published_at:%Y-%m-%d %H:%M:%S}", one.via, state)
    console.print(table if found else f"no version learned from {escape(user[:80])}.")
    console.print("What a global model learned from data that was declared public is in no list of people.")


def gc(
    older_than_days: Annotated[
        float, typer.Option(min=0, max=36500, help="Keep what was revoked or moved more recently.")
    ] = RETENTION.days,
    apply: Annotated[bool, typer.Option("--apply", "--yes", help="Delete; without it this only counts.")] = False,
    tenant: Tenant = DEFAULT_TENANT,
    home: Home = None,
) -> None:
    """Delete versions that nothing can reach: of revoked releases, unnamed by any pointer, and of releases whose
    publishing was cut off and not sent again. Also unused model folders, and blobs that no version names.

    Example: idiolect registry gc --older-than-days 7
    """
    if math.isnan(older_than_days):  # it passes any comparison with a bound
        raise InvalidInputError("--older-than-days is not a number.", mend="Use one from 0 to 36500.")
    with open_for(settings_for(home), tenant) as installation:
        store, now = installation.store, installation.clock.now()
        older_than = now - timedelta(days=older_than_days)
        models = unused_models(installation, older_than.timestamp())
        size = sum(_bytes(folder) for folder in models)
        blobs = unused_blobs(installation, older_than)
        if apply:
            found = store.collect(tenant, older_than, now, actor=OPERATOR)
            for folder in models:
                shutil.rmtree(folder)
            for blob in blobs:
                installation.blobs.delete(blob.digest)
        else:
            found = store.garbage(tenant, older_than)
    done = "deleted" if apply else "would delete"
    console.print(f"{done} {found.versions:,} versions of {found.releases:,} releases, {found.bytes:,} bytes")
    console.print(f"{done} {len(models):,} unused global models, {size:,} bytes")
    console.print(f"{done} {len(blobs):,} unused blobs, {sum(blob.bytes for blob in blobs):,} bytes")
    if not apply and (found.versions or models or blobs):
        console.print("This was a dry run: add --apply to delete.")


def unused_models(installation: Installation, before: float) -> list[Path]:
    """Folders of global models that were never live and no release is bound to, untouched since `before` (a POSIX
    time) and for a day: one that is being trained is not named by anything yet."""
    if not installation.models.is_dir():
        return []
    named = set(installation.store.referenced_models())
    before = min(before, installation.clock.now().timestamp() - STAGING_AGE.total_seconds())
    folders = (path for path in sorted(installation.models.iterdir()) if path.is_dir() and len(path.name) == 64)
    return [path for path in folders if path.name not in named and path.stat().st_mtime < before]


def unused_blobs(installation: Installation, before: datetime) -> list[BlobInfo]:
    """Left behind by publishes that failed: nobody names them, and nobody put them since `before`, nor for a day."""
    before = min(before, installation.clock.now() - STAGING_AGE)
    blobs, store = installation.blobs, installation.store
    named = set(store.named_blobs())
    for model in store.referenced_models():
        named |= blobs_of_model(blobs, model)
    return list(unused(blobs, named, before))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
