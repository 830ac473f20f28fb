"""All that is stored of one person, as a zip file that is made while it is sent: nothing of it lies on a disk here.

Memory is bounded by one page of the store. No name in the archive comes from data, and texts keep to JSON that is safe
to open anywhere: UTF-8, with what HTML would read escaped.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from idiolect.consent import SubjectState, signed_consent
from idiolect.errors import CorruptArtifactError
from idiolect.privacy.ledger import Charge
from idiolect.registry.manifest import manifest_bytes
from idiolect.registry.signing import Signer
from idiolect.stores.people_ports import PersonPart
from idiolect.stores.ports import Store, StoredVersion

FILE_NAME = "idiolect-export.zip"
CHUNK_BYTES = 64 << 10

_MAX_CHARGES = 100_000
_VERSIONS_PAGE = 50
_ODD = re.compile("[<>&]|[^ -~]")  # inside JSON they stand in strings only

# An adapter as the files of a PEFT folder; None for one that can't be: of another global model, or damaged.
PeftFiles = Callable[[StoredVersion], Mapping[str, bytes] | None]

_PARTS: tuple[tuple[PersonPart, str], ...] = (
    ("history", "consent_history.json"),
    ("shown", "shown.json"),
    ("signals", "signals.json"),
    ("comparisons", "comparisons.json"),
    ("held_out", "held_out_comparisons.json"),
    ("ratings", "ratings.json"),
    ("live", "adapter_history.json"),
    ("resets", "resets.json"),
)

_README = """Everything that is stored about one person
===========================================

This archive was made on {now} for the person whose pseudonym here is
{subject}.
The service knows people only under such pseudonyms; your name is not in it.

consent.json               what you agreed to now, signed by the service
consent_history.json       every change of it, and every reset and export, with who made it
shown.json                 what was ranked for you: the query, and the texts in the order they were sent
signals.json               what you did with it; "shown" names the entry of shown.json
comparisons.json           what was learned from that: you preferred the chosen text over the rejected one
held_out_comparisons.json  the same, kept apart to measure quality with; nothing learns from these
ratings.json               ratings that came with imported data
charges.json               what each training cost of your privacy budget; this stays even after a reset
releases.json              every published model that learned from you, or may have
adapter_history.json       which of your adapters was in use, and since when
resets.json                receipts of earlier resets
adapters/                  your own adapters, newest last: a handful of numbers each
  manifest.json            what it is, how private it is, and its signature
  adapter.safetensors      the numbers
  peft/                    the same in the PEFT format, for the one that fits the model of today

Empty lists mean that nothing of that kind is stored. The .json files open in any text editor, and JSON programs can
read them. Times are in UTC. What happened while this archive was being made may be in it or not.
"""


@dataclass(frozen=True, slots=True)
class Exporter:
    store: Store
    signer: Signer
    peft: PeftFiles | None = None

    def chunks(self, tenant: str, subject: str, now: datetime) -> Iterator[bytes]:
        """The bytes of the archive, about CHUNK_BYTES at a time. Reads the store as it goes, so it may raise anywhere;
        an archive that broke off has no directory and does not open."""
        sink = _Sink()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, pieces in self._files(tenant, subject, now):
                entry = zipfile.ZipInfo(name, now.timetuple()[:6])
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o600 << 16
                with archive.open(entry, "w", force_zip64=True) as file:
                    for piece in pieces:
                        file.write(piece)
                        if sink.size >= CHUNK_BYTES:
                            yield sink.take()
        yield sink.take()

    def _files(self, tenant: str, subject: str, now: datetime) -> Iterator[tuple[str, Iterable[bytes]]]:
        yield "README.txt", [_README.format(now=f"{now:%Y-%m-%d %H:%M} UTC", subject=subject).encode()]
        state = self.store.subject(tenant, subject)
        yield "consent.json", [_json(_consent(tenant, state, self.signer))]
        for part, name in _PARTS:
            yield name, _array(self._rows(tenant, subject, part))
        yield "charges.json", _array(map(_charge, self.store.charges(tenant, subject, limit=_MAX_CHARGES)))
        yield "releases.json", _array(map(asdict, self.store.contributions(tenant, subject)))
        yield from self._adapters(tenant, subject)

    def _rows(self, tenant: str, subject: str, part: PersonPart) -> Iterator[Mapping[str, Any]]:
        page = self.store.person_page(tenant, subject, part)
        yield from page.rows
        while page.after is not None:
            page = self.store.person_page(tenant, subject, part, page.after)
            yield from page.rows

    def _adapters(self, tenant: str, subject: str) -> Iterator[tuple[str, Iterable[bytes]]]:
        live = self.store.resolve(tenant, subject, None).user
        for number, stored in enumerate(self._versions(tenant, subject), start=1):
            folder = f"adapters/{number}"
            yield f"{folder}/manifest.json", [_json(_signed_manifest(stored))]
            try:
                whole = self.store.with_weights(stored)
            except CorruptArtifactError:
                continue  # not served either
            yield f"{folder}/adapter.safetensors", [whole.version.weights]
            files = None
            if self.peft is not None and live is not None and live.id == stored.version.id:
                files = self.peft(whole)
            for name, data in (files or {}).items():
                yield f"{folder}/peft/{name}", [data]

    def _versions(self, tenant: str, subject: str) -> Iterator[StoredVersion]:
        after = ""
        while True:
            page = self.store.versions(tenant, subject=subject, after=after, limit=_VERSIONS_PAGE)
            yield from page
            if len(page) < _VERSIONS_PAGE:
                return
            after = page[-1].version.id


class _Sink:
    """A file that can only be written to: `zipfile` then writes sizes after the data."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces, self.size = [], 0
        return data


def _consent(tenant: str, state: SubjectState, signer: Signer) -> dict[str, Any]:
    if not state.known:
        return {"opted_in": False, "policy_version": None}
    return signed_consent(tenant, state, signer)


def _signed_manifest(stored: StoredVersion) -> dict[str, Any]:
    return {
        "id": stored.version.id,
        "revoked": stored.revoked,
        "withheld": stored.withheld,
        "manifest": json.loads(manifest_bytes(stored.template, stored.version)),
        "key_id": stored.version.key_id,
        "signature": stored.version.signature.hex(),
    }


def _charge(charge: Charge) -> dict[str, Any]:
    run = charge.run
    return {
        "run": run.id,
        "unit": run.unit,
        "purpose": run.purpose,
        "rho": run.event.rho,
        "state": run.state,
        "reserved_at": run.reserved_at,
        "release": charge.release,
        "revoked": charge.revoked,
    }


def _array(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """A JSON list, one row at a time."""
    separator = b"[\n"
    for row in rows:
        yield separator + _json(row)
        separator = b",\n"
    yield b"[]\n" if separator == b"[\n" else b"\n]\n"


def _json(value: Any) -> bytes:
    """Letters of any script stand as they are: people read this. What is HTML, or not seen, is written in numbers."""
    return _ODD.sub(_seen, json.dumps(value, default=_plain, ensure_ascii=False)).encode()


def _seen(odd: re.Match[str]) -> str:
    letter = odd[0]
    if letter.isascii():
        return f"\\u{ord(letter):04x}"
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form here")
