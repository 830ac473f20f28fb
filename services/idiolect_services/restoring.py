"""`idiolect backup` and `idiolect restore`: from an installation to an archive, and back.

A restored database first learns what the recovery log says came after the backup; only then it takes its place. So a
reset stays a reset, what was revoked stays revoked, and no privacy budget is given back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from idiolect.audit import INSTALLATION, AuditEvent
from idiolect.errors import ConfigurationError, NotFoundError
from idiolect.ids import new_id
from idiolect.recovery import LoggedChange, Recovered
from idiolect.registry.signing import Signer
from idiolect.settings import Settings
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql import SqlStore, open_store
from idiolect.stores.sql.opening import fold_log
from idiolect_services.backup import Archive, Contents, write_archive
from idiolect_services.sealing import open_secrets, seal_secrets
from idiolect_services.secrets import MASTER, SIGNING, load_or_create, master_check, write_secret
from idiolect_services.signing_keys import SigningKeys
from idiolect_services.wiring import Installation, blobs_of, open_keys, recovery_log_of

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Restored:
    """`aside`: where the database that was there before lies now."""

    created_at: str
    rows: int
    models: int
    recovered: Recovered
    aside: Path | None


def back_up(installation: Installation, path: Path, passphrase: str | None = None) -> int:
    """How many rows. With a passphrase the secrets go along, sealed; without one they must be kept elsewhere."""
    store = installation.store
    assert isinstance(store, SqlStore)
    keys = SigningKeys(installation.settings.secrets)
    sealed = (
        None
        if passphrase is None
        else seal_secrets(keys.export() | {"master": installation.master_key.hex()}, passphrase)
    )
    now = installation.clock.now()
    wanted = set(store.referenced_models())
    models = [folder for folder in sorted(installation.models.glob("*")) if folder.name in wanted]
    with store.snapshot() as snapshot:
        contents = Contents(
            snapshot,
            models,
            _blobs(installation, store.named_blobs()),
            recovery_log_of(installation.settings).path.name,
            (installation.signer.public_key, *keys.trusted()),
            master_check(installation.master_key),
            sealed,
        )
        manifest = write_archive(path, contents, installation.signer, now.isoformat())
    store.record_audit(INSTALLATION, AuditEvent(OPERATOR, "backup.create", f"backup {path.name}"), now)
    return sum(manifest["rows"].values())


def _blobs(installation: Installation, digests: Sequence[str]) -> Iterator[bytes]:
    """One at a time. What was erased since they were listed is left out."""
    blobs = installation.blobs
    for digest in digests:
        try:
            yield blobs.get(digest)
        except NotFoundError:
            if digest in installation.store.named_blobs():
                raise


def restore(
    settings: Settings,
    path: Path,
    logs: Sequence[Path] = (),
    *,
    nothing_since: bool = False,
    passphrase: str | None = None,
    without_keys: bool = False,
) -> Restored:
    """Into the database of `settings`. A SQLite file that is there is put aside; a Postgres database must be empty.

    `logs`: recovery logs of other machines, beside this home's own. Raises ConfigurationError without any log, unless
    `nothing_since` says that nothing was changed after the backup, and without the key store that the backup belongs
    to, unless it is to come `without_keys`: what was stored of people then stays unreadable. Stop all servers first.
    """
    archive = Archive(path)
    try:
        _check(settings, archive, passphrase)
        changes = list(_changes(settings, archive, logs, nothing_since))
        models = archive.write_models(settings.root / "models")
        for blob in archive.blobs():
            blobs_of(settings).put(blob)
        with recovery_log_of(settings).held(alone=True):
            recovered, aside = _load(settings, archive, changes, without_keys)
            _complete_log(recovery_log_of(settings), changes)
    finally:
        archive.close()
    rows = sum(archive.manifest["rows"].values())
    return Restored(archive.manifest["created_at"], rows, models, recovered, aside)


def _check(settings: Settings, archive: Archive, passphrase: str | None) -> None:
    """With the keys of the home. One that has none takes those of the archive, once it has passed; they must be the
    ones that the database belongs to."""
    folder = settings.secrets
    keys, master = SigningKeys(folder), folder / MASTER
    belongs = archive.manifest["key_check"]
    if master.exists() and master_check(load_or_create(master)) != belongs:
        raise ConfigurationError(
            f"the backup belongs to another installation than {settings.root}: their master keys differ.",
            mend="Restore into the home that it came from, or into an empty one.",
        )
    if master.exists() and (folder / SIGNING).exists():
        archive.check(keys.signer())
        return
    sealed = archive.sealed()
    if sealed is None or passphrase is None:
        raise ConfigurationError(
            f"{folder} lacks the installation's keys, without which the backup can't be checked or used.",
            mend="Copy the secrets folder here, or give the passphrase of a backup that holds them.",
        )
    found = open_secrets(sealed, passphrase)
    if master_check(bytes.fromhex(found["master"])) != belongs:
        raise ConfigurationError("the sealed keys belong to another backup.", mend="Use another copy.")
    archive.check(Signer(bytes.fromhex(found["signing"])))
    keys.adopt(found)
    write_secret(master, bytes.fromhex(found["master"]))


def _changes(settings: Settings, archive: Archive, logs: Sequence[Path], nothing_since: bool) -> Iterator[LoggedChange]:
    own = settings.root / "recovery" / Path(str(archive.manifest["log"])).name
    for extra in logs:
        if not extra.is_file():
            raise ConfigurationError(f"there is no recovery log {extra}.", mend="Check the path.")
    found = [log for log in dict.fromkeys((own, *logs)) if log.is_file()]
    if not found and not nothing_since:
        raise ConfigurationError(
            f"there is no recovery log {own}: nobody knows who was reset, or what was charged, after the backup.",
            mend="Give it with --log. If nothing was changed since the backup, say so: --nothing-since.",
        )
    for log in found:
        yield from RecoveryLog(log).read()


def _load(
    settings: Settings, archive: Archive, changes: Sequence[LoggedChange], without_keys: bool
) -> tuple[Recovered, Path | None]:
    target = _sqlite_file(settings)
    keys = open_keys(settings, load_or_create(settings.secrets / MASTER))
    if target is None:
        store = open_store(settings.sql_url, keys)
        try:
            return store.load(archive.snapshot(), changes, without_keys=without_keys), None
        finally:
            store.close()
    for left in target.parent.glob(f".{target.name}.restoring-*"):  # by one that was killed
        left.unlink()
    staging = target.with_name(f".{target.name}.restoring-{new_id()}")
    try:
        store = open_store(f"sqlite:///{staging}", keys)
        try:
            recovered = store.load(archive.snapshot(), changes, without_keys=without_keys)
        finally:
            store.close()
        return recovered, _take_place(staging, target)
    except BaseException:
        for left in staging.parent.glob(f"{staging.name}*"):
            left.unlink()
        raise


def _take_place(staging: Path, target: Path) -> Path | None:
    """The old database is put aside, never deleted: it may be all that there is. Whenever this is cut off, `target` is
    one of the two, whole."""
    aside = None
    if target.exists():
        aside = target.with_name(f"{target.name}.before-{new_id()}")
        fold_log(target)
        for ending in ("-wal", "-shm"):  # of one that can't be opened any more
            old = target.with_name(target.name + ending)
            if old.exists():
                old.rename(aside.with_name(aside.name + ending))
        os.link(target, aside)
    staging.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return aside


def _sqlite_file(settings: Settings) -> Path | None:
    scheme, _, rest = settings.sql_url.partition("///")
    return Path(rest) if scheme.startswith("sqlite") else None


def _complete_log(log: RecoveryLog, changes: Sequence[LoggedChange]) -> None:
    """Where the database moved, or other machines' logs were given: the next restore needs no other log than this."""
    known = {change.entry.hash for change in log.read()}
    log.append([change for change in changes if change.entry.hash not in known])
