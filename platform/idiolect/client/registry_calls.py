"""Adapters, releases, the audit log and the privacy ledger, as calls of the API.

An adapter's id says whose it is (`user:<pseudonym>`, `domain:<name>`): each AdapterSummary and Pointers names it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idiolect.client import registry_results as results
from idiolect.client.call import Call, given, new_id, segment
from idiolect.client.results import SavedFile

RELEASE_FILE = "application/x-ndjson"


def adapters(
    *, user: str | None = None, limit: int | None = None, page_token: str | None = None
) -> Call[results.AdapterPage]:
    """Adapter versions, a page at a time."""
    query = given({"user": user, "limit": limit, "page_token": page_token})
    return Call("GET", "/v1/adapters", results.AdapterPage, query=query)


def adapter(version_id: str) -> Call[results.Adapter]:
    """One version with its signed manifest."""
    return Call("GET", _version(version_id), results.Adapter)


def register_lora(
    adapter_config: Mapping[str, Any],
    weights: bytes,
    *,
    global_digest: str,
    reason: str,
    user: str | None = None,
    domain: str | None = None,
    staged: bool = False,
    idempotency_key: str | None = None,
) -> Call[results.AdapterSummary]:
    """A PEFT LoRA, trained elsewhere on the live global model, for `user` or for everybody in `domain`: what
    adapter_config.json holds, and the bytes of adapter_model.safetensors.

    `global_digest` is the model it was trained on: `personalization.global_` of any ranking names the live one.
    """
    body = _lora(adapter_config, weights, global_digest, reason, staged) | {"user": user, "domain": domain}
    return _register("/v1/adapters", body, idempotency_key)


def register_lora_version(
    adapter_id: str,
    adapter_config: Mapping[str, Any],
    weights: bytes,
    *,
    global_digest: str,
    reason: str,
    staged: bool = False,
    idempotency_key: str | None = None,
) -> Call[results.AdapterSummary]:
    """The next version of an adapter, as `register_lora` takes the first."""
    body = _lora(adapter_config, weights, global_digest, reason, staged)
    return _register(f"{_adapter(adapter_id)}/versions", body, idempotency_key)


def adapter_versions(
    adapter_id: str, *, limit: int | None = None, page_token: str | None = None
) -> Call[results.AdapterPage]:
    """Every version of one adapter, oldest first, a page at a time."""
    query = given({"limit": limit, "page_token": page_token})
    return Call("GET", f"{_adapter(adapter_id)}/versions", results.AdapterPage, query=query)


def pointers(adapter_id: str) -> Call[results.Pointers]:
    """Which versions of an adapter are live and before."""
    return Call("GET", f"{_adapter(adapter_id)}/pointers", results.Pointers)


def promote(
    adapter_id: str, version_id: str, reason: str, *, based_on: results.Pointers | None = None
) -> Call[results.Pointers]:
    """Make a version of an adapter live.

    `based_on`: what `pointers` answered. ApiPreconditionError if somebody moved them since. Such a change is not sent
    again when its answer is lost: it may have been made, and would then be refused.
    """
    body = {"version": version_id, "reason": reason}
    path = f"{_adapter(adapter_id)}/pointers/live"
    return Call("PUT", path, results.Pointers, body, headers=_if_match(based_on), safe=based_on is None)


def rollback(
    adapter_id: str, reason: str, *, based_on: results.Pointers | None = None, idempotency_key: str | None = None
) -> Call[results.Pointers]:
    """Go back to the version before the live one; `based_on` as for `promote`.

    Twice goes back twice, but once under one `idempotency_key`; one is made if you give none.
    """
    headers = {"Idempotency-Key": idempotency_key or new_id(), **_if_match(based_on)}
    return Call("POST", f"{_adapter(adapter_id)}/rollback", results.Pointers, {"reason": reason}, headers=headers)


def adapter_history(
    adapter_id: str, *, limit: int | None = None, page_token: str | None = None
) -> Call[results.PointerHistory]:
    """What was live when and why, newest first, a page at a time."""
    query = given({"limit": limit, "page_token": page_token})
    return Call("GET", f"{_adapter(adapter_id)}/history", results.PointerHistory, query=query)


def lineage(version_id: str) -> Call[results.Lineage]:
    """What a version was made from."""
    return Call("GET", f"{_version(version_id)}/lineage", results.Lineage)


def contributions(user: str) -> Call[results.Contributions]:
    """Every version that learned from this person."""
    return Call("GET", "/v1/lineage", results.Contributions, query={"user": user})


def audit(*, limit: int | None = None, page_token: str | None = None) -> Call[results.AuditPage]:
    """Who changed what, when and why, newest first, a page at a time."""
    return Call("GET", "/v1/audit", results.AuditPage, query=given({"limit": limit, "page_token": page_token}))


def releases(*, limit: int | None = None) -> Call[results.Releases]:
    """The newest releases."""
    return Call("GET", "/v1/releases", results.Releases, query=given({"limit": limit}))


def release(release_id: str) -> Call[results.Release]:
    """One release."""
    return Call("GET", _release(release_id), results.Release)


def release_card(release_id: str) -> Call[results.ReleaseCard]:
    """The model card of a release, from its signed manifest."""
    return Call("GET", f"{_release(release_id)}/card", results.ReleaseCard, media="text/markdown")


def promote_release(release_id: str, reason: str) -> Call[results.Promotion]:
    """Make every version of a release live. Harmless to repeat; `moved` is then 0, as it is after an answer was lost
    and the call was sent again."""
    return Call("POST", f"{_release(release_id)}/promote", results.Promotion, {"reason": reason})


def revoke_release(release_id: str, reason: str) -> Call[results.Revocation]:
    """Take everything that one training published out of service, at once."""
    return Call("POST", f"{_release(release_id)}/revoke", results.Revocation, {"reason": reason})


def export_release(release_id: str, file: Path) -> Call[SavedFile]:
    """Write all of a release that may be served into one new, signed file. It holds people's adapters: guard it.

    The file appears when all of it is there, readable by its owner alone; nothing holds all of it in memory. Raises
    FileExistsError, before anything is sent, and whatever OSError the disk has. Each try is an entry in the audit log.
    """
    return Call("GET", f"{_release(release_id)}/export", SavedFile, media=RELEASE_FILE, into=file)


def import_release(content: bytes, reason: str) -> Call[results.ImportedRelease]:
    """Take in a release from its signed file, of this tenant, live for nobody. Harmless to repeat.

    ApiTooLargeError beyond what the server takes this way (IDIOLECT_MAX_IMPORT_BYTES); beside the server
    `idiolect registry import` takes any.
    """
    headers = {"Content-Type": RELEASE_FILE}
    query = {"reason": reason}
    return Call("POST", "/v1/releases/import", results.ImportedRelease, content=content, query=query, headers=headers)


def diff(a: str, b: str) -> Call[results.Difference]:
    """What changed between two versions, or two releases."""
    return Call("GET", "/v1/registry/diff", results.Difference, query={"a": a, "b": b})


def collect_garbage(*, apply: bool = False, older_than_days: float | None = None) -> Call[results.Garbage]:
    """Count the versions that nothing can reach; with `apply` delete them.

    Harmless to repeat. What is counted is then what was left: also if an answer was lost, and the call sent again.
    """
    body = given({"apply": apply, "older_than_days": older_than_days})
    return Call("POST", "/v1/registry/gc", results.Garbage, body)


def ledger(*, limit: int | None = None) -> Call[results.Ledger]:
    """What trainings were charged, newest first."""
    return Call("GET", "/v1/privacy/ledger", results.Ledger, query=given({"limit": limit}))


def _lora(
    adapter_config: Mapping[str, Any], weights: bytes, global_digest: str, reason: str, staged: bool
) -> dict[str, Any]:
    return {
        "global": global_digest,
        "adapter_config": dict(adapter_config),
        "weights": base64.b64encode(weights).decode(),
        "reason": reason,
        "staged": staged or None,
    }


def _register(path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Call[results.AdapterSummary]:
    headers = {"Idempotency-Key": idempotency_key or new_id()}
    return Call("POST", path, results.AdapterSummary, given(body), headers=headers)


def _if_match(based_on: results.Pointers | None) -> dict[str, str]:
    if based_on is None:
        return {}
    return {"If-Match": f'"{based_on.live.revision}.{based_on.live.version or ""}"'}


def _adapter(adapter_id: str) -> str:
    return f"/v1/adapters/{segment('adapter', adapter_id)}"


def _version(version_id: str) -> str:
    return f"/v1/adapters/{segment('version', version_id)}"


def _release(release_id: str) -> str:
    return f"/v1/releases/{segment('release', release_id)}"
