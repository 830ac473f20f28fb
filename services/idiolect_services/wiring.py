"""The only place that builds real objects. Everything is made inside `open_installation`, nothing at import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from idiolect.clock import Clock, SystemClock
from idiolect.errors import ConfigurationError, NotFoundError
from idiolect.ids import pseudonym, sha256_hex
from idiolect.registry.signing import Signer, key_id
from idiolect.settings import Settings
from idiolect.stores.blobs import BlobStore, open_blobs
from idiolect.stores.ports import Store, StoredVersion
from idiolect.stores.recovery_log import RecoveryLog
from idiolect.stores.sql import KeyStore, SqlStore, open_key_store, open_store
from idiolect_services.model_blobs import fetch_model, share_model
from idiolect_services.redis_setting import redis_wanted
from idiolect_services.secrets import MASTER, check_given, load_or_create, master_check, tenant_key
from idiolect_services.signing_keys import SigningKeys
from idiolect_services.vault import Vault

if TYPE_CHECKING:  # importing torch takes seconds, and most commands never need it
    from idiolect_adapters.preference import PreferenceModel


@dataclass(frozen=True)
class Installation:
    """One home folder, opened: its store, secrets and clock."""

    settings: Settings
    store: Store
    signer: Signer
    clock: Clock
    master_key: bytes

    @property
    def root(self) -> Path:
        return self.settings.root

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def blobs(self) -> BlobStore:
        return blobs_of(self.settings)

    @property
    def vault(self) -> Vault:
        return Vault(self.master_key)

    def pseudonym(self, tenant: str, user: str) -> str:
        return pseudonym(_tenant_key(self.master_key, tenant), user)

    def whole_version(self, tenant: str, version_id: str) -> StoredVersion | None:
        """With its weights, also where they lie in a blob. Raises as `Store.with_weights`."""
        stored = self.store.version(tenant, version_id)
        return None if stored is None else self.store.with_weights(stored)

    def load_live_model(self) -> PreferenceModel:
        """The live global model, every byte verified. Raises NotFoundError if none was trained yet."""
        digest = self.store.live_global()
        if digest is None:
            raise NotFoundError("there is no global model yet.", mend="Train one: idiolect train global.")
        return self.load_model(digest)

    def load_model(self, digest: str) -> PreferenceModel:
        """Any global model by its digest, every byte verified; fetched from the blobs first if another machine trained
        it. Raises CorruptArtifactError, UnavailableError."""
        from idiolect_adapters.preference import load_model

        if self.settings.blob_url is not None:
            fetch_model(self.blobs, self.models, digest)
        return load_model(self.models, digest, self.settings.device)

    def share_model(self, digest: str) -> None:
        """For other machines, before it is live: where blobs have a place of their own."""
        if self.settings.blob_url is not None:
            share_model(self.blobs, self.models, digest)


_tenant_key = lru_cache(maxsize=1024)(tenant_key)


@contextmanager
def open_installation(
    settings: Settings, clock: Clock | None = None, *, new_keys: bool = False
) -> Iterator[Installation]:
    """Open (and on first use create) the home folder and its store. `new_keys`: the key store that the database
    belongs to is lost; this one takes its place."""
    root = settings.root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the home folder {root} can't be made: {error.strerror}.", mend="Set IDIOLECT_HOME to a folder of yours."
        ) from error
    if settings.secrets_dir is not None:
        check_given(settings.secrets)
    master = load_or_create(settings.secrets / MASTER)
    keys = SigningKeys(settings.secrets)
    signer = keys.signer()
    store = open_store(settings.sql_url, open_keys(settings, master), instead=new_keys)
    try:
        store.agree(master_check(master), signer.key_id, tuple(map(key_id, keys.trusted())))
        store.keep_blobs(blobs_of(settings))
        _keep_up(store, recovery_log_of(settings))
        store.sweep_blobs()  # of resets that a crash, or an object store that was away, left it to do
        with _telling_swaps(store, settings):
            yield Installation(settings, store, signer, clock or SystemClock(), master)
    finally:
        store.close()


@contextmanager
def _telling_swaps(store: Store, settings: Settings) -> Iterator[None]:
    """The servers, of what a command makes live. A server itself tells them in its own time."""
    if settings.redis_url is None:
        yield
        return
    with redis_wanted():
        from idiolect_services.swap_log import SwapLog

        swaps = SwapLog(settings.redis_url)
    store.on_swap = swaps.tell
    try:
        yield
    finally:
        swaps.close()


def blobs_of(settings: Settings) -> BlobStore:
    keys = {"access_key_id": settings.s3_access_key_id, "secret_access_key": settings.s3_secret_access_key}
    given = {name: value.get_secret_value() for name, value in keys.items() if value is not None}
    return open_blobs(settings.blob_url or (settings.root / "blobs").as_uri(), **given)


def open_keys(settings: Settings, master: bytes) -> KeyStore:
    """The keys of people. Raises ConfigurationError if they were to lie where every copy of the database has them."""
    if _place(settings.key_store_url) == _place(settings.sql_url):
        raise ConfigurationError(
            "IDIOLECT_KEYS_URL names the database itself, so every backup would hold the keys to what is in it.",
            mend="Name another database.",
        )
    vault = Vault(master)
    return open_key_store(settings.key_store_url, lambda tenant: vault.derive(tenant, "keys of people"))


def recovery_log_of(settings: Settings) -> RecoveryLog:
    """One for each database: of the same name wherever the home lies, and whoever logs in to the server."""
    where = _place(settings.sql_url).replace(str(settings.root), "")
    return RecoveryLog(settings.root / "recovery" / f"{sha256_hex(where.encode())[:16]}.log")


def _place(url: str) -> str:
    parts = urlsplit(url)
    host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
    return f"{host}:{parts.port or ''}{parts.path}"


def _keep_up(store: SqlStore, log: RecoveryLog) -> None:
    """A database that is behind its log was restored from an older copy: before anything else it learns what came
    after. Raises ConfigurationError if a part of that is in the logs of other machines only."""
    store.keep_log(log)
    last = log.last()
    if last is None or store.knows(last):
        return
    with log.held(alone=True):  # whoever is just committing what was logged is waited for
        if not store.knows(last):
            store.recover(log.read())
